package io.fletch.runtime.arch;

import java.nio.charset.StandardCharsets;
import java.util.zip.CRC32;

/** Weights that follow from names, as {@code values} of tiny_models.py says. */
public final class TinyWeights {
  private TinyWeights() {}

  /** Element i is {@code offset + scale * (2 u - 1)}, u a hash of the name and i. */
  public static float[] values(String name, long[] shape, double scale, double offset) {
    CRC32 crc = new CRC32();
    crc.update(name.getBytes(StandardCharsets.UTF_8));
    int n = 1;
    for (long d : shape) {
      n = Math.toIntExact(n * d);
    }
    float[] out = new float[n];
    for (int i = 0; i < n; i++) {
      long h = i * 0x9E3779B97F4A7C15L + crc.getValue();
      h ^= h >>> 31;
      h *= 0xBF58476D1CE4E5B9L;
      h ^= h >>> 27;
      h *= 0x94D049BB133111EBL;
      double u = (h >>> 40) / (double) (1 << 24);
      out[i] = (float) (offset + scale * (2 * u - 1));
    }
    return out;
  }
}
