package io.fletch.quant.merge;

import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;

/**
 * Merges of whole arrays, one element after the other as their definitions have it: what rows of
 * {@link Merges} are compared with.
 */
final class MergeOracle {
  private MergeOracle() {}

  /** Mean of equal arrays. */
  static float[] average(List<float[]> models) {
    check(models, models.getFirst());
    float[] result = new float[models.getFirst().length];
    for (int i = 0; i < result.length; i++) {
      double sum = 0;
      for (float[] m : models) {
        sum += m[i];
      }
      result[i] = (float) (sum / models.size());
    }
    return result;
  }

  /** {@code base + lambda sum(model - base)}. */
  static float[] task(float[] base, List<float[]> models, double lambda) {
    check(models, base);
    float[] result = new float[base.length];
    for (int i = 0; i < result.length; i++) {
      double delta = 0;
      for (float[] m : models) {
        delta += (double) m[i] - base[i];
      }
      result[i] = (float) (base[i] + lambda * delta);
    }
    return result;
  }

  /**
   * DARE: each delta is dropped with probability {@code p}, the others are divided by {@code 1 -
   * p}, then task arithmetic.
   *
   * @param seed of what is dropped; give every tensor another one
   */
  static float[] dare(float[] base, List<float[]> models, double lambda, double p, long seed) {
    check(models, base);
    if (!(p >= 0 && p < 1)) {
      throw new IllegalArgumentException("drop: expected=0 <= p < 1 actual=" + p);
    }
    SplittableRandom random = new SplittableRandom(seed);
    double[] delta = new double[base.length];
    for (float[] m : models) {
      for (int i = 0; i < base.length; i++) {
        if (random.nextDouble() >= p) {
          delta[i] += ((double) m[i] - base[i]) / (1 - p);
        }
      }
    }
    float[] result = new float[base.length];
    for (int i = 0; i < base.length; i++) {
      result[i] = (float) (base[i] + lambda * delta[i]);
    }
    return result;
  }

  /**
   * TIES: of each model's deltas the share {@code keep} of largest magnitude stays; per element the
   * sign with more mass is elected, and the mean of the deltas of that sign is added.
   */
  static float[] ties(float[] base, List<float[]> models, double lambda, double keep) {
    check(models, base);
    if (!(keep > 0 && keep <= 1)) {
      throw new IllegalArgumentException("keep: expected=0 < k <= 1 actual=" + keep);
    }
    double[] thresholds = new double[models.size()];
    for (int m = 0; m < thresholds.length; m++) {
      float[] sorted = new float[base.length];
      for (int i = 0; i < base.length; i++) {
        sorted[i] = Math.abs(models.get(m)[i] - base[i]);
      }
      Arrays.sort(sorted);
      int stay = Math.max(1, (int) Math.ceil(keep * base.length));
      thresholds[m] = base.length == 0 ? 0 : sorted[base.length - stay];
    }
    float[] result = new float[base.length];
    for (int i = 0; i < base.length; i++) {
      double mass = 0;
      for (int m = 0; m < thresholds.length; m++) {
        mass += trimmed(base[i], models.get(m)[i], thresholds[m]);
      }
      double sum = 0;
      int count = 0;
      for (int m = 0; m < thresholds.length; m++) {
        double delta = trimmed(base[i], models.get(m)[i], thresholds[m]);
        if (delta * mass > 0) {
          sum += delta;
          count++;
        }
      }
      result[i] = (float) (base[i] + (count == 0 ? 0 : lambda * sum / count));
    }
    return result;
  }

  private static double trimmed(float base, float model, double threshold) {
    float delta = model - base;
    return Math.abs(delta) >= threshold ? delta : 0;
  }

  private static void check(List<float[]> models, float[] like) {
    for (float[] m : models) {
      if (m.length != like.length) {
        throw new IllegalArgumentException(
            "elements: expected=" + like.length + " actual=" + m.length);
      }
    }
  }

  /**
   * Adds an adapter: {@code W + scale B A}, or with a middle factor {@code W + scale B N A}; sums
   * in double.
   *
   * @param w {@code [out, in]}
   * @param a {@code [rank, in]}
   * @param b {@code [out, rank]}
   * @param middle {@code [rank, rank]}, or null
   * @param magnitude norms of the rows of the result (DoRA), or null
   */
  static float[] lora(
      float[] w, float[] a, float[] b, float[] middle, int rank, double scale, float[] magnitude) {
    int in = a.length / rank;
    int out = b.length / rank;
    if ((long) in * out != w.length
        || in * rank != a.length
        || out * rank != b.length
        || middle != null && middle.length != rank * rank
        || magnitude != null && magnitude.length != out) {
      throw new IllegalArgumentException(
          "adapter: expected=A [r, in] and B [out, r] for "
              + w.length
              + " weights actual=A "
              + a.length
              + " B "
              + b.length
              + " r="
              + rank);
    }
    float[] result = new float[w.length];
    double[] row = new double[in];
    for (int o = 0; o < out; o++) {
      Arrays.fill(row, 0);
      for (int k = 0; k < rank; k++) {
        double factor = b[o * rank + k];
        if (middle != null) {
          factor = 0;
          for (int t = 0; t < rank; t++) {
            factor += (double) b[o * rank + t] * middle[t * rank + k];
          }
        }
        if (factor != 0) {
          for (int j = 0; j < in; j++) {
            row[j] += factor * a[k * in + j];
          }
        }
      }
      double squares = 0;
      for (int j = 0; j < in; j++) {
        row[j] = w[o * in + j] + scale * row[j];
        squares += row[j] * row[j];
      }
      double stretch = magnitude == null || squares == 0 ? 1 : magnitude[o] / Math.sqrt(squares);
      for (int j = 0; j < in; j++) {
        result[o * in + j] = (float) (row[j] * stretch);
      }
    }
    return result;
  }
}
