package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.B16;
import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.graph.Op;
import io.fletch.graph.Value;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Optional;

/**
 * Products with matrices that are not stored whole and have no packed form ({@link PackedMatrix}):
 * a warp computes one element of up to eight rows. Bitmaps and blocks lie on the device as they lie
 * in the file ({@link BitmapMatrix}, {@link BlockMatrix}), other sparse matrices as the columns and
 * values of their kept elements, row after row, where kept zeros are left out.
 */
final class SparseKernels {
  /**
   * Where the parts of a sparse matrix lie: 32-bit starts of the rows and of the end, columns of 16
   * bits where they suffice, else of 32, values of the stored type, float32 for quantized ones.
   *
   * @param kept room for elements
   */
  record Layout(long out, long in, long kept, TensorType type) {
    static Layout of(SparseMatrix m) {
      TensorType stored = m.values().type();
      TensorType type =
          switch (stored) {
            case F16, BF16 -> stored;
            default -> TensorType.F32;
          };
      if (m.kept() > Integer.MAX_VALUE) {
        throw new IllegalArgumentException("kept elements: expected<2^31 actual=" + m.kept());
      }
      return new Layout(m.out(), m.in(), m.kept(), type);
    }

    boolean isNarrow() {
      return in <= 65_536;
    }

    long columns() {
      return (4 * (out + 1) + 15) / 16 * 16;
    }

    long values() {
      return (columns() + kept * (isNarrow() ? 2 : 4) + 15) / 16 * 16;
    }

    long bytes() {
      return values() + type.bytes(kept);
    }

    /** The matrix in this form. */
    MemorySegment fill(SparseMatrix m, Arena arena) {
      MemorySegment to = arena.allocate(bytes(), 16);
      float[] row = new float[Math.toIntExact(in)];
      float[] scratch = new float[m.rowScratch()];
      int n = 0;
      for (int r = 0; r < out; r++) {
        to.set(ValueLayout.JAVA_INT, 4L * r, n);
        m.row(r, row, scratch);
        for (int c = 0; c < row.length; c++) {
          if (row[c] != 0) {
            put(to, n++, c, row[c]);
          }
        }
      }
      to.set(ValueLayout.JAVA_INT, 4 * out, n);
      return to;
    }

    private void put(MemorySegment to, long n, int column, float value) {
      if (isNarrow()) {
        to.set(ValueLayout.JAVA_SHORT, columns() + 2 * n, (short) column);
      } else {
        to.set(ValueLayout.JAVA_INT, columns() + 4 * n, column);
      }
      switch (type) {
        case F16 -> to.set(ValueLayout.JAVA_SHORT, values() + 2 * n, Float.floatToFloat16(value));
        case BF16 ->
            to.set(
                ValueLayout.JAVA_SHORT,
                values() + 2 * n,
                (short) (Float.floatToRawIntBits(value) >>> 16));
        default -> to.set(ValueLayout.JAVA_FLOAT, values() + 4 * n, value);
      }
    }
  }

  /** Bytes of a matrix on the device. */
  static long bytes(SparseMatrix m) {
    return BitmapMatrix.of(m)
        .map(BitmapMatrix::bytes)
        .or(() -> BlockMatrix.of(m).map(BlockMatrix::bytes))
        .orElseGet(() -> Layout.of(m).bytes());
  }

  /** The bytes of a matrix on the device. */
  static MemorySegment fill(SparseMatrix m, Arena arena) {
    return BitmapMatrix.of(m)
        .map(b -> b.fill(m, arena))
        .or(() -> BlockMatrix.of(m).map(b -> b.fill(m, arena)))
        .orElseGet(() -> Layout.of(m).fill(m, arena));
  }

  /** Name of the kernel of a matrix. */
  static String name(SparseMatrix m) {
    return BitmapMatrix.of(m)
        .map(BitmapMatrix::name)
        .or(() -> BlockMatrix.of(m).map(b -> "sparse_block_" + b.type()))
        .orElse("sparse_" + m.kind());
  }

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

  /** Parameters: control, the matrix as {@link #fill} has it, in, out, bias if any. */
  PtxKernel sparse(Op.Linear op, SparseMatrix m) {
    Optional<BitmapMatrix> bitmap = BitmapMatrix.of(m);
    Optional<BlockMatrix> blocks = BlockMatrix.of(m);
    if (bitmap.isEmpty() && blocks.isEmpty()) {
      return sparse(op, Layout.of(m));
    }
    Product p = new Product(op);
    bitmap.ifPresent(b -> b.products(p.k, p.weights, p.o, p.lane, p.at, p.sums));
    blocks.ifPresent(b -> b.products(p.k, p.weights, p.o, p.lane, p.at, p.sums));
    p.store();
    return p.k;
  }

  private PtxKernel sparse(Op.Linear op, Layout layout) {
    Product p = new Product(op);
    PtxKernel k = p.k;
    String space = "global.nc";
    PtxRegister starts = k.address(p.weights, p.o, 4);
    PtxRegister i = k.add(k.load(space, U32, starts, 0), p.lane);
    PtxRegister end = k.load(space, U32, starts, 4);
    k.loop(
        i,
        end,
        32,
        () -> {
          PtxRegister column =
              layout.isNarrow()
                  ? k.convert(
                      "",
                      U32,
                      "u32",
                      k.load(space, B16, k.address(p.weights, i, 2), layout.columns()),
                      "u16")
                  : k.load(space, U32, k.address(p.weights, i, 4), layout.columns());
          PtxRegister w =
              switch (layout.type()) {
                case F16 ->
                    Emitter.half(
                        k, k.load(space, B16, k.address(p.weights, i, 2), layout.values()));
                case BF16 ->
                    k.bfloat(k.load(space, B16, k.address(p.weights, i, 2), layout.values()));
                default -> k.load(space, F32, k.address(p.weights, i, 4), layout.values());
              };
          for (int r = 0; r < p.tile; r++) {
            PtxRegister v = k.load(F32, k.address(p.at[r], column, 4), 0);
            k.fmaInto(p.sums[r], w, v, p.sums[r]);
          }
        });
    p.store();
    return k;
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
