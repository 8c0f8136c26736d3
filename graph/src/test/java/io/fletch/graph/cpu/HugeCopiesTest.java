package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.quant.TensorType;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** Matrices change over to copies of the same bytes, large ones alone, and closing ends it. */
@Timeout(60)
class HugeCopiesTest {
  private static final int IN = 1024;

  private static PreparedWeight weight(MemorySegment data) {
    Kernels.Matmul kernel = KernelSets.scalar().matmul(TensorType.F32, IN);
    return new PreparedWeight(kernel, data, data.byteSize() / (4 * IN), data.byteSize());
  }

  @Test
  void copiesWhatIsLarge() throws InterruptedException {
    try (Arena arena = Arena.ofShared()) {
      byte[] random = new byte[20 << 20];
      new Random(3).nextBytes(random);
      MemorySegment large =
          arena.allocate(random.length, 64).copyFrom(MemorySegment.ofArray(random));
      MemorySegment small = arena.allocate(4 * IN, 64);
      PreparedWeight first = weight(large);
      PreparedWeight second = weight(small);
      CountDownLatch ready = new CountDownLatch(1);
      try (HugeCopies copies = new HugeCopies(List.of(first, second), ready::countDown)) {
        assertEquals(large.byteSize(), copies.bytes());
        assertFalse(copies.done());
        copies.start();
        copies.start();
        assertTrue(ready.await(50, TimeUnit.SECONDS));
        assertTrue(copies.done());
        assertNotEquals(large.address(), first.form().data().address());
        assertEquals(-1, large.mismatch(first.form().data()));
        assertEquals(0, first.form().data().address() % (2 << 20));
        assertEquals(small.address(), second.form().data().address());
      }
    }
  }

  @Test
  void closingBeforeTheStartLeavesEverythingAsItIs() {
    try (Arena arena = Arena.ofShared()) {
      MemorySegment data = arena.allocate(4 << 20, 64);
      PreparedWeight weight = weight(data);
      HugeCopies copies = new HugeCopies(List.of(weight), () -> {});
      copies.close();
      copies.start();
      assertFalse(copies.done());
      assertEquals(data.address(), weight.form().data().address());
    }
  }
}
