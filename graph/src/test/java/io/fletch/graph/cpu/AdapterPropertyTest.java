package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.AdapterScenario;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.LowRankAdapter;
import io.fletch.graph.LowRankAdapter.Term;
import io.fletch.graph.LowRankDelta;
import io.fletch.graph.Op;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.TestGraphs.Shape;
import io.fletch.graph.Value;
import io.fletch.graph.support.PreparedAdapter;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.ShrinkingMode;
import org.junit.jupiter.api.Test;

/**
 * Rows with different adapters in one batch (specs weights 4.7): each gets the bits that it would
 * get alone, and what the definition says; a scale of 0 is no adapter; two add up.
 */
class AdapterPropertyTest {
  @Provide
  Arbitrary<Kernels> kernelSets() {
    return Arbitraries.of(KernelSets.available());
  }

  @Provide
  Arbitrary<TensorType> types() {
    return Arbitraries.of(
        TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.Q4_0);
  }

  private static int[][] sequences(TestGraphs graphs, Graph graph) {
    int[][] ids = new int[5][];
    for (int s = 0; s < ids.length; s++) {
      ids[s] = graphs.tokens(1 + graphs.random().nextInt(9), graph.vocabulary());
    }
    return ids;
  }

  private static List<List<Term>> terms(LowRankAdapter a, LowRankAdapter b) {
    return List.of(
        List.of(new Term(a, 1)),
        List.of(),
        List.of(new Term(a, 0.5f), new Term(b, -1.25f)),
        List.of(new Term(a, 0), new Term(b, 0)),
        List.of(new Term(b, 2)));
  }

  @Property(tries = 30, shrinking = ShrinkingMode.OFF)
  void mixedBatchesAreEachRowAlone(
      @ForAll long seed,
      @ForAll("kernelSets") Kernels kernels,
      @ForAll("types") TensorType type,
      @ForAll boolean composed) {
    try (TestGraphs graphs = composed ? new TestGraphs(seed).composed() : new TestGraphs(seed)) {
      Graph graph = graphs.llama(Shape.random(new SplittableRandom(seed), type));
      int[][] ids = sequences(graphs, graph);
      Map<Value, LowRankDelta> da = AdapterScenario.deltas(graphs, graph);
      Map<Value, LowRankDelta> db = AdapterScenario.deltas(graphs, graph);
      float[][][] reference;
      try (Executable e = new ReferenceBackend().compile(graph, 25);
          LowRankAdapter a = e.newAdapter("a", da);
          LowRankAdapter b = e.newAdapter("b", db)) {
        reference = AdapterScenario.run(e, ids, terms(a, b), true, 5);
      }
      double bound = composed ? 2 * tolerance(type) : tolerance(type);
      float[][][] expected = null;
      for (int threads : new int[] {1, 3}) {
        try (Executable e = CpuBackendTest.compile(graph, 25, threads, kernels)) {
          List<List<Term>> none = List.of(List.of(), List.of(), List.of(), List.of(), List.of());
          float[][][] plain = AdapterScenario.run(e, ids, none, false, 5);
          try (LowRankAdapter a = e.newAdapter("a", da);
              LowRankAdapter b = e.newAdapter("b", db)) {
            float[][][] together = AdapterScenario.run(e, ids, terms(a, b), true, 5);
            float[][][] alone = AdapterScenario.run(e, ids, terms(a, b), false, 5);
            float[][][] single = AdapterScenario.run(e, ids, terms(a, b), true, 1);
            for (int s = 0; s < ids.length; s++) {
              for (int r = 0; r < ids[s].length; r++) {
                String at = "sequence " + s + " row " + r + " threads " + threads;
                assertArrayEquals(alone[s][r], together[s][r], at);
                assertArrayEquals(single[s][r], together[s][r], at);
                if (s == 1 || s == 3) {
                  assertArrayEquals(plain[s][r], together[s][r], at);
                }
                if (expected != null) {
                  assertArrayEquals(expected[s][r], together[s][r], at);
                }
                close(reference[s][r], together[s][r], bound, at);
              }
            }
            expected = together;
          }
        }
      }
    }
  }

  private static double tolerance(TensorType type) {
    // What the terms add grows what rounding of the activations does to later layers.
    return type == TensorType.F32 || type == TensorType.F16 || type == TensorType.BF16
        ? 2e-3
        : 4 * CpuBackendTest.tolerance(type);
  }

  private static void close(float[] expected, float[] actual, double bound, String what) {
    CpuBackendTest.assertClose(new float[][] {expected}, new float[][] {actual}, bound, what);
  }

