package io.fletch.graph.cpu;

import java.lang.foreign.MemorySegment;

/**
 * Attention over Q8_0 caches by integer products, in scalar code: what all kernel sets do, bit for
 * bit.
 *
 * <p>A query is quantized to 16 bits, with one scale for a head:
 *
 * <pre>
 *   amax = max |q_i|;   dq = amax / 32639;   code_i = round-half-even(q_i * (32639 / amax))
 * </pre>
 *
 * and its product with a key is, block by block of 32 in ascending order from +0, {@code s =
 * fma((float) sum(code_i * c_i), d_block, s)}; the score is {@code (scale * dq) * s}.
 *
 * <p>The weights p of a chunk are quantized to 15 bits, with a scale for every head and block of 32
 * elements:
 *
 * <pre>
 *   w_j = p_j * d_j (the scale of the block of value j);   amax = max |w_j|, visible positions only
 *   dw = amax / 32767;   code_j = round-half-even(w_j * (32767 / amax))
 *   v_i = fma((float) sum(code_j * c_ji), dw, v_i * f)
 * </pre>
 *
 * <p>Sums of products are exact in 32 bits. Largest magnitudes are compared as bits without sign;
 * one that is not finite makes dq or dw the quiet NaN and codes 0, one below {@link #MIN_AMAX}
 * makes both 0.
 */
final class CodeProducts {
  /** Largest code of a query; two signed bytes hold it as {@code 256 * high + low}. */
  static final int QUERY_LIMIT = 32639;

  /** Largest code of a weight. */
  static final int WEIGHT_LIMIT = 32767;

  /** Magnitudes below are quantized to zero: the inverse stays finite. */
  static final float MIN_AMAX = 0x1p-110f;

  private CodeProducts() {}

  /** The larger of two magnitudes as bits: NaN is the largest. */
  static int larger(int amax, float x) {
    return Math.max(amax, Float.floatToRawIntBits(x) & 0x7fffffff);
  }

  /** What a code is worth. */
  static float scale(int amaxBits, int limit) {
    float amax = Float.intBitsToFloat(amaxBits);
    return Float.isFinite(amax) ? amax < MIN_AMAX ? 0f : amax / limit : Float.NaN;
  }

  /** What is multiplied to get a code. */
  static float inverse(int amaxBits, int limit) {
    float amax = Float.intBitsToFloat(amaxBits);
    return Float.isFinite(amax) && amax >= MIN_AMAX ? limit / amax : 0f;
  }

  /** Code of a finite number, or 0. */
  static int code(float x, float inverse) {
    return inverse == 0f ? 0 : (int) Math.rint(x * inverse);
  }

  /** Quantizes the query of a head; returns its scale. */
  static float quantize(MemorySegment q, long offset, int n, int[] codes, int at) {
    int amax = 0;
    for (int i = 0; i < n; i++) {
      amax = larger(amax, Segments.f32(q, offset + i));
    }
    float inverse = inverse(amax, QUERY_LIMIT);
    for (int i = 0; i < n; i++) {
      codes[at + i] = code(Segments.f32(q, offset + i), inverse);
    }
    return scale(amax, QUERY_LIMIT);
  }

  /** Product of the codes of a query with the key at a byte offset. */
  static float product(int[] codes, int at, MemorySegment kv, long key, int n) {
    float s = 0f;
    for (int b = 0; b < n; b += 32) {
      int sum = 0;
      for (int i = b; i < b + 32; i++) {
        sum += codes[at + i] * Segments.i8(kv, key + i);
      }
      s = Math.fma(sum, Segments.f16(kv, key + n + (b >> 4)), s);
    }
    return s;
  }

  /**
   * Takes the values of consecutive positions into the result of a head, which was multiplied by
   * the factor of the chunk before.
   *
   * @param p weights of the positions
   * @param value byte offset of the first position's value
   * @param n elements of a value
   * @param codes room for a code of each position
   */
  static void accumulate(
      MemorySegment p,
      long pOffset,
      int positions,
      MemorySegment kv,
      long value,
      int n,
      int[] codes,
      MemorySegment to,
      long at) {
    long stride = n + n / 16;
    for (int b = 0; b < n; b += 32) {
      long scale = value + n + (b >> 4);
      int amax = 0;
      for (int j = 0; j < positions; j++) {
        amax = larger(amax, Segments.f32(p, pOffset + j) * Segments.f16(kv, scale + j * stride));
      }
      float inverse = inverse(amax, WEIGHT_LIMIT);
      for (int j = 0; j < positions; j++) {
        float w = Segments.f32(p, pOffset + j) * Segments.f16(kv, scale + j * stride);
        codes[j] = code(w, inverse);
      }
      float d = scale(amax, WEIGHT_LIMIT);
      for (int i = b; i < b + 32; i++) {
        int sum = 0;
        for (int j = 0; j < positions; j++) {
          sum += codes[j] * Segments.i8(kv, value + j * stride + i);
        }
        Segments.f32(to, at + i, Math.fma(sum, d, Segments.f32(to, at + i)));
      }
    }
  }
}
