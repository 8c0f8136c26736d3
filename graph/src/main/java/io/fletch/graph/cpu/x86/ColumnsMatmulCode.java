package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Opmask;
import io.fletch.ffm.x86.Vec;
import io.fletch.quant.TensorType;

/**
 * Generates products with a panel of weights that lies column after column: a panel is a fixed
 * number of outputs, a multiple of 16, and a column of it is contiguous. Outputs are in memory and
 * take one column after the other, {@code y = fma(x_j, w_j, y)} in ascending order of columns, and
 * a zero of either sign ends as +0, so leaving out columns whose {@code x_j} is zero changes no bit
 * where weights are finite.
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

  /**
   * Code of {@code void (long x, long columns, long list, long end)}: writes the list that {@link
   * #listed} takes of the columns, a multiple of 16, whose factor is not zero, and its end as an
   * address to {@code end}. Nothing is written {@code 8 * columns} bytes behind the beginning of
   * the list or later.
   */
  public static byte[] list(Isa isa) {
    return new ColumnsMatmulCode(TensorType.F32, isa, 16).list();
  }

  private byte[] list() {
    // The parameters are x, columns, list, end; the next column is counted in a register.
    if (isWide) {
      listCompressed();
    } else {
      a.push(I);
      listBranchFree();
      a.pop(I);
    }
    a.mov(Mem.of(FOURTH), THIRD);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /** Sixteen columns at a time: factors and numbers that stay move together, then alternate. */
  private void listCompressed() {
    Vec x = lanes.reg(0);
    Vec numbers = lanes.reg(1);
    Vec keptNumbers = lanes.reg(2);
    Vec keptFactors = lanes.reg(3);
    Vec low = lanes.reg(4);
    Vec high = lanes.reg(5);
    Vec[] order = {lanes.reg(6), lanes.reg(7)};
    Vec magnitude = lanes.reg(8);
    Vec sixteen = lanes.reg(9);
    int[] iota = new int[16];
    int[][] pairs = new int[2][16];
    for (int i = 0; i < 16; i++) {
      iota[i] = i;
      pairs[0][i] = i / 2 + i % 2 * 16;
      pairs[1][i] = 8 + i / 2 + i % 2 * 16;
    }
    a.vmovups(numbers, a.ints(iota));
    a.vmovups(order[0], a.ints(pairs[0]));
    a.vmovups(order[1], a.ints(pairs[1]));
    a.vmovups(magnitude, a.repeated(0x7fffffff, lanes.bytes));
    a.vmovups(sixteen, a.repeated(16, lanes.bytes));
    var loop = a.here();
    a.vmovups(x, Mem.of(Y));
    a.vptestmd(Opmask.K1, x, magnitude);
    a.kmovw(Gpr.RAX, Opmask.K1);
    a.popcnt(Gpr.RAX, Gpr.RAX);
    a.zeroed(Opmask.K1);
    a.vpcompressd(keptFactors, x);
    a.zeroed(Opmask.K1);
    a.vpcompressd(keptNumbers, numbers);
    a.vmovups(low, order[0]);
    a.vpermi2d(low, keptNumbers, keptFactors);
    a.vmovups(high, order[1]);
    a.vpermi2d(high, keptNumbers, keptFactors);
    a.vmovups(Mem.of(THIRD), low);
    a.vmovups(Mem.of(THIRD, 64), high);
    a.lea(THIRD, Mem.of(THIRD, Gpr.RAX, 8, 0));
    a.vpaddd(numbers, numbers, sixteen);
    a.add(Y, 64);
    a.sub(W, 16);
    a.jcc(Condition.G, loop);
  }

  /** Eight columns at a time, all written behind each other where not all of them are zero. */
  private void listBranchFree() {
    Vec zero = lanes.reg(0);
    Vec equal = lanes.reg(1);
    Vec none = lanes.reg(2);
    Gpr number = Gpr.R9;
    Gpr bits = Gpr.RAX;
    Gpr value = Gpr.R10;
    Gpr step = Gpr.R11;
    a.vpxor(zero, zero, zero);
    a.vpcmpeqd(none, none, none);
    a.mov(number, 0L);
    var loop = a.here();
    var next = a.label();
    a.vmovups(equal, Mem.of(Y));
    a.vpaddd(equal, equal, equal);
    a.vpcmpeqd(equal, equal, zero);
    a.vpxor(equal, equal, none);
    a.vmovmskps(bits, equal);
    a.test(bits, bits);
    a.jcc(Condition.E, next);
    for (int i = 0; i < 8; i++) {
      a.lea(I, Mem.of(number, i));
      a.mov32(Mem.of(THIRD), I);
      a.mov32(value, Mem.of(Y, 4 * i));
      a.mov32(Mem.of(THIRD, 4), value);
      a.mov32(step, bits);
      a.and32(step, 1);
      a.lea(THIRD, Mem.of(THIRD, step, 8, 0));
      a.shr32(bits, 1);
    }
    a.bind(next);
    a.add(Y, 32);
    a.add(number, 8);
    a.sub(W, 8);
    a.jcc(Condition.G, loop);
  }

  private byte[] listed() {
    a.push(I);
    a.pushAll(NEXT);
    listedColumns(4);
    listedColumns(1);
    positiveZeros(Y);
    a.popAll(NEXT);
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

  /** Adds +0, which makes -0, the rest of a product too small for a float, +0. */
  private void positiveZeros(Gpr row) {
    Vec zero = lanes.reg(0);
    Vec y = lanes.reg(1);
    a.vpxor(zero, zero, zero);
    overOutputs(offset -> {
      Mem at = Mem.of(row, I, Float.BYTES / elementBytes, offset * Float.BYTES * floats);
      a.vaddps(y, zero, at);
      a.vmovups(at, y);
    });
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
    for (Gpr row : rows) {
      positiveZeros(row);
    }
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
