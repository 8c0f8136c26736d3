package io.fletch.graph.cpu;

import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.graph.cpu.x86.CodeColumnsCode;
import io.fletch.graph.cpu.x86.Isa;
import io.fletch.graph.cpu.x86.PackColumnsCode;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Locale;
import java.util.Objects;
import java.util.concurrent.atomic.AtomicLong;

/**
 * Products with one matrix of Q4_0 or Q8_0 and activations many of which are zero, in machine code
 * ({@link CodeColumnsCode}): weights are packed so that a column of a panel of outputs is
 * contiguous, and columns whose activation has the code zero are not read. Sums within a block are
 * exact, and blocks of zeros add nothing to an accumulator, which is never -0 (all that is added
 * are multiples of the smallest float); so results have the bits of all other products of the type.
 *
 * <p>That is for few rows. Many, and panels where zeros count because a scale is not finite,
 * multiply the tensor as it is, as mapped weights are.
 */
final class CodeColumnsMatmul implements SkippingMatmul {
  /** Outputs of a panel. */
  static final int PANEL = CodeColumnsCode.PANEL;

  /** Bytes behind a panel, of which the first is 1 where a scale is not finite. */
  private static final int MARK_BYTES = 64;

  /** Rows up to which lists of any length are faster than packing mapped weights piece by piece. */
  private static final int MOST_ROWS = 24;

  /** Elements of a row up to which whole panels are packed by machine code. */
  private static final int MOST_CODED = 1 << 22;

  private static final int SCALE_EXPONENT = 0x7c00;

  private final MemorySegment tensor;
  private final TensorType type;
  private final long rows;
  private final int in;
  private final Isa isa;
  private final Kernels.Matmul mapped;
  private final int blockBytes;
  private final int columnBytes;
  private final long panelBytes;
  private final long xStride;
  private final int listBytes;
  private final MemorySegment product;
  private final MemorySegment list;
  private final AtomicLong skipped = new AtomicLong();

  /** Products with a matrix. */
  CodeColumnsMatmul(Tensor weight, Isa isa) {
    type = weight.type();
    if (!supports(type, isa)) {
      throw new IllegalArgumentException(
          "expected=Q4_0 or Q8_0, AVX-512 actual=" + type + " " + isa);
    }
    this.isa = isa;
    tensor = weight.segment();
    rows = weight.rows();
    in = Math.toIntExact(weight.cols());
    mapped = new X86Matmul(type, in, isa, true);
    blockBytes = CodeColumnsCode.blockBytes(type);
    columnBytes = CodeColumnsCode.columnBytes(type);
    panelBytes = (long) (in / 32) * blockBytes + MARK_BYTES;
    xStride = ActivationLayout.bytes(activation(), in);
    listBytes = CodeColumnsCode.listBytes(in);
    String name = type + " columns in=" + in;
    product = X86Code.function(name, () -> CodeColumnsCode.emit(type, in));
    long scales = ActivationLayout.scalesOffset(activation(), in);
    long sums = ActivationLayout.sumsOffset(activation(), in);
    list = X86Code.function(name + " list", () -> CodeColumnsCode.list(type, in, scales, sums));
  }

  /** Whether there is such a product. */
  static boolean supports(TensorType type, Isa isa) {
    return CodeColumnsCode.supports(type) && isa == Isa.AVX512_VNNI;
  }

  @Override
  public long skippedBytes() {
    return skipped.get();
  }

  @Override
  public String name() {
    return type.name().toLowerCase(Locale.ROOT) + " columns x" + PANEL + " " + isa.label();
  }

  @Override
  public ActivationFormat activation() {
    return ActivationFormat.Q8_BLOCK32;
  }

  @Override
  public boolean packs() {
    return true;
  }

  @Override
  public long packedBytes(long out) {
    return Math.ceilDiv(out, PANEL) * panelBytes;
  }

  @Override
  public int rowGranule() {
    return PANEL;
  }

  @Override
  public void pack(MemorySegment rowMajor, MemorySegment packed, long out, long from, long to) {
    Operands.checkRange(out, out, from, to, PANEL);
    long rowBytes = type.bytes(in);
    Objects.checkFromIndexSize(0, to * rowBytes, rowMajor.byteSize());
    Objects.checkFromIndexSize(0, packedBytes(out), packed.byteSize());
    for (long first = from; first < to; first += PANEL) {
      MemorySegment panel = packed.asSlice(packedBytes(first), panelBytes);
      int outputs = (int) Math.min(PANEL, to - first);
      if (outputs == PANEL && in <= MOST_CODED) {
        packWhole(rowMajor.address() + first * rowBytes, panel);
        continue;
      }
      panel.fill((byte) 0);
      boolean finite = true;
      // Block by block, whose columns stay in the nearest cache.
      for (int b = 0; b < in / 32; b++) {
        MemorySegment block = panel.asSlice((long) b * blockBytes, blockBytes);
        long at = first * rowBytes + b * type.bytes(32);
        for (int o = 0; o < outputs; o++) {
          finite &= packBlock(rowMajor, at + o * rowBytes, block, o);
        }
      }
      panel.set(ValueLayout.JAVA_BYTE, panelBytes - MARK_BYTES, (byte) (finite ? 0 : 1));
    }
  }

