package io.fletch.graph.cpu.x86;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.CpuFeatures.Feature;
import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Opmask;
import io.fletch.ffm.x86.Vec;
import io.fletch.ffm.x86.Zmm;
import io.fletch.quant.TensorType;

/**
 * Generates products of bitmap and 2:4 matrices with F32 activations, in the order of operations of
 * the scalar kernels.
 *
 * <p>Bitmap: eight bits of the mask choose a permutation that spreads the next stored values over
 * eight lanes and a mask that clears the others; the next value is as many on as there are bits. Up
 * to seven values behind the last one of a row are read (and cleared): rows at the end of the
 * values are the caller's business. 2:4: a byte of the index chooses a permutation that takes the
 * four activations of eight columns; stored values stay in order.
 *
 * <p>With 512-bit vectors bitmaps are expanded by instructions, which read no more than they use,
 * and the index of 32 columns is spread over the lanes of one permutation of two vectors.
 *
 * <p>Signature of the code: {@code void (long values, long index, long x, long y, long rows |
 * yStrideBytes << 32)}, values and index at a row, {@code rows >= 1}. Row length and number of
 * activation rows are constants in the code.
 */
public final class SparseMatmulCode {
  /** Kinds of matrices. */
  public enum Kind {
    BITMAP,
    TWO_OF_FOUR
  }

  private static final int PREFETCH = 2048;

  private static final Gpr W = Gpr.RDI;
  private static final Gpr INDEX = Gpr.RSI;
  private static final Gpr X = Gpr.RDX;
  private static final Gpr Y = Gpr.RCX;
  private static final Gpr ROWS = Gpr.R8;
  private static final Gpr TABLE = Gpr.R9;
  private static final Gpr XP = Gpr.R10;
  private static final Gpr COUNT = Gpr.R11;
  private static final Gpr TEMP = Gpr.RAX;

  /** Saved by the code. */
  private static final Gpr Y_STRIDE = Gpr.RBX;

  private static final Gpr ONES = Gpr.RBP;

  private static final Zmm THREE = Zmm.of(16);
  private static final Zmm SHIFTS = Zmm.of(17);
  private static final Zmm GROUPS = Zmm.of(18);

  /** {@code (d & a) | b} as a table of bits. */
  private static final int AND_OR = 0xea;

  /** Parts 0, 2, 1, 3 of four. */
  private static final int PAIRS = 0xd8;

  private final Assembler a = new Assembler();
  private final Kind kind;
  private final TensorType type;
  private final int in;
  private final int xStride;
  private final int tokens;
  private final long table;
  private final boolean wide;
  private final Lanes lanes;
  private final Vec[][] sums;
  private final Vec v = Vec.of(32, 8);
  private final Vec p0 = Vec.of(32, 9);
  private final Vec p1 = Vec.of(32, 10);
  private final Vec t = Vec.of(32, 11);
  private final Vec u = Vec.of(32, 12);

  private SparseMatmulCode(
      Kind kind, TensorType type, int in, long xStride, int tokens, long table, boolean wide) {
    this.wide = wide;
    lanes = new Lanes(a, wide ? Isa.AVX512_VNNI : Isa.AVX2);
    this.kind = kind;
    this.type = type;
    this.in = in;
    this.xStride = Math.toIntExact(xStride);
    this.tokens = tokens;
    this.table = table;
    Math.toIntExact(tokens * xStride);
    sums = new Vec[tokens][lanes.parts];
    for (int i = 0; i < tokens; i++) {
      for (int part = 0; part < lanes.parts; part++) {
        sums[i][part] = lanes.reg(lanes.parts * i + part);
      }
    }
  }

  /** The most rows of activations that one call can take. */
  public static int maxTokens() {
    return 4;
  }

  /** Whether a processor can run the code of sparse products with 512-bit vectors. */
  public static boolean isWide(Isa isa, CpuFeatures cpu) {
    return isa == Isa.AVX512_VNNI && cpu.has(Feature.AVX512_VBMI2);
  }

  /** Whether there is code for rows of {@code in} elements with values of a type. */
  public static boolean supports(Kind kind, TensorType type, int in) {
    return switch (type) {
      case F32, F16, BF16 -> in % (kind == Kind.BITMAP ? 16 : 32) == 0;
      default -> false;
    };
  }

  /** Ints of the table that the code of a kind reads. */
  public static int[] table(Kind kind, TensorType type) {
    return kind == Kind.TWO_OF_FOUR ? chosen() : type == TensorType.F32 ? spread() : spreadShort();
  }

