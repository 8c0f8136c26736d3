package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.graph.Op;
import io.fletch.graph.Value;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.util.Optional;

/**
 * Products with matrices that are not stored whole and have no packed form ({@link PackedMatrix}):
 * a warp computes one element of up to eight rows.
 */
final class SparseKernels {
  private final Emitter emit;
  private final Control control;

  SparseKernels(Emitter emit, Control control) {
    this.emit = emit;
    this.control = control;
  }

  /** What both kernels share: who computes what, and how results are stored. */
  private final class Product {
    final Op.Linear op;
    final int tile = Math.min(Emitter.TILE, control.rows());
    final PtxKernel k = new PtxKernel(Emitter.THREADS);
    final PtxRegister block = k.parameter(U64);
    final PtxRegister weights = k.parameter(U64);
    final PtxRegister x = k.parameter(U64);
    final PtxRegister y = k.parameter(U64);
    final Optional<PtxRegister> biases;
    final PtxRegister count;
    final PtxRegister first = k.mul(k.special("ctaid.y"), tile);
    final PtxRegister thread = k.special("tid.x");
    final PtxRegister lane = k.and(thread, 31);
    final PtxRegister o = k.fma(k.special("ctaid.x"), Emitter.WARPS, k.shr(thread, 5));
    final PtxRegister[] at = new PtxRegister[tile];
    final PtxRegister[] sums = new PtxRegister[tile];

    Product(Op.Linear op) {
      this.op = op;
      biases = op.bias().map(b -> k.parameter(U64));
      boolean logits = op.in().rows() == Value.Rows.LOGITS;
      count = k.load(U32, block, logits ? Control.LOGIT_ROWS : Control.ROWS);
      k.when(k.compare("ge", first, count), k::exit);
      k.when(k.compare("ge", o, op.out().width()), k::exit);
      PtxRegister last = k.sub(count, 1);
      for (int r = 0; r < tile; r++) {
        // Rows past the last are computed as it and not stored.
        at[r] = k.address(x, k.min(k.add(first, r), last), 4 * op.in().width());
        sums[r] = k.constant(F32, 0);
      }
    }

    void store() {
      for (int r = 0; r < tile; r++) {
        PtxRegister sum = k.warpSum(sums[r]);
        PtxRegister row = k.add(first, r);
        k.when(
            k.both(k.compare("eq", lane, 0), k.compare("lt", row, count)),
            () -> {
              PtxRegister value =
                  biases.map(b -> k.add(sum, k.load(F32, k.address(b, o, 4), 0))).orElse(sum);
              if (op.gate().isPresent()) {
                boolean logits = op.in().rows() == Value.Rows.LOGITS;
                PtxRegister batchRow =
                    logits ? k.load(U32, k.address(block, row, 4), control.logitSource()) : row;
                PtxRegister skip = emit.skipped(k, block, batchRow, op.gate().get());
                value = k.select(skip, k.constant(F32, 0), value);
              }
              k.store(F32, k.address(k.address(y, row, 4 * op.out().width()), o, 4), 0, value);
            });
      }
    }
  }

  /** Parameters: control, the matrix as {@link SparseForm#fill} has it, in, out, bias if any. */
  PtxKernel sparse(Op.Linear op, SparseForm form) {
    Product p = new Product(op);
    form.products(p.k, p.weights, p.o, p.lane, p.at, p.sums);
    p.store();
    return p.k;
  }

  /** Parameters: control, blocks, in, out, bias if any. */
  PtxKernel blockDiagonal(Op.Linear op, Tensor blocks, TensorType type) {
    int high = Math.toIntExact(blocks.dim(1));
    int wide = Math.toIntExact(blocks.dim(2));
    Product p = new Product(op);
    PtxKernel k = p.k;
    PtxRegister data = k.address(p.weights, p.o, Emitter.rowBytes(type, wide));
    PtxRegister part = k.div(p.o, high);
    PtxRegister[] at = new PtxRegister[p.tile];
    for (int r = 0; r < p.tile; r++) {
      at[r] = k.address(p.at[r], part, 4 * wide);
    }
    ExpertKernels.products(k, type, data, wide, p.lane, at, p.sums);
    p.store();
    return k;
  }
}
