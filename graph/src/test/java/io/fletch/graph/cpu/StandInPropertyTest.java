package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.Activation;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Gate.Unit;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.StandIn;
import io.fletch.graph.StandIn.Layer;
import io.fletch.graph.StandInPass;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.TestGraphs.Shape;
import io.fletch.graph.Value;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.SplittableRandom;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.ShrinkingMode;

/** Stand-ins of units within a forward: the invariants of specs autoregressive 3. */
class StandInPropertyTest {
  private static final int LAYERS = 3;
  private static final int ROWS = 9;

  @Provide
  Arbitrary<Kernels> kernelSets() {
    return Arbitraries.of(KernelSets.available());
  }

  @Provide
  Arbitrary<TensorType> types() {
    return Arbitraries.of(TensorType.F32, TensorType.Q4_0);
  }

  private static Layer layer(TestGraphs graphs, String name, int out, int in, float scale) {
    Tensor w = graphs.encode(name, TensorType.F32, scaled(graphs, out * in, scale), out, in);
    Tensor b = graphs.encode(name + ".b", TensorType.F32, scaled(graphs, out, scale), out);
    return new Layer(LinearOp.dense(w), b);
  }

  private static float[] scaled(TestGraphs graphs, int n, float scale) {
    return scale == 0 ? new float[n] : graphs.floats(n, scale);
  }

  private static List<StandIn> standIns(
      TestGraphs graphs, Graph plain, SplittableRandom random, float size) {
    List<StandIn> all = new ArrayList<>();
    for (Gate unit : StandInPass.units(plain)) {
      String name = unit.layer() + "." + unit.unit();
      int d = StandInPass.input(plain, unit).width();
      boolean deep = random.nextBoolean();
      int width = deep ? 32 : d;
      all.add(
          new StandIn(
              unit,
              deep ? Optional.of(layer(graphs, name + ".v1", width, d, 0.2f)) : Optional.empty(),
              layer(graphs, name + ".v2", 2, width, 0.2f),
              layer(graphs, name + ".w1", 32, d, size),
              random.nextBoolean() ? Optional.of(Activation.SILU) : Optional.empty(),
              layer(graphs, name + ".w2", d, 32, size)));
    }
    return all;
  }

  private record Outcome(float[][] logits, float[][] scores, byte[][] bytes) {
    int routed() {
      int n = 0;
      for (byte[] unit : bytes) {
        for (byte b : unit) {
          n += b == Gate.RUN ? 0 : 1;
        }
      }
      return n;
    }
  }

  /** Forwards of {@code chunk} rows; rows with a threshold decide, others get forced bytes. */
  private static Outcome run(
      Executable e, int[] ids, int chunk, float[] threshold, byte otherwise, byte[][] forced) {
    int decisions = e.graph().decisions().size();
    float[][] logits = new float[ids.length][e.graph().vocabulary()];
    float[][] scores = new float[decisions][ids.length];
    byte[][] bytes = new byte[2 * LAYERS][ids.length];
    try (KvCache kv = e.newKvCache(ids.length, KvCache.Type.F16);
        Batch b = e.newBatch(chunk, chunk)) {
      for (int from = 0; from < ids.length; from += chunk) {
        int n = Math.min(chunk, ids.length - from);
        b.clear();
        b.append(kv, ids, from, n);
        for (int r = 0; r < n; r++) {
          b.wantLogits(r);
          if (threshold != null) {
            b.routeUnits(r, threshold[from + r], otherwise);
          }
          for (int u = 0; forced != null && u < bytes.length; u++) {
            b.gate(u / 2, Unit.values()[u % 2], r, forced[u][from + r]);
          }
        }
        e.forward(b);
        kv.length(from + n);
        for (int r = 0; r < n; r++) {
          b.logits(r, logits[from + r]);
          for (int d = 0; d < decisions; d++) {
            scores[d][from + r] = b.score(d, r);
          }
          for (int u = 0; u < bytes.length; u++) {
            bytes[u][from + r] = b.decided(u / 2, Unit.values()[u % 2], r);
          }
        }
      }
    }
    return new Outcome(logits, scores, bytes);
  }

