package io.fletch.quant;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.List;

/**
 * A matrix {@code [out, in]} of which only kept elements are stored, in Arrow buffers (specs
 * weights 3.1 to 3.4). What is not stored is +0. Values may have any type that a dense matrix may
 * have; their blocks run over <em>kept</em> values of one row.
 *
 * <p>Immutable; tensors are borrowed. Constructors check everything that a kernel relies on, so
 * that damaged files fail here.
 */
public sealed interface SparseMatrix {
  /** Rows. */
  long out();

  /** Columns. */
  long in();

  /** Tensors in a fixed order, structure first, values last. */
  List<Tensor> tensors();

  /** Stored values. */
  Tensor values();

  /** Kept elements, padding not counted. */
  long kept();

  /** Name of the kind, as files have it: {@code bitmap}, {@code nm} or {@code block}. */
  String kind();

  /** Name of the type of values, for people. */
  default String valueType() {
    return values().type().name();
  }

  /** Bytes read for one product. */
  default long bytes() {
    return tensors().stream().mapToLong(Tensor::bytes).sum();
  }

  /**
   * Writes row {@code row} with its zeros to {@code dst[0 .. in)}.
   *
   * @param scratch at least {@link #rowScratch} elements
   */
  void row(long row, float[] dst, float[] scratch);

  /** Elements that {@link #row} needs to work in. */
  int rowScratch();

  /**
   * Unstructured: a bit per element.
   *
   * @param in columns
   * @param mask I8 {@code [out, ceil(in / 8)]}; bit k of byte b is column {@code 8 b + k}
   * @param rowStart I64 {@code [out + 1]}: kept elements before each row
   * @param values the kept elements in order of columns; each row is padded to whole blocks
   */
  record Bitmap(long in, Tensor mask, Tensor rowStart, Tensor values) implements SparseMatrix {
    /** Checks the counts against the mask. */
    public Bitmap {
      long rows = mask.rank() == 2 ? mask.dim(0) : -1;
      check(
          mask,
          mask.type() == TensorType.I8 && rows >= 0 && mask.dim(1) == (in + 7) / 8,
          "I8 [out, " + (in + 7) / 8 + "]");
      check(
          rowStart,
          rowStart.type() == TensorType.I64
              && rowStart.rank() == 1
              && rowStart.elements() == rows + 1,
          "I64 [" + (rows + 1) + "]");
      check(values, values.rank() == 1 && isWeightType(values.type()), "weights [kept]");
      long before = 0;
      long stored = 0;
      int block = values.type().blockSize();
      long width = (in + 7) / 8;
      for (long r = 0; r < rows; r++) {
        number(rowStart, r, before);
        long n = 0;
        for (long b = 0; b < width; b++) {
          n += Integer.bitCount(mask.segment().get(ValueLayout.JAVA_BYTE, r * width + b) & 0xff);
        }
        if (in % 8 != 0
            && (mask.segment().get(ValueLayout.JAVA_BYTE, r * width + width - 1) & 0xff) >> in % 8
                != 0) {
          throw new WeightFileException(
              mask.name() + ": row " + r + ": bits beyond column " + in + ": expected=0");
        }
        before += n;
        stored += (n + block - 1) / block * block;
      }
      number(rowStart, rows, before);
      check(values, values.elements() == stored, "[" + stored + "]");
    }

    @Override
    public long out() {
      return mask.dim(0);
    }

    @Override
    public List<Tensor> tensors() {
      return List.of(mask, rowStart, values);
    }

    @Override
    public long kept() {
      return start(out());
    }

    @Override
    public String kind() {
      return "bitmap";
    }

    private long start(long row) {
      return rowStart.segment().get(ByteCursor.LONG, 8 * row);
    }

    /** Where the stored values of each row begin, padding counted; one more for the end. */
    public long[] valueStart() {
      int block = values.type().blockSize();
      long[] at = new long[Math.toIntExact(out() + 1)];
      for (int r = 0; r < at.length - 1; r++) {
        long n = start(r + 1) - start(r);
        at[r + 1] = at[r] + (n + block - 1) / block * block;
      }
      return at;
    }

    @Override
    public int rowScratch() {
      int block = values.type().blockSize();
      return Math.toIntExact((in + block - 1) / block * block);
    }

