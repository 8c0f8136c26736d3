package io.fletch.graph.cpu.x86;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.CpuFeatures.Feature;
import io.fletch.quant.TensorType;
import java.util.List;

/**
 * How a product reads weights that come from memory. It changes the speed, never a result.
 *
 * @param streams parts of the range that are read side by side, 1, 2 or 4; fewer where there are no
 *     registers for so many
 * @param prefetch bytes that each is prefetched ahead; 0 for not at all
 * @param half registers of half the width of the instruction set's, two for a group of rows
 */
public record Streaming(int streams, int prefetch, boolean half) {
  /** What tiles of several rows of activations use. */
  public static final Streaming SEVERAL_ROWS = new Streaming(4, 1024, false);

  private static final CpuFeatures CPU = CpuFeatures.detected();
  private static final boolean AVX512 = CPU.has(Feature.AVX512F);
  private static final boolean AMD = CPU.model().contains("AMD");

  /** A way to read. */
  public Streaming {
    if (streams != 1 && streams != 2 && streams != 4) {
      throw new IllegalArgumentException("streams: expected=1, 2 or 4 actual=" + streams);
    }
    if (prefetch < 0 || prefetch > 1 << 16) {
      throw new IllegalArgumentException("prefetch: expected=[0,65536] actual=" + prefetch);
    }
  }

  /**
   * Ways that a single row could take on this CPU, the one that its family was measured to like
   * first; docs/kernels.md has the measurements. The others are what other CPUs of the kind may
   * like better.
   */
  public static List<Streaming> candidates(Isa isa, TensorType type) {
    return candidates(isa, type, AVX512 && AMD);
  }

  /** The same for CPUs of AMD with AVX-512, or for all others, whichever this one is. */
  public static List<Streaming> candidates(Isa isa, TensorType type, boolean amdWithAvx512) {
    if (isa != Isa.AVX512_VNNI) {
      // The first is for Zen 3 and older Intel servers, and reads at 93 to 99 % with AVX-VNNI on
      // Emerald Rapids; the last is for AMD with AVX-512.
      return List.of(
          new Streaming(2, 1024, false), new Streaming(2, 256, false), new Streaming(2, 0, false));
    }
    if (amdWithAvx512) {
      // Zen 4: prefetching far ahead costs a fifth to a half.
      int streams = type == TensorType.Q8_0 ? 2 : 1;
      return List.of(
          new Streaming(streams, 128, false),
          new Streaming(streams, 128, true),
          new Streaming(2 * streams, 0, true),
          new Streaming(2, 512, false));
    }
    // Sapphire and Emerald Rapids.
    return List.of(
        new Streaming(4, 512, false),
        new Streaming(2, 2048, false),
        new Streaming(4, 128, false),
        new Streaming(2, 512, true));
  }
}
