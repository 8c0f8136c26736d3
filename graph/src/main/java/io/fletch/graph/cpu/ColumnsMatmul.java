package io.fletch.graph.cpu;

import io.fletch.graph.cpu.x86.ColumnsMatmulCode;
import io.fletch.graph.cpu.x86.Isa;
import io.fletch.graph.cpu.x86.PackColumnsCode;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Locale;
import java.util.Objects;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicLong;

/**
 * Products with activations many of which are zero (behind ReLU, squared ReLU, or a choice of the
 * largest): weights are packed so that a column of a panel of outputs is contiguous, and columns
 * whose activation is zero are not read. Outputs take the others in ascending order, {@code y =
 * fma(x_j, w_j, y)} from +0, and a zero of either sign ends as +0, so a row has the same bits
 * beside any others.
 *
 * <p>A column whose activation is a zero of either sign adds nothing, whatever its weights are:
 * those that are infinite or not a number do not make the outputs NaN there, as they do in a dense
 * product. Activations that are not finite are no zeros.
 *
 * <p>How it goes is chosen by what is measured: a few rows take their own columns from a list, if
 * together they have fewer than there are; else four rows at a time take all columns. These
 * multiply zeros, which is the same where weights are finite; panels where some are not are marked
 * when they are packed, and taken from lists by any number of rows.
 *
 * <p>Where there is no machine code for the instruction set, plain Java gives the same bits.
 */
final class ColumnsMatmul implements SkippingMatmul {
  /** Outputs of a panel. */
  static final int PANEL = 256;

  /** Bytes behind the columns of a panel, of which the first is 1 where a weight is not finite. */
  private static final int MARK_BYTES = 64;

  private static final MemorySegment ZEROS = MemorySegment.ofArray(new float[PANEL]);

  /** Of the rows that a thread works on: columns that are not zero. */
  private static final ThreadLocal<long[]> COUNTS =
      ThreadLocal.withInitial(() -> new long[ColumnsMatmulCode.ROWS * 2]);

  /** Where lists begin in the memory of a thread: behind the address that one ended at. */
  private static final int LISTS = 64;

  /** Machine code lists a multiple of so many columns. */
  private static final int LISTED_TOGETHER = 16;

  /** Columns whose weights stay in a cache while all rows pass over them. */
  private static final int CACHED_COLUMNS = 128;

  /** Elements of a row up to which its panels are packed by machine code. */
  private static final int MOST_CODED = 1 << 24;

  private final TensorType type;
  private final int in;
  private final Optional<Isa> isa;
  private final long xStride;
  private final AtomicLong skipped = new AtomicLong();

  /** Code for lists, and for panels by their outputs over 16. */
  private final X86Function list;

  private final X86Functions listed = new X86Functions(PANEL / 16 + 1, this::emitListed);
  private final X86Functions dense = new X86Functions(PANEL / 16 + 1, this::emitDense);

  /** Products of a type with rows of {@code in} elements. */
  ColumnsMatmul(TensorType type, int in, Optional<Isa> isa) {
    if (!ColumnsMatmulCode.supports(type) || in < 1) {
      throw new IllegalArgumentException("expected=a float type, in>=1 actual=" + type + " " + in);
    }
    this.type = type;
    this.in = in;
    this.isa = isa;
    xStride = ActivationLayout.bytes(Kernels.ActivationFormat.F32, in);
    list =
        new X86Function(
            "list of columns " + isa.map(Isa::label).orElse("scalar"),
            () -> ColumnsMatmulCode.list(isa.orElseThrow()));
  }

  @Override
  public long skippedBytes() {
    return skipped.get();
  }

  @Override
  public String name() {
    return type.name().toLowerCase(Locale.ROOT)
        + " columns x"
        + PANEL
        + " "
        + isa.map(Isa::label).orElse("scalar");
  }

  @Override
  public Kernels.ActivationFormat activation() {
    return Kernels.ActivationFormat.F32;
  }

  @Override
  public boolean packs() {
    return true;
  }

