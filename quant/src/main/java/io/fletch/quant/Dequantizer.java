package io.fletch.quant;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Objects;

/**
 * Turns stored elements into floats, exactly as specs weights 2.2 defines them: float arithmetic,
 * one rounding per written operation, no fused multiply-add. It is the oracle that kernels are
 * tested against and the slow path of conversions, written to be read rather than to be fast.
 * Stateless; safe for use by several threads.
 */
public final class Dequantizer {
  /** Values of the 4-bit codes of IQ4_NL and IQ4_XS. */
  private static final byte[] IQ4 = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
  };

  /** Twice the values of the 4-bit codes (E2M1) of MXFP4. */
  private static final byte[] E2M1_DOUBLED = {
    0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12
  };

  private Dequantizer() {}

  /** The values of the sixteen codes of the IQ4 types, in units of the scale. */
  public static byte[] iq4Values() {
    return IQ4.clone();
  }

  /** Twice the values of the sixteen codes of MXFP4, in units of the scale. */
  public static byte[] e2m1DoubledValues() {
    return E2M1_DOUBLED.clone();
  }

  /** The value of code {@code q} (0 to 15) of the IQ4 types, in units of the scale. */
  static int iq4(int q) {
    return IQ4[q];
  }

  /** Twice the value of code {@code q} (0 to 15) of MXFP4, in units of the scale. */
  static int e2m1Doubled(int q) {
    return E2M1_DOUBLED[q];
  }

  /**
   * Half the scale that exponent byte {@code e} (0 to 255) of MXFP4 stands for: 2^(e-128). It is
   * halved because the codes are doubled.
   */
  static float e8m0Half(int e) {
    return e < 2 ? Float.intBitsToFloat(0x0020_0000 << e) : Float.intBitsToFloat((e - 1) << 23);
  }

  /**
   * Converts {@code n} consecutive elements.
   *
   * @param src holds them from byte {@code srcOffset} on, which starts a block
   * @param dst takes them from index {@code dstOffset} on
   * @param n a multiple of the block size
   * @throws IllegalArgumentException if {@code n} is no multiple of the block size
   * @throws IndexOutOfBoundsException if either range is outside of its memory
   */
  public static void dequantize(
      TensorType type, MemorySegment src, long srcOffset, float[] dst, int dstOffset, int n) {
    Objects.checkFromIndexSize(srcOffset, type.bytes(n), src.byteSize());
    Objects.checkFromIndexSize(dstOffset, n, dst.length);
    long at = srcOffset;
    for (int y = dstOffset; y < dstOffset + n; y += type.blockSize()) {
      block(type, src, at, dst, y);
      at += type.blockBytes();
    }
  }

  /**
   * Converts one row of a tensor.
   *
   * @param row index over all axes but the innermost
   * @throws IndexOutOfBoundsException if there is no such row or {@code dst} is too short
   */
  public static void row(Tensor tensor, long row, float[] dst, int dstOffset) {
    Objects.checkIndex(row, tensor.rows());
    int n = Math.toIntExact(tensor.cols());
    dequantize(tensor.type(), tensor.segment(), row * tensor.rowBytes(), dst, dstOffset, n);
  }

  /**
   * All elements of a tensor in row-major order.
   *
   * @throws ArithmeticException if they are more than an array can hold
   */
  public static float[] toFloats(Tensor tensor) {
    float[] result = new float[Math.toIntExact(tensor.elements())];
    dequantize(tensor.type(), tensor.segment(), 0, result, 0, result.length);
    return result;
  }

  /**
   * One element of a tensor.
   *
   * @param index in row-major order
   */
  public static float element(Tensor tensor, long index) {
    Objects.checkIndex(index, tensor.elements());
    TensorType type = tensor.type();
    float[] block = new float[type.blockSize()];
    block(type, tensor.segment(), index / type.blockSize() * type.blockBytes(), block, 0);
    return block[(int) (index % type.blockSize())];
  }

  private static void block(TensorType type, MemorySegment s, long at, float[] y, int o) {
    switch (type) {
      case F32 -> y[o] = s.get(ByteCursor.FLOAT, at);
      case F16 -> y[o] = half(s, at);
      case BF16 -> y[o] = Float.intBitsToFloat(s.get(ByteCursor.SHORT, at) << 16);
      case F64 -> y[o] = (float) s.get(ByteCursor.DOUBLE, at);
      case I8 -> y[o] = s.get(ValueLayout.JAVA_BYTE, at);
      case I16 -> y[o] = s.get(ByteCursor.SHORT, at);
      case I32 -> y[o] = s.get(ByteCursor.INT, at);
      case I64 -> y[o] = s.get(ByteCursor.LONG, at);
      case Q4_0 -> q4x0(s, at, y, o);
      case Q4_1 -> q4x1(s, at, y, o);
      case Q5_0 -> q5x0(s, at, y, o);
      case Q5_1 -> q5x1(s, at, y, o);
      case Q8_0 -> q8x0(s, at, y, o);
      case Q2_K -> q2k(s, at, y, o);
      case Q3_K -> q3k(s, at, y, o);
      case Q4_K -> q4k(s, at, y, o);
      case Q5_K -> q5k(s, at, y, o);
      case Q6_K -> q6k(s, at, y, o);
      case IQ4_NL -> iq4nl(s, at, y, o);
      case IQ4_XS -> iq4xs(s, at, y, o);
      case MXFP4 -> mxfp4(s, at, y, o);
    }
  }

  private static float half(MemorySegment s, long at) {
    return Float.float16ToFloat(s.get(ByteCursor.SHORT, at));
  }

  private static int u8(MemorySegment s, long at) {
    return Byte.toUnsignedInt(s.get(ValueLayout.JAVA_BYTE, at));
  }

  /** Code {@code j} of 32 in 16 bytes: low nibbles are the first half, high ones the second. */
  private static int nibble(MemorySegment s, long at, int j) {
    return j < 16 ? u8(s, at + j) & 15 : u8(s, at + j - 16) >> 4;
  }

  // Layout: d f16, qs[16].
  private static void q4x0(MemorySegment s, long at, float[] y, int o) {
    float d = half(s, at);
    for (int j = 0; j < 32; j++) {
      y[o + j] = (nibble(s, at + 2, j) - 8) * d;
    }
  }

  // Layout: d f16, m f16, qs[16].
  private static void q4x1(MemorySegment s, long at, float[] y, int o) {
    float d = half(s, at);
    float m = half(s, at + 2);
    for (int j = 0; j < 32; j++) {
      y[o + j] = nibble(s, at + 4, j) * d + m;
    }
  }

  // Layout: d f16, qh u32, qs[16].
  private static void q5x0(MemorySegment s, long at, float[] y, int o) {
    float d = half(s, at);
    int high = s.get(ByteCursor.INT, at + 2);
    for (int j = 0; j < 32; j++) {
      int q = nibble(s, at + 6, j) | (high >>> j & 1) << 4;
      y[o + j] = (q - 16) * d;
    }
  }

  // Layout: d f16, m f16, qh u32, qs[16].
  private static void q5x1(MemorySegment s, long at, float[] y, int o) {
    float d = half(s, at);
    float m = half(s, at + 2);
    int high = s.get(ByteCursor.INT, at + 4);
    for (int j = 0; j < 32; j++) {
      int q = nibble(s, at + 8, j) | (high >>> j & 1) << 4;
      y[o + j] = q * d + m;
    }
  }

  // Layout: d f16, i8 qs[32].
  private static void q8x0(MemorySegment s, long at, float[] y, int o) {
    float d = half(s, at);
    for (int j = 0; j < 32; j++) {
      y[o + j] = s.get(ValueLayout.JAVA_BYTE, at + 2 + j) * d;
    }
  }

  /** Code {@code j} of 256 in 64 bytes of 2 bits: 32 elements per shift, 128 per 32 bytes. */
  private static int twoBits(MemorySegment s, long at, int j) {
    int shift = j % 128 / 32 * 2;
    return u8(s, at + j / 128 * 32 + j % 32) >> shift & 3;
  }

  // Layout: scales[16] (low nibble scale, high nibble min), qs[64], d f16, dmin f16.
  private static void q2k(MemorySegment s, long at, float[] y, int o) {
    float d = half(s, at + 80);
    float dmin = half(s, at + 82);
    for (int j = 0; j < 256; j++) {
      int scale = u8(s, at + j / 16);
      float dl = d * (scale & 15);
      float ml = dmin * (scale >> 4);
      y[o + j] = dl * twoBits(s, at + 16, j) - ml;
    }
  }

  // Layout: hmask[32], qs[64], scales[12], d f16.
  private static void q3k(MemorySegment s, long at, float[] y, int o) {
    float d = half(s, at + 108);
    for (int j = 0; j < 256; j++) {
      float dl = d * (q3kScale(s, at + 96, j / 16) - 32);
      int high = u8(s, at + j % 32) >> j / 32 & 1;
      y[o + j] = dl * (twoBits(s, at + 32, j) - (high != 0 ? 0 : 4));
    }
  }

  /** 6-bit scale {@code j} of 16: low four bits in 8 bytes, high two in the 4 bytes after them. */
  static int q3kScale(MemorySegment s, long at, int j) {
    int low = j < 8 ? u8(s, at + j) & 15 : u8(s, at + j - 8) >> 4;
    return low | (u8(s, at + 8 + j % 4) >> j / 4 * 2 & 3) << 4;
  }

  /** 6-bit scale {@code j} of 8 in the 12 bytes that Q4_K and Q5_K share. */
  static int q4kScale(MemorySegment s, long at, int j) {
    return j < 4 ? u8(s, at + j) & 63 : u8(s, at + j + 4) & 15 | u8(s, at + j - 4) >> 6 << 4;
  }

  /** 6-bit minimum {@code j} of 8 in the 12 bytes that Q4_K and Q5_K share. */
  static int q4kMin(MemorySegment s, long at, int j) {
    return j < 4 ? u8(s, at + j + 4) & 63 : u8(s, at + j + 4) >> 4 | u8(s, at + j) >> 6 << 4;
  }

  /** Code {@code j} of 256 in 128 bytes: per 32 bytes, 32 low nibbles and then 32 high ones. */
  private static int groupNibble(MemorySegment s, long at, int j) {
    return u8(s, at + j / 64 * 32 + j % 32) >> j % 64 / 32 * 4 & 15;
  }

  // Layout: d f16, dmin f16, scales[12], qs[128].
  private static void q4k(MemorySegment s, long at, float[] y, int o) {
    float d = half(s, at);
    float dmin = half(s, at + 2);
    for (int j = 0; j < 256; j++) {
      float dl = d * q4kScale(s, at + 4, j / 32);
      float ml = dmin * q4kMin(s, at + 4, j / 32);
      y[o + j] = dl * groupNibble(s, at + 16, j) - ml;
    }
  }

  // Layout: d f16, dmin f16, scales[12], qh[32], qs[128].
  private static void q5k(MemorySegment s, long at, float[] y, int o) {
    float d = half(s, at);
    float dmin = half(s, at + 2);
    for (int j = 0; j < 256; j++) {
      float dl = d * q4kScale(s, at + 4, j / 32);
      float ml = dmin * q4kMin(s, at + 4, j / 32);
      int q = groupNibble(s, at + 48, j) | (u8(s, at + 16 + j % 32) >> j / 32 & 1) << 4;
      y[o + j] = dl * q - ml;
    }
  }

  // Layout: ql[128], qh[64], i8 scales[16], d f16.
  private static void q6k(MemorySegment s, long at, float[] y, int o) {
    float d = half(s, at + 208);
    for (int j = 0; j < 256; j++) {
      int half = j / 128;
      int quarter = j % 128 / 32;
      int l = j % 32;
      int low = u8(s, at + half * 64 + quarter % 2 * 32 + l) >> quarter / 2 * 4 & 15;
      int high = u8(s, at + 128 + half * 32 + l) >> quarter * 2 & 3;
      float dl = d * s.get(ValueLayout.JAVA_BYTE, at + 192 + j / 16);
      y[o + j] = dl * ((low | high << 4) - 32);
    }
  }

  // Layout: d f16, qs[16].
  private static void iq4nl(MemorySegment s, long at, float[] y, int o) {
    float d = half(s, at);
    for (int j = 0; j < 32; j++) {
      y[o + j] = d * iq4(nibble(s, at + 2, j));
    }
  }

  // Layout: d f16, scales_h u16, scales_l[4], qs[128].
  private static void iq4xs(MemorySegment s, long at, float[] y, int o) {
    float d = half(s, at);
    int high = Short.toUnsignedInt(s.get(ByteCursor.SHORT, at + 2));
    for (int ib = 0; ib < 8; ib++) {
      int low = u8(s, at + 4 + ib / 2) >> ib % 2 * 4 & 15;
      float dl = d * ((low | (high >> 2 * ib & 3) << 4) - 32);
      for (int j = 0; j < 32; j++) {
        y[o + ib * 32 + j] = dl * iq4(nibble(s, at + 8 + ib * 16, j));
      }
    }
  }

  // Layout: e u8, qs[16].
  private static void mxfp4(MemorySegment s, long at, float[] y, int o) {
    float d = e8m0Half(u8(s, at));
    for (int j = 0; j < 32; j++) {
      y[o + j] = d * e2m1Doubled(nibble(s, at + 1, j));
    }
  }

  /**
   * Checks that every element is a finite number, by its stored scales where elements share some.
   * It reads the whole tensor.
   *
   * @throws WeightFileException naming the first bad block: a NaN or infinite element or scale, or
   *     the reserved exponent 0xFF of MXFP4
   */
  public static void checkFinite(Tensor tensor) {
    TensorType type = tensor.type();
    MemorySegment s = tensor.segment();
    for (long at = 0; at < tensor.bytes(); at += type.blockBytes()) {
      boolean finite =
          switch (type) {
            case I8, I16, I32, I64 -> true;
            case F32 -> Float.isFinite(s.get(ByteCursor.FLOAT, at));
            case F64 -> Double.isFinite(s.get(ByteCursor.DOUBLE, at));
            case BF16 -> (s.get(ByteCursor.SHORT, at) & 0x7F80) != 0x7F80;
            case F16, Q4_0, Q5_0, Q8_0, IQ4_NL, IQ4_XS -> isFiniteHalf(s, at);
            case Q4_1, Q5_1, Q4_K, Q5_K -> isFiniteHalf(s, at) && isFiniteHalf(s, at + 2);
            case Q2_K -> isFiniteHalf(s, at + 80) && isFiniteHalf(s, at + 82);
            case Q3_K -> isFiniteHalf(s, at + 108);
            case Q6_K -> isFiniteHalf(s, at + 208);
            case MXFP4 -> u8(s, at) != 0xFF;
          };
      if (!finite) {
        throw new WeightFileException(
            "tensor "
                + tensor.name()
                + ": "
                + type
                + " block "
                + at / type.blockBytes()
                + ": expected=finite actual=NaN, infinity or a reserved exponent");
      }
    }
  }

  private static boolean isFiniteHalf(MemorySegment s, long at) {
    return (s.get(ByteCursor.SHORT, at) & 0x7C00) != 0x7C00;
  }
}
