package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Span;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.TestGraphs.Shape;
import io.fletch.quant.TensorType;
import java.util.SplittableRandom;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.ShrinkingMode;

/**
 * A row's logits are the same bits whatever else is in the batch, in whichever pieces a prompt is
 * run, and for any number of threads. Decoding methods that are lossless rest on this.
 */
class BatchInvariancePropertyTest {
  private static final int ROWS = 24;

  @Provide
  Arbitrary<Kernels> kernelSets() {
    return Arbitraries.of(KernelSets.available());
  }

  @Provide
  Arbitrary<TensorType> types() {
    return Arbitraries.of(
        TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.Q4_0);
  }

  /** Every third graph has experts. */
  private static Graph graph(TestGraphs graphs, Shape shape) {
    return graphs.random().nextInt(3) == 0
        ? graphs.mixture(shape, graphs.routing())
        : graphs.llama(shape);
  }

  /** Logits of every row of a prompt, run in chunks of {@code chunk} rows. */
  private static float[][] chunked(Executable e, KvCache.Type type, int[] ids, int chunk) {
    float[][] all = new float[ids.length][e.graph().vocabulary()];
    try (KvCache kv = e.newKvCache(2 * ROWS, type);
        Batch b = e.newBatch(chunk, chunk)) {
      for (int from = 0; from < ids.length; from += chunk) {
        int n = Math.min(chunk, ids.length - from);
        b.clear();
        b.append(kv, ids, from, n);
        for (int r = 0; r < n; r++) {
          b.wantLogits(r);
        }
        e.forward(b);
        for (int r = 0; r < n; r++) {
          b.logits(r, all[from + r]);
        }
        kv.length(kv.length() + n);
      }
    }
    return all;
  }

  @Property(tries = 10, shrinking = ShrinkingMode.OFF)
  void piecesThreadsAndBucketsDoNotMatter(
      @ForAll long seed,
      @ForAll("kernelSets") Kernels kernels,
      @ForAll("types") TensorType type,
      @ForAll KvCache.Type kv) {
    SplittableRandom random = new SplittableRandom(seed);
    Shape shape = Shape.random(random, type);
    try (TestGraphs graphs = new TestGraphs(seed)) {
      Graph graph = graph(graphs, shape);
      int[] ids = graphs.tokens(ROWS, graph.vocabulary());
      float[][] expected;
      try (Executable e = CpuBackendTest.compile(graph, ROWS, 1, kernels)) {
        expected = chunked(e, kv, ids, ROWS);
      }
      // Often more than there are cores.
      for (int threads : new int[] {1, 3 + random.nextInt(8)}) {
        try (Executable e =
            CpuBackendTest.compile(graph, ROWS - random.nextInt(4), threads, kernels)) {
          for (int chunk : new int[] {1, 2 + random.nextInt(15)}) {
            float[][] actual = chunked(e, kv, ids, chunk);
            for (int r = 0; r < ROWS; r++) {
              assertArrayEquals(
                  expected[r],
                  actual[r],
                  "row " + r + " chunk " + chunk + " threads " + threads + " " + shape);
            }
          }
        }
      }
    }
  }

  @Property(tries = 10, shrinking = ShrinkingMode.OFF)
  void otherSequencesAndTheirGatesDoNotMatter(
      @ForAll long seed, @ForAll("kernelSets") Kernels kernels, @ForAll("types") TensorType type) {
    SplittableRandom random = new SplittableRandom(seed);
    Shape shape = Shape.random(random, type);
    try (TestGraphs graphs = new TestGraphs(seed)) {
      Graph graph = graph(graphs, shape);
      int[] ids = graphs.tokens(5, graph.vocabulary());
      int[] others = graphs.tokens(12, graph.vocabulary());
      int vocabulary = graph.vocabulary();
      try (Executable e = CpuBackendTest.compile(graph, ROWS, 2, kernels);
          KvCache alone = e.newKvCache(ROWS, KvCache.Type.F16);
          KvCache mixed = e.newKvCache(ROWS, KvCache.Type.F16);
          KvCache other = e.newKvCache(ROWS, KvCache.Type.F16);
          Batch b = e.newBatch(ROWS, ROWS)) {
        b.append(alone, ids, 0, 5);
        b.gate(0, Gate.Unit.FFN, 2, Gate.SKIP);
        for (int r = 0; r < 5; r++) {
          b.wantLogits(r);
        }
        e.forward(b);
        float[][] expected = CpuBackendTest.logits(b, vocabulary);
        b.clear();
        int before = random.nextInt(12);
        if (before > 0) {
          b.append(other, others, 0, before);
        }
        int first = b.append(mixed, ids, 0, 5);
        int rest = 12 - before;
        b.add(
            new Span(other, rest, before, before, before, 0, 0, Span.Own.BIDIRECTIONAL, 0),
            others,
            before);
        b.gate(0, Gate.Unit.FFN, first + 2, Gate.SKIP);
        for (int r = 0; r < 17; r++) {
          if (r < first || r >= first + 5) {
            b.gate(0, Gate.Unit.FFN, r, random.nextBoolean() ? Gate.SKIP : Gate.RUN);
            b.gate(0, Gate.Unit.ATTENTION, r, random.nextBoolean() ? Gate.SKIP : Gate.RUN);
          }
        }
        for (int r = 4; r >= 0; r--) {
          b.wantLogits(first + r);
        }
        e.forward(b);
        float[][] actual = CpuBackendTest.logits(b, vocabulary);
        for (int r = 0; r < 5; r++) {
          assertArrayEquals(expected[r], actual[4 - r], "row " + r + " " + shape);
        }
      }
    }
  }

  /**
   * The same keys in the same order give the same bits wherever their slots are: a draft behind a
   * shared prefix, with or without a suffix, equals the window in place.
   */
  @Property(tries = 10, shrinking = ShrinkingMode.OFF)
  void placeOfSlotsDoesNotMatter(
      @ForAll long seed, @ForAll("kernelSets") Kernels kernels, @ForAll KvCache.Type type) {
    SplittableRandom random = new SplittableRandom(seed);
    Shape shape = Shape.random(random, TensorType.F32).window(0);
    try (TestGraphs graphs = new TestGraphs(seed)) {
      Graph graph = graphs.llama(shape);
      int prefix = 1 + random.nextInt(60);
      int rows = 1 + random.nextInt(6);
      int suffix = random.nextInt(3) * 20;
      int[] ids = graphs.tokens(prefix + rows + suffix, graph.vocabulary());
      try (Executable e = CpuBackendTest.compile(graph, 128, 2, kernels);
          KvCache kv = e.newKvCache(200, type);
          Batch b = e.newBatch(128, rows)) {
        int n = prefix + rows + suffix;
        b.append(kv, ids, 0, n);
        e.forward(b);
        float[][][] results = new float[2][][];
        int[] slots = {150, prefix};
        for (int i = 0; i < 2; i++) {
          b.clear();
          b.add(
              new Span(
                  kv, rows, prefix, slots[i], prefix, prefix + rows, n, Span.Own.BIDIRECTIONAL, 0),
              ids,
              prefix);
          for (int r = 0; r < rows; r++) {
            b.wantLogits(r);
          }
          e.forward(b);
          results[i] = CpuBackendTest.logits(b, graph.vocabulary());
        }
        assertRows(results[1], results[0]);
      }
    }
  }

  private static void assertRows(float[][] expected, float[][] actual) {
    for (int r = 0; r < expected.length; r++) {
      assertArrayEquals(expected[r], actual[r], "row " + r);
    }
  }
}
