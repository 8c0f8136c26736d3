package io.fletch.quant.prune;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.SplittableRandom;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.ShrinkingMode;
import net.jqwik.api.constraints.IntRange;
import org.junit.jupiter.api.Test;

/** Factors of every rank: exact where they can be, and the best where they cannot. */
class LowRankPropertyTest {
  private static float[] floats(SplittableRandom random, int n) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) (random.nextDouble() - 0.5);
    }
    return x;
  }

  private static double weighted(float[] rest, int in, double[] d) {
    double sum = 0;
    for (int i = 0; i < rest.length; i++) {
      double x = rest[i] * d[i % in];
      sum += x * x;
    }
    return sum;
  }

  /** The error of rank k is the sum of the squares of the values after it (Eckart and Young). */
  @Property(tries = 40, shrinking = ShrinkingMode.OFF)
  void theErrorIsWhatTheSingularValuesLeave(
      @ForAll long seed,
      @ForAll @IntRange(min = 1, max = 40) int out,
      @ForAll @IntRange(min = 1, max = 40) int in) {
    SplittableRandom random = new SplittableRandom(seed);
    float[] w = floats(random, out * in);
    double[] d = new double[in];
    for (int j = 0; j < in; j++) {
      d[j] = 0.1 + random.nextDouble();
    }
    LowRank svd = LowRank.of(w, out, in, d);
    double[] s = svd.singularValues();
    double all = weighted(w, in, d);
    double left = 0;
    for (int k = s.length; k >= 1; k--) {
      double error = weighted(svd.residual(svd.factors(k)), in, d);
      assertEquals(left, error, 1e-5 * all + 1e-12, "rank " + k);
      left += s[k - 1] * s[k - 1];
      assertTrue(k == 1 || s[k - 1] <= s[k - 2]);
    }
    assertEquals(all, left, 1e-9 * all);
    // Another choice of as many factors is no better.
    int k = 1 + random.nextInt(s.length);
    float[] u = floats(random, out * k);
    LowRank.Factors best = svd.factors(k);
    float[] moved = best.u().clone();
    for (int i = 0; i < moved.length; i++) {
      moved[i] += 1e-2f * u[i];
    }
    double other = weighted(svd.residual(new LowRank.Factors(k, moved, best.v())), in, d);
    assertTrue(other >= weighted(svd.residual(best), in, d) * (1 - 1e-6) - 1e-9);
  }

  /** A matrix of low rank is found to be one, whatever rule asks. */
  @Property(tries = 30, shrinking = ShrinkingMode.OFF)
  void ranksAreFound(@ForAll long seed, @ForAll @IntRange(min = 1, max = 6) int rank) {
    SplittableRandom random = new SplittableRandom(seed);
    int out = 8 + random.nextInt(30);
    int in = 8 + random.nextInt(30);
    float[] u = floats(random, out * rank);
    float[] v = floats(random, rank * in);
    float[] w = new float[out * in];
    for (int i = 0; i < out; i++) {
      for (int k = 0; k < rank; k++) {
        for (int j = 0; j < in; j++) {
          w[i * in + j] += u[i * rank + k] * v[k * in + j];
        }
      }
    }
    LowRank svd = LowRank.of(w, out, in, null);
    assertTrue(svd.rankByThreshold(1e-5) <= rank);
    assertTrue(svd.rankByEnergy(1 - 1e-9) <= rank);
    for (float x : svd.residual(svd.factors(rank))) {
      assertEquals(0, x, 1e-5);
    }
  }

  @Test
  void edges() {
    LowRank zero = LowRank.of(new float[12], 3, 4, null);
    assertEquals(1, zero.rankByEnergy(0.9));
    assertEquals(1, zero.rankByThreshold(0.1));
    for (float x : zero.residual(zero.factors(2))) {
      assertEquals(0, x);
    }
    float[] diagonal = {3, 0, 0, 0, 2, 0, 0, 0, 1};
    LowRank d = LowRank.of(diagonal, 3, 3, null);
    assertEquals(2, d.singularValues()[1], 1e-12);
    assertEquals(2, d.rankByThreshold(0.5));
    assertEquals(2, d.rankByEnergy(13.0 / 14));
    assertEquals(1, d.rankByEnergy(0.1));
    assertEquals(20, LowRank.rankByRatio(100, 400, 0.25));
    assertEquals(1, LowRank.rankByRatio(100, 400, 0));
    assertThrows(IllegalArgumentException.class, () -> d.factors(4));
    assertThrows(
        IllegalArgumentException.class, () -> LowRank.of(new float[] {Float.NaN}, 1, 1, null));
    assertThrows(IllegalArgumentException.class, () -> LowRank.of(new float[5], 2, 3, null));
  }
}
