package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fletch.graph.TestGraphs;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.SplittableRandom;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.ShrinkingMode;
import net.jqwik.api.constraints.IntRange;

/**
 * Products with sparse matrices for random shapes, values, alignments of rows and densities from 0
 * to 1: every kernel set gives the bits of the scalar one, a bitmap those of the dense product
 * (specs weights 6, property 19), and all are right within rounding.
 */
class SparseKernelsPropertyTest {
  @Provide
  Arbitrary<Kernels> kernelSets() {
    return Arbitraries.of(KernelSets.available());
  }

  @Provide
  Arbitrary<TensorType> floats() {
    return Arbitraries.of(TensorType.F32, TensorType.F16, TensorType.BF16);
  }

  @Provide
  Arbitrary<TensorType> values() {
    return Arbitraries.of(
        TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.Q4_0);
  }

  private static float[] run(
      Kernels.Matmul kernel,
      MemorySegment w,
      int out,
      int in,
      TestGraphs graphs,
      float[] x,
      int n) {
    long stride = KernelSets.scalar().activationBytes(Kernels.ActivationFormat.F32, in) / 4;
    try (TensorStore store = TensorStore.create()) {
      MemorySegment xs = store.allocate("x", TensorType.F32, n, stride).segment();
      for (int r = 0; r < n; r++) {
        MemorySegment.copy(x, r * in, xs, ValueLayout.JAVA_FLOAT, 4 * r * stride, in);
      }
      MemorySegment ys = store.allocate("y", TensorType.F32, n, out).segment();
      int cut = graphs.random().nextInt(out + 1);
      kernel.run(w, out, 0, cut, xs, 0, n, ys, 0, out);
      kernel.run(w, out, cut, out, xs, 0, n, ys, 0, out);
      return ys.toArray(ValueLayout.JAVA_FLOAT);
    }
  }

  /** {@code sum w x} in double, and a bound of the error of a float sum. */
  private static void assertRight(float[] w, int out, int in, float[] x, int n, float[] y) {
    for (int r = 0; r < n; r++) {
      for (int o = 0; o < out; o++) {
        double sum = 0;
        double size = 0;
        for (int i = 0; i < in; i++) {
          double product = (double) w[o * in + i] * x[r * in + i];
          sum += product;
          size += Math.abs(product);
        }
        assertEquals(sum, y[r * out + o], 2.0 * in * 0x1p-24 * size + 1e-30, "output " + o);
      }
    }
  }

  @Property(tries = 60, shrinking = ShrinkingMode.OFF)
  void bitmapProductsAreDenseProductsBitForBit(
      @ForAll long seed,
      @ForAll("kernelSets") Kernels kernels,
      @ForAll("floats") TensorType type,
      @ForAll @IntRange(min = 0, max = 10) int tenths,
      @ForAll @IntRange(min = 1, max = 9) int rows) {
    SplittableRandom random = new SplittableRandom(seed);
    int out = 1 + random.nextInt(20);
    int in = random.nextBoolean() ? 16 * (1 + random.nextInt(12)) : 1 + random.nextInt(150);
    try (TestGraphs graphs = new TestGraphs(seed);
        TensorStore store = TensorStore.create()) {
      Tensor masked = graphs.masked("w", out, in, tenths / 10.0);
      Tensor dense = graphs.encode("d", type, Dequantizer.toFloats(masked), out, in);
      SparseMatrix.Bitmap m = SparseEncoder.bitmap(dense, type, store);
      float[] x = graphs.floats(rows * in, 1);
      Kernels.Matmul sparse = kernels.bitmapMatmul(m);
      float[] actual = run(sparse, m.values().segment(), out, in, graphs, x, rows);
      Kernels.Matmul full = KernelSets.scalar().matmul(type, in);
      float[] expected = run(full, dense.segment(), out, in, graphs, x, rows);
      assertArrayEquals(expected, actual, sparse.name());
      assertRight(Dequantizer.toFloats(dense), out, in, x, rows, actual);
    }
  }

  @Property(tries = 60, shrinking = ShrinkingMode.OFF)
  void twoOfFourProductsAreRightAndTheSameEverywhere(
      @ForAll long seed,
      @ForAll("kernelSets") Kernels kernels,
      @ForAll("values") TensorType type,
      @ForAll @IntRange(min = 1, max = 9) int rows) {
    SplittableRandom random = new SplittableRandom(seed);
    int out = 1 + random.nextInt(20);
    int unit = type.isQuantized() ? 64 : random.nextBoolean() ? 32 : 4;
    int in = unit * (1 + random.nextInt(6));
    try (TestGraphs graphs = new TestGraphs(seed);
        TensorStore store = TensorStore.create()) {
      SparseMatrix.TwoOfFour m =
          SparseEncoder.twoOfFour(graphs.twoOfFour("w", out, in), type, store);
      float[] x = graphs.floats(rows * in, 1);
      Kernels.Matmul kernel = kernels.twoOfFourMatmul(m);
      Kernels.Matmul scalar = KernelSets.scalar().twoOfFourMatmul(m);
      float[] actual = run(kernel, m.values().segment(), out, in, graphs, x, rows);
      float[] expected = run(scalar, m.values().segment(), out, in, graphs, x, rows);
      assertArrayEquals(expected, actual, kernel.name());
      assertRight(SparseMatrix.toFloats(m), out, in, x, rows, actual);
    }
  }

  @Property(tries = 40, shrinking = ShrinkingMode.OFF)
  void quantizedBitmapsAndBlocksAreRight(
      @ForAll long seed, @ForAll("kernelSets") Kernels kernels, @ForAll("values") TensorType type) {
    SplittableRandom random = new SplittableRandom(seed);
    int unit = type.blockSize();
    int out = 4 * (1 + random.nextInt(5));
    int in = 2 * unit * (1 + random.nextInt(5));
    int rows = 1 + random.nextInt(5);
    try (TestGraphs graphs = new TestGraphs(seed);
        TensorStore store = TensorStore.create()) {
      Tensor masked = graphs.masked("w", out, in, random.nextDouble());
      float[] x = graphs.floats(rows * in, 1);
      SparseMatrix[] all = {
        SparseEncoder.bitmap(masked, type, store), SparseEncoder.block(masked, 2, unit, type, store)
      };
      for (SparseMatrix m : all) {
        PreparedWeight w = SparseWeights.prepare(new LinearOp.Sparse(m), kernels);
        float[] actual = run(w.form().kernel(), w.form().data(), out, in, graphs, x, rows);
        assertRight(SparseMatrix.toFloats(m), out, in, x, rows, actual);
      }
    }
  }
}
