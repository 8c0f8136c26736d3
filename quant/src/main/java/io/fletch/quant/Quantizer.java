package io.fletch.quant;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.Objects;

/**
 * Turns floats into stored elements by the reference algorithms of specs weights 2.3: float
 * arithmetic, sums from left to right, no fused multiply-add, so that the bytes equal those of the
 * C reference. Stateless; safe for use by several threads on different destinations.
 *
 * <p>Input is checked: a NaN or an infinity, or a block whose scale is beyond a half, is an
 * exception and never a silently wrong weight. A block too small for its scale becomes zeros.
 */
public final class Quantizer {
  /**
   * No type with a half as scale reaches this far (Q6_K: 2.7e8), and below it no sum of cubes in
   * the searches overflows, so that a block which is too large is always seen at its scale.
   */
  private static final float BLOCK_LIMIT = 1e11f;

  private Quantizer() {}

  /**
   * Converts {@code n} consecutive elements.
   *
   * @param type any but the integer types
   * @param n a multiple of the block size
   * @param dst takes the blocks from byte {@code dstOffset} on
   * @throws IllegalArgumentException if an element is not finite or too large for the type, {@code
   *     n} is no multiple of the block size, or the type is an integer
   * @throws IndexOutOfBoundsException if either range is outside of its memory
   */
  public static void quantize(
      TensorType type, float[] src, int srcOffset, int n, MemorySegment dst, long dstOffset) {
    quantize(type, src, srcOffset, n, null, dst, dstOffset);
  }

  /**
   * Converts one row, errors being weighted by the importance of their columns (specs weights 2.3):
   * the bytes are those of the reference with an importance matrix. F16, BF16, F32, Q8_0 and MXFP4
   * do not search and ignore it.
   *
   * @param n elements of the whole row, a multiple of the block size
   * @param importance one finite number >= 0 per element of the row, such as the mean square of the
   *     input that meets it; null for none
   * @param dst takes the blocks from byte {@code dstOffset} on
   * @throws IllegalArgumentException if an element is not finite or too large for the type, {@code
   *     n} is no multiple of the block size, the importance does not fit, or the type is an integer
   * @throws IndexOutOfBoundsException if either range is outside of its memory
   */
  public static void quantize(
      TensorType type,
      float[] src,
      int srcOffset,
      int n,
      float[] importance,
      MemorySegment dst,
      long dstOffset) {
    Objects.checkFromIndexSize(srcOffset, n, src.length);
    Objects.checkFromIndexSize(dstOffset, type.bytes(n), dst.byteSize());
    float limit = type.isQuantized() && type != TensorType.MXFP4 ? BLOCK_LIMIT : Float.MAX_VALUE;
    for (int i = srcOffset; i < srcOffset + n; i++) {
      if (!(Math.abs(src[i]) <= limit)) {
        throw new IllegalArgumentException(
            "element " + i + ": expected=at most " + limit + " actual=" + src[i]);
      }
    }
    Encoder encoder =
        encoder(type, importance == null ? null : new Importance(importance, src, srcOffset, n));
    long at = dstOffset;
    for (int x = srcOffset; x < srcOffset + n; x += type.blockSize()) {
      encoder.block(src, x, dst, at);
      at += type.blockBytes();
    }
  }

  /**
   * A tensor of another type with the same values as near as that type allows.
   *
   * @param store owns the result
   * @throws IllegalArgumentException as {@link #quantize(TensorType, float[], int, int,
   *     MemorySegment, long)}
   */
  public static Tensor quantize(Tensor tensor, TensorType type, TensorStore store) {
    Tensor result = store.allocate(tensor.name(), type, tensor.shape());
    int cols = Math.toIntExact(tensor.cols());
    float[] row = new float[cols];
    for (long r = 0; r < tensor.rows(); r++) {
      Dequantizer.row(tensor, r, row, 0);
      quantize(type, row, 0, cols, result.segment(), r * result.rowBytes());
    }
    return result;
  }

  /** Writes one block; may hold scratch memory, so it is confined to one thread. */
  private interface Encoder {
    void block(float[] x, int o, MemorySegment s, long at);
  }

  /** Weights of the errors of a row. */
  private static final class Importance {
    private final float[] of;
    private final int base;

    /** Mean square of the row, the yardstick of the types without super-blocks. */
    private final float meanSquare;

    Importance(float[] of, float[] x, int base, int n) {
      if (of.length != n) {
        throw new IllegalArgumentException("importance: expected=" + n + " actual=" + of.length);
      }
      for (float v : of) {
        if (!(v >= 0 && v < Float.POSITIVE_INFINITY)) {
          throw new IllegalArgumentException("importance: expected=finite, >= 0 actual=" + v);
        }
      }
      this.of = of;
      this.base = base;
      this.meanSquare = squares(x, base, n) / n;
    }

