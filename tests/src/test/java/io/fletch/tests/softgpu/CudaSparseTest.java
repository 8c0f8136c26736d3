package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fletch.ffm.device.CudaDevices;
import io.fletch.graph.Backend;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Value;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.quant.LinearOp;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.util.Arrays;
import java.util.Optional;
import java.util.SplittableRandom;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Products with sparse matrices that lie on the device in their own bytes. */
class CudaSparseTest {
  private static final int ROWS = 11;

  private final SplittableRandom random = new SplittableRandom(11);

  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  private float next() {
    return (float) (random.nextDouble() - 0.5);
  }

  /** Rows of one density, and with a negative one each row of its own: none, all, any. */
  private SparseMatrix matrix(TensorStore store, String kind, int out, int in, double density) {
    float[] x = new float[out * in];
    for (int r = 0; r < out; r++) {
      double d = density >= 0 ? density : Math.clamp(random.nextDouble(-0.5, 1.5), 0, 1);
      for (int c = 0; c < in; c++) {
        x[r * in + c] = random.nextDouble() < d ? next() : 0;
      }
    }
    Tensor dense = store.floats("w", x, out, in);
    return switch (kind) {
      case "Q8" -> SparseEncoder.bitmapCodes(dense, 8, store);
      case "Q4" -> SparseEncoder.bitmapCodes(dense, 4, store);
      default -> SparseEncoder.bitmap(dense, TensorType.valueOf(kind), store);
    };
  }

  private static Graph graph(TensorStore store, SparseMatrix m) {
    int in = Math.toIntExact(m.in());
    Graph.Builder g = Graph.builder("sparse");
    g.embedding("embedding", store.floats("e", new float[2], 2, 1), 1);
    Value x = g.input("x", 0, in);
    Value y = g.linear("y", x, new LinearOp.Sparse(m), Optional.empty(), Optional.empty());
    return g.build(g.selectRows("selected", y));
  }

  private static float[][] run(Executable e, float[][] x, int from, int rows, int out) {
    try (KvCache kv = e.newKvCache(ROWS, KvCache.Type.F32);
        Batch b = e.newBatch(ROWS, ROWS)) {
      b.append(kv, new int[rows], 0, rows);
      for (int r = 0; r < rows; r++) {
        b.input(r, x[from + r]);
        b.wantLogits(r);
      }
      e.forward(b);
      float[][] y = new float[rows][out];
      for (int r = 0; r < rows; r++) {
        b.logits(r, y[r]);
      }
      return y;
    }
  }

  private void check(SparseMatrix m, Graph graph, float[][] x) {
    SoftGpu.reset().workers(2);
    Backend cuda = new CudaBackend(CudaDevices.find().first(), (done, total) -> {});
    try (Executable e = cuda.compile(graph, ROWS)) {
      check(m, e, x);
    }
  }

  private void check(SparseMatrix m, Executable e, float[][] x) {
    int out = Math.toIntExact(m.out());
    float[][] all = run(e, x, 0, ROWS, out);
    int in = Math.toIntExact(m.in());
    float[] w = SparseMatrix.toFloats(m);
    for (int r = 0; r < ROWS; r++) {
      for (int o = 0; o < out; o++) {
        double sum = 0;
        double size = 0;
        for (int c = 0; c < in; c++) {
          double product = (double) w[o * in + c] * x[r][c];
          sum += product;
          size += Math.abs(product);
        }
        String where = m.kind() + " " + m.valueType() + " of " + in + " at " + r + ", " + o;
        if (Double.isFinite(sum)) {
          // A lane adds one after the other, then five additions follow.
          double bound = Math.scalb(size, -24) * ((in + 127) / 128 * 4 + 6);
          assertEquals(sum, all[r][o], bound + 1e-38, where);
        } else {
          assertEquals((float) sum, all[r][o], where);
        }
      }
    }
    for (int rows : new int[] {1, 9}) {
      int from = random.nextInt(ROWS - rows + 1);
      float[][] some = run(e, x, from, rows, out);
      for (int r = 0; r < rows; r++) {
        assertArrayEquals(all[from + r], some[r], rows + " rows");
      }
    }
  }

  private float[][] activations(int in) {
    float[][] x = new float[ROWS][in];
    for (float[] row : x) {
      for (int c = 0; c < in; c++) {
        row[c] = next();
      }
    }
    return x;
  }

  @ParameterizedTest
  @ValueSource(strings = {"F32", "F16", "BF16", "Q8", "Q4"})
  void productsAreThoseOfTheMatrixWithZeros(String kind) {
    int unit = kind.startsWith("Q") ? 32 : 1;
    double[] densities = {-1, 0.02, 1, 0, 0.5, -1};
    int[] widths = {1, 1100, 4 * 33, 640, 2048, 63};
    for (int i = 0; i < widths.length; i++) {
      int in = (widths[i] + unit - 1) / unit * unit;
      try (TensorStore store = TensorStore.create()) {
        SparseMatrix m = matrix(store, kind, 1 + random.nextInt(6), in, densities[i]);
        check(m, graph(store, m), activations(in));
      }
    }
  }

  /** Zero times what is no finite number is no number, as with the dense matrix. */
  @ParameterizedTest
  @ValueSource(strings = {"F32", "F16", "BF16", "Q8", "Q4"})
  void numbersThatAreNotFiniteReachTheirRowsOnly(String kind) {
    for (int in : new int[] {160, 256}) {
      try (TensorStore store = TensorStore.create()) {
        SparseMatrix m = matrix(store, kind, 6, in, 0.9);
        float[][] x = activations(in);
        x[1][in - 1] = Float.NaN;
        x[2][3] = Float.POSITIVE_INFINITY;
        x[4][130] = Float.NEGATIVE_INFINITY;
        x[4][in - 2] = Float.POSITIVE_INFINITY;
        // Codes of large activations are scaled before they are multiplied.
        x[5][7] = 3e37f;
        check(m, graph(store, m), x);
      }
    }
  }

  /** Blocks narrower than a warp and wider ones, rows of blocks with none. */
  @ParameterizedTest
  @EnumSource(
      value = TensorType.class,
      names = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0"})
  void productsWithBlocksAreThoseOfTheMatrixWithZeros(TensorType type) {
    int[][] shapes = {{3, 64}, {1, 32}, {2, 96}, {4, 8}, {1, 1}, {2, 12}};
    for (int[] shape :
        Arrays.copyOf(
            shapes, type == TensorType.F32 ? shapes.length : type.isQuantized() ? 2 : 4)) {
      int out = 3 * shape[0];
      int in = 5 * shape[1];
      try (TensorStore store = TensorStore.create()) {
        float[] x = new float[out * in];
        for (int b = 0; b < 15; b++) {
          boolean kept = b / 5 != 1 && random.nextBoolean();
          for (int i = 0; i < shape[0] * shape[1]; i++) {
            int at = (b / 5 * shape[0] + i / shape[1]) * in + b % 5 * shape[1] + i % shape[1];
            x[at] = kept ? next() : 0;
          }
        }
        SparseMatrix m =
            SparseEncoder.block(store.floats("w", x, out, in), shape[0], shape[1], type, store);
        check(m, graph(store, m), activations(in));
      }
    }
  }
}
