package io.fletch.graph.cpu;

import io.fletch.ffm.CpuFeatures;
import io.fletch.graph.cpu.x86.Isa;
import io.fletch.graph.cpu.x86.SparseMatmulCode;
import io.fletch.graph.cpu.x86.SparseMatmulCode.Kind;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.TensorType;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.ConcurrentHashMap;

/**
 * Products with bitmap and 2:4 matrices and float32 activations in machine code ({@link
 * SparseMatmulCode}), from the bytes of the file. Rows at the very end of the values of a bitmap,
 * behind which the code reads, are copied first, and rows of block types are decoded.
 */
final class X86Sparse extends RowsMatmul {
  /** Weights that stay in the level-2 cache while several tiles of activations pass over them. */
  private static final long CACHED_WEIGHTS = 256 << 10;

  /** Tables of the process, which its code refers to. */
  private static final Map<List<Object>, MemorySegment> TABLES = new ConcurrentHashMap<>();

  private final Kind kind;
  private final SparseMatrix m;
  private final TensorType type;
  private final int in;
  private final boolean isWide;

  /** Whether rows of block types are decoded one by one, for the code of float32 values. */
  private final boolean isDecoded;

  private final Kernels decoder;
  private final MemorySegment index;
  private final long indexRow;

  /** Bitmap: stored values before each row. */
  private final long[] start;

  /** Rows that the code can do where they lie. */
  private final long safe;

  private final X86Functions code = new X86Functions(SparseMatmulCode.maxTokens() + 1, this::emit);

  private X86Sparse(
      Kind kind,
      SparseMatrix m,
      MemorySegment index,
      long indexRow,
      long[] start,
      Isa isa,
      Kernels kernels) {
    isWide = SparseMatmulCode.isWide(isa, CpuFeatures.host());
    this.kind = kind;
    this.m = m;
    this.index = index;
    this.indexRow = indexRow;
    this.start = start;
    type = m.values().type();
    isDecoded = type.isQuantized();
    decoder = kernels;
    in = Math.toIntExact(m.in());
    long rows = m.out();
    while (!isDecoded
        && start.length > 0
        && rows > 0
        && start[(int) rows] + 8 > m.values().elements()) {
      rows--;
    }
    safe = rows;
  }

  static Kernels.Matmul of(SparseMatrix.Bitmap m, Isa isa, Kernels kernels) {
    MemorySegment mask = m.mask().segment();
    return supports(Kind.BITMAP, m)
        ? new X86Sparse(Kind.BITMAP, m, mask, m.mask().cols(), m.valueStart(), isa, kernels)
        : ScalarSparse.of(m);
  }

  static Kernels.Matmul of(SparseMatrix.TwoOfFour m, Isa isa, Kernels kernels) {
    MemorySegment index = m.index().segment();
    return supports(Kind.TWO_OF_FOUR, m)
        ? new X86Sparse(Kind.TWO_OF_FOUR, m, index, m.index().cols(), new long[0], isa, kernels)
        : ScalarSparse.of(m);
  }

  private static boolean supports(Kind kind, SparseMatrix m) {
    TensorType type = m.values().type();
    return SparseMatmulCode.supports(
        kind, type.isQuantized() ? TensorType.F32 : type, Math.toIntExact(m.in()));
  }

  private static long table(Kind kind, TensorType type) {
    return TABLES
        .computeIfAbsent(
            List.of(kind, type),
            k -> {
              int[] ints = SparseMatmulCode.table(kind, type);
              MemorySegment s = Arena.global().allocate(4L * ints.length, 64);
              MemorySegment.copy(ints, 0, s, ValueLayout.JAVA_INT, 0, ints.length);
              return s;
            })
        .address();
  }

  @Override
  public String name() {
    return ScalarSparse.name(m, isWide ? "avx512-vbmi2" : "avx2");
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
    long xBytes = (rows - 1) * xStride + 4L * in;
    Operands.check(
        weight,
        m.values().bytes(),
        x,
        xOffset,
        xBytes,
        rows,
        y,
        yOffset + from,
        yStride,
        to - from);
    Objects.checkIndex(yStride, 1 << 29);
    int max = SparseMatmulCode.maxTokens();
    int tiles = (rows + max - 1) / max;
    long rowBytes = Math.max(1, m.bytes() / Math.max(1, out));
    long step = tiles == 1 ? out : Math.max(8, CACHED_WEIGHTS / rowBytes);
    for (long o = from; o < to; ) {
      boolean apart = isDecoded || o >= safe;
      long n = apart ? 1 : Math.min(step, Math.min(to, safe) - o);
      long values = apart ? row(weight, o).address() : weight.address() + valueOffset(o);
      for (int tile = 0, row = 0; tile < tiles; tile++) {
        int tokens = GroupTiles.tokens(rows, tiles, tile);
        X86Code.call(
            code.get(tokens),
            values,
            index.address() + o * indexRow,
            x.address() + xOffset + row * xStride,
            y.address() + 4 * (yOffset + row * yStride + o),
            n | 4 * yStride << 32);
        row += tokens;
      }
      o += n;
    }
  }

  /** The values of a row, decoded or as they are, with room behind them. */
  private MemorySegment row(MemorySegment weight, long row) {
    // The code may read eight values more than there are.
    MemorySegment to = X86Scratch.get().floats(in + type.blockSize() + 8);
    int n = kind == Kind.BITMAP ? (int) (start[(int) row + 1] - start[(int) row]) : in / 2;
    if (isDecoded && n > 0) {
      decoder.dequantize(type, weight, valueOffset(row), n, 1, to, 0);
    } else {
      MemorySegment.copy(weight, valueOffset(row), to, 0, type.bytes(n));
    }
    return to;
  }

  private long valueOffset(long row) {
    return kind == Kind.BITMAP ? type.bytes(start[(int) row]) : row * m.values().rowBytes();
  }

  private MemorySegment emit(int tokens) {
    long stride = ActivationLayout.bytes(activation(), in);
    TensorType values = isDecoded ? TensorType.F32 : type;
    return X86Code.function(
        name() + " in=" + in + " tokens=" + tokens,
        () -> SparseMatmulCode.emit(kind, values, in, stride, tokens, table(kind, values), isWide));
  }
}
