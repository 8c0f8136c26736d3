package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.device.CudaDevices;
import io.fletch.graph.Backend;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.RouteSpec;
import io.fletch.graph.Value;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.quant.LinearOp;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.SplittableRandom;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Sparse, block-diagonal and composed matrices and routed experts, against the reference. */
class CudaMatricesTest {
  private static final int WIDTH = 40;
  private static final int ROWS = 11;

  private final SplittableRandom random = new SplittableRandom(5);

  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  private float next() {
    return (float) (random.nextDouble() - 0.5);
  }

  private Tensor floats(TensorStore store, String name, long... shape) {
    int n = 1;
    for (long d : shape) {
      n = Math.toIntExact(n * d);
    }
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = next();
    }
    return store.floats(name, x, shape);
  }

  /** Numbers of a 16-bit type. */
  private Tensor halves(TensorStore store, TensorType type, String name, long... shape) {
    Tensor t = store.allocate(name, type, shape);
    for (long i = 0; i < t.elements(); i++) {
      short bits =
          type == TensorType.F16
              ? Float.floatToFloat16(next())
              : (short) (Float.floatToRawIntBits(next()) >>> 16);
      t.segment().set(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * i, bits);
    }
    return t;
  }

  /** About a third of the elements; the first row has none. */
  private SparseMatrix bitmap(TensorStore store, String name, TensorType type, int out, int in) {
    int width = (in + 7) / 8;
    Tensor mask = store.allocate(name + ".mask", TensorType.I8, out, width);
    Tensor start = store.allocate(name + ".start", TensorType.I64, out + 1);
    long kept = 0;
    for (int r = 0; r < out; r++) {
      start.segment().set(ValueLayout.JAVA_LONG_UNALIGNED, 8L * r, kept);
      for (int b = 0; b < width; b++) {
        // Each bit with a probability of a quarter.
        int half = random.nextInt(256);
        int bits = r == 0 ? 0 : half & random.nextInt(256);
        if (b == width - 1 && in % 8 != 0) {
          bits &= (1 << in % 8) - 1;
        }
        mask.segment().set(ValueLayout.JAVA_BYTE, (long) r * width + b, (byte) bits);
        kept += Integer.bitCount(bits);
      }
    }
    start.segment().set(ValueLayout.JAVA_LONG_UNALIGNED, 8L * out, kept);
    Tensor values =
        type == TensorType.F32
            ? floats(store, name + ".values", kept)
            : halves(store, type, name + ".values", kept);
    return new SparseMatrix.Bitmap(in, mask, start, values);
  }

  private SparseMatrix twoOfFour(TensorStore store, String name, int out, int in) {
    Tensor index = RandomMatrix.places(store, name + ".index", out, in, random);
    Tensor values = halves(store, TensorType.BF16, name + ".values", out, in / 2);
    return new SparseMatrix.TwoOfFour(index, values);
  }

  private LinearOp map(TensorStore store, String kind, String name, int out, int in) {
    return switch (kind) {
      case "bitmap-F32" -> new LinearOp.Sparse(bitmap(store, name, TensorType.F32, out, in));
      case "bitmap-F16" -> new LinearOp.Sparse(bitmap(store, name, TensorType.F16, out, in));
      case "2:4" -> new LinearOp.Sparse(twoOfFour(store, name, out, in));
      case "block-diagonal" -> new LinearOp.BlockDiagonal(floats(store, name, 4, out / 4, in / 4));
      case "low-rank" ->
          new LinearOp.LowRank(
              LinearOp.dense(floats(store, name + ".u", out, 7)),
              LinearOp.dense(floats(store, name + ".v", 7, in)),
              LinearOp.Inner.SILU);
      case "sum" ->
          new LinearOp.Sum(
              List.of(
                  new LinearOp.Term(0.5f, map(store, "bitmap-F32", name + ".a", out, in)),
                  new LinearOp.Term(-1.5f, map(store, "low-rank", name + ".b", out, in))));
      default -> throw new IllegalArgumentException(kind);
    };
  }

  @ParameterizedTest
  @ValueSource(strings = {"bitmap-F32", "bitmap-F16", "2:4", "block-diagonal", "low-rank", "sum"})
  void matricesAgreeWithTheReference(String kind) {
    try (TensorStore store = TensorStore.create()) {
      Graph.Builder g = Graph.builder(kind);
      Optional<Gate> gate = Optional.of(new Gate(0, Gate.Unit.FFN));
      Value x = g.embedding("embedding", floats(store, "e", 29, WIDTH), 1);
      Value y =
          g.linear(
              "wide",
              x,
              map(store, kind, "w", 68, WIDTH),
              Optional.of(floats(store, "b", 68)),
              gate);
      y = g.linear("narrow", y, map(store, kind, "n", WIDTH, 68), Optional.empty(), gate);
      x = g.selectRows("selected", g.add("add", x, y, 1, gate));
      LinearOp head = LinearOp.dense(floats(store, "head", 29, WIDTH));
      compare(g.build(g.linear("logits", x, head, Optional.empty(), Optional.empty())), true);
    }
  }

  /** 2:4 in the bits of the file, index and codes. */
  @ParameterizedTest
  @EnumSource(
      value = TensorType.class,
      names = {"F16", "BF16", "Q8_0", "Q4_0"})
  void twoOfFourOfEveryTypeAgreesWithTheReference(TensorType type) {
    try (TensorStore store = TensorStore.create()) {
      Graph.Builder g = Graph.builder("2:4 " + type);
      Value x = g.embedding("embedding", floats(store, "e", 29, 128), 1);
      Value y =
          g.linear(
              "narrow",
              x,
              sparse(store, type, 64, 128),
              Optional.of(floats(store, "b", 64)),
              Optional.empty());
      y = g.linear("wide", y, sparse(store, type, 128, 64), Optional.empty(), Optional.empty());
      x = g.selectRows("selected", g.add("add", x, y, 1, Optional.empty()));
      LinearOp head = LinearOp.dense(floats(store, "head", 29, 128));
      compare(g.build(g.linear("logits", x, head, Optional.empty(), Optional.empty())), false);
    }
  }

  private LinearOp sparse(TensorStore store, TensorType type, int out, int in) {
    float[] w = new float[out * in];
    for (int i = 0; i < w.length; i++) {
      // Groups with two, one and no element.
      w[i] = i % 4 == 3 || i % 4 == i / 4 % 3 || random.nextInt(6) == 0 ? 0 : next();
    }
    return new LinearOp.Sparse(
        SparseEncoder.twoOfFour(store.floats("w" + out, w, out, in), type, store));
  }

  @ParameterizedTest
  @ValueSource(ints = {0, 1, 2, 3})
  void expertsAgreeWithTheReference(int variant) {
    RouteSpec spec =
        switch (variant) {
          case 0 -> RouteSpec.softmax(5, 2, true);
          case 1 -> RouteSpec.softmax(67, 7, false);
          case 2 -> new RouteSpec(36, 5, RouteSpec.Scoring.SIGMOID, true, 2.5f, 6, 2);
          default -> new RouteSpec(8, 8, RouteSpec.Scoring.SIGMOID, false, 1, 8, 8);
        };
    TensorType type = variant % 2 == 0 ? TensorType.F32 : TensorType.F16;
    try (TensorStore store = TensorStore.create()) {
      Graph.Builder g = Graph.builder("experts");
      Value x = g.embedding("embedding", floats(store, "e", 29, WIDTH), 4);
      LinearOp router = LinearOp.dense(floats(store, "r", spec.experts(), WIDTH));
      Value scores = g.linear("scores", x, router, Optional.empty(), Optional.empty());
      Optional<Tensor> bias =
          variant >= 2 ? Optional.of(floats(store, "bias", spec.experts())) : Optional.empty();
      Value routing = g.route("route", scores, spec, bias);
      List<Tensor> up = new ArrayList<>();
      List<Tensor> down = new ArrayList<>();
      for (int e = 0; e < spec.experts(); e++) {
        up.add(matrix(store, type, "up" + e, 35, WIDTH));
        down.add(matrix(store, type, "down" + e, WIDTH, 35));
      }
      Value h = g.expertLinear("up", x, routing, spec, up, false);
      h = g.expertLinear("down", h, routing, spec, down, true);
      Value mixed = g.mix("mix", h, routing, spec);
      x = g.selectRows("selected", g.add("add", x, mixed, 1, Optional.empty()));
      LinearOp head = LinearOp.dense(floats(store, "head", 29, WIDTH));
      compare(g.build(g.linear("logits", x, head, Optional.empty(), Optional.empty())), false);
    }
  }

  /** Scores that are no numbers are the least ones, the lowest index first. */
  @ParameterizedTest
  @ValueSource(ints = {0, 1, 2, 3})
  void routersAgreeOnScoresThatAreNoNumbers(int variant) {
    RouteSpec spec =
        switch (variant) {
          case 0 -> RouteSpec.softmax(5, 2, true);
          case 1 -> RouteSpec.softmax(67, 7, false);
          case 2 -> new RouteSpec(36, 5, RouteSpec.Scoring.SIGMOID, true, 2.5f, 6, 2);
          default -> new RouteSpec(8, 8, RouteSpec.Scoring.SIGMOID, false, 1, 8, 8);
        };
    int n = spec.experts();
    SplittableRandom random = new SplittableRandom(variant);
    float[][] scores = new float[ROWS][n];
    for (int r = 0; r < ROWS; r++) {
      for (int e = 0; e < n; e++) {
        scores[r][e] = (float) random.nextDouble(-3, 3);
        boolean strange = r == 1 || r > 1 && random.nextInt(4) == 0;
        if (strange) {
          scores[r][e] = r % 3 == 2 ? Float.NEGATIVE_INFINITY : Float.NaN;
        }
      }
      if (r > 1) {
        scores[r][random.nextInt(n)] = 1;
      }
    }
    try (TensorStore store = TensorStore.create()) {
      Graph.Builder g = Graph.builder("router");
      g.embedding("embedding", floats(store, "e", 29, WIDTH), 1);
      Optional<Tensor> bias =
          variant == 2 ? Optional.of(floats(store, "bias", n)) : Optional.empty();
      Value routing = g.route("route", g.input("scores", 0, n), spec, bias);
      Graph graph = g.build(g.selectRows("selected", routing));
      SoftGpu.reset().workers(2);
      Backend cuda = new CudaBackend(CudaDevices.find().first(), (done, total) -> {});
      float[][] expected = routing(new ReferenceBackend(), graph, scores);
      float[][] actual = routing(cuda, graph, scores);
      for (int r = 0; r < ROWS; r++) {
        for (int k = 0; k < spec.used(); k++) {
          String where = "row " + r + " choice " + k + " of " + Arrays.toString(scores[r]);
          assertEquals(expected[r][spec.used() + k], actual[r][spec.used() + k], where);
          assertEquals(expected[r][k], actual[r][k], 1e-6 * spec.scale(), where);
        }
      }
    }
  }

  private static float[][] routing(Backend backend, Graph graph, float[][] scores) {
    try (Executable e = backend.compile(graph, ROWS);
        KvCache kv = e.newKvCache(ROWS, KvCache.Type.F32);
        Batch b = e.newBatch(ROWS, ROWS)) {
      b.append(kv, new int[ROWS], 0, ROWS);
      for (int r = 0; r < ROWS; r++) {
        b.input(r, scores[r]);
        b.wantLogits(r);
      }
      e.forward(b);
      float[][] all = new float[ROWS][graph.logits().width()];
      for (int r = 0; r < ROWS; r++) {
        b.logits(r, all[r]);
      }
      return all;
    }
  }

  private Tensor matrix(TensorStore store, TensorType type, String name, long... shape) {
    return type == TensorType.F32 ? floats(store, name, shape) : halves(store, type, name, shape);
  }

  private static void compare(Graph graph, boolean gated) {
    for (int rows : new int[] {1, 3, ROWS}) {
      SoftGpu.reset().workers(2);
      Backend cuda = new CudaBackend(CudaDevices.find().first(), (done, total) -> {});
      float[][] expected = run(new ReferenceBackend(), graph, rows, gated);
      float[][] actual = run(cuda, graph, rows, gated);
      for (int r = 0; r < rows; r++) {
        double error = 0;
        double size = 0;
        for (int i = 0; i < expected[r].length; i++) {
          error = Math.max(error, Math.abs(expected[r][i] - actual[r][i]));
          size = Math.max(size, Math.abs(expected[r][i]));
        }
        assertTrue(error <= 1e-5 * size, "row " + r + ": error=" + error + " of " + size);
      }
    }
  }

  private static float[][] run(Backend backend, Graph graph, int rows, boolean gated) {
    int[] tokens = new SplittableRandom(9).ints(rows, 0, 29).toArray();
    try (Executable e = backend.compile(graph, ROWS);
        KvCache kv = e.newKvCache(ROWS, KvCache.Type.F32);
        Batch b = e.newBatch(ROWS, ROWS)) {
      b.append(kv, tokens, 0, rows);
      if (gated) {
        b.gate(0, Gate.Unit.FFN, rows - 1, Gate.SKIP);
      }
      for (int r = 0; r < rows; r++) {
        b.wantLogits(r);
      }
      e.forward(b);
      float[][] logits = new float[rows][29];
      for (int r = 0; r < rows; r++) {
        b.logits(r, logits[r]);
      }
      return logits;
    }
  }
}
