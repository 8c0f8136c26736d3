package io.fletch.graph.cuda;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.quant.SparseMatrix;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/**
 * How a sparse matrix without a packed form ({@link PackedMatrix}) lies on the device, and the loop
 * of its product. Bitmaps and blocks lie there as they lie in the file, others as lists of kept
 * elements. Immutable.
 */
sealed interface SparseForm permits BitmapMatrix, BlockMatrix, KeptMatrix {
  /** The form of a matrix. */
  static SparseForm of(SparseMatrix m) {
    return BitmapMatrix.of(m)
        .<SparseForm>map(b -> b)
        .or(() -> BlockMatrix.of(m))
        .orElseGet(() -> KeptMatrix.of(m));
  }

  /** Parts begin at multiples of 16 bytes. */
  static long aligned(long bytes) {
    return (bytes + 15) / 16 * 16;
  }

  /** Checks that 32 bits count the kept elements. */
  static long checkKept(long kept) {
    if (kept > Integer.MAX_VALUE) {
      throw new IllegalArgumentException("kept elements: expected<2^31 actual=" + kept);
    }
    return kept;
  }

  /** Name of the kernel. */
  String name();

  /** Bytes on the device. */
  long bytes();

  /** The matrix in this form. */
  MemorySegment fill(SparseMatrix m, Arena arena);

  /**
   * Adds the products of the warp's row of the matrix with rows of activations to the lane's sums.
   *
   * @param matrix where it lies
   * @param at where the rows of activations lie, as many as there are sums
   */
  void products(
      PtxKernel k,
      PtxRegister matrix,
      PtxRegister row,
      PtxRegister lane,
      PtxRegister[] at,
      PtxRegister[] sums);
}
