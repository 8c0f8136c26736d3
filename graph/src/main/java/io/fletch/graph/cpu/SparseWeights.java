package io.fletch.graph.cpu;

import io.fletch.quant.LinearOp;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import java.lang.foreign.MemorySegment;
import java.util.Optional;

/** Chooses the kernel of a stored matrix that is not dense. Stateless. */
final class SparseWeights {
  private SparseWeights() {}

  /** A matrix ready for a kernel that reads its tensors as they are; nothing is copied. */
  static PreparedWeight prepare(LinearOp op, Kernels kernels) {
    return switch (op) {
      case LinearOp.Sparse s ->
          switch (s.matrix()) {
            case SparseMatrix.Bitmap m -> prepared(kernels.bitmapMatmul(m), m.values(), op);
            case SparseMatrix.BitmapCodes m -> prepared(kernels.bitmapMatmul(m), m.values(), op);
            case SparseMatrix.TwoOfFour m -> prepared(kernels.twoOfFourMapped(m), m.values(), op);
            case SparseMatrix.Block m -> prepared(BlockMatmul.of(m, kernels), m.values(), op);
          };
      case LinearOp.BlockDiagonal b ->
          prepared(BlockMatmul.diagonal(b.blocks(), kernels), b.blocks(), op);
      case LinearOp.Dense d -> throw composed(op);
      case LinearOp.LowRank l -> throw composed(op);
      case LinearOp.Sum s -> throw composed(op);
      case LinearOp.Chain c -> throw composed(op);
      case LinearOp.Columns c -> throw composed(op);
    };
  }

  /** What packing the matrix takes; empty where its kernel reads it as it is. */
  static Optional<PackedMatrices.Job> job(LinearOp op, Kernels kernels) {
    return op instanceof LinearOp.Sparse s && s.matrix() instanceof SparseMatrix.TwoOfFour m
        ? Optional.of(new PackedMatrices.Job(m.values(), kernels.twoOfFourMatmul(m)))
            .filter(job -> job.kernel().packs() && m.out() > 0)
        : Optional.empty();
  }

  private static IllegalStateException composed(LinearOp op) {
    return new IllegalStateException("not one sparse matrix: " + op);
  }

  private static PreparedWeight prepared(Kernels.Matmul kernel, Tensor values, LinearOp op) {
    MemorySegment data = values.segment();
    return new PreparedWeight(kernel, data, op.out(), op.bytes());
  }
}
