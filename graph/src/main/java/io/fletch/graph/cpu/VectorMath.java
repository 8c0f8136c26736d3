package io.fletch.graph.cpu;

import static io.fletch.graph.cpu.FloatMath.ROUND;

import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.ShortVector;
import jdk.incubator.vector.VectorMask;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorShape;
import jdk.incubator.vector.VectorSpecies;

/** {@link FloatMath} on vectors: the same operations in the same order, hence the same bits. */
final class VectorMath {
  /** At most {@link ActivationLayout#LANES} wide. */
  static final VectorSpecies<Float> FLOATS =
      FloatVector.SPECIES_PREFERRED.length() > ActivationLayout.LANES
          ? FloatVector.SPECIES_512
          : FloatVector.SPECIES_PREFERRED;

  static final VectorSpecies<Integer> INTS = VectorSpecies.of(int.class, FLOATS.vectorShape());
  private static final VectorSpecies<Short> HALVES =
      VectorSpecies.of(short.class, VectorShape.forBitSize(FLOATS.vectorBitSize() / 2));
  private static final int L = FLOATS.length();

  private VectorMath() {}

  static FloatVector exp(FloatVector x) {
    FloatVector c = x.blend(FloatMath.EXP_MAX, x.compare(VectorOperators.GT, FloatMath.EXP_MAX));
    c = c.blend(FloatMath.EXP_MIN, c.compare(VectorOperators.LT, FloatMath.EXP_MIN));
    FloatVector t = c.fma(splat(FloatMath.LOG2E), splat(ROUND));
    IntVector n = t.reinterpretAsInts().sub(FloatMath.ROUND_BITS);
    FloatVector p = fraction(c, t.sub(ROUND));
    IntVector half = n.lanewise(VectorOperators.ASHR, 1);
    return p.mul(powerOfTwo(half)).mul(powerOfTwo(n.sub(half)));
  }

  static FloatVector weight(FloatVector x) {
    FloatVector c =
        x.blend(FloatMath.WEIGHT_MIN, x.compare(VectorOperators.LT, FloatMath.WEIGHT_MIN));
    FloatVector t = c.fma(splat(FloatMath.LOG2E), splat(ROUND));
    IntVector n = t.reinterpretAsInts().sub(FloatMath.ROUND_BITS);
    return fraction(c, t.sub(ROUND)).mul(0x1p26f).mul(powerOfTwo(n.sub(26)));
  }

  private static FloatVector fraction(FloatVector x, FloatVector k) {
    FloatVector r = k.fma(splat(-FloatMath.LN2_HI), x);
    r = k.fma(splat(-FloatMath.LN2_LO), r);
    FloatVector p = splat(FloatMath.E6).fma(r, splat(FloatMath.E5));
    p = p.fma(r, splat(FloatMath.E4));
    p = p.fma(r, splat(FloatMath.E3));
    p = p.fma(r, splat(FloatMath.E2));
    return p.fma(r.mul(r), r).add(1f);
  }

  private static FloatVector powerOfTwo(IntVector n) {
    return n.add(127).lanewise(VectorOperators.LSHL, 23).reinterpretAsFloats();
  }

  static FloatVector silu(FloatVector x) {
    return x.div(exp(x.neg()).add(1f));
  }

  static FloatVector geluTanh(FloatVector x) {
    FloatVector cubic = x.mul(FloatMath.GELU_CUBIC).fma(x, splat(1f));
    FloatVector u = x.mul(FloatMath.SQRT_2_OVER_PI).mul(cubic);
    return x.div(exp(u.mul(-2f)).add(1f));
  }

  static FloatVector geluErf(FloatVector x) {
    FloatVector z = x.mul(x);
    z = z.blend(FloatMath.GELU_MAX, z.compare(VectorOperators.GT, FloatMath.GELU_MAX));
    FloatVector p = splat(FloatMath.G7).fma(z, splat(FloatMath.G6));
    p = p.fma(z, splat(FloatMath.G5));
    p = p.fma(z, splat(FloatMath.G4));
    p = p.fma(z, splat(FloatMath.G3));
    p = p.fma(z, splat(FloatMath.G2));
    p = p.fma(z, splat(FloatMath.G1));
    p = p.fma(z, splat(FloatMath.G0));
    return x.div(exp(x.mul(p).neg()).add(1f));
  }

  static FloatVector tanh(FloatVector x) {
    FloatVector z = x.mul(x);
    FloatVector p = splat(FloatMath.T4).fma(z, splat(FloatMath.T3));
    p = p.fma(z, splat(FloatMath.T2));
    p = p.fma(z, splat(FloatMath.T1));
    p = p.fma(z, splat(FloatMath.T0));
    FloatVector small = p.mul(z).fma(x, x);
    FloatVector a = x.abs();
    FloatVector t = splat(1f).sub(splat(2f).div(exp(a.mul(2f)).add(1f)));
    FloatVector large = t.blend(t.neg(), x.compare(VectorOperators.LT, 0f));
    VectorMask<Float> isSmall = a.compare(VectorOperators.LT, FloatMath.TANH_SMALL);
    return large.blend(small, isSmall);
  }

  static FloatVector relu(FloatVector x) {
    return x.blend(0f, x.compare(VectorOperators.LT, 0f));
  }

  static FloatVector splat(float v) {
    return FloatVector.broadcast(FLOATS, v);
  }

  /** C2 turns this loop into vector conversions where the machine has them. */
  static void halvesToFloats(short[] halves, int from, float[] to, int at, int n) {
    for (int i = 0; i < n; i++) {
      to[at + i] = Float.float16ToFloat(halves[from + i]);
    }
  }

  static void bfloatsToFloats(short[] halves, float[] to, int at, int n) {
    int whole = n - n % L;
    for (int i = 0; i < whole; i += L) {
      IntVector bits =
          (IntVector)
              ShortVector.fromArray(HALVES, halves, i).convertShape(VectorOperators.S2I, INTS, 0);
      bits.lanewise(VectorOperators.LSHL, 16).reinterpretAsFloats().intoArray(to, at + i);
    }
    for (int i = whole; i < n; i++) {
      to[at + i] = Float.intBitsToFloat(halves[i] << 16);
    }
  }

  static void floatsToHalves(float[] x, short[] to, int n) {
    for (int i = 0; i < n; i++) {
      to[i] = Float.floatToFloat16(x[i]);
    }
  }

  static void codesToFloats(byte[] codes, float[] to, int n) {
    for (int i = 0; i < n; i++) {
      to[i] = codes[i];
    }
  }
}
