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
import io.fletch.graph.KvCache;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.RouteSpec;
import io.fletch.graph.Value;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Each op by itself, declared once, on the reference, the CPU and the software GPU: widths that fit
 * no vector and no block, one to many rows, none that is asked for, and rows of NaN and infinity
 * among others.
 */
class OpsOnEveryBackendTest {
  private static final int ROWS = 33;
  private static final int WINDOW = 7;

  /** Of the largest number of a row; ops that round to types of fewer bits say their own bound. */
  private static final double FLOATS = 2e-5;

  private static final Optional<Gate> UNIT = Optional.of(new Gate(0, Gate.Unit.FFN));

  private static final List<TensorType> TYPES =
      Arrays.stream(TensorType.values())
          .filter(t -> t.isQuantized() || t.name().matches("F32|F16|BF16"))
          .toList();

  /** Matrices of experts, and the width with which they are tried. */
  private static final Map<TensorType, Integer> EXPERTS =
      Map.of(
          TensorType.F32,
          31,
          TensorType.F16,
          1,
          TensorType.BF16,
          207,
          TensorType.Q8_0,
          33,
          TensorType.Q4_K,
          207);

  private static final List<RouteSpec> ROUTES =
      List.of(
          RouteSpec.softmax(5, 2, true),
          new RouteSpec(12, 3, RouteSpec.Scoring.SIGMOID, true, 2.5f, 3, 2));

  @BeforeAll
  static void install() {
    SoftGpu.install();
    SoftGpu.reset().workers(2);
  }

  /**
   * An op whose input is {@code width} numbers of each row.
   *
   * @param bound of the largest number of a row
   * @param cpuBound the same for the CPU, where it may round more
   * @param least largest number that the bound is at least of
   * @param block the width is rounded up to a multiple of it
   * @param cache of attention's keys and values
   */
  private record Case(
      double bound, double cpuBound, double least, int block, KvCache.Type cache, Body body) {
    Case(double bound, Body body) {
      this(bound, 0, body);
    }

    Case(double bound, double least, Body body) {
      this(bound, bound, least, 1, KvCache.Type.F32, body);
    }

    /**
     * Products. The GPU's bound is 2^-21 of the sum of absolute products, 2^-17 for BF16
     * (docs/gpu.md), which is some ten times the largest result. The CPU rounds activations to 8
     * bits for BF16 and quantized matrices.
     */
    static Case product(TensorType type, Body body) {
      double bound =
          switch (type) {
            case F32 -> FLOATS;
            case BF16 -> 2e-4;
            default -> 1e-5;
          };
      double cpuBound =
          switch (type) {
            case F32 -> FLOATS;
            case F16 -> 1e-4;
            case BF16 -> 2e-2;
            default -> 4e-2;
          };
      return new Case(bound, cpuBound, 0, type.blockSize(), KvCache.Type.F32, body);
    }

    int width(int n) {
      return (n + block - 1) / block * block;
    }
  }

  private interface Body {
    Value of(Graph.Builder g, Value x, int width, Tensors t);
  }

  /** Tensors of a graph. */
  private static final class Tensors implements AutoCloseable {
    final TensorStore store = TensorStore.create();
    final SplittableRandom random = new SplittableRandom(17);

    Tensor floats(int... shape) {
      int n = Arrays.stream(shape).reduce(1, (a, b) -> a * b);
      float[] x = new float[n];
      for (int i = 0; i < n; i++) {
        x[i] = (float) (random.nextDouble() - 0.4);
      }
      long[] dims = Arrays.stream(shape).asLongStream().toArray();
      return store.floats("t" + random.nextInt(), x, dims);
    }

    Tensor matrix(TensorType type, int rows, int cols) {
      Tensor t = store.allocate("m" + random.nextInt(), type, rows, cols);
      return RandomMatrix.fill(t, random);
    }

    List<Tensor> matrices(TensorType type, int count, int rows, int cols) {
      return IntStream.range(0, count).mapToObj(i -> matrix(type, rows, cols)).toList();
    }