    /** Weights of {@code x[o..o+n)} into {@code w}; returns their sum. */
    float weights(float[] x, int o, int n, float meanSquare, float[] w) {
      float sum = 0;
      for (int i = 0; i < n; i++) {
        w[i] = of[o - base + i] * (float) Math.sqrt(meanSquare + x[o + i] * x[o + i]);
        sum += w[i];
      }
      return sum;
    }

    /** The numbers themselves, for Q6_K. */
    void plain(int o, int n, float[] w) {
      System.arraycopy(of, o - base, w, 0, n);
    }
  }

  private static float squares(float[] x, int o, int n) {
    float sum = 0;
    for (int i = o; i < o + n; i++) {
      sum += x[i] * x[i];
    }
    return sum;
  }

  private static Encoder encoder(TensorType type, Importance importance) {
    return switch (type) {
      case F32 -> (x, o, s, at) -> s.set(ByteCursor.FLOAT, at, x[o]);
      case F64 -> (x, o, s, at) -> s.set(ByteCursor.DOUBLE, at, x[o]);
      case F16 -> (x, o, s, at) -> half(s, at, x[o], "element", o);
      case BF16 -> Quantizer::bf16;
      case Q4_0 -> importance == null ? Quantizer::q4x0 : new WeightedSymmetric(8, importance);
      case Q4_1 -> importance == null ? Quantizer::q4x1 : new WeightedAffine(15, importance);
      case Q5_0 -> importance == null ? Quantizer::q5x0 : new WeightedSymmetric(16, importance);
      case Q5_1 -> importance == null ? Quantizer::q5x1 : new WeightedAffine(31, importance);
      case Q8_0 -> Quantizer::q8x0;
      case Q2_K -> new Q2K(importance);
      case Q3_K -> new Q3K(importance);
      case Q4_K -> new Q45K(false, importance);
      case Q5_K -> new Q45K(true, importance);
      case Q6_K -> new Q6K(importance);
      case IQ4_NL -> new Iq4(false, importance);
      case IQ4_XS -> new Iq4(true, importance);
      case MXFP4 -> Quantizer::mxfp4;
      case I8, I16, I32, I64 ->
          throw new IllegalArgumentException("type: expected=not an integer actual=" + type);
    };
  }

  /** Stores a half, which must not overflow; returns the stored value. */
  private static float half(MemorySegment s, long at, float value, String what, int index) {
    short bits = Float.floatToFloat16(value);
    if ((bits & 0x7C00) == 0x7C00) {
      throw new IllegalArgumentException(
          what + " of " + index + ": expected=within a half (65504) actual=" + value);
    }
    s.set(ByteCursor.SHORT, at, bits);
    return Float.float16ToFloat(bits);
  }

  private static float scale(MemorySegment s, long at, float value, int index) {
    return half(s, at, value, "scale of the block", index);
  }

  private static void u8(MemorySegment s, long at, int value) {
    s.set(ValueLayout.JAVA_BYTE, at, (byte) value);
  }

  private static void bf16(float[] x, int o, MemorySegment s, long at) {
    int bits = Float.floatToRawIntBits(x[o]);
    int rounded = bits + 0x7FFF + (bits >>> 16 & 1) >>> 16;
    if ((rounded & 0x7F80) == 0x7F80) {
      throw new IllegalArgumentException(
          "element of " + o + ": expected=within a bfloat16 actual=" + x[o]);
    }
    s.set(ByteCursor.SHORT, at, (short) rounded);
  }

  /** 1/d, or 0 where d is 0 or so small that the reciprocal overflows. */
  private static float reciprocal(float d) {
    float id = 1 / d;
    return d == 0 || Float.isInfinite(id) ? 0 : id;
  }

  /** The element of largest magnitude with its sign; the first of several. */
  private static float extreme(float[] x, int o, int n) {
    float extreme = 0;
    for (int i = o; i < o + n; i++) {
      if (Math.abs(x[i]) > Math.abs(extreme)) {
        extreme = x[i];
      }
    }
    return extreme;
  }

  private static float min(float[] x, int o, int n) {
    float min = x[o];
    for (int i = o + 1; i < o + n; i++) {
      min = x[i] < min ? x[i] : min;
    }
    return min;
  }

  private static float max(float[] x, int o, int n) {
    float max = x[o];
    for (int i = o + 1; i < o + n; i++) {
      max = x[i] > max ? x[i] : max;
    }
    return max;
  }

  /** Rounds half to even and clamps. */
  private static int nearest(float v, int low, int high) {
    return Math.clamp((int) Math.rint(v), low, high);
  }

  /** Rounds half away from zero. */
  private static float roundAway(float v) {
    float magnitude = Math.abs(v);
    float whole = (float) Math.floor(magnitude);
    return Math.copySign(magnitude - whole >= 0.5f ? whole + 1 : whole, v);
  }

  private static void q8x0(float[] x, int o, MemorySegment s, long at) {
    float d = Math.abs(extreme(x, o, 32)) / 127;
    float id = reciprocal(d);
    scale(s, at, d, o);
    for (int j = 0; j < 32; j++) {
      u8(s, at + 2 + j, (int) roundAway(x[o + j] * id));
    }
  }

