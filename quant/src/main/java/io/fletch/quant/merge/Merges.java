package io.fletch.quant.merge;

import io.fletch.quant.FloatRows;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import java.util.stream.IntStream;

/**
 * Merges of one matrix of several models (specs weights 4.7). Rows are merged when they are asked
 * for, so memory is that of a row per model. Stateless; results depend on nothing but the
 * arguments.
 */
public final class Merges {
  /** From a state of {@link SplittableRandom} to the next: its documented golden gamma. */
  private static final long GAMMA = 0x9e3779b97f4a7c15L;

  /** Halves of the bits of a float that is not negative: those of infinities and NaN included. */
  private static final int BINS = 1 << 16;

  /**
   * Most counts of magnitudes that are made beside each other, {@code 4 * BINS} bytes per model.
   */
  private static final int MOST_PARTS = 16;

  private Merges() {}

  /** Elements of rows of several models at once: element {@code i} of a row of the result. */
  private interface Element {
    float of(float[] base, float[][] models, long row, int i);
  }

  /** A matrix whose elements depend on the same elements of a base and of other models. */
  private record Elementwise(FloatRows base, List<FloatRows> models, Element element)
      implements FloatRows {
    Elementwise {
      for (FloatRows m : models) {
        if (m.rows() != base.rows() || m.cols() != base.cols()) {
          throw new IllegalArgumentException(
              "elements: expected="
                  + base.rows()
                  + "x"
                  + base.cols()
                  + " actual="
                  + m.rows()
                  + "x"
                  + m.cols());
        }
      }
    }

    @Override
    public long rows() {
      return base.rows();
    }

    @Override
    public int cols() {
      return base.cols();
    }

    @Override
    public void row(long row, float[] to) {
      float[] first = new float[cols()];
      base.row(row, first);
      float[][] others = new float[models.size()][cols()];
      for (int m = 0; m < others.length; m++) {
        models.get(m).row(row, others[m]);
      }
      for (int i = 0; i < first.length; i++) {
        to[i] = element.of(first, others, row, i);
      }
    }
  }

  /** Mean of equal matrices, at least one. */
  public static FloatRows average(List<FloatRows> models) {
    return new Elementwise(
        models.getFirst(),
        models.subList(1, models.size()),
        (first, others, _, i) -> {
          double sum = 0;
          sum += first[i];
          for (float[] m : others) {
            sum += m[i];
          }
          return (float) (sum / (1 + others.length));
        });
  }

  /** {@code base + lambda sum(model - base)}. */
  public static FloatRows task(FloatRows base, List<FloatRows> models, double lambda) {
    return new Elementwise(
        base,
        models,
        (first, others, _, i) -> {
          double delta = 0;
          for (float[] m : others) {
            delta += (double) m[i] - first[i];
          }
          return (float) (first[i] + lambda * delta);
        });
  }

  /**
   * DARE: each delta is dropped with probability {@code p}, the others are divided by {@code 1 -
   * p}, then task arithmetic. The numbers drawn are those of one generator for all elements of the
   * first model, then all of the next, whatever the order in which rows are asked for.
   *
   * @param seed of what is dropped; give every tensor another one
   */
  public static FloatRows dare(
      FloatRows base, List<FloatRows> models, double lambda, double p, long seed) {
    if (!(p >= 0 && p < 1)) {
      throw new IllegalArgumentException("drop: expected=0 <= p < 1 actual=" + p);
    }
    long elements = base.rows() * base.cols();
    int cols = base.cols();
    return new Elementwise(
        base,
        models,
        (first, others, row, i) -> {
          double delta = 0;
          for (int m = 0; m < others.length; m++) {
            if (draw(seed, m * elements + row * cols + i) >= p) {
              delta += ((double) others[m][i] - first[i]) / (1 - p);
            }
          }
          return (float) (first[i] + lambda * delta);
        });
  }

  /** The {@code n}-th number, from 0, of a generator: its state is a sum. */
  static double draw(long seed, long n) {
    return new SplittableRandom(seed + n * GAMMA).nextDouble();
  }

  /**
   * TIES: of each model's deltas the share {@code keep} of largest magnitude stays; per element the
   * sign with more mass is elected, and the mean of the deltas of that sign is added. All rows are
   * read twice before this returns, which finds the smallest magnitudes that stay.
   */
  public static FloatRows ties(FloatRows base, List<FloatRows> models, double lambda, double keep) {
    if (!(keep > 0 && keep <= 1)) {
      throw new IllegalArgumentException("keep: expected=0 < k <= 1 actual=" + keep);
    }
    float[] thresholds = new float[models.size()];
    FloatRows result =
        new Elementwise(
            base,
            models,
            (first, others, _, i) -> {
              double mass = 0;
              for (int m = 0; m < others.length; m++) {
                mass += trimmed(first[i], others[m][i], thresholds[m]);
              }
              double sum = 0;
              int count = 0;
              for (int m = 0; m < others.length; m++) {
                double delta = trimmed(first[i], others[m][i], thresholds[m]);
                if (delta * mass > 0) {
                  sum += delta;
                  count++;
                }
              }
              return (float) (first[i] + (count == 0 ? 0 : lambda * sum / count));
            });
    long elements = base.rows() * base.cols();
    if (elements > 0) {
      long smaller = elements - Math.max(1, (long) Math.ceil(keep * elements));
      smallestKept(base, models, smaller, thresholds);
    }
    return result;
  }