  private static Graph withMatrices(Graph graph, Map<Tensor, Tensor> replaced) {
    List<Op> ops =
        graph.ops().stream()
            .map(op ->
                op instanceof Op.Linear l && l.weight() instanceof LinearOp.Dense d
                    ? new Op.Linear(
                        l.in(),
                        LinearOp.dense(replaced.getOrDefault(d.weight(), d.weight())),
                        l.bias(),
                        l.gate(),
                        l.out())
                    : op)
            .toList();
    return new Graph(
        graph.name(), ops, graph.logits(), graph.hidden(), graph.vocabulary(), graph.kvLayers());
  }

  /** A float base with the delta added to its matrices is what the adapter computes. */
  @Property(tries = 10, shrinking = ShrinkingMode.OFF)
  void isCloseToTheMergedMatrices(@ForAll long seed, @ForAll("kernelSets") Kernels kernels) {
    try (TestGraphs graphs = new TestGraphs(seed)) {
      Graph graph = graphs.llama(Shape.random(new SplittableRandom(seed), TensorType.F32));
      int[][] ids = sequences(graphs, graph);
      Map<Value, LowRankDelta> deltas = AdapterScenario.deltas(graphs, graph);
      float scale = 0.75f;
      Map<Tensor, Tensor> merged = new HashMap<>();
      PreparedAdapter.products(graph)
          .forEach((v, l) -> {
            LowRankDelta d = deltas.get(v);
            if (d != null) {
              Tensor w = l.weight().tensors().getFirst();
              merged.put(w, merge(graphs, w, d, scale));
            }
          });
      Graph explicit = withMatrices(graph, merged);
      try (Executable e = CpuBackendTest.compile(graph, 25, 2, kernels);
          Executable m = CpuBackendTest.compile(explicit, 25, 2, kernels);
          LowRankAdapter a = e.newAdapter("a", deltas)) {
        List<Term> one = List.of(new Term(a, scale));
        List<Term> halves = List.of(new Term(a, scale / 2), new Term(a, scale / 2));
        float[][][] got = AdapterScenario.run(e, ids, List.of(one, one, one, one, one), true, 5);
        float[][][] split =
            AdapterScenario.run(e, ids, List.of(halves, halves, halves, halves, halves), true, 5);
        List<Term> none = List.of();
        float[][][] wanted =
            AdapterScenario.run(m, ids, List.of(none, none, none, none, none), true, 5);
        for (int s = 0; s < ids.length; s++) {
          for (int r = 0; r < ids[s].length; r++) {
            close(wanted[s][r], got[s][r], 1e-3, "merged " + s + " " + r);
            close(got[s][r], split[s][r], 1e-3, "sum " + s + " " + r);
          }
        }
      }
    }
  }

  private static Tensor merge(TestGraphs graphs, Tensor w, LowRankDelta d, float scale) {
    float[] values = Dequantizer.toFloats(w);
    float[] a = Dequantizer.toFloats(d.a());
    float[] b = Dequantizer.toFloats(d.b());
    int in = (int) w.cols();
    int rank = d.rank();
    for (int i = 0; i < values.length; i++) {
      double sum = 0;
      int row = i / in;
      for (int k = 0; k < rank; k++) {
        sum += (double) b[i / in * rank + k] * a[k * in + i % in];
      }
      double gain = d.gain().map(g -> Dequantizer.toFloats(g)[row]).orElse(0f);
      values[i] += (float) (scale * (d.factor() * sum + gain * values[i]));
    }
    return graphs.encode(w.name() + ".merged", TensorType.F32, values, w.shape());
  }

  /** Units that rest stay at rest, whatever the row's adapters. */
  @Property(tries = 8, shrinking = ShrinkingMode.OFF)
  void gatesHoldForTheTermsToo(@ForAll long seed, @ForAll("kernelSets") Kernels kernels) {
    try (TestGraphs graphs = new TestGraphs(seed)) {
      Graph graph = graphs.llama(Shape.random(new SplittableRandom(seed), TensorType.F16));
      int[] ids = graphs.tokens(6, graph.vocabulary());
      Map<Value, LowRankDelta> deltas = AdapterScenario.deltas(graphs, graph);
      float[][] expected = gated(new ReferenceBackend().compile(graph, 6), ids, deltas, seed);
      float[][] actual = gated(CpuBackendTest.compile(graph, 6, 2, kernels), ids, deltas, seed);
      for (int r = 0; r < ids.length; r++) {
        close(expected[r], actual[r], 2e-3, "row " + r);
      }
    }
  }

