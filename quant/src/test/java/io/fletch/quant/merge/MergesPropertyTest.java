package io.fletch.quant.merge;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.List;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import net.jqwik.api.Example;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;

/** The properties of specs weights 6 about merging: 24 to 26. */
class MergesPropertyTest {
  private static float[] normal(SplittableRandom random, int n) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) random.nextGaussian();
    }
    return x;
  }

  /** 26. */
  @Property(tries = 30)
  void taskArithmeticAndDareAtTheirEnds(@ForAll long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    float[] base = normal(random, 50);
    float[] a = normal(random, 50);
    float[] b = normal(random, 50);
    assertArrayEquals(base, Merges.task(base, List.of(a, b), 0));
    assertArrayEquals(a, Merges.task(base, List.of(a), 1));
    assertArrayEquals(
        Merges.task(base, List.of(a, b), 0.3), Merges.dare(base, List.of(a, b), 0.3, 0, seed));
    assertArrayEquals(a, Merges.ties(base, List.of(a), 1, 1), 1e-6f);
    assertArrayEquals(a, Merges.average(List.of(a, a, a)));
  }

  /** 26: without bias over seeds. */
  @Property(tries = 5)
  void dareIsRightOnAverage(@ForAll long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    float[] base = normal(random, 20);
    float[] model = normal(random, 20);
    double p = 0.7;
    int n = 4000;
    double[] sum = new double[20];
    for (int t = 0; t < n; t++) {
      float[] merged = Merges.dare(base, List.of(model), 1, p, random.nextLong());
      for (int i = 0; i < 20; i++) {
        sum[i] += merged[i] - base[i];
      }
    }
    for (int i = 0; i < 20; i++) {
      double delta = model[i] - base[i];
      // Deviation of a Bernoulli variable that is scaled; 100 comparisons in all, so 5 sigma.
      double sigma = Math.abs(delta) * Math.sqrt(p / (1 - p) / n);
      assertEquals(delta, sum[i] / n, 5 * sigma + 1e-4);
    }
  }

  @Example
  void tiesTrimsElectsAndAverages() {
    float[] base = {0, 0, 0, 0};
    float[] a = {3, 1, -2, 0.1f};
    float[] b = {1, -4, -2, 0.1f};
    // Half stay: of a elements 0 and 2, of b elements 1 and 2.
    assertArrayEquals(new float[] {3, -4, -2, 0}, Merges.ties(base, List.of(a, b), 1, 0.5), 1e-6f);
  }

  /** 24: merged and run beside each other is the same; 25: a middle factor of ones is none. */
  @Property(tries = 30)
  void adaptersMergeToWhatTheyDo(@ForAll long seed, @ForAll @IntRange(min = 1, max = 5) int rank) {
    SplittableRandom random = new SplittableRandom(seed);
    int in = 12;
    int out = 7;
    float[] w = normal(random, in * out);
    float[] a = normal(random, rank * in);
    float[] b = normal(random, out * rank);
    float[] x = normal(random, in);
    float[] merged = Merges.lora(w, a, b, null, rank, 0.5, null);
    for (int o = 0; o < out; o++) {
      double expected = 0;
      double actual = 0;
      double size = 0;
      for (int j = 0; j < in; j++) {
        expected += w[o * in + j] * x[j];
        actual += merged[o * in + j] * x[j];
        size += Math.abs(merged[o * in + j] * x[j]);
      }
      for (int k = 0; k < rank; k++) {
        double h = 0;
        for (int j = 0; j < in; j++) {
          h += a[k * in + j] * x[j];
        }
        expected += 0.5 * b[o * rank + k] * h;
      }
      assertEquals(expected, actual, 1e-5 * size + 1e-5);
    }
    float[] ones = new float[rank * rank];
    IntStream.range(0, rank).forEach(k -> ones[k * rank + k] = 1);
    assertArrayEquals(merged, Merges.lora(w, a, b, ones, rank, 0.5, null));
    assertArrayEquals(w, Merges.lora(w, a, new float[out * rank], null, rank, 2, null));
    float[] norms = new float[out];
    for (int o = 0; o < out; o++) {
      norms[o] = o + 1;
    }
    float[] dora = Merges.lora(w, a, b, null, rank, 0.5, norms);
    for (int o = 0; o < out; o++) {
      double squares = 0;
      for (int j = 0; j < in; j++) {
        squares += (double) dora[o * in + j] * dora[o * in + j];
      }
      assertEquals(o + 1, Math.sqrt(squares), 1e-4);
    }
  }

  @Example
  void recipesAreReadAndChecked() {
    int[] layers = {8, 6};
    LayerRecipe recipe = LayerRecipe.parse("0-2, 5,1:3,6+7,1:0-1", layers);
    assertEquals(8, recipe.layers().size());
    assertEquals(List.of(new LayerRecipe.Source(0, 2)), recipe.layers().get(2));
    assertEquals(List.of(new LayerRecipe.Source(1, 3)), recipe.layers().get(4));
    assertEquals(
        List.of(new LayerRecipe.Source(0, 6), new LayerRecipe.Source(0, 7)),
        recipe.layers().get(5));
    assertEquals(List.of(new LayerRecipe.Source(1, 1)), recipe.layers().get(7));
    for (String wrong : List.of("", "8", "2:0", "1:6", "3-1", "a", "1,", "-1", "1++2")) {
      assertThrows(IllegalArgumentException.class, () -> LayerRecipe.parse(wrong, layers), wrong);
    }
  }
}
