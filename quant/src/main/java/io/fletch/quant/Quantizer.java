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
    Objects.checkFromIndexSize(srcOffset, n, src.length);
    Objects.checkFromIndexSize(dstOffset, type.bytes(n), dst.byteSize());
    float limit = type.isQuantized() && type != TensorType.MXFP4 ? BLOCK_LIMIT : Float.MAX_VALUE;
    for (int i = srcOffset; i < srcOffset + n; i++) {
      if (!(Math.abs(src[i]) <= limit)) {
        throw new IllegalArgumentException(
            "element " + i + ": expected=at most " + limit + " actual=" + src[i]);
      }
    }
    Encoder encoder = encoder(type);
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

  private static Encoder encoder(TensorType type) {
    return switch (type) {
      case F32 -> (x, o, s, at) -> s.set(ByteCursor.FLOAT, at, x[o]);
      case F64 -> (x, o, s, at) -> s.set(ByteCursor.DOUBLE, at, x[o]);
      case F16 -> (x, o, s, at) -> half(s, at, x[o], "element", o);
      case BF16 -> Quantizer::bf16;
      case Q4_0 -> Quantizer::q4x0;
      case Q4_1 -> Quantizer::q4x1;
      case Q5_0 -> Quantizer::q5x0;
      case Q5_1 -> Quantizer::q5x1;
      case Q8_0 -> Quantizer::q8x0;
      case Q2_K -> new Q2K();
      case Q3_K -> new Q3K();
      case Q4_K -> new Q45K(false);
      case Q5_K -> new Q45K(true);
      case Q6_K -> new Q6K();
      case IQ4_NL -> new Iq4(false);
      case IQ4_XS -> new Iq4(true);
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
    private final AffineSearch search = new AffineSearch(16, 3, -0.5f, 0.1f, 15, true);
    private final float[] w = new float[16];
    private final float[] scales = new float[16];
    private final float[] mins = new float[16];
    private final int[] codes = new int[256];

    @Override
    public void block(float[] x, int o, MemorySegment s, long at) {
      for (int b = 0; b < 16; b++) {
        for (int i = 0; i < 16; i++) {
          w[i] = Math.abs(x[o + b * 16 + i]);
        }
        search.search(x, o + b * 16, w, codes, b * 16);
        scales[b] = search.scale;
        mins[b] = search.min;
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
    private final AffineSearch search;
    private final float[] w = new float[32];
    private final float[] scales = new float[8];
    private final float[] mins = new float[8];
    private final int[] codes = new int[256];

    Q45K(boolean five) {
      this.five = five;
      this.search =
          five
              ? new AffineSearch(32, 31, -0.5f, 0.1f, 15, false)
              : new AffineSearch(32, 15, -1f, 0.1f, 20, false);
    }

    @Override
    public void block(float[] x, int o, MemorySegment s, long at) {
      for (int b = 0; b < 8; b++) {
        int from = o + b * 32;
        float squares = 0;
        for (int i = 0; i < 32; i++) {
          squares += x[from + i] * x[from + i];
        }
        float mean = (float) Math.sqrt(squares / 32);
        for (int i = 0; i < 32; i++) {
          w[i] = mean + Math.abs(x[from + i]);
        }
        search.search(x, from, w, codes, b * 32);
        scales[b] = search.scale;
        mins[b] = search.min;
      }
      float maxScale = Math.max(0, max(scales, 0, 8));
      float maxMin = Math.max(0, max(mins, 0, 8));
      float toScale = maxScale > 0 ? 63 / maxScale : 0;
      float toMin = maxMin > 0 ? 63 / maxMin : 0;
      float d = scale(s, at, maxScale / 63, o);
      float dmin = scale(s, at + 2, maxMin / 63, o);
      int[] packed = new int[12];
      for (int b = 0; b < 8; b++) {
        int ls = nearest(toScale * scales[b], 0, 63);
        int lm = nearest(toMin * mins[b], 0, 63);
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
  }

  /** Q6_K: 16 sub-blocks of 16, signed scales of 8 bits. */
  private static final class Q6K implements Encoder {
    private final float[] scales = new float[16];
    private final int[] codes = new int[256];
    private final int[] trial = new int[16];

    @Override
    public void block(float[] x, int o, MemorySegment s, long at) {
      for (int b = 0; b < 16; b++) {
        scales[b] = symmetricScale(x, o + b * 16, b * 16);
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

    /** The scale for 16 elements by trying 19 of them (specs weights 2.3, {@code qx}). */
    private float symmetricScale(float[] x, int o, int at) {
      float extreme = extreme(x, o, 16);
      if (Math.abs(extreme) < TINY) {
        Arrays.fill(codes, at, at + 16, 0);
        return 0;
      }
      float scale = 0;
      float best = 0;
      for (int k = 0; k < 19; k++) {
        // First the plain candidate, then those around it.
        int t = k == 0 ? 0 : k <= 9 ? k - 10 : k - 9;
        float inverse = t == 0 ? -32 / extreme : -(32 + 0.1f * t) / extreme;
        float sumXl = 0;
        float sumLl = 0;
        for (int i = 0; i < 16; i++) {
          int l = nearest(inverse * x[o + i], -32, 31);
          trial[i] = l + 32;
          float w = x[o + i] * x[o + i];
          sumXl += w * x[o + i] * l;
          sumLl += w * l * l;
        }
        if (k == 0 || sumLl > 0 && sumXl * sumXl > best * sumLl) {
          scale = sumLl != 0 ? sumXl / sumLl : 0;
          best = scale * sumXl;
          System.arraycopy(trial, 0, codes, at, 16);
        }
      }
      return scale;
    }
  }

  /** Q3_K: 16 sub-blocks of 16, signed scales of 6 bits. */
  private static final class Q3K implements Encoder {
    private final float[] scales = new float[16];
    private final int[] codes = new int[256];

    @Override
    public void block(float[] x, int o, MemorySegment s, long at) {
      for (int b = 0; b < 16; b++) {
        scales[b] = descend(x, o + b * 16, b * 16);
      }
      float largest = extreme(scales, 0, 16);
      float inverse = largest == 0 ? 0 : -32 / largest;
      float d = scale(s, at + 108, largest == 0 ? 0 : 1 / inverse, o);
      int[] packed = new int[12];
      for (int b = 0; b < 16; b++) {
        // Without any scale the stored ones are zeros, which stand for -32 and multiply d = 0.
        int sc = largest == 0 ? 0 : nearest(inverse * scales[b], -32, 31) + 32;
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
    private final float[] scales = new float[8];

    Iq4(boolean superBlock) {
      this.blocks = superBlock ? 8 : 1;
    }

    @Override
    public void block(float[] x, int o, MemorySegment s, long at) {
      for (int b = 0; b < blocks; b++) {
        scales[b] = search(x, o + b * 32);
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
    private static float search(float[] x, int o) {
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
          float w = x[o + j] * x[o + j];
          sumXq += w * q * x[o + j];
          sumQq += w * q * q;
        }
        if (plain || sumQq > 0 && sumXq * sumXq > best * sumQq) {
          scale = sumXq / sumQq;
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
