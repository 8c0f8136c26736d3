package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;

import io.fletch.ffm.x86.Assembler;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Supplier;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** Functions are emitted when first used, and once, however many threads use them at once. */
class X86FunctionTest {
  private static final int THREADS = 8;

  private final AtomicInteger emitted = new AtomicInteger();

  @BeforeEach
  void canEmit() {
    X86TestSets.orSkip(Isa.AVX2);
  }

  private byte[] code() {
    emitted.incrementAndGet();
    Assembler a = new Assembler();
    a.ret();
    return a.assemble();
  }

  /** Addresses that threads get which ask at the same time. */
  private static List<Long> race(Supplier<MemorySegment> function) throws Exception {
    CyclicBarrier start = new CyclicBarrier(THREADS);
    List<FutureTask<Long>> tasks = new ArrayList<>();
    for (int t = 0; t < THREADS; t++) {
      FutureTask<Long> task =
          new FutureTask<>(() -> {
            start.await(20, TimeUnit.SECONDS);
            return function.get().address();
          });
      tasks.add(task);
      Thread.ofPlatform().daemon().start(task);
    }
    List<Long> addresses = new ArrayList<>();
    for (FutureTask<Long> t : tasks) {
      addresses.add(t.get(20, TimeUnit.SECONDS));
    }
    return addresses;
  }

  @Test
  void oneFunctionForAllThreads() throws Exception {
    X86Function function = new X86Function("test of one function", this::code);
    assertEquals(0, emitted.get());
    List<Long> addresses = race(function::entry);
    assertEquals(1, addresses.stream().distinct().count());
    function.call(1, 2, 3, 4, 5);
    assertEquals(addresses.getFirst(), function.entry().address());
    assertEquals(1, emitted.get());
  }

  @Test
  void oneFunctionForEachNumber() throws Exception {
    X86Functions functions =
        new X86Functions(3, n -> X86Code.function("test of function " + n, this::code));
    assertEquals(0, emitted.get());
    List<Long> addresses = race(() -> functions.get(2));
    assertEquals(1, addresses.stream().distinct().count());
    assertEquals(1, emitted.get());
    assertNotEquals(addresses.getFirst(), functions.get(0).address());
    assertEquals(2, emitted.get());
  }
}