  @Override
  public long packedBytes(long out) {
    // The last panel is as wide as it must be.
    long last = out % PANEL == 0 ? 0 : columnsBytes(width(out % PANEL)) + MARK_BYTES;
    return out / PANEL * (columnsBytes(PANEL) + MARK_BYTES) + last;
  }

  private long columnsBytes(long width) {
    return type.bytes(in * width);
  }

  private static long width(long outputs) {
    return (outputs + 15) & -16;
  }

  @Override
  public int rowGranule() {
    return PANEL;
  }

  @Override
  public void pack(MemorySegment rowMajor, MemorySegment packed, long out, long from, long to) {
    Operands.checkRange(out, out, from, to, PANEL);
    Objects.checkFromIndexSize(0, type.bytes(in * to), rowMajor.byteSize());
    Objects.checkFromIndexSize(0, packedBytes(out), packed.byteSize());
    boolean coded = isa.isPresent() && in <= MOST_CODED;
    for (long first = from; first < to; first += PANEL) {
      int outputs = (int) Math.min(PANEL, out - first);
      int width = (int) width(outputs);
      MemorySegment rows =
          rowMajor.asSlice(type.bytes(in * first), type.bytes((long) in * outputs));
      MemorySegment panel = packed.asSlice(packedBytes(first), columnsBytes(width) + MARK_BYTES);
      int doneRows = coded ? outputs & -PackColumnsCode.strip(type) : 0;
      int doneColumns = coded ? in & -PackColumnsCode.columns(type) : 0;
      boolean finite = true;
      if (doneRows > 0 && doneColumns > 0) {
        finite = packStrips(rows, panel, width, doneRows, doneColumns);
      } else {
        doneRows = 0;
      }
      for (int o = 0; o < outputs; o++) {
        int begin = o < doneRows ? doneColumns : 0;
        finite &= packRow(rows, o, begin, panel, width);
      }
      for (int j = 0; outputs < width && j < in; j++) {
        panel
            .asSlice(type.bytes((long) j * width + outputs), type.bytes(width - outputs))
            .fill((byte) 0);
      }
      MemorySegment mark = panel.asSlice(columnsBytes(width));
      mark.fill((byte) 0);
      mark.set(ValueLayout.JAVA_BYTE, 0, (byte) (finite ? 0 : 1));
    }
  }

  /** Packs the first rows and columns of a panel; whether all of them are finite. */
  private boolean packStrips(
      MemorySegment rows, MemorySegment panel, int width, int toRow, int toColumn) {
    MemorySegment code =
        X86Code.function(
            "pack " + name() + " in=" + in + " width=" + width,
            () -> PackColumnsCode.floats(type, in, width));
    int strip = PackColumnsCode.strip(type);
    long mark = columnsBytes(width);
    boolean finite = true;
    // A line of all columns at a time.
    for (int o = 0; o < toRow; o += PackColumnsCode.LINE * strip) {
      X86Code.call(
          code,
          rows.address() + type.bytes((long) in * o),
          panel.address() + type.bytes(o),
          toColumn / PackColumnsCode.columns(type),
          Math.min(PackColumnsCode.LINE, (toRow - o) / strip),
          panel.address() + mark);
      finite &= panel.get(ValueLayout.JAVA_LONG_UNALIGNED, mark) == 0;
    }
    return finite;
  }

