package io.fletch.graph.cpu;

import io.fletch.quant.Dequantizer;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.Locale;

/**
 * Products with sparse matrices in plain Java, and the order of operations that all kernel sets
 * keep.
 *
 * <p>With float32 activations, sixteen partial sums as {@link ActivationLayout} has them for dense
 * float rows. A bitmap matrix adds element {@code i} of the row to partial sum {@code i mod 16}, so
 * that its products are those of the dense matrix with zeros bit for bit; a 2:4 matrix adds its
 * {@code k}-th stored value to partial sum {@code k mod 16} with its bits 1 and 2 exchanged. Values
 * count as float32, exactly as {@link Dequantizer} has them.
 *
 * <p>2:4 matrices of Q8_0 and Q4_0 values and bitmaps of codes take 8-bit activations, with integer
 * sums exact in 32 bits:
 *
 * <ul>
 *   <li>2:4: one accumulator takes 32 columns at a time, in ascending order, {@code acc = fma(dW *
 *       dX, (float) sum, acc)}.
 *   <li>Bitmap of codes: sixteen partial sums. Of every window of 64 columns, in ascending order,
 *       partial sum {@code i} takes columns {@code 4 i .. 4 i + 3}: {@code s_i = fma(dX, dW *
 *       (float) sum_i, s_i)}. Where the last window has 32 columns, {@code dX} is 0 for the others.
 * </ul>
 */
final class ScalarSparse {
  /** Values of a block of codes. */
  private static final int BLOCK = 32;

  private static final int WINDOW = SparseMatrix.BitmapCodes.WINDOW;

  private ScalarSparse() {}

  /** Whether products with a 2:4 matrix take 8-bit activations. */
  static boolean hasCodes(TensorType type) {
    return type == TensorType.Q8_0 || type == TensorType.Q4_0;
  }

  /** The product with a 2:4 matrix. */
  static Kernels.Matmul of(SparseMatrix.TwoOfFour m) {
    return hasCodes(m.values().type()) ? new TwoOfFourCodes(m) : new TwoOfFour(m);
  }

  /** The product with a bitmap matrix. */
  static Kernels.Matmul of(SparseMatrix.Bitmap m) {
    return new Bitmap(m);
  }

  /** The product with a bitmap of codes. */
  static Kernels.Matmul of(SparseMatrix.BitmapCodes m) {
    return new BitmapCodes(m);
  }

  /** Name of a kernel. */
  static String name(SparseMatrix m, String set) {
    String type = m.valueType().toLowerCase(Locale.ROOT);
    String kind = m.kind().equals("nm") ? "2:4" : m.kind();
    return kind + " " + type + " " + set;
  }

  /** Row by row: what is read of a row is prepared once for all rows of activations. */
  private abstract static class Rows extends RowsMatmul {
    final SparseMatrix m;
    final TensorType type;
    final int in;

    Rows(SparseMatrix m) {
      this.m = m;
      type = m.values().type();
      in = Math.toIntExact(m.in());
    }

    @Override
    public final String name() {
      return ScalarSparse.name(m, "scalar");
    }

    /** Decodes what {@link #product} needs of a row, to {@code s}. */
    void prepare(MemorySegment weight, long o, ScalarScratch s) {}

    /** One element of the result, of activations that start at a byte. */
    abstract float product(
        MemorySegment weight, long o, MemorySegment x, long xAt, ScalarScratch s);

    @Override
    public final void run(
        MemorySegment weight,
        long out,
        long from,
        long to,
        MemorySegment x,
        long xOffset,
        int rows,
        MemorySegment y,
        long yOffset,
        long yStride) {
      ScalarScratch s = ScalarScratch.get();
      long xStride = ActivationLayout.bytes(activation(), in);
      for (long o = from; o < to; o++) {
        prepare(weight, o, s);
        for (int r = 0; r < rows; r++) {
          float sum = product(weight, o, x, xOffset + r * xStride, s);
          Segments.f32(y, yOffset + r * yStride + o, sum);
        }
      }
    }
  }

  private static final class Bitmap extends Rows {
    private final long[] start;
    private final MemorySegment mask;

    Bitmap(SparseMatrix.Bitmap m) {
      super(m);
      start = m.valueStart();
      mask = m.mask().segment();
    }

    @Override
    void prepare(MemorySegment weight, long o, ScalarScratch s) {
      long at = start[(int) o];
      int n = (int) (start[(int) o + 1] - at);
      float[] w = s.row(in + type.blockSize());
      Dequantizer.dequantize(type, weight, type.bytes(at), w, 0, n);
    }

    @Override
    float product(MemorySegment weight, long o, MemorySegment x, long xAt, ScalarScratch s) {
      float[] lanes = s.clearedLanes();
      float[] w = s.row(in + type.blockSize());
      long width = (in + 7L) / 8;
      int k = 0;
      for (int b = 0; b < width; b++) {
        int bits = Segments.u8(mask, o * width + b);
        while (bits != 0) {
          int c = 8 * b + Integer.numberOfTrailingZeros(bits);
          bits &= bits - 1;
          lanes[c & 15] = Math.fma(w[k++], Segments.f32(x, xAt / 4 + c), lanes[c & 15]);
        }
      }
      return ScalarScratch.reduce(lanes);
    }
  }