  private static void q4x0(float[] x, int o, MemorySegment s, long at) {
    // Dividing the signed extreme by -8 puts it on code 0, the one code more on that side.
    float d = extreme(x, o, 32) / -8;
    float id = reciprocal(d);
    scale(s, at, d, o);
    for (int j = 0; j < 16; j++) {
      int low = Math.min(15, (int) (x[o + j] * id + 8.5f));
      int high = Math.min(15, (int) (x[o + j + 16] * id + 8.5f));
      u8(s, at + 2 + j, low | high << 4);
    }
  }

  private static void q4x1(float[] x, int o, MemorySegment s, long at) {
    float min = min(x, o, 32);
    float d = (max(x, o, 32) - min) / 15;
    float id = reciprocal(d);
    scale(s, at, d, o);
    scale(s, at + 2, min, o);
    for (int j = 0; j < 16; j++) {
      int low = Math.min(15, (int) ((x[o + j] - min) * id + 0.5f));
      int high = Math.min(15, (int) ((x[o + j + 16] - min) * id + 0.5f));
      u8(s, at + 4 + j, low | high << 4);
    }
  }

  private static void q5x0(float[] x, int o, MemorySegment s, long at) {
    float d = extreme(x, o, 32) / -16;
    float id = reciprocal(d);
    scale(s, at, d, o);
    int[] q = new int[32];
    for (int j = 0; j < 32; j++) {
      q[j] = Math.min(31, (int) (x[o + j] * id + 16.5f));
    }
    fiveBits(q, s, at + 2);
  }

  private static void q5x1(float[] x, int o, MemorySegment s, long at) {
    float min = min(x, o, 32);
    float d = (max(x, o, 32) - min) / 31;
    float id = reciprocal(d);
    scale(s, at, d, o);
    scale(s, at + 2, min, o);
    int[] q = new int[32];
    for (int j = 0; j < 32; j++) {
      q[j] = Math.min(31, (int) ((x[o + j] - min) * id + 0.5f));
    }
    fiveBits(q, s, at + 4);
  }

  /** 32 high bits as a u32, then 16 bytes of low nibbles. */
  private static void fiveBits(int[] q, MemorySegment s, long at) {
    int high = 0;
    for (int j = 0; j < 32; j++) {
      high |= (q[j] >> 4) << j;
    }
    s.set(ByteCursor.INT, at, high);
    for (int j = 0; j < 16; j++) {
      u8(s, at + 4 + j, q[j] & 15 | (q[j + 16] & 15) << 4);
    }
  }

  private static void mxfp4(float[] x, int o, MemorySegment s, long at) {
    // The exponent of the extreme, so that it lies at 4 to 8 units; 6 is the largest code.
    float extreme = Math.abs(extreme(x, o, 32));
    int e = extreme == 0 ? 0 : Math.max(0, Math.getExponent(extreme) - 2 + 127);
    float d = Dequantizer.e8m0Half(e);
    u8(s, at, e);
    for (int j = 0; j < 16; j++) {
      u8(s, at + 1 + j, mxfp4Code(x[o + j], d) | mxfp4Code(x[o + j + 16], d) << 4);
    }
  }

  private static int mxfp4Code(float x, float d) {
    int best = 0;
    float bestError = Math.abs(Dequantizer.e2m1Doubled(0) * d - x);
    for (int q = 1; q < 16; q++) {
      float error = Math.abs(Dequantizer.e2m1Doubled(q) * d - x);
      if (error < bestError) {
        best = q;
        bestError = error;
      }
    }
    return best;
  }

  /** Magnitudes below this are zero to the searches. */
  private static final float TINY = 1e-15f;

  /**
   * The weighted affine search of the K types: codes 0 to {@code max}, a scale and a minimum for a
   * sub-block (specs weights 2.3, {@code qkx2}).
   */
  private static final class AffineSearch {
    private final int n;
    private final int max;
    private final float first;
    private final float step;
    private final int steps;
    private final boolean absolute;
    private final int[] trial;

    /** The scale found by the last search. */
    float scale;

    /** The minimum found, negated: not negative. */
    float min;

    AffineSearch(int n, int max, float first, float step, int steps, boolean absolute) {
      this.n = n;
      this.max = max;
      this.first = first;
      this.step = step;
      this.steps = steps;
      this.absolute = absolute;
      this.trial = new int[n];
    }

    /** The wider search that goes with importance. */
    static AffineSearch weighted(int n, int max) {
      return new AffineSearch(n, max, -0.9f, 0.05f, 36, false);
    }

