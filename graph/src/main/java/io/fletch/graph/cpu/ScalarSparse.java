package io.fletch.graph.cpu;

import io.fletch.quant.Dequantizer;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.Locale;

/**
 * Products with sparse matrices in plain Java, and the order of operations that all kernel sets
 * keep.
 *
 * <p>Sixteen partial sums as {@link ActivationLayout} has them for dense float rows. A bitmap
 * matrix adds element {@code i} of the row to partial sum {@code i mod 16}, so that its products
 * are those of the dense matrix with zeros bit for bit; a 2:4 matrix adds its {@code k}-th stored
 * value to partial sum {@code k mod 16} with its bits 1 and 2 exchanged. Values count as float32,
 * exactly as {@link Dequantizer} has them.
 *
 * <p>2:4 with Q8_0 or Q4_0 values takes 8-bit activations: with {@code s} the integer sum over
 * values {@code 4 l .. 4 l + 3} of block {@code b} of 32 values, partial sum {@code i = l + 8 (b
 * mod 2)} takes the blocks in ascending order with {@code acc_i = fma(dW * dX, (float) s, acc_i)},
 * where {@code dX} is the scale of the 32 columns that these values are of.
 */
final class ScalarSparse {
  private ScalarSparse() {}

  /** Whether products with 2:4 matrices of that type take 8-bit activations. */
  static boolean hasCodes(TensorType type) {
    return type == TensorType.Q8_0 || type == TensorType.Q4_0;
  }

  /** The product with a 2:4 matrix. */
  static Kernels.Matmul of(SparseMatrix.TwoOfFour m) {
    return hasCodes(m.values().type()) ? new Codes(m) : new TwoOfFour(m);
  }

  /** Name of a kernel. */
  static String name(SparseMatrix m, String set) {
    String type = m.values().type().name().toLowerCase(Locale.ROOT);
    String kind = m.kind().equals("nm") ? "2:4" : m.kind();
    return kind + " " + type + " " + set;
  }

  static final class Bitmap extends RowsMatmul {
    private final SparseMatrix.Bitmap m;
    private final long[] start;
    private final MemorySegment mask;
    private final int in;

    Bitmap(SparseMatrix.Bitmap m) {
      this.m = m;
      start = m.valueStart();
      mask = m.mask().segment();
      in = Math.toIntExact(m.in());
    }

    @Override
    public String name() {
      return ScalarSparse.name(m, "scalar");
    }

    @Override
    public void run(
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
      Tensor values = m.values();
      long width = (in + 7L) / 8;
      float[] w = s.row(in + values.type().blockSize());
      for (long o = from; o < to; o++) {
        long at = start[(int) o];
        int n = (int) (start[(int) o + 1] - at);
        Dequantizer.dequantize(values.type(), weight, values.type().bytes(at), w, 0, n);
        for (int r = 0; r < rows; r++) {
          float[] lanes = s.clearedLanes();
          long x0 = xOffset / Float.BYTES + r * stride(in);
          int k = 0;
          for (int b = 0; b < width; b++) {
            int bits = Segments.u8(mask, o * width + b);
            while (bits != 0) {
              int c = 8 * b + Integer.numberOfTrailingZeros(bits);
              bits &= bits - 1;
              lanes[c & 15] = Math.fma(w[k++], Segments.f32(x, x0 + c), lanes[c & 15]);
            }
          }
          Segments.f32(y, yOffset + r * yStride + o, ScalarScratch.reduce(lanes));
        }
      }
    }
  }

  static final class TwoOfFour extends RowsMatmul {
    private final SparseMatrix.TwoOfFour m;
    private final MemorySegment index;
    private final int in;

    TwoOfFour(SparseMatrix.TwoOfFour m) {
      this.m = m;
      index = m.index().segment();
      in = Math.toIntExact(m.in());
    }

    @Override
    public String name() {
      return ScalarSparse.name(m, "scalar");
    }

    @Override
    public void run(
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
      Tensor values = m.values();
      long width = m.index().cols();
      float[] w = s.row(in / 2);
      for (long o = from; o < to; o++) {
        Dequantizer.dequantize(values.type(), weight, o * values.rowBytes(), w, 0, in / 2);
        for (int r = 0; r < rows; r++) {
          float[] lanes = s.clearedLanes();
          long x0 = xOffset / Float.BYTES + r * stride(in);
          for (int g = 0; g < in / 4; g++) {
            int nibble = Segments.u8(index, o * width + g / 2) >> g % 2 * 4;
            int k = 2 * g;
            int l = (k & 8) | (k & 4) >> 1 | (k & 2) << 1;
            long c = x0 + 4L * g;
            lanes[l] = Math.fma(w[k], Segments.f32(x, c + (nibble & 3)), lanes[l]);
            l++;
            lanes[l] = Math.fma(w[k + 1], Segments.f32(x, c + (nibble >> 2 & 3)), lanes[l]);
          }
          Segments.f32(y, yOffset + r * yStride + o, ScalarScratch.reduce(lanes));
        }
      }
    }
  }

  /** 2:4 over codes, with 8-bit activations. */
  static final class Codes extends RowsMatmul {
    private static final int BLOCK = 32;

    private final SparseMatrix.TwoOfFour m;
    private final MemorySegment index;
    private final TensorType type;
    private final int in;

    Codes(SparseMatrix.TwoOfFour m) {
      this.m = m;
      index = m.index().segment();
      type = m.values().type();
      in = Math.toIntExact(m.in());
    }

    @Override
    public String name() {
      return ScalarSparse.name(m, "scalar");
    }

    @Override
    public Kernels.ActivationFormat activation() {
      return Kernels.ActivationFormat.Q8_BLOCK32;
    }

    @Override
    public void run(
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
      long rowBytes = m.values().rowBytes();
      long width = m.index().cols();
      long stride = ActivationLayout.bytes(activation(), in);
      long scales = ActivationLayout.scalesOffset(activation(), in);
      for (long o = from; o < to; o++) {
        for (int r = 0; r < rows; r++) {
          float[] lanes = s.clearedLanes();
          long codes = xOffset + r * stride;
          for (int b = 0; b < in / 2 / BLOCK; b++) {
            long at = o * rowBytes + (long) b * type.blockBytes();
            float d = Segments.f16(weight, at);
            for (int l = 0; l < 8; l++) {
              int sum = 0;
              for (int k = 4 * l; k < 4 * l + 4; k++) {
                int group = b * 16 + k / 2;
                int nibble = Segments.u8(index, o * width + group / 2) >> group % 2 * 4;
                int column = 4 * group + (nibble >> k % 2 * 2 & 3);
                sum += code(weight, at + 2, k) * Segments.i8(x, codes + column);
              }
              float dx = Segments.f32(x, (codes + scales) / Float.BYTES + 2L * b + l / 4);
              int lane = l + b % 2 * 8;
              lanes[lane] = Math.fma(d * dx, (float) sum, lanes[lane]);
            }
          }
          Segments.f32(y, yOffset + r * yStride + o, ScalarScratch.reduce(lanes));
        }
      }
    }

    private int code(MemorySegment weight, long at, int k) {
      if (type == TensorType.Q8_0) {
        return Segments.i8(weight, at + k);
      }
      int both = Segments.u8(weight, at + k % 16);
      return (k < 16 ? both & 15 : both >> 4) - 8;
    }
  }
}
