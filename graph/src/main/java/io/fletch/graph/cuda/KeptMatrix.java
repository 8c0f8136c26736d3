package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.B16;
import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.U32;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.TensorType;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * A sparse matrix as the columns and values of its kept elements, row after row, where kept zeros
 * are left out: 32-bit starts of the rows and of the end, columns of 16 bits where they suffice,
 * else of 32, values of the stored type, float32 for quantized ones.
 *
 * @param kind of the matrix in the file
 * @param kept room for elements
 */
record KeptMatrix(String kind, long out, long in, long kept, TensorType type)
    implements SparseForm {
  private static final String SPACE = "global.nc";

  static KeptMatrix of(SparseMatrix m) {
    TensorType stored = m.values().type();
    TensorType type =
        switch (stored) {
          case F16, BF16 -> stored;
          default -> TensorType.F32;
        };
    return new KeptMatrix(m.kind(), m.out(), m.in(), SparseForm.checkKept(m.kept()), type);
  }

  private boolean isNarrow() {
    return in <= 65_536;
  }

  private long columnsAt() {
    return SparseForm.aligned(4 * (out + 1));
  }

  private long valuesAt() {
    return SparseForm.aligned(columnsAt() + kept * (isNarrow() ? 2 : 4));
  }

  @Override
  public String name() {
    return "sparse_" + kind;
  }

  @Override
  public long bytes() {
    return valuesAt() + type.bytes(kept);
  }

  @Override
  public MemorySegment fill(SparseMatrix m, Arena arena) {
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
      to.set(ValueLayout.JAVA_SHORT, columnsAt() + 2 * n, (short) column);
    } else {
      to.set(ValueLayout.JAVA_INT, columnsAt() + 4 * n, column);
    }
    switch (type) {
      case F16 -> to.set(ValueLayout.JAVA_SHORT, valuesAt() + 2 * n, Float.floatToFloat16(value));
      case BF16 ->
          to.set(
              ValueLayout.JAVA_SHORT,
              valuesAt() + 2 * n,
              (short) (Float.floatToRawIntBits(value) >>> 16));
      default -> to.set(ValueLayout.JAVA_FLOAT, valuesAt() + 4 * n, value);
    }
  }

  @Override
  public void products(
      PtxKernel k,
      PtxRegister matrix,
      PtxRegister row,
      PtxRegister lane,
      PtxRegister[] at,
      PtxRegister[] sums) {
    PtxRegister starts = k.address(matrix, row, 4);
    PtxRegister i = k.add(k.load(SPACE, U32, starts, 0), lane);
    PtxRegister end = k.load(SPACE, U32, starts, 4);
    k.loop(
        i,
        end,
        32,
        () -> {
          PtxRegister column = column(k, matrix, i);
          PtxRegister w = value(k, matrix, i);
          for (int r = 0; r < at.length; r++) {
            PtxRegister v = k.load(F32, k.address(at[r], column, 4), 0);
            k.fmaInto(sums[r], w, v, sums[r]);
          }
        });
  }

  private PtxRegister column(PtxKernel k, PtxRegister matrix, PtxRegister i) {
    if (!isNarrow()) {
      return k.load(SPACE, U32, k.address(matrix, i, 4), columnsAt());
    }
    PtxRegister half = k.load(SPACE, B16, k.address(matrix, i, 2), columnsAt());
    return k.convert("", U32, "u32", half, "u16");
  }

  private PtxRegister value(PtxKernel k, PtxRegister matrix, PtxRegister i) {
    if (type == TensorType.F32) {
      return k.load(SPACE, F32, k.address(matrix, i, 4), valuesAt());
    }
    PtxRegister half = k.load(SPACE, B16, k.address(matrix, i, 2), valuesAt());
    return type == TensorType.F16 ? Emitter.half(k, half) : k.bfloat(half);
  }
}
