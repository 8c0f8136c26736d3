package io.fletch.graph.cpu;

import io.fletch.graph.cpu.x86.Isa;
import io.fletch.graph.cpu.x86.TwoOfFourCode;
import io.fletch.graph.cpu.x86.TwoOfFourLayout;
import io.fletch.quant.SparseMatrix;
import java.lang.foreign.MemorySegment;
import java.util.Objects;

/**
 * Products with one 2:4 matrix of Q8_0 or Q4_0 values in machine code ({@link TwoOfFourCode}),
 * which reads a packed layout. Mapped, a few groups of rows at a time are packed in plain Java
 * before they are multiplied: right, but slow, and only for machines without memory for a copy.
 */
final class X86TwoOfFour implements Kernels.Matmul {
  private static final long PIECE = 64 << 10;

  private final SparseMatrix.TwoOfFour m;
  private final boolean mapped;
  private final Isa isa;
  private final TwoOfFourLayout layout;
  private final long xStride;
  private final GroupTiles tiles;

  X86TwoOfFour(SparseMatrix.TwoOfFour m, Isa isa, boolean mapped) {
    this.m = m;
    this.isa = isa;
    this.mapped = mapped;
    int in = Math.toIntExact(m.in());
    layout = new TwoOfFourLayout(m.values().type(), in, isa);
    xStride = ActivationLayout.bytes(activation(), in);
    tiles =
        new GroupTiles(
            layout.lanes(), layout.groupBytes(), xStride, TwoOfFourCode.maxTokens(isa), this::code);
  }

  private MemorySegment code(int tokens) {
    int in = Math.toIntExact(m.in());
    return X86Code.function(
        ScalarSparse.name(m, isa.label()) + " in=" + in + " tokens=" + tokens,
        () ->
            TwoOfFourCode.emit(
                layout, isa, xStride, ActivationLayout.scalesOffset(activation(), in), tokens));
  }

  @Override
  public String name() {
    String form = mapped ? "mapped " : "x" + layout.lanes() + " ";
    return ScalarSparse.name(m, form + isa.label());
  }

  @Override
  public Kernels.ActivationFormat activation() {
    return Kernels.ActivationFormat.Q8_BLOCK32;
  }

  @Override
  public boolean packs() {
    return !mapped;
  }

  @Override
  public long packedBytes(long out) {
    return mapped ? m.values().rowBytes() * out : layout.bytes(out);
  }

  @Override
  public int rowGranule() {
    return layout.lanes();
  }

  /** As the interface has it, but for rows of this matrix only: its index is not in the values. */
  @Override
  public void pack(MemorySegment rowMajor, MemorySegment packed, long out, long from, long to) {
    Operands.checkRange(m.out(), out, from, to, layout.lanes());
    Objects.checkFromIndexSize(0, to * m.values().rowBytes(), rowMajor.byteSize());
    Objects.checkFromIndexSize(0, packedBytes(out), packed.byteSize());
    if (mapped) {
      long at = from * m.values().rowBytes();
      MemorySegment.copy(rowMajor, at, packed, at, (to - from) * m.values().rowBytes());
      return;
    }
    long offset = from / layout.lanes() * layout.groupBytes();
    layout.pack(rowMajor, m.index().segment(), from, to, packed, offset);
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
    Operands.checkRange(m.out(), out, from, to, layout.lanes());
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
      tiles.run(w, xAddress, rows, y, yByte, 4 * yStride, to - from);
      return;
    }
    long groups = Math.max(1, PIECE / layout.groupBytes());
    long step = groups * layout.lanes();
    MemorySegment piece = X86Scratch.get().piece(groups * layout.groupBytes());
    for (long o = from; o < to; o += step) {
      long n = Math.min(step, to - o);
      layout.pack(weight, m.index().segment(), o, o + n, piece, 0);
      tiles.run(piece.address(), xAddress, rows, y, yByte + 4 * (o - from), 4 * yStride, n);
    }
  }
}
