package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.device.CudaDevices;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Plan;
import io.fletch.graph.Value;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.lang.foreign.ValueLayout;
import java.util.Optional;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * Products on tensor cores against sums in double of what the weights stand for. Rows of the
 * embedding are the activations, the product's rows the logits.
 */
class CudaProductsTest {
  private SplittableRandom random;
  private TensorStore store;

  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  @BeforeEach
  void open() {
    store = TensorStore.create();
    random = new SplittableRandom(11);
    SoftGpu.reset().workers(2);
  }

  @AfterEach
  void close() {
    store.close();
  }

  private Tensor matrix(String name, TensorType type, int rows, int cols) {
    return RandomMatrix.fill(store.allocate(name, type, rows, cols), random);
  }

  private record Product(Graph graph, Tensor activations, Tensor weights, Optional<Tensor> bias) {
    int out() {
      return Math.toIntExact(weights.rows());
    }

    /** A graph that multiplies rows of the activations. */
    static Product of(Tensor activations, Tensor weights, Optional<Tensor> bias) {
      return of(activations, LinearOp.dense(weights), weights, bias);
    }

    /** The same with a matrix of another form, whose elements are {@code weights}. */
    static Product of(Tensor activations, LinearOp op, Tensor weights, Optional<Tensor> bias) {
      Graph.Builder g = Graph.builder("product");
      Value x = g.embedding("x", activations, 1);
      x = g.selectRows("rows", x);
      Value y = g.linear("y", x, op, bias, Optional.empty());
      return new Product(g.build(y), activations, weights, bias);
    }

    /** What the device gives for the first rows. */
    float[][] run(int rows, int maxRows) {
      try (Executable e = compile(maxRows);
          KvCache cache = e.newKvCache(maxRows, KvCache.Type.F32);
          Batch b = e.newBatch(rows, rows)) {
        int[] tokens = new int[rows];
        for (int r = 0; r < rows; r++) {
          tokens[r] = r;
        }
        b.append(cache, tokens, 0, rows);
        for (int r = 0; r < rows; r++) {
          b.wantLogits(r);
        }
        e.forward(b);
        float[][] y = new float[rows][out()];
        for (int r = 0; r < rows; r++) {
          b.logits(r, y[r]);
        }
        return y;
      }
    }

    Executable compile(int maxRows) {
      return new CudaBackend(CudaDevices.find().first(), (done, total) -> {})
          .compile(graph, maxRows);
    }

    /** Compares with sums in double; the bound is a part of the sum of absolute products. */
    void check(float[][] y, double bound) {
      float[] w = Dequantizer.toFloats(weights);
      float[] x = Dequantizer.toFloats(activations);
      int n = Math.toIntExact(weights.cols());
      for (int r = 0; r < y.length; r++) {
        for (int o = 0; o < out(); o++) {
          double sum = bias.isPresent() ? Dequantizer.element(bias.get(), o) : 0;
          double size = Math.abs(sum);
          for (int i = 0; i < n; i++) {
            double p = (double) w[o * n + i] * x[r * n + i];
            sum += p;
            size += Math.abs(p);
          }
          double error = Math.abs(sum - y[r][o]);
          assertTrue(error <= bound * size, r + "," + o + ": " + error / size + " " + y[r][o]);
        }
      }
    }
  }

  private Tensor activations(int rows, int cols) {
    Tensor t = matrix("x" + random.nextInt(), TensorType.F32, rows, cols);
    // Rows of very different sizes, and elements far below the row's largest.
    for (int r = 0; r < rows; r++) {
      float size = (float) Math.pow(10, random.nextInt(-9, 10));
      for (int c = 0; c < cols; c++) {
        long at = 4L * (r * cols + c);
        float v = t.segment().get(ValueLayout.JAVA_FLOAT_UNALIGNED, at) * size;
        float part = random.nextInt(4) == 0 ? 1e-4f : 1;
        t.segment().set(ValueLayout.JAVA_FLOAT_UNALIGNED, at, v * part);
      }
    }
    return t;
  }

  /**
   * Activations have 22 bits, for BF16 matrices 17; sums are float. Rows of odd numbers, more than
   * one tile and less than one, the skinny and both wide kernels; every row has the bits that it
   * has alone.
   */
  @ParameterizedTest
  @EnumSource(
      names = {
        "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K",
        "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"
      })
  void productsAreThoseOfTheReferenceForAnyNumberOfRows(TensorType type) {
    int block = type.blockSize();
    int in = block == 256 ? 512 : block == 32 ? 288 : 207;
    int out = random.nextInt(71, 90);
    Tensor x = activations(out, in);
    Optional<Tensor> bias =
        type.ordinal() % 2 == 0
            ? Optional.of(matrix("b", TensorType.F32, 1, out))
            : Optional.empty();
    bias = bias.map(b -> store.floats("bias", Dequantizer.toFloats(b), out));
    Product p = Product.of(x, matrix("w", type, out, in), bias);
    double bound = Math.scalb(1.0, type == TensorType.BF16 ? -17 : -21);
    float[][] all = p.run(67, 67);
    p.check(all, bound);
    int[] counts = {1, 13};
    for (int rows : counts) {
      float[][] y = p.run(rows, rows > 16 ? 64 : 16);
      for (int r = 0; r < rows; r++) {
        assertArrayEquals(all[r], y[r], rows + " rows, row " + r);
      }
    }
  }

