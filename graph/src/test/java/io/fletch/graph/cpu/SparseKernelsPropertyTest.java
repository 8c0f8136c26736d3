package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;

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
        TensorType.F32,
        TensorType.F16,
        TensorType.BF16,
        TensorType.Q8_0,
        TensorType.Q4_0,
        TensorType.Q4_1,
        TensorType.Q5_0);
  }

  private static float[] run(
      Kernels.Matmul kernel,
      MemorySegment w,
      int out,
      int in,
      TestGraphs graphs,
      float[] x,
      int n) {
    try (TensorStore store = TensorStore.create()) {
      MemorySegment xs = activations(kernel.activation(), x, in, n, store);
      MemorySegment ys = store.allocate("y", TensorType.F32, n, out).segment();
      int granule = kernel.rowGranule();
      int cut = graphs.random().nextInt(out / granule + 1) * granule;
      MemorySegment data = packed(kernel, w, out, store);
      kernel.run(data, out, 0, cut, xs, 0, n, ys, 0, out);
      kernel.run(data, out, cut, out, xs, 0, n, ys, 0, out);
      return ys.toArray(ValueLayout.JAVA_FLOAT);
    }
  }

  private static MemorySegment packed(
      Kernels.Matmul kernel, MemorySegment w, int out, TensorStore store) {
    if (!kernel.packs()) {
      return w;
    }
    MemorySegment to = store.allocate("p", TensorType.I8, kernel.packedBytes(out)).segment();
    kernel.pack(w, to, out, 0, out);
    return to;
  }

  private static MemorySegment activations(
      Kernels.ActivationFormat format, float[] x, int in, int n, TensorStore store) {
    Kernels scalar = KernelSets.scalar();
    long bytes = scalar.activationBytes(Kernels.ActivationFormat.F32, in);
    MemorySegment floats = store.allocate("x", TensorType.I8, n, bytes).segment();
    for (int r = 0; r < n; r++) {
      MemorySegment.copy(x, r * in, floats, ValueLayout.JAVA_FLOAT, r * bytes, in);
    }
    if (format == Kernels.ActivationFormat.F32) {
      return floats;
    }
    long codes = scalar.activationBytes(format, in);
    MemorySegment to = store.allocate("q", TensorType.I8, n, codes).segment();
    for (int r = 0; r < n; r++) {
      scalar.quantize(format, floats, r * bytes / 4, in, to, r * codes);
    }
    return to;
  }

  /** What activations of a format stand for. */
  private static float[] seen(Kernels.ActivationFormat format, float[] x, int in, int n) {
    if (format == Kernels.ActivationFormat.F32) {
      return x;
    }
    try (TensorStore store = TensorStore.create()) {
      MemorySegment q = activations(format, x, in, n, store);
      long bytes = KernelSets.scalar().activationBytes(format, in);
      long scales = ActivationLayout.scalesOffset(format, in);
      float[] all = new float[n * in];
      for (int i = 0; i < all.length; i++) {
        long row = i / in * bytes;
        float d = q.get(ValueLayout.JAVA_FLOAT, row + scales + i % in / 32 * 4);
        all[i] = d * q.get(ValueLayout.JAVA_BYTE, row + i % in);
      }
      return all;
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
    int out = 1 + random.nextInt(70);
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
      assertEquals(scalar.activation(), kernel.activation());
      assertArrayEquals(expected, actual, kernel.name());
      Kernels.Matmul mapped = kernels.twoOfFourMapped(m);
      assertFalse(mapped.packs());
      float[] unpacked = run(mapped, m.values().segment(), out, in, graphs, x, rows);
      assertArrayEquals(expected, unpacked, mapped.name());
      float[] seen = seen(kernel.activation(), x, in, rows);
      assertRight(SparseMatrix.toFloats(m), out, in, seen, rows, actual);
    }
  }

  /** Specs weights 6, property 9: no sum of 16 bits overflows. */
  @Property(tries = 20, shrinking = ShrinkingMode.OFF)
  void extremeCodesDoNotOverflow(
      @ForAll long seed, @ForAll("kernelSets") Kernels kernels, @ForAll boolean eight) {
    SplittableRandom random = new SplittableRandom(seed);
    int in = 128;
    int out = 5;
    TensorType type = eight ? TensorType.Q8_0 : TensorType.Q4_0;
    try (TestGraphs graphs = new TestGraphs(seed);
        TensorStore store = TensorStore.create()) {
      SparseMatrix.TwoOfFour m =
          SparseEncoder.twoOfFour(graphs.twoOfFour("w", out, in), type, store);
      MemorySegment values = m.values().segment();
      extreme(m.values(), random);
      float[] x = new float[in];
      for (int i = 0; i < in; i++) {
        x[i] = random.nextBoolean() ? 127 : -127;
      }
      Kernels.Matmul kernel = kernels.twoOfFourMatmul(m);
      float[] actual = run(kernel, values, out, in, graphs, x, 1);
      assertRight(SparseMatrix.toFloats(m), out, in, x, 1, actual);
      SparseMatrix.BitmapCodes b =
          SparseEncoder.bitmapCodes(
              graphs.masked("b", out, in, random.nextDouble()), eight ? 8 : 4, store);
      for (long i = 0; i < b.codes().bytes(); i++) {
        int code = eight ? (random.nextBoolean() ? -128 : 127) : random.nextInt(2) * 255;
        b.codes().segment().set(ValueLayout.JAVA_BYTE, i, (byte) code);
      }
      actual = run(kernels.bitmapMatmul(b), b.values().segment(), out, in, graphs, x, 1);
      assertRight(SparseMatrix.toFloats(b), out, in, x, 1, actual);
    }
  }

  private static void extreme(Tensor t, SplittableRandom random) {
    MemorySegment values = t.segment();
    for (long i = 0; i < values.byteSize(); i++) {
      if (i % t.type().blockBytes() >= 2) {
        boolean eight = t.type() == TensorType.Q8_0;
        int code = eight ? (random.nextBoolean() ? -128 : 127) : random.nextInt(2) * 255;
        values.set(ValueLayout.JAVA_BYTE, i, (byte) code);
      }
    }
  }

  /** Every operand ends, or begins, at an inaccessible page. */
  @Property(tries = 60, shrinking = ShrinkingMode.OFF)
  void nothingOutsideTheOperandsIsTouched(
      @ForAll long seed,
      @ForAll("kernelSets") Kernels kernels,
      @ForAll("values") TensorType type,
      @ForAll @IntRange(min = 0, max = 10) int tenths,
      @ForAll boolean behind) {
    SplittableRandom random = new SplittableRandom(seed);
    int out = 1 + random.nextInt(20);
    int in = 2 * Math.max(32, type.blockSize()) * (1 + random.nextInt(5));
    int rows = 1 + random.nextInt(7);
    try (TestGraphs graphs = new TestGraphs(seed);
        TensorStore store = TensorStore.create();
        GuardedMemory memory = new GuardedMemory(behind)) {
      SparseMatrix.Bitmap b =
          SparseEncoder.bitmap(graphs.masked("b", out, in, tenths / 10.0), type, store);
      SparseMatrix.TwoOfFour t =
          SparseEncoder.twoOfFour(graphs.twoOfFour("w", out, in), type, store);
      b =
          new SparseMatrix.Bitmap(
              in,
              guarded(b.mask(), memory),
              guarded(b.rowStart(), memory),
              guarded(b.values(), memory));
      t = new SparseMatrix.TwoOfFour(guarded(t.index(), memory), guarded(t.values(), memory));
      float[] x = graphs.floats(rows * in, 1);
      SparseMatrix.BitmapCodes c =
          SparseEncoder.bitmapCodes(
              graphs.masked("c", out, in, tenths / 10.0), random.nextBoolean() ? 8 : 4, store);
      c =
          new SparseMatrix.BitmapCodes(
              in,
              c.bits(),
              guarded(c.mask(), memory),
              guarded(c.rowStart(), memory),
              guarded(c.scales(), memory),
              guarded(c.codes(), memory));
      Kernels.Matmul[] all = {
        kernels.bitmapMatmul(b),
        kernels.bitmapMatmul(c),
        kernels.twoOfFourMatmul(t),
        kernels.twoOfFourMapped(t)
      };
      SparseMatrix[] matrices = {b, c, t, t};
      for (int i = 0; i < all.length; i++) {
        Kernels.Matmul kernel = all[i];
        MemorySegment w = matrices[i].values().segment();
        if (kernel.packs()) {
          MemorySegment packed = memory.allocate(kernel.packedBytes(out));
          kernel.pack(w, packed, out, 0, out);
          w = packed;
        }
        MemorySegment from = activations(kernel.activation(), x, in, rows, store);
        MemorySegment xs = memory.allocate(from.byteSize()).copyFrom(from);
        MemorySegment ys = memory.allocate(4L * rows * out);
        kernel.run(w, out, 0, out, xs, 0, rows, ys, 0, out);
        float[] seen = seen(kernel.activation(), x, in, rows);
        float[] dense = SparseMatrix.toFloats(matrices[i]);
        assertRight(dense, out, in, seen, rows, ys.toArray(ValueLayout.JAVA_FLOAT));
      }
    }
  }

  @Property(tries = 30, shrinking = ShrinkingMode.OFF)
  void operandsThatAreTooShortAreRefused(
      @ForAll("kernelSets") Kernels kernels, @ForAll("values") TensorType type) {
    int out = 32;
    int in = 2 * Math.max(32, type.blockSize());
    try (TestGraphs graphs = new TestGraphs(1);
        TensorStore store = TensorStore.create()) {
      SparseMatrix.Bitmap b = SparseEncoder.bitmap(graphs.masked("b", out, in, 0.5), type, store);
      SparseMatrix.BitmapCodes c =
          SparseEncoder.bitmapCodes(graphs.masked("c", out, in, 0.5), 8, store);
      SparseMatrix.TwoOfFour t =
          SparseEncoder.twoOfFour(graphs.twoOfFour("w", out, in), type, store);
      Kernels.Matmul[] all = {
        kernels.bitmapMatmul(b), kernels.bitmapMatmul(c), kernels.twoOfFourMapped(t)
      };
      SparseMatrix[] matrices = {b, c, t};
      for (int i = 0; i < all.length; i++) {
        Kernels.Matmul kernel = all[i];
        MemorySegment w = matrices[i].values().segment();
        MemorySegment tooShort = w.asSlice(0, w.byteSize() - 1);
        MemorySegment x = activations(kernel.activation(), new float[in], in, 1, store);
        MemorySegment y = store.allocate("y", TensorType.F32, out).segment();
        kernel.run(w, out, 0, out, x, 0, 1, y, 0, out);
        assertThrows(
            IndexOutOfBoundsException.class,
            () -> kernel.run(tooShort, out, 0, out, x, 0, 1, y, 0, out),
            kernel.name());
        assertThrows(
            IndexOutOfBoundsException.class,
            () -> kernel.run(w, out, 0, out, x, 0, 1, y, 1, out),
            kernel.name());
      }
    }
  }

  private static Tensor guarded(Tensor t, GuardedMemory memory) {
    MemorySegment to = memory.allocate(t.bytes()).copyFrom(t.segment());
    return new Tensor(t.name(), t.type(), t.shape(), t.buffer(), to);
  }

  @Property(tries = 100, shrinking = ShrinkingMode.OFF)
  void quantizedBitmapsAndBlocksAreRight(
      @ForAll long seed,
      @ForAll("kernelSets") Kernels kernels,
      @ForAll("values") TensorType type,
      @ForAll @IntRange(min = 0, max = 10) int tenths,
      @ForAll @IntRange(min = 1, max = 9) int rows) {
    SplittableRandom random = new SplittableRandom(seed);
    int unit = type.blockSize();
    int out = 4 * (1 + random.nextInt(5));
    int in = unit * (1 + random.nextInt(11));
    try (TestGraphs graphs = new TestGraphs(seed);
        TensorStore store = TensorStore.create()) {
      Tensor masked = graphs.masked("w", out, in, tenths / 10.0);
      float[] x = graphs.floats(rows * in, 1);
      SparseMatrix[] all = {
        SparseEncoder.bitmap(masked, type, store),
        SparseEncoder.block(masked, 2, unit, type, store),
        SparseEncoder.anyBitmap(masked, type, store)
      };
      for (SparseMatrix m : all) {
        PreparedWeight w = SparseWeights.prepare(new LinearOp.Sparse(m), kernels);
        float[] actual = run(w.form().kernel(), w.form().data(), out, in, graphs, x, rows);
        float[] seen = seen(w.activation(), x, in, rows);
        assertRight(SparseMatrix.toFloats(m), out, in, seen, rows, actual);
        PreparedWeight s = SparseWeights.prepare(new LinearOp.Sparse(m), KernelSets.scalar());
        float[] expected = run(s.form().kernel(), s.form().data(), out, in, graphs, x, rows);
        assertEquals(s.activation(), w.activation());
        if (!(m instanceof SparseMatrix.Block)) {
          assertArrayEquals(expected, actual, w.form().kernel().name());
        }
      }
    }
  }
}
