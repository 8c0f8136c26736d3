package io.fletch.quant.merge;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.fletch.quant.FloatRows;
import java.util.ArrayList;
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

  private static FloatRows rows(float[] x) {
    return FloatRows.of(x, x.length % 5 == 0 ? 5 : 1);
  }

  /** All rows, the last one first. */
  private static float[] all(FloatRows rows) {
    int cols = rows.cols();
    float[] x = new float[Math.toIntExact(rows.rows() * cols)];
    float[] row = new float[cols];
    for (int r = x.length / cols - 1; r >= 0; r--) {
      rows.row(r, row);
      System.arraycopy(row, 0, x, r * cols, cols);
    }
    return x;
  }

  /** Row by row is the same as array by array, whatever the values: bits are compared. */
  @Property(tries = 200)
  void rowsAreThoseOfWholeArrays(
      @ForAll long seed,
      @ForAll @IntRange(min = 0, max = 9) int rows,
      @ForAll @IntRange(min = 1, max = 40) int cols,
      @ForAll @IntRange(min = 1, max = 3) int models) {
    SplittableRandom random = new SplittableRandom(seed);
    float[] base = odd(random, rows * cols);
    List<float[]> others = new ArrayList<>();
    for (int m = 0; m < models; m++) {
      others.add(odd(random, rows * cols));
    }
    FloatRows of = FloatRows.of(base, cols);
    List<FloatRows> rest = others.stream().map(x -> FloatRows.of(x, cols)).toList();
    double lambda = random.nextDouble(-1, 2);
    double share = random.nextDouble(0.01, 0.99);
    assertBits(MergeOracle.average(others), Merges.average(rest));
    assertBits(MergeOracle.task(base, others, lambda), Merges.task(of, rest, lambda));
    assertBits(
        MergeOracle.dare(base, others, lambda, share, seed),
        Merges.dare(of, rest, lambda, share, seed));
    assertBits(MergeOracle.ties(base, others, lambda, share), Merges.ties(of, rest, lambda, share));
    int rank = models;
    float[] a = normal(random, rank * cols);
    float[] b = odd(random, rows * rank);
    float[] middle = random.nextBoolean() ? normal(random, rank * rank) : null;
    float[] norms = random.nextBoolean() ? normal(random, rows) : null;
    assertBits(
        MergeOracle.lora(base, a, b, middle, rank, lambda, norms),
        Merges.lora(of, a, FloatRows.of(b, rank), middle, lambda, norms));
  }

  private static void assertBits(float[] expected, FloatRows actual) {
    assertEquals(bits(expected), bits(all(actual)));
  }

  private static List<Integer> bits(float[] x) {
    return IntStream.range(0, x.length).mapToObj(i -> Float.floatToIntBits(x[i])).toList();
  }

  /** Few different values, zeros of both signs, and sometimes what is no number. */
  private static float[] odd(SplittableRandom random, int n) {
    float[] x = new float[n];
    boolean finite = random.nextInt(4) > 0;
    for (int i = 0; i < n; i++) {
      x[i] =
          switch (random.nextInt(finite ? 6 : 9)) {
            case 0 -> 0f;
            case 1 -> -0f;
            case 2 -> random.nextInt(-2, 3);
            case 6 -> Float.NaN;
            case 7 -> Float.POSITIVE_INFINITY;
            case 8 -> Float.NEGATIVE_INFINITY;
            default -> (float) random.nextGaussian();
          };
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
    FloatRows zero = rows(base);
    List<FloatRows> one = List.of(rows(a));
    List<FloatRows> two = List.of(rows(a), rows(b));
    assertArrayEquals(base, all(Merges.task(zero, two, 0)));
    assertArrayEquals(a, all(Merges.task(zero, one, 1)));
    assertArrayEquals(all(Merges.task(zero, two, 0.3)), all(Merges.dare(zero, two, 0.3, 0, seed)));
    assertArrayEquals(a, all(Merges.ties(zero, one, 1, 1)), 1e-6f);
    assertArrayEquals(a, all(Merges.average(List.of(rows(a), rows(a), rows(a)))));
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
      float[] merged = all(Merges.dare(rows(base), List.of(rows(model)), 1, p, random.nextLong()));
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
    assertArrayEquals(
        new float[] {3, -4, -2, 0},
        all(Merges.ties(rows(base), List.of(rows(a), rows(b)), 1, 0.5)),
        1e-6f);
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
    FloatRows matrix = FloatRows.of(w, in);
    FloatRows factor = FloatRows.of(b, rank);
    float[] merged = all(Merges.lora(matrix, a, factor, null, 0.5, null));
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
    assertArrayEquals(merged, all(Merges.lora(matrix, a, factor, ones, 0.5, null)));
    assertArrayEquals(
        w, all(Merges.lora(matrix, a, FloatRows.of(new float[out * rank], rank), null, 2, null)));
    float[] norms = new float[out];
    for (int o = 0; o < out; o++) {
      norms[o] = o + 1;
    }
    float[] dora = all(Merges.lora(matrix, a, factor, null, 0.5, norms));
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
