package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Plan;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.RouteSpec;
import io.fletch.graph.Span;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.TestGraphs.Shape;
import io.fletch.quant.TensorType;
import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;

/** The executor with every kernel set against the reference, and its promises about bits. */
class CpuBackendTest {
  static Stream<Kernels> kernelSets() {
    return KernelSets.available().stream();
  }

  static Executable compile(Graph graph, int maxRows, int threads, Kernels kernels) {
    CpuBackend.Options o = CpuBackend.Options.defaults().withThreads(threads).withKernels(kernels);
    return new CpuBackend(o).compile(graph, maxRows);
  }

  /** How far integer products with quantized activations may be from float ones. */
  static double tolerance(TensorType type) {
    return type.isQuantized() ? 0.12 : 2e-5;
  }

  /** Logits of every row of a batch that was run. */
  static float[][] logits(Batch b, int vocabulary) {
    float[][] all = new float[b.logitRows()][vocabulary];
    for (int r = 0; r < all.length; r++) {
      b.logits(r, all[r]);
    }
    return all;
  }

  /** Row by row, bit for bit. */
  static void assertSame(float[][] expected, float[][] actual) {
    assertEquals(expected.length, actual.length);
    for (int r = 0; r < expected.length; r++) {
      assertArrayEquals(expected[r], actual[r], "row " + r);
    }
  }

  /** A small Llama of so many layers, of any shape where the type allows it. */
  static Graph llama(TestGraphs graphs, SplittableRandom random, TensorType type, int layers) {
    Shape shape =
        type == TensorType.F32
            ? Shape.random(random, type).layers(layers)
            : Shape.small().type(type).layers(layers);
    return graphs.llama(shape);
  }

  static void assertClose(float[][] expected, float[][] actual, double tolerance, String what) {
    assertEquals(expected.length, actual.length);
    for (int r = 0; r < expected.length; r++) {
      double norm = 0;
      double error = 0;
      for (int i = 0; i < expected[r].length; i++) {
        norm += (double) expected[r][i] * expected[r][i];
        double d = expected[r][i] - actual[r][i];
        error += d * d;
      }
      double relative = Math.sqrt(error / Math.max(norm, 1e-12));
      assertTrue(relative <= tolerance, what + " row " + r + ": relative error " + relative);
    }
  }

  /** Runs a script of batches on an executable: prefill, several sequences, spans, gates. */
  static List<float[][]> script(Executable e, KvCache.Type type, long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    int vocabulary = e.graph().vocabulary();
    int layers = e.graph().kvLayers().size();
    List<float[][]> results = new ArrayList<>();
    try (KvCache a = e.newKvCache(64, type);
        KvCache c = e.newKvCache(64, type);
        Batch b = e.newBatch(32, 32)) {
      // A prompt, then single tokens of it and of a second sequence.
      b.append(a, ids(random, 19, vocabulary), 0, 19);
      b.wantLogits(18);
      b.wantLogits(3);
      run(e, b, results, vocabulary);
      a.length(19);
      b.clear();
      b.append(a, ids(random, 1, vocabulary), 0, 1);
      b.wantLogits(0);
      run(e, b, results, vocabulary);
      a.length(20);
      b.clear();
      b.append(a, ids(random, 1, vocabulary), 0, 1);
      b.append(c, ids(random, 5, vocabulary), 0, 5);
      b.wantLogits(5);
      b.wantLogits(0);
      run(e, b, results, vocabulary);
      c.length(5);
      // Without logits: only the cache is filled.
      b.clear();
      b.append(c, ids(random, 3, vocabulary), 0, 3);
      run(e, b, results, vocabulary);
      c.length(8);
      // Diffusion: a window in place, and two drafts behind a shared prefix and before a suffix.
      b.clear();
      b.add(
          new Span(a, 6, 4, 4, 4, 10, 20, Span.Own.BIDIRECTIONAL, 0),
          ids(random, 6, vocabulary),
          0);
      for (int slot : new int[] {30, 40}) {
        b.add(
            new Span(c, 4, 3, slot, 3, 7, 8, Span.Own.BLOCK_CAUSAL, 4),
            ids(random, 4, vocabulary),
            0);
      }
      for (int r = 0; r < b.rows(); r++) {
        b.wantLogits(r);
      }
      run(e, b, results, vocabulary);
      // Gates.
      b.clear();
      b.append(a, ids(random, 9, vocabulary), 0, 9);
      for (int r = 0; r < 9; r++) {
        for (int l = 0; l < layers; l++) {
          for (Gate.Unit unit : Gate.Unit.values()) {
            b.gate(l, unit, r, random.nextInt(3) == 0 ? Gate.SKIP : Gate.RUN);
          }
        }
        b.wantLogits(r);
      }
      run(e, b, results, vocabulary);
    }
    return results;
  }