    @Override
    public void close() {
      store.close();
    }
  }

  /** All ops that a width allows, by name. */
  private static Map<String, Case> cases(int n) {
    Map<String, Case> all = new LinkedHashMap<>();
    all.put(
        "rms norm", new Case(FLOATS, (g, x, w, t) -> g.rmsNorm("y", x, t.floats(w), 1e-5f, 1, 2)));
    all.put(
        "layer norm",
        new Case(
            FLOATS,
            (g, x, w, t) -> g.layerNorm("y", x, t.floats(w), Optional.of(t.floats(w)), 1e-5f)));
    all.put("scale", new Case(FLOATS, (g, x, w, t) -> g.scale("y", x, -1.75f)));
    all.put(
        "affine",
        new Case(
            FLOATS, (g, x, w, t) -> g.affine("y", x, t.floats(w), Optional.of(t.floats(w)), UNIT)));
    all.put(
        "affine of a product",
        new Case(
            FLOATS,
            (g, x, w, t) -> {
              LinearOp square = LinearOp.dense(t.floats(37, w));
              Value whole = g.linear("z", x, square, Optional.empty(), UNIT);
              return g.affine("y", whole, t.floats(37), Optional.empty(), Optional.empty());
            }));
    all.put("soft cap", new Case(1e-6, 3, (g, x, w, t) -> g.softCap("y", x, 3)));
    all.put(
        "gather",
        new Case(
            0,
            (g, x, w, t) -> {
              Tensor columns = t.store.allocate("columns", TensorType.I32, 37);
              for (int i = 0; i < 37; i++) {
                columns.segment().setAtIndex(ValueLayout.JAVA_INT_UNALIGNED, i, i * 7 % (2 * w));
              }
              return g.gather("y", x, Optional.of(g.scale("z", x, 2)), columns);
            }));
    int group = n % 3 == 0 ? 3 : 1;
    all.put("largest of groups", new Case(0, (g, x, w, t) -> g.keepLargest("y", x, 1, group)));
    all.put(
        "replace",
        new Case(0, (g, x, w, t) -> g.replace("y", x, g.scale("z", x, 2), UNIT.orElseThrow())));
    all.put("slice", new Case(0, (g, x, w, t) -> g.slice("y", x, w / 3, w - w / 3)));
    all.put(
        "add", new Case(FLOATS, (g, x, w, t) -> g.add("y", x, g.scale("z", x, 0.3f), 0.7f, UNIT)));
    for (Activation a : Activation.values()) {
      if (a.ordinal() % 2 == n / 2 % 2) {
        // The loop over the elements is that of the others.
        continue;
      }
      all.put(
          a.name(),
          new Case(
              // Where a GELU is close to zero its factor is the difference of numbers close to one.
              a == Activation.GELU_ERF || a == Activation.GELU_TANH ? 2e-4 : FLOATS,
              1e-6,
              (g, x, w, t) -> g.activate("y", a, Optional.of(g.scale("z", x, 0.3f)), x, UNIT)));
    }
    all.put(
        "replace by a product",
        new Case(
            FLOATS,
            (g, x, w, t) -> {
              LinearOp square = LinearOp.dense(t.floats(w, w));
              Value branch = g.linear("z", x, square, Optional.empty(), UNIT);
              return g.replace("y", x, branch, UNIT.orElseThrow());
            }));
    for (TensorType type : TYPES) {
      if (fits(type, n)) {
        all.put(
            "product " + type,
            Case.product(
                type,
                (g, x, w, t) ->
                    g.linear(
                        "y",
                        x,
                        LinearOp.dense(t.matrix(type, 37, w)),
                        Optional.of(t.floats(37)),
                        UNIT)));
      }
    }
    RouteSpec chosen = ROUTES.get(n % 2 == n / 32 % 2 ? 0 : 1);
    all.put(
        "route " + chosen.scoring() + " of " + chosen.experts(),
        new Case(FLOATS, (g, x, w, t) -> route(g, x, w, chosen, t)));
    for (Map.Entry<TensorType, Integer> entry : EXPERTS.entrySet()) {
      TensorType type = entry.getKey();
      if (entry.getValue() == n) {
        RouteSpec spec = ROUTES.getFirst();
        all.put(
            "experts " + type,
            Case.product(
                type,
                (g, x, w, t) -> {
                  Value routing = route(g, x, w, spec, t);
                  int inner = type.isQuantized() ? type.blockSize() : 35;
                  List<Tensor> up = t.matrices(type, spec.experts(), inner, w);
                  List<Tensor> down = t.matrices(type, spec.experts(), 33, inner);
                  Value h = g.expertLinear("up", x, routing, spec, up, false);
                  h = g.expertLinear("down", h, routing, spec, down, true);
                  return g.mix("y", h, routing, spec);
                }));
      }
    }
    if (n > 1) {
      int even = n & -2;
      for (RopeSpec.Style style : RopeSpec.Style.values()) {
        all.put(
            "rope " + style,
            new Case(
                FLOATS,
                (g, x, w, t) -> {
                  float[] f = new float[even / 2];
                  for (int i = 0; i < f.length; i++) {
                    f[i] = (float) Math.pow(100, -(double) i / f.length);
                  }
                  return g.rope("y", x, new RopeSpec(style, f, 1.25f), 1, w);
                }));
      }
      for (KvCache.Type type : KvCache.Type.values()) {
        // Caches of 8 bits want whole blocks, and so do the 16-bit kernels with tensor cores.
        int block = type == KvCache.Type.F32 || type == KvCache.Type.F16 && n == 33 ? 1 : 32;
        all.put(
            "attention " + type,
            // The CPU rounds queries and weights to 16 bits where the cache has codes.
            new Case(
                1e-4,
                type == KvCache.Type.Q8_0 ? 1e-3 : 1e-4,
                0,
                block,
                type,
                (g, x, w, t) -> {
                  Value q = g.scale("q", x, 0.5f);
                  AttentionSpec spec = new AttentionSpec(0, 1, 1, w, w, 0.3f, 0, WINDOW);
                  return g.attention("y", spec, q, x, g.scale("v", x, 2), Optional.empty());
                }));
      }
    }
    return all;
  }

