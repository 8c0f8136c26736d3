package io.fletch.quant.prune;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.DoubleRange;
import net.jqwik.api.constraints.IntRange;

/** The properties of specs weights 6 about pruning: 22 and 30 to 34. */
class PruningPropertyTest {
  private static float[] normal(SplittableRandom random, int n) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) random.nextGaussian();
    }
    return x;
  }

  /** Inputs whose channels depend on each other, with different scales and means. */
  private static InputStatistics correlated(SplittableRandom random, int channels, int rows) {
    float[] mix = normal(random, channels * channels);
    float[] mean = normal(random, channels);
    InputStatistics statistics = new InputStatistics(channels, true);
    float[] x = new float[rows * channels];
    for (int r = 0; r < rows; r++) {
      float[] z = normal(random, channels);
      for (int j = 0; j < channels; j++) {
        float sum = mean[j];
        for (int k = Math.max(0, j - 3); k <= j; k++) {
          sum += mix[j * channels + k] * z[k];
        }
        x[r * channels + j] = sum;
      }
    }
    statistics.add(x, rows);
    return statistics;
  }

  /** 22. */
  @Property(tries = 50)
  void masksOfRisingSparsityAreNested(
      @ForAll long seed,
      @ForAll @DoubleRange(min = 0, max = 1) double a,
      @ForAll @DoubleRange(min = 0, max = 1) double b) {
    SplittableRandom random = new SplittableRandom(seed);
    float[] w = normal(random, 6 * 40);
    // Ties, which must not break it.
    for (int i = 0; i < w.length; i += 3) {
      w[i] = Math.round(w[i]);
    }
    double[] norms = new double[40];
    Arrays.setAll(norms, j -> Math.abs(random.nextGaussian()));
    float[] scores = Masks.wandaScores(w, norms);
    double low = Math.min(a, b);
    double high = Math.max(a, b);
    for (boolean wanda : new boolean[] {false, true}) {
      boolean[] few =
          wanda
              ? Masks.perRow(scores, 40, low, Pattern.UNSTRUCTURED)
              : Masks.magnitude(w, 40, low, Pattern.UNSTRUCTURED);
      boolean[] many =
          wanda
              ? Masks.perRow(scores, 40, high, Pattern.UNSTRUCTURED)
              : Masks.magnitude(w, 40, high, Pattern.UNSTRUCTURED);
      for (int i = 0; i < few.length; i++) {
        assertTrue(!few[i] || many[i]);
      }
    }
  }

  /** 31, Wanda and N:M. */
  @Property(tries = 50)
  void sparsityIsWhatWasAsked(
      @ForAll long seed,
      @ForAll @IntRange(min = 1, max = 12) int eighths,
      @ForAll @DoubleRange(min = 0, max = 1) double sparsity) {
    int cols = 8 * eighths;
    float[] scores = normal(new SplittableRandom(seed), 5 * cols);
    for (int i = 0; i < scores.length; i++) {
      scores[i] = Math.abs(scores[i]);
    }
    boolean[] mask = Masks.perRow(scores, cols, sparsity, Pattern.UNSTRUCTURED);
    for (int r = 0; r < 5; r++) {
      assertEquals((int) (cols * sparsity), count(mask, r * cols, cols));
    }
    for (Pattern pattern : List.of(new Pattern(2, 4), new Pattern(4, 8))) {
      boolean[] grouped = Masks.perRow(scores, cols, 0.5, pattern);
      for (int at = 0; at < grouped.length; at += pattern.group()) {
        assertEquals(pattern.group() - pattern.keep(), count(grouped, at, pattern.group()));
      }
    }
  }

  private static int count(boolean[] mask, int at, int n) {
    int count = 0;
    for (int i = at; i < at + n; i++) {
      count += mask[i] ? 1 : 0;
    }
    return count;
  }

  /** 31, OWL. */
  @Property(tries = 100)
  void ratiosKeepTheirMeanAndRange(
      @ForAll long seed,
      @ForAll @IntRange(min = 1, max = 40) int layers,
      @ForAll @DoubleRange(min = 0.3, max = 0.7) double sparsity) {
    SplittableRandom random = new SplittableRandom(seed);
    double[] outliers = new double[layers];
    Arrays.setAll(outliers, i -> random.nextDouble() * 10);
    double lambda = 0.08;
    double[] ratios = LayerRatios.owl(outliers, sparsity, lambda);
    assertEquals(sparsity, Arrays.stream(ratios).average().orElseThrow(), 1e-6);
    for (int i = 0; i < layers; i++) {
      assertEquals(sparsity, ratios[i], 2 * lambda + 1e-12);
      for (int j = 0; j < layers; j++) {
        assertTrue(outliers[i] <= outliers[j] || ratios[i] <= ratios[j]);
      }
    }
    Arrays.fill(outliers, 3);
    assertArrayEquals(
        LayerRatios.uniform(layers, sparsity), LayerRatios.owl(outliers, sparsity, lambda));
  }

  /** 32, Wanda. */
  @Property(tries = 30)
  void wandaOfEqualNormsIsMagnitudePerRow(
      @ForAll long seed, @ForAll @DoubleRange(min = 0, max = 1) double sparsity) {
    float[] w = normal(new SplittableRandom(seed), 7 * 33);
    double[] norms = new double[33];
    Arrays.fill(norms, 1);
    boolean[] mask = Masks.perRow(Masks.wandaScores(w, norms), 33, sparsity, Pattern.UNSTRUCTURED);
    for (int r = 0; r < 7; r++) {
      float most = 0;
      float least = Float.MAX_VALUE;
      for (int j = 0; j < 33; j++) {
        float m = Math.abs(w[r * 33 + j]);
        most = mask[r * 33 + j] ? Math.max(most, m) : most;
        least = mask[r * 33 + j] ? least : Math.min(least, m);
      }
      assertTrue(most <= least);
    }
  }

  /** 32, SparseGPT. */
  @Property(tries = 20)
  void sparseGptOfIndependentInputsIsMagnitudeByBlocks(
      @ForAll long seed, @ForAll @DoubleRange(min = 0, max = 0.9) double sparsity) {
    int cols = 160;
    float[] w = normal(new SplittableRandom(seed), 4 * cols);
    double[] identity = new double[cols * cols];
    for (int j = 0; j < cols; j++) {
      identity[j * cols + j] = 1;
    }
    float[] pruned = w.clone();
    SparseGpt.prune(pruned, cols, identity, sparsity, Pattern.UNSTRUCTURED);
    for (int from : new int[] {0, 128}) {
      int width = Math.min(cols, from + 128) - from;
      float[] block = new float[4 * width];
      for (int r = 0; r < 4; r++) {
        System.arraycopy(w, r * cols + from, block, r * width, width);
      }
      boolean[] mask = Masks.magnitude(block, width, sparsity, Pattern.UNSTRUCTURED);
      Masks.apply(mask, block);
      for (int r = 0; r < 4; r++) {
        float[] part = new float[width];
        System.arraycopy(pruned, r * cols + from, part, 0, width);
        assertArrayEquals(Arrays.copyOfRange(block, r * width, (r + 1) * width), part);
      }
    }
  }

  /** 33. */
  @Property(tries = 5)
  void updatesOfSparseGptLowerTheErrorOnAverage(@ForAll long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    for (Pattern pattern : List.of(Pattern.UNSTRUCTURED, new Pattern(2, 4))) {
      double with = 0;
      double without = 0;
      for (int layer = 0; layer < 8; layer++) {
        InputStatistics inputs = correlated(random, 48, 400);
        float[] w = normal(random, 12 * 48);
        float[] pruned = w.clone();
        SparseGpt.prune(pruned, 48, inputs.hessian().orElseThrow(), 0.5, pattern);
        float[] masked = w.clone();
        for (int i = 0; i < w.length; i++) {
          masked[i] = pruned[i] == 0 ? 0 : w[i];
        }
        with += inputs.relativeError(w, pruned);
        without += inputs.relativeError(w, masked);
        if (pattern.isGrouped()) {
          for (int at = 0; at < w.length; at += 4) {
            int zeros = 0;
            for (int i = at; i < at + 4; i++) {
              zeros += pruned[i] == 0 ? 1 : 0;
            }
            assertEquals(2, zeros);
          }
        }
      }
      assertTrue(with < without, with + " " + without);
    }
  }

  /** The factor is what it is said to be: {@code U^T U H = I}. */
  @Property(tries = 10)
  void factorOfTheInverse(@ForAll long seed, @ForAll @IntRange(min = 1, max = 40) int n) {
    double[] h = correlated(new SplittableRandom(seed), n, 3 * n + 20).hessian().orElseThrow();
    double mean = 0;
    for (int i = 0; i < n; i++) {
      mean += h[i * n + i] / n;
    }
    double[] damped = h.clone();
    for (int i = 0; i < n; i++) {
      damped[i * n + i] += 0.01 * mean;
    }
    double[] u = SparseGpt.inverseFactor(h, n);
    for (int i = 0; i < n; i++) {
      for (int j = 0; j < n; j++) {
        double sum = 0;
        for (int k = 0; k < n; k++) {
          double inverse = 0;
          for (int t = 0; t <= Math.min(i, k); t++) {
            inverse += u[t * n + i] * u[t * n + k];
          }
          sum += inverse * damped[k * n + j];
        }
        assertEquals(i == j ? 1 : 0, sum, 1e-6);
      }
    }
  }

  /** 34. */
  @Property(tries = 30)
  void swapsOfDsnotNeverMakeTheMeanWorse(@ForAll long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    InputStatistics inputs = correlated(random, 48, 200);
    float[] w = normal(random, 10 * 48);
    float[] scores = Masks.wandaScores(w, inputs.norms());
    int improved = 0;
    for (Pattern pattern : List.of(Pattern.UNSTRUCTURED, new Pattern(2, 4))) {
      boolean[] before = Masks.perRow(scores, 48, 0.5, pattern);
      boolean[] after = before.clone();
      DynamicSparsity.refine(after, w, inputs, pattern);
      for (int r = 0; r < 10; r++) {
        double old = Math.abs(DynamicSparsity.error(before, w, r * 48, inputs.means()));
        double now = Math.abs(DynamicSparsity.error(after, w, r * 48, inputs.means()));
        assertTrue(now <= old + 1e-9, now + " " + old);
        improved += now < old ? 1 : 0;
        int step = pattern.isGrouped() ? pattern.group() : 48;
        for (int at = r * 48; at < (r + 1) * 48; at += step) {
          assertEquals(count(before, at, step), count(after, at, step));
        }
      }
    }
    assertTrue(improved > 0);
  }

  /** 30, on one projection: channels that do not fluctuate are what their bias says. */
  @Property(tries = 20)
  void constantChannelsAreReplacedByABias(@ForAll long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    int cols = 24;
    boolean[] kept = new boolean[cols];
    float[] x = normal(random, 50 * cols);
    for (int j = 0; j < cols; j++) {
      kept[j] = j % 3 != 0;
      for (int r = 1; r < 50 && !kept[j]; r++) {
        x[r * cols + j] = x[j];
      }
    }
    InputStatistics inputs = new InputStatistics(cols, false);
    inputs.add(x, 50);
    float[] w = normal(random, 5 * cols);
    double[] scores = Flap.channelScores(w, inputs);
    double least = Double.POSITIVE_INFINITY;
    for (int j = 0; j < cols; j++) {
      least = kept[j] ? Math.min(least, scores[j]) : least;
    }
    for (int j = 0; j < cols; j++) {
      assertTrue(kept[j] || scores[j] < least);
    }
    float[] bias = Flap.bias(w, inputs.means(), kept);
    for (int r = 0; r < 50; r++) {
      for (int o = 0; o < 5; o++) {
        double whole = 0;
        double pruned = bias[o];
        for (int j = 0; j < cols; j++) {
          whole += w[o * cols + j] * x[r * cols + j];
          pruned += kept[j] ? w[o * cols + j] * x[r * cols + j] : 0;
        }
        assertEquals(whole, pruned, 1e-4);
      }
    }
  }

  /** FLAP meets its budget within the largest unit and leaves no layer empty. */
  @Property(tries = 50)
  void choiceMeetsTheBudget(
      @ForAll long seed, @ForAll @DoubleRange(min = 0, max = 0.8) double sparsity) {
    SplittableRandom random = new SplittableRandom(seed);
    List<double[]> groups = new ArrayList<>();
    List<double[]> neurons = new ArrayList<>();
    for (int l = 0; l < 4; l++) {
      groups.add(random.doubles(4).toArray());
      neurons.add(random.doubles(100).toArray());
    }
    List<Flap.Kept> kept = Flap.choose(groups, neurons, 20, sparsity);
    double left = 0;
    for (Flap.Kept k : kept) {
      assertTrue(k.groups().length > 0 && k.neurons().length > 0);
      left += 20 * k.groups().length + k.neurons().length;
    }
    double total = 4 * (4 * 20 + 100);
    // One of each stays in every layer, and the last unit may go over by half of it.
    assertEquals(Math.max(total * (1 - sparsity), 4 * 21), left, 10);
  }

  /** The error is that of the rows themselves. */
  @Property(tries = 20)
  void relativeErrorIsThatOfTheRows(@ForAll long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    float[] x = normal(random, 30 * 9);
    InputStatistics inputs = new InputStatistics(9, true);
    inputs.add(x, 30);
    float[] a = normal(random, 4 * 9);
    float[] b = normal(random, 4 * 9);
    double error = 0;
    double whole = 0;
    for (int r = 0; r < 30; r++) {
      for (int o = 0; o < 4; o++) {
        double d = 0;
        double y = 0;
        for (int j = 0; j < 9; j++) {
          d += (a[o * 9 + j] - b[o * 9 + j]) * x[r * 9 + j];
          y += a[o * 9 + j] * x[r * 9 + j];
        }
        error += d * d;
        whole += y * y;
      }
    }
    assertEquals(error / whole, inputs.relativeError(a, b), 1e-4 * error / whole);
  }
}
