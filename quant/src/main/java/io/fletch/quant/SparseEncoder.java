package io.fletch.quant;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;

/**
 * Makes {@link SparseMatrix} values (and {@link LinearOp.Columns}) from matrices with zeros in them
 * (specs weights 3.1 to 3.4). Zeros of either sign are dropped and read back as +0; NaN and
 * infinities are refused. With float value types that hold the elements the round trip is exact;
 * with block types the kept values are rounded by {@link Quantizer}. Stateless; rows are read one
 * by one.
 */
public final class SparseEncoder {
  private static final int WINDOW = SparseMatrix.BitmapCodes.WINDOW;

  private SparseEncoder() {}

  /** What the zeros of a matrix allow. */
  public record Zeros(long elements, long zeros, boolean twoOfFour, long zeroColumns) {
    /** Share of elements that are not zero. */
    public double density() {
      return elements == 0 ? 0 : 1 - (double) zeros / elements;
    }
  }

  /** Counts zeros; reads the whole matrix once. */
  public static Zeros zeros(Tensor dense) {
    int in = columns(dense);
    float[] row = new float[in];
    boolean[] used = new boolean[in];
    long zeros = 0;
    boolean two = in % 4 == 0;
    for (long r = 0; r < dense.rows(); r++) {
      Dequantizer.row(dense, r, row, 0);
      int inGroup = 0;
      for (int c = 0; c < in; c++) {
        inGroup = c % 4 == 0 ? 0 : inGroup;
        if (row[c] == 0) {
          zeros++;
        } else {
          used[c] = true;
          inGroup++;
          two &= inGroup <= 2;
        }
      }
    }
    long empty = 0;
    for (boolean u : used) {
      empty += u ? 0 : 1;
    }
    return new Zeros(dense.elements(), zeros, two, empty);
  }

  /**
   * A bit per element.
   *
   * @param values type of the kept values
   * @param store owns the result
   * @throws IllegalArgumentException if an element is not finite
   */
  public static SparseMatrix.Bitmap bitmap(Tensor dense, TensorType values, TensorStore store) {
    int in = columns(dense);
    long rows = dense.rows();
    int width = (in + 7) / 8;
    int block = values.blockSize();
    String name = stem(dense.name());
    Tensor mask = store.allocate(name + ".sp.mask", TensorType.I8, rows, width);
    Tensor start = store.allocate(name + ".sp.rowptr", TensorType.I64, rows + 1);
    float[] row = new float[in];
    long kept = 0;
    long stored = 0;
    for (long r = 0; r < rows; r++) {
      readRow(dense, r, row);
      long n = 0;
      for (int c = 0; c < in; c++) {
        if (row[c] != 0) {
          long at = r * width + c / 8;
          byte bits = mask.segment().get(ValueLayout.JAVA_BYTE, at);
          mask.segment().set(ValueLayout.JAVA_BYTE, at, (byte) (bits | 1 << c % 8));
          n++;
        }
      }
      kept += n;
      stored += (n + block - 1) / block * block;
      start.segment().set(ByteCursor.LONG, 8 * (r + 1), kept);
    }
    Tensor val = store.allocate(name + ".sp.val", values, stored);
    float[] keptRow = new float[in + block];
    long at = 0;
    for (long r = 0; r < rows; r++) {
      readRow(dense, r, row);
      int n = 0;
      for (float x : row) {
        if (x != 0) {
          keptRow[n++] = x;
        }
      }
      int padded = (n + block - 1) / block * block;
      Arrays.fill(keptRow, n, padded, 0f);
      write(values, keptRow, padded, val.segment(), at);
      at += values.bytes(padded);
    }
    return new SparseMatrix.Bitmap(in, mask, start, val);
  }

