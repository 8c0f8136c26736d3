package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Operand;
import io.fletch.ffm.x86.Opmask;
import io.fletch.ffm.x86.Vec;
import io.fletch.ffm.x86.Xmm;
import io.fletch.ffm.x86.Zmm;
import io.fletch.quant.TensorType;

/**
 * Pieces of float code that several generators share, for vectors of one width. They follow the
 * order of operations of the scalar kernels, so results have the same bits.
 */
final class Lanes {
  /** Predicate "less" of a float comparison, false for NaN. */
  private static final int LESS = 1;

  /** Scores below, relative to the largest, have weight zero. */
  static final float LEAST_SCORE = -70f;

  final Assembler a;
  final int bytes;

  /** Vectors that hold sixteen floats. */
  final int parts;

  Lanes(Assembler a, Isa isa) {
    this.a = a;
    this.bytes = isa.bytes();
    this.parts = 64 / bytes;
  }

  /** Elements of a float type as float32, a vector of them; exact. */
  static void load(Assembler a, TensorType type, Vec d, Operand from) {
    switch (type) {
      case F32 -> a.vmovups(d, from);
      case F16 -> a.vcvtph2ps(d, from);
      case BF16 -> {
        a.vpmovzxwd(d, from);
        a.vpslld(d, d, 16);
      }
      default ->
          throw new IllegalArgumentException("type: expected=F32, F16 or BF16 actual=" + type);
    }
  }

  Vec reg(int code) {
    return Vec.of(bytes, code);
  }

  Mem all(float value) {
    return a.repeated(Float.floatToRawIntBits(value), bytes);
  }

  /**
   * Sixteen partial sums, in one register or two, to eight in the first; the rest is overwritten.
   */
  void toEight(Vec[] sums, Vec temp) {
    if (parts == 1) {
      a.vextractf64x4(temp.ymm(), (Zmm) sums[0], 1);
      a.vaddps(sums[0].ymm(), sums[0].ymm(), temp.ymm());
    } else {
      a.vaddps(sums[0], sums[0], sums[1]);
    }
  }

  /** Eight partial sums in a 256-bit register to four in its lower half. */
  void toFour(Vec sum, Vec temp) {
    if (sum.code() > 15 || temp.code() > 15) {
      a.vextracti32x4(temp.xmm(), sum.ymm(), 1);
    } else {
      a.vextractf128(temp.xmm(), sum.ymm(), 1);
    }
    a.vaddps(sum.xmm(), sum.xmm(), temp.xmm());
  }

  /** Four partial sums to one. */
  void toOne(Xmm sum, Xmm temp) {
    a.vmovhlps(temp, sum, sum);
    a.vaddps(sum, sum, temp);
    a.vmovshdup(temp, sum);
    a.vaddss(sum, sum, temp);
  }

  /** The largest of all lanes, none of them NaN, in every lane. */
  void spreadMax(Vec x, Vec temp) {
    if (bytes == 64) {
      a.vextractf64x4(temp.ymm(), (Zmm) x, 1);
      a.vmaxps(x.ymm(), x.ymm(), temp.ymm());
    }
    a.vextractf128(temp.xmm(), x.ymm(), 1);
    a.vmaxps(x.xmm(), x.xmm(), temp.xmm());
    for (int order : new int[] {0x4e, 0xb1}) {
      a.vpshufd(temp.xmm(), x.xmm(), order);
      a.vmaxps(x.xmm(), x.xmm(), temp.xmm());
    }
    a.vbroadcastss(x, x.xmm());
  }

  /** {@code x = exp(x)} as {@code FloatMath.exp} does it. */
  void exp(Vec x, Vec t, Vec n, Vec p) {
    // The operand that comes second is the result when one of them is NaN.
    a.vmovups(t, all(90f));
    a.vminps(x, t, x);
    a.vmovups(t, all(-105f));
    a.vmaxps(x, t, x);
    a.vmovups(t, all(1.442695f));
    a.vfmadd213ps(t, x, all(12582912f));
    a.vpsubd(n, t, all(12582912f));
    a.vsubps(t, t, all(12582912f));
    a.vfmadd231ps(x, t, all(-0.6931472f));
    a.vfmadd231ps(x, t, all(1.9046542e-9f));
    polynomial(x, t, p);
    // Two factors, because 2^n itself may be subnormal or overflow.
    a.vpsrad(t, n, 1);
    a.vpsubd(n, n, t);
    a.vpaddd(t, t, a.repeated(127, bytes));
    a.vpslld(t, t, 23);
    a.vmulps(x, p, t);
    a.vpaddd(n, n, a.repeated(127, bytes));
    a.vpslld(n, n, 23);
    a.vmulps(x, x, n);
  }

