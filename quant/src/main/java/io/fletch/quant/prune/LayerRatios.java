package io.fletch.quant.prune;

import java.util.Arrays;
import java.util.List;

/** How sparse each layer becomes: evenly, or by OWL (specs weights 4.4). Stateless. */
public final class LayerRatios {
  private LayerRatios() {}

  /** The same for all. */
  public static double[] uniform(int layers, double sparsity) {
    Masks.checkSparsity(sparsity);
    double[] all = new double[layers];
    Arrays.fill(all, sparsity);
    return all;
  }

  /**
   * Percentage of scores of a layer that are larger than {@code m} times their mean.
   *
   * @param scores Wanda's scores of all matrices of the layer
   */
  public static double outliers(List<float[]> scores, double m) {
    double sum = 0;
    long count = 0;
    for (float[] a : scores) {
      for (float v : a) {
        sum += v;
      }
      count += a.length;
    }
    double limit = m * sum / count;
    long above = 0;
    for (float[] a : scores) {
      for (float v : a) {
        above += v > limit ? 1 : 0;
      }
    }
    return count == 0 ? 0 : 100.0 * above / count;
  }

  /**
   * Layers with more outliers are pruned less, all within {@code lambda} of the mean, which is
   * {@code sparsity}. Equal outliers give equal sparsities.
   */
  public static double[] owl(double[] outliers, double sparsity, double lambda) {
    Masks.checkSparsity(sparsity);
    double least = Arrays.stream(outliers).min().orElse(0);
    double most = Arrays.stream(outliers).max().orElse(0);
    if (most == least) {
      return uniform(outliers.length, sparsity);
    }
    double[] r = new double[outliers.length];
    double mean = 0;
    for (int i = 0; i < r.length; i++) {
      r[i] = 2 * lambda * (outliers[i] - least) / (most - least);
      mean += r[i] / r.length;
    }
    double[] result = new double[r.length];
    for (int i = 0; i < r.length; i++) {
      result[i] = Math.clamp(1 - (r[i] - mean + 1 - sparsity), 0.01, 1);
    }
    return result;
  }
}