    /** Searches {@code x[o..]} with weights {@code w}; codes go to {@code codes[at..]}. */
    void search(float[] x, int o, float[] w, int[] codes, int at) {
      float low = x[o];
      float high = x[o];
      float sumW = w[0];
      float sumX = sumW * x[o];
      for (int i = 1; i < n; i++) {
        low = x[o + i] < low ? x[o + i] : low;
        high = x[o + i] > high ? x[o + i] : high;
        sumW += w[i];
        sumX += w[i] * x[o + i];
      }
      low = low > 0 ? 0 : low;
      if (high == low) {
        Arrays.fill(codes, at, at + n, 0);
        scale = 0;
        min = -low;
        return;
      }
      float inverse = max / (high - low);
      scale = 1 / inverse;
      encode(x, o, inverse, low);
      float best = error(x, o, w, scale, low);
      System.arraycopy(trial, 0, codes, at, n);
      for (int t = 0; t <= steps; t++) {
        // The minimum of the best candidate so far takes the place of the smallest element.
        encode(x, o, (first + step * t + max) / (high - low), low);
        float sumL = 0;
        float sumLl = 0;
        float sumXl = 0;
        for (int i = 0; i < n; i++) {
          float wl = w[i] * trial[i];
          sumL += wl;
          sumLl += wl * trial[i];
          sumXl += wl * x[o + i];
        }
        float determinant = sumW * sumLl - sumL * sumL;
        if (determinant > 0) {
          float newScale = (sumW * sumXl - sumX * sumL) / determinant;
          float newMin = (sumLl * sumX - sumL * sumXl) / determinant;
          if (newMin > 0) {
            newMin = 0;
            newScale = sumXl / sumLl;
          }
          float error = error(x, o, w, newScale, newMin);
          if (error < best) {
            System.arraycopy(trial, 0, codes, at, n);
            best = error;
            scale = newScale;
            low = newMin;
          }
        }
      }
      min = -low;
    }

    private void encode(float[] x, int o, float inverse, float low) {
      for (int i = 0; i < n; i++) {
        trial[i] = nearest(inverse * (x[o + i] - low), 0, max);
      }
    }

    private float error(float[] x, int o, float[] w, float scale, float low) {
      float sum = 0;
      for (int i = 0; i < n; i++) {
        float d = scale * trial[i] + low - x[o + i];
        sum += w[i] * (absolute ? Math.abs(d) : d * d);
      }
      return sum;
    }
  }

  /** Q2_K: 16 sub-blocks of 16, scales and minima of 4 bits. */
  private static final class Q2K implements Encoder {
    private final Importance importance;
    private final AffineSearch search;
    private final float[] w = new float[16];
    private final float[] sums = new float[16];
    private final float[] scales = new float[16];
    private final float[] mins = new float[16];
    private final int[] codes = new int[256];

    Q2K(Importance importance) {
      this.importance = importance;
      this.search =
          importance == null
              ? new AffineSearch(16, 3, -0.5f, 0.1f, 15, true)
              : AffineSearch.weighted(16, 3);
    }

    @Override
    public void block(float[] x, int o, MemorySegment s, long at) {
      float meanSquare = importance == null ? 0 : squares(x, o, 256) / 256;
      for (int b = 0; b < 16; b++) {
        if (importance == null) {
          for (int i = 0; i < 16; i++) {
            w[i] = Math.abs(x[o + b * 16 + i]);
          }
        } else {
          sums[b] = importance.weights(x, o + b * 16, 16, meanSquare, w);
        }
        search.search(x, o + b * 16, w, codes, b * 16);
        scales[b] = search.scale;
        mins[b] = search.min;
      }
      if (importance != null) {
        int[] ls = new int[16];
        int[] lm = new int[16];
        float d = scale(s, at + 80, positiveScale(scales, 15, sums, ls), o);
        float dmin = scale(s, at + 82, positiveScale(mins, 15, sums, lm), o);
        for (int b = 0; b < 16; b++) {
          u8(s, at + b, ls[b] | lm[b] << 4);
          recode(x, o + b * 16, 16, d * ls[b], dmin * lm[b], 3, codes, b * 16);
        }
        twoBits(codes, s, at + 16);
        return;
      }
      float maxScale = Math.max(0, max(scales, 0, 16));
      float maxMin = Math.max(0, max(mins, 0, 16));
      float toScale = maxScale > 0 ? 15 / maxScale : 0;
      float toMin = maxMin > 0 ? 15 / maxMin : 0;
      float d = scale(s, at + 80, maxScale / 15, o);
      float dmin = scale(s, at + 82, maxMin / 15, o);
      for (int b = 0; b < 16; b++) {
        int ls = nearest(toScale * scales[b], 0, 15);
        int lm = nearest(toMin * mins[b], 0, 15);
        u8(s, at + b, ls | lm << 4);
        recode(x, o + b * 16, 16, d * ls, dmin * lm, 3, codes, b * 16);
      }
      twoBits(codes, s, at + 16);
    }
  }

  /** Codes for stored scale and minimum; with scale 0 they stay, as their value is the same. */
  private static void recode(
      float[] x, int o, int n, float scale, float min, int max, int[] codes, int at) {
    if (scale != 0) {
      for (int i = 0; i < n; i++) {
        codes[at + i] = nearest((x[o + i] + min) / scale, 0, max);
      }
    }
  }

