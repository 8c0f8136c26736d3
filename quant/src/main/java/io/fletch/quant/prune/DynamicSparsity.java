package io.fletch.quant.prune;

import java.util.stream.IntStream;

/**
 * DSnoT (specs weights 4.5): swaps pruned against kept weights of a row so that the mean of what
 * was removed comes near zero. A swap that would make it larger is not made. Weights keep their
 * values. Stateless.
 */
public final class DynamicSparsity {
  private static final int CYCLES = 50;
  private static final double ENOUGH = 0.1;

  private DynamicSparsity() {}

  /**
   * Changes a mask in place; the number of pruned weights of a row (with a pattern: of a group)
   * stays.
   *
   * @param w all weights, pruned ones included
   */
  public static void refine(boolean[] mask, float[] w, InputStatistics inputs, Pattern pattern) {
    int cols = inputs.channels();
    pattern.check(cols);
    double[] mean = inputs.means();
    double[] variance = inputs.variances();
    double[] norms = inputs.norms();
    IntStream.range(0, w.length / cols)
        .parallel()
        .forEach(r -> row(mask, w, r * cols, cols, mean, variance, norms, pattern));
  }

  /** Mean of what is removed from the output of a row that begins at {@code at}. */
  static double error(boolean[] mask, float[] w, int at, double[] mean) {
    double error = 0;
    for (int j = 0; j < mean.length; j++) {
      if (mask[at + j]) {
        error += w[at + j] * mean[j];
      }
    }
    return error;
  }

  private static void row(
      boolean[] mask,
      float[] w,
      int at,
      int cols,
      double[] mean,
      double[] variance,
      double[] norms,
      Pattern pattern) {
    double error = error(mask, w, at, mean);
    for (int cycle = 0; cycle < CYCLES && Math.abs(error) > ENOUGH; cycle++) {
      double sign = Math.signum(error);
      int grow = -1;
      double most = 0;
      for (int j = 0; j < cols; j++) {
        double gain = sign * w[at + j] * mean[j];
        double metric = gain / Math.max(variance[j], 1e-30);
        if (mask[at + j] && gain > 0 && metric > most) {
          grow = j;
          most = metric;
        }
      }
      if (grow < 0) {
        return;
      }
      int from = pattern.isGrouped() ? grow / pattern.group() * pattern.group() : 0;
      int to = pattern.isGrouped() ? from + pattern.group() : cols;
      int prune = -1;
      double least = Double.POSITIVE_INFINITY;
      for (int j = from; j < to; j++) {
        double score = Math.abs(w[at + j]) * norms[j];
        if (!mask[at + j] && sign * w[at + j] * mean[j] < 0 && score < least) {
          prune = j;
          least = score;
        }
      }
      if (prune < 0) {
        return;
      }
      double next = error - w[at + grow] * mean[grow] + w[at + prune] * mean[prune];
      if (Math.abs(next) >= Math.abs(error)) {
        return;
      }
      mask[at + grow] = false;
      mask[at + prune] = true;
      boolean turned = Math.signum(next) != sign;
      error = next;
      if (turned) {
        return;
      }
    }
  }
}
