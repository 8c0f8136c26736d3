package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Xmm;
import io.fletch.ffm.x86.Ymm;

/**
 * Generates conversions of float rows to 8-bit blocks and to half precision, with the bits of the
 * scalar kernels. AVX2, FMA and F16C: wider vectors gain nothing, since a block is a short chain of
 * dependent steps and several blocks overlap anyway.
 */
public final class QuantizeCode {
  private static final Gpr X = Gpr.RDI;
  private static final Gpr COUNT = Gpr.RSI;
  private static final Gpr CODES = Gpr.RDX;
  private static final Gpr SCALES = Gpr.RCX;
  private static final Gpr SUMS = Gpr.R8;

  /** The largest magnitude of a block; as bits. */
  private static final Xmm AMAX = Xmm.XMM4;

  private static final Xmm SCALE = Xmm.XMM7;
  private static final Ymm INVERSE = Ymm.YMM8;

  /** All ones where the codes of a block are not 0. */
  private static final Ymm USED = Ymm.YMM6;

  private static final Ymm ONE_WORDS = Ymm.YMM12;
  private static final Ymm ONE_BYTES = Ymm.YMM13;
  private static final Ymm ORDER = Ymm.YMM14;
  private static final Ymm MAGNITUDE = Ymm.YMM15;

  private final Assembler a = new Assembler();
  private final int minAmaxBits;

  private QuantizeCode(int minAmaxBits) {
    this.minAmaxBits = minAmaxBits;
  }

  /**
   * Code of {@code void (long x, long blocks, long codes, long scales, long sums)} for blocks of 32
   * with float scales and 32-bit sums of codes.
   *
   * @param minAmaxBits bits of the magnitude below which a block is zero
   */
  public static byte[] blocks32(int minAmaxBits) {
    QuantizeCode c = new QuantizeCode(minAmaxBits);
    return c.blocks(
        32,
        () -> {
          c.a.vmovss(Mem.of(SCALES), SCALE);
          c.a.add(SCALES, 4);
        },
        () -> {
          c.sumsOfHalves();
          c.a.vextracti128(Xmm.XMM2, Ymm.YMM1, 1);
          c.a.vpaddd(Xmm.XMM1, Xmm.XMM1, Xmm.XMM2);
          c.a.vmovd(Mem.of(SUMS), Xmm.XMM1);
          c.a.add(SUMS, 4);
        });
  }

  /**
   * As {@link #blocks32}, for blocks of 256 with float scales and 16-bit sums of 16 codes.
   *
   * @param minAmaxBits bits of the magnitude below which a block is zero
   */
  public static byte[] blocks256(int minAmaxBits) {
    QuantizeCode c = new QuantizeCode(minAmaxBits);
    return c.blocks(
        256,
        () -> {
          c.a.vmovss(Mem.of(SCALES), SCALE);
          c.a.add(SCALES, 4);
        },
        () -> {
          c.sumsOfHalves();
          c.a.vpextrw(Mem.of(SUMS), Xmm.XMM1, 0);
          c.a.vextracti128(Xmm.XMM1, Ymm.YMM1, 1);
          c.a.vpextrw(Mem.of(SUMS, 2), Xmm.XMM1, 0);
          c.a.add(SUMS, 4);
        });
  }

  /**
   * Code of {@code void (long x, long blocks, long codes, long scales)} for blocks of 32 with
   * half-precision scales.
   *
   * @param minAmaxBits bits of the magnitude below which a block is zero
   */
  public static byte[] blocks32HalfScales(int minAmaxBits) {
    QuantizeCode c = new QuantizeCode(minAmaxBits);
    return c.blocks(
        32,
        () -> {
          c.a.vcvtps2ph(SCALE, SCALE, 0);
          c.a.vpextrw(Mem.of(SCALES), SCALE, 0);
          c.a.add(SCALES, 2);
        },
        () -> {});
  }

