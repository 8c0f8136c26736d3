package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Vec;
import io.fletch.quant.TensorType;
import java.util.Arrays;

/**
 * Generates the packing of panels whose columns are contiguous, for {@link ColumnsMatmulCode} and
 * {@link CodeColumnsCode}: vectors of some rows are transposed in registers by unpacking ever wider
 * elements, so that every column has 16 bytes of it behind each other.
 *
 * <p>The code tells whether there was an element (floats) or a scale (codes) that is not finite.
 */
public final class PackColumnsCode {
  /** Bytes of rows that are loaded at once: a vector of two halves, each transposed alone. */
  private static final int VECTOR = 32;

  /** Strips of rows that make a line of 64 bytes of every column. */
  public static final int LINE = 4;

  /** Bytes of a row ahead that are fetched meanwhile. */
  private static final int AHEAD = 128;

  private static final Gpr SOURCE = Gpr.RDI;
  private static final Gpr TARGET = Gpr.RSI;
  private static final Gpr REST = Gpr.RDX;
  private static final Gpr STRIPS = Gpr.RCX;
  private static final Gpr SCALES = Gpr.RCX;
  private static final Gpr RESULT = Gpr.R8;
  private static final Gpr ROW = Gpr.R9;
  private static final Gpr OUT = Gpr.R10;
  private static final Gpr COUNT = Gpr.R11;
  private static final Gpr TO = Gpr.R12;
  private static final Gpr PIECES = Gpr.R13;
  private static final Gpr FOUND = Gpr.R14;
  private static final Gpr NEXT = Gpr.R15;
  private static final Gpr T = Gpr.RAX;
  private static final Gpr[] SAVED = {Gpr.R12, Gpr.R13, Gpr.R14, Gpr.R15};

  private static final int HALF_EXPONENT = 0x7c00_7c00;

  private final Assembler a = new Assembler();

  private PackColumnsCode() {}

  /** Rows that {@link #floats} takes at a time. */
  public static int strip(TensorType type) {
    return 16 / Math.toIntExact(type.bytes(1));
  }

  /** Columns that {@link #floats} takes at a time. */
  public static int columns(TensorType type) {
    return VECTOR / Math.toIntExact(type.bytes(1));
  }

  /**
   * Code of {@code void (long source, long target, long pieces, long strips, long result)}: packs
   * {@code pieces >= 1} times {@link #columns} columns of {@code strips >= 1} times {@link #strip}
   * rows, best {@link #LINE} times, and writes 8 bytes to {@code result}, which are 0 if all
   * elements are finite.
   *
   * @param type F32, F16 or BF16
   * @param in elements of a row
   * @param outputs of the panel
   * @throws ArithmeticException if rows are too long for constants of the code
   */
  public static byte[] floats(TensorType type, int in, int outputs) {
    int element = Math.toIntExact(type.bytes(1));
    return new PackColumnsCode()
        .floats(
            element,
            switch (type) {
              case F32 -> 0x7f80_0000;
              case F16 -> HALF_EXPONENT;
              case BF16 -> 0x7f80_7f80;
              default -> throw new IllegalArgumentException("expected=a float type actual=" + type);
            },
            Math.toIntExact(type.bytes(in)),
            outputs * element);
  }

