package io.fletch.graph.cpu;

import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.Locale;

/**
 * Products with block-sparse and block-diagonal matrices: the dense kernel of the set for each
 * stored block, whose results are added in the order of the blocks. Values of block types, whose
 * kernels want quantized activations, are converted to float32 one row of a block at a time.
 */
final class BlockMatmul extends RowsMatmul {
  private final String name;
  private final Kernels kernels;
  private final Kernels.Matmul dense;
  private final TensorType type;
  private final long blockRows;
  private final int blockColumns;
  private final long blocks;
  private final int in;

  /** Blocks before each row of blocks. */
  private final int[] start;

  /** Column of blocks of each block. */
  private final int[] column;

  private BlockMatmul(String kind, Tensor values, int in, int[] start, int[] column, Kernels k) {
    this.kernels = k;
    type = values.type();
    blocks = values.dim(0);
    blockRows = values.dim(1);
    blockColumns = Math.toIntExact(values.dim(2));
    this.in = in;
    this.start = start;
    this.column = column;
    boolean floats = WeightBlocks.activation(type) == Kernels.ActivationFormat.F32;
    dense = k.matmul(floats ? type : TensorType.F32, blockColumns);
    String by =
        floats ? dense.name() : type.name().toLowerCase(Locale.ROOT) + " as " + dense.name();
    name = kind + " " + blockRows + "x" + blockColumns + " of " + by;
  }

  static BlockMatmul of(SparseMatrix.Block m, Kernels kernels) {
    int[] start = m.rowStart().segment().toArray(Segments.INT);
    int[] column = m.column().segment().toArray(Segments.INT);
    return new BlockMatmul("block", m.values(), Math.toIntExact(m.in()), start, column, kernels);
  }

  static BlockMatmul diagonal(Tensor blocks, Kernels kernels) {
    int n = Math.toIntExact(blocks.dim(0));
    int[] start = new int[n + 1];
    int[] column = new int[n];
    for (int i = 0; i < n; i++) {
      start[i + 1] = i + 1;
      column[i] = i;
    }
    int in = Math.toIntExact(n * blocks.dim(2));
    return new BlockMatmul("block diagonal", blocks, in, start, column, kernels);
  }

  @Override
  public String name() {
    return name;
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
    for (long o = from; o < to; ) {
      int blockRow = (int) (o / blockRows);
      long end = Math.min(to, (blockRow + 1) * blockRows);
      for (int r = 0; r < rows; r++) {
        long at = yOffset + r * yStride;
        long row = xOffset + r * stride(in) * Float.BYTES;
        int first = start[blockRow];
        if (first == start[blockRow + 1]) {
          for (long i = o; i < end; i++) {
            Segments.f32(y, at + i, 0f);
          }
        }
        for (int b = first; b < start[blockRow + 1]; b++) {
          long xb = row + (long) column[b] * blockColumns * Float.BYTES;
          long i0 = b * blockRows + o - blockRow * blockRows;
          if (b == first) {
            product(weight, i0, i0 + end - o, x, xb, y, at + o - i0);
          } else {
            MemorySegment part = X86Scratch.get().floats((int) blockRows);
            product(weight, i0, i0 + end - o, x, xb, part, -i0);
            for (long i = o; i < end; i++) {
              Segments.f32(y, at + i, Segments.f32(y, at + i) + Segments.f32(part, i - o));
            }
          }
        }
      }
      o = end;
    }
  }

  /** Rows {@code [from, to)} of the stacked blocks times a part of the input. */
  private void product(
      MemorySegment weight,
      long from,
      long to,
      MemorySegment x,
      long xb,
      MemorySegment y,
      long at) {
    if (WeightBlocks.activation(type) == Kernels.ActivationFormat.F32) {
      dense.run(weight, blocks * blockRows, from, to, x, xb, 1, y, at, 0);
      return;
    }
    MemorySegment row = X86Scratch.get().piece(4L * blockColumns);
    for (long o = from; o < to; o++) {
      long bytes = type.bytes(o * blockColumns);
      kernels.dequantize(type, weight, bytes, blockColumns, 1f, row, 0);
      dense.run(row, 1, 0, 1, x, xb, 1, y, at + o, 0);
    }
  }
}
