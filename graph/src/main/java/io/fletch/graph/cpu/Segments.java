package io.fletch.graph.cpu;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;

/**
 * Element access shared by the kernels: little endian and unaligned, because weights lie in mapped
 * files at whatever address the file gives them.
 */
final class Segments {
  static final ValueLayout.OfFloat FLOAT =
      ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  static final ValueLayout.OfLong LONG =
      ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  static final ValueLayout.OfInt INT =
      ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  static final ValueLayout.OfShort SHORT =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  static final ValueLayout.OfByte BYTE = ValueLayout.JAVA_BYTE;

  private static final MemorySegment ZEROS = Arena.global().allocate(1024, 64);

  private Segments() {}

  /** Zeroes floats without the slice, that is, the allocation, that a fill would need. */
  static void zero(MemorySegment s, long index, long floats) {
    long end = (index + floats) << 2;
    for (long at = index << 2; at < end; at += ZEROS.byteSize()) {
      MemorySegment.copy(ZEROS, 0, s, at, Math.min(ZEROS.byteSize(), end - at));
    }
  }

  /** Element {@code index} of a float32 segment. */
  static float f32(MemorySegment s, long index) {
    return s.get(FLOAT, index << 2);
  }

  static void f32(MemorySegment s, long index, float value) {
    s.set(FLOAT, index << 2, value);
  }

  /** The half-precision number at a byte offset. */
  static float f16(MemorySegment s, long offset) {
    return Float.float16ToFloat(s.get(SHORT, offset));
  }

  /** The bfloat16 number at a byte offset. */
  static float bf16(MemorySegment s, long offset) {
    return Float.intBitsToFloat(s.get(SHORT, offset) << 16);
  }

  static int i8(MemorySegment s, long offset) {
    return s.get(BYTE, offset);
  }

  static int u8(MemorySegment s, long offset) {
    return s.get(BYTE, offset) & 0xff;
  }
}
