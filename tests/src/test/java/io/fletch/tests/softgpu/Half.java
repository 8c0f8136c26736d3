package io.fletch.tests.softgpu;

/** 16-bit floats: conversions with one rounding. */
final class Half {
  private Half() {}

  static float f16(long bits) {
    return Float.float16ToFloat((short) bits);
  }

  static float bf16(long bits) {
    return Float.intBitsToFloat((int) bits << 16);
  }

  /** Rounds to the nearest value with a number of fraction bits, ties to even. */
  private static double round(double v, int fraction, int least) {
    if (v == 0 || Double.isNaN(v) || Double.isInfinite(v)) {
      return v;
    }
    double ulp = Math.scalb(1.0, Math.max(Math.getExponent(v), least) - fraction);
    return Math.rint(v / ulp) * ulp;
  }

  static long toF16(double v) {
    if (Double.isNaN(v)) {
      return 0x7fff;
    }
    float single = (float) v;
    if (single == v) {
      return Float.floatToFloat16(single) & 0xffffL;
    }
    double q = round(v, 10, -14);
    if (Math.abs(q) > 65504) {
      return v > 0 ? 0x7c00 : 0xfc00;
    }
    return Float.floatToFloat16((float) q) & 0xffffL;
  }

  static long toBf16(double v) {
    if (Double.isNaN(v)) {
      return 0x7fff;
    }
    float single = (float) v;
    if (single == v) {
      int bits = Float.floatToRawIntBits(single);
      return bits + 0x7fff + (bits >>> 16 & 1) >>> 16;
    }
    double q = round(v, 7, -126);
    if (Math.abs(q) > 0x1.fep127) {
      return v > 0 ? 0x7f80 : 0xff80;
    }
    return (Float.floatToRawIntBits((float) q) >>> 16) & 0xffffL;
  }

  static long towardsZeroF16(double v) {
    long r = toF16(v);
    if (!Double.isNaN(v) && !Double.isInfinite(v) && Math.abs((double) f16(r)) > Math.abs(v)) {
      r--;
    }
    return r;
  }

  static long towardsZeroBf16(double v) {
    return Double.isNaN(v) ? 0x7fff : (Float.floatToRawIntBits((float) v) >>> 16) & 0xffffL;
  }
}