  /**
   * A bit per element, in the form that has the fastest products: with Q8_0 and Q4_0, where rows
   * are multiples of 32, a scale per 64 columns ({@link #bitmapCodes}), else {@link #bitmap}.
   *
   * @param values type of the kept values
   */
  public static SparseMatrix anyBitmap(Tensor dense, TensorType values, TensorStore store) {
    boolean codes = values == TensorType.Q8_0 || values == TensorType.Q4_0;
    return codes && dense.cols() % 32 == 0
        ? bitmapCodes(dense, values == TensorType.Q8_0 ? 8 : 4, store)
        : bitmap(dense, values, store);
  }

  /**
   * A bit per element, with codes and a scale per 64 columns; rounding is that of Q8_0 and Q4_0 on
   * the kept values of a window.
   *
   * @param bits of a code, 8 or 4
   * @throws IllegalArgumentException if rows are no multiples of 32, an element is not finite, or a
   *     scale is too large for a half
   */
  public static SparseMatrix.BitmapCodes bitmapCodes(Tensor dense, int bits, TensorStore store) {
    int in = columns(dense);
    if (in % 32 != 0) {
      throw new IllegalArgumentException(
          dense.name() + ": columns: expected=a multiple of 32 actual=" + in);
    }
    long rows = dense.rows();
    String name = stem(dense.name());
    int windows = (in + WINDOW - 1) / WINDOW;
    Tensor mask = store.allocate(name + ".sp.mask", TensorType.I8, rows, in / 8);
    Tensor start = store.allocate(name + ".sp.rowptr", TensorType.I64, rows + 1);
    Tensor scales = store.allocate(name + ".sp.scale", TensorType.F16, rows, windows);
    float[] row = new float[in];
    long bytes = 0;
    for (long r = 0; r < rows; r++) {
      readRow(dense, r, row);
      for (int c = 0; c < in; c += WINDOW) {
        int n = 0;
        for (int i = c; i < Math.min(in, c + WINDOW); i++) {
          if (row[i] != 0) {
            long at = r * (in / 8) + i / 8;
            byte old = mask.segment().get(ValueLayout.JAVA_BYTE, at);
            mask.segment().set(ValueLayout.JAVA_BYTE, at, (byte) (old | 1 << i % 8));
            n++;
          }
        }
        bytes += bits == 8 ? n : (n + 1) / 2;
      }
      start.segment().set(ByteCursor.LONG, 8 * (r + 1), bytes);
    }
    Tensor codes = store.allocate(name + ".sp.q" + bits, TensorType.I8, bytes);
    long at = 0;
    for (long r = 0; r < rows; r++) {
      readRow(dense, r, row);
      for (int c = 0; c < in; c += WINDOW) {
        at = window(row, c, bits, scales, r * windows + c / WINDOW, codes.segment(), at);
      }
    }
    return new SparseMatrix.BitmapCodes(in, bits, mask, start, scales, codes);
  }

  /** Writes scale and codes of a window; where the next codes go. */
  private static long window(
      float[] row, int c, int bits, Tensor scales, long scaleAt, MemorySegment codes, long at) {
    float extreme = 0;
    int end = Math.min(row.length, c + WINDOW);
    for (int i = c; i < end; i++) {
      extreme = Math.abs(row[i]) > Math.abs(extreme) ? row[i] : extreme;
    }
    float d = bits == 8 ? Math.abs(extreme) / 127 : extreme / -8;
    short half = Float.floatToFloat16(d);
    if (Float.isInfinite(Float.float16ToFloat(half))) {
      throw new IllegalArgumentException(
          scales.name() + "[" + scaleAt + "]: expected=a half actual=" + d);
    }
    scales.segment().set(ValueLayout.JAVA_SHORT, 2 * scaleAt, half);
    float inverse = d == 0 ? 0 : 1 / d;
    int n = 0;
    for (int i = c; i < end; i++) {
      if (row[i] == 0) {
        continue;
      }
      if (bits == 8) {
        float x = row[i] * inverse;
        int code = Math.clamp((long) (x + Math.copySign(0.5f, x)), -127, 127);
        codes.set(ValueLayout.JAVA_BYTE, at + n, (byte) code);
      } else {
        int code = Math.clamp((long) Math.floor(row[i] * inverse + 8.5f), 0, 15);
        byte old = codes.get(ValueLayout.JAVA_BYTE, at + n / 2);
        int both = n % 2 == 0 ? 0x80 | code : old & 15 | code << 4;
        codes.set(ValueLayout.JAVA_BYTE, at + n / 2, (byte) both);
      }
      n++;
    }
    return at + (bits == 8 ? n : (n + 1) / 2);
  }