  /** Runs of several chunks, which follow each other in registers and stages. */
  @ParameterizedTest
  @EnumSource(names = {"F16", "Q8_0", "Q5_0", "Q6_K"})
  void longRuns(TensorType type) {
    int in = type == TensorType.F16 ? 2200 : 2304;
    Tensor x = activations(18, in);
    Product p = Product.of(x, matrix("w", type, 18, in), Optional.empty());
    float[][] all = p.run(18, 18);
    p.check(all, Math.scalb(1.0, -20));
    float[][] three = p.run(3, 3);
    for (int r = 0; r < 3; r++) {
      assertArrayEquals(all[r], three[r]);
    }
  }

  /** A 2:4 matrix with every legal pair of places, and the matrix with its zeros. */
  private record TwoOfFour(LinearOp op, Tensor whole, boolean[] kept) {}

  private TwoOfFour twoOfFour(TensorType type, int out, int in) {
    Tensor index = RandomMatrix.places(store, "index", out, in, random);
    boolean[] kept = new boolean[out * in];
    for (int four = 0; four < out * in / 4; four++) {
      int i = four % (in / 4);
      long at = four / (in / 4) * index.dim(1) + i / 2;
      int nibble = index.segment().get(ValueLayout.JAVA_BYTE, at) >> i % 2 * 4 & 15;
      kept[4 * four + (nibble & 3)] = true;
      kept[4 * four + (nibble >> 2)] = true;
    }
    SparseMatrix m = new SparseMatrix.TwoOfFour(index, matrix("kept", type, out, in / 2));
    float[] all = new float[out * in];
    float[] row = new float[in];
    float[] scratch = new float[m.rowScratch()];
    for (int o = 0; o < out; o++) {
      m.row(o, row, scratch);
      System.arraycopy(row, 0, all, o * in, in);
    }
    return new TwoOfFour(new LinearOp.Sparse(m), store.floats("whole", all, out, in), kept);
  }

  /**
   * 2:4 matrices on tensor cores, with the bounds of dense ones: rows and outputs that fill no
   * tile, columns that fill no chunk and, where values come one by one, no group and no byte of
   * places.
   */
  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16", "Q8_0", "Q4_0"})
  void twoOfFourIsThatOfTheReferenceForAnyNumberOfRows(TensorType type) {
    int in = type.isQuantized() ? 320 : 204;
    int out = 75;
    TwoOfFour w = twoOfFour(type, out, in);
    Tensor bias = matrix("b", TensorType.F32, 1, out);
    Tensor x = activations(out, in);
    Optional<Tensor> b = Optional.of(store.floats("bias", Dequantizer.toFloats(bias), out));
    Product p = Product.of(x, w.op(), w.whole(), b);
    double bound = Math.scalb(1.0, type == TensorType.BF16 ? -17 : -21);
    float[][] all = p.run(67, 67);
    p.check(all, bound);
    int[] counts = {1, 7, 8, 9, 17, 33};
    for (int rows : counts) {
      float[][] y = p.run(rows, rows);
      for (int r = 0; r < rows; r++) {
        assertArrayEquals(all[r], y[r], rows + " rows, row " + r);
      }
    }
    try (Executable e = p.compile(67)) {
      for (Plan plan : e.plans()) {
        String name = (plan.maxRows() <= 16 ? "skinny_2of4_" : "wide_2of4_") + type;
        assertTrue(plan.steps().stream().anyMatch(s -> s.kernel().startsWith(name)), name);
      }
    }
  }

  /** Runs of several chunks. */
  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16", "Q8_0", "Q4_0"})
  void longRunsOfTwoOfFour(TensorType type) {
    TwoOfFour w = twoOfFour(type, 18, 2304);
    Product p = Product.of(activations(18, 2304), w.op(), w.whole(), Optional.empty());
    float[][] all = p.run(18, 18);
    p.check(all, Math.scalb(1.0, type == TensorType.BF16 ? -17 : -20));
    float[][] three = p.run(3, 3);
    for (int r = 0; r < 3; r++) {
      assertArrayEquals(all[r], three[r]);
    }
  }