    @Override
    public void row(long row, float[] dst, float[] scratch) {
      int block = values.type().blockSize();
      long at = start(row);
      if (block > 1) {
        at = 0;
        for (long r = 0; r < row; r++) {
          at += (start(r + 1) - start(r) + block - 1) / block * block;
        }
      }
      int n = (int) ((start(row + 1) - start(row) + block - 1) / block * block);
      Dequantizer.dequantize(
          values.type(), values.segment(), values.type().bytes(at), scratch, 0, n);
      long width = mask.dim(1);
      int k = 0;
      for (int c = 0; c < in; c++) {
        int bits = mask.segment().get(ValueLayout.JAVA_BYTE, row * width + c / 8);
        dst[c] = (bits >> c % 8 & 1) != 0 ? scratch[k++] : 0f;
      }
    }
  }

  /**
   * Unstructured, with integer codes whose scale is that of their place: a bit per element, a half
   * per row and window of {@link #WINDOW} columns, and the codes of kept elements, row by row,
   * window by window, in order of columns. An element is {@code scale * code}. Where a scale lies
   * does not depend on how much is kept before it (specs weights 3.1).
   *
   * @param in columns, a multiple of 32
   * @param bits of a code: 8, signed bytes; or 4, plus 8, two in a byte, the lower half first, each
   *     window from a whole byte on
   * @param mask I8 {@code [out, in / 8]}; bit k of byte b is column {@code 8 b + k}
   * @param rowStart I64 {@code [out + 1]}: bytes of codes before each row
   * @param scales F16 {@code [out, ceil(in / 64)]}
   * @param codes I8 {@code [bytes]}
   */
  record BitmapCodes(long in, int bits, Tensor mask, Tensor rowStart, Tensor scales, Tensor codes)
      implements SparseMatrix {
    /** Columns that share a scale. */
    public static final int WINDOW = 64;

    /** Checks the counts against the mask. */
    public BitmapCodes {
      if (bits != 8 && bits != 4) {
        throw new IllegalArgumentException("bits: expected=8|4 actual=" + bits);
      }
      long rows = mask.rank() == 2 ? mask.dim(0) : -1;
      check(
          mask,
          mask.type() == TensorType.I8 && rows >= 0 && in % 32 == 0 && mask.dim(1) == in / 8,
          "I8 [out, " + in / 8 + "] for a multiple of 32 columns");
      check(
          rowStart,
          rowStart.type() == TensorType.I64
              && rowStart.rank() == 1
              && rowStart.elements() == rows + 1,
          "I64 [" + (rows + 1) + "]");
      long windows = (in + WINDOW - 1) / WINDOW;
      check(
          scales,
          scales.type() == TensorType.F16
              && scales.rank() == 2
              && scales.dim(0) == rows
              && scales.dim(1) == windows,
          "F16 [" + rows + ", " + windows + "]");
      check(codes, codes.type() == TensorType.I8 && codes.rank() == 1, "I8 [bytes]");
      long before = 0;
      for (long r = 0; r < rows; r++) {
        number(rowStart, r, before);
        for (long c = 0; c < in; c += WINDOW) {
          before += bytes(Long.bitCount(window(mask, in, r, c)), bits);
        }
      }
      number(rowStart, rows, before);
      check(codes, codes.elements() == before, "[" + before + "]");
    }

    private static long bytes(int kept, int bits) {
      return bits == 8 ? kept : (kept + 1) / 2;
    }

    /** The bits of the window that begins at column {@code c}. */
    static long window(Tensor mask, long in, long row, long c) {
      long at = (row * in + c) / 8;
      return in - c >= WINDOW
          ? mask.segment().get(ByteCursor.LONG, at)
          : mask.segment().get(ByteCursor.INT, at) & 0xffffffffL;
    }

    /** The bits of the window that begins at column {@code c}, a multiple of 64. */
    public long window(long row, long c) {
      return window(mask, in, row, c);
    }

    /** Bytes of codes before a row. */
    public long start(long row) {
      return rowStart.segment().get(ByteCursor.LONG, 8 * row);
    }

    /** Code {@code k} of the window whose codes begin at a byte of some. */
    public int code(MemorySegment of, long at, int k) {
      if (bits == 8) {
        return of.get(ValueLayout.JAVA_BYTE, at + k);
      }
      return (of.get(ValueLayout.JAVA_BYTE, at + k / 2) >> k % 2 * 4 & 15) - 8;
    }

    /** The scale of the window that begins at column {@code c}. */
    public float scale(long row, long c) {
      return Dequantizer.element(scales, row * scales.dim(1) + c / WINDOW);
    }

    /** Bytes of the codes of a window. */
    public long bytes(long window) {
      return bytes(Long.bitCount(window), bits);
    }

    @Override
    public long out() {
      return mask.dim(0);
    }

    @Override
    public List<Tensor> tensors() {
      return List.of(mask, rowStart, scales, codes);
    }

    @Override
    public Tensor values() {
      return codes;
    }

    @Override
    public long kept() {
      long n = 0;
      for (long r = 0; r < out(); r++) {
        for (long c = 0; c < in; c += WINDOW) {
          n += Long.bitCount(window(r, c));
        }
      }
      return n;
    }

    @Override
    public String kind() {
      return "bitmap";
    }

    @Override
    public String valueType() {
      return "Q" + bits;
    }

    @Override
    public int rowScratch() {
      return 0;
    }

    @Override
    public void row(long row, float[] dst, float[] scratch) {
      Arrays.fill(dst, 0, Math.toIntExact(in), 0f);
      long at = start(row);
      for (int c = 0; c < in; c += WINDOW) {
        long left = window(row, c);
        float scale = scale(row, c);
        for (int k = 0; left != 0; k++, left &= left - 1) {
          dst[c + Long.numberOfTrailingZeros(left)] = scale * code(codes.segment(), at, k);
        }
        at += bytes(window(row, c));
      }
    }
  }

