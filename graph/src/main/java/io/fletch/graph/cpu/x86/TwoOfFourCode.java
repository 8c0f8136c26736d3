package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Operand;
import io.fletch.ffm.x86.Vec;
import io.fletch.quant.TensorType;

/**
 * Generates products of 2:4 matrices in the packed form of {@link TwoOfFourLayout} with 8-bit
 * activations: {@code tokens} rows of activations by any number of groups of rows, in the order of
 * operations of the scalar kernel.
 *
 * <p>Per plane (eight columns of all rows of a group): the eight activations are loaded into every
 * lane, the index, shifted and cut to two bits, is a shuffle that takes four of them, and one 8-bit
 * dot product adds them up. Codes are unsigned with VNNI; what that adds is the sum of the chosen
 * activations, which differs from row to row, so a second dot product gathers it.
 *
 * <p>Signature of the code: {@code void (long weights, long x, long y, long yStrideBytes, long
 * groups)}, weights at a group, x at the first row of activations, {@code groups >= 1}; whole
 * groups are stored.
 */
public final class TwoOfFourCode {
  private static final int LOW4 = 0x0f0f0f0f;
  private static final int ONES = 0x00010001;
  private static final int CHOICE = 0x03030303;

  /** The second two of four values come from the second four of eight columns. */
  private static final int SECOND = 0x04040000;

  /** {@code (d & a) | b} as a table of bits. */
  private static final int AND_OR = 0xea;

  private static final Gpr W = Gpr.RDI;
  private static final Gpr X = Gpr.RSI;
  private static final Gpr Y = Gpr.RDX;
  private static final Gpr Y_STRIDE = Gpr.RCX;
  private static final Gpr GROUPS = Gpr.R8;
  private static final Gpr XP = Gpr.R9;
  private static final Gpr SCALES = Gpr.R10;
  private static final Gpr COUNT = Gpr.R11;
  private static final Gpr YP = Gpr.RAX;

  private final Assembler a = new Assembler();
  private final TwoOfFourLayout p;
  private final Isa isa;
  private final int bytes;
  private final int xStride;
  private final int xScales;
  private final int tokens;
  private final boolean four;
  private final boolean wide;

  // Registers of the tile in work.
  private int groups;
  private Vec[] sums;
  private Vec[] dots;
  private Vec[] chosen;
  private Vec d;
  private Vec w;
  private Vec index;
  private Vec x;
  private Vec q;
  private Vec choice;
  private Vec t;
  private Operand mask;
  private Operand second;
  private Operand low;
  private Operand zero;

  /** The next register that a constant may have. */
  private int firstConstant;

  private TwoOfFourCode(TwoOfFourLayout layout, Isa isa, int xStride, int xScales, int tokens) {
    p = layout;
    this.isa = isa;
    bytes = isa.bytes();
    this.xStride = xStride;
    this.xScales = xScales;
    this.tokens = tokens;
    four = layout.type == TensorType.Q4_0;
    wide = isa == Isa.AVX512_VNNI;
  }

  /** The most rows of activations that one call can take. */
  public static int maxTokens(Isa isa) {
    return isa.registers() == 32 ? 6 : 2;
  }

  /** Groups that follow each other and that a single row of activations takes at once. */
  static int streams(Isa isa) {
    return isa.registers() == 32 ? 4 : 1;
  }

  /**
   * Emits the code.
   *
   * @param xStride bytes from one row of activations to the next
   * @param xScales bytes from the codes of a row of activations to their scales, one per 32
   * @param tokens rows of activations, 1 to {@link #maxTokens}
   */
  public static byte[] emit(
      TwoOfFourLayout layout, Isa isa, long xStride, long xScales, int tokens) {
    if (tokens < 1 || tokens > maxTokens(isa)) {
      throw new IllegalArgumentException(
          "tokens: expected=[1," + maxTokens(isa) + "] actual=" + tokens);
    }
    Math.toIntExact(tokens * xStride + layout.groupBytes() * streams(isa) + 4096);
    return new TwoOfFourCode(layout, isa, (int) xStride, (int) xScales, tokens).emit();
  }