  /** The least columns, one output, one row. */
  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16", "Q8_0", "Q4_0"})
  void smallTwoOfFour(TensorType type) {
    int n = type.isQuantized() ? 64 : 4;
    TwoOfFour w = twoOfFour(type, 1, n);
    Product p = Product.of(activations(1, n), w.op(), w.whole(), Optional.empty());
    double bound = Math.scalb(1.0, type == TensorType.BF16 ? -17 : -21);
    p.check(p.run(1, 1), bound);
    p.check(p.run(1, 40), bound);
  }

  /**
   * What is not finite reaches the outputs that keep its column, and no other row. The others of
   * its row may be NaN, as those of a matrix with zeros: the ISA does not say what a column that is
   * not kept does.
   */
  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16", "Q8_0", "Q4_0"})
  void whatIsNotFiniteReachesTheOutputsThatKeepItsColumn(TensorType type) {
    int n = 256;
    int out = 37;
    Tensor x = activations(out, n);
    float[] odd = {Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY};
    for (int i = 0; i < odd.length; i++) {
      long at = 4L * ((2 * i + 1) * n + 31 * i);
      x.segment().set(ValueLayout.JAVA_FLOAT_UNALIGNED, at, odd[i]);
    }
    TwoOfFour m = twoOfFour(type, out, n);
    Product p = Product.of(x, m.op(), m.whole(), Optional.empty());
    float[] w = Dequantizer.toFloats(m.whole());
    float[] v = Dequantizer.toFloats(x);
    for (int maxRows : new int[] {8, 37}) {
      float[][] y = p.run(8, maxRows);
      for (int r = 0; r < 8; r++) {
        for (int o = 0; o < out; o++) {
          double sum = 0;
          boolean dropped = false;
          for (int i = 0; i < n; i++) {
            boolean kept = m.kept()[o * n + i];
            sum += kept ? (double) w[o * n + i] * v[r * n + i] : 0;
            dropped |= !kept && !Float.isFinite(v[r * n + i]);
          }
          if (dropped) {
            assertTrue(Float.isFinite(y[r][o]) || Float.isNaN(y[r][o]), r + "," + o);
          } else if (Double.isFinite(sum)) {
            assertTrue(Float.isFinite(y[r][o]), r + "," + o);
          } else {
            assertEquals((float) sum, y[r][o], r + "," + o);
          }
        }
      }
    }
  }

