package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Gate.Unit;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Op;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.SkipPass;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.TestGraphs.Shape;
import io.fletch.quant.TensorType;
import java.util.Arrays;
import java.util.SplittableRandom;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.ShrinkingMode;

/** FFN-SkipLLM within a forward: F1 to F7 of specs autoregressive 2. */
class SkipSimilarPropertyTest {
  private static final int LAYERS = 6;
  private static final int FROM = 1;
  private static final int TO = 6;
  private static final int ROWS = 6;

  @Provide
  Arbitrary<Kernels> kernelSets() {
    return Arbitraries.of(KernelSets.available());
  }

  @Provide
  Arbitrary<TensorType> types() {
    return Arbitraries.of(TensorType.F32, TensorType.Q4_0, TensorType.Q8_0);
  }

  /** A forward's logits, scores [decision][row] and bytes [layer][row]. */
  private record Outcome(float[][] logits, float[][] scores, byte[][] bytes) {
    int skipped(int row) {
      int n = 0;
      for (byte[] layer : bytes) {
        n += layer[row] == Gate.SKIP ? 1 : 0;
      }
      return n;
    }
  }

  /** What a row asks for; forced bytes where there is no threshold. */
  private record Rule(float threshold, int run, int budget) {}

  private static Outcome run(Executable e, int[] ids, Rule[] rules, byte[][] forced) {
    int decisions = e.graph().decisions().size();
    try (KvCache kv = e.newKvCache(2 * ids.length, KvCache.Type.F16);
        Batch b = e.newBatch(ids.length, ids.length)) {
      b.append(kv, ids, 0, ids.length);
      for (int r = 0; r < ids.length; r++) {
        b.wantLogits(r);
        if (rules[r] != null) {
          b.skipSimilar(r, rules[r].threshold(), rules[r].run(), rules[r].budget());
        }
        for (int l = 0; forced != null && l < LAYERS; l++) {
          b.gate(l, Unit.FFN, r, forced[l][r]);
        }
      }
      e.forward(b);
      kv.length(ids.length);
      float[][] scores = new float[decisions][ids.length];
      byte[][] bytes = new byte[LAYERS][ids.length];
      for (int r = 0; r < ids.length; r++) {
        for (int d = 0; d < decisions; d++) {
          scores[d][r] = b.score(d, r);
        }
        for (int l = 0; l < LAYERS; l++) {
          bytes[l][r] = b.decided(l, Unit.FFN, r);
        }
      }
      float[][] logits = CpuBackendTest.logits(b, e.graph().vocabulary());
      // A second forward over the cache that the first one left (F3).
      b.clear();
      b.append(kv, ids, 0, 1);
      b.wantLogits(0);
      e.forward(b);
      float[][] all = Arrays.copyOf(logits, logits.length + 1);
      all[logits.length] = CpuBackendTest.logits(b, e.graph().vocabulary())[0];
      return new Outcome(all, scores, bytes);
    }
  }

  private static Rule[] same(Rule rule) {
    Rule[] all = new Rule[ROWS];
    Arrays.fill(all, rule);
    return all;
  }

  @Property(tries = 12, shrinking = ShrinkingMode.OFF)
  void decidingIsForcingTheSameGatesBitForBit(
      @ForAll long seed, @ForAll("kernelSets") Kernels kernels, @ForAll("types") TensorType type) {
    SplittableRandom random = new SplittableRandom(seed);
    try (TestGraphs graphs = new TestGraphs(seed)) {
      Graph plain = CpuBackendTest.llama(graphs, random, type, LAYERS);
      Graph deciding = SkipPass.apply(plain, FROM, TO);
      int[] ids = graphs.tokens(ROWS, plain.vocabulary());
      try (Executable dense = CpuBackendTest.compile(plain, ROWS, 2, kernels);
          Executable e = CpuBackendTest.compile(deciding, ROWS, 2, kernels)) {
        Outcome expected = run(dense, ids, new Rule[ROWS], null);
        // F1: who asks for nothing, and who never reaches the threshold, is dense.
        CpuBackendTest.assertSame(expected.logits(), run(e, ids, new Rule[ROWS], null).logits());
        Rule never = new Rule(Float.POSITIVE_INFINITY, LAYERS, LAYERS);
        Outcome logged = run(e, ids, same(never), null);
        CpuBackendTest.assertSame(expected.logits(), logged.logits());
        float[] seen = new float[logged.scores().length * ROWS];
        for (int d = 0; d < logged.scores().length; d++) {
          for (int r = 0; r < ROWS; r++) {
            seen[d * ROWS + r] = logged.scores()[d][r];
            assertTrue(Math.abs(logged.scores()[d][r]) <= 1.000001, "a cosine");
          }
        }
        Arrays.sort(seen);
        Rule[] rules = new Rule[ROWS];
        for (int r = 0; r < ROWS; r++) {
          float threshold = seen[random.nextInt(seen.length)];
          rules[r] = new Rule(threshold, random.nextInt(LAYERS), random.nextInt(LAYERS));
        }
        Outcome decided = run(e, ids, rules, null);
        CpuBackendTest.assertSame(
            run(dense, ids, new Rule[ROWS], decided.bytes()).logits(), decided.logits());
        for (int r = 0; r < ROWS; r++) {
          assertTrue(decided.skipped(r) <= rules[r].budget(), "F5");
          assertRule(decided, rules[r], r);
        }
      }
    }
  }