  /**
   * Finds the magnitude of each model's deltas that {@code rank} others are before in ascending
   * order, NaN last: the upper half of its bits first, then the lower one.
   */
  private static void smallestKept(
      FloatRows base, List<FloatRows> models, long rank, float[] found) {
    int[] none = new int[found.length];
    Arrays.fill(none, -1);
    int[] upper = new int[found.length];
    long[] before = new long[found.length];
    Arrays.fill(before, rank);
    long[][] counts = counts(base, models, none);
    for (int m = 0; m < found.length; m++) {
      for (; before[m] >= counts[m][upper[m]]; upper[m]++) {
        before[m] -= counts[m][upper[m]];
      }
    }
    counts = counts(base, models, upper);
    for (int m = 0; m < found.length; m++) {
      int lower = 0;
      for (; before[m] >= counts[m][lower]; lower++) {
        before[m] -= counts[m][lower];
      }
      found[m] = Float.intBitsToFloat(upper[m] << 16 | lower);
    }
  }

  /**
   * How many deltas of each model have which upper half of the bits of their magnitude (where
   * {@code upper} is -1), or which lower half among those with that upper half.
   */
  private static long[][] counts(FloatRows base, List<FloatRows> models, int[] upper) {
    long[][] all = new long[upper.length][BINS];
    long rows = base.rows();
    int parts =
        (int) Math.min(rows, Math.min(MOST_PARTS, Runtime.getRuntime().availableProcessors()));
    IntStream.range(0, parts)
        .parallel()
        .forEach(part -> {
          long[][] own = new long[upper.length][BINS];
          float[] first = new float[base.cols()];
          float[] other = new float[base.cols()];
          for (long row = part; row < rows; row += parts) {
            base.row(row, first);
            for (int m = 0; m < upper.length; m++) {
              models.get(m).row(row, other);
              count(first, other, upper[m], own[m]);
            }
          }
          synchronized (all) {
            for (int m = 0; m < upper.length; m++) {
              for (int b = 0; b < BINS; b++) {
                all[m][b] += own[m][b];
              }
            }
          }
        });
    return all;
  }

  private static void count(float[] base, float[] model, int upper, long[] counts) {
    for (int i = 0; i < base.length; i++) {
      int bits = Float.floatToIntBits(Math.abs(model[i] - base[i]));
      if (upper < 0) {
        counts[bits >>> 16]++;
      } else if (bits >>> 16 == upper) {
        counts[bits & 0xffff]++;
      }
    }
  }

  private static double trimmed(float base, float model, float threshold) {
    float delta = model - base;
    return Math.abs(delta) >= threshold ? delta : 0;
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
  public static FloatRows lora(
      FloatRows w, float[] a, FloatRows b, float[] middle, double scale, float[] magnitude) {
    int in = w.cols();
    int rank = b.cols();
    if (b.rows() != w.rows()
        || (long) in * rank != a.length
        || middle != null && middle.length != (long) rank * rank
        || magnitude != null && magnitude.length != w.rows()) {
      throw new IllegalArgumentException(
          "adapter: expected=A [r, in] and B [out, r] for weights "
              + w.rows()
              + "x"
              + in
              + " actual=A "
              + a.length
              + " B "
              + b.rows()
              + "x"
              + rank);
    }
    return new Adapted(w, a, b, middle, scale, magnitude);
  }

  private record Adapted(
      FloatRows w, float[] a, FloatRows b, float[] middle, double scale, float[] magnitude)
      implements FloatRows {
    @Override
    public long rows() {
      return w.rows();
    }

    @Override
    public int cols() {
      return w.cols();
    }

    @Override
    public void row(long o, float[] to) {
      int in = cols();
      int rank = b.cols();
      float[] weights = new float[in];
      float[] factors = new float[rank];
      w.row(o, weights);
      b.row(o, factors);
      double[] row = new double[in];
      for (int k = 0; k < rank; k++) {
        double factor = factors[k];
        if (middle != null) {
          factor = 0;
          for (int t = 0; t < rank; t++) {
            factor += (double) factors[t] * middle[t * rank + k];
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
        row[j] = weights[j] + scale * row[j];
        squares += row[j] * row[j];
      }
      double stretch =
          magnitude == null || squares == 0 ? 1 : magnitude[(int) o] / Math.sqrt(squares);
      for (int j = 0; j < in; j++) {
        to[j] = (float) (row[j] * stretch);
      }
    }
  }
}
