package io.fletch.quant.prune;

import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * Masks by score (specs weights 4.2). A mask has an element per weight, row-major, true where the
 * weight goes. Of equal scores the first go first, so masks of rising sparsity are nested.
 * Stateless.
 */
public final class Masks {
  private Masks() {}

  /**
   * The smallest magnitudes of a whole matrix: all up to the one at rank {@code int(n s)}; with a
   * pattern, those of every group.
   */
  public static boolean[] magnitude(float[] w, int cols, double sparsity, Pattern pattern) {
    checkSparsity(sparsity);
    pattern.check(cols);
    float[] scores = new float[w.length];
    for (int i = 0; i < w.length; i++) {
      scores[i] = Math.abs(w[i]);
    }
    boolean[] mask = new boolean[w.length];
    if (pattern.isGrouped()) {
      IntStream.range(0, w.length / pattern.group())
          .parallel()
          .forEach(g -> smallest(scores, g * pattern.group(), pattern, mask));
      return mask;
    }
    int rank = (int) (w.length * sparsity);
    if (rank == 0) {
      return mask;
    }
    float[] sorted = scores.clone();
    Arrays.parallelSort(sorted);
    float threshold = sorted[Math.min(rank, w.length - 1)];
    for (int i = 0; i < w.length; i++) {
      mask[i] = scores[i] <= threshold;
    }
    return mask;
  }

  /** Wanda's scores {@code |w| norm}. */
  public static float[] wandaScores(float[] w, double[] norms) {
    float[] scores = new float[w.length];
    int cols = norms.length;
    for (int i = 0; i < w.length; i++) {
      scores[i] = (float) (Math.abs(w[i]) * norms[i % cols]);
    }
    return scores;
  }

  /** The {@code int(cols s)} smallest scores of every row; with a pattern, those of every group. */
  public static boolean[] perRow(float[] scores, int cols, double sparsity, Pattern pattern) {
    checkSparsity(sparsity);
    pattern.check(cols);
    boolean[] mask = new boolean[scores.length];
    IntStream.range(0, scores.length / cols)
        .parallel()
        .forEach(r -> {
          if (pattern.isGrouped()) {
            for (int at = r * cols; at < (r + 1) * cols; at += pattern.group()) {
              smallest(scores, at, pattern, mask);
            }
            return;
          }
          int[] order = sorted(scores, r * cols, cols);
          int count = (int) (cols * sparsity);
          for (int k = 0; k < count; k++) {
            mask[r * cols + order[k]] = true;
          }
        });
    return mask;
  }

  /** Indices of {@code scores[at..at+n)} by rising score, the first of equals first. */
  static int[] sorted(float[] scores, int at, int n) {
    // Scores are not negative: their bits order as they do.
    long[] keys = new long[n];
    for (int i = 0; i < n; i++) {
      keys[i] = (long) Float.floatToIntBits(scores[at + i] + 0f) << 32 | i;
    }
    Arrays.sort(keys);
    int[] order = new int[n];
    for (int i = 0; i < n; i++) {
      order[i] = (int) keys[i];
    }
    return order;
  }

  static void smallest(float[] scores, int at, Pattern pattern, boolean[] mask) {
    int[] order = sorted(scores, at, pattern.group());
    for (int k = 0; k < pattern.group() - pattern.keep(); k++) {
      mask[at + order[k]] = true;
    }
  }

  /** Zeros for what goes. */
  public static void apply(boolean[] mask, float[] w) {
    for (int i = 0; i < w.length; i++) {
      if (mask[i]) {
        w[i] = 0;
      }
    }
  }

  /** Share of zeros. */
  public static double sparsity(float[] w) {
    long zeros = 0;
    for (float v : w) {
      zeros += v == 0 ? 1 : 0;
    }
    return w.length == 0 ? 0 : (double) zeros / w.length;
  }

  static void checkSparsity(double sparsity) {
    if (!(sparsity >= 0 && sparsity <= 1)) {
      throw new IllegalArgumentException("sparsity: expected=0..1 actual=" + sparsity);
    }
  }
}