  /** The control flow of the specification, replayed on the scores that were seen. */
  private static void assertRule(Outcome o, Rule rule, int row) {
    int left = 0;
    int budget = rule.budget();
    for (int l = 0; l < LAYERS; l++) {
      if (l < FROM || l >= TO) {
        assertEquals(Gate.RUN, o.bytes()[l][row], "F4");
        continue;
      }
      if (left > 0) {
        left--;
        assertEquals(Gate.SKIP, o.bytes()[l][row], "layer " + l);
        assertTrue(Float.isNaN(o.scores()[l - FROM][row]));
        continue;
      }
      assertEquals(Gate.RUN, o.bytes()[l][row], "layer " + l);
      if (l + 1 < TO && o.scores()[l - FROM][row] >= rule.threshold()) {
        left = Math.min(Math.min(rule.run(), budget), TO - l - 1);
        budget -= left;
      }
    }
  }

  @Property(tries = 12, shrinking = ShrinkingMode.OFF)
  void skippingToTheEndIsMonotone(
      @ForAll long seed, @ForAll("kernelSets") Kernels kernels, @ForAll("types") TensorType type) {
    SplittableRandom random = new SplittableRandom(seed);
    try (TestGraphs graphs = new TestGraphs(seed)) {
      Graph graph = SkipPass.apply(CpuBackendTest.llama(graphs, random, type, LAYERS), FROM, TO);
      // One row: later ones see what earlier ones stored, which depends on their skipping.
      int[] ids = graphs.tokens(1, graph.vocabulary());
      try (Executable e = CpuBackendTest.compile(graph, ROWS, 1, kernels)) {
        Rule all = new Rule(Float.POSITIVE_INFINITY, LAYERS, LAYERS);
        Outcome logged = run(e, ids, new Rule[] {all}, null);
        float[] thresholds = new float[logged.scores().length];
        for (int d = 0; d < thresholds.length; d++) {
          thresholds[d] = logged.scores()[d][0];
        }
        Arrays.sort(thresholds);
        int before = Integer.MAX_VALUE;
        for (float t : thresholds) {
          int n = run(e, ids, new Rule[] {new Rule(t, LAYERS, LAYERS)}, null).skipped(0);
          assertTrue(n <= before, "F2: threshold");
          before = n;
        }
        before = 0;
        for (int budget = 0; budget <= LAYERS; budget++) {
          Rule rule = new Rule(thresholds[0], LAYERS, budget);
          int n = run(e, ids, new Rule[] {rule}, null).skipped(0);
          assertTrue(n >= before, "F2: budget");
          before = n;
        }
        assertEquals(TO - FROM - 1, before);
      }
    }
  }

  @Property(tries = 12, shrinking = ShrinkingMode.OFF)
  void aRowDecidesAsIfItWereAlone(
      @ForAll long seed, @ForAll("kernelSets") Kernels kernels, @ForAll("types") TensorType type) {
    SplittableRandom random = new SplittableRandom(seed);
    try (TestGraphs graphs = new TestGraphs(seed)) {
      Graph graph = SkipPass.apply(CpuBackendTest.llama(graphs, random, type, LAYERS), FROM, TO);
      int n = 4;
      int[] ids = graphs.tokens(n, graph.vocabulary());
      try (Executable e = CpuBackendTest.compile(graph, ROWS, 3, kernels);
          Batch b = e.newBatch(n, n)) {
        KvCache[] caches = new KvCache[n];
        for (int r = 0; r < n; r++) {
          caches[r] = e.newKvCache(4, KvCache.Type.F16);
          b.append(caches[r], ids, r, 1);
          b.wantLogits(r);
          b.skipSimilar(r, 0.5f + 0.1f * r, 1 + r, r + 1);
        }
        e.forward(b);
        float[][] together = CpuBackendTest.logits(b, graph.vocabulary());
        for (int r = 0; r < n; r++) {
          Rule rule = new Rule(0.5f + 0.1f * r, 1 + r, r + 1);
          Outcome alone = run(e, new int[] {ids[r]}, new Rule[] {rule}, null);
          assertArrayEquals(alone.logits()[0], together[r], "F7, row " + r);
          for (int l = 0; l < LAYERS; l++) {
            assertEquals(alone.bytes()[l][0], b.decided(l, Unit.FFN, r));
          }
          caches[r].close();
        }
      }
    }
  }

