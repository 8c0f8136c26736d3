package io.fletch.graph.cpu;

import io.fletch.graph.cpu.x86.Isa;
import io.fletch.graph.cpu.x86.MatmulCode;
import io.fletch.graph.cpu.x86.PackCode;
import io.fletch.graph.cpu.x86.PackedLayout;
import io.fletch.graph.cpu.x86.RowMajorCode;
import io.fletch.graph.cpu.x86.Streaming;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.Locale;
import java.util.Objects;

/**
 * Products with quantized weights in machine code ({@link MatmulCode}), which reads a packed
 * layout.
 *
 * <p>With packed weights that is all. With mapped ones (the file's own bytes, for a start without
 * packing) a few groups of rows at a time are packed into the level-2 cache and multiplied from
 * there: for many rows of activations at nearly the same speed. Few rows multiply them where they
 * are ({@link RowMajorCode}).
 */
final class X86Matmul implements Kernels.Matmul {
  /** Packed bytes that a thread of a mapped product has in work. */
  private static final long PIECE = 128 << 10;

  private final boolean mapped;
  private final TensorType type;
  private final int in;
  private final Isa isa;
  private final PackedLayout layout;
  private final Kernels.ActivationFormat activation;
  private final String kernelName;
  private final long rowBytes;
  private final long xStride;

  /** Several rows of activations. */
  private final GroupTiles tiles;

  /** The product in place. */
  private final X86Function inPlace;

  /** How a single row reads weights, and the entries of all ways. */
  private final StreamingChoice streaming;

  private final X86Functions single;

  X86Matmul(TensorType type, int in, Isa isa, boolean mapped) {
    this(type, in, isa, mapped, StreamingChoice.of(type, isa));
  }

  /** With a choice of its own instead of the one that all products of the process make together. */
  X86Matmul(TensorType type, int in, Isa isa, boolean mapped, StreamingChoice streaming) {
    this.mapped = mapped;
    this.type = type;
    this.in = in;
    this.isa = isa;
    this.layout = new PackedLayout(type, in, isa);
    this.activation = WeightBlocks.activation(type);
    this.kernelName = type + " " + isa.label();
    this.rowBytes = type.bytes(in);
    this.xStride = ActivationLayout.bytes(activation, in);
    this.tiles =
        new GroupTiles(
            layout.lanes(),
            layout.groupBytes(),
            xStride,
            MatmulCode.maxTokens(layout, isa),
            this::code);
    this.streaming = streaming;
    this.single = new X86Functions(streaming.ways().size(), this::single);
    this.inPlace =
        new X86Function(
            kernelName + " in place in=" + in,
            () ->
                RowMajorCode.emit(
                    type,
                    in,
                    isa,
                    ActivationLayout.scalesOffset(activation, in),
                    ActivationLayout.sumsOffset(activation, in)));
  }

  @Override
  public String name() {
    String form = mapped ? " mapped " : " x" + layout.lanes() + " ";
    return type.name().toLowerCase(Locale.ROOT) + form + isa.label();
  }

  @Override
  public Kernels.ActivationFormat activation() {
    return activation;
  }

  @Override
  public boolean packs() {
    return !mapped;
  }

  @Override
  public long packedBytes(long out) {
    return mapped ? Math.multiplyExact(out, rowBytes) : layout.bytes(out);
  }

  @Override
  public int rowGranule() {
    return layout.lanes();
  }

  @Override
  public void pack(MemorySegment rowMajor, MemorySegment packed, long out, long from, long to) {
    Operands.checkRange(out, out, from, to, layout.lanes());
    if (mapped) {
      long at = from * rowBytes;
      MemorySegment.copy(rowMajor, at, packed, at, (to - from) * rowBytes);
      return;
    }
    if (from == to) {
      return;
    }
    Objects.checkFromIndexSize(0, to * rowBytes, rowMajor.byteSize());
    Objects.checkFromIndexSize(0, layout.bytes(out), packed.byteSize());
    packGroups(rowMajor, from, to, packed, from / layout.lanes() * layout.groupBytes());
  }

