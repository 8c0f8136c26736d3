package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.device.CudaDevices;
import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Backend;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Gate.Unit;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.SkipPass;
import io.fletch.graph.SplitBackend;
import io.fletch.graph.StandIn;
import io.fletch.graph.StandInPass;
import io.fletch.graph.Value;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.SplittableRandom;
import java.util.function.BiConsumer;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * What a device decides about units, on the software GPU alone: the invariants F1 to F7 and L1 to
 * L5 of specs autoregressive 2 and 3. {@code CudaOpsTest} compares the decisions with the reference
 * (L6, L8), {@code CudaRoutingTest} has those of token routing.
 */
class CudaDecisionsTest {
  private static final int VOCABULARY = 61;
  private static final int LAYERS = 4;
  private static final int WIDTH = 32;
  private static final int FFN = 48;
  private static final int HEAD = 8;
  private static final int ROWS = 5;
  private static final int[] TOKENS = {3, 60, 0, 41, 7};
  private static final float INF = Float.POSITIVE_INFINITY;

  private TensorStore store;

  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  @BeforeEach
  void open() {
    store = TensorStore.create();
    SoftGpu.reset().workers(2);
  }

  @AfterEach
  void close() {
    store.close();
  }

  /** Layers below run on a processor. */
  private int cut;

  private Executable compile(Graph graph) {
    Backend gpu = new CudaBackend(CudaDevices.find().first(), (done, total) -> {});
    Backend cpu =
        cut == 1
            ? new ReferenceBackend()
            : new CpuBackend(CpuBackend.Options.defaults().withThreads(2));
    return (cut == 0 ? gpu : new SplitBackend(cpu, gpu, cut)).compile(graph, 8);
  }