  /**
   * Two values of every four.
   *
   * @throws IllegalArgumentException if a group of four has more than two elements that are not
   *     zero, if the rows are not multiples of four (of two blocks of {@code values}), or if an
   *     element is not finite
   */
  public static SparseMatrix.TwoOfFour twoOfFour(
      Tensor dense, TensorType values, TensorStore store) {
    int in = columns(dense);
    long rows = dense.rows();
    if (in % 4 != 0) {
      throw new IllegalArgumentException(
          dense.name() + ": columns: expected=a multiple of 4 actual=" + in);
    }
    int width = (in + 7) / 8;
    String name = stem(dense.name());
    Tensor index = store.allocate(name + ".sp.idx", TensorType.I8, rows, width);
    Tensor val = store.allocate(name + ".sp.val", values, rows, in / 2);
    float[] row = new float[in];
    float[] kept = new float[in / 2];
    for (long r = 0; r < rows; r++) {
      readRow(dense, r, row);
      for (int g = 0; g < in / 4; g++) {
        int nibble = nibble(row, 4 * g);
        if (nibble < 0) {
          throw new IllegalArgumentException(
              dense.name()
                  + ": row "
                  + r
                  + " columns "
                  + 4 * g
                  + " to "
                  + (4 * g + 3)
                  + ": expected=at most 2 that are not zero actual="
                  + -nibble);
        }
        kept[2 * g] = row[4 * g + (nibble & 3)] + 0f;
        kept[2 * g + 1] = row[4 * g + (nibble >> 2)] + 0f;
        long at = r * width + g / 2;
        byte bits = index.segment().get(ValueLayout.JAVA_BYTE, at);
        index.segment().set(ValueLayout.JAVA_BYTE, at, (byte) (bits | nibble << g % 2 * 4));
      }
      write(values, kept, kept.length, val.segment(), r * val.rowBytes());
    }
    return new SparseMatrix.TwoOfFour(index, val);
  }

  /** The index of a group of four; minus the number of elements where it is above two. */
  private static int nibble(float[] row, int at) {
    int mask = 0;
    for (int i = 0; i < 4; i++) {
      mask |= row[at + i] != 0 ? 1 << i : 0;
    }
    return nibble(mask);
  }

  /**
   * The index nibble for a mask of four bits (specs weights 3.2): groups with fewer than two
   * elements are filled up as the usual encoders do.
   *
   * @return minus the number of bits where there are more than two
   */
  static int nibble(int mask) {
    return switch (mask) {
      case 0b0011 -> 0b0100;
      case 0b0101, 0b0001 -> 0b1000;
      case 0b0110, 0b0010 -> 0b1001;
      case 0b1001 -> 0b1100;
      case 0b1010 -> 0b1101;
      case 0b1100, 0b0100, 0b1000, 0b0000 -> 0b1110;
      default -> -Integer.bitCount(mask);
    };
  }

