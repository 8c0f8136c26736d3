package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.sun.management.ThreadMXBean;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Plan;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.TestGraphs.Shape;
import io.fletch.quant.TensorType;
import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicLong;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;

/** Threads, memory and lifetimes of the CPU executor. */
@Timeout(120)
class CpuExecutableTest {
  private final TestGraphs graphs = new TestGraphs(21);

  @AfterEach
  void close() {
    graphs.close();
  }

  static java.util.stream.Stream<Kernels> kernelSets() {
    return KernelSets.available().stream();
  }

  private static int step(Executable e, Batch b, KvCache kv, int[] token) {
    b.clear();
    b.append(kv, token, 0, 1);
    b.wantLogits(0);
    e.forward(b);
    kv.length(kv.length() + 1);
    return b.argmax(0);
  }

  /** Bytes that the threads have allocated on the heap. */
  private static long allocated(ThreadMXBean threads, long[] ids) {
    long sum = 0;
    for (long bytes : threads.getThreadAllocatedBytes(ids)) {
      sum += bytes;
    }
    return sum;
  }

  /**
   * Asked of the scalar kernels, and over a long context, which three workers share, of machine
   * code where there is some: those of the Vector API allocate until the JVM has compiled each of
   * them with its best compiler, which takes longer than a test should.
   */
  @ParameterizedTest
  @CsvSource({"2,0,64", "3,2000,2100"})
  void aDecodeStepAllocatesNothingAfterWarmUp(int workerCount, int context, int capacity) {
    Kernels scalar = KernelSets.scalar();
    Kernels kernels = context == 0 ? scalar : KernelSets.machineCode().orElse(scalar);
    Graph graph = graphs.llama(Shape.small().type(TensorType.Q8_0));
    ThreadMXBean threads = (ThreadMXBean) ManagementFactory.getThreadMXBean();
    try (CpuExecutable e = (CpuExecutable) CpuBackendTest.compile(graph, 4, workerCount, kernels);
        KvCache kv = e.newKvCache(capacity, KvCache.Type.F16);
        Batch b = e.newBatch(4, 1)) {
      kv.length(context);
      Thread[] workers = e.workers();
      long[] ids = new long[workers.length + 1];
      ids[0] = Thread.currentThread().threadId();
      for (int i = 0; i < workers.length; i++) {
        ids[i + 1] = workers[i].threadId();
      }
      int[] token = {1};
      long least = Long.MAX_VALUE;
      // The compilers of the JVM decide when warm-up ends, so the measure is repeated until it is
      // clean or hopeless.
      for (int attempt = 0; attempt < 60 && least > 0; attempt++) {
        long none = allocated(threads, ids);
        long own = allocated(threads, ids) - none;
        long before = allocated(threads, ids);
        for (int i = 0; i < 200; i++) {
          if (kv.length() == capacity) {
            kv.length(context);
          }
          token[0] = step(e, b, kv, token);
        }
        least = Math.min(least, allocated(threads, ids) - before - own);
      }
      assertTrue(least <= 0, least + " bytes for 200 steps");
    }
  }

  @Test
  void aLargeCacheCostsNothingUntilItIsFilled() throws Exception {
    org.junit.jupiter.api.Assumptions.assumeTrue(
        java.nio.file.Files.exists(java.nio.file.Path.of("/proc/self/statm")),
        "no /proc: resident memory is unknown");
    Graph graph = graphs.llama(Shape.small());
    try (Executable e = CpuBackendTest.compile(graph, 4, 1, KernelSets.scalar());
        Batch b = e.newBatch(4, 1)) {
      long before = resident();
      // 2 layers, 2 heads, 32 keys and 32 values of 4 bytes: 1 KiB per slot, 4 GiB.
      try (KvCache kv = e.newKvCache(4 << 20, KvCache.Type.F32)) {
        assertTrue(kv.bytes() >= 4L << 30);
        for (int i = 0; i < 20; i++) {
          step(e, b, kv, new int[] {i});
        }
        long cost = resident() - before;
        assertTrue(cost < 128 << 20, "resident memory grew by " + cost);
      }
    }
  }