  /** 64 bytes: per half of 128 codes, 32 bytes that each hold the codes l, l+32, l+64, l+96. */
  private static void twoBits(int[] codes, MemorySegment s, long at) {
    for (int l = 0; l < 64; l++) {
      int base = l / 32 * 128 + l % 32;
      u8(
          s,
          at + l,
          codes[base] | codes[base + 32] << 2 | codes[base + 64] << 4 | codes[base + 96] << 6);
    }
  }

  /** Q4_K and Q5_K: 8 sub-blocks of 32, scales and minima of 6 bits. */
  private static final class Q45K implements Encoder {
    private final boolean five;
    private final Importance importance;
    private final AffineSearch search;
    private final float[] sums = new float[8];
    private final float[] w = new float[32];
    private final float[] scales = new float[8];
    private final float[] mins = new float[8];
    private final int[] codes = new int[256];

    Q45K(boolean five, Importance importance) {
      this.five = five;
      this.importance = importance;
      this.search =
          importance != null
              ? AffineSearch.weighted(32, five ? 31 : 15)
              : five
                  ? new AffineSearch(32, 31, -0.5f, 0.1f, 15, false)
                  : new AffineSearch(32, 15, -1f, 0.1f, 20, false);
    }

    @Override
    public void block(float[] x, int o, MemorySegment s, long at) {
      float meanSquare = importance == null ? 0 : 2 * squares(x, o, 256) / 256;
      for (int b = 0; b < 8; b++) {
        int from = o + b * 32;
        if (importance == null) {
          float mean = (float) Math.sqrt(squares(x, from, 32) / 32);
          for (int i = 0; i < 32; i++) {
            w[i] = mean + Math.abs(x[from + i]);
          }
        } else {
          sums[b] = importance.weights(x, from, 32, meanSquare, w);
        }
        search.search(x, from, w, codes, b * 32);
        scales[b] = search.scale;
        mins[b] = search.min;
      }
      int[] scaleCodes = new int[8];
      int[] minCodes = new int[8];
      float unit;
      float minUnit;
      if (importance == null) {
        unit = largestScale(scales, scaleCodes);
        minUnit = largestScale(mins, minCodes);
      } else {
        unit = positiveScale(scales, 63, sums, scaleCodes);
        minUnit = positiveScale(mins, 63, sums, minCodes);
      }
      float d = scale(s, at, unit, o);
      float dmin = scale(s, at + 2, minUnit, o);
      int[] packed = new int[12];
      for (int b = 0; b < 8; b++) {
        int ls = scaleCodes[b];
        int lm = minCodes[b];
        if (b < 4) {
          packed[b] = ls;
          packed[b + 4] = lm;
        } else {
          packed[b + 4] = ls & 15 | (lm & 15) << 4;
          packed[b - 4] |= ls >> 4 << 6;
          packed[b] |= lm >> 4 << 6;
        }
        recode(x, o + b * 32, 32, d * ls, dmin * lm, five ? 31 : 15, codes, b * 32);
      }
      for (int i = 0; i < 12; i++) {
        u8(s, at + 4 + i, packed[i]);
      }
      long nibbles = at + 16;
      if (five) {
        for (int l = 0; l < 32; l++) {
          int high = 0;
          for (int b = 0; b < 8; b++) {
            high |= codes[b * 32 + l] >> 4 << b;
          }
          u8(s, at + 16 + l, high);
        }
        nibbles += 32;
      }
      for (int l = 0; l < 128; l++) {
        int base = l / 32 * 64 + l % 32;
        u8(s, nibbles + l, codes[base] & 15 | (codes[base + 32] & 15) << 4);
      }
    }

    /** Scales as 6-bit multiples of a 63rd of the largest one, which is returned. */
    private static float largestScale(float[] scales, int[] codes) {
      float most = Math.max(0, max(scales, 0, 8));
      float inverse = most > 0 ? 63 / most : 0;
      for (int b = 0; b < 8; b++) {
        codes[b] = nearest(inverse * scales[b], 0, 63);
      }
      return most / 63;
    }
  }

  /** Q6_K: 16 sub-blocks of 16, signed scales of 8 bits. */
  private static final class Q6K implements Encoder {
    private final Importance importance;
    private final SymmetricSearch search = new SymmetricSearch(16, 32);
    private final float[] scales = new float[16];
    private final float[] w = new float[16];
    private final int[] codes = new int[256];

    Q6K(Importance importance) {
      this.importance = importance;
    }

