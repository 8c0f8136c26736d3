package io.fletch.graph.cpu;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** LayerNorm in plain Java, sums in double from left to right. Offsets count floats. */
final class LayerNorm {
  private LayerNorm() {}

  static void run(
      MemorySegment x,
      long offset,
      MemorySegment weight,
      MemorySegment bias,
      int n,
      float eps,
      MemorySegment dst,
      long dstOffset) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
      sum += at(x, offset + i);
    }
    double mean = sum / n;
    double squares = 0;
    for (int i = 0; i < n; i++) {
      double d = at(x, offset + i) - mean;
      squares += d * d;
    }
    double factor = 1 / Math.sqrt(squares / n + eps);
    boolean biased = bias.byteSize() > 0;
    for (int i = 0; i < n; i++) {
      double y = (at(x, offset + i) - mean) * factor * at(weight, i);
      dst.set(
          ValueLayout.JAVA_FLOAT,
          (dstOffset + i) * Float.BYTES,
          (float) (biased ? y + at(bias, i) : y));
    }
  }

  private static float at(MemorySegment s, long i) {
    return s.get(ValueLayout.JAVA_FLOAT, i * Float.BYTES);
  }
}