  /**
   * 2:4: of every four columns two are stored, whatever their values.
   *
   * @param index I8 {@code [out, ceil(in / 8)]}: a nibble per group of four, the lower one first;
   *     its lower two bits are the column of the first value within the group, the upper two that
   *     of the second, which is larger. This is the metadata of the tensor cores' {@code mma.sp}
   *     before it is reordered for a certain instruction
   * @param values {@code [out, in / 2]}
   */
  record TwoOfFour(Tensor index, Tensor values) implements SparseMatrix {
    /** Checks that every nibble is one of the six legal ones. */
    public TwoOfFour {
      check(values, values.rank() == 2 && isWeightType(values.type()), "weights [out, in / 2]");
      long in = 2 * values.dim(1);
      check(values, in % 4 == 0, "[out, an even number]");
      check(
          index,
          index.type() == TensorType.I8
              && index.rank() == 2
              && index.dim(0) == values.dim(0)
              && index.dim(1) == (in + 7) / 8,
          "I8 [" + values.dim(0) + ", " + (in + 7) / 8 + "]");
      long width = index.dim(1);
      for (long i = 0; i < index.elements(); i++) {
        int b = index.segment().get(ValueLayout.JAVA_BYTE, i) & 0xff;
        boolean half = in % 8 != 0 && i % width == width - 1;
        if (!legal(b & 15) || (half ? b >> 4 != 0 : !legal(b >> 4))) {
          throw new WeightFileException(
              index.name()
                  + ": byte "
                  + i
                  + ": expected=nibbles 0100, 1000, 1001, 1100, 1101 or 1110 actual="
                  + Integer.toBinaryString(b));
        }
      }
    }

    private static boolean legal(int nibble) {
      return (nibble & 3) < nibble >> 2;
    }

    @Override
    public long out() {
      return values.dim(0);
    }

    @Override
    public long in() {
      return 2 * values.dim(1);
    }

    @Override
    public List<Tensor> tensors() {
      return List.of(index, values);
    }

    @Override
    public long kept() {
      return values.elements();
    }

    @Override
    public String kind() {
      return "nm";
    }

    @Override
    public int rowScratch() {
      return Math.toIntExact(values.dim(1));
    }

    @Override
    public void row(long row, float[] dst, float[] scratch) {
      Dequantizer.row(values, row, scratch, 0);
      long width = index.dim(1);
      for (int g = 0; g < in() / 4; g++) {
        int nibble = index.segment().get(ValueLayout.JAVA_BYTE, row * width + g / 2) >> g % 2 * 4;
        for (int i = 0; i < 4; i++) {
          dst[4 * g + i] = 0f;
        }
        dst[4 * g + (nibble & 3)] = scratch[2 * g];
        dst[4 * g + (nibble >> 2 & 3)] = scratch[2 * g + 1];
      }
    }
  }