  private static float[] all(float threshold) {
    float[] t = new float[ROWS];
    Arrays.fill(t, threshold);
    return t;
  }

  @Property(tries = 12, shrinking = ShrinkingMode.OFF)
  void decidingIsForcingTheSameGatesInAnyPieces(
      @ForAll long seed, @ForAll("kernelSets") Kernels kernels, @ForAll("types") TensorType type) {
    SplittableRandom random = new SplittableRandom(seed);
    try (TestGraphs graphs = new TestGraphs(seed)) {
      Graph plain = CpuBackendTest.llama(graphs, random, type, LAYERS);
      Graph routed = StandInPass.apply(plain, standIns(graphs, plain, random, 0.1f));
      int[] ids = graphs.tokens(ROWS, plain.vocabulary());
      try (Executable dense = CpuBackendTest.compile(plain, ROWS, 2, kernels);
          Executable e = CpuBackendTest.compile(routed, ROWS, 2, kernels)) {
        // L1, and rows for which nobody asked.
        float[][] expected = run(dense, ids, ROWS, null, Gate.SKIP, null).logits();
        CpuBackendTest.assertSame(
            expected, run(e, ids, ROWS, null, Gate.SUBSTITUTE, null).logits());
        float[] never = all(Float.NEGATIVE_INFINITY);
        Outcome logged = run(e, ids, ROWS, never, Gate.SUBSTITUTE, null);
        CpuBackendTest.assertSame(expected, logged.logits());
        assertEquals(0, logged.routed());
        byte otherwise = random.nextBoolean() ? Gate.SKIP : Gate.SUBSTITUTE;
        float[] threshold = new float[ROWS];
        for (int r = 0; r < ROWS; r++) {
          threshold[r] = logged.scores()[random.nextInt(2 * LAYERS)][r] + 1e-3f;
        }
        Outcome decided = run(e, ids, ROWS, threshold, otherwise, null);
        assertTrue(decided.routed() > 0);
        Outcome forced = run(e, ids, ROWS, null, otherwise, decided.bytes());
        CpuBackendTest.assertSame(forced.logits(), decided.logits());
        for (int chunk : new int[] {1, 4}) {
          Outcome pieces = run(e, ids, chunk, threshold, otherwise, null);
          CpuBackendTest.assertSame(decided.logits(), pieces.logits());
          assertArrayEquals(decided.bytes(), pieces.bytes());
        }
        // L2: everything is approximated, and the cache is full length all the same.
        Outcome every = run(e, ids, 4, all(Float.POSITIVE_INFINITY), otherwise, null);
        assertEquals(2 * LAYERS * ROWS, every.routed());
      }
    }
  }

  @Property(tries = 8, shrinking = ShrinkingMode.OFF)
  void compactedRowsEqualMaskedOnes(@ForAll long seed, @ForAll("kernelSets") Kernels kernels) {
    SplittableRandom random = new SplittableRandom(seed);
    try (TestGraphs graphs = new TestGraphs(seed)) {
      Graph plain = CpuBackendTest.llama(graphs, random, TensorType.F32, LAYERS);
      Graph routed = StandInPass.apply(plain, standIns(graphs, plain, random, 0.1f));
      int[] ids = graphs.tokens(ROWS, plain.vocabulary());
      byte[][] forced = new byte[2 * LAYERS][ROWS];
      for (byte[] unit : forced) {
        for (int r = 0; r < ROWS; r++) {
          unit[r] = (byte) random.nextInt(3);
        }
      }
      try (Executable reference = new ReferenceBackend().compile(routed, ROWS);
          Executable e = CpuBackendTest.compile(routed, ROWS, 3, kernels)) {
        // L8 and L6: the reference computes all rows and drops, the others leave rows out.
        float[][] expected = run(reference, ids, ROWS, null, Gate.SKIP, forced).logits();
        float[][] actual = run(e, ids, ROWS, null, Gate.SKIP, forced).logits();
        for (int r = 0; r < ROWS; r++) {
          float largest = 0;
          for (float v : expected[r]) {
            largest = Math.max(largest, Math.abs(v));
          }
          assertArrayEquals(expected[r], actual[r], 2e-3f * largest, "row " + r);
        }
        float[] never = all(Float.NEGATIVE_INFINITY);
        float[][] scores = run(reference, ids, ROWS, never, Gate.SKIP, null).scores();
        float[][] same = run(e, ids, ROWS, never, Gate.SKIP, null).scores();
        for (int d = 0; d < scores.length; d++) {
          assertArrayEquals(scores[d], same[d], 1e-3f, "decision " + d);
        }
      }
    }
  }