  private byte[] floats(int element, int exponent, int rowBytes, int columnBytes) {
    int rows = 16 / element;
    int stride = Math.multiplyExact(rows, rowBytes);
    Vec[] v = vectors(rows + 1);
    Vec mask = Vec.of(VECTOR, 14);
    Vec any = Vec.of(VECTOR, 15);
    save();
    a.mov(FOUND, 0L);
    a.vmovups(mask, a.repeated(exponent, VECTOR));
    Label piece = a.here();
    a.mov(ROW, SOURCE);
    a.mov(OUT, TARGET);
    a.mov(NEXT, TARGET);
    a.mov(COUNT, STRIPS);
    Label strip = a.here();
    for (int r = 0; r < rows; r++) {
      a.prefetcht0(Mem.of(ROW, r * rowBytes + AHEAD));
    }
    for (int c = 0; c < 2 * rows / LINE; c++) {
      a.prefetchw(Mem.of(NEXT, (4 * rows + c) * columnBytes));
    }
    for (int r = 0; r < rows; r++) {
      a.vmovups(v[r], Mem.of(ROW, r * rowBytes));
      Vec t = r == 0 ? any : v[rows];
      a.vpand(t, v[r], mask);
      if (element == 2) {
        a.vpcmpeqw(t, t, mask);
      } else {
        a.vpcmpeqd(t, t, mask);
      }
      if (r > 0) {
        a.vpor(any, any, t);
      }
    }
    a.vpmovmskb(T, any);
    a.or(FOUND, T);
    Vec[] columns = transposed(v, rows, element);
    for (int c = 0; c < rows; c++) {
      a.vmovups(Mem.of(OUT, c * columnBytes), columns[c].xmm());
      a.vextracti128(Mem.of(OUT, (rows + c) * columnBytes), columns[c].ymm(), 1);
    }
    a.add(ROW, stride);
    a.add(OUT, 16);
    a.add(NEXT, 2 * rows / LINE * columnBytes);
    a.dec(COUNT);
    a.jcc(Condition.NE, strip);
    a.add(SOURCE, VECTOR);
    a.add(TARGET, 2 * rows * columnBytes);
    a.dec(REST);
    a.jcc(Condition.NE, piece);
    a.mov(Mem.of(RESULT), FOUND);
    restore();
    return a.assemble();
  }

  /** Outputs of a line of a column, which {@link #codes} takes at a time. */
  public static int outputs(TensorType type) {
    return type == TensorType.Q4_0 ? 128 : 64;
  }

  /**
   * Code of {@code void (long source, long target, long blocks, long scales, long result)}: packs a
   * line of all columns, 32 of each of {@code blocks >= 1} blocks, their scales to another place,
   * and writes 8 bytes to {@code result}, which are 0 if all scales are finite. AVX-512.
   *
   * @param type Q4_0 or Q8_0
   * @param in elements of a row
   * @throws ArithmeticException if rows are too long for constants of the code
   */
  public static byte[] codes(TensorType type, int in) {
    return new PackColumnsCode().codes(type == TensorType.Q4_0, type, type.bytes(in));
  }

  private byte[] codes(boolean nibbles, TensorType type, long rowBytes) {
    int row = Math.toIntExact(rowBytes);
    int outputs = outputs(type);
    Math.multiplyExact(outputs, row);
    int columnBytes = CodeColumnsCode.columnBytes(type);
    int blockBytes = CodeColumnsCode.blockBytes(type);
    Vec[] v = vectors(17);
    Vec low = Vec.of(VECTOR, 17);
    Vec high = Vec.of(VECTOR, 18);
    save();
    a.mov(FOUND, 0L);
    a.vmovups(low, a.repeated(nibbles ? 0x0f0f0f0f : 0x80808080, VECTOR));
    a.vmovups(high, a.repeated(0xf0f0f0f0, VECTOR));
    Label block = a.here();
    a.mov(ROW, SOURCE);
    a.mov(OUT, TARGET);
    a.mov(NEXT, TARGET);
    a.mov(TO, SCALES);
    a.mov(PIECES, 4L);
    Label strip = a.here();
    // Byte 4 k + m of the l-th 16 of a line is of output 16 k + 4 l + m.
    for (int i = 0; i < 16; i++) {
      int output = i / 4 * 16 + i % 4;
      Mem at = Mem.of(ROW, output * row);
      // Lines that come some blocks later: of half of the rows, and of this quarter of columns.
      for (int upper = 0; upper < outputs; upper += 64) {
        a.prefetcht0(at.plus(upper * row + AHEAD));
      }
      if (i < 8) {
        a.prefetchw(Mem.of(NEXT, 2 * blockBytes + i * columnBytes));
      }
      for (int upper = 0; upper < outputs; upper += 64) {
        a.movzx16(T, at.plus(upper * row));
        a.mov16(Mem.of(TO, 2 * (output + upper)), T);
      }
      if (nibbles) {
        nibbles(v[i], at.plus(2), at.plus(64 * row + 2), low, high);
      } else {
        a.vpxor(v[i], low, at.plus(2));
      }
    }
    Vec[] columns = transposed(v, 16, 1);
    for (int c = 0; c < 16; c++) {
      a.vmovups(Mem.of(OUT, c * columnBytes), columns[c].xmm());
      a.vextracti32x4(Mem.of(OUT, (16 + c) * columnBytes), columns[c], 1);
    }
    a.add(ROW, 4 * row);
    a.add(OUT, 16);
    a.add(NEXT, 8 * columnBytes);
    a.add(TO, 2 * 4);
    a.dec(PIECES);
    a.jcc(Condition.NE, strip);
    finiteScales(outputs);
    a.add(SOURCE, type.blockBytes());
    a.add(TARGET, blockBytes);
    a.add(SCALES, blockBytes);
    a.dec(REST);
    a.jcc(Condition.NE, block);
    a.mov(Mem.of(RESULT), FOUND);
    restore();
    return a.assemble();
  }