  private static final class TwoOfFour extends Rows {
    private final MemorySegment index;
    private final long width;

    TwoOfFour(SparseMatrix.TwoOfFour m) {
      super(m);
      index = m.index().segment();
      width = m.index().cols();
    }

    @Override
    void prepare(MemorySegment weight, long o, ScalarScratch s) {
      Tensor values = m.values();
      Dequantizer.dequantize(type, weight, o * values.rowBytes(), s.row(in / 2), 0, in / 2);
    }

    @Override
    float product(MemorySegment weight, long o, MemorySegment x, long xAt, ScalarScratch s) {
      float[] lanes = s.clearedLanes();
      float[] w = s.row(in / 2);
      for (int g = 0; g < in / 4; g++) {
        int nibble = Segments.u8(index, o * width + g / 2) >> g % 2 * 4;
        int k = 2 * g;
        int l = (k & 8) | (k & 4) >> 1 | (k & 2) << 1;
        long c = xAt / 4 + 4L * g;
        lanes[l] = Math.fma(w[k], Segments.f32(x, c + (nibble & 3)), lanes[l]);
        l++;
        lanes[l] = Math.fma(w[k + 1], Segments.f32(x, c + (nibble >> 2 & 3)), lanes[l]);
      }
      return ScalarScratch.reduce(lanes);
    }
  }

  /** Over codes, with 8-bit activations. */
  private abstract static class Codes extends Rows {
    private final long scales;

    Codes(SparseMatrix m) {
      super(m);
      scales = ActivationLayout.scalesOffset(activation(), in);
    }

    @Override
    public final Kernels.ActivationFormat activation() {
      return Kernels.ActivationFormat.Q8_BLOCK32;
    }

    /** The scale of an activation block. */
    final float scale(MemorySegment x, long xAt, int block) {
      return Segments.f32(x, (xAt + scales) / Float.BYTES + block);
    }
  }

  private static final class TwoOfFourCodes extends Codes {
    private final MemorySegment index;
    private final long width;
    private final long rowBytes;

    TwoOfFourCodes(SparseMatrix.TwoOfFour m) {
      super(m);
      index = m.index().segment();
      width = m.index().cols();
      rowBytes = m.values().rowBytes();
    }

    @Override
    float product(MemorySegment weight, long o, MemorySegment x, long xAt, ScalarScratch s) {
      float acc = 0;
      for (int half = 0; half < in / BLOCK; half++) {
        long at = o * rowBytes + (long) (half / 2) * type.blockBytes();
        int sum = 0;
        for (int i = 0; i < BLOCK / 2; i++) {
          int group = half * 8 + i / 2;
          int nibble = Segments.u8(index, o * width + group / 2) >> group % 2 * 4;
          int column = 4 * group + (nibble >> i % 2 * 2 & 3);
          sum += code(weight, at, half % 2 * 16 + i) * Segments.i8(x, xAt + column);
        }
        acc = Math.fma(Segments.f16(weight, at) * scale(x, xAt, half), (float) sum, acc);
      }
      return acc;
    }

    /** Code {@code k} of the block at a byte. */
    final int code(MemorySegment weight, long at, int k) {
      if (type == TensorType.Q8_0) {
        return Segments.i8(weight, at + 2 + k);
      }
      int both = Segments.u8(weight, at + 2 + k % 16);
      return (k < 16 ? both & 15 : both >> 4) - 8;
    }
  }

  private static final class BitmapCodes extends Codes {
    private final SparseMatrix.BitmapCodes m;

    BitmapCodes(SparseMatrix.BitmapCodes m) {
      super(m);
      this.m = m;
    }

    @Override
    float product(MemorySegment weight, long o, MemorySegment x, long xAt, ScalarScratch s) {
      float[] lanes = s.clearedLanes();
      long at = m.start(o);
      for (int c = 0; c < in; c += WINDOW) {
        Arrays.fill(s.sums, 0);
        long bits = m.window(o, c);
        long left = bits;
        for (int k = 0; left != 0; k++, left &= left - 1) {
          int column = Long.numberOfTrailingZeros(left);
          s.sums[column / 4] += m.code(weight, at, k) * Segments.i8(x, xAt + c + column);
        }
        at += m.bytes(bits);
        float d = m.scale(o, c);
        for (int i = 0; i < lanes.length; i++) {
          int block = c / BLOCK + i / 8;
          float dx = block < in / BLOCK ? scale(x, xAt, block) : 0;
          lanes[i] = Math.fma(dx, d * s.sums[i], lanes[i]);
        }
      }
      return ScalarScratch.reduce(lanes);
    }
  }
}