  @Property(tries = 8, shrinking = ShrinkingMode.OFF)
  void nothingForForecastIsSkipping(
      @ForAll long seed, @ForAll("kernelSets") Kernels kernels, @ForAll("types") TensorType type) {
    SplittableRandom random = new SplittableRandom(seed);
    try (TestGraphs graphs = new TestGraphs(seed)) {
      Graph plain = CpuBackendTest.llama(graphs, random, type, LAYERS);
      Graph routed = StandInPass.apply(plain, standIns(graphs, plain, random, 0));
      int[] ids = graphs.tokens(ROWS, plain.vocabulary());
      try (Executable e = CpuBackendTest.compile(routed, ROWS, 1, kernels)) {
        float[] threshold = all(0.01f);
        Outcome skipped = run(e, ids, ROWS, threshold, Gate.SKIP, null);
        Outcome substituted = run(e, ids, ROWS, threshold, Gate.SUBSTITUTE, null);
        assertEquals(skipped.routed(), substituted.routed());
        for (int r = 0; r < ROWS; r++) {
          // L5: equal as numbers; a zero may have another sign.
          for (int i = 0; i < skipped.logits()[r].length; i++) {
            assertTrue(skipped.logits()[r][i] == substituted.logits()[r][i], "row " + r);
          }
        }
      }
    }
  }

  @Property(tries = 8, shrinking = ShrinkingMode.OFF)
  void aPerfectForecastCostsNothing(@ForAll long seed, @ForAll("kernelSets") Kernels kernels) {
    SplittableRandom random = new SplittableRandom(seed);
    try (TestGraphs graphs = new TestGraphs(seed)) {
      int d = 64;
      int rank = 32;
      Layer down = layer(graphs, "down", rank, d, 0.2f);
      Layer up = layer(graphs, "up", d, rank, 0.2f);
      Graph.Builder g = Graph.builder("linear unit");
      Value x = g.embedding("e", graphs.matrix("table", TensorType.F32, 50, d), 1);
      Gate unit = new Gate(0, Unit.FFN);
      Value h = g.rmsNorm("n", x, graphs.norm("norm", d), 1e-5f, 1, 1);
      Value inner = g.linear("a", h, down.weight(), Optional.of(down.bias()), Optional.of(unit));
      Value out = g.linear("b", inner, up.weight(), Optional.of(up.bias()), Optional.of(unit));
      Value sum = g.add("s", x, out, 1, Optional.of(unit));
      Value logits =
          g.linear(
              "l",
              g.selectRows("r", sum),
              LinearOp.dense(graphs.matrix("head", TensorType.F32, 50, d)),
              Optional.empty(),
              Optional.empty());
      Graph plain = g.build(logits);
      StandIn same =
          new StandIn(
              unit,
              Optional.empty(),
              layer(graphs, "router", 2, d, 0.2f),
              down,
              Optional.empty(),
              up);
      Graph routed = StandInPass.apply(plain, List.of(same));
      int[] ids = graphs.tokens(ROWS, 50);
      try (Executable dense = CpuBackendTest.compile(plain, ROWS, 1, kernels);
          Executable e = CpuBackendTest.compile(routed, ROWS, 1, kernels);
          Batch b = dense.newBatch(ROWS, ROWS);
          Batch c = e.newBatch(ROWS, ROWS);
          KvCache kv = dense.newKvCache(ROWS, KvCache.Type.F16);
          KvCache other = e.newKvCache(ROWS, KvCache.Type.F16)) {
        b.append(kv, ids, 0, ROWS);
        c.append(other, ids, 0, ROWS);
        for (int r = 0; r < ROWS; r++) {
          b.wantLogits(r);
          c.wantLogits(r);
          c.routeUnits(r, 4 * random.nextFloat() - 2, Gate.SUBSTITUTE);
        }
        dense.forward(b);
        e.forward(c);
        float[][] expected = CpuBackendTest.logits(b, 50);
        float[][] actual = CpuBackendTest.logits(c, 50);
        for (int r = 0; r < ROWS; r++) {
          assertArrayEquals(expected[r], actual[r], 1e-4f, "L4, row " + r);
        }
      }
    }
  }

