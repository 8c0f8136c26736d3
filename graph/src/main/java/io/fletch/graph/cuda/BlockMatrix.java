package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Optional;

/**
 * How a block-sparse matrix lies on the device, and the loop of its product: the three tensors of
 * the file, each at a multiple of 16 bytes. A warp has a row of the matrix. Columns of blocks that
 * are not kept are not read, so what is not finite there has no effect.
 *
 * @param type of the values, one that kernels read as it is stored
 * @param high rows of a block
 * @param wide columns of a block
 * @param blocksAt where the columns of blocks begin
 * @param valuesAt where the values begin
 * @param bytes on the device
 */
record BlockMatrix(TensorType type, int high, int wide, long blocksAt, long valuesAt, long bytes)
    implements SparseForm {
  private static final String SPACE = "global.nc";

  /** The form of a matrix; empty for those without blocks and for types without a kernel. */
  static Optional<BlockMatrix> of(SparseMatrix m) {
    if (!(m instanceof SparseMatrix.Block b) || !Emitter.isNative(b.values().type())) {
      return Optional.empty();
    }
    SparseForm.checkKept(b.kept());
    Tensor values = b.values();
    long blocksAt = SparseForm.aligned(b.rowStart().bytes());
    long valuesAt = blocksAt + SparseForm.aligned(b.column().bytes());
    return Optional.of(
        new BlockMatrix(
            values.type(),
            Math.toIntExact(values.dim(1)),
            Math.toIntExact(values.dim(2)),
            blocksAt,
            valuesAt,
            valuesAt + values.bytes()));
  }

  @Override
  public String name() {
    return "sparse_block_" + type;
  }

  @Override
  public MemorySegment fill(SparseMatrix m, Arena arena) {
    MemorySegment to = arena.allocate(bytes, 16);
    long[] at = {0, blocksAt, valuesAt};
    for (int i = 0; i < at.length; i++) {
      Tensor t = m.tensors().get(i);
      MemorySegment.copy(t.segment(), 0, to, at[i], t.bytes());
    }
    return to;
  }

  @Override
  public void products(
      PtxKernel k,
      PtxRegister matrix,
      PtxRegister row,
      PtxRegister lane,
      PtxRegister[] at,
      PtxRegister[] sums) {
    PtxRegister starts = k.address(matrix, k.div(row, high), 4);
    PtxRegister inBlock = k.rem(row, high);
    PtxRegister values = k.add(matrix, k.constant(U64, valuesAt));
    PtxRegister block = k.load(SPACE, U32, starts, 0);
    PtxRegister end = k.load(SPACE, U32, starts, 4);
    if (wide % 32 == 0) {
      k.loop(
          block,
          end,
          1,
          () -> {
            PtxRegister place = k.load(SPACE, U32, k.address(matrix, block, 4), blocksAt);
            PtxRegister stored = k.fma(block, high, inBlock);
            PtxRegister data = k.address(values, stored, Emitter.rowBytes(type, wide));
            PtxRegister[] x = new PtxRegister[at.length];
            for (int r = 0; r < x.length; r++) {
              x[r] = k.address(at[r], place, 4 * wide);
            }
            ExpertKernels.products(k, type, data, wide, lane, x, sums);
          });
      return;
    }
    // Narrow blocks: the lanes go over the kept columns of the row.
    PtxRegister i = k.fma(block, wide, lane);
    k.loop(
        i,
        k.mul(end, wide),
        32,
        () -> {
          PtxRegister of = k.div(i, wide);
          PtxRegister column = k.rem(i, wide);
          PtxRegister place = k.load(SPACE, U32, k.address(matrix, of, 4), blocksAt);
          PtxRegister stored = k.fma(k.fma(of, high, inBlock), wide, column);
          PtxRegister w = Emitter.weight(k, type, values, stored, k.constant(U32, 0));
          PtxRegister x = k.fma(place, wide, column);
          for (int r = 0; r < at.length; r++) {
            k.fmaInto(sums[r], w, k.load(F32, k.address(at[r], x, 4), 0), sums[r]);
          }
        });
  }
}