  /**
   * Rectangles of equal size, of which some are stored.
   *
   * @param in columns
   * @param rowStart I32 {@code [rows of blocks + 1]}: blocks before each row of blocks
   * @param column I32 {@code [blocks]}: which column of blocks each is in, ascending in a row
   * @param values {@code [blocks, rows of a block, columns of a block]}
   */
  record Block(long in, Tensor rowStart, Tensor column, Tensor values) implements SparseMatrix {
    /** Checks the structure. */
    public Block {
      check(
          values,
          values.rank() == 3 && values.dim(1) > 0 && values.dim(2) > 0 && in % values.dim(2) == 0,
          "weights [blocks, rows, columns], columns a divisor of " + in);
      check(values, isWeightType(values.type()), "weights");
      check(
          rowStart,
          rowStart.type() == TensorType.I32 && rowStart.rank() == 1 && rowStart.elements() >= 1,
          "I32 [rows of blocks + 1]");
      check(
          column,
          column.type() == TensorType.I32
              && column.rank() == 1
              && column.elements() == values.dim(0),
          "I32 [" + values.dim(0) + "]");
      long across = in / values.dim(2);
      long rows = rowStart.elements() - 1;
      long before = 0;
      for (long r = 0; r <= rows; r++) {
        long next = rowStart.segment().get(ByteCursor.INT, 4 * r);
        if (r == 0 ? next != 0 : next < before || next > values.dim(0)) {
          throw new WeightFileException(
              rowStart.name() + "[" + r + "]: expected=ascending from 0 actual=" + next);
        }
        long last = -1;
        for (long b = before; b < next; b++) {
          long c = column.segment().get(ByteCursor.INT, 4 * b);
          if (c <= last || c >= across) {
            throw new WeightFileException(
                column.name()
                    + "["
                    + b
                    + "]: expected in ("
                    + last
                    + ", "
                    + across
                    + ") actual="
                    + c);
          }
          last = c;
        }
        before = next;
      }
      if (before != values.dim(0)) {
        throw new WeightFileException(
            rowStart.name() + ": last: expected=" + values.dim(0) + " actual=" + before);
      }
    }

    @Override
    public long out() {
      return (rowStart.elements() - 1) * values.dim(1);
    }

    @Override
    public List<Tensor> tensors() {
      return List.of(rowStart, column, values);
    }

    @Override
    public long kept() {
      return values.elements();
    }

    @Override
    public String kind() {
      return "block";
    }

    /** Blocks before a row of blocks. */
    public int start(long blockRow) {
      return rowStart.segment().get(ByteCursor.INT, 4 * blockRow);
    }

    /** Column of blocks that a block is in. */
    public int columnOf(long block) {
      return column.segment().get(ByteCursor.INT, 4 * block);
    }

    @Override
    public int rowScratch() {
      return Math.toIntExact(values.dim(2));
    }

    @Override
    public void row(long row, float[] dst, float[] scratch) {
      Arrays.fill(dst, 0, Math.toIntExact(in), 0f);
      long height = values.dim(1);
      int n = Math.toIntExact(values.dim(2));
      long r = row / height;
      for (long b = start(r); b < start(r + 1); b++) {
        Dequantizer.row(values, b * height + row % height, dst, columnOf(b) * n);
      }
    }
  }

  /** All elements in row-major order. */
  static float[] toFloats(SparseMatrix m) {
    int in = Math.toIntExact(m.in());
    float[] all = new float[Math.toIntExact(Math.multiplyExact(m.out(), m.in()))];
    float[] row = new float[in];
    float[] scratch = new float[m.rowScratch()];
    for (int r = 0; r < m.out(); r++) {
      m.row(r, row, scratch);
      System.arraycopy(row, 0, all, r * in, in);
    }
    return all;
  }

  private static boolean isWeightType(TensorType type) {
    return switch (type) {
      case I8, I16, I32, I64, F64 -> false;
      default -> true;
    };
  }

  private static void check(Tensor t, boolean ok, String expected) {
    if (!ok) {
      throw new WeightFileException(t.name() + ": expected=" + expected + " actual=" + t);
    }
  }

  private static void number(Tensor t, long i, long expected) {
    long actual = t.segment().get(ByteCursor.LONG, 8 * i);
    if (actual != expected) {
      throw new WeightFileException(
          t.name() + "[" + i + "]: expected=" + expected + " actual=" + actual);
    }
  }
}