    @Override
    public void block(float[] x, int o, MemorySegment s, long at) {
      for (int b = 0; b < 16; b++) {
        int from = o + b * 16;
        if (importance == null) {
          ownSquares(x, from, 16, w);
        } else {
          importance.plain(from, 16, w);
        }
        scales[b] = search.search(x, from, w, codes, b * 16);
      }
      float largest = extreme(scales, 0, 16);
      if (Math.abs(largest) < TINY) {
        s.asSlice(at, TensorType.Q6_K.blockBytes()).fill((byte) 0);
        return;
      }
      float inverse = -128 / largest;
      float d = scale(s, at + 208, 1 / inverse, o);
      for (int b = 0; b < 16; b++) {
        int sc = nearest(inverse * scales[b], -128, 127);
        u8(s, at + 192 + b, sc);
        float step = d * sc;
        if (step != 0) {
          for (int i = b * 16; i < b * 16 + 16; i++) {
            codes[i] = nearest(x[o + i] / step, -32, 31) + 32;
          }
        }
      }
      for (int half = 0; half < 2; half++) {
        for (int l = 0; l < 32; l++) {
          int base = half * 128 + l;
          int a = codes[base];
          int b = codes[base + 32];
          int c = codes[base + 64];
          int e = codes[base + 96];
          u8(s, at + half * 64 + l, a & 15 | (c & 15) << 4);
          u8(s, at + half * 64 + 32 + l, b & 15 | (e & 15) << 4);
          u8(s, at + 128 + half * 32 + l, a >> 4 | b >> 4 << 2 | c >> 4 << 4 | e >> 4 << 6);
        }
      }
    }
  }

  private static void ownSquares(float[] x, int o, int n, float[] w) {
    for (int i = 0; i < n; i++) {
      w[i] = x[o + i] * x[o + i];
    }
  }

  /** The symmetric search for codes and a signed scale (specs weights 2.3, {@code qx}). */
  private static final class SymmetricSearch {
    private final int n;
    private final int max;
    private final int[] trial;

    SymmetricSearch(int n, int max) {
      this.n = n;
      this.max = max;
      this.trial = new int[n];
    }

    /**
     * The best of 19 scales for {@code x[o..o+n)} with weights {@code w}; codes, to which {@code
     * max} is added, go to {@code codes[at..]}.
     */
    float search(float[] x, int o, float[] w, int[] codes, int at) {
      float extreme = extreme(x, o, n);
      if (Math.abs(extreme) < TINY) {
        Arrays.fill(codes, at, at + n, 0);
        return 0;
      }
      float scale = 0;
      float best = 0;
      for (int k = 0; k < 19; k++) {
        // First the plain candidate, then those around it.
        int t = k == 0 ? 0 : k <= 9 ? k - 10 : k - 9;
        float inverse = t == 0 ? -max / extreme : -(max + 0.1f * t) / extreme;
        float sumXl = 0;
        float sumLl = 0;
        for (int i = 0; i < n; i++) {
          int l = nearest(inverse * x[o + i], -max, max - 1);
          trial[i] = l + max;
          sumXl += w[i] * x[o + i] * l;
          sumLl += w[i] * l * l;
        }
        if (k == 0 || sumLl > 0 && sumXl * sumXl > best * sumLl) {
          scale = sumLl != 0 ? sumXl / sumLl : 0;
          best = scale * sumXl;
          System.arraycopy(trial, 0, codes, at, n);
        }
      }
      return scale;
    }
  }

  /**
   * Scales that are not negative as multiples 0 to {@code max} of a common one, which is returned:
   * a search over 9 of them, then coordinate descent over the codes.
   */
  private static float positiveScale(float[] x, int max, float[] w, int[] codes) {
    int n = x.length;
    float most = Math.max(0, max(x, 0, n));
    if (most < TINY) {
      Arrays.fill(codes, 0);
      return 0;
    }
    float inverse = max / most;
    float best = 0;
    for (int k = 0; k < 9; k++) {
      int t = k == 0 ? 0 : k <= 4 ? k - 5 : k - 4;
      float trial = t == 0 ? max / most : (0.1f * t + max) / most;
      float step = 1 / trial;
      float error = 0;
      for (int i = 0; i < n; i++) {
        float d = x[i] - step * Math.min(max, nearest(trial * x[i], 0, Integer.MAX_VALUE));
        error += w[i] * d * d;
      }
      if (k == 0 || error < best) {
        best = error;
        inverse = trial;
      }
    }
    float sumXl = 0;
    float sumLl = 0;
    for (int i = 0; i < n; i++) {
      int l = nearest(inverse * x[i], 0, max);
      codes[i] = l;
      sumXl += w[i] * x[i] * l;
      sumLl += w[i] * l * l;
    }
    boolean changed = true;
    for (int pass = 0; pass < 5 && changed; pass++) {
      changed = false;
      for (int i = 0; i < n; i++) {
        float restXl = sumXl - w[i] * x[i] * codes[i];
        float restLl = sumLl - w[i] * codes[i] * codes[i];
        if (restXl > 0 && restLl > 0) {
          int l = nearest(x[i] * restLl / restXl, 0, max);
          if (l != codes[i]) {
            restXl += w[i] * x[i] * l;
            restLl += w[i] * l * l;
            if (restXl * restXl * sumLl > sumXl * sumXl * restLl) {
              codes[i] = l;
              sumXl = restXl;
              sumLl = restLl;
              changed = true;
            }
          }
        }
      }
    }
    return sumLl > 0 ? sumXl / sumLl : 0;
  }