  /** Packs a panel that has all its outputs, line by line: its rows begin at an address. */
  private void packWhole(long source, MemorySegment panel) {
    MemorySegment code =
        X86Code.function(
            "pack " + type + " columns in=" + in, () -> PackColumnsCode.codes(type, in));
    MemorySegment mark = panel.asSlice(panelBytes - MARK_BYTES);
    mark.fill((byte) 0);
    int step = PackColumnsCode.outputs(type);
    boolean finite = true;
    for (int o = 0; o < PANEL; o += step) {
      long scales = panel.address() + 2L * o;
      long line = panel.address() + 2L * PANEL + 64L * (o / step);
      X86Code.call(code, source + o * type.bytes(in), line, in / 32, scales, mark.address());
      finite &= mark.get(ValueLayout.JAVA_LONG_UNALIGNED, 0) == 0;
    }
    mark.set(ValueLayout.JAVA_LONG_UNALIGNED, 0, finite ? 0 : 1);
  }

  /** Writes a block of a row to its place among the outputs; whether its scale is finite. */
  private boolean packBlock(MemorySegment rowMajor, long from, MemorySegment block, int output) {
    short scale = rowMajor.get(ValueLayout.JAVA_SHORT_UNALIGNED, from);
    block.set(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * output, scale);
    long codes = from + Short.BYTES;
    int place = output % 16 / 4 * 16 + output % 64 / 16 * 4 + output % 4;
    long at = 2L * PANEL + place;
    if (type == TensorType.Q4_0) {
      at += output / 128 * 64;
      int shift = output % 128 / 64 * 4;
      for (int j = 0; j < 16; j++) {
        int both = rowMajor.get(ValueLayout.JAVA_BYTE, codes + j);
        put(block, at + (long) j * columnBytes, (both & 15) << shift);
        put(block, at + (long) (j + 16) * columnBytes, (both >>> 4 & 15) << shift);
      }
    } else {
      at += output / 64 * 64;
      for (int j = 0; j < 32; j++) {
        byte code = rowMajor.get(ValueLayout.JAVA_BYTE, codes + j);
        block.set(ValueLayout.JAVA_BYTE, at + (long) j * columnBytes, (byte) (code ^ 0x80));
      }
    }
    return (scale & SCALE_EXPONENT) != SCALE_EXPONENT;
  }

  private static void put(MemorySegment block, long at, int bits) {
    int other = block.get(ValueLayout.JAVA_BYTE, at);
    block.set(ValueLayout.JAVA_BYTE, at, (byte) (other | bits));
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
    Operands.checkRange(this.rows, out, from, to, PANEL);
    if (from == to || rows == 0) {
      return;
    }
    Operands.check(
        weight,
        packedBytes(out),
        x,
        xOffset,
        rows * xStride,
        rows,
        y,
        yOffset + from,
        yStride,
        to - from);
    if (rows > MOST_ROWS) {
      mapped.run(tensor, out, from, to, x, xOffset, rows, y, yOffset, yStride);
      return;
    }
    // Lists of all rows, then the outputs of a panel.
    MemorySegment lists = X86Scratch.get().piece((long) MOST_ROWS * listBytes + 4L * PANEL);
    for (int r = 0; r < rows; r++) {
      long at = x.address() + xOffset + r * xStride;
      X86Code.call(list, at, lists.address() + (long) r * listBytes, 0, 0, 0);
    }
    if (rows == 1) {
      long blocks = lists.get(ValueLayout.JAVA_LONG, 0);
      long columns = lists.get(ValueLayout.JAVA_LONG, 8);
      long read = blocks * 2 * PANEL + columns * columnBytes;
      long panels = Math.ceilDiv(to - from, PANEL);
      skipped.addAndGet(panels * ((long) (in / 32) * blockBytes - read));
    }
    boolean marked = false;
    for (long first = from; first < to; first += PANEL) {
      if (isMarked(weight, first)) {
        marked = true;
      } else {
        long outputs = Math.min(PANEL, out - first);
        panel(weight, first, outputs, lists, rows, y, yOffset + first, yStride);
      }
    }
    // Last, for the same memory is used.
    for (long first = from; marked && first < to; first += PANEL) {
      if (isMarked(weight, first)) {
        long end = Math.min(to, first + PANEL);
        mapped.run(tensor, out, first, end, x, xOffset, rows, y, yOffset, yStride);
      }
    }
  }

  private boolean isMarked(MemorySegment weight, long first) {
    return weight.get(ValueLayout.JAVA_BYTE, packedBytes(first) + panelBytes - MARK_BYTES) != 0;
  }

  private void panel(
      MemorySegment weight,
      long first,
      long outputs,
      MemorySegment lists,
      int rows,
      MemorySegment y,
      long yAt,
      long yStride) {
    long result = (long) MOST_ROWS * listBytes;
    long panel = weight.address() + packedBytes(first);
    for (int r = 0; r < rows; r++) {
      long at = 4 * (yAt + r * yStride);
      long target = outputs == PANEL ? y.address() + at : lists.address() + result;
      X86Code.call(product, target, panel, lists.address() + (long) r * listBytes, 0, 0);
      if (outputs < PANEL) {
        MemorySegment.copy(lists, result, y, at, 4 * outputs);
      }
    }
  }
}
