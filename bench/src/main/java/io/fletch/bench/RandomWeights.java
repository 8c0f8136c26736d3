package io.fletch.bench;

import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.Random;

/** Matrices of random codes with ordinary scales. */
final class RandomWeights {
  private static final ValueLayout.OfShort SHORT =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private RandomWeights() {}

  /** Fills a segment with blocks of a type that a product can read. */
  static void fill(TensorType type, MemorySegment to, Random random) {
    byte[] block = new byte[type.blockBytes()];
    MemorySegment bytes = MemorySegment.ofArray(block);
    for (long o = 0; o < to.byteSize(); o += block.length) {
      random.nextBytes(block);
      float scale = (1 + random.nextFloat()) * 0x1p-8f;
      switch (type) {
        case F32 -> bytes.set(ValueLayout.JAVA_FLOAT_UNALIGNED, 0, (float) random.nextGaussian());
        case BF16 -> bytes.set(SHORT, 0, (short) (Float.floatToRawIntBits(scale) >> 16));
        case MXFP4 -> bytes.set(ValueLayout.JAVA_BYTE, 0, (byte) 120);
        case Q2_K -> {
          bytes.set(SHORT, 80, Float.floatToFloat16(scale));
          bytes.set(SHORT, 82, Float.floatToFloat16(scale));
        }
        case Q3_K -> bytes.set(SHORT, 108, Float.floatToFloat16(scale));
        case Q6_K -> bytes.set(SHORT, 208, Float.floatToFloat16(scale));
        case Q4_1, Q5_1, Q4_K, Q5_K -> {
          bytes.set(SHORT, 0, Float.floatToFloat16(scale));
          bytes.set(SHORT, 2, Float.floatToFloat16(scale));
        }
        default -> bytes.set(SHORT, 0, Float.floatToFloat16(scale));
      }
      MemorySegment.copy(bytes, 0, to, o, block.length);
    }
  }
}
