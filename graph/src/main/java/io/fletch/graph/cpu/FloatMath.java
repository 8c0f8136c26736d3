package io.fletch.graph.cpu;

/**
 * The elementary functions of the kernels in float32. Written as fixed sequences of correctly
 * rounded operations (add, mul, div, fma), without tables or branches on values that a SIMD version
 * could not follow, so that all kernel sets give the same bits.
 *
 * <p>Errors against the exact value, over all finite arguments (a test measures them): exp 1.1 ulp
 * where the result is normal; sigmoid and tanh 3 ulp. NaN gives NaN; exp(-inf) = 0, exp(inf) = inf.
 */
final class FloatMath {
  static final float LOG2E = 1.442695f;
  static final float LN2_HI = 0.6931472f;
  static final float LN2_LO = -1.9046542e-9f;

  /** 1.5 * 2^23: adding it rounds to an integer that then lies in the low mantissa bits. */
  static final float ROUND = 12582912f;

  static final int ROUND_BITS = Float.floatToRawIntBits(ROUND);

  /** Arguments are clamped to this range, beyond which the result is 0 or infinite anyway. */
  static final float EXP_MIN = -105f;

  /** What {@link #weight} takes for anything less: its power of two is -101. */
  static final float WEIGHT_MIN = -70f;

  static final float EXP_MAX = 90f;

  // exp(r) = 1 + r + r^2 (E2 + E3 r + ...), |r| <= ln(2)/2: minimax, relative error 3.1e-9.
  static final float E2 = 0.49999994f;
  static final float E3 = 0.16666521f;
  static final float E4 = 0.04166839f;
  static final float E5 = 0.008368716f;
  static final float E6 = 0.0013814602f;

  // tanh(u) = u + u z (T0 + T1 z + ...), z = u^2, |u| < TANH_SMALL: minimax, relative error 4.7e-9.
  static final float TANH_SMALL = 0.63f;
  static final float T0 = -0.33333278f;
  static final float T1 = 0.13331328f;
  static final float T2 = -0.05372923f;
  static final float T3 = 0.020602006f;
  static final float T4 = -0.0056607886f;

  static final float SQRT_2_OVER_PI = 0.7978846f;
  static final float GELU_CUBIC = 0.044715f;

  // log(N(x) / N(-x)) = x (G0 + G1 z + ...), z = min(x^2, GELU_MAX), N the normal distribution:
  // minimax in what it does to gelu(x), absolute error 4.2e-8. Beyond, N(-x) < 3e-8.
  static final float GELU_MAX = 30f;
  static final float G0 = 1.5957717f;
  static final float G1 = 0.07266046f;
  static final float G2 = -5.9748036e-5f;
  static final float G3 = -1.1280115e-4f;
  static final float G4 = 8.350775e-6f;
  static final float G5 = -3.0449104e-7f;
  static final float G6 = 5.270821e-9f;
  static final float G7 = -2.7793236e-11f;

  private FloatMath() {}

  static float exp(float x) {
    float c = x > EXP_MAX ? EXP_MAX : x;
    c = c < EXP_MIN ? EXP_MIN : c;
    float t = Math.fma(c, LOG2E, ROUND);
    int n = Float.floatToRawIntBits(t) - ROUND_BITS;
    float p = fraction(c, t - ROUND);
    // Two factors, because 2^n itself may be subnormal or overflow.
    int half = n >> 1;
    return p * powerOfTwo(half) * powerOfTwo(n - half);
  }

  /**
   * The weight of a score in a softmax: {@code exp(x)} of {@code x <= 0} or NaN, and zero where
   * {@code x log2(e)} rounds to less than -100. Subnormal weights change no result, but on many
   * CPUs make each product that they are in take ten times as long or more.
   */
  static float weight(float x) {
    float c = x < WEIGHT_MIN ? WEIGHT_MIN : x;
    float t = Math.fma(c, LOG2E, ROUND);
    int n = Float.floatToRawIntBits(t) - ROUND_BITS;
    float p = fraction(c, t - ROUND);
    // The last factor is 2^(n - 26), and zero where n is -101.
    return p * 0x1p26f * Float.intBitsToFloat((n + 101) << 23);
  }

  /** {@code exp(x - k log(2))}, the whole number k next to {@code x log2(e)}. */
  private static float fraction(float x, float k) {
    float r = Math.fma(k, -LN2_HI, x);
    r = Math.fma(k, -LN2_LO, r);
    float p = Math.fma(E6, r, E5);
    p = Math.fma(p, r, E4);
    p = Math.fma(p, r, E3);
    p = Math.fma(p, r, E2);
    return Math.fma(p, r * r, r) + 1f;
  }

  private static float powerOfTwo(int n) {
    return Float.intBitsToFloat((n + 127) << 23);
  }

  /** {@code 1 / (1 + exp(-x))}. */
  static float sigmoid(float x) {
    return 1f / (1f + exp(-x));
  }

  static float silu(float x) {
    return x / (1f + exp(-x));
  }

  /** {@code x * sigmoid(2u)}, which equals {@code 0.5 x (1 + tanh(u))} without its cancellation. */
  static float geluTanh(float x) {
    float u = (x * SQRT_2_OVER_PI) * Math.fma(GELU_CUBIC * x, x, 1f);
    return x / (1f + exp(-2f * u));
  }

  /** {@code x * N(x)} as {@code x * sigmoid(u)} with u = log(N(x) / N(-x)). */
  static float geluErf(float x) {
    float z = x * x;
    z = z > GELU_MAX ? GELU_MAX : z;
    float p = Math.fma(G7, z, G6);
    p = Math.fma(p, z, G5);
    p = Math.fma(p, z, G4);
    p = Math.fma(p, z, G3);
    p = Math.fma(p, z, G2);
    p = Math.fma(p, z, G1);
    p = Math.fma(p, z, G0);
    return x / (1f + exp(-(x * p)));
  }

  static float tanh(float x) {
    if (Math.abs(x) < TANH_SMALL) {
      float z = x * x;
      float p = Math.fma(T4, z, T3);
      p = Math.fma(p, z, T2);
      p = Math.fma(p, z, T1);
      p = Math.fma(p, z, T0);
      return Math.fma(p * z, x, x);
    }
    float t = 1f - 2f / (exp(2f * Math.abs(x)) + 1f);
    return x < 0 ? -t : t;
  }

  static float relu(float x) {
    return x < 0f ? 0f : x;
  }

  static float reluSquared(float x) {
    float r = relu(x);
    return r * r;
  }
}
