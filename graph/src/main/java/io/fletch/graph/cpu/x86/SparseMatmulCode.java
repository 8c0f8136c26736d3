package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Vec;
import io.fletch.ffm.x86.Xmm;
import io.fletch.quant.TensorType;

/**
 * Generates products of bitmap and 2:4 matrices with F32 activations, with 256-bit vectors, in the
 * order of operations of the scalar kernels.
 *
 * <p>Bitmap: eight bits of the mask choose a permutation that spreads the next stored values over
 * eight lanes and a mask that clears the others; the next value is as many on as there are bits. Up
 * to seven values behind the last one of a row are read (and cleared): rows at the end of the
 * values are the caller's business. 2:4: a byte of the index chooses a permutation that takes the
 * four activations of eight columns; stored values stay in order.
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

  private static final int PREFETCH = 1024;

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

  /** Parts 0, 2, 1, 3 of four. */
  private static final int PAIRS = 0xd8;

  private final Assembler a = new Assembler();
  private final Kind kind;
  private final TensorType type;
  private final int in;
  private final int xStride;
  private final int tokens;
  private final long table;
  private final Vec[][] sums;
  private final Vec v = Vec.of(32, 8);
  private final Vec p0 = Vec.of(32, 9);
  private final Vec p1 = Vec.of(32, 10);
  private final Vec t = Vec.of(32, 11);
  private final Vec u = Vec.of(32, 12);

  private SparseMatmulCode(
      Kind kind, TensorType type, int in, long xStride, int tokens, long table) {
    this.kind = kind;
    this.type = type;
    this.in = in;
    this.xStride = Math.toIntExact(xStride);
    this.tokens = tokens;
    this.table = table;
    Math.toIntExact(tokens * xStride);
    sums = new Vec[tokens][2];
    for (int i = 0; i < tokens; i++) {
      sums[i][0] = Vec.of(32, 2 * i);
      sums[i][1] = Vec.of(32, 2 * i + 1);
    }
  }

  /** The most rows of activations that one call can take. */
  public static int maxTokens() {
    return 4;
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
   */
  public static byte[] emit(
      Kind kind, TensorType type, int in, long xStride, int tokens, long table) {
    if (!supports(kind, type, in) || tokens < 1 || tokens > maxTokens()) {
      throw new IllegalArgumentException(
          "no code: kind=" + kind + " type=" + type + " in=" + in + " tokens=" + tokens);
    }
    return new SparseMatmulCode(kind, type, in, xStride, tokens, table).emit();
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
    Label row = a.here();
    for (Vec[] pair : sums) {
      a.vxorps(pair[0], pair[0], pair[0]);
      a.vxorps(pair[1], pair[1], pair[1]);
    }
    a.mov(XP, X);
    int step = kind == Kind.BITMAP ? 16 : 32;
    a.mov(COUNT, (long) (in / step));
    a.align(32);
    Label loop = a.here();
    a.prefetcht0(Mem.of(W, PREFETCH));
    if (kind == Kind.BITMAP) {
      bitmapStep();
    } else {
      twoOfFourStep();
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
        widen();
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

  /** Eight 16-bit floats in the lower half of the vector to eight float32; exact. */
  private void widen() {
    if (type == TensorType.F16) {
      a.vcvtph2ps(v, v.xmm());
    } else {
      a.vpmovzxwd(v, v.xmm());
      a.vpslld(v, v, 16);
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
          widen();
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
  private void store(Vec[] pair) {
    Vec sum = pair[0];
    a.vaddps(sum, sum, pair[1]);
    Xmm low = sum.xmm();
    Xmm other = t.xmm();
    a.vextractf128(other, sum.ymm(), 1);
    a.vaddps(low, low, other);
    a.vmovhlps(other, low, low);
    a.vaddps(low, low, other);
    a.vmovshdup(other, low);
    a.vaddss(low, low, other);
    a.vmovss(Mem.of(Y), low);
  }
}