  /** Q4_0 and Q5_0 with importance. */
  private static final class WeightedSymmetric implements Encoder {
    private final int max;
    private final Importance importance;
    private final SymmetricSearch search;
    private final float[] w = new float[32];
    private final int[] codes = new int[32];

    WeightedSymmetric(int max, Importance importance) {
      this.max = max;
      this.importance = importance;
      this.search = new SymmetricSearch(32, max);
    }

    @Override
    public void block(float[] x, int o, MemorySegment s, long at) {
      importance.weights(x, o, 32, importance.meanSquare, w);
      scale(s, at, search.search(x, o, w, codes, 0), o);
      if (max == 16) {
        fiveBits(codes, s, at + 2);
      } else {
        fourBits(codes, s, at + 2);
      }
    }
  }

  /** Q4_1 and Q5_1 with importance. */
  private static final class WeightedAffine implements Encoder {
    private final int max;
    private final Importance importance;
    private final AffineSearch search;
    private final float[] w = new float[32];
    private final int[] codes = new int[32];

    WeightedAffine(int max, Importance importance) {
      this.max = max;
      this.importance = importance;
      this.search = AffineSearch.weighted(32, max);
    }

    @Override
    public void block(float[] x, int o, MemorySegment s, long at) {
      importance.weights(x, o, 32, importance.meanSquare, w);
      search.search(x, o, w, codes, 0);
      scale(s, at, search.scale, o);
      scale(s, at + 2, -search.min, o);
      if (max == 31) {
        fiveBits(codes, s, at + 4);
      } else {
        fourBits(codes, s, at + 4);
      }
    }
  }

  /** 16 bytes of nibbles: low ones first half, high ones second half. */
  private static void fourBits(int[] q, MemorySegment s, long at) {
    for (int j = 0; j < 16; j++) {
      u8(s, at + j, q[j] | q[j + 16] << 4);
    }
  }

  /** Q3_K: 16 sub-blocks of 16, signed scales of 6 bits. */
  private static final class Q3K implements Encoder {
    private final Importance importance;
    private final SymmetricSearch search = new SymmetricSearch(16, 4);
    private final SymmetricSearch scaleSearch = new SymmetricSearch(16, 32);
    private final float[] w = new float[16];
    private final float[] sums = new float[16];
    private final float[] scales = new float[16];
    private final int[] codes = new int[256];
    private final int[] scaleCodes = new int[16];

    Q3K(Importance importance) {
      this.importance = importance;
    }

    @Override
    public void block(float[] x, int o, MemorySegment s, long at) {
      if (importance != null) {
        float meanSquare = 2 * squares(x, o, 256) / 256;
        for (int b = 0; b < 16; b++) {
          sums[b] = importance.weights(x, o + b * 16, 16, meanSquare, w);
          scales[b] = search.search(x, o + b * 16, w, codes, b * 16);
        }
        float unit = scaleSearch.search(scales, 0, sums, scaleCodes, 0);
        pack(x, o, scale(s, at + 108, unit, o), s, at);
        return;
      }
      for (int b = 0; b < 16; b++) {
        scales[b] = descend(x, o + b * 16, b * 16);
      }
      float largest = extreme(scales, 0, 16);
      float inverse = largest == 0 ? 0 : -32 / largest;
      for (int b = 0; b < 16; b++) {
        // Without any scale the stored ones are zeros, which stand for -32 and multiply d = 0.
        scaleCodes[b] = largest == 0 ? 0 : nearest(inverse * scales[b], -32, 31) + 32;
      }
      pack(x, o, scale(s, at + 108, largest == 0 ? 0 : 1 / inverse, o), s, at);
    }

    /** Recodes with the stored scales and writes all but {@code d}. */
    private void pack(float[] x, int o, float d, MemorySegment s, long at) {
      int[] packed = new int[12];
      for (int b = 0; b < 16; b++) {
        int sc = scaleCodes[b];
        packed[b % 8] |= (sc & 15) << b / 8 * 4;
        packed[8 + b % 4] |= sc >> 4 << b / 4 * 2;
        float step = d * (sc - 32);
        if (step != 0) {
          for (int i = b * 16; i < b * 16 + 16; i++) {
            codes[i] = nearest(x[o + i] / step, -4, 3) + 4;
          }
        }
      }
      for (int i = 0; i < 12; i++) {
        u8(s, at + 96 + i, packed[i]);
      }
      for (int l = 0; l < 32; l++) {
        int high = 0;
        for (int r = 0; r < 8; r++) {
          high |= codes[r * 32 + l] >> 2 << r;
          codes[r * 32 + l] &= 3;
        }
        u8(s, at + l, high);
      }
      twoBits(codes, s, at + 32);
    }

