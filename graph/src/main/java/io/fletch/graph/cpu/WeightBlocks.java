package io.fletch.graph.cpu;

import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;

/**
 * Weights of one or more rows unpacked to signed 8-bit codes with their scales, in heap arrays that
 * grow on first use and are reused. Owned by one thread.
 *
 * <p>The value of element {@code i} is
 *
 * <pre>
 *   32-element types:   d[i / 32] * codes[i] + (Q4_1, Q5_1: min[i / 32])
 *   256-element types:  d[i / 256] * subScale[i / 16] * codes[i]
 *                         + (Q2_K, Q4_K, Q5_K: min[i / 256] * subMin[i / 16])
 * </pre>
 *
 * with {@code min} negative for the K types (it holds {@code -dmin}). Bit orders are those of specs
 * weights 2.2.
 */
final class WeightBlocks {
  /** Values of the 4-bit non-linear types (specs weights 2.2, table T). */
  static final byte[] IQ4 = Dequantizer.iq4Values();

  /** E2M1 values doubled (specs weights 2.2, table V). */
  static final byte[] E2M1 = Dequantizer.e2m1DoubledValues();

  byte[] codes = new byte[256];
  float[] d = new float[8];
  float[] min = new float[8];
  int[] subScale = new int[16];
  int[] subMin = new int[16];

  /** The activation format a weight type is multiplied with. */
  static ActivationFormat activation(TensorType type) {
    return switch (type) {
      case F32, F16, BF16 -> ActivationFormat.F32;
      case Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4 -> ActivationFormat.Q8_BLOCK32;
      case Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS -> ActivationFormat.Q8_BLOCK256;
      case I8, I16, I32, I64, F64 ->
          throw new IllegalArgumentException("not a weight type: actual=" + type);
    };
  }

  /** Whether blocks add a minimum to the scaled codes. */
  static boolean hasMin(TensorType type) {
    return switch (type) {
      case Q4_1, Q5_1, Q2_K, Q4_K, Q5_K -> true;
      default -> false;
    };
  }

  /** Makes room for {@code n} elements. */
  void reserve(int n) {
    if (codes.length < n) {
      codes = new byte[n];
      d = new float[n / 32];
      min = new float[n / 32];
      subScale = new int[n / 16];
      subMin = new int[n / 16];
    }
  }

  /** Unpacks {@code n} elements (whole blocks) that start at a byte offset, to index {@code at}. */
  void unpack(TensorType type, MemorySegment w, long offset, int n, int at) {
    int size = type.blockSize();
    int bytes = type.blockBytes();
    for (int i = 0; i < n; i += size, offset += bytes) {
      unpackBlock(type, w, offset, at + i);
    }
  }

  /** The value of an unpacked element. */
  float value(TensorType type, int i) {
    boolean super256 = type.blockSize() == 256;
    int block = super256 ? i >> 8 : i >> 5;
    // Every product is exact in float32; only the addition of a minimum rounds.
    float v = super256 ? d[block] * subScale[i >> 4] * codes[i] : d[block] * codes[i];
    if (hasMin(type)) {
      v += super256 ? min[block] * subMin[i >> 4] : min[block];
    }
    return v;
  }

  /** Unpacks one block. */
  private void unpackBlock(TensorType type, MemorySegment w, long offset, int at) {
    unpackScales(type, w, offset, at);
    unpackCodes(type, w, offset, at);
  }

  /** Unpacks everything but the codes of one block. */
  void unpackScales(TensorType type, MemorySegment w, long o, int at) {
    switch (type) {
      case Q4_0, Q5_0, Q8_0, IQ4_NL -> d[at >> 5] = Segments.f16(w, o);
      case Q4_1, Q5_1 -> {
        d[at >> 5] = Segments.f16(w, o);
        min[at >> 5] = Segments.f16(w, o + 2);
      }
      case MXFP4 -> d[at >> 5] = halvedE8m0(Segments.u8(w, o));
      case Q2_K -> {
        d[at >> 8] = Segments.f16(w, o + 80);
        min[at >> 8] = -Segments.f16(w, o + 82);
        fourBitScales(w, o, at >> 4);
      }
      case Q3_K -> {
        d[at >> 8] = Segments.f16(w, o + 108);
        signedSixBitScales(w, o + 96, at >> 4);
      }
      case Q4_K, Q5_K -> {
        d[at >> 8] = Segments.f16(w, o);
        min[at >> 8] = -Segments.f16(w, o + 2);
        sixBitScales(w, o + 4, at >> 4);
      }
      case Q6_K -> {
        d[at >> 8] = Segments.f16(w, o + 208);
        eightBitScales(w, o + 192, at >> 4);
      }
      case IQ4_XS -> {
        d[at >> 8] = Segments.f16(w, o);
        iq4xsScales(w, o + 2, at >> 4);
      }
      default -> throw new IllegalArgumentException("not a block type: actual=" + type);
    }
  }