  private static long resident() throws Exception {
    String[] fields =
        java.nio.file.Files.readString(java.nio.file.Path.of("/proc/self/statm")).split(" ");
    return Long.parseLong(fields[1]) * 4096;
  }

  @ParameterizedTest
  @MethodSource("kernelSets")
  void copiedSlotsAreTheSlots(Kernels kernels) {
    Graph graph = graphs.llama(Shape.small());
    int[] ids = graphs.tokens(9, graph.vocabulary());
    try (Executable e = CpuBackendTest.compile(graph, 16, 1, kernels);
        Batch b = e.newBatch(16, 1)) {
      for (KvCache.Type type : KvCache.Type.values()) {
        try (KvCache from = e.newKvCache(24, type);
            KvCache to = e.newKvCache(16, type);
            KvCache other =
                e.newKvCache(16, type == KvCache.Type.F32 ? KvCache.Type.F16 : KvCache.Type.F32)) {
          b.clear();
          b.append(from, ids, 0, 8);
          e.forward(b);
          from.length(8);
          // Twice around: into the back of the same cache, then to the front of the other.
          from.copy(from, 0, 16, 8);
          to.copy(from, 16, 0, 3);
          to.copy(from, 19, 3, 5);
          to.length(8);
          float[] expected = last(e, b, from, ids);
          assertArrayEquals(expected, last(e, b, to, ids), type.name());
          assertEquals(8, from.length());
          assertThrows(IllegalArgumentException.class, () -> from.copy(from, 0, 7, 8));
          assertThrows(IllegalArgumentException.class, () -> to.copy(other, 0, 0, 1));
          assertThrows(IndexOutOfBoundsException.class, () -> to.copy(from, 0, 9, 8));
          assertThrows(IndexOutOfBoundsException.class, () -> to.copy(from, 20, 0, 5));
        }
      }
    }
  }

  private static float[] last(Executable e, Batch b, KvCache kv, int[] ids) {
    b.clear();
    b.append(kv, ids, 8, 1);
    b.wantLogits(0);
    e.forward(b);
    float[] logits = new float[e.graph().vocabulary()];
    b.logits(0, logits);
    return logits;
  }

  @Test
  void manyThreadsMayCallForward() throws Exception {
    Graph graph = graphs.llama(Shape.small());
    int callers = 6;
    int steps = 20;
    try (Executable e = CpuBackendTest.compile(graph, 4, 2, KernelSets.scalar());
        ExecutorService pool = Executors.newFixedThreadPool(callers)) {
      List<List<Integer>> alone = new ArrayList<>();
      for (int c = 0; c < callers; c++) {
        alone.add(generate(e, c, steps));
      }
      CountDownLatch start = new CountDownLatch(1);
      List<Future<List<Integer>>> together = new ArrayList<>();
      for (int c = 0; c < callers; c++) {
        int id = c;
        together.add(
            pool.submit(() -> {
              start.await();
              return generate(e, id, steps);
            }));
      }
      start.countDown();
      for (int c = 0; c < callers; c++) {
        assertEquals(alone.get(c), together.get(c).get());
      }
    }
  }

  private static List<Integer> generate(Executable e, int first, int steps) {
    List<Integer> ids = new ArrayList<>();
    try (KvCache kv = e.newKvCache(steps, KvCache.Type.F32);
        Batch b = e.newBatch(1, 1)) {
      int[] token = {first};
      for (int i = 0; i < steps; i++) {
        token[0] = step(e, b, kv, token);
        ids.add(token[0]);
      }
    }
    return ids;
  }

  @Test
  void virtualThreadsMayCallForward() throws Exception {
    Graph graph = graphs.llama(Shape.small());
    try (Executable e = CpuBackendTest.compile(graph, 4, 2, KernelSets.scalar());
        ExecutorService pool = Executors.newVirtualThreadPerTaskExecutor()) {
      List<Integer> expected = generate(e, 1, 5);
      assertEquals(expected, pool.submit(() -> generate(e, 1, 5)).get());
    }
  }

