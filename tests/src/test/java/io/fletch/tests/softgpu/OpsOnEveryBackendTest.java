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

  @BeforeAll
  static void install() {
    SoftGpu.install();
    SoftGpu.reset().workers(2);
  }

  /**
   * An op whose input is {@code width} numbers of each row.
   *
   * @param bound of the largest number of a row
   * @param least largest number that the bound is at least of
   */
  private record Case(double bound, double least, Body body) {
    Case(double bound, Body body) {
      this(bound, 0, body);
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
      if (type == TensorType.F32) {
        return floats(rows, cols);
      }
      Tensor t = store.allocate("m" + random.nextInt(), type, rows, cols);
      for (long i = 0; i < t.elements(); i++) {
        float v = (float) (random.nextDouble() - 0.4);
        short bits =
            type == TensorType.F16
                ? Float.floatToFloat16(v)
                : (short) (Float.floatToRawIntBits(v) >>> 16);
        t.segment().set(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * i, bits);
      }
      return t;
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
      all.put(
          a.name(),
          new Case(
              // Where a GELU is close to zero its factor is the difference of numbers close to one.
              a == Activation.GELU_ERF || a == Activation.GELU_TANH ? 2e-4 : FLOATS,
              1e-6,
              (g, x, w, t) -> g.activate("y", a, Optional.of(g.scale("z", x, 0.3f)), x, UNIT)));
    }
    for (TensorType type : List.of(TensorType.F32, TensorType.F16, TensorType.BF16)) {
      // The CPU rounds activations to BF16 for matrices of it.
      double bound = type == TensorType.BF16 ? 2e-2 : type == TensorType.F16 ? 1e-4 : FLOATS;
      all.put(
          "product " + type,
          new Case(
              bound,
              (g, x, w, t) ->
                  g.linear(
                      "y",
                      x,
                      LinearOp.dense(t.matrix(type, 37, w)),
                      Optional.of(t.floats(37)),
                      UNIT)));
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
      all.put(
          "attention",
          new Case(
              1e-4,
              (g, x, w, t) -> {
                Value q = g.scale("q", x, 0.5f);
                AttentionSpec spec = new AttentionSpec(0, 1, 1, w, w, 0.3f, 0, WINDOW);
                return g.attention("y", spec, q, x, g.scale("v", x, 2), Optional.empty());
              }));
    }
    return all;
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

  private static float[][] run(Executable e, float[][] x, int from, int count) {
    try (KvCache kv = e.newKvCache(ROWS, KvCache.Type.F32);
        Batch b = e.newBatch(count, count)) {
      b.append(kv, new int[count], 0, count);
      for (int r = 0; r < count; r++) {
        b.input(r, x[from + r]);
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
    float[][] x = rows(n);
    cases(n)
        .forEach((name, c) -> {
          List<float[][]> all = new ArrayList<>();
          try (Tensors t = new Tensors()) {
            Graph graph = graph(name, n, c, t);
            for (Backend backend : backends) {
              String what = name + " of " + n + " on " + backend.name();
              try (Executable e = backend.compile(graph, ROWS)) {
                float[][] y = run(e, x, 0, ROWS);
                if (!all.isEmpty()) {
                  check(all.getFirst(), y, c, what, name.equals("attention"));
                }
                all.add(y);
                if (!name.equals("attention") && !name.startsWith("rope")) {
                  for (int r : new int[] {0, 5, 6, 32}) {
                    assertArrayEquals(y[r], run(e, x, r, 1)[0], what + ": row " + r + " alone");
                  }
                }
                nothing(e, x);
              }
            }
          }
        });
  }

  private static void check(
      float[][] expected, float[][] actual, Case c, String what, boolean seesOthers) {
    for (int r = 0; r < ROWS; r++) {
      double size = c.least();
      for (float v : expected[r]) {
        size = Float.isFinite(v) ? Math.max(size, Math.abs(v)) : size;
      }
      for (int i = 0; i < expected[r].length; i++) {
        String where = what + ", row " + r + ", " + i;
        float e = expected[r][i];
        float a = actual[r][i];
        if (seesOthers && (r >= 5 && r < 5 + WINDOW || r >= 19 && r < 19 + WINDOW)) {
          // What the numbers of the odd rows become, and whether they hide behind a weight of zero.
          continue;
        }
        if (Float.isFinite(e)) {
          assertTrue(Math.abs(e - a) <= c.bound() * size, where + ": " + e + " and " + a);
        } else {
          assertTrue(r == 5 || r == 19, where);
          assertTrue(!Float.isFinite(a), where + ": " + e + " and " + a);
        }
      }
    }
  }
}