  @Property(tries = 8, shrinking = ShrinkingMode.OFF)
  void routingGrowsWithTheThreshold(
      @ForAll long seed, @ForAll("kernelSets") Kernels kernels, @ForAll("types") TensorType type) {
    SplittableRandom random = new SplittableRandom(seed);
    try (TestGraphs graphs = new TestGraphs(seed)) {
      Graph plain = CpuBackendTest.llama(graphs, random, type, LAYERS);
      Graph routed = StandInPass.apply(plain, standIns(graphs, plain, random, 0.1f));
      int[] ids = graphs.tokens(ROWS, plain.vocabulary());
      try (Executable e = CpuBackendTest.compile(routed, ROWS, 2, kernels)) {
        // L3 speaks of the dense trajectory, where scores are logged without acting.
        float[] never = all(Float.NEGATIVE_INFINITY);
        float[][] scores = run(e, ids, ROWS, never, Gate.SUBSTITUTE, null).scores();
        // The first unit of a dense trajectory is that of every trajectory.
        for (int r = 0; r < ROWS; r++) {
          float at = scores[0][r];
          float[] below = all(Math.nextDown(at));
          float[] above = all(Math.nextUp(at));
          assertEquals(Gate.RUN, run(e, ids, ROWS, below, Gate.SUBSTITUTE, null).bytes()[0][r]);
          assertEquals(
              Gate.SUBSTITUTE, run(e, ids, ROWS, above, Gate.SUBSTITUTE, null).bytes()[0][r]);
        }
      }
    }
  }

  @Property(tries = 1, shrinking = ShrinkingMode.OFF)
  void mistakesAreRefused(@ForAll("kernelSets") Kernels kernels) {
    try (TestGraphs graphs = new TestGraphs(1)) {
      Graph plain = graphs.llama(Shape.small());
      SplittableRandom random = new SplittableRandom(1);
      List<StandIn> all = standIns(graphs, plain, random, 0.1f);
      assertEquals(4, all.size());
      StandIn first = all.getFirst();
      assertThrows(
          IllegalArgumentException.class, () -> StandInPass.apply(plain, List.of(first, first)));
      StandIn elsewhere =
          new StandIn(
              new Gate(7, Unit.FFN),
              first.hidden(),
              first.output(),
              first.down(),
              first.activation(),
              first.up());
      assertThrows(
          IllegalArgumentException.class, () -> StandInPass.apply(plain, List.of(elsewhere)));
      Layer wrong = layer(graphs, "wrong", 3, 64, 1);
      assertThrows(
          IllegalArgumentException.class,
          () ->
              new StandIn(
                  first.unit(),
                  Optional.empty(),
                  wrong,
                  first.down(),
                  first.activation(),
                  first.up()));
      try (Executable e = CpuBackendTest.compile(StandInPass.apply(plain, all), 4, 1, kernels);
          KvCache kv = e.newKvCache(4, KvCache.Type.F16);
          Batch b = e.newBatch(4, 4)) {
        b.append(kv, new int[] {1}, 0, 1);
        assertThrows(IllegalArgumentException.class, () -> b.routeUnits(0, 0, Gate.RUN));
        assertThrows(IllegalArgumentException.class, () -> b.routeUnits(0, Float.NaN, Gate.SKIP));
        assertThrows(IllegalArgumentException.class, () -> b.skipSimilar(0, 0.9f, 1, 1));
      }
    }
  }
}
