package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fletch.ffm.device.CudaDevices;
import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Backend;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.Value;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.quant.LinearOp;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.lang.foreign.ValueLayout;
import java.util.Optional;
import java.util.Set;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Ops that run together give what they give one by one, in as few launches as a layer allows. */
class CudaFusionTest {
  private static final int VOCABULARY = 61;
  private static final int ROWS = 20;

  /**
   * Single rows and threes, at the beginning and behind others, of which some have resting units.
   */
  private static final int[] PIECES = {1, 1, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1};

  private final SplittableRandom random = new SplittableRandom(5);
  private TensorStore store;
  private SoftGpu gpu;

  /** Which products, by the end of their names, have 2:4 matrices. */
  private Set<String> twoOfFour = Set.of();

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

  /** What differs between families of the Llama kind. */
  private record Family(
      TensorType type,
      TensorType other,
      RopeSpec.Style style,
      int head,
      int hidden,
      int ffn,
      Activation activation,
      boolean biases,
      boolean gated,
      boolean headNorms,
      boolean parallel) {}

  private static Family llama() {
    return new Family(
        TensorType.Q8_0,
        TensorType.Q8_0,
        RopeSpec.Style.NORM,
        64,
        128,
        160,
        Activation.SILU,
        false,
        true,
        false,
        false);
  }