  /** Code of {@code void (long x, long n, long halves)}: rounds to half precision. */
  public static byte[] halves() {
    Assembler a = new Assembler();
    Gpr halves = CODES;
    Label rest = a.label();
    Label done = a.label();
    a.sub(COUNT, 8);
    a.jcc(Condition.L, rest);
    Label loop = a.here();
    a.vmovups(Ymm.YMM0, Mem.of(X));
    a.vcvtps2ph(Mem.of(halves), Ymm.YMM0, 0);
    a.add(X, 32);
    a.add(halves, 16);
    a.sub(COUNT, 8);
    a.jcc(Condition.GE, loop);
    a.bind(rest);
    a.add(COUNT, 8);
    a.jcc(Condition.E, done);
    Label single = a.here();
    a.vmovss(Xmm.XMM0, Mem.of(X));
    a.vcvtps2ph(Xmm.XMM0, Xmm.XMM0, 0);
    a.vpextrw(Mem.of(halves), Xmm.XMM0, 0);
    a.add(X, 4);
    a.add(halves, 2);
    a.dec(COUNT);
    a.jcc(Condition.NE, single);
    a.bind(done);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private byte[] blocks(int size, Runnable storeScale, Runnable storeSums) {
    Label done = a.label();
    a.vmovdqu(MAGNITUDE, a.repeated(0x7fffffff, 32));
    a.vmovdqu(ORDER, a.ints(0, 4, 1, 5, 2, 6, 3, 7));
    a.vmovdqu(ONE_BYTES, a.repeated(0x01010101, 32));
    a.vmovdqu(ONE_WORDS, a.repeated(0x00010001, 32));
    a.test(COUNT, COUNT);
    a.jcc(Condition.E, done);
    Label loop = a.here();
    amax(size);
    factors();
    storeScale.run();
    for (int i = 0; i < size; i += 32) {
      codes(4 * i);
      a.vmovdqu(Mem.of(CODES, i), Ymm.YMM0);
      storeSums.run();
    }
    a.add(X, 4 * size);
    a.add(CODES, size);
    a.dec(COUNT);
    a.jcc(Condition.NE, loop);
    a.bind(done);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /** Magnitudes are compared as integers, so NaN is the largest. */
  private void amax(int size) {
    Ymm[] max = {Ymm.YMM4, Ymm.YMM5};
    for (int i = 0; i < size; i += 8) {
      Ymm d = i < 16 ? max[i / 8] : Ymm.YMM0;
      a.vpand(d, MAGNITUDE, Mem.of(X, 4 * i));
      if (i >= 16) {
        a.vpmaxsd(max[i / 8 % 2], max[i / 8 % 2], d);
      }
    }
    a.vpmaxsd(Ymm.YMM4, Ymm.YMM4, Ymm.YMM5);
    a.vextracti128(Xmm.XMM5, Ymm.YMM4, 1);
    a.vpmaxsd(AMAX, AMAX, Xmm.XMM5);
    for (int order : new int[] {0x4e, 0xb1}) {
      a.vpshufd(Xmm.XMM5, AMAX, order);
      a.vpmaxsd(AMAX, AMAX, Xmm.XMM5);
    }
  }

  private void factors() {
    Xmm notFinite = Xmm.XMM5;
    a.vpcmpgtd(notFinite, AMAX, a.repeated(0x7f7fffff, 16));
    a.vpcmpgtd(USED.xmm(), AMAX, a.repeated(minAmaxBits - 1, 16));
    a.vpandn(USED.xmm(), notFinite, USED.xmm());
    Mem limit = a.repeated(Float.floatToRawIntBits(127f), 16);
    a.vdivps(SCALE, AMAX, limit);
    a.vpand(SCALE, SCALE, USED.xmm());
    a.vpand(notFinite, notFinite, a.repeated(0x7fc00000, 16));
    a.vpor(SCALE, SCALE, notFinite);
    a.vmovups(INVERSE.xmm(), limit);
    a.vdivps(INVERSE.xmm(), INVERSE.xmm(), AMAX);
    a.vpand(INVERSE.xmm(), INVERSE.xmm(), USED.xmm());
    a.vpbroadcastd(INVERSE, INVERSE.xmm());
    a.vpbroadcastd(USED, USED.xmm());
  }

  /** Codes of 32 elements in order, in register 0. */
  private void codes(int offset) {
    for (int i = 0; i < 4; i++) {
      Ymm c = Ymm.of(i);
      a.vmulps(c, INVERSE, Mem.of(X, offset + 32 * i));
      a.vcvtps2dq(c, c);
      // Infinity times 0 is no number, and its integer not 0.
      a.vpand(c, c, USED);
    }
    a.vpackssdw(Ymm.YMM0, Ymm.YMM0, Ymm.YMM1);
    a.vpackssdw(Ymm.YMM2, Ymm.YMM2, Ymm.YMM3);
    a.vpacksswb(Ymm.YMM0, Ymm.YMM0, Ymm.YMM2);
    a.vpermd(Ymm.YMM0, ORDER, Ymm.YMM0);
  }

  /** Sums of the codes of either half of register 0, in all lanes of that half of register 1. */
  private void sumsOfHalves() {
    Ymm sums = Ymm.YMM1;
    a.vpmaddubsw(sums, ONE_BYTES, Ymm.YMM0);
    a.vpmaddwd(sums, sums, ONE_WORDS);
    for (int order : new int[] {0x4e, 0xb1}) {
      a.vpshufd(Ymm.YMM2, sums, order);
      a.vpaddd(sums, sums, Ymm.YMM2);
    }
  }
}
