package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Ymm;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/**
 * Generates the reduction of a row of logits: the two largest of each lane, then the sum of weights
 * and the weighted sum in double precision. AVX2 and FMA: a vocabulary takes a few hundredths of a
 * millisecond.
 */
public final class StatisticsCode {
  /** Elements of a block. */
  public static final int BLOCK = 8;

  /** Bytes of the state: two vectors of 32 bytes. */
  public static final int STATE = 64;

  /** Weights below {@code exp(-REACH)} of the largest count as this. */
  public static final float REACH = 700;

  private static final Gpr X = Gpr.RDI;
  private static final Gpr COUNT = Gpr.RSI;
  private static final Gpr STATE_POINTER = Gpr.RDX;
  private static final Gpr TOP = Gpr.RCX;

  private final Assembler a = new Assembler();

  private StatisticsCode() {}

  /**
   * Code of {@code void (long x, long blocks, long state)}, {@code blocks >= 1}: stores the largest
   * float of each lane, then the second largest (equal to it on a tie), minus infinity where there
   * is none. NaN counts for nothing.
   */
  public static byte[] maxima() {
    return new StatisticsCode().emitMaxima();
  }

  /**
   * Code of {@code void (long x, long blocks, long state, long top)}, {@code blocks >= 1}: with
   * {@code d = x - top} stores four partial sums of {@code exp(d)}, then of {@code d exp(d)}, in
   * double precision, exp to 1e-10 relative. {@code top} is the address of a float that no element
   * exceeds. A NaN makes both NaN.
   */
  public static byte[] sums() {
    return new StatisticsCode().emitSums();
  }

  private byte[] emitMaxima() {
    Ymm first = Ymm.YMM0;
    Ymm second = Ymm.YMM1;
    Ymm x = Ymm.YMM2;
    Ymm t = Ymm.YMM3;
    Mem lowest = a.repeated(Float.floatToRawIntBits(Float.NEGATIVE_INFINITY), 32);
    a.vmovups(first, lowest);
    a.vmovups(second, lowest);
    Label loop = a.here();
    a.vmovups(x, Mem.of(X));
    // Of two operands one of which is NaN the second is the result.
    a.vminps(t, first, x);
    a.vmaxps(second, t, second);
    a.vmaxps(first, x, first);
    a.add(X, 4 * BLOCK);
    a.dec(COUNT);
    a.jcc(Condition.NE, loop);
    a.vmovups(Mem.of(STATE_POINTER), first);
    a.vmovups(Mem.of(STATE_POINTER, 32), second);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private byte[] emitSums() {
    Ymm sum = Ymm.YMM0;
    Ymm weighted = Ymm.YMM1;
    Ymm top = Ymm.YMM2;
    Ymm least = Ymm.YMM3;
    Ymm magic = Ymm.YMM4;
    Ymm noMagic = Ymm.YMM5;
    Ymm x = Ymm.YMM6;
    a.vbroadcastss(top, Mem.of(TOP));
    a.vmovups(least, doubles(-REACH));
    a.vxorps(top, top, a.repeated(0x80000000, 32));
    a.vcvtps2pd(top, top.xmm());
    a.vmovups(magic, doubles(MAGIC));
    a.vmovups(noMagic, doubles(-MAGIC));
    a.vxorps(sum, sum, sum);
    a.vxorps(weighted, weighted, weighted);
    a.align(32);
    Label loop = a.here();
    a.vmovups(x, Mem.of(X));
    a.vcvtps2pd(Ymm.YMM7, x.xmm());
    a.vextractf128(x.xmm(), x, 1);
    a.vcvtps2pd(Ymm.YMM8, x.xmm());
    for (Ymm d : new Ymm[] {Ymm.YMM7, Ymm.YMM8}) {
      a.vaddpd(d, d, top);
      // Of two operands one of which is NaN the second is the result.
      a.vmaxpd(d, least, d);
      weigh(d, sum, weighted, magic, noMagic);
    }
    a.add(X, 4 * BLOCK);
    a.dec(COUNT);
    a.jcc(Condition.NE, loop);
    a.vmovups(Mem.of(STATE_POINTER), sum);
    a.vmovups(Mem.of(STATE_POINTER, 32), weighted);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /** 1.5 * 2^52: a small number added to it is rounded to an integer in its low bits. */
  private static final double MAGIC = 6755399441055744.0;

  private static final double LOG2E = 1.4426950408889634;
  private static final double LN2_HIGH = 0.6931471803691238;
  private static final double LN2_LOW = 1.9082149292705877e-10;

  /** {@code sum += exp(d); weighted += d exp(d)}; d is at most 0 and not below -{@link #REACH}. */
  private void weigh(Ymm d, Ymm sum, Ymm weighted, Ymm magic, Ymm noMagic) {
    Ymm k = Ymm.YMM9;
    Ymm r = Ymm.YMM10;
    Ymm t = Ymm.YMM11;
    Ymm[] p = {Ymm.YMM12, Ymm.YMM13};
    a.vmovaps(k, magic);
    a.vfmadd231pd(k, d, doubles(LOG2E));
    a.vaddpd(t, k, noMagic);
    a.vmovaps(r, d);
    a.vfmadd231pd(r, t, doubles(-LN2_HIGH));
    a.vfmadd231pd(r, t, doubles(-LN2_LOW));
    double factorial = 3628800;
    a.vmovups(p[0], doubles(1 / factorial));
    for (int i = 10; i > 0; i--) {
      factorial /= i;
      Ymm next = p[i % 2 == 0 ? 1 : 0];
      a.vmovups(next, doubles(1 / factorial));
      a.vfmadd231pd(next, p[i % 2], r);
    }
    Ymm e = p[0];
    a.vpsllq(k, k, 52);
    a.vpaddq(e, e, k);
    a.vaddpd(sum, sum, e);
    a.vfmadd231pd(weighted, d, e);
  }

  private Mem doubles(double value) {
    ByteBuffer wide = ByteBuffer.allocate(32).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < 4; i++) {
      wide.putDouble(value);
    }
    return a.constant(wide.array());
  }
}