  @Test
  void truncateAndReplayEqualsFresh() {
    Graph graph = graphs.llama(Shape.small());
    int[] ids = graphs.tokens(12, graph.vocabulary());
    int[] noise = graphs.tokens(9, graph.vocabulary());
    try (Executable e = CpuBackendTest.compile(graph, 16, 2, KernelSets.scalar());
        Batch b = e.newBatch(16, 1)) {
      for (KvCache.Type type : KvCache.Type.values()) {
        try (KvCache fresh = e.newKvCache(32, type);
            KvCache used = e.newKvCache(32, type)) {
          float[] expected = last(e, b, fresh, ids, 0, 12);
          last(e, b, used, ids, 0, 7);
          last(e, b, used, noise, 0, 9);
          used.length(5);
          float[] actual = last(e, b, used, ids, 5, 7);
          assertArrayEquals(expected, actual, type + " cache");
        }
      }
    }
  }

  private static float[] last(Executable e, Batch b, KvCache kv, int[] ids, int from, int count) {
    b.clear();
    int first = b.append(kv, ids, from, count);
    int logit = b.wantLogits(first + count - 1);
    e.forward(b);
    kv.length(kv.length() + count);
    float[] y = new float[e.graph().vocabulary()];
    b.logits(logit, y);
    return y;
  }

  @ParameterizedTest
  @MethodSource("kernelSets")
  void mappedAndPackedWeightsAgree(Kernels kernels) {
    Graph graph = graphs.llama(Shape.small().type(TensorType.Q8_0));
    int[] ids = graphs.tokens(6, graph.vocabulary());
    float[][] results = new float[2][];
    for (CpuBackend.Layout layout : List.of(CpuBackend.Layout.MAPPED, CpuBackend.Layout.PACKED)) {
      List<Long> heard = new ArrayList<>();
      AtomicLong end = new AtomicLong();
      CpuBackend.Options o =
          CpuBackend.Options.defaults()
              .withThreads(2)
              .withKernels(kernels)
              .withLayout(layout)
              .withProgress((done, total) -> {
                assertTrue(done <= total);
                assertTrue(heard.isEmpty() || heard.getLast() < done, "progress never repeats");
                heard.add(done);
                end.set(total);
              });
      try (Executable e = new CpuBackend(o).compile(graph, 8);
          KvCache kv = e.newKvCache(8, KvCache.Type.F32);
          Batch b = e.newBatch(8, 1)) {
        results[layout.ordinal() - 1] = last(e, b, kv, ids, 0, 6);
        assertEquals(end.get(), heard.getLast(), "progress ends with all bytes");
        if (layout == CpuBackend.Layout.PACKED && kernels.matmul(TensorType.Q8_0, 64).packs()) {
          assertEquals(2 * 7 + 1, heard.size(), "every packed matrix is reported");
        }
        assertTrue(e.description().contains(kernels.name()), e.description());
      }
    }
    // Sets promise the bits of the scalar set for integer products, whatever the layout.
    CpuBackendTest.assertClose(
        new float[][] {results[0]}, new float[][] {results[1]}, 1e-4, kernels.name());
  }