  static int[] ids(SplittableRandom random, int n, int vocabulary) {
    int[] ids = new int[n];
    for (int i = 0; i < n; i++) {
      ids[i] = random.nextInt(vocabulary);
    }
    return ids;
  }

  private static void run(Executable e, Batch b, List<float[][]> results, int vocabulary) {
    e.forward(b);
    results.add(logits(b, vocabulary));
  }

  static void compareWithReference(Graph graph, Kernels kernels, KvCache.Type kv, double bound) {
    List<float[][]> expected;
    try (Executable e = new ReferenceBackend().compile(graph, 32)) {
      expected = script(e, kv, 5);
    }
    try (Executable e = compile(graph, 32, 2, kernels)) {
      List<float[][]> actual = script(e, kv, 5);
      for (int i = 0; i < expected.size(); i++) {
        assertClose(expected.get(i), actual.get(i), bound, "batch " + i);
      }
    }
  }

  @ParameterizedTest
  @MethodSource("kernelSets")
  void randomModelsMatchTheReference(Kernels kernels) {
    SplittableRandom random = new SplittableRandom(11);
    for (int i = 0; i < 15; i++) {
      try (TestGraphs graphs = new TestGraphs(i)) {
        TensorType type =
            switch (i % 5) {
              case 0 -> TensorType.F16;
              case 1 -> TensorType.Q8_0;
              case 2 -> TensorType.Q4_0;
              case 3 -> TensorType.BF16;
              default -> TensorType.F32;
            };
        Shape shape = Shape.random(random, type);
        KvCache.Type kv = KvCache.Type.values()[i % 2];
        double bound = tolerance(type) + (kv == KvCache.Type.F32 ? 0 : 2e-3);
        try {
          compareWithReference(graphs.llama(shape), kernels, kv, bound);
        } catch (AssertionError | RuntimeException t) {
          throw new AssertionError("case " + i + " " + shape + ": " + t.getMessage(), t);
        }
      }
    }
  }

  @ParameterizedTest
  @MethodSource("kernelSets")
  void mixturesOfExpertsMatchTheReference(Kernels kernels) {
    TensorType[] types = {
      TensorType.F32, TensorType.F16, TensorType.Q8_0, TensorType.Q4_0, TensorType.BF16
    };
    for (int i = 0; i < 10; i++) {
      try (TestGraphs graphs = new TestGraphs(100 + i)) {
        TensorType type = types[i % types.length];
        RouteSpec routing = graphs.routing();
        Shape shape = Shape.random(graphs.random(), type);
        try {
          compareWithReference(
              graphs.mixture(shape, routing), kernels, KvCache.Type.F32, tolerance(type));
        } catch (AssertionError | RuntimeException t) {
          throw new AssertionError(
              "case " + i + " " + routing + " " + shape + ": " + t.getMessage(), t);
        }
      }
    }
  }

  @Test
  void expertsThatNobodyChoseCostNothing() {
    try (TestGraphs graphs = new TestGraphs(5)) {
      RouteSpec routing = RouteSpec.softmax(8, 2, true);
      Shape shape = Shape.small();
      Graph graph = graphs.mixture(shape, routing);
      long expert = (long) shape.ffn() * shape.hidden() * Float.BYTES;
      try (Executable e = compile(graph, 4, 1, KernelSets.scalar())) {
        long bytes =
            e.plans().getFirst().steps().stream()
                .filter(s -> s.kernel().startsWith("experts"))
                .mapToLong(Plan.Step::weightBytes)
                .sum();
        assertEquals(shape.layers() * 3L * routing.used() * expert, bytes);
      }
    }
  }

  @ParameterizedTest
  @EnumSource(
      value = TensorType.class,
      names = {"I8", "I16", "I32", "I64", "F64"},
      mode = EnumSource.Mode.EXCLUDE)
  void everyWeightTypeMatchesTheReference(TensorType type) {
    for (Kernels kernels : List.of(KernelSets.best().kernels(), KernelSets.scalar())) {
      try (TestGraphs graphs = new TestGraphs(3)) {
        Shape shape = Shape.small().type(type).sizes(Math.max(64, type.blockSize()), 1);
        compareWithReference(graphs.llama(shape), kernels, KvCache.Type.F32, tolerance(type));
      }
    }
  }
}