  private static float[][] gated(
      Executable executable, int[] ids, Map<Value, LowRankDelta> deltas, long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    float[][] all = new float[ids.length][executable.graph().vocabulary()];
    try (Executable e = executable;
        LowRankAdapter a = e.newAdapter("a", deltas);
        KvCache kv = e.newKvCache(ids.length, KvCache.Type.F32);
        Batch b = e.newBatch(ids.length, ids.length)) {
      b.append(kv, ids, 0, ids.length);
      long layers = e.graph().kvLayers().size();
      for (int r = 0; r < ids.length; r++) {
        for (int layer = 0; layer < layers; layer++) {
          for (Gate.Unit unit : Gate.Unit.values()) {
            b.gate(layer, unit, r, random.nextBoolean() ? Gate.SKIP : Gate.RUN);
          }
        }
        if (random.nextInt(3) > 0) {
          b.adapt(r, List.of(new Term(a, 1)));
        }
        b.wantLogits(r);
      }
      e.forward(b);
      for (int r = 0; r < ids.length; r++) {
        b.logits(r, all[r]);
      }
    }
    return all;
  }

  @Test
  void refusesWhatDoesNotFit() {
    try (TestGraphs graphs = new TestGraphs(3)) {
      Graph graph = graphs.llama(Shape.small());
      Op.Linear l = PreparedAdapter.products(graph).values().iterator().next();
      int in = l.in().width();
      int out = l.out().width();
      Tensor a = graphs.matrix("a", TensorType.F32, 4, in);
      Tensor b = graphs.matrix("b", TensorType.F32, out, 4);
      Tensor narrow = graphs.matrix("narrow", TensorType.F32, 4, in / 2);
      Tensor three = graphs.matrix("three", TensorType.F32, out, 3);
      Tensor eight = graphs.matrix("eight", TensorType.Q8_0, 4, in);
      String rank =
          assertThrows(IllegalArgumentException.class, () -> new LowRankDelta(a, three, 1))
              .getMessage();
      assertTrue(rank.contains("expected=4") && rank.contains("actual=3"), rank);
      assertThrows(IllegalArgumentException.class, () -> new LowRankDelta(eight, b, 1));
      assertThrows(IllegalArgumentException.class, () -> new LowRankDelta(a, b, Float.NaN));
      try (Executable e = CpuBackendTest.compile(graph, 4, 1, KernelSets.scalar());
          Executable other = CpuBackendTest.compile(graph, 4, 1, KernelSets.scalar());
          KvCache kv = e.newKvCache(4, KvCache.Type.F32);
          Batch batch = e.newBatch(4, 1)) {
        String shape =
            assertThrows(
                    IllegalArgumentException.class,
                    () -> e.newAdapter("x", Map.of(l.out(), new LowRankDelta(narrow, b, 1))))
                .getMessage();
        assertTrue(shape.contains("[" + out + ", " + in + "]"), shape);
        assertTrue(shape.contains("[" + out + ", " + in / 2 + "]"), shape);
        Value norm =
            graph.ops().stream()
                .filter(Op.RmsNorm.class::isInstance)
                .findFirst()
                .flatMap(Op::output)
                .orElseThrow();
        assertThrows(
            IllegalArgumentException.class,
            () -> e.newAdapter("x", Map.of(norm, new LowRankDelta(a, b, 1))));
        LowRankAdapter mine = e.newAdapter("mine", Map.of(l.out(), new LowRankDelta(a, b, 1)));
        LowRankAdapter theirs =
            other.newAdapter("theirs", Map.of(l.out(), new LowRankDelta(a, b, 1)));
        batch.append(kv, new int[] {1, 2}, 0, 2);
        assertThrows(
            IllegalArgumentException.class, () -> batch.adapt(0, List.of(new Term(theirs, 1))));
        assertThrows(
            IndexOutOfBoundsException.class, () -> batch.adapt(2, List.of(new Term(mine, 1))));
        assertThrows(IllegalArgumentException.class, () -> new Term(mine, Float.NaN));
        batch.adapt(0, List.of(new Term(mine, 1)));
        e.forward(batch);
        mine.close();
        mine.close();
        assertThrows(IllegalStateException.class, () -> e.forward(batch));
        assertThrows(IllegalStateException.class, () -> batch.adapt(0, List.of(new Term(mine, 1))));
        batch.clear();
        batch.append(kv, new int[] {1, 2}, 0, 2);
        e.forward(batch);
        assertTrue(theirs.bytes() >= a.bytes() + b.bytes(), "" + theirs.bytes());
        theirs.close();
      }
    }
  }
}
