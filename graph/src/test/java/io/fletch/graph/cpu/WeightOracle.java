package io.fletch.graph.cpu;

import io.fletch.quant.TensorType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Random;

/**
 * Weights of tests: random blocks of every type, and the value of one element in double precision,
 * addressed element by element straight from the table of specs weights 2.2 (deliberately not the
 * way the kernels unpack).
 */
final class WeightOracle {
  private static final int[] T = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
  };
  private static final double[] V = {
    0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6
  };

  static final TensorType[] TYPES = {
    TensorType.F32,
    TensorType.F16,
    TensorType.BF16,
    TensorType.Q4_0,
    TensorType.Q4_1,
    TensorType.Q5_0,
    TensorType.Q5_1,
    TensorType.Q8_0,
    TensorType.Q2_K,
    TensorType.Q3_K,
    TensorType.Q4_K,
    TensorType.Q5_K,
    TensorType.Q6_K,
    TensorType.IQ4_NL,
    TensorType.IQ4_XS,
    TensorType.MXFP4
  };

  private WeightOracle() {}

  /** Random bytes with scales that are finite: ordinary, zero, tiny or large ones. */
  static byte[] random(TensorType type, int elements, Random random) {
    byte[] bytes = new byte[Math.toIntExact(type.bytes(elements))];
    random.nextBytes(bytes);
    ByteBuffer b = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
    double magnitude =
        switch (random.nextInt(4)) {
          case 0 -> 1e-4;
          case 1 -> 6e-8;
          case 2 -> 1e3;
          default -> 0.05;
        };
    for (int o = 0; o < bytes.length; o += type.blockBytes()) {
      int[] halves = halves(type);
      boolean zero = random.nextInt(4) == 0;
      for (int h : halves) {
        double v = zero ? 0 : random.nextGaussian() * magnitude;
        b.putShort(o + h, Float.floatToFloat16((float) v));
      }
      switch (type) {
        case F32 -> b.putFloat(o, zero ? 0 : (float) (random.nextGaussian() * magnitude));
        case BF16 -> {
          float v = zero ? 0 : (float) (random.nextGaussian() * magnitude);
          b.putShort(o, (short) (Float.floatToRawIntBits(v) >> 16));
        }
        case MXFP4 -> b.put(o, (byte) (110 + random.nextInt(30)));
        default -> {}
      }
    }
    return bytes;
  }

  /** Where the scales and minimums of a block are that are 16-bit floats. */
  private static int[] halves(TensorType type) {
    return switch (type) {
      case F16, Q4_0, Q5_0, Q8_0, IQ4_NL, IQ4_XS -> new int[] {0};
      case Q4_1, Q5_1, Q4_K, Q5_K -> new int[] {0, 2};
      case Q2_K -> new int[] {80, 82};
      case Q3_K -> new int[] {108};
      case Q6_K -> new int[] {208};
      default -> new int[0];
    };
  }

  /**
   * As {@link #random}, with extreme scales (elements, where these are floats) in some blocks: the
   * largest and smallest numbers, subnormal ones, and what is no number.
   *
   * @param finite whether none of them is infinite or NaN
   */
  static byte[] extreme(TensorType type, int elements, boolean finite, Random random) {
    byte[] bytes = random(type, elements, random);
    ByteBuffer b = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
    int blocks = bytes.length / type.blockBytes();
    for (int n = 1 + random.nextInt(4); n > 0; n--) {
      int o = random.nextInt(blocks) * type.blockBytes();
      // Bits of a 16-bit float: the largest, the smallest, subnormal, -0; NaN and infinities.
      int[] half = {0x7bff, 0xfbff, 1, 0x8001, 0x3ff, 0x400, 0x8000, 0x7e00, 0x7c00, 0xfc00};
      for (int h : halves(type)) {
        b.putShort(o + h, (short) half[random.nextInt(finite ? 7 : half.length)]);
      }
      float[] floats = {
        Float.MAX_VALUE,
        -Float.MAX_VALUE,
        Float.MIN_VALUE,
        Float.MIN_NORMAL,
        -0f,
        Float.NaN,
        Float.POSITIVE_INFINITY,
        Float.NEGATIVE_INFINITY
      };
      float value = floats[random.nextInt(finite ? 5 : floats.length)];
      // Powers of two from 2^-127 to 2^127, and NaN.
      int[] powers = {0, 1, 2, 253, 254, 255};
      switch (type) {
        case F32 -> b.putFloat(o, value);
        case BF16 -> b.putShort(o, (short) (Float.floatToRawIntBits(value) >> 16));
        case MXFP4 -> b.put(o, (byte) powers[random.nextInt(finite ? 5 : 6)]);
        default -> {}
      }
    }
    return bytes;
  }

  /** Element {@code i} of a run of blocks. */
  static double value(TensorType type, byte[] bytes, int i) {
    ByteBuffer b = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
    int o = i / type.blockSize() * type.blockBytes();
    int j = i % type.blockSize();
    return switch (type) {
      case F32 -> b.getFloat(o);
      case F16 -> half(b, o);
      case BF16 -> Float.intBitsToFloat(b.getShort(o) << 16);
      case Q4_0 -> (nibble(b, o + 2, j) - 8) * half(b, o);
      case Q4_1 -> nibble(b, o + 4, j) * half(b, o) + half(b, o + 2);
      case Q5_0 -> (nibble(b, o + 6, j) + 16 * bit(b, o + 2, j) - 16) * half(b, o);
      case Q5_1 -> (nibble(b, o + 8, j) + 16 * bit(b, o + 4, j)) * half(b, o) + half(b, o + 2);
      case Q8_0 -> b.get(o + 2 + j) * half(b, o);
      case IQ4_NL -> T[nibble(b, o + 2, j)] * half(b, o);
      case MXFP4 -> V[nibble(b, o + 1, j)] * Math.pow(2, (b.get(o) & 255) - 127);
      case Q2_K -> {
        int s = b.get(o + j / 16) & 255;
        yield half(b, o + 80) * (s % 16) * twoBits(b, o + 16, j) - half(b, o + 82) * (s / 16);
      }
      case Q3_K -> {
        int g = j / 16;
        int low = (b.get(o + 96 + g % 8) & 255) >> (g / 8 * 4) & 15;
        int high = (b.get(o + 104 + g % 4) & 255) >> (2 * (g / 4)) & 3;
        int h = b.get(o + j % 32) >> (j / 32) & 1;
        yield half(b, o + 108) * (low + 16 * high - 32) * (twoBits(b, o + 32, j) - 4 + 4 * h);
      }
      case Q4_K -> {
        int q = (b.get(o + 16 + j / 64 * 32 + j % 32) & 255) >> (j / 32 % 2 * 4) & 15;
        yield half(b, o) * scale6(b, o + 4, j / 32) * q - half(b, o + 2) * min6(b, o + 4, j / 32);
      }
      case Q5_K -> {
        int q = (b.get(o + 48 + j / 64 * 32 + j % 32) & 255) >> (j / 32 % 2 * 4) & 15;
        q += 16 * (b.get(o + 16 + j % 32) >> (j / 32) & 1);
        yield half(b, o) * scale6(b, o + 4, j / 32) * q - half(b, o + 2) * min6(b, o + 4, j / 32);
      }
      case Q6_K -> {
        int half = j / 128;
        int t = j % 128;
        int low = (b.get(o + 64 * half + t % 64) & 255) >> (t / 64 * 4) & 15;
        int high = (b.get(o + 128 + 32 * half + t % 32) & 255) >> (t / 32 * 2) & 3;
        yield half(b, o + 208) * b.get(o + 192 + j / 16) * (low + 16 * high - 32);
      }
      case IQ4_XS -> {
        int g = j / 32;
        int ls = (b.get(o + 4 + g / 2) & 255) >> (g % 2 * 4) & 15;
        ls += 16 * ((b.getShort(o + 2) & 0xffff) >> (2 * g) & 3);
        yield half(b, o) * (ls - 32) * T[nibble(b, o + 8 + 16 * g, j % 32)];
      }
      default -> throw new IllegalArgumentException(type.toString());
    };
  }

  private static double half(ByteBuffer b, int o) {
    return Float.float16ToFloat(b.getShort(o));
  }

  private static int nibble(ByteBuffer b, int o, int j) {
    return (b.get(o + j % 16) & 255) >> (j / 16 * 4) & 15;
  }

  private static int bit(ByteBuffer b, int o, int j) {
    return b.get(o + j / 8) >> (j % 8) & 1;
  }

  private static int twoBits(ByteBuffer b, int o, int j) {
    return (b.get(o + j / 128 * 32 + j % 32) & 255) >> (j % 128 / 32 * 2) & 3;
  }

  private static int scale6(ByteBuffer b, int o, int j) {
    return j < 4 ? b.get(o + j) & 63 : b.get(o + j + 4) & 15 | (b.get(o + j - 4) & 255) >> 6 << 4;
  }

  private static int min6(ByteBuffer b, int o, int j) {
    return j < 4
        ? b.get(o + j + 4) & 63
        : (b.get(o + j + 4) & 255) >> 4 | (b.get(o + j) & 255) >> 6 << 4;
  }
}