  /** Packs rows {@code [from, to)}, whole groups but at the end of the matrix, to a byte offset. */
  private void packGroups(
      MemorySegment rowMajor, long from, long to, MemorySegment packed, long offset) {
    int lanes = layout.lanes();
    long groups = (to - from) / lanes;
    if (groups > 0) {
      MemorySegment entry =
          X86Code.function("pack " + kernelName + " in=" + in, () -> PackCode.emit(layout));
      long source = rowMajor.address() + from * rowBytes;
      X86Code.call(entry, source, packed.address() + offset, groups, 0, 0);
    }
    if (from + groups * lanes < to) {
      long rest = from + groups * lanes;
      layout.pack(rowMajor, rest, to, packed, offset + groups * layout.groupBytes());
    }
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
    Operands.checkRange(out, out, from, to, layout.lanes());
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
    long xAddress = x.address() + xOffset;
    long yByte = 4 * (yOffset + from);
    if (!mapped) {
      long w = weight.address() + from / layout.lanes() * layout.groupBytes();
      runGroups(w, xAddress, rows, y, yByte, 4 * yStride, to - from);
      return;
    }
    if (rows <= mostInPlace(type)) {
      runInPlace(weight, from, to, xAddress, rows, y, yByte, yStride);
    } else {
      runPieces(weight, from, to, xAddress, rows, y, yByte, yStride);
    }
  }

  /** Rows of activations up to which multiplying mapped weights where they are beats packing. */
  private static int mostInPlace(TensorType type) {
    return type == TensorType.Q3_K ? 7 : 3;
  }

  /** Few rows of activations with mapped rows. */
  private void runInPlace(
      MemorySegment weight,
      long from,
      long to,
      long x,
      int rows,
      MemorySegment y,
      long yByte,
      long yStride) {
    long groups = (to - from) / RowMajorCode.ROWS;
    long groupBytes = RowMajorCode.ROWS * rowBytes;
    long step = rows == 1 ? groups : Math.max(1, PIECE / groupBytes);
    for (long g = 0; g < groups; g += step) {
      long w = weight.address() + from * rowBytes + g * groupBytes;
      long n = Math.min(step, groups - g);
      for (int row = 0; row < rows; row++) {
        long at = y.address() + yByte + 4 * (row * yStride + g * RowMajorCode.ROWS);
        inPlace.call(w, x + row * xStride, at, 0, n);
      }
    }
    long rest = from + groups * RowMajorCode.ROWS;
    runPieces(weight, rest, to, x, rows, y, yByte + 4 * (rest - from), yStride);
  }

  /** Mapped rows, packed piece by piece. */
  private void runPieces(
      MemorySegment weight,
      long from,
      long to,
      long x,
      int rows,
      MemorySegment y,
      long yByte,
      long yStride) {
    // At least two groups: a single row of activations takes them in pairs.
    long groups = Math.max(2, PIECE / layout.groupBytes());
    long step = groups * layout.lanes();
    MemorySegment piece = X86Scratch.get().piece(groups * layout.groupBytes());
    for (long o = from; o < to; o += step) {
      long n = Math.min(step, to - o);
      packGroups(weight, o, o + n, piece, 0);
      runGroups(piece.address(), x, rows, y, yByte + 4 * (o - from), 4 * yStride, n);
    }
  }

  /**
   * All tiles of a range of rows.
   *
   * @param w the first group
   * @param yByte where in y the first row of the range goes for the first token
   * @param outs rows of weights; not a multiple of the lanes only at the end of the matrix
   */
  private void runGroups(
      long w, long x, int rows, MemorySegment y, long yByte, long yStrideBytes, long outs) {
    int lanes = layout.lanes();
    long done = rows == 1 ? outs / lanes : 0;
    if (done > 0) {
      runSingle(w, x, y.address() + yByte, done);
    }
    if (done * lanes < outs) {
      long from = w + done * layout.groupBytes();
      tiles.run(from, x, rows, y, yByte + 4 * done * lanes, yStrideBytes, outs - done * lanes);
    }
  }

  private void runSingle(long w, long x, long y, long groups) {
    long bytes = groups * layout.groupBytes();
    int turn = streaming.begin(bytes);
    MemorySegment entry = single.get(streaming.way(turn));
    long start = turn < 0 ? 0 : System.nanoTime();
    X86Code.call(entry, w, x, y, 0, groups);
    if (turn >= 0) {
      streaming.end(turn, bytes, System.nanoTime() - start);
    }
  }

  private MemorySegment single(int way) {
    Streaming chosen = streaming.ways().get(way);
    return X86Code.function(
        kernelName + " in=" + in + " " + chosen,
        () ->
            MatmulCode.emit(
                layout,
                isa,
                chosen,
                xStride,
                ActivationLayout.scalesOffset(activation, in),
                ActivationLayout.sumsOffset(activation, in),
                1));
  }

  private MemorySegment code(int tokens) {
    return X86Code.function(
        kernelName + " in=" + in + " tokens=" + tokens,
        () ->
            MatmulCode.emit(
                layout,
                isa,
                Streaming.SEVERAL_ROWS,
                xStride,
                ActivationLayout.scalesOffset(activation, in),
                ActivationLayout.sumsOffset(activation, in),
                tokens));
  }
}