  /** Unpacks the codes of one block. */
  void unpackCodes(TensorType type, MemorySegment w, long o, int at) {
    switch (type) {
      case Q4_0 -> nibbles(w, o + 2, at, 8);
      case Q4_1 -> nibbles(w, o + 4, at, 0);
      case Q5_0 -> fiveBits(w, o + 2, at, 16);
      case Q5_1 -> fiveBits(w, o + 4, at, 0);
      case Q8_0 -> {
        for (int j = 0; j < 32; j++) {
          codes[at + j] = w.get(Segments.BYTE, o + 2 + j);
        }
      }
      case IQ4_NL -> table(IQ4, w, o + 2, at);
      case MXFP4 -> table(E2M1, w, o + 1, at);
      case Q2_K -> twoBits(w, o + 16, at);
      case Q3_K -> threeBits(w, o, at);
      case Q4_K -> pairsOfNibbles(w, o + 16, at);
      case Q5_K -> fiveBitsOfSuperBlock(w, o + 16, at);
      case Q6_K -> sixBits(w, o, at);
      case IQ4_XS -> {
        for (int g = 0; g < 8; g++) {
          table(IQ4, w, o + 8 + 16 * g, at + 32 * g);
        }
      }
      default -> throw new IllegalArgumentException("not a block type: actual=" + type);
    }
  }

  /** {@code 2^(e - 128)}; the two smallest are subnormal. */
  static float halvedE8m0(int e) {
    return Float.intBitsToFloat(e < 2 ? 0x00200000 << e : (e - 1) << 23);
  }

  private void nibbles(MemorySegment w, long o, int at, int zero) {
    for (int j = 0; j < 16; j++) {
      int b = w.get(Segments.BYTE, o + j);
      codes[at + j] = (byte) ((b & 15) - zero);
      codes[at + 16 + j] = (byte) ((b >> 4 & 15) - zero);
    }
  }

  private void table(byte[] values, MemorySegment w, long o, int at) {
    for (int j = 0; j < 16; j++) {
      int b = w.get(Segments.BYTE, o + j);
      codes[at + j] = values[b & 15];
      codes[at + 16 + j] = values[b >> 4 & 15];
    }
  }

  private void fiveBits(MemorySegment w, long o, int at, int zero) {
    int high = w.get(Segments.INT, o);
    for (int j = 0; j < 16; j++) {
      int b = w.get(Segments.BYTE, o + 4 + j);
      codes[at + j] = (byte) ((b & 15 | (high >>> j & 1) << 4) - zero);
      codes[at + 16 + j] = (byte) ((b >> 4 & 15 | (high >>> j + 16 & 1) << 4) - zero);
    }
  }

  // Scales are read as whole integers: segment accesses are what the compilers are slow at.

  private void fourBitScales(MemorySegment w, long o, int to) {
    for (int j = 0; j < 16; j += 4) {
      int four = w.get(Segments.INT, o + j);
      for (int k = 0; k < 4; k++, four >>>= 8) {
        subScale[to + j + k] = four & 15;
        subMin[to + j + k] = four >> 4 & 15;
      }
    }
  }

  private void eightBitScales(MemorySegment w, long o, int to) {
    for (int j = 0; j < 16; j += 4) {
      int four = w.get(Segments.INT, o + j);
      for (int k = 0; k < 4; k++, four >>= 8) {
        subScale[to + j + k] = (byte) four;
      }
    }
  }

  private void signedSixBitScales(MemorySegment w, long o, int to) {
    int low0 = w.get(Segments.INT, o);
    int low1 = w.get(Segments.INT, o + 4);
    int high = w.get(Segments.INT, o + 8);
    for (int k = 0; k < 4; k++) {
      subScale[to + k] = (low0 & 15 | (high & 3) << 4) - 32;
      subScale[to + k + 4] = (low1 & 15 | (high & 12) << 2) - 32;
      subScale[to + k + 8] = (low0 >> 4 & 15 | high & 48) - 32;
      subScale[to + k + 12] = (low1 >> 4 & 15 | (high & 192) >> 2) - 32;
      low0 >>= 8;
      low1 >>= 8;
      high >>= 8;
    }
  }

