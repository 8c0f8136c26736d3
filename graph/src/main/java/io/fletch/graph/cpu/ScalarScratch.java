package io.fletch.graph.cpu;

import java.util.Arrays;

/**
 * Working memory of the Java kernels, one per thread: grows to the widest matrix a thread has seen,
 * then nothing is allocated.
 */
final class ScalarScratch {
  private static final ThreadLocal<ScalarScratch> CURRENT =
      ThreadLocal.withInitial(ScalarScratch::new);

  final WeightBlocks blocks = new WeightBlocks();
  final float[] lanes = new float[ActivationLayout.LANES];
  final int[] sums = new int[ActivationLayout.LANES];
  final int[] weightCodes = new int[Kernels.ATTENTION_CHUNK];
  private int[] queryCodes = new int[256];
  private float[] row = new float[256];

  private ScalarScratch() {}

  static ScalarScratch get() {
    return CURRENT.get();
  }

  /** At least {@code n} floats, content unspecified. */
  float[] row(int n) {
    if (row.length < n) {
      row = new float[n];
    }
    return row;
  }

  /** At least {@code n} codes of a query; kept while none asks for more. */
  int[] queryCodes(int n) {
    if (queryCodes.length < n) {
      queryCodes = new int[n];
    }
    return queryCodes;
  }

  float[] clearedLanes() {
    clear(lanes);
    return lanes;
  }

  static void clear(float[] lanes) {
    Arrays.fill(lanes, 0f);
  }

  /** Adds sixteen partial sums in the order of {@link ActivationLayout}; overwrites them. */
  static float reduce(float[] lanes) {
    return reduce(lanes, ActivationLayout.LANES);
  }

  /** Adds {@code n} partial sums, a power of two, by halves; overwrites them. */
  static float reduce(float[] lanes, int n) {
    for (int width = n / 2; width > 0; width >>= 1) {
      for (int l = 0; l < width; l++) {
        lanes[l] += lanes[l + width];
      }
    }
    return lanes[0];
  }
}