  /** Numbers that follow from the name. */
  private Tensor tensor(String name, double size, double offset, long... shape) {
    SplittableRandom random = new SplittableRandom(name.hashCode());
    int n = 1;
    for (long d : shape) {
      n *= (int) d;
    }
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) (offset + size * (2 * random.nextDouble() - 1));
    }
    return store.floats(name, x, shape);
  }

  private LinearOp matrix(String name, int out, int in) {
    return LinearOp.dense(tensor(name, 1.5 / Math.sqrt(in), 0, out, in));
  }

  private Tensor norm(String name) {
    return tensor(name, 0.3, 1, WIDTH);
  }

  /**
   * A small Llama.
   *
   * @param silent layers whose feed-forward unit gives zeros
   */
  private Graph graph(List<Integer> silent) {
    float[] frequencies = {1, 0.1f, 0.01f, 0.001f};
    Graph.Builder g = Graph.builder("decisions");
    Value x = g.embedding("e", tensor("e", 1, 0, VOCABULARY, WIDTH), 1);
    for (int l = 0; l < LAYERS; l++) {
      String p = l + ".";
      Optional<Gate> attention = Optional.of(new Gate(l, Unit.ATTENTION));
      Optional<Gate> feed = Optional.of(new Gate(l, Unit.FFN));
      Value n = g.rmsNorm(p + "an", x, norm(p + "an"), 1e-5f, 1, 1);
      Value q = g.linear(p + "q", n, matrix(p + "q", WIDTH, WIDTH), Optional.empty(), attention);
      Value k =
          g.linear(
              p + "k", n, matrix(p + "k", 2 * HEAD, WIDTH), Optional.empty(), Optional.empty());
      Value v =
          g.linear(
              p + "v", n, matrix(p + "v", 2 * HEAD, WIDTH), Optional.empty(), Optional.empty());
      RopeSpec rope = new RopeSpec(RopeSpec.Style.values()[0], frequencies, 1);
      q = g.rope(p + "qr", q, rope, 4, HEAD);
      k = g.rope(p + "kr", k, rope, 2, HEAD);
      AttentionSpec spec =
          new AttentionSpec(l, 4, 2, HEAD, HEAD, (float) (1 / Math.sqrt(HEAD)), 0, 0);
      Value y = g.attention(p + "a", spec, q, k, v, attention);
      Value o = g.linear(p + "o", y, matrix(p + "o", WIDTH, WIDTH), Optional.empty(), attention);
      x = g.add(p + "add", x, o, 1, attention);
      Value h = g.rmsNorm(p + "fn", x, norm(p + "fn"), 1e-5f, 1, 1);
      Value up = g.linear(p + "up", h, matrix(p + "up", FFN, WIDTH), Optional.empty(), feed);
      Value gate = g.linear(p + "gate", h, matrix(p + "gate", FFN, WIDTH), Optional.empty(), feed);
      Value act = g.activate(p + "act", Activation.SILU, Optional.of(gate), up, feed);
      LinearOp down =
          silent.contains(l)
              ? LinearOp.dense(store.floats(p + "zero", new float[WIDTH * FFN], WIDTH, FFN))
              : matrix(p + "down", WIDTH, FFN);
      x = g.add(p + "add2", x, g.linear(p + "d", act, down, Optional.empty(), feed), 1, feed);
    }
    Value selected = g.selectRows("selected", x);
    Value last = g.rmsNorm("n", selected, norm("n"), 1e-5f, 1, 1);
    return g.build(
        g.linear(
            "logits", last, matrix("head", VOCABULARY, WIDTH), Optional.empty(), Optional.empty()));
  }

  /**
   * Logits, bytes of [row][unit], scores of [row][decision]; the last row of logits is a later one.
   */
  private record Outcome(float[][] logits, byte[][] bytes, float[][] scores) {
    int count(int row, byte value) {
      int n = 0;
      for (byte b : bytes[row]) {
        n += b == value ? 1 : 0;
      }
      return n;
    }
  }

  /** A forward of the first {@code rows} tokens, and one dense row behind them. */
  private static Outcome run(Executable e, int rows, BiConsumer<Batch, Integer> ask) {
    int decisions = e.graph().decisions().size();
    try (KvCache kv = e.newKvCache(16, KvCache.Type.F32);
        Batch b = e.newBatch(ROWS, ROWS)) {
      b.append(kv, TOKENS, 0, rows);
      for (int r = 0; r < rows; r++) {
        b.wantLogits(r);
        ask.accept(b, r);
      }
      e.forward(b);
      kv.length(rows);
      float[][] logits = new float[rows + 1][VOCABULARY];
      byte[][] bytes = new byte[rows][2 * LAYERS];
      float[][] scores = new float[rows][decisions];
      for (int r = 0; r < rows; r++) {
        b.logits(r, logits[r]);
        for (int u = 0; u < 2 * LAYERS; u++) {
          bytes[r][u] = b.decided(u / 2, Unit.values()[u % 2], r);
        }
        for (int d = 0; d < decisions; d++) {
          scores[r][d] = b.score(d, r);
        }
      }
      // F3, L2: it reads keys and values of all rows at all layers, whatever was decided.
      b.clear();
      b.append(kv, TOKENS, 0, 1);
      b.wantLogits(0);
      e.forward(b);
      b.logits(0, logits[rows]);
      return new Outcome(logits, bytes, scores);
    }
  }

  private static void assertSame(Outcome expected, Outcome actual, String what) {
    for (int r = 0; r < expected.logits().length; r++) {
      assertArrayEquals(expected.logits()[r], actual.logits()[r], what + ", row " + r);
    }
  }

  /** Equal as numbers: a zero may have another sign. */
  private static void assertEqualNumbers(Outcome expected, Outcome actual, String what) {
    for (int r = 0; r < expected.logits().length; r++) {
      for (int i = 0; i < VOCABULARY; i++) {
        assertTrue(expected.logits()[r][i] == actual.logits()[r][i], what + ", row " + r);
      }
    }
  }

  private static BiConsumer<Batch, Integer> force(byte[][] bytes) {
    return (b, r) -> {
      for (int u = 0; u < 2 * LAYERS; u++) {
        b.gate(u / 2, Unit.values()[u % 2], r, bytes[r][u]);
      }
    };
  }

  @ParameterizedTest
  @ValueSource(ints = {0, 1, 2})
  void skippingOnTheDevice(int layersBefore) {
    cut = layersBefore;
    Graph plain = graph(List.of());
    try (Executable dense = compile(plain);
        Executable e = compile(SkipPass.apply(plain, 0, LAYERS))) {
      Outcome expected = run(dense, ROWS, (b, r) -> {});
      Outcome logged = run(e, ROWS, (b, r) -> b.skipSimilar(r, INF, LAYERS, LAYERS));
      assertSame(expected, logged, "F1");
      assertSame(expected, run(e, ROWS, (b, r) -> b.skipSimilar(r, -2, LAYERS, 0)), "F1: budget");
      assertSame(expected, run(e, ROWS, (b, r) -> {}), "F1: nobody asked");
      float[] seen = logged.scores()[0].clone();
      Arrays.sort(seen);
      int before = LAYERS;
      for (float threshold : new float[] {-2, seen[0], seen[1], seen[2], INF}) {
        int n =
            run(e, 1, (b, r) -> b.skipSimilar(r, threshold, LAYERS, LAYERS)).count(0, Gate.SKIP);
        assertTrue(n <= before, "F2: threshold " + threshold);
        before = n;
      }
      assertEquals(0, before);
      for (int budget = 0; budget <= LAYERS; budget++) {
        int most = budget;
        int n = run(e, 1, (b, r) -> b.skipSimilar(r, -2, LAYERS, most)).count(0, Gate.SKIP);
        assertEquals(Math.min(budget, LAYERS - 1), n, "F2 and F5: budget " + budget);
      }
      float middle = seen[1];
      BiConsumer<Batch, Integer> ask = (b, r) -> b.skipSimilar(r, middle, 1 + r % 2, 2);
      Outcome decided = run(e, ROWS, ask);
      int skipped = 0;
      for (int r = 0; r < ROWS; r++) {
        skipped += decided.count(r, Gate.SKIP);
        assertTrue(decided.count(r, Gate.SKIP) <= 2, "F5");
        assertEquals(Gate.RUN, decided.bytes()[r][1], "F4: the first unit has nothing before it");
      }
      assertTrue(skipped > 0);
      assertSame(run(dense, ROWS, force(decided.bytes())), decided, "deciding is forcing");
    }
    try (Executable e = compile(SkipPass.apply(plain, 1, 3))) {
      Outcome region = run(e, ROWS, (b, r) -> b.skipSimilar(r, -2, LAYERS, LAYERS));
      for (int r = 0; r < ROWS; r++) {
        byte[] wanted = new byte[2 * LAYERS];
        wanted[2 * 2 + 1] = Gate.SKIP;
        assertArrayEquals(wanted, region.bytes()[r], "F4");
      }
      try (Executable silent = compile(graph(List.of(2)))) {
        // The row behind them is dense in one of both.
        Outcome zero = run(silent, ROWS, (b, r) -> {});
        for (int r = 0; r < ROWS; r++) {
          for (int i = 0; i < VOCABULARY; i++) {
            assertTrue(zero.logits()[r][i] == region.logits()[r][i], "F6, row " + r);
          }
        }
      }
    }
  }

  /** F7: sequences side by side decide as each of them alone. */
  @ParameterizedTest
  @ValueSource(ints = {0, 2})
  void rowsOfABatchDecideAlone(int layersBefore) {
    cut = layersBefore;
    Graph graph = SkipPass.apply(graph(List.of()), 0, LAYERS);
    try (Executable e = compile(graph);
        Batch b = e.newBatch(ROWS, ROWS)) {
      List<KvCache> caches = new ArrayList<>();
      float[] thresholds = {-2, 0.5f, 0.8f, 0.95f, INF};
      for (int r = 0; r < ROWS; r++) {
        caches.add(e.newKvCache(4, KvCache.Type.F32));
        b.append(caches.get(r), TOKENS, r, 1);
        b.wantLogits(r);
        b.skipSimilar(r, thresholds[r], 1 + r, 1 + r);
      }
      e.forward(b);
      float[] together = new float[VOCABULARY];
      float[] alone = new float[VOCABULARY];
      try (Batch one = e.newBatch(1, 1)) {
        for (int r = 0; r < ROWS; r++) {
          try (KvCache kv = e.newKvCache(4, KvCache.Type.F32)) {
            one.clear();
            one.append(kv, TOKENS, r, 1);
            one.wantLogits(0);
            one.skipSimilar(0, thresholds[r], 1 + r, 1 + r);
            e.forward(one);
            one.logits(0, alone);
            b.logits(r, together);
            assertArrayEquals(alone, together, "row " + r);
            for (int l = 0; l < LAYERS; l++) {
              assertEquals(one.decided(l, Unit.FFN, 0), b.decided(l, Unit.FFN, r));
            }
          }
        }
      }
      caches.forEach(KvCache::close);
    }
  }

  private StandIn.Layer layer(String name, int out, int in, double size) {
    return new StandIn.Layer(
        LinearOp.dense(tensor(name, size, 0, out, in)), tensor(name + ".b", size, 0, out));
  }

  /**
   * Stand-ins of all units; every other router has a hidden layer, or reads the residual stream.
   */
  private List<StandIn> standIns(Graph plain, double size) {
    List<StandIn> all = new ArrayList<>();
    for (Gate unit : StandInPass.units(plain)) {
      String p = "s" + unit.layer() + unit.unit();
      boolean deep = unit.unit() == Unit.FFN;
      all.add(
          new StandIn(
              unit,
              deep ? Optional.of(layer(p + "v1", 12, WIDTH, 0.3)) : Optional.empty(),
              layer(p + "v2", 2, deep ? 12 : WIDTH, 0.3),
              layer(p + "w1", 6, WIDTH, size),
              deep ? Optional.of(Activation.SILU) : Optional.empty(),
              layer(p + "w2", WIDTH, 6, size),
              unit.layer() % 2 == 0 ? StandIn.RouterInput.NORMED : StandIn.RouterInput.RESIDUAL));
    }
    return all;
  }

  /** Decisions of the first part reach units of the second, and spend one budget. */
  @Test
  void aCutChangesNothing() {
    Graph plain = graph(List.of());
    Graph skips = SkipPass.apply(plain, 0, LAYERS);
    Graph both = StandInPass.apply(skips, standIns(plain, 0.2));
    BiConsumer<Batch, Integer> skip = (b, r) -> b.skipSimilar(r, -2 + r, 2 + r, 2);
    BiConsumer<Batch, Integer> route =
        (b, r) -> b.routeUnits(r, 0, r % 2 == 0 ? Gate.SUBSTITUTE : Gate.SKIP);
    BiConsumer<Batch, Integer> forced =
        skip.andThen((b, r) -> b.gate(LAYERS - 1, Unit.ATTENTION, r, Gate.SKIP));
    for (Graph graph : List.of(skips, both)) {
      for (BiConsumer<Batch, Integer> ask :
          List.of(skip, forced, graph == both ? skip.andThen(route) : forced)) {
        Outcome whole;
        try (Executable e = new ReferenceBackend().compile(graph, 8)) {
          whole = run(e, ROWS, ask);
        }
        for (int layers = 1; layers < LAYERS; layers++) {
          Backend part = new ReferenceBackend();
          try (Executable e = new SplitBackend(part, part, layers).compile(graph, 8)) {
            Outcome cutInTwo = run(e, ROWS, ask);
            String what = "before layer " + layers;
            assertSame(whole, cutInTwo, what);
            for (int r = 0; r < ROWS; r++) {
              assertArrayEquals(whole.bytes()[r], cutInTwo.bytes()[r], what + " bytes " + r);
              assertArrayEquals(whole.scores()[r], cutInTwo.scores()[r], what + " scores " + r);
            }
          }
        }
      }
    }
  }

  @ParameterizedTest
  @ValueSource(ints = {0, 1, 2})
  void informedRoutingOnTheDevice(int layersBefore) {
    cut = layersBefore;
    Graph plain = graph(List.of());
    try (Executable dense = compile(plain);
        Executable e = compile(StandInPass.apply(plain, standIns(plain, 0.2)))) {
      Outcome expected = run(dense, ROWS, (b, r) -> {});
      Outcome logged = run(e, ROWS, (b, r) -> b.routeUnits(r, -INF, Gate.SUBSTITUTE));
      assertSame(expected, logged, "L1");
      assertSame(expected, run(e, ROWS, (b, r) -> {}), "L1: nobody asked");
      Outcome all = run(e, ROWS, (b, r) -> b.routeUnits(r, INF, Gate.SUBSTITUTE));
      for (int r = 0; r < ROWS; r++) {
        assertEquals(2 * LAYERS, all.count(r, Gate.SUBSTITUTE), "L2");
      }
      // The first unit of the dense trajectory is that of every trajectory.
      for (int r = 0; r < ROWS; r++) {
        float at = logged.scores()[r][0];
        Outcome below = run(e, ROWS, (b, i) -> b.routeUnits(i, Math.nextDown(at), Gate.SKIP));
        Outcome above = run(e, ROWS, (b, i) -> b.routeUnits(i, Math.nextUp(at), Gate.SKIP));
        assertEquals(Gate.RUN, below.bytes()[r][0], "L3");
        assertEquals(Gate.SKIP, above.bytes()[r][0], "L3");
      }
      Outcome decided =
          run(e, ROWS, (b, r) -> b.routeUnits(r, 0, r % 2 == 0 ? Gate.SUBSTITUTE : Gate.SKIP));
      int some = 0;
      for (int r = 0; r < ROWS; r++) {
        some += 2 * LAYERS - decided.count(r, Gate.RUN);
      }
      assertTrue(some > 0 && some < 2 * LAYERS * ROWS, "routed " + some);
      assertSame(run(e, ROWS, force(decided.bytes())), decided, "deciding is forcing");
    }
    try (Executable nothing = compile(StandInPass.apply(plain, standIns(plain, 0)))) {
      assertEqualNumbers(
          run(nothing, ROWS, (b, r) -> b.routeUnits(r, 0, Gate.SKIP)),
          run(nothing, ROWS, (b, r) -> b.routeUnits(r, 0, Gate.SUBSTITUTE)),
          "L5");
    }
  }

  /** L4: a unit that its forecast equals, at any threshold. */
  @Test
  void aPerfectForecastCostsNothing() {
    StandIn.Layer down = layer("down", 6, WIDTH, 0.2);
    StandIn.Layer up = layer("up", WIDTH, 6, 0.2);
    Gate unit = new Gate(0, Unit.FFN);
    Graph.Builder g = Graph.builder("linear");
    Value x = g.embedding("e", tensor("e", 1, 0, VOCABULARY, WIDTH), 1);
    Value h = g.rmsNorm("n", x, norm("n"), 1e-5f, 1, 1);
    Value inner = g.linear("a", h, down.weight(), Optional.of(down.bias()), Optional.of(unit));
    Value out = g.linear("b", inner, up.weight(), Optional.of(up.bias()), Optional.of(unit));
    Value sum = g.add("s", x, out, 1, Optional.of(unit));
    Graph plain =
        g.build(
            g.linear(
                "l",
                g.selectRows("r", sum),
                matrix("head", VOCABULARY, WIDTH),
                Optional.empty(),
                Optional.empty()));
    StandIn same =
        new StandIn(
            unit, Optional.empty(), layer("router", 2, WIDTH, 0.3), down, Optional.empty(), up);
    try (Executable dense = compile(plain);
        Executable e = compile(StandInPass.apply(plain, List.of(same)));
        Batch b = dense.newBatch(ROWS, ROWS);
        Batch c = e.newBatch(ROWS, ROWS);
        KvCache kv = dense.newKvCache(ROWS, KvCache.Type.F32);
        KvCache other = e.newKvCache(ROWS, KvCache.Type.F32)) {
      b.append(kv, TOKENS, 0, ROWS);
      c.append(other, TOKENS, 0, ROWS);
      for (int r = 0; r < ROWS; r++) {
        b.wantLogits(r);
        c.wantLogits(r);
        c.routeUnits(r, r - 2, Gate.SUBSTITUTE);
      }
      dense.forward(b);
      e.forward(c);
      float[] expected = new float[VOCABULARY];
      float[] actual = new float[VOCABULARY];
      int routed = 0;
      for (int r = 0; r < ROWS; r++) {
        routed += c.decided(0, Unit.FFN, r) == Gate.SUBSTITUTE ? 1 : 0;
        b.logits(r, expected);
        c.logits(r, actual);
        assertArrayEquals(expected, actual, 1e-5f, "row " + r);
      }
      assertTrue(routed > 0 && routed < ROWS, "routed " + routed);
    }
  }
}