  /** Packs a row of a panel from a column on; whether all of it is finite. */
  private boolean packRow(
      MemorySegment rows, int output, int begin, MemorySegment panel, int width) {
    boolean finite = true;
    for (int j = begin; j < in; j++) {
      long from = (long) output * in + j;
      long at = (long) j * width + output;
      if (type == TensorType.F32) {
        int v = rows.get(ValueLayout.JAVA_INT_UNALIGNED, 4 * from);
        panel.set(ValueLayout.JAVA_INT_UNALIGNED, 4 * at, v);
        finite &= (v & 0x7f800000) != 0x7f800000;
      } else {
        int exponent = type == TensorType.F16 ? 0x7c00 : 0x7f80;
        short v = rows.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * from);
        panel.set(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * at, v);
        finite &= (v & exponent) != exponent;
      }
    }
    return finite;
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
    Operands.checkRange(out, out, from, to, PANEL);
    if (from == to || rows == 0) {
      return;
    }
    long xBytes = (rows - 1) * xStride + 4L * in;
    Operands.check(
        weight, packedBytes(out), x, xOffset, xBytes, rows, y, yOffset + from, yStride, to - from);
    X86Scratch scratch = X86Scratch.get();
    // The end of a list, then lists of all rows that may be taken from lists, one behind the other,
    // then outputs that are wider than the result.
    int few = Math.min(rows, ColumnsMatmulCode.ROWS * 2 - 1);
    MemorySegment lists =
        scratch.piece(LISTS + 8L * in * few + 4L * PANEL * ColumnsMatmulCode.ROWS);
    long total = 0;
    long[] counts = COUNTS.get();
    if (rows == few) {
      for (int r = 0; r < rows; r++) {
        counts[r] = list(x, xOffset + r * xStride, lists, LISTS + 8L * in * r);
        total += counts[r];
      }
    }
    boolean byList = rows == few && (rows < ColumnsMatmulCode.ROWS || total <= in);
    if (rows == 1) {
      skipped.addAndGet(type.bytes((in - counts[0]) * (to - from)));
    }
    for (long first = from; first < to; first += PANEL) {
      int outputs = (int) Math.min(PANEL, out - first);
      long panel = packedBytes(first);
      boolean marked = weight.get(ValueLayout.JAVA_BYTE, panel + columnsBytes(width(outputs))) != 0;
      int listedRows = byList || marked ? rows : rows % ColumnsMatmulCode.ROWS;
      int denseRows = rows - listedRows;
      dense(weight, panel, outputs, x, xOffset, denseRows, y, yOffset + first, yStride, lists);
      for (int r = denseRows; r < rows; r++) {
        long count = rows == few ? counts[r] : list(x, xOffset + r * xStride, lists, LISTS);
        long at = rows == few ? LISTS + 8L * in * r : LISTS;
        listed(weight, panel, outputs, lists, at, count, y, yOffset + first + r * yStride);
      }
    }
  }

  /**
   * Writes the columns of a row that are not zero, with their factors; returns how many. To list
   * all for every range of outputs costs less than the workers' waiting for one that does it.
   */
  private long list(MemorySegment x, long from, MemorySegment to, long at) {
    long end = at;
    int j = 0;
    if (isa.isPresent() && in >= LISTED_TOGETHER) {
      j = in & -LISTED_TOGETHER;
      X86Code.call(list.entry(), x.address() + from, j, to.address() + at, to.address(), 0);
      end = to.get(ValueLayout.JAVA_LONG, 0) - to.address();
    }
    for (; j + 1 < in; j += 2) {
      long both = x.get(ValueLayout.JAVA_LONG_UNALIGNED, from + 4L * j);
      if ((both & 0x7fffffff_7fffffffL) == 0) {
        continue;
      }
      end = put((int) both, j, to, end);
      end = put((int) (both >>> 32), j + 1, to, end);
    }
    if (j < in) {
      end = put(x.get(ValueLayout.JAVA_INT_UNALIGNED, from + 4L * j), j, to, end);
    }
    return (end - at) / 8;
  }

  private static long put(int bits, int column, MemorySegment to, long at) {
    if (bits << 1 == 0) {
      return at;
    }
    to.set(ValueLayout.JAVA_LONG_UNALIGNED, at, column | (long) bits << 32);
    return at + 8;
  }

  private void listed(
      MemorySegment weight,
      long panel,
      int outputs,
      MemorySegment lists,
      long at,
      long count,
      MemorySegment y,
      long yAt) {
    int width = (int) width(outputs);
    boolean direct = width == outputs;
    MemorySegment to = direct ? y : lists;
    long base = direct ? 4 * yAt : lists.byteSize() - 4L * PANEL;
    base = direct ? base : base & -64;
    MemorySegment.copy(ZEROS, 0, to, base, 4L * width);
    if (isa.isPresent()) {
      X86Code.call(
          listed.get(width / 16),
          to.address() + base,
          weight.address() + panel,
          lists.address() + at,
          count,
          0);
    } else {
      for (long k = 0; k < count; k++) {
        int column = lists.get(ValueLayout.JAVA_INT_UNALIGNED, at + 8 * k);
        float factor = lists.get(ValueLayout.JAVA_FLOAT_UNALIGNED, at + 8 * k + 4);
        add(weight, panel, width, column, factor, to, base);
      }
      for (int o = 0; o < width; o++) {
        float sum = to.get(ValueLayout.JAVA_FLOAT_UNALIGNED, base + 4L * o);
        to.set(ValueLayout.JAVA_FLOAT_UNALIGNED, base + 4L * o, sum + 0f);
      }
    }
    if (!direct) {
      MemorySegment.copy(to, base, y, 4 * yAt, 4L * outputs);
    }
  }

  private void add(
      MemorySegment weight,
      long panel,
      int width,
      int column,
      float factor,
      MemorySegment y,
      long base) {
    for (int o = 0; o < width; o++) {
      float w = element(weight, panel + type.bytes((long) column * width + o));
      float sum = y.get(ValueLayout.JAVA_FLOAT_UNALIGNED, base + 4L * o);
      y.set(ValueLayout.JAVA_FLOAT_UNALIGNED, base + 4L * o, Math.fma(factor, w, sum));
    }
  }

  private float element(MemorySegment s, long at) {
    return switch (type) {
      case F32 -> s.get(ValueLayout.JAVA_FLOAT_UNALIGNED, at);
      case F16 -> Float.float16ToFloat(s.get(ValueLayout.JAVA_SHORT_UNALIGNED, at));
      default -> Float.intBitsToFloat(s.get(ValueLayout.JAVA_SHORT_UNALIGNED, at) << 16);
    };
  }

  /** Rows in fours take all columns. */
  private void dense(
      MemorySegment weight,
      long panel,
      int outputs,
      MemorySegment x,
      long xOffset,
      int rows,
      MemorySegment y,
      long yAt,
      long yStride,
      MemorySegment scratch) {
    if (rows == 0) {
      return;
    }
    int width = (int) width(outputs);
    if (width != outputs || isa.isEmpty()) {
      for (int r = 0; r < rows; r++) {
        long count = list(x, xOffset + r * xStride, scratch, LISTS);
        listed(weight, panel, outputs, scratch, LISTS, count, y, yAt + r * yStride);
      }
      return;
    }
    for (int r = 0; r < rows; r++) {
      MemorySegment.copy(ZEROS, 0, y, 4 * (yAt + r * yStride), 4L * width);
    }
    MemorySegment code = dense.get(width / 16);
    long columnBytes = type.bytes(width);
    for (int j = 0; j < in; j += CACHED_COLUMNS) {
      int columns = Math.min(CACHED_COLUMNS, in - j);
      for (int r = 0; r < rows; r += ColumnsMatmulCode.ROWS) {
        X86Code.call(
            code,
            y.address() + 4 * (yAt + r * yStride),
            4 * yStride,
            weight.address() + panel + j * columnBytes,
            x.address() + xOffset + r * xStride + 4L * j,
            columns);
      }
    }
  }

  private MemorySegment emitListed(int lines) {
    return X86Code.function(
        name() + " listed " + 16 * lines,
        () -> ColumnsMatmulCode.listed(type, isa.orElseThrow(), 16 * lines));
  }

  private MemorySegment emitDense(int lines) {
    return X86Code.function(
        name() + " in=" + in + " dense " + 16 * lines,
        () -> ColumnsMatmulCode.dense(type, isa.orElseThrow(), 16 * lines, xStride));
  }
}
