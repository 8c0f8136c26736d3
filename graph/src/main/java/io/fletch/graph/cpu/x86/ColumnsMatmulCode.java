package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Vec;
import io.fletch.quant.TensorType;

/**
 * Generates products with a panel of weights that lies column after column: a panel is a fixed
 * number of outputs, a multiple of 16, and a column of it is contiguous. Outputs are in memory and
 * take one column after the other, {@code y = fma(x_j, w_j, y)} in ascending order of columns, so
 * leaving out columns whose {@code x_j} is zero changes no bit.
 */
public final class ColumnsMatmulCode {
  /** Rows of activations that {@link #dense} takes. */
  public static final int ROWS = 4;

  // Parameters.
  private static final Gpr Y = Gpr.RDI;
  private static final Gpr W = Gpr.RSI;
  private static final Gpr THIRD = Gpr.RDX;
  private static final Gpr FOURTH = Gpr.RCX;
  private static final Gpr FIFTH = Gpr.R8;

  private static final Gpr[] POINTERS = {Gpr.R9, Gpr.R10, Gpr.R11, Gpr.RAX};
  private static final Gpr I = Gpr.RBX;

  /** Columns that come next, whose weights are fetched meanwhile. */
  private static final Gpr[] NEXT = {Gpr.R12, Gpr.R13, Gpr.R14, Gpr.R15};

  private final Assembler a = new Assembler();
  private final TensorType type;
  private final Lanes lanes;
  private final int floats;
  private final int outputs;
  private final int elementBytes;
  private final int columnBytes;
  private final boolean isWide;

  private ColumnsMatmulCode(TensorType type, Isa isa, int outputs) {
    this.type = type;
    this.outputs = outputs;
    lanes = new Lanes(a, isa);
    floats = isa.bytes() / Float.BYTES;
    isWide = isa.registers() == 32;
    elementBytes = Math.toIntExact(type.bytes(1));
    columnBytes = outputs * elementBytes;
  }

  /** Whether there is code for a type. */
  public static boolean supports(TensorType type) {
    return switch (type) {
      case F32, F16, BF16 -> true;
      default -> false;
    };
  }

  /**
   * Code of {@code void (long y, long w, long list, long count)} for one row: the outputs of a
   * panel take {@code count} columns of a list of pairs (column number, factor), 4 bytes each,
   * behind which four more can be read.
   *
   * @param outputs of the panel
   */
  public static byte[] listed(TensorType type, Isa isa, int outputs) {
    return new ColumnsMatmulCode(type, isa, outputs).listed();
  }

  /**
   * Code of {@code void (long y, long yStrideBytes, long w, long x, long columns)} for {@link
   * #ROWS} rows: the outputs of a panel take {@code columns} neighbouring columns, at least 1.
   *
   * @param xStride bytes from row to row of {@code x}
   */
  public static byte[] dense(TensorType type, Isa isa, int outputs, long xStride) {
    return new ColumnsMatmulCode(type, isa, outputs).dense(Math.toIntExact(xStride));
  }

  private byte[] listed() {
    a.push(I);
    for (Gpr g : NEXT) {
      a.push(g);
    }
    listedColumns(4);
    listedColumns(1);
    for (int i = NEXT.length - 1; i >= 0; i--) {
      a.pop(NEXT[i]);
    }
    a.pop(I);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /** {@code size} columns at a time, as long as there are so many. */
  private void listedColumns(int size) {
    var rest = a.label();
    a.sub(FOURTH, size);
    a.jcc(Condition.L, rest);
    var loop = a.here();
    for (int c = 0; c < size; c++) {
      a.mov32(POINTERS[c], Mem.of(THIRD, 8 * c));
      a.imul(POINTERS[c], POINTERS[c], columnBytes);
      a.add(POINTERS[c], W);
      a.vbroadcastss(lanes.reg(c), Mem.of(THIRD, 8 * c + 4));
    }
    for (int c = 0; size > 1 && c < size; c++) {
      a.mov32(NEXT[c], Mem.of(THIRD, 8 * (size + c)));
      a.imul(NEXT[c], NEXT[c], columnBytes);
      a.add(NEXT[c], W);
    }
    overOutputs(offset -> {
      // A line of each of the next columns for every line of these: 16 outputs are half a line or
      // a whole one.
      for (int c = 0; size > 1 && offset == 0 && c < size; c++) {
        a.prefetcht0(Mem.of(NEXT[c], I, 1, 0));
      }
      Vec y = lanes.reg(8 + offset % 2);
      Mem at = Mem.of(Y, I, Float.BYTES / elementBytes, offset * Float.BYTES * floats);
      a.vmovups(y, at);
      for (int c = 0; c < size; c++) {
        Vec w = lanes.reg(10 + (offset % 2 * 2 + c % 2));
        Lanes.load(a, type, w, Mem.of(POINTERS[c], I, 1, offset * elementBytes * floats));
        a.vfmadd231ps(y, lanes.reg(c), w);
      }
      a.vmovups(at, y);
    });
    a.add(THIRD, 8 * size);
    a.sub(FOURTH, size);
    a.jcc(Condition.GE, loop);
    a.bind(rest);
    a.add(FOURTH, size);
  }

  private interface Piece {
    void at(int vector);
  }

  /** A loop over the outputs in steps of 16, {@link #I} counting bytes of weights. */
  private void overOutputs(Piece piece) {
    a.mov(I, 0L);
    var loop = a.here();
    for (int v = 0; v < 16 / floats; v++) {
      piece.at(v);
    }
    a.add(I, 16 * elementBytes);
    a.cmp(I, columnBytes);
    a.jcc(Condition.L, loop);
  }

  private byte[] dense(int xStride) {
    a.push(I);
    // Rows of outputs: RDI, R9, R10, R11.
    Gpr[] rows = {Y, Gpr.R9, Gpr.R10, Gpr.R11};
    for (int r = 1; r < ROWS; r++) {
      a.mov(rows[r], rows[r - 1]);
      a.add(rows[r], W);
    }
    denseColumns(rows, isWide ? 4 : 2, xStride);
    denseColumns(rows, 1, xStride);
    a.pop(I);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private void denseColumns(Gpr[] rows, int size, int xStride) {
    var rest = a.label();
    a.sub(FIFTH, size);
    a.jcc(Condition.L, rest);
    var loop = a.here();
    for (int r = 0; r < ROWS; r++) {
      for (int c = 0; c < size; c++) {
        a.vbroadcastss(lanes.reg(r * size + c), Mem.of(FOURTH, r * xStride + 4 * c));
      }
    }
    int first = ROWS * size;
    overOutputs(offset -> {
      for (int c = 0; c < size; c++) {
        int at = c * columnBytes + offset * elementBytes * floats;
        Lanes.load(a, type, lanes.reg(first + c), Mem.of(THIRD, I, 1, at));
      }
      for (int r = 0; r < ROWS; r++) {
        Vec y = lanes.reg(first + size + r % 2);
        Mem at = Mem.of(rows[r], I, Float.BYTES / elementBytes, offset * Float.BYTES * floats);
        a.vmovups(y, at);
        for (int c = 0; c < size; c++) {
          a.vfmadd231ps(y, lanes.reg(r * size + c), lanes.reg(first + c));
        }
        a.vmovups(at, y);
      }
    });
    a.add(THIRD, size * columnBytes);
    a.add(FOURTH, 4 * size);
    a.sub(FIFTH, size);
    a.jcc(Condition.GE, loop);
    a.bind(rest);
    a.add(FIFTH, size);
  }
}
