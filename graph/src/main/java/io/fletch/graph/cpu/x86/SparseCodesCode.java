package io.fletch.graph.cpu.x86;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.CpuFeatures.Feature;
import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Vec;
import io.fletch.ffm.x86.Xmm;
import io.fletch.ffm.x86.Zmm;
import io.fletch.quant.TensorType;

/**
 * Generates products of 2:4 matrices with Q8_0 or Q4_0 values and 8-bit activations, in the order
 * of operations of the scalar kernel.
 *
 * <p>The index of a group of four is two numbers of two bits, and those of 64 columns are a stream
 * of 32 such numbers: one load, two byte shuffles and a few bit operations make a shuffle of them
 * that takes the 32 activations of a block of values. With AVX2 a step is a block; with AVX-512
 * VNNI and VBMI it is two.
 *
 * <p>Signature of the code: {@code void (long values, long index, long x, long y, long rows |
 * yStrideBytes << 32)}, values and index at a row, {@code rows >= 1}. Row length and number of
 * activation rows are constants in the code.
 */
public final class SparseCodesCode {
  private static final int PREFETCH = 1024;

  private static final Gpr W = Gpr.RDI;
  private static final Gpr INDEX = Gpr.RSI;
  private static final Gpr X = Gpr.RDX;
  private static final Gpr Y = Gpr.RCX;
  private static final Gpr ROWS = Gpr.R8;
  private static final Gpr SCALES = Gpr.R9;
  private static final Gpr XP = Gpr.R10;
  private static final Gpr COUNT = Gpr.R11;
  private static final Gpr TEMP = Gpr.RAX;

  /** Saved by the code. */
  private static final Gpr Y_STRIDE = Gpr.RBX;

  private final Assembler a = new Assembler();
  private final TensorType type;
  private final int in;
  private final int xStride;
  private final int xScales;
  private final int tokens;

  /** Two blocks in a 512-bit vector. */
  private final boolean wide;

  /** Partial sums of even and odd blocks, or of both. */
  private final Vec[][] sums;

  private final Vec w;
  private final Vec size;
  private final Vec d;
  private final Vec choice;
  private final Vec t;
  private final Vec u;
  private final Vec v;
  private final Vec table;
  private final Vec scaleOfBlock = Vec.of(64, 16);
  private final Vec scaleOfColumns = Vec.of(64, 17);
  private final Vec correction = Vec.of(64, 18);
  private final Vec offsets = Vec.of(64, 19);

  private SparseCodesCode(
      TensorType type, int in, long xStride, long xScales, int tokens, boolean wide) {
    this.type = type;
    this.in = in;
    this.xStride = Math.toIntExact(xStride);
    this.xScales = Math.toIntExact(xScales);
    this.tokens = tokens;
    this.wide = wide;
    Math.toIntExact(tokens * xStride + xScales);
    int bytes = wide ? 64 : 32;
    sums = new Vec[tokens][wide ? 1 : 2];
    for (int i = 0; i < tokens; i++) {
      for (int part = 0; part < sums[i].length; part++) {
        sums[i][part] = Vec.of(bytes, sums[i].length * i + part);
      }
    }
    w = Vec.of(bytes, 8);
    size = Vec.of(bytes, 9);
    d = Vec.of(bytes, 10);
    choice = Vec.of(bytes, 11);
    t = Vec.of(bytes, 12);
    u = Vec.of(bytes, 13);
    v = Vec.of(bytes, 14);
    table = Vec.of(bytes, 15);
  }

  /** The most rows of activations that one call can take. */
  public static int maxTokens() {
    return 4;
  }

  /** Whether rows of {@code in} elements can be done with 512-bit vectors. */
  public static boolean isWide(Isa isa, CpuFeatures cpu, int in) {
    return isa == Isa.AVX512_VNNI && cpu.has(Feature.AVX512_VBMI) && in % 128 == 0;
  }

  /** Whether there is code for rows of {@code in} elements with values of a type. */
  public static boolean supports(TensorType type, int in) {
    return (type == TensorType.Q8_0 || type == TensorType.Q4_0) && in % 64 == 0;
  }

  /**
   * Emits the code.
   *
   * @param xStride bytes from one row of activations to the next
   * @param xScales bytes from the codes of a row of activations to their scales, one per 32
   * @param tokens rows of activations, 1 to {@link #maxTokens}
   * @param wide with AVX-512 VNNI and VBMI, for {@code in} a multiple of 128; else AVX2
   */
  public static byte[] emit(
      TensorType type, int in, long xStride, long xScales, int tokens, boolean wide) {
    if (!supports(type, in) || tokens < 1 || tokens > maxTokens() || wide && in % 128 != 0) {
      throw new IllegalArgumentException(
          "no code: type=" + type + " in=" + in + " tokens=" + tokens);
    }
    return new SparseCodesCode(type, in, xStride, xScales, tokens, wide).emit();
  }