  private Tensor vector(String name, int n) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) (random.nextDouble() + 0.5);
    }
    return store.floats(name, x, n);
  }

  private LinearOp matrix(String name, TensorType type, int rows, int cols) {
    if (!twoOfFour.contains(name.substring(name.indexOf('.') + 1))) {
      return LinearOp.dense(tensor(name, type, rows, cols));
    }
    Tensor index = RandomMatrix.places(store, name + ".index", rows, cols, random);
    return new LinearOp.Sparse(
        new SparseMatrix.TwoOfFour(index, tensor(name, type, rows, cols / 2)));
  }

  private Tensor tensor(String name, TensorType type, int rows, int cols) {
    Tensor t = store.allocate(name, type, rows, cols);
    double size = 1.5 / Math.sqrt(cols);
    for (long at = 0; at < t.bytes(); at++) {
      t.segment().set(ValueLayout.JAVA_BYTE, at, (byte) random.nextInt());
    }
    if (!type.isQuantized()) {
      for (long i = 0; i < t.elements(); i++) {
        float x = (float) (size * (2 * random.nextDouble() - 1));
        short bits =
            type == TensorType.F16
                ? Float.floatToFloat16(x)
                : (short) (Float.floatToRawIntBits(x) >>> 16);
        t.segment().set(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * i, bits);
      }
      return t;
    }
    short scale = Float.floatToFloat16((float) (size / (type == TensorType.Q8_0 ? 127 : 8)));
    for (long at = 0; at < t.bytes(); at += type.blockBytes()) {
      t.segment().set(ValueLayout.JAVA_SHORT_UNALIGNED, at, scale);
    }
    return t;
  }

  private Graph graph(Family f, int layers) {
    Graph.Builder g = Graph.builder("family");
    Value x = g.embedding("e", tensor("e", f.type(), VOCABULARY, f.hidden()), 1);
    float[] frequencies = new float[f.head() / 2];
    for (int i = 0; i < frequencies.length; i++) {
      frequencies[i] = (float) Math.pow(10_000, -2.0 * i / f.head());
    }
    RopeSpec rope = new RopeSpec(f.style(), frequencies, 1);
    for (int l = 0; l < layers; l++) {
      x = layer(g, f, rope, l, x);
    }
    x = g.rmsNorm("last", g.selectRows("rows", x), vector("last", f.hidden()), 1e-5f, 1, 1);
    return g.build(linear(g, "logits", x, f.type(), VOCABULARY, false, Optional.empty()));
  }

  private Value linear(
      Graph.Builder g,
      String name,
      Value in,
      TensorType type,
      int out,
      boolean bias,
      Optional<Gate> gate) {
    return g.linear(
        name,
        in,
        matrix(name, type, out, in.width()),
        bias ? Optional.of(vector(name + "_b", out)) : Optional.empty(),
        gate);
  }

  private Value layer(Graph.Builder g, Family f, RopeSpec rope, int l, Value x) {
    String p = l + ".";
    Optional<Gate> attention = Optional.of(new Gate(l, Gate.Unit.ATTENTION));
    Optional<Gate> feed = Optional.of(new Gate(l, Gate.Unit.FFN));
    Optional<Gate> none = Optional.empty();
    int heads = 4;
    int n = f.head();
    Value h = g.rmsNorm(p + "n", x, vector(p + "n", f.hidden()), 1e-5f, 1, 1);
    Value q = linear(g, p + "q", h, f.type(), heads * n, f.biases(), attention);
    Value k = linear(g, p + "k", h, f.type(), 2 * n, f.biases(), none);
    Value v = linear(g, p + "v", h, f.other(), 2 * n, f.biases(), none);
    if (f.headNorms()) {
      q = g.rmsNorm(p + "qn", q, vector(p + "qn", n), 1e-6f, heads, 1);
      k = g.rmsNorm(p + "kn", k, vector(p + "kn", n), 1e-6f, 2, 1);
    }
    q = g.rope(p + "qr", q, rope, heads, n);
    k = g.rope(p + "kr", k, rope, 2, n);
    AttentionSpec spec = new AttentionSpec(l, heads, 2, n, n, (float) (1 / Math.sqrt(n)), 0, 7 * l);
    Value a = g.attention(p + "a", spec, q, k, v, attention);
    Value o = linear(g, p + "o", a, f.type(), f.hidden(), false, attention);
    Value sum = x;
    if (!f.parallel()) {
      sum = g.add(p + "add", x, o, 0.75f, attention);
      h = g.rmsNorm(p + "n2", sum, vector(p + "n2", f.hidden()), 1e-5f, 1, 0.5f);
    }
    Value up = linear(g, p + "up", h, f.type(), f.ffn(), f.biases(), feed);
    Optional<Value> half =
        f.gated()
            ? Optional.of(linear(g, p + "gate", h, f.type(), f.ffn(), f.biases(), feed))
            : Optional.empty();
    Value act = g.activate(p + "act", f.activation(), half, up, feed);
    Value d = linear(g, p + "down", act, f.other(), f.hidden(), f.biases(), feed);
    if (f.parallel()) {
      sum = g.add(p + "add", x, o, 1, attention);
    }
    return g.add(p + "add2", sum, d, 1, feed);
  }

  private static Backend cuda() {
    return new CudaBackend(CudaDevices.find().first(), (done, total) -> {});
  }

  /**
   * Logits of a sequence of {@link #ROWS} tokens that comes in pieces of these numbers of rows;
   * some units of some rows rest.
   */
  private static float[][] run(Executable e, KvCache.Type type, int... pieces) {
    float[][] all = new float[ROWS][VOCABULARY];
    int from = 0;
    try (KvCache cache = e.newKvCache(ROWS, type);
        Batch b = e.newBatch(ROWS, ROWS)) {
      for (int n : pieces) {
        int[] tokens = IntStream.range(from, from + n).map(i -> i * 7 % VOCABULARY).toArray();
        b.clear();
        b.append(cache, tokens, 0, n);
        for (int r = 0; r < n; r++) {
          if ((from + r) % 5 == 3) {
            b.gate(0, Gate.Unit.FFN, r, Gate.SKIP);
          }
          if ((from + r) % 7 == 4) {
            b.gate(1, Gate.Unit.ATTENTION, r, Gate.SKIP);
          }
          b.wantLogits(r);
        }
        e.forward(b);
        cache.length(from + n);
        for (int r = 0; r < n; r++) {
          b.logits(r, all[from + r]);
        }
        from += n;
      }
    }
    assertEquals(ROWS, from);
    return all;
  }

  private void check(Family f, KvCache.Type... types) {
    Graph graph = graph(f, 2);
    try (Executable cuda = cuda().compile(graph, ROWS);
        Executable reference = new ReferenceBackend().compile(graph, ROWS)) {
      for (KvCache.Type type : types) {
        check(f, type, cuda, reference);
      }
    }
  }

  private static void check(Family f, KvCache.Type type, Executable cuda, Executable reference) {
    // Many rows run most ops one by one.
    float[][] whole = run(cuda, type, ROWS);
    float[][] pieces = run(cuda, type, PIECES);
    for (int r = 0; r < ROWS; r++) {
      assertArrayEquals(whole[r], pieces[r], f + " " + type + " row " + r);
    }
    double bound =
        switch (type) {
          case F32 -> f.type() == TensorType.BF16 ? 1e-4 : 2e-5;
          case F16 -> 1.0 / 1024;
          case Q8_0 -> 1.0 / 64;
        };
    float[][] expected = run(reference, type, ROWS);
    for (int r = 0; r < ROWS; r++) {
      float largest = 0;
      for (float y : expected[r]) {
        largest = Math.max(largest, Math.abs(y));
      }
      assertArrayEquals(
          expected[r], whole[r], (float) bound * largest, f + " " + type + " row " + r);
    }
  }

  /**
   * Pairs beside each other and far apart, heads in one cell, matrices of several types, widths
   * that fill no chunk, units without a gate half, parallel units; blocks of a cache of which pairs
   * lie in one or in two.
   */
  @ParameterizedTest
  @CsvSource({
    "Q8_0, Q8_0, NORM, 64, 128, 160, SILU, false, true, false, false, F32 F16 Q8_0",
    "Q8_0, Q4_0, NEOX, 64, 160, 96, GELU_TANH, true, true, false, false, F32 Q8_0",
    "F16, Q8_0, NEOX, 128, 96, 128, SILU, true, true, false, true, F32 Q8_0",
    "BF16, BF16, NEOX, 32, 96, 160, SILU, true, false, false, false, F32 Q8_0",
    "Q4_0, F16, NORM, 32, 64, 96, RELU_SQUARED, false, true, true, false, F32 F16",
    "Q8_0, BF16, NEOX, 96, 96, 64, GELU_ERF, false, true, false, false, F32 Q8_0",
  })
  void familiesRunTogetherAsOneByOne(
      TensorType type,
      TensorType other,
      RopeSpec.Style style,
      int head,
      int hidden,
      int ffn,
      Activation activation,
      boolean biases,
      boolean gated,
      boolean headNorms,
      boolean parallel,
      String caches) {
    check(
        new Family(
            type, other, style, head, hidden, ffn, activation, biases, gated, headNorms, parallel),
        Stream.of(caches.split(" ")).map(KvCache.Type::valueOf).toArray(KvCache.Type[]::new));
  }

  /**
   * 2:4 matrices with dense ones of one input, pairs of activations of which both or one are 2:4,
   * biases, gates, norms, additions.
   */
  @ParameterizedTest
  @CsvSource({
    "Q8_0, Q4_0, NEOX, 64, 128, 192, q o up gate down",
    "Q4_0, Q8_0, NORM, 32, 64, 128, q k v gate",
    "F16, F16, NEOX, 32, 96, 160, k o up down",
    "BF16, BF16, NORM, 32, 96, 96, q v o up gate",
  })
  void twoOfFourRunsTogetherWithDenseMatrices(
      TensorType type,
      TensorType other,
      RopeSpec.Style style,
      int head,
      int hidden,
      int ffn,
      String sparse) {
    twoOfFour = Set.of(sparse.split(" "));
    check(
        new Family(
            type, other, style, head, hidden, ffn, Activation.SILU, true, true, false, false),
        KvCache.Type.F32);
  }

  private long launches(Graph graph) {
    try (Executable e = cuda().compile(graph, ROWS);
        KvCache cache = e.newKvCache(4, KvCache.Type.F16);
        Batch b = e.newBatch(1, 1)) {
      long before = runs();
      b.append(cache, new int[] {3}, 0, 1);
      b.wantLogits(0);
      e.forward(b);
      b.argmax(0);
      return runs() - before;
    }
  }

  private long runs() {
    return gpu.kernelRuns().values().stream().mapToLong(Integer::longValue).sum();
  }

  /** Once 21 launches a layer, for each op and the cutting of each input. */
  @Test
  void aLayerOfALlamaIsFewLaunches() {
    Family f = llama();
    long perLayer = launches(graph(f, 2)) - launches(graph(f, 1));
    // Products with norm, rotation and cache, pieces of attention, these together, products with
    // the additions, activated products.
    assertEquals(6, perLayer);
    twoOfFour = Set.of("q", "k", "v", "o", "up", "gate");
    assertEquals(6, launches(graph(f, 2)) - launches(graph(f, 1)));
  }
}