  /** Of two widths that blocks of 32 allow, one each is enough. */
  private static boolean fits(TensorType type, int n) {
    return switch (type.blockSize()) {
      case 1 -> type == TensorType.F32 || n != (type == TensorType.F16 ? 33 : 31);
      case 32 -> n == (type.ordinal() % 2 == 0 ? 33 : 207);
      default -> n == 207;
    };
  }

  private static Value route(Graph.Builder g, Value x, int width, RouteSpec spec, Tensors t) {
    LinearOp router = LinearOp.dense(t.floats(spec.experts(), width));
    Value scores = g.linear("scores", x, router, Optional.empty(), Optional.empty());
    return g.route("route", g.scale("small", scores, 1e-3f), spec, Optional.empty());
  }

  private static Graph graph(String name, int n, Case c, Tensors t) {
    Graph.Builder g = Graph.builder(name);
    g.embedding("embedding", t.floats(1, 32), 1);
    return g.build(g.selectRows("rows", c.body().of(g, g.input("x", 0, n), n, t)));
  }

  /** Rows of sizes from 1e-3 to 1e3; some of them have a number that is none. */
  private static float[][] rows(int n) {
    SplittableRandom random = new SplittableRandom(n);
    float[][] x = new float[ROWS][n];
    for (int r = 0; r < ROWS; r++) {
      double size = Math.pow(10, random.nextInt(-3, 4));
      for (int i = 0; i < n; i++) {
        x[r][i] = (float) (size * (2 * random.nextDouble() - 1));
      }
    }
    x[5][n / 2] = Float.NaN;
    x[19][n - 1] = Float.POSITIVE_INFINITY;
    return x;
  }