  @Test
  void plansAreBucketsAndSayWhatTheyRead() {
    Graph graph = graphs.llama(Shape.small().type(TensorType.Q8_0));
    try (Executable e = CpuBackendTest.compile(graph, 64, 1, KernelSets.scalar())) {
      List<Plan> plans = e.plans();
      assertEquals(List.of(1, 16, 64), plans.stream().map(Plan::maxRows).toList());
      long matrices =
          graph.ops().stream()
              .filter(op -> op instanceof io.fletch.graph.Op.Linear)
              .mapToLong(op -> ((io.fletch.graph.Op.Linear) op).weight().bytes())
              .sum();
      long row = 64 / 32 * 34;
      for (Plan plan : plans) {
        assertEquals(matrices + row, plan.weightBytes());
        assertEquals(graph.ops().size(), plan.steps().stream().mapToInt(Plan.Step::ops).sum());
        for (Plan.Step step : plan.steps()) {
          step.inputs().forEach(at -> assertTrue(at < plan.scratchBytes()));
          step.outputs().forEach(at -> assertTrue(at < plan.scratchBytes()));
        }
        // Two layers of: norm, qkv, rope and store, attention, convert, output, norm, gate and up,
        // convert, down; then selection, norm and head.
        assertTrue(plan.steps().size() <= 2 * 10 + 3, plan.toString());
        assertTrue(plan.toString().contains("blk.0.attn_q"), plan.toString());
      }
      assertTrue(plans.get(0).scratchBytes() < plans.get(2).scratchBytes());
    }
  }

  @Test
  void closedOrForeignThingsAreRefused() {
    Graph graph = graphs.llama(Shape.small());
    Executable e = CpuBackendTest.compile(graph, 4, 2, KernelSets.scalar());
    Executable other = CpuBackendTest.compile(graph, 4, 1, KernelSets.scalar());
    Batch b = e.newBatch(4, 1);
    KvCache kv = e.newKvCache(8, KvCache.Type.F32);
    assertThrows(IllegalArgumentException.class, () -> e.newBatch(5, 1));
    assertThrows(IllegalArgumentException.class, () -> e.newKvCache(0, KvCache.Type.F32));
    b.append(kv, new int[] {1}, 0, 1);
    assertThrows(IllegalArgumentException.class, () -> other.forward(b));
    assertThrows(
        IllegalArgumentException.class, () -> other.newBatch(4, 1).append(kv, new int[1], 0, 1));
    kv.close();
    assertThrows(IllegalStateException.class, () -> e.forward(b));
    assertThrows(IllegalStateException.class, () -> kv.length(0));
    e.close();
    e.close();
    assertThrows(IllegalStateException.class, () -> e.forward(b));
    b.close();
    assertThrows(IllegalStateException.class, b::clear);
    other.close();
  }

  @Test
  void aQuantizedCacheNeedsWholeBlocks() {
    Shape s = Shape.small();
    Shape odd =
        new Shape(
            48,
            1,
            2,
            1,
            24,
            24,
            32,
            33,
            s.type(),
            s.activation(),
            s.style(),
            12,
            false,
            false,
            false,
            false,
            true,
            0,
            0,
            0);
    try (Executable e = CpuBackendTest.compile(graphs.llama(odd), 4, 1, KernelSets.scalar())) {
      assertThrows(IllegalArgumentException.class, () -> e.newKvCache(8, KvCache.Type.Q8_0));
      e.newKvCache(8, KvCache.Type.F16).close();
    }
  }

  @Test
  void gatesThatAllSayRunChangeNothing() {
    Graph graph = graphs.llama(Shape.small());
    try (Executable e = CpuBackendTest.compile(graph, 4, 2, KernelSets.scalar());
        KvCache kv = e.newKvCache(8, KvCache.Type.F32);
        Batch b = e.newBatch(4, 4)) {
      int[] ids = {5, 6, 7};
      float[][][] results = new float[2][][];
      for (int i = 0; i < 2; i++) {
        b.clear();
        b.append(kv, ids, 0, 3);
        if (i == 1) {
          // One row is skipped and then not: the bytes were written, the rows all run.
          b.gate(1, Gate.Unit.FFN, 1, Gate.SKIP);
          for (int r = 0; r < 3; r++) {
            b.gate(0, Gate.Unit.FFN, r, Gate.RUN);
            b.gate(1, Gate.Unit.FFN, r, Gate.RUN);
          }
        }
        for (int r = 0; r < 3; r++) {
          b.wantLogits(r);
        }
        e.forward(b);
        results[i] = CpuBackendTest.logits(b, graph.vocabulary());
      }
      assertArrayEquals(results[0], results[1]);
    }
  }
}