  /** Per byte of a mask: from which value each lane comes; negative if it comes from one. */
  private static int[] spread() {
    int[] all = new int[256 * 8];
    for (int mask = 0; mask < 256; mask++) {
      int next = 0;
      for (int lane = 0; lane < 8; lane++) {
        if ((mask >> lane & 1) != 0) {
          all[mask * 8 + lane] = next++ | Integer.MIN_VALUE;
        }
      }
    }
    return all;
  }

  /** Per byte of a mask: from which bytes the eight 16-bit lanes come, 0x80 for none. */
  private static int[] spreadShort() {
    int[] all = new int[256 * 4];
    for (int mask = 0; mask < 256; mask++) {
      int next = 0;
      for (int lane = 0; lane < 8; lane++) {
        int from = 0x8080;
        if ((mask >> lane & 1) != 0) {
          from = 2 * next | 2 * next + 1 << 8;
          next++;
        }
        all[mask * 4 + lane / 2] |= from << 16 * (lane % 2);
      }
    }
    return all;
  }

  /** Per byte of an index: the two columns of each group of four, twice. */
  private static int[] chosen() {
    int[] all = new int[256 * 8];
    for (int b = 0; b < 256; b++) {
      for (int lane = 0; lane < 8; lane++) {
        all[b * 8 + lane] = b >> 4 * (lane / 4) + 2 * (lane % 2) & 3;
      }
    }
    return all;
  }

  /**
   * Emits the code.
   *
   * @param xStride bytes from one row of activations to the next
   * @param tokens rows of activations, 1 to {@link #maxTokens}
   * @param table address of the ints of {@link #table}, which outlive the code
   * @param wide with AVX-512 and VBMI2; else AVX2
   */
  public static byte[] emit(
      Kind kind, TensorType type, int in, long xStride, int tokens, long table, boolean wide) {
    if (!supports(kind, type, in) || tokens < 1 || tokens > maxTokens()) {
      throw new IllegalArgumentException(
          "no code: kind=" + kind + " type=" + type + " in=" + in + " tokens=" + tokens);
    }
    return new SparseMatmulCode(kind, type, in, xStride, tokens, table, wide).emit();
  }

