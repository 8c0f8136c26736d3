package io.fletch.runtime.calibrate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.SplittableRandom;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.ShrinkingMode;
import net.jqwik.api.constraints.IntRange;

/** Ridge regression of low rank against its definition (specs autoregressive 3, L7). */
class ReducedRankRidgePropertyTest {
  private static final double RIDGE = 0.01;

  private static double objective(
      ReducedRankRidge.Solution s, double lambda, float[] x, float[] y, int rows, int in, int out) {
    double sum = 0;
    for (int t = 0; t < rows; t++) {
      for (int k = 0; k < out; k++) {
        double p = s.upBias()[k];
        for (int c = 0; c < s.rank(); c++) {
          double z = s.downBias()[c];
          for (int i = 0; i < in; i++) {
            z += s.down()[c * in + i] * x[t * in + i];
          }
          p += s.up()[k * s.rank() + c] * z;
        }
        sum += (p - y[t * out + k]) * (p - y[t * out + k]);
      }
    }
    for (int k = 0; k < out; k++) {
      for (int i = 0; i < in; i++) {
        double b = 0;
        for (int c = 0; c < s.rank(); c++) {
          b += s.up()[k * s.rank() + c] * s.down()[c * in + i];
        }
        sum += lambda * b * b;
      }
    }
    return sum;
  }

  @Property(tries = 25, shrinking = ShrinkingMode.OFF)
  void moreRankIsNeverWorseAndNoNeighbourIsBetter(
      @ForAll long seed, @ForAll @IntRange(min = 1, max = 9) int in) {
    SplittableRandom random = new SplittableRandom(seed);
    int out = 1 + random.nextInt(9);
    int rows = 3 + random.nextInt(60);
    float[] x = new float[rows * in];
    float[] y = new float[rows * out];
    for (int i = 0; i < x.length; i++) {
      x[i] = (float) (random.nextGaussian() + 0.5);
    }
    for (int i = 0; i < y.length; i++) {
      y[i] = (float) (random.nextGaussian() + x[i / out * in] - 1);
    }
    ReducedRankRidge ridge = new ReducedRankRidge(in, out);
    int cut = random.nextInt(rows);
    ridge.add(x, y, cut);
    ridge.add(
        java.util.Arrays.copyOfRange(x, cut * in, x.length),
        java.util.Arrays.copyOfRange(y, cut * out, y.length),
        rows - cut);
    double lambda = RIDGE * ridge.inputVariance() * rows;
    double before = ridge.resultSquares();
    int most = Math.min(in, out);
    for (int rank = 1; rank <= most; rank++) {
      ReducedRankRidge.Solution s = ridge.solve(rank, RIDGE);
      double measured = objective(s, lambda, x, y, rows, in, out);
      assertEquals(s.objective(), measured, 1e-7 * (1 + ridge.resultSquares()), "rank " + rank);
      assertTrue(s.objective() <= before + 1e-9 * (1 + before), "rank " + rank);
      before = s.objective();
      // The objective is minimal among matrices of this rank.
      for (int n = 0; n < 8; n++) {
        double[] down = s.down().clone();
        double[] up = s.up().clone();
        for (int i = 0; i < down.length; i++) {
          down[i] += 1e-2 * random.nextGaussian();
        }
        for (int i = 0; i < up.length; i++) {
          up[i] += 1e-2 * random.nextGaussian();
        }
        double[] shift = new double[rank];
        for (int c = 0; c < rank; c++) {
          for (int i = 0; i < in; i++) {
            double mean = 0;
            for (int t = 0; t < rows; t++) {
              mean += (double) x[t * in + i] / rows;
            }
            shift[c] -= down[c * in + i] * mean;
          }
        }
        ReducedRankRidge.Solution other =
            new ReducedRankRidge.Solution(rank, down, shift, up, s.upBias(), 0);
        double worse = objective(other, lambda, x, y, rows, in, out);
        assertTrue(worse >= measured - 1e-9 * (1 + measured), "rank " + rank);
      }
    }
    // All ranks: plain ridge, whose gradient vanishes.
    ReducedRankRidge.Solution full = ridge.solve(most, RIDGE);
    gradientVanishes(full, lambda, x, y, rows, in, out);
  }

  private static void gradientVanishes(
      ReducedRankRidge.Solution s, double lambda, float[] x, float[] y, int rows, int in, int out) {
    double[][] b = new double[out][in];
    for (int k = 0; k < out; k++) {
      for (int i = 0; i < in; i++) {
        for (int c = 0; c < s.rank(); c++) {
          b[k][i] += s.up()[k * s.rank() + c] * s.down()[c * in + i];
        }
      }
    }
    double[] mean = new double[in];
    for (int t = 0; t < rows; t++) {
      for (int i = 0; i < in; i++) {
        mean[i] += (double) x[t * in + i] / rows;
      }
    }
    for (int k = 0; k < out; k++) {
      for (int i = 0; i < in; i++) {
        double gradient = lambda * b[k][i];
        for (int t = 0; t < rows; t++) {
          double residual = s.upBias()[k] - y[t * out + k];
          for (int j = 0; j < in; j++) {
            residual += b[k][j] * (x[t * in + j] - mean[j]);
          }
          gradient += residual * (x[t * in + i] - mean[i]);
        }
        assertEquals(0, gradient, 1e-6 * rows);
      }
    }
  }
}