  /** Columns 0 to 15 in one half, 16 to 31 in the other, of one output low and of another high. */
  private void nibbles(Vec d, Mem first, Mem second, Vec low, Vec high) {
    Vec t = Vec.of(16, 19);
    Vec u = Vec.of(16, 20);
    Vec w = Vec.of(16, 21);
    a.vmovups(t, first);
    a.vmovups(u, second);
    a.vpand(d.xmm(), u, low.xmm());
    a.vpsllw(d.xmm(), d.xmm(), 4);
    a.vpand(w, t, low.xmm());
    a.vpor(d.xmm(), d.xmm(), w);
    a.vpand(u, u, high.xmm());
    a.vpsrlw(t, t, 4);
    a.vpand(t, t, low.xmm());
    a.vpor(u, u, t);
    a.vinserti32x4(d, d, u, 1);
  }

  private void finiteScales(int outputs) {
    Vec any = Vec.of(VECTOR, 0);
    Vec t = Vec.of(VECTOR, 1);
    Vec mask = Vec.of(VECTOR, 2);
    a.vmovups(mask, a.repeated(HALF_EXPONENT, VECTOR));
    a.vpxor(any, any, any);
    for (int at = 0; at < 2 * outputs; at += VECTOR) {
      a.vpand(t, mask, Mem.of(SCALES, at));
      a.vpcmpeqw(t, t, mask);
      a.vpor(any, any, t);
    }
    a.vpmovmskb(T, any);
    a.or(FOUND, T);
  }

  private static Vec[] vectors(int n) {
    Vec[] v = new Vec[n];
    for (int i = 0; i < n; i++) {
      v[i] = Vec.of(VECTOR, i);
    }
    return v;
  }

  /**
   * Transposes each half of vectors of so many rows of 16 bytes, the register behind them being
   * free; the registers of the columns, ascending.
   */
  private Vec[] transposed(Vec[] registers, int rows, int element) {
    Vec[] v = Arrays.copyOf(registers, rows);
    Vec free = registers[rows];
    // Group g of vectors has columns, of which vector c of a group has a range.
    for (int each = 1, width = element; each < rows; each *= 2, width *= 2) {
      Vec[] next = new Vec[rows];
      for (int g = 0; g < rows / each; g += 2) {
        for (int c = 0; c < each; c++) {
          Vec first = v[g * each + c];
          Vec second = v[(g + 1) * each + c];
          unpack(width, false, free, first, second);
          unpack(width, true, second, first, second);
          next[g * each + 2 * c] = free;
          next[g * each + 2 * c + 1] = second;
          free = first;
        }
      }
      v = next;
    }
    return v;
  }

  private void unpack(int width, boolean high, Vec d, Vec first, Vec second) {
    switch (width) {
      case 1 -> {
        if (high) {
          a.vpunpckhbw(d, first, second);
        } else {
          a.vpunpcklbw(d, first, second);
        }
      }
      case 2 -> {
        if (high) {
          a.vpunpckhwd(d, first, second);
        } else {
          a.vpunpcklwd(d, first, second);
        }
      }
      case 4 -> {
        if (high) {
          a.vpunpckhdq(d, first, second);
        } else {
          a.vpunpckldq(d, first, second);
        }
      }
      default -> {
        if (high) {
          a.vpunpckhqdq(d, first, second);
        } else {
          a.vpunpcklqdq(d, first, second);
        }
      }
    }
  }

  private void save() {
    for (Gpr g : SAVED) {
      a.push(g);
    }
  }

  private void restore() {
    for (int i = SAVED.length - 1; i >= 0; i--) {
      a.pop(SAVED[i]);
    }
    a.vzeroupper();
    a.ret();
  }
}