  private byte[] emit() {
    a.sub(Gpr.RSP, 16);
    a.mov(Mem.of(Gpr.RSP, 0), Y_STRIDE);
    a.mov(Mem.of(Gpr.RSP, 8), ONES);
    a.mov(Y_STRIDE, ROWS);
    a.shr(Y_STRIDE, 32);
    a.shl(ROWS, 32);
    a.shr(ROWS, 32);
    a.mov(TABLE, table);
    if (wide && kind == Kind.TWO_OF_FOUR) {
      a.vmovdqu(THREE, a.repeated(3, 64));
      a.vmovdqu(SHIFTS, a.ints(perLane(2)));
      a.vmovdqu(GROUPS, a.ints(perGroup()));
    }
    Label row = a.here();
    for (Vec[] parts : sums) {
      for (Vec sum : parts) {
        a.vpxor(sum, sum, sum);
      }
    }
    a.mov(XP, X);
    int step = kind == Kind.BITMAP ? 16 : 32;
    a.mov(COUNT, (long) (in / step));
    a.align(32);
    Label loop = a.here();
    a.prefetcht0(Mem.of(W, PREFETCH));
    a.prefetcht0(Mem.of(INDEX, PREFETCH));
    if (kind == Kind.BITMAP) {
      if (wide) {
        wideBitmapStep();
      } else {
        bitmapStep();
      }
    } else {
      if (wide) {
        wideTwoOfFourStep();
      } else {
        twoOfFourStep();
      }
      a.add(W, 16 * type.blockBytes());
    }
    a.add(INDEX, step / 8);
    a.add(XP, step * 4);
    a.dec(COUNT);
    a.jcc(Condition.NE, loop);
    for (int i = 0; i < tokens; i++) {
      store(sums[i]);
      if (i + 1 < tokens) {
        a.add(Y, Y_STRIDE);
      }
    }
    for (int i = 0; i + 1 < tokens; i++) {
      a.sub(Y, Y_STRIDE);
    }
    a.add(Y, 4);
    a.dec(ROWS);
    a.jcc(Condition.NE, row);
    a.mov(Y_STRIDE, Mem.of(Gpr.RSP, 0));
    a.mov(ONES, Mem.of(Gpr.RSP, 8));
    a.add(Gpr.RSP, 16);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private void wideBitmapStep() {
    Zmm w = Zmm.of(8);
    a.movzx16(TEMP, Mem.of(INDEX));
    a.kmovw(Opmask.K1, TEMP);
    a.xor32(ONES, ONES);
    a.popcnt(ONES, TEMP);
    a.zeroed(Opmask.K1);
    if (type == TensorType.F32) {
      a.vexpandps(w, Mem.of(W));
    } else {
      a.vpexpandw(w.ymm(), Mem.of(W));
      Lanes.load(a, type, w, w.ymm());
    }
    a.lea(W, Mem.of(W, ONES, type.blockBytes(), 0));
    for (int i = 0; i < tokens; i++) {
      a.vfmadd231ps(sums[i][0], w, Mem.of(XP, i * xStride));
    }
  }

  private void wideTwoOfFourStep() {
    Zmm w = Zmm.of(8);
    Zmm choice = Zmm.of(9);
    Zmm x = Zmm.of(10);
    a.vpbroadcastd(choice, Mem.of(INDEX));
    a.vpsrlvd(choice, choice, SHIFTS);
    a.vpternlogd(choice, THREE, GROUPS, AND_OR);
    if (type == TensorType.F32) {
      a.vpermq(w, Mem.of(W), PAIRS);
    } else {
      a.vpshufd(w.ymm(), Mem.of(W), PAIRS);
      Lanes.load(a, type, w, w.ymm());
    }
    for (int i = 0; i < tokens; i++) {
      a.vmovups(x, Mem.of(XP, i * xStride));
      a.vpermt2d(x, choice, Mem.of(XP, i * xStride + 64));
      a.vfmadd231ps(sums[i][0], w, x);
    }
  }

  /** Per lane, some times the stored value that it takes of sixteen. */
  private static int[] perLane(int factor) {
    int[] all = new int[16];
    for (int lane = 0; lane < 16; lane++) {
      int value = lane & 9 | (lane & 4) >> 1 | (lane & 2) << 1;
      all[lane] = factor * value;
    }
    return all;
  }

  /** Per lane, the first column of the group of its value. */
  private static int[] perGroup() {
    int[] all = perLane(1);
    for (int lane = 0; lane < 16; lane++) {
      all[lane] = all[lane] / 2 * 4;
    }
    return all;
  }

  private void bitmapStep() {
    boolean shorts = type != TensorType.F32;
    for (int half = 0; half < 2; half++) {
      a.movzx8(TEMP, Mem.of(INDEX, half));
      // Some processors make popcnt wait for the old value of its destination.
      a.xor32(ONES, ONES);
      a.popcnt(ONES, TEMP);
      a.shl32(TEMP, shorts ? 4 : 5);
      if (shorts) {
        a.vmovdqu(v.xmm(), Mem.of(W));
        a.vpshufb(v.xmm(), v.xmm(), Mem.of(TABLE, TEMP, 1, 0));
        Lanes.load(a, type, v, v.xmm());
      } else {
        a.vmovdqu(p0, Mem.of(TABLE, TEMP, 1, 0));
        a.vpermps(v, p0, Mem.of(W));
        a.vpsrad(p0, p0, 31);
        a.vpand(v, v, p0);
      }
      a.lea(W, Mem.of(W, ONES, type.blockBytes(), 0));
      for (int i = 0; i < tokens; i++) {
        a.vfmadd231ps(sums[i][half], v, Mem.of(XP, i * xStride + 32 * half));
      }
    }
  }

  /**
   * Sixteen values and 32 columns. Of eight values, the pairs are taken in the order 0, 2, 1, 3, so
   * that activations need not leave their half of a vector.
   */
  private void twoOfFourStep() {
    for (int half = 0; half < 2; half++) {
      a.movzx8(TEMP, Mem.of(INDEX, 2 * half));
      a.shl32(TEMP, 5);
      a.vmovdqu(p0, Mem.of(TABLE, TEMP, 1, 0));
      a.movzx8(TEMP, Mem.of(INDEX, 2 * half + 1));
      a.shl32(TEMP, 5);
      a.vmovdqu(p1, Mem.of(TABLE, TEMP, 1, 0));
      switch (type) {
        case F32 -> a.vpermq(v, Mem.of(W, 32 * half), PAIRS);
        default -> {
          a.vpshufd(v.xmm(), Mem.of(W, 16 * half), PAIRS);
          Lanes.load(a, type, v, v.xmm());
        }
      }
      for (int i = 0; i < tokens; i++) {
        int at = i * xStride + 64 * half;
        a.vmovups(t, Mem.of(XP, at));
        a.vpermilps(t, t, p0);
        a.vmovups(u, Mem.of(XP, at + 32));
        a.vpermilps(u, u, p1);
        a.vblendps(t, t, u, 0xcc);
        a.vfmadd231ps(sums[i][half], v, t);
      }
    }
  }

  /** Adds the partial sums by halving and stores the result. */
  private void store(Vec[] parts) {
    Vec temp = lanes.reg(t.code());
    lanes.toEight(parts, temp);
    lanes.toFour(parts[0], temp);
    lanes.toOne(parts[0].xmm(), temp.xmm());
    a.vmovss(Mem.of(Y), parts[0].xmm());
  }
}
