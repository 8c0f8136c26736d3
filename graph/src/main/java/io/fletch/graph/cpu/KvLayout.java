package io.fletch.graph.cpu;

import io.fletch.graph.KvCache;

/**
 * Byte layout of one key or value head in the cache of the CPU backend, shared by all kernel sets.
 *
 * <ul>
 *   <li>F32: {@code f32[n]}; F16: {@code f16[n]}, rounded half to even.
 *   <li>Q8_0: codes {@code i8[n]}, then scales {@code f16[n / 32]}. Not interleaved as in the file
 *       format, so that SIMD code reads codes contiguously; the size is the same. Per block of 32:
 *       {@code d = amax / 127} stored rounded to f16, {@code code = round-half-even(x * (127 /
 *       amax))}; the rules for tiny and non-finite blocks are those of {@link ActivationLayout}.
 * </ul>
 */
final class KvLayout {
  private KvLayout() {}

  /** Bytes of a head of {@code n} elements. */
  static long bytes(KvCache.Type type, int n) {
    return switch (type) {
      case F32 -> 4L * n;
      case F16 -> 2L * n;
      case Q8_0 -> {
        if (n % 32 != 0) {
          throw new IllegalArgumentException(
              "Q8_0 cache heads are whole blocks: expected=multiple of 32 actual=" + n);
        }
        yield n + n / 16;
      }
    };
  }
}
