package io.fletch.graph.cpu;

import io.fletch.graph.cpu.x86.FloatMatmulCode;
import io.fletch.graph.cpu.x86.Isa;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.Locale;
import java.util.concurrent.atomic.AtomicReferenceArray;

/**
 * Products with F32, F16 and BF16 weights in their file layout, in machine code ({@link
 * FloatMatmulCode}). Nothing is packed: lanes are elements, which a file has in order.
 */
final class X86FloatMatmul implements Kernels.Matmul {
  /** Weights that stay in the level-2 cache while several tiles of activations pass over them. */
  private static final long CACHED_WEIGHTS = 256 << 10;

  private final TensorType type;
  private final int in;
  private final Isa isa;
  private final long rowBytes;
  private final long xStride;
  private final AtomicReferenceArray<MemorySegment> code;

  X86FloatMatmul(TensorType type, int in, Isa isa) {
    if (WeightBlocks.activation(type) != Kernels.ActivationFormat.F32) {
      throw new IllegalArgumentException("not a float type: actual=" + type);
    }
    if (in <= 0) {
      throw new IllegalArgumentException("empty row: expected=positive actual=" + in);
    }
    this.type = type;
    this.in = in;
    this.isa = isa;
    this.rowBytes = type.bytes(in);
    this.xStride = ActivationLayout.bytes(Kernels.ActivationFormat.F32, in);
    this.code = new AtomicReferenceArray<>(FloatMatmulCode.maxTokens() + 1);
  }

  @Override
  public String name() {
    return type.name().toLowerCase(Locale.ROOT) + " rows " + isa.label();
  }

  @Override
  public Kernels.ActivationFormat activation() {
    return Kernels.ActivationFormat.F32;
  }

  @Override
  public boolean packs() {
    return false;
  }

  @Override
  public long packedBytes(long out) {
    return Math.multiplyExact(out, rowBytes);
  }

  @Override
  public int rowGranule() {
    return 1;
  }

  @Override
  public void pack(MemorySegment rowMajor, MemorySegment packed, long out, long from, long to) {
    MemorySegment.copy(rowMajor, from * rowBytes, packed, from * rowBytes, (to - from) * rowBytes);
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
            code(tokens),
            weight.address() + o * rowBytes,
            x.address() + xOffset + row * xStride,
            y.address() + 4 * (yOffset + row * yStride + o),
            4 * yStride,
            n);
        row += tokens;
      }
    }
  }

  private MemorySegment code(int tokens) {
    MemorySegment entry = code.getAcquire(tokens);
    if (entry == null) {
      entry =
          X86Code.function(
              name() + " in=" + in + " tokens=" + tokens,
              () -> FloatMatmulCode.emit(type, in, isa, xStride, tokens));
      code.setRelease(tokens, entry);
    }
    return entry;
  }
}