  @Property(tries = 6, shrinking = ShrinkingMode.OFF)
  void theReferenceSeesTheSameScores(@ForAll long seed, @ForAll("kernelSets") Kernels kernels) {
    SplittableRandom random = new SplittableRandom(seed);
    try (TestGraphs graphs = new TestGraphs(seed)) {
      Graph graph =
          SkipPass.apply(CpuBackendTest.llama(graphs, random, TensorType.F32, LAYERS), FROM, TO);
      int[] ids = graphs.tokens(ROWS, graph.vocabulary());
      Rule never = new Rule(Float.POSITIVE_INFINITY, LAYERS, LAYERS);
      Rule always = new Rule(-1.1f, 2, LAYERS);
      try (Executable reference = new ReferenceBackend().compile(graph, ROWS);
          Executable e = CpuBackendTest.compile(graph, ROWS, 2, kernels)) {
        float[][] expected = run(reference, ids, same(never), null).scores();
        float[][] actual = run(e, ids, same(never), null).scores();
        for (int d = 0; d < expected.length; d++) {
          assertArrayEquals(expected[d], actual[d], 1e-4f, "decision " + d);
        }
        // Re-checked after two that rest: one runs, two rest, one runs, one rests.
        byte[][] bytes = run(reference, ids, same(always), null).bytes();
        for (int l = 0; l < LAYERS; l++) {
          byte wanted = l == 2 || l == 3 || l == 5 ? Gate.SKIP : Gate.RUN;
          assertEquals(wanted, bytes[l][0], "layer " + l);
        }
        assertArrayEquals(bytes, run(e, ids, same(always), null).bytes());
      }
    }
  }

  @Property(tries = 1, shrinking = ShrinkingMode.OFF)
  void mistakesAreRefused(@ForAll("kernelSets") Kernels kernels) {
    try (TestGraphs graphs = new TestGraphs(1)) {
      Graph plain = graphs.llama(Shape.small());
      assertThrows(IllegalArgumentException.class, () -> SkipPass.apply(plain, 0, 3));
      assertThrows(IllegalArgumentException.class, () -> SkipPass.apply(plain, 1, 2));
      Graph graph = SkipPass.apply(plain, 0, 2);
      assertEquals(2, graph.decisions().size());
      assertTrue(graph.decisions().getFirst() instanceof Op.SkipSimilar);
      try (Executable e = CpuBackendTest.compile(graph, 4, 1, kernels);
          Executable dense = CpuBackendTest.compile(plain, 4, 1, kernels);
          KvCache kv = e.newKvCache(4, KvCache.Type.F16);
          KvCache other = dense.newKvCache(4, KvCache.Type.F16);
          Batch b = e.newBatch(4, 4);
          Batch c = dense.newBatch(4, 4)) {
        b.append(kv, new int[] {1}, 0, 1);
        c.append(other, new int[] {1}, 0, 1);
        assertThrows(IllegalArgumentException.class, () -> b.skipSimilar(0, Float.NaN, 1, 1));
        assertThrows(IllegalArgumentException.class, () -> b.skipSimilar(0, 0.9f, -1, 1));
        assertThrows(IllegalArgumentException.class, () -> b.skipSimilar(0, 0.9f, 1, -1));
        assertThrows(IndexOutOfBoundsException.class, () -> b.skipSimilar(1, 0.9f, 1, 1));
        assertThrows(IllegalArgumentException.class, () -> c.skipSimilar(0, 0.9f, 1, 1));
        assertThrows(IllegalArgumentException.class, () -> b.routeUnits(0, 0, Gate.SKIP));
        assertThrows(IllegalStateException.class, () -> b.score(0, 0));
        assertThrows(IllegalStateException.class, () -> b.decided(0, Unit.FFN, 0));
      }
    }
  }
}