  private byte[] emit() {
    a.push(Y_STRIDE);
    a.mov(Y_STRIDE, ROWS);
    a.shr(Y_STRIDE, 32);
    a.shl(ROWS, 32);
    a.shr(ROWS, 32);
    a.vmovdqu(table, a.constant(pairs()));
    if (wide) {
      a.vmovdqu(scaleOfBlock, a.constant(lanes(8)));
      a.vmovdqu(scaleOfColumns, a.constant(lanes(4)));
      boolean four = type == TensorType.Q4_0;
      a.vmovdqu(offsets, a.repeated(four ? 0x08080808 : 0x80808080, 64));
    }
    Label row = a.here();
    for (Vec[] all : sums) {
      for (Vec sum : all) {
        a.vpxor(sum, sum, sum);
      }
    }
    a.mov(XP, X);
    a.lea(SCALES, Mem.of(X, xScales));
    if (in >= 128) {
      a.mov(COUNT, (long) (in / 128));
      a.align(32);
      Label loop = a.here();
      a.prefetcht0(Mem.of(W, PREFETCH));
      if (wide) {
        wideStep();
        advance(2);
      } else {
        step(0);
        advance(1);
        step(1);
        advance(1);
      }
      a.dec(COUNT);
      a.jcc(Condition.NE, loop);
    }
    if (in % 128 != 0) {
      step(0);
      advance(1);
    }
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
    a.pop(Y_STRIDE);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private void advance(int blocks) {
    a.add(W, blocks * type.blockBytes());
    a.add(INDEX, blocks * 8);
    a.add(XP, blocks * 64);
    a.add(SCALES, blocks * 8);
  }

  private void step(int part) {
    boolean four = type == TensorType.Q4_0;
    if (four) {
      a.vmovdqu(w.xmm(), Mem.of(W, 2));
      a.vpsrlw(t.xmm(), w.xmm(), 4);
      a.vinserti128(w.ymm(), w.ymm(), t.xmm(), 1);
      a.vpand(w, w, a.repeated(0x0f0f0f0f, 32));
    } else {
      a.vmovdqu(w, Mem.of(W, 2));
      a.vpabsb(size, w);
    }
    a.movzx16(TEMP, Mem.of(W));
    a.vmovd(d.xmm(), TEMP);
    a.vcvtph2ps(d.xmm(), d.xmm());
    a.vbroadcastss(d, d.xmm());
    choose();
    for (int i = 0; i < tokens; i++) {
      int at = i * xStride;
      // Columns 0 to 15 and 32 to 47, then the others: a shuffle stays within 128 bits.
      a.vmovdqu(t.xmm(), Mem.of(XP, at));
      a.vinserti128(t.ymm(), t.ymm(), Mem.of(XP, at + 32), 1);
      a.vmovdqu(u.xmm(), Mem.of(XP, at + 16));
      a.vinserti128(u.ymm(), u.ymm(), Mem.of(XP, at + 48), 1);
      a.vpshufb(t, t, choice);
      a.vpshufb(u, u, choice);
      a.vpblendd(t, t, u, 0xcc);
      if (four) {
        // (q - 8) x, from q x and 8 x.
        a.vmovdqu(u, a.repeated(0x08080808, 32));
        a.vpmaddubsw(u, u, t);
        a.vpmaddubsw(t, w, t);
        a.vpsubw(t, t, u);
      } else {
        a.vpsignb(t, t, w);
        a.vpmaddubsw(t, size, t);
      }
      a.vpmaddwd(t, t, a.repeated(0x00010001, 32));
      a.vcvtdq2ps(t, t);
      a.vbroadcastss(u, Mem.of(SCALES, at));
      a.vbroadcastss(v, Mem.of(SCALES, at + 4));
      a.vblendps(u, u, v, 0xf0);
      a.vmulps(u, d, u);
      a.vfmadd231ps(sums[i][part], u, t);
    }
  }

  /** The shuffle of bytes within 16 columns that the index asks for, eight values per half. */
  private void choose() {
    a.vpbroadcastq(choice, Mem.of(INDEX));
    // Each byte four times; it has four numbers, of which the upper two come from its upper half.
    a.vpshufb(choice, choice, a.constant(repeat()));
    a.vpsrlw(t, choice, 4);
    a.vpblendw(choice, choice, t, 0xaa);
    a.vpand(choice, choice, a.repeated(0x0c030c03, 32));
    a.vpshufb(choice, table, choice);
    a.vpor(choice, choice, a.constant(groups()));
  }

  /** Two blocks: values of both, activations of 128 columns. */
  private void wideStep() {
    boolean four = type == TensorType.Q4_0;
    int block = type.blockBytes();
    if (four) {
      a.vmovdqu(w.xmm(), Mem.of(W, 2));
      a.vinserti128(w.ymm(), w.ymm(), Mem.of(W, block + 2), 1);
      a.vshufi32x4(w, w, w, 0x50);
      a.vpsrlvw(w, w, a.constant(shifts(8)));
      a.vpand(w, w, a.repeated(0x0f0f0f0f, 64));
    } else {
      a.vmovdqu(w.ymm(), Mem.of(W, 2));
      a.vinserti64x4(Zmm.of(w.code()), Zmm.of(w.code()), Mem.of(W, block + 2), 1);
      // (x + 128) w minus this is x w.
      a.vpxor(correction, correction, correction);
      a.vpdpbusd(correction, offsets, w);
    }
    a.movzx16(TEMP, Mem.of(W));
    a.vmovd(d.xmm(), TEMP);
    a.vpinsrw(d.xmm(), d.xmm(), Mem.of(W, block), 1);
    a.vcvtph2ps(d.xmm(), d.xmm());
    a.vpermps(d, scaleOfBlock, d);
    a.vbroadcasti32x4(choice, Mem.of(INDEX));
    a.vpshufb(choice, choice, a.constant(repeat()));
    a.vpsrlvw(choice, choice, a.constant(shifts(1)));
    a.vpand(choice, choice, a.repeated(0x0c030c03, 64));
    a.vpshufb(choice, table, choice);
    a.vpor(choice, choice, a.constant(groups()));
    for (int i = 0; i < tokens; i++) {
      int at = i * xStride;
      a.vmovdqu(v, Mem.of(XP, at));
      a.vmovdqa(t, choice);
      a.vpermi2b(t, v, Mem.of(XP, at + 64));
      a.vpxor(v, v, v);
      if (four) {
        a.vpdpbusd(v, w, t);
        a.vpxor(u, u, u);
        a.vpdpbusd(u, offsets, t);
        a.vpsubd(v, v, u);
      } else {
        a.vpxor(t, t, offsets);
        a.vpdpbusd(v, t, w);
        a.vpsubd(v, v, correction);
      }
      a.vcvtdq2ps(v, v);
      a.vbroadcasti32x4(u, Mem.of(SCALES, at));
      a.vpermps(u, scaleOfColumns, u);
      a.vmulps(u, d, u);
      a.vfmadd231ps(sums[i][0], u, v);
    }
  }

  /** Right shifts of 16-bit lanes: {@code run} lanes by 0, as many by 4, and so on. */
  private static byte[] shifts(int run) {
    byte[] all = new byte[64];
    for (int i = 0; i < 32; i++) {
      all[2 * i] = (byte) (i / run % 2 * 4);
    }
    return all;
  }

  /** Numbers of 32 bits, each {@code run} times. */
  private static byte[] lanes(int run) {
    byte[] all = new byte[64];
    for (int i = 0; i < 16; i++) {
      all[4 * i] = (byte) (i / run);
    }
    return all;
  }

  private byte[] repeat() {
    byte[] all = new byte[wide ? 64 : 32];
    for (int i = 0; i < all.length; i++) {
      all[i] = (byte) (i / 4);
    }
    return all;
  }

  /** First column of the group of each value, within 16 columns or all that a step has. */
  private byte[] groups() {
    byte[] all = new byte[wide ? 64 : 32];
    for (int i = 0; i < all.length; i++) {
      all[i] = (byte) (wide ? i / 2 * 4 : i / 2 % 4 * 4);
    }
    return all;
  }

  /** A number of two bits, in the place of the lower or the upper two of four, as it is. */
  private byte[] pairs() {
    byte[] all = new byte[wide ? 64 : 32];
    for (int i = 0; i < all.length; i++) {
      all[i] = (byte) (i % 16 < 4 ? i % 16 : i % 16 / 4);
    }
    return all;
  }

  /** Adds the partial sums by halving and stores the result. */
  private void store(Vec[] all) {
    Vec sum = Vec.of(32, all[0].code());
    if (wide) {
      a.vextractf64x4(u.ymm(), Zmm.of(sum.code()), 1);
      a.vaddps(sum, sum, u.ymm());
    } else {
      a.vaddps(sum, sum, all[1]);
    }
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