  /** The eight 6-bit scales and minimums of Q4_K and Q5_K, each for two groups of 16. */
  private void sixBitScales(MemorySegment w, long o, int to) {
    int scales = w.get(Segments.INT, o);
    int mins = w.get(Segments.INT, o + 4);
    int last = w.get(Segments.INT, o + 8);
    for (int j = to; j < to + 8; j += 2) {
      subScale[j] = scales & 63;
      subScale[j + 1] = scales & 63;
      subMin[j] = mins & 63;
      subMin[j + 1] = mins & 63;
      int scale = last & 15 | (scales & 192) >> 2;
      int min = last >> 4 & 15 | (mins & 192) >> 2;
      subScale[j + 8] = scale;
      subScale[j + 9] = scale;
      subMin[j + 8] = min;
      subMin[j + 9] = min;
      scales >>= 8;
      mins >>= 8;
      last >>= 8;
    }
  }

  private void iq4xsScales(MemorySegment w, long o, int to) {
    int high = w.get(Segments.SHORT, o);
    int low = w.get(Segments.INT, o + 2);
    for (int j = to; j < to + 16; j += 2) {
      int scale = (low & 15 | (high & 3) << 4) - 32;
      subScale[j] = scale;
      subScale[j + 1] = scale;
      low >>= 4;
      high >>= 2;
    }
  }

  private void twoBits(MemorySegment w, long o, int at) {
    for (int half = 0; half < 2; half++) {
      for (int l = 0; l < 32; l++) {
        int b = w.get(Segments.BYTE, o + 32 * half + l);
        int i = at + 128 * half + l;
        codes[i] = (byte) (b & 3);
        codes[i + 32] = (byte) (b >> 2 & 3);
        codes[i + 64] = (byte) (b >> 4 & 3);
        codes[i + 96] = (byte) (b >> 6 & 3);
      }
    }
  }

  private void threeBits(MemorySegment w, long o, int at) {
    twoBits(w, o + 32, at);
    for (int l = 0; l < 32; l++) {
      int mask = w.get(Segments.BYTE, o + l);
      for (int r = 0; r < 8; r++) {
        codes[at + 32 * r + l] -= (byte) (4 - (mask >> r & 1) * 4);
      }
    }
  }

  private void pairsOfNibbles(MemorySegment w, long o, int at) {
    for (int g = 0; g < 4; g++) {
      for (int l = 0; l < 32; l++) {
        int b = w.get(Segments.BYTE, o + 32 * g + l);
        int i = at + 64 * g + l;
        codes[i] = (byte) (b & 15);
        codes[i + 32] = (byte) (b >> 4 & 15);
      }
    }
  }

  private void fiveBitsOfSuperBlock(MemorySegment w, long o, int at) {
    for (int g = 0; g < 4; g++) {
      for (int l = 0; l < 32; l++) {
        int b = w.get(Segments.BYTE, o + 32 + 32 * g + l);
        int high = w.get(Segments.BYTE, o + l) >> 2 * g;
        int i = at + 64 * g + l;
        codes[i] = (byte) (b & 15 | (high & 1) << 4);
        codes[i + 32] = (byte) (b >> 4 & 15 | (high >> 1 & 1) << 4);
      }
    }
  }

  private void sixBits(MemorySegment w, long o, int at) {
    for (int half = 0; half < 2; half++) {
      for (int l = 0; l < 32; l++) {
        int low = w.get(Segments.BYTE, o + 64 * half + l);
        int low32 = w.get(Segments.BYTE, o + 64 * half + 32 + l);
        int high = w.get(Segments.BYTE, o + 128 + 32 * half + l);
        int i = at + 128 * half + l;
        codes[i] = (byte) ((low & 15 | (high & 3) << 4) - 32);
        codes[i + 32] = (byte) ((low32 & 15 | (high >> 2 & 3) << 4) - 32);
        codes[i + 64] = (byte) ((low >> 4 & 15 | (high >> 4 & 3) << 4) - 32);
        codes[i + 96] = (byte) ((low32 >> 4 & 15 | (high >> 6 & 3) << 4) - 32);
      }
    }
  }
}