  /** The weight of a score, {@code FloatMath.weight}: two thirds of the instructions of exp. */
  void weight(Vec x, Vec t, Vec n, Vec p) {
    a.vmovups(t, all(LEAST_SCORE));
    weight(x, t, t, n, p);
  }

  /**
   * The same.
   *
   * @param least full of {@link #LEAST_SCORE}; kept if it is no temporary
   */
  void weight(Vec x, Vec least, Vec t, Vec n, Vec p) {
    // The operand that comes second is the result when one of them is NaN.
    a.vmaxps(x, least, x);
    // The low bits of this number are 101 + n. No x / ln(2) lies half-way between two integers, so
    // 101 does not change which even one it would be rounded to.
    a.vmovups(t, all(1.442695f));
    a.vfmadd213ps(t, x, all(12582912f + 101f));
    a.vsubps(n, t, all(12582912f + 101f));
    a.vfmadd231ps(x, n, all(-0.6931472f));
    a.vfmadd231ps(x, n, all(1.9046542e-9f));
    polynomial(x, n, p);
    // 2^(n - 26), and zero where n is -101.
    a.vpslld(t, t, 23);
    a.vmulps(p, p, all(0x1p26f));
    a.vmulps(x, p, t);
  }

  /** {@code p = exp(x)}, {@code |x| <= ln(2) / 2}. */
  private void polynomial(Vec x, Vec square, Vec p) {
    a.vmovups(p, all(0.0013814602f));
    a.vfmadd213ps(p, x, all(0.008368716f));
    a.vfmadd213ps(p, x, all(0.04166839f));
    a.vfmadd213ps(p, x, all(0.16666521f));
    a.vfmadd213ps(p, x, all(0.49999994f));
    a.vmulps(square, x, x);
    a.vfmadd213ps(p, square, x);
    a.vaddps(p, p, all(1f));
  }

  /**
   * {@code x = cap * tanh(x / cap)} as the scalar kernel does it; overwrites registers 4 to 7 and
   * the mask register 2 besides.
   */
  void softCap(Vec x, Vec cap, Vec z, Vec small) {
    final Mem magnitude = a.repeated(0x7fffffff, bytes);
    final Vec t = reg(4);
    a.vdivps(x, x, cap);
    a.vmulps(z, x, x);
    a.vmovups(small, all(-0.0056607886f));
    a.vfmadd213ps(small, z, all(0.020602006f));
    a.vfmadd213ps(small, z, all(-0.05372923f));
    a.vfmadd213ps(small, z, all(0.13331328f));
    a.vfmadd213ps(small, z, all(-0.33333278f));
    a.vmulps(small, small, z);
    a.vfmadd213ps(small, x, x);
    a.vandps(t, x, magnitude);
    a.vaddps(t, t, t);
    exp(t, reg(5), reg(6), reg(7));
    a.vaddps(t, t, all(1f));
    a.vmovups(z, all(2f));
    a.vdivps(z, z, t);
    a.vmovups(t, all(1f));
    a.vsubps(t, t, z);
    a.vandps(z, x, a.repeated(0x80000000, bytes));
    a.vorps(t, t, z);
    a.vandps(z, x, magnitude);
    if (bytes == 64) {
      a.vcmpps(Opmask.K2, z, all(0.63f), LESS);
      a.masked(Opmask.K2);
      a.vmovups(t, small);
    } else {
      a.vcmpps(z, z, all(0.63f), LESS);
      a.vblendvps(t, t, small, z);
    }
    a.vmulps(x, cap, t);
  }
}
