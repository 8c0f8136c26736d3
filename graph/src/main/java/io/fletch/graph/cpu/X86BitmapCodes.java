package io.fletch.graph.cpu;

import io.fletch.ffm.CpuFeatures;
import io.fletch.graph.cpu.x86.BitmapCodesCode;
import io.fletch.graph.cpu.x86.Isa;
import io.fletch.graph.cpu.x86.SparseMatmulCode;
import io.fletch.quant.SparseMatrix;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Products with one bitmap of codes in machine code ({@link BitmapCodesCode}), from the bytes of
 * its file, but for the last rows, behind whose codes the code reads: these are copied first.
 */
final class X86BitmapCodes extends RowsMatmul {
  /** Weights that stay in the level-2 cache while several tiles of activations pass over them. */
  private static final long CACHED_WEIGHTS = 256 << 10;

  /** Which the code of the process refers to. */
  private static final class Table {
    static final long ADDRESS =
        Arena.global().allocateFrom(ValueLayout.JAVA_BYTE, BitmapCodesCode.table()).address();
  }

  private final SparseMatrix.BitmapCodes m;
  private final int in;
  private final boolean wide;
  private final int maxTokens;

  /** Rows that the code can do where they lie. */
  private final long safe;

  private final X86Functions code;

  X86BitmapCodes(SparseMatrix.BitmapCodes m, Isa isa) {
    this.m = m;
    wide = SparseMatmulCode.isWide(isa, CpuFeatures.host());
    in = Math.toIntExact(m.in());
    long rows = m.out();
    while (rows > 0 && m.start(rows) + BitmapCodesCode.BEHIND > m.codes().bytes()) {
      rows--;
    }
    safe = rows;
    maxTokens = BitmapCodesCode.maxTokens(wide);
    code = new X86Functions(maxTokens + 1, this::emit);
  }

  @Override
  public String name() {
    return ScalarSparse.name(m, wide ? "avx512-vbmi2" : "avx2");
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
    Operands.checkRange(m.out(), out, from, to, rowGranule());
    if (from == to || rows == 0) {
      return;
    }
    long xStride = ActivationLayout.bytes(activation(), in);
    Operands.check(
        weight,
        m.values().bytes(),
        x,
        xOffset,
        rows * xStride,
        rows,
        y,
        yOffset + from,
        yStride,
        to - from);
    int tiles = (rows + maxTokens - 1) / maxTokens;
    long rowBytes = Math.max(1, m.bytes() / out);
    long step = tiles == 1 ? out : Math.max(8, CACHED_WEIGHTS / rowBytes);
    MemorySegment scratch =
        X86Scratch.get().piece(64 + BitmapCodesCode.scratchBytes(in, maxTokens, wide));
    for (long o = from; o < to; ) {
      long n = o < safe ? Math.min(step, Math.min(to, safe) - o) : 1;
      long codes = o < safe ? weight.address() + m.start(o) : copy(weight, o).address();
      for (int tile = 0, row = 0; tile < tiles; tile++) {
        int tokens = GroupTiles.tokens(rows, tiles, tile);
        scratch.set(Segments.LONG, 0, codes);
        scratch.set(Segments.LONG, 8, m.mask().segment().address() + o * m.mask().cols());
        long scales = o * m.scales().rowBytes();
        scratch.set(Segments.LONG, 16, m.scales().segment().address() + scales);
        scratch.set(Segments.LONG, 24, x.address() + xOffset + row * xStride);
        scratch.set(Segments.LONG, 32, y.address() + 4 * (yOffset + row * yStride + o));
        scratch.set(Segments.LONG, 40, n);
        scratch.set(Segments.LONG, 48, 4 * yStride);
        scratch.set(Segments.LONG, 56, scratch.address() + 64);
        X86Code.call(code.get(tokens), scratch.address(), 0, 0, 0, 0);
        row += tokens;
      }
      o += n;
    }
  }

  /** The codes of a row, with room behind them. */
  private MemorySegment copy(MemorySegment weight, long row) {
    MemorySegment to = X86Scratch.get().floats((in + BitmapCodesCode.BEHIND) / 4 + 1);
    MemorySegment.copy(weight, m.start(row), to, 0, m.start(row + 1) - m.start(row));
    return to;
  }

  private MemorySegment emit(int tokens) {
    return X86Code.function(
        name() + " in=" + in + " tokens=" + tokens,
        () ->
            BitmapCodesCode.emit(
                m.bits(),
                in,
                ActivationLayout.bytes(activation(), in),
                ActivationLayout.scalesOffset(activation(), in),
                tokens,
                wide,
                Table.ADDRESS));
  }
}
