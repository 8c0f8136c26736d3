package io.fletch.graph.cpu;

import io.fletch.graph.cpu.x86.FloatMatmulCode;
import io.fletch.graph.cpu.x86.Isa;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.Locale;

/**
 * Products with F32, F16 and BF16 weights in their file layout, in machine code ({@link
 * FloatMatmulCode}). Nothing is packed: lanes are elements, which a file has in order.
 */
final class X86FloatMatmul extends FileLayoutMatmul {
  /** Weights that stay in the level-2 cache while several tiles of activations pass over them. */
  private static final long CACHED_WEIGHTS = 256 << 10;

  private final Isa isa;
  private final X86Functions code;

  X86FloatMatmul(TensorType type, int in, Isa isa) {
    super(type, in);
    if (activation != Kernels.ActivationFormat.F32) {
      throw new IllegalArgumentException("not a float type: actual=" + type);
    }
    this.isa = isa;
    this.code = new X86Functions(FloatMatmulCode.maxTokens() + 1, this::emit);
  }

  @Override
  public String name() {
    return type.name().toLowerCase(Locale.ROOT) + " rows " + isa.label();
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
    Operands.checkRange(out, out, from, to, rowGranule());
    if (from == to || rows == 0) {
      return;
    }
    // The padding behind the last row need not be there.
    long xBytes = (rows - 1) * xStride + 4L * in;
    Operands.check(
        weight, packedBytes(out), x, xOffset, xBytes, rows, y, yOffset + from, yStride, to - from);
    int max = FloatMatmulCode.maxTokens();
    int tiles = (rows + max - 1) / max;
    long step = tiles == 1 ? to - from : Math.max(8, CACHED_WEIGHTS / rowBytes & -8);
    for (long o = from; o < to; o += step) {
      long n = Math.min(step, to - o);
      for (int tile = 0, row = 0; tile < tiles; tile++) {
        int tokens = GroupTiles.tokens(rows, tiles, tile);
        X86Code.call(
            code.get(tokens),
            weight.address() + o * rowBytes,
            x.address() + xOffset + row * xStride,
            y.address() + 4 * (yOffset + row * yStride + o),
            4 * yStride,
            n);
        row += tokens;
      }
    }
  }

  private MemorySegment emit(int tokens) {
    return X86Code.function(
        name() + " in=" + in + " tokens=" + tokens,
        () -> FloatMatmulCode.emit(type, in, isa, xStride, tokens));
  }
}