  /** Fewer columns than one chunk, one output, one row. */
  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "IQ4_NL", "MXFP4"})
  void smallShapes(TensorType type) {
    int n = type.isQuantized() ? 32 : 1;
    Tensor x = activations(1, n);
    Product p = Product.of(x, matrix("w", type, 1, n), Optional.empty());
    double bound = Math.scalb(1.0, type == TensorType.BF16 ? -17 : -21);
    p.check(p.run(1, 1), bound);
    p.check(p.run(1, 40), bound);
  }

  /** What is not finite reaches all outputs of its row as in the reference, and no other row. */
  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16", "Q8_0", "Q4_0", "Q6_K", "Q4_K", "Q2_K", "Q3_K"})
  void whatIsNotFiniteStaysInItsRow(TensorType type) {
    int n = 256;
    int out = 37;
    Tensor x = activations(out, n);
    float[] odd = {
      Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY, Float.intBitsToFloat(0x7f800001)
    };
    for (int i = 0; i < odd.length; i++) {
      long at = 4L * ((2 * i + 1) * n + 31 * i);
      x.segment().set(ValueLayout.JAVA_FLOAT_UNALIGNED, at, odd[i]);
    }
    Product p = Product.of(x, matrix("w", type, out, n), Optional.empty());
    float[] w = Dequantizer.toFloats(p.weights());
    float[] v = Dequantizer.toFloats(x);
    for (int maxRows : new int[] {8, 37}) {
      float[][] y = p.run(8, maxRows);
      for (int r = 0; r < 8; r++) {
        for (int o = 0; o < out; o++) {
          double sum = 0;
          for (int i = 0; i < n; i++) {
            sum += (double) w[o * n + i] * v[r * n + i];
          }
          if (Double.isFinite(sum)) {
            assertTrue(Float.isFinite(y[r][o]), r + "," + o);
          } else if (type == TensorType.Q4_K || type == TensorType.Q2_K) {
            // A code and its offset are multiplied apart: infinity may become infinity less
            // infinity.
            assertFalse(Float.isFinite(y[r][o]), r + "," + o);
          } else {
            assertEquals((float) sum, y[r][o], r + "," + o);
          }
        }
      }
    }
  }

  @Test
  void theLargestAndSmallestFloatsAreMultiplied() {
    for (TensorType type : new TensorType[] {TensorType.F16, TensorType.BF16}) {
      float[] rows = {
        Float.MAX_VALUE, -Float.MAX_VALUE, Float.MIN_NORMAL, 1e-38f, 0, -0f, 3e-30f, 65_520
      };
      Tensor x = store.floats("x" + type, rows, 8, 1);
      Tensor w = store.allocate("w" + type, type, 8, 1);
      for (int i = 0; i < 8; i++) {
        short half = type == TensorType.F16 ? Float.floatToFloat16(0.5f) : (short) 0x3f00;
        w.segment().set(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i, half);
      }
      float[][] y = Product.of(x, w, Optional.empty()).run(8, 8);
      for (int r = 0; r < 8; r++) {
        float expected = rows[r] * 0.5f;
        float within = Math.abs(expected) * Math.scalb(1f, type == TensorType.F16 ? -21 : -16);
        assertEquals(expected, y[r][3], within + Float.MIN_NORMAL / 64, type + " " + rows[r]);
      }
    }
  }

  /** Packed tables give the file's numbers, bit for bit. */
  @ParameterizedTest
  @EnumSource(
      names = {
        "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
        "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"
      })
  void embeddingsAreExact(TensorType type) {
    int n = type.blockSize() == 256 ? 512 : type.blockSize() == 32 ? 96 : 33;
    Tensor table = matrix("table", type, n, n);
    Graph.Builder g = Graph.builder("table");
    Graph graph = g.build(g.selectRows("rows", g.embedding("x", table, 1)));
    try (Executable e =
            new CudaBackend(CudaDevices.find().first(), (done, total) -> {}).compile(graph, 8);
        KvCache cache = e.newKvCache(8, KvCache.Type.F32);
        Batch b = e.newBatch(8, 8)) {
      int[] tokens = {0, 1, 7, 8, 15, 16, 31, 32};
      b.append(cache, tokens, 0, 8);
      for (int r = 0; r < 8; r++) {
        b.wantLogits(r);
      }
      e.forward(b);
      float[] y = new float[n];
      float[] expected = new float[n];
      for (int r = 0; r < 8; r++) {
        b.logits(r, y);
        Dequantizer.row(table, tokens[r], expected, 0);
        assertArrayEquals(expected, y);
      }
    }
  }

  /** Each branch of a gate computes at its own byte and gives zeros otherwise, in both kernels. */
  @Test
  void gatesChooseTheRows() {
    Tensor x = activations(40, 64);
    Tensor w = matrix("w", TensorType.Q5_0, 40, 64);
    float[][] all = Product.of(x, w, Optional.empty()).run(20, 20);
    for (Gate.Branch branch : Gate.Branch.values()) {
      Graph.Builder g = Graph.builder("gated");
      Value v = g.embedding("x", x, 1);
      Optional<Gate> gate = Optional.of(new Gate(0, Gate.Unit.FFN, branch));
      v = g.linear("y", v, LinearOp.dense(w), Optional.empty(), gate);
      Graph graph = g.build(g.selectRows("rows", v));
      for (int rows : new int[] {1, 20}) {
        try (Executable e =
                new CudaBackend(CudaDevices.find().first(), (done, total) -> {})
                    .compile(graph, rows);
            KvCache cache = e.newKvCache(rows, KvCache.Type.F32);
            Batch b = e.newBatch(rows, rows)) {
          for (byte value : new byte[] {Gate.RUN, Gate.SKIP, Gate.SUBSTITUTE}) {
            int[] tokens = IntStream.range(0, rows).toArray();
            b.clear();
            b.append(cache, tokens, 0, rows);
            for (int r = 0; r < rows; r++) {
              // Only every third row has the value, the others the one at which nothing runs.
              b.gate(0, Gate.Unit.FFN, r, r % 3 == 0 ? value : Gate.SKIP);
              b.wantLogits(r);
            }
            e.forward(b);
            float[] y = new float[40];
            for (int r = 0; r < rows; r++) {
              b.logits(r, y);
              boolean runs = r % 3 == 0 && value == branch.runsAt();
              assertArrayEquals(runs ? all[r] : new float[40], y, rows + " rows, row " + r);
            }
          }
        }
      }
    }
  }

  @Test
  void manyRowsTakeTheWideKernel() {
    Tensor x = activations(80, 64);
    Product p = Product.of(x, matrix("w", TensorType.Q8_0, 80, 64), Optional.empty());
    try (Executable e = p.compile(80)) {
      for (Plan plan : e.plans()) {
        String name = plan.maxRows() <= 16 ? "skinny_Q8_0" : "wide_Q8_0";
        assertTrue(plan.steps().stream().anyMatch(s -> s.kernel().startsWith(name)), name);
      }
    }
  }
}
