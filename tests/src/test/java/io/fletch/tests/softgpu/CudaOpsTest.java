package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.device.CudaDevices;
import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Backend;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
import io.fletch.graph.GreedySteps;
import io.fletch.graph.KvCache;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.SkipPass;
import io.fletch.graph.Span;
import io.fletch.graph.StandIn;
import io.fletch.graph.StandInPass;
import io.fletch.graph.Value;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.channels.Channels;
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
import org.junit.jupiter.params.provider.EnumSource;

/** Graphs of all ops with kernels, on the software GPU and the reference. */
class CudaOpsTest {
  private static final int VOCABULARY = 97;
  private static final int[] TOKENS = {3, 96, 0, 41, 7, 3, 22, 60, 11, 5, 90};

  private final SplittableRandom random = new SplittableRandom(7);
  private TensorStore store;
  private SoftGpu gpu;

  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  @BeforeEach
  void open() {
    store = TensorStore.create();
    gpu = SoftGpu.reset().workers(2);
  }

  @AfterEach
  void close() {
    store.close();
  }

  private static Backend cuda() {
    return new CudaBackend(CudaDevices.find().first(), (done, total) -> {});
  }

  private Tensor vector(String name, int n) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) (random.nextDouble() + 0.5);
    }
    return store.floats(name, x, n);
  }

  /** Random elements of about one over the root of the columns. */
  private Tensor matrix(String name, TensorType type, int rows, int cols) {
    Tensor t = store.allocate(name, type, rows, cols);
    double size = 1.5 / Math.sqrt(cols);
    if (type.isQuantized()) {
      short scale = Float.floatToFloat16((float) (size / (type == TensorType.Q8_0 ? 127 : 8)));
      for (long at = 0; at < t.bytes(); at++) {
        t.segment().set(ValueLayout.JAVA_BYTE, at, (byte) random.nextInt());
      }
      for (long at = 0; at < t.bytes(); at += type.blockBytes()) {
        t.segment().set(ValueLayout.JAVA_SHORT_UNALIGNED, at, scale);
        if (type == TensorType.Q4_1) {
          short least = Float.floatToFloat16((float) -size);
          t.segment().set(ValueLayout.JAVA_SHORT_UNALIGNED, at + 2, least);
        }
      }
      return t;
    }
    for (long i = 0; i < t.elements(); i++) {
      float x = (float) (size * (2 * random.nextDouble() - 1));
      switch (type) {
        case F32 -> t.segment().set(ValueLayout.JAVA_FLOAT_UNALIGNED, 4 * i, x);
        case F16 ->
            t.segment().set(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * i, Float.floatToFloat16(x));
        default ->
            t.segment()
                .set(
                    ValueLayout.JAVA_SHORT_UNALIGNED,
                    2 * i,
                    (short) (Float.floatToRawIntBits(x) >>> 16));
      }
    }
    return t;
  }

  private static RopeSpec rope(RopeSpec.Style style, int pairs) {
    float[] f = new float[pairs];
    for (int i = 0; i < pairs; i++) {
      f[i] = (float) Math.pow(10_000, -(double) i / pairs);
    }
    return new RopeSpec(style, f, 1.25f);
  }

  /** Two layers that use every op; of odd widths where the type allows it. */
  private Graph graph(TensorType type, int head, Activation activation) {
    int hidden = type.isQuantized() ? 64 : 33;
    int ffn = type.isQuantized() ? 96 : 207;
    Graph.Builder g = Graph.builder("ops");
    Value x = g.embedding("embedding", matrix("e", type, VOCABULARY, hidden), 3);
    for (int l = 0; l < 2; l++) {
      String p = l + ".";
      RopeSpec spec = rope(RopeSpec.Style.values()[l], head / 2 - l);
      Optional<Gate> attention = Optional.of(new Gate(l, Gate.Unit.ATTENTION));
      Optional<Gate> feed = Optional.of(new Gate(l, Gate.Unit.FFN));
      Value n =
          l == 0
              ? g.rmsNorm(p + "norm", x, vector(p + "n", hidden), 1e-5f, 1, 1)
              : g.layerNorm(
                  p + "norm",
                  x,
                  vector(p + "n", hidden),
                  Optional.of(vector(p + "nb", hidden)),
                  1e-5f);
      LinearOp all = LinearOp.dense(matrix(p + "qkv", type, 8 * head, hidden));
      Value qkv =
          g.linear(p + "qkv", n, all, Optional.of(vector(p + "b", 8 * head)), Optional.empty());
      Value q = g.slice(p + "q", qkv, 0, 4 * head);
      Value k = g.slice(p + "k", qkv, 4 * head, 2 * head);
      Value v = g.slice(p + "v", qkv, 6 * head, 2 * head);
      q = g.rmsNorm(p + "qn", q, vector(p + "qn", head), 1e-6f, 4, 1);
      q = g.rope(p + "qr", q, spec, 4, head);
      k = g.rope(p + "kr", k, spec, 2, head);
      AttentionSpec a =
          new AttentionSpec(l, 4, 2, head, head, (float) (1 / Math.sqrt(head)), 20 * l, 4 * l);
      Value y = g.attention(p + "attention", a, q, k, v, attention);
      Value o = g.slice(p + "o", y, 0, hidden);
      x = g.add(p + "add", x, o, 0.7f, attention);
      LinearOp up = LinearOp.dense(matrix(p + "up", type, ffn, hidden));
      LinearOp gate = LinearOp.dense(matrix(p + "gate", type, ffn, hidden));
      LinearOp down = LinearOp.dense(matrix(p + "down", type, hidden, ffn));
      Value h = g.linear(p + "up", x, up, Optional.empty(), feed);
      Optional<Value> half =
          l == 0
              ? Optional.of(g.linear(p + "gate", x, gate, Optional.empty(), feed))
              : Optional.empty();
      h = g.activate(p + "act", activation, half, h, feed);
      x = g.add(p + "add2", x, g.linear(p + "down", h, down, Optional.empty(), feed), 1, feed);
    }
    x = g.scale("scaled", g.selectRows("selected", x), 0.5f);
    LinearOp out = LinearOp.dense(matrix("head", type, VOCABULARY, hidden));
    x = g.linear("head", x, out, Optional.empty(), Optional.empty());
    return g.build(g.softCap("logits", x, 30));
  }

  private static float[][] logits(Batch b) {
    float[][] all = new float[b.logitRows()][VOCABULARY];
    for (int r = 0; r < all.length; r++) {
      b.logits(r, all[r]);
    }
    return all;
  }

  /** A prompt, then spans of every kind with gates, side by side. */
  private static float[][] run(Backend backend, Graph graph, KvCache.Type type) {
    try (Executable e = backend.compile(graph, 11);
        KvCache one = e.newKvCache(40, type);
        KvCache two = e.newKvCache(24, type);
        Batch b = e.newBatch(11, 11)) {
      b.append(one, TOKENS, 0, 7);
      e.forward(b);
      one.length(7);
      two.copy(one, 1, 0, 3);
      b.clear();
      b.add(new Span(one, 3, 7, 20, 7, 0, 0, Span.Own.BIDIRECTIONAL, 0), TOKENS, 0);
      b.add(new Span(one, 4, 9, 9, 7, 12, 13, Span.Own.BLOCK_CAUSAL, 2), TOKENS, 3);
      b.add(new Span(two, 4, 5, 3, 3, 1, 2, Span.Own.CAUSAL, 0), TOKENS, 7);
      b.gate(0, Gate.Unit.ATTENTION, 1, Gate.SKIP);
      b.gate(1, Gate.Unit.FFN, 4, Gate.SKIP);
      for (int r = 10; r >= 0; r--) {
        b.wantLogits(r);
      }
      e.forward(b);
      return logits(b);
    }
  }

  private static void assertClose(float[][] expected, float[][] actual, double bound) {
    assertEquals(expected.length, actual.length);
    for (int r = 0; r < expected.length; r++) {
      double worst = 0;
      double largest = 0;
      for (int i = 0; i < VOCABULARY; i++) {
        worst = Math.max(worst, Math.abs(expected[r][i] - actual[r][i]));
        largest = Math.max(largest, Math.abs(expected[r][i]));
      }
      assertTrue(worst <= bound * largest, "row " + r + ": error=" + worst + " of " + largest);
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"})
  void everyTypeAgreesWithTheReference(TensorType type) {
    // The types go through all activations.
    Activation[] kinds = Activation.values();
    Graph graph = graph(type, 20, kinds[type.ordinal() % kinds.length]);
    KvCache.Type kv = KvCache.Type.F32;
    assertClose(run(new ReferenceBackend(), graph, kv), run(cuda(), graph, kv), 2e-5);
  }

  /**
   * Sums of another order may round a key or value to the neighbouring number of the cache's type,
   * half a step away: 2^-11 of an F16 number, 1/254 of the largest of a Q8_0 block.
   */
  @ParameterizedTest
  @EnumSource(names = {"F16", "Q8_0"})
  void roundedCachesAgreeWithTheReference(KvCache.Type kv) {
    Graph graph = graph(TensorType.F32, 32, Activation.SILU);
    double bound = kv == KvCache.Type.F16 ? 1.0 / 2048 : 1.0 / 254;
    assertClose(run(new ReferenceBackend(), graph, kv), run(cuda(), graph, kv), bound);
  }

  /** Bytes of [row][unit] and scores of [row][decision] of one forward. */
  private record Decided(float[][] logits, byte[][] bytes, float[][] scores) {}

  private static Decided decide(Backend backend, Graph graph, BiConsumer<Batch, Integer> ask) {
    int n = 5;
    try (Executable e = backend.compile(graph, 8);
        KvCache kv = e.newKvCache(16, KvCache.Type.F32);
        Batch b = e.newBatch(n, n);
        Batch next = e.newBatch(1, 1)) {
      b.append(kv, TOKENS, 0, n);
      for (int r = 0; r < n; r++) {
        b.wantLogits(r);
        ask.accept(b, r);
      }
      e.forward(b);
      kv.length(n);
      // Another forward in between must not take the decisions of this one with it.
      next.append(kv, TOKENS, n, 1);
      next.wantLogits(0);
      e.forward(next);
      byte[][] bytes = new byte[n][4];
      float[][] scores = new float[n][graph.decisions().size()];
      for (int r = 0; r < n; r++) {
        for (int u = 0; u < 4; u++) {
          bytes[r][u] = b.decided(u / 2, Gate.Unit.values()[u % 2], r);
        }
        for (int d = 0; d < scores[r].length; d++) {
          scores[r][d] = b.score(d, r);
        }
      }
      return new Decided(logits(b), bytes, scores);
    }
  }

  private void assertDecidesAlike(Graph graph, BiConsumer<Batch, Integer> ask) {
    Decided expected = decide(new ReferenceBackend(), graph, ask);
    Decided actual = decide(cuda(), graph, ask);
    for (int r = 0; r < expected.scores().length; r++) {
      assertArrayEquals(expected.scores()[r], actual.scores()[r], 1e-4f, "row " + r);
    }
    assertArrayEquals(expected.bytes(), actual.bytes());
    assertClose(expected.logits(), actual.logits(), 2e-5);
  }

  @Test
  void theDeviceDecidesWhichUnitsRest() {
    Graph graph = SkipPass.apply(graph(TensorType.F32, 20, Activation.SILU), 0, 2);
    float[] scores = new float[5];
    Decided logged =
        decide(
            new ReferenceBackend(),
            graph,
            (b, r) -> b.skipSimilar(r, Float.POSITIVE_INFINITY, 1, 1));
    for (int r = 0; r < 5; r++) {
      scores[r] = logged.scores()[r][0];
    }
    float[] sorted = scores.clone();
    Arrays.sort(sorted);
    float middle = (sorted[1] + sorted[2]) / 2;
    // Three rows reach it; of one the budget is empty, and another one does not take part.
    BiConsumer<Batch, Integer> ask =
        (b, r) -> {
          if (r != 4) {
            b.skipSimilar(r, middle, 1, scores[r] == sorted[4] ? 0 : 1);
          }
        };
    assertDecidesAlike(graph, ask);
    Decided decided = decide(cuda(), graph, ask);
    assertEquals(Gate.RUN, decided.bytes()[4][3]);
    assertTrue(Float.isNaN(decided.scores()[4][0]));
  }

  @Test
  void theDeviceRoutesUnitsToStandIns() {
    Graph plain = graph(TensorType.F32, 20, Activation.SILU);
    List<StandIn> all = new ArrayList<>();
    for (Gate unit : StandInPass.units(plain)) {
      int d = StandInPass.input(plain, unit).width();
      String name = unit.layer() + "." + unit.unit();
      boolean deep = unit.layer() == 0;
      StandIn.Layer hidden =
          new StandIn.Layer(
              LinearOp.dense(matrix(name + "v1", TensorType.F32, 12, d)), vector(name + "c1", 12));
      int width = deep ? 12 : d;
      all.add(
          new StandIn(
              unit,
              deep ? Optional.of(hidden) : Optional.empty(),
              new StandIn.Layer(
                  LinearOp.dense(matrix(name + "v2", TensorType.F32, 2, width)),
                  vector(name + "c2", 2)),
              new StandIn.Layer(
                  LinearOp.dense(matrix(name + "w1", TensorType.F32, 7, d)),
                  vector(name + "b1", 7)),
              deep ? Optional.of(Activation.SILU) : Optional.empty(),
              new StandIn.Layer(
                  LinearOp.dense(matrix(name + "w2", TensorType.F32, d, 7)),
                  vector(name + "b2", d))));
    }
    Graph graph = StandInPass.apply(plain, all);
    assertEquals(4, graph.decisions().size());
    byte[] otherwise = {Gate.SUBSTITUTE, Gate.SKIP};
    assertDecidesAlike(
        graph,
        (b, r) -> {
          if (r != 2) {
            b.routeUnits(r, 0.05f, otherwise[r % 2]);
          }
        });
    assertDecidesAlike(
        graph, (b, r) -> b.gate(r % 2, Gate.Unit.values()[r / 2 % 2], r, Gate.SUBSTITUTE));
  }

  @Test
  void aRowDoesNotDependOnOthersAndResultsOutliveTheNextForward() throws IOException {
    Graph graph = graph(TensorType.Q8_0, 32, Activation.SILU);
    try (Executable e = cuda().compile(graph, 11);
        KvCache many = e.newKvCache(16, KvCache.Type.Q8_0);
        KvCache single = e.newKvCache(32, KvCache.Type.Q8_0);
        Batch b = e.newBatch(11, 11);
        Batch one = e.newBatch(1, 1)) {
      b.append(many, TOKENS, 0, 11);
      for (int r = 0; r < 11; r++) {
        b.wantLogits(r);
      }
      e.forward(b);
      float[] row = new float[VOCABULARY];
      Batch.RowStatistics s = new Batch.RowStatistics();
      for (int r = 0; r < 11; r++) {
        one.clear();
        one.append(single, TOKENS, r, 1);
        one.wantLogits(0);
        e.forward(one);
        single.length(r + 1);
        one.logits(0, row);
        float[] together = new float[VOCABULARY];
        b.logits(r, together);
        assertArrayEquals(row, together);
        checkStatistics(row, one, s);
        assertEquals(s.argmax, b.argmax(r));
      }
      ByteArrayOutputStream first = new ByteArrayOutputStream();
      many.save(11, Channels.newChannel(first));
      assertEquals(11 * many.slotBytes(), first.size());
      single.load(11, Channels.newChannel(new ByteArrayInputStream(first.toByteArray())));
      ByteArrayOutputStream second = new ByteArrayOutputStream();
      single.save(11, Channels.newChannel(second));
      assertArrayEquals(first.toByteArray(), second.toByteArray());
    }
  }

  private static int next(Executable e, KvCache kv, Batch b, int token) {
    b.clear();
    b.append(kv, new int[] {token}, 0, 1);
    b.wantLogits(0);
    e.forward(b);
    kv.length(kv.length() + 1);
    return b.argmax(0);
  }

  /** Past the end of a sliding window, with another sequence's forward in between. */
  @ParameterizedTest
  @EnumSource
  void greedyStepsFollowEachOtherOnTheDevice(KvCache.Type type) {
    Graph graph = graph(TensorType.Q8_0, 32, Activation.SILU);
    int n = 12;
    try (Executable e = cuda().compile(graph, 11);
        KvCache one = e.newKvCache(n, type);
        KvCache two = e.newKvCache(n, type);
        Batch b = e.newBatch(1, 1);
        Batch other = e.newBatch(1, 1)) {
      int[] expected = new int[n + 1];
      expected[0] = 7;
      for (int i = 0; i < n; i++) {
        expected[i + 1] = next(e, one, b, expected[i]);
      }
      one.length(3);
      next(e, two, other, 50);
      float[] kept = new float[VOCABULARY];
      other.logits(0, kept);
      try (GreedySteps steps = e.newGreedySteps(one, b).orElseThrow()) {
        assertThrows(IllegalStateException.class, steps::take);
        assertThrows(IllegalArgumentException.class, () -> steps.start(VOCABULARY));
        steps.start(expected[3]);
        assertTrue(steps.follow(), "the second step");
        assertTrue(steps.follow(), "the third step");
        assertEquals(3, steps.pending());
        assertEquals(expected[4], steps.take());
        int otherToken = next(e, two, other, 51);
        assertEquals(false, steps.follow(), "another forward came between");
        assertEquals(expected[5], steps.take());
        assertEquals(expected[6], steps.take());
        one.length(6);
        steps.start(expected[6]);
        while (steps.follow()) {
          assertTrue(steps.pending() <= n);
        }
        // As many as the cache has slots.
        assertEquals(n - 6, steps.pending());
        for (int i = 7; i <= n; i++) {
          assertEquals(expected[i], steps.take(), "token " + i);
        }
        one.length(n);
        assertThrows(IllegalStateException.class, () -> steps.start(0));
        assertEquals(otherToken, other.argmax(0), "results of others stay");
      }
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
    assertEquals(0, gpu.liveObjects(), "objects left");
  }

  @Test
  void numbersComeWithRowsAndHiddenStatesGoWithLogits() {
    Graph.Builder g = Graph.builder("numbers");
    Value e = g.embedding("e", matrix("e", TensorType.F16, VOCABULARY, 33), 1);
    Value x =
        g.linear(
            "x",
            g.input("numbers", 2, 5),
            LinearOp.dense(matrix("w", TensorType.F32, 33, 5)),
            Optional.of(vector("b", 33)),
            Optional.empty());
    Value act = g.activate("act", Activation.GELU_ERF, Optional.empty(), x, Optional.empty());
    Value sum = g.add("sum", e, act, 1, Optional.empty());
    Value hidden = g.rmsNorm("hidden", g.selectRows("selected", sum), vector("n", 33), 1e-5f, 1, 1);
    Value logits =
        g.linear(
            "logits",
            hidden,
            LinearOp.dense(matrix("o", TensorType.F16, 3, 33)),
            Optional.empty(),
            Optional.empty());
    Graph graph = g.build(logits, hidden);
    try (Executable expected = new ReferenceBackend().compile(graph, 3);
        Executable actual = cuda().compile(graph, 3)) {
      float[][] wanted = hiddenRows(expected);
      float[][] rows = hiddenRows(actual);
      for (int r = 0; r < wanted.length; r++) {
        assertArrayEquals(wanted[r], rows[r], 2e-5f);
      }
      assertTrue(Math.abs(wanted[0][0] - wanted[1][0]) > 1e-3, "numbers matter");
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
  }

  /** Hidden states and logits of two rows, read after another batch has run. */
  private static float[][] hiddenRows(Executable e) {
    float[][] out = new float[2][33 + 3];
    try (KvCache kv = e.newKvCache(3, KvCache.Type.F16);
        Batch b = e.newBatch(3, 2);
        Batch other = e.newBatch(1, 1)) {
      b.append(kv, new int[] {5, 5, 5}, 0, 3);
      b.input(1, new float[] {9, 9, 0.5f, -1, 2, 0.25f, -3});
      b.wantLogits(2);
      b.wantLogits(1);
      e.forward(b);
      other.append(kv, new int[] {1}, 0, 1);
      other.wantLogits(0);
      e.forward(other);
      float[] hidden = new float[33];
      float[] logits = new float[3];
      for (int r = 0; r < 2; r++) {
        b.hidden(r, hidden);
        b.logits(r, logits);
        System.arraycopy(hidden, 0, out[r], 0, 33);
        System.arraycopy(logits, 0, out[r], 33, 3);
      }
    }
    return out;
  }

  private static void checkStatistics(float[] row, Batch b, Batch.RowStatistics s) {
    b.statistics(0, s);
    int best = 0;
    for (int i = 1; i < row.length; i++) {
      best = row[i] > row[best] ? i : best;
    }
    float second = Float.NEGATIVE_INFINITY;
    double sum = 0;
    double weighted = 0;
    for (int i = 0; i < row.length; i++) {
      second = i == best ? second : Math.max(second, row[i]);
      double d = (double) row[i] - row[best];
      sum += Math.exp(d);
      weighted += d * Math.exp(d);
    }
    assertEquals(best, s.argmax);
    assertEquals(row[best], s.top1);
    assertEquals(second, s.top2);
    assertEquals(row[best] + Math.log(sum), s.logSumExp, 1e-9);
    assertEquals(Math.log(sum) - weighted / sum, s.entropy, 1e-8);
  }

  @Test
  void aDeviceThatIsTooSmallSaysWhatIsNeeded() {
    Graph graph = graph(TensorType.F32, 32, Activation.SILU);
    gpu = SoftGpu.reset(90, 1 << 16);
    GraphException e = assertThrows(GraphException.class, () -> cuda().compile(graph, 8));
    assertTrue(e.getMessage().contains("needed bytes="), e.getMessage());
  }
}