  /** Every fourth row is skipped by the ops that have a gate. */
  private static float[][] run(Executable e, KvCache.Type cache, float[][] x, int from, int count) {
    boolean gated = !Gate.ofUnits(e.graph()).isEmpty();
    try (KvCache kv = e.newKvCache(ROWS, cache);
        Batch b = e.newBatch(count, count)) {
      b.append(kv, new int[count], 0, count);
      for (int r = 0; r < count; r++) {
        b.input(r, x[from + r]);
        if (gated && (from + r) % 4 == 2) {
          b.gate(0, Gate.Unit.FFN, r, Gate.SKIP);
        }
        b.wantLogits(r);
      }
      e.forward(b);
      float[][] y = new float[count][e.graph().logits().width()];
      for (int r = 0; r < count; r++) {
        b.logits(r, y[r]);
      }
      return y;
    }
  }

  /** A forward of which nothing is read, and one without rows, which is refused. */
  private static void nothing(Executable e, float[][] x) {
    try (KvCache kv = e.newKvCache(ROWS, KvCache.Type.F32);
        Batch b = e.newBatch(2, 0)) {
      assertThrows(IllegalArgumentException.class, () -> e.forward(b));
      b.append(kv, new int[2], 0, 2);
      b.input(0, x[0]);
      e.forward(b);
      assertEquals(0, b.logitRows());
    }
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 31, 33, 207})
  void opsAgree(int n) {
    List<Backend> backends =
        List.of(
            new ReferenceBackend(),
            new CpuBackend(CpuBackend.Options.defaults().withThreads(2)),
            new CudaBackend(CudaDevices.find().first(), (done, total) -> {}));
    cases(n)
        .forEach((name, c) -> {
          float[][] x = rows(c.width(n));
          List<float[][]> all = new ArrayList<>();
          boolean seesOthers = name.startsWith("attention");
          try (Tensors t = new Tensors()) {
            Graph graph = graph(name, c.width(n), c, t);
            for (Backend backend : backends) {
              String what = name + " of " + n + " on " + backend.name();
              try (Executable e = backend.compile(graph, ROWS)) {
                float[][] y = run(e, c.cache(), x, 0, ROWS);
                if (!all.isEmpty()) {
                  double bound = backend instanceof CpuBackend ? c.cpuBound() : c.bound();
                  check(all.getFirst(), y, bound, c.least(), what, seesOthers, c.block() == 1);
                }
                all.add(y);
                if (!seesOthers && !name.startsWith("rope")) {
                  for (int r : new int[] {5, 6, 32}) {
                    float[] alone = run(e, c.cache(), x, r, 1)[0];
                    assertArrayEquals(y[r], alone, what + ": row " + r + " alone");
                  }
                  if (c.block() > 1 && n == 33) {
                    float[][] most = run(e, c.cache(), x, 1, 31);
                    assertArrayEquals(Arrays.copyOfRange(y, 1, 32), most, what + ": 31 rows");
                  }
                }
                if (n <= 31) {
                  nothing(e, x);
                }
              }
            }
          }
        });
  }

  private static void check(
      float[][] expected,
      float[][] actual,
      double bound,
      double least,
      String what,
      boolean seesOthers,
      boolean exact) {
    for (int r = 0; r < ROWS; r++) {
      double size = least;
      for (float v : expected[r]) {
        size = Float.isFinite(v) ? Math.max(size, Math.abs(v)) : size;
      }
      boolean seesOdd = r >= 5 && r < 5 + WINDOW || r >= 19 && r < 19 + WINDOW;
      for (int i = 0; i < expected[r].length; i++) {
        String where = what + ", row " + r + ", " + i;
        float e = expected[r][i];
        float a = actual[r][i];
        if (seesOthers && seesOdd && !exact) {
          // Two parts of a number times infinity are infinity and no number (docs/gpu.md).
          continue;
        }
        if (Float.isFinite(e)) {
          assertTrue(Math.abs(e - a) <= bound * size, where + ": " + e + " and " + a);
        } else {
          assertTrue(r == 5 || r == 19 || seesOthers && seesOdd, where);
          assertTrue(!Float.isFinite(a), where + ": " + e + " and " + a);
        }
      }
    }
  }
}