    /** Codes and scale of 16 elements by up to five passes of coordinate descent. */
    private float descend(float[] x, int o, int at) {
      float extreme = extreme(x, o, 16);
      if (Math.abs(extreme) < TINY) {
        Arrays.fill(codes, at, at + 16, 0);
        return 0;
      }
      float inverse = -4 / extreme;
      float sumXl = 0;
      float sumLl = 0;
      for (int i = 0; i < 16; i++) {
        int l = nearest(inverse * x[o + i], -4, 3);
        codes[at + i] = l;
        float w = x[o + i] * x[o + i];
        sumXl += w * x[o + i] * l;
        sumLl += w * l * l;
      }
      boolean changed = true;
      for (int pass = 0; pass < 5 && changed; pass++) {
        changed = false;
        for (int i = 0; i < 16; i++) {
          float v = x[o + i];
          int old = codes[at + i];
          float w = v * v;
          float restXl = sumXl - w * v * old;
          if (restXl <= 0) {
            continue;
          }
          float restLl = sumLl - w * old * old;
          int l = nearest(v * restLl / restXl, -4, 3);
          if (l == old) {
            continue;
          }
          restXl += w * v * l;
          restLl += w * l * l;
          if (restLl > 0 && restXl * restXl * sumLl > sumXl * sumXl * restLl) {
            codes[at + i] = l;
            sumXl = restXl;
            sumLl = restLl;
            changed = true;
          }
        }
      }
      for (int i = at; i < at + 16; i++) {
        codes[i] += 4;
      }
      return sumLl > 0 ? sumXl / sumLl : 0;
    }
  }

  /** IQ4_NL (one block of 32) and IQ4_XS (8 sub-blocks with scales of 6 bits), with search. */
  private static final class Iq4 implements Encoder {
    private static final int TRIES = 7;
    private final int blocks;
    private final Importance importance;
    private final float[] w = new float[32];
    private final float[] scales = new float[8];

    Iq4(boolean superBlock, Importance importance) {
      this.blocks = superBlock ? 8 : 1;
      this.importance = importance;
    }

    @Override
    public void block(float[] x, int o, MemorySegment s, long at) {
      float meanSquare = importance == null ? 0 : squares(x, o, blocks * 32) * (2f / (blocks * 32));
      for (int b = 0; b < blocks; b++) {
        if (importance == null) {
          ownSquares(x, o + b * 32, 32, w);
        } else {
          importance.weights(x, o + b * 32, 32, meanSquare, w);
        }
        scales[b] = search(x, o + b * 32, w);
      }
      if (blocks == 1) {
        scale(s, at, scales[0], o);
        encode(x, o, reciprocal(scales[0]), s, at + 2);
        return;
      }
      float d = -extreme(scales, 0, 8) / 32;
      float id = reciprocal(d);
      scale(s, at, d, o);
      int high = 0;
      int[] low = new int[4];
      for (int b = 0; b < 8; b++) {
        int ls = nearest(id * scales[b], -32, 31);
        encode(x, o + b * 32, reciprocal(d * ls), s, at + 8 + b * 16);
        low[b / 2] |= (ls + 32 & 15) << b % 2 * 4;
        high |= ls + 32 >> 4 << 2 * b;
      }
      s.set(ByteCursor.SHORT, at + 2, (short) high);
      for (int i = 0; i < 4; i++) {
        u8(s, at + 4 + i, low[i]);
      }
    }

    /** The scale of 32 elements: the best of 16 by weighted least squares. */
    private static float search(float[] x, int o, float[] weights) {
      float extreme = extreme(x, o, 32);
      if (Math.abs(extreme) < TINY) {
        return 0;
      }
      int t0 = Dequantizer.iq4(0);
      float scale = 0;
      float best = 0;
      for (int t = -TRIES - 1; t <= TRIES; t++) {
        boolean plain = t == -TRIES - 1;
        float inverse = plain ? 1 / (-extreme / t0) : (t + t0) / extreme;
        float sumXq = 0;
        float sumQq = 0;
        for (int j = 0; j < 32; j++) {
          int q = Dequantizer.iq4(code(inverse * x[o + j]));
          float w = weights[j];
          sumXq += w * q * x[o + j];
          sumQq += w * q * q;
        }
        if (plain || sumQq > 0 && sumXq * sumXq > best * sumQq) {
          // Weights of zero leave nothing to find.
          scale = sumQq > 0 ? sumXq / sumQq : 0;
          best = scale * sumXq;
        }
      }
      return scale;
    }

    private static void encode(float[] x, int o, float inverse, MemorySegment s, long at) {
      for (int j = 0; j < 16; j++) {
        u8(s, at + j, code(inverse * x[o + j]) | code(inverse * x[o + j + 16]) << 4);
      }
    }

    /** The nearest entry of the table; of two equally near ones the larger. */
    private static int code(float v) {
      int q = 0;
      while (q < 15 && v - Dequantizer.iq4(q) >= Dequantizer.iq4(q + 1) - v) {
        q++;
      }
      return q;
    }
  }
}