  /**
   * Rectangles that are not all zeros.
   *
   * @param height rows of a block, a divisor of the matrix's
   * @param width columns of a block, a divisor of the matrix's
   */
  public static SparseMatrix.Block block(
      Tensor dense, int height, int width, TensorType values, TensorStore store) {
    int in = columns(dense);
    long rows = dense.rows();
    if (height < 1 || width < 1 || rows % height != 0 || in % width != 0) {
      throw new IllegalArgumentException(
          dense.name()
              + ": block: expected=divisors of ["
              + rows
              + ", "
              + in
              + "] actual=["
              + height
              + ", "
              + width
              + "]");
    }
    int down = Math.toIntExact(rows / height);
    int across = in / width;
    boolean[] used = new boolean[Math.multiplyExact(down, across)];
    float[] row = new float[in];
    for (long r = 0; r < rows; r++) {
      readRow(dense, r, row);
      for (int c = 0; c < in; c++) {
        used[(int) (r / height) * across + c / width] |= row[c] != 0;
      }
    }
    int count = 0;
    for (boolean u : used) {
      count += u ? 1 : 0;
    }
    String name = stem(dense.name());
    Tensor start = store.allocate(name + ".sp.block_row_ptr", TensorType.I32, down + 1L);
    Tensor column = store.allocate(name + ".sp.block_col", TensorType.I32, count);
    Tensor val = store.allocate(name + ".sp.blocks", values, count, height, width);
    int b = 0;
    float[] part = new float[width];
    for (int d = 0; d < down; d++) {
      int first = b;
      for (int a = 0; a < across; a++) {
        if (used[d * across + a]) {
          column.segment().set(ByteCursor.INT, 4L * b++, a);
        }
      }
      start.segment().set(ByteCursor.INT, 4 * (d + 1L), b);
      for (int i = 0; i < height; i++) {
        readRow(dense, (long) d * height + i, row);
        for (int k = first; k < b; k++) {
          int a = column.segment().get(ByteCursor.INT, 4L * k);
          System.arraycopy(row, a * width, part, 0, width);
          for (int j = 0; j < width; j++) {
            part[j] += 0f;
          }
          write(values, part, width, val.segment(), ((long) k * height + i) * val.rowBytes());
        }
      }
    }
    return new SparseMatrix.Block(in, start, column, val);
  }

  /** The columns that are not all zeros, as a matrix of their own. */
  public static LinearOp.Columns columns(Tensor dense, TensorType values, TensorStore store) {
    int in = columns(dense);
    boolean[] used = new boolean[in];
    float[] row = new float[in];
    for (long r = 0; r < dense.rows(); r++) {
      readRow(dense, r, row);
      for (int c = 0; c < in; c++) {
        used[c] |= row[c] != 0;
      }
    }
    int[] index = new int[in];
    int n = 0;
    for (int c = 0; c < in; c++) {
      if (used[c]) {
        index[n++] = c;
      }
    }
    if (n % values.blockSize() != 0) {
      throw new IllegalArgumentException(
          dense.name()
              + ": kept columns: expected=a multiple of "
              + values.blockSize()
              + " for "
              + values
              + " actual="
              + n);
    }
    String name = stem(dense.name());
    Tensor cols = store.allocate(name + ".sp.cols", TensorType.I32, n);
    MemorySegment.copy(index, 0, cols.segment(), ByteCursor.INT, 0, n);
    Tensor val = store.allocate(name + ".sp.val", values, dense.rows(), n);
    float[] kept = new float[n];
    for (long r = 0; r < dense.rows(); r++) {
      readRow(dense, r, row);
      for (int i = 0; i < n; i++) {
        kept[i] = row[index[i]] + 0f;
      }
      write(values, kept, n, val.segment(), r * val.rowBytes());
    }
    return new LinearOp.Columns(LinearOp.dense(val), cols, in);
  }

  private static int columns(Tensor dense) {
    if (dense.rank() != 2) {
      throw new IllegalArgumentException("a matrix needs rank 2: " + dense);
    }
    return Math.toIntExact(dense.cols());
  }

  private static String stem(String name) {
    return name.endsWith(".weight") ? name.substring(0, name.length() - 7) : name;
  }

  private static void readRow(Tensor dense, long r, float[] row) {
    Dequantizer.row(dense, r, row, 0);
    for (int c = 0; c < row.length; c++) {
      if (!Float.isFinite(row[c])) {
        throw new IllegalArgumentException(
            dense.name() + "[" + r + ", " + c + "]: expected=finite actual=" + row[c]);
      }
    }
  }

  private static void write(TensorType type, float[] x, int n, MemorySegment to, long at) {
    if (n > 0) {
      Quantizer.quantize(type, x, 0, n, to, at);
    }
  }
}