  private byte[] emit() {
    int streams = tokens == 1 ? streams(isa) : 1;
    allocate(streams);
    constants();
    Label done = a.label();
    if (streams > 1) {
      Label single = a.label();
      a.cmp(GROUPS, streams);
      a.jcc(Condition.L, single);
      Label several = a.here();
      tile(streams);
      a.sub(GROUPS, streams);
      a.cmp(GROUPS, streams);
      a.jcc(Condition.GE, several);
      a.test(GROUPS, GROUPS);
      a.jcc(Condition.E, done);
      a.bind(single);
    }
    Label loop = a.here();
    tile(1);
    a.dec(GROUPS);
    a.jcc(Condition.NE, loop);
    a.bind(done);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private void allocate(int most) {
    int cells = most * tokens;
    int next = 0;
    sums = new Vec[cells];
    dots = new Vec[cells];
    chosen = new Vec[cells];
    for (int c = 0; c < cells; c++) {
      sums[c] = Vec.of(bytes, next++);
      dots[c] = Vec.of(bytes, next++);
      chosen[c] = four || isa.vnni() ? Vec.of(bytes, next++) : null;
    }
    // Scales and indices of several groups are read where they are.
    d = Vec.of(bytes, next++);
    w = Vec.of(bytes, next++);
    index = Vec.of(bytes, next++);
    x = Vec.of(bytes, next++);
    q = Vec.of(bytes, next++);
    choice = Vec.of(bytes, next++);
    t = Vec.of(bytes, next++);
    firstConstant = next;
  }

  /** Constants, in registers where there are some left. */
  private void constants() {
    mask = constant(CHOICE);
    second = constant(SECOND);
    low = constant(LOW4);
    zero = constant(four ? 0x08080808 : 0x80808080);
  }

  private Operand constant(int value) {
    Mem memory = a.repeated(value, bytes);
    if (firstConstant >= isa.registers()) {
      return memory;
    }
    Vec register = Vec.of(bytes, firstConstant++);
    a.vmovdqu(register, memory);
    return register;
  }

  private int cell(int group, int token) {
    return group * tokens + token;
  }

  private void tile(int n) {
    groups = n;
    for (int c = 0; c < groups * tokens; c++) {
      a.vpxor(sums[c], sums[c], sums[c]);
    }
    a.mov(XP, X);
    a.lea(SCALES, Mem.of(X, xScales));
    int pair = 2 * (p.blockBytes + p.scaleBytes);
    if (p.blocks >= 2) {
      a.mov(COUNT, (long) (p.blocks / 2));
      a.align(32);
      Label loop = a.here();
      block(0, 2 * p.blockBytes, 0);
      block(p.blockBytes, 2 * p.blockBytes + p.scaleBytes, 1);
      a.add(W, pair);
      a.add(XP, 128);
      a.add(SCALES, 16);
      a.dec(COUNT);
      a.jcc(Condition.NE, loop);
    }
    if (p.blocks % 2 != 0) {
      block(0, p.blockBytes, 0);
    }
    a.add(W, Math.toIntExact(groups * p.groupBytes() - (long) (p.blocks / 2) * pair));
    a.mov(YP, Y);
    for (int token = 0; token < tokens; token++) {
      for (int g = 0; g < groups; g++) {
        a.vmovups(Mem.of(YP, g * bytes), sums[cell(g, token)]);
      }
      if (token + 1 < tokens) {
        a.add(YP, Y_STRIDE);
      }
    }
    a.add(Y, groups * bytes);
  }

  private Mem at(int group, int offset) {
    return Mem.of(W, Math.toIntExact(group * p.groupBytes()) + offset);
  }

  /** A block of all groups. */
  private void block(int codesAt, int scalesAt, int parity) {
    int distance =
        tokens == 1
            ? Streaming.candidates(isa, p.type).getFirst().prefetch()
            : Streaming.SEVERAL_ROWS.prefetch();
    for (int g = 0; g < groups; g++) {
      for (int i = 0; i < p.blockBytes + p.scaleBytes; i += 64) {
        a.prefetcht0(at(g, distance + codesAt + i));
      }
    }
    for (int half = 0; half < 2; half++) {
      for (int i = 0; i < 4; i++) {
        plane(codesAt, 4 * half + i, i == 0, parity);
      }
      for (int g = 0; g < groups; g++) {
        a.vcvtph2ps(d, at(g, scalesAt));
        for (int token = 0; token < tokens; token++) {
          accumulate(cell(g, token), Mem.of(SCALES, token * xStride + 8 * parity + 4 * half));
        }
      }
    }
  }

  /** {@code sum = fma(dW * dX, (float) dot, sum)}. */
  private void accumulate(int c, Mem scale) {
    Vec dot = dots[c];
    if (wide || isa.vnni()) {
      a.vpsubd(dot, dot, chosen[c]);
    } else if (four) {
      a.vpsubw(dot, dot, chosen[c]);
      a.vpmaddwd(dot, dot, a.repeated(ONES, bytes));
    }
    a.vcvtdq2ps(dot, dot);
    if (wide) {
      a.vmulps(t, d, scale.each());
    } else {
      a.vbroadcastss(t, scale);
      a.vmulps(t, d, t);
    }
    a.vfmadd231ps(sums[c], t, dot);
  }

  /** Four values of every row of all groups. */
  private void plane(int codesAt, int plane, boolean first, int parity) {
    int vector = 4 * p.lanes;
    for (int g = 0; g < groups; g++) {
      Mem indices = at(g, codesAt + p.codeBytes + plane / 4 * vector);
      int shift = plane % 4 * 2;
      if (groups > 1) {
        shifted(choice, indices, shift);
      } else {
        if (first) {
          a.vmovdqu(index, indices);
        }
        shifted(choice, index, shift);
      }
      if (wide) {
        a.vpternlogd(choice, (Vec) mask, second, AND_OR);
      } else {
        a.vpand(choice, choice, mask);
        a.vpor(choice, choice, second);
      }
      codes(g, codesAt, plane);
      for (int token = 0; token < tokens; token++) {
        if (g == 0 || tokens > 1) {
          a.vpbroadcastq(x, Mem.of(XP, token * xStride + 64 * parity + 8 * plane));
        }
        a.vpshufb(t, x, choice);
        multiply(cell(g, token), first);
      }
    }
  }

  private void shifted(Vec to, Operand from, int bits) {
    if (bits == 0) {
      a.vmovdqu(to, from);
    } else if (from instanceof Vec v) {
      a.vpsrld(to, v, bits);
    } else {
      a.vmovdqu(to, from);
      a.vpsrld(to, to, bits);
    }
  }

  /** The codes of a plane to {@code q}; their size, with signed ones, to {@code w}. */
  private void codes(int g, int codesAt, int plane) {
    int vector = 4 * p.lanes;
    if (four) {
      Mem both = at(g, codesAt + plane / 2 * vector);
      if (plane % 2 == 0) {
        if (wide) {
          a.vpand(q, (Vec) low, both);
        } else {
          a.vmovdqu(q, both);
          a.vpand(q, q, low);
        }
      } else {
        shifted(q, both, 4);
        a.vpand(q, q, low);
      }
    } else {
      a.vmovdqu(q, at(g, codesAt + plane * vector));
      if (!isa.vnni()) {
        a.vpabsb(w, q);
      }
    }
  }

  /** Adds the products with the chosen activations in {@code t}. */
  private void multiply(int c, boolean first) {
    if (isa.vnni()) {
      if (first) {
        a.vpxor(dots[c], dots[c], dots[c]);
        a.vpxor(chosen[c], chosen[c], chosen[c]);
      }
      dot(dots[c], q);
      if (zero instanceof Vec v) {
        dot(chosen[c], v);
      } else {
        a.vmovdqu(w, zero);
        dot(chosen[c], w);
      }
    } else if (four) {
      // Sums of sixteen bits: at most 4 * 2 * 15 * 127.
      if (first) {
        a.vpmaddubsw(dots[c], q, t);
        a.vmovdqu(chosen[c], zero);
        a.vpmaddubsw(chosen[c], chosen[c], t);
      } else {
        a.vmovdqu(w, zero);
        a.vpmaddubsw(w, w, t);
        a.vpaddw(chosen[c], chosen[c], w);
        a.vpmaddubsw(t, q, t);
        a.vpaddw(dots[c], dots[c], t);
      }
    } else {
      a.vpsignb(t, t, q);
      a.vpmaddubsw(t, w, t);
      if (first) {
        a.vpmaddwd(dots[c], t, a.repeated(ONES, bytes));
      } else {
        a.vpmaddwd(t, t, a.repeated(ONES, bytes));
        a.vpaddd(dots[c], dots[c], t);
      }
    }
  }

  private void dot(Vec to, Vec unsigned) {
    if (isa.evexDots()) {
      a.evex();
    }
    a.vpdpbusd(to, unsigned, t);
  }
}
