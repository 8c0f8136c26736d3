package io.fletch.quant.prune;

import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * SparseGPT (specs weights 4.3): removes weights column by column and lets the ones to the right
 * make up for it, by the inverse of the inputs' second moments. Doubles throughout; the result does
 * not depend on the number of threads. Stateless.
 */
public final class SparseGpt {
  private static final int BLOCK = 128;
  private static final double DAMPING = 0.01;

  private SparseGpt() {}

  /**
   * Prunes a matrix in place.
   *
   * @param w rows of {@code cols} elements
   * @param hessian {@code [cols, cols]}; used up
   * @throws ArithmeticException if the Hessian is not positive definite even when damped
   */
  public static void prune(
      float[] w, int cols, double[] hessian, double sparsity, Pattern pattern) {
    Masks.checkSparsity(sparsity);
    pattern.check(cols);
    int rows = w.length / cols;
    for (int j = 0; j < cols; j++) {
      if (hessian[j * cols + j] == 0) {
        hessian[j * cols + j] = 1;
        for (int r = 0; r < rows; r++) {
          w[r * cols + j] = 0;
        }
      }
    }
    double[] u = inverseFactor(hessian, cols);
    double[] x = new double[w.length];
    for (int i = 0; i < w.length; i++) {
      x[i] = w[i];
    }
    for (int from = 0; from < cols; from += BLOCK) {
      int to = Math.min(cols, from + BLOCK);
      int first = from;
      double threshold = pattern.isGrouped() ? 0 : threshold(x, cols, rows, u, from, to, sparsity);
      IntStream.range(0, rows)
          .parallel()
          .forEach(r -> row(x, r * cols, cols, u, first, to, threshold, pattern));
    }
    for (int i = 0; i < w.length; i++) {
      w[i] = (float) x[i];
    }
  }

  /** The score up to which weights of a block go, all rows together; negative for none. */
  private static double threshold(
      double[] x, int cols, int rows, double[] u, int from, int to, double sparsity) {
    int width = to - from;
    double[] scores = new double[rows * width];
    for (int r = 0; r < rows; r++) {
      for (int j = from; j < to; j++) {
        scores[r * width + j - from] = score(x[r * cols + j], u[j * cols + j]);
      }
    }
    int rank = (int) (scores.length * sparsity);
    if (rank == 0) {
      return -1;
    }
    Arrays.parallelSort(scores);
    return scores[Math.min(rank, scores.length - 1)];
  }

  private static double score(double w, double diagonal) {
    return w * w / (diagonal * diagonal);
  }

  private static void row(
      double[] x,
      int at,
      int cols,
      double[] u,
      int from,
      int to,
      double threshold,
      Pattern pattern) {
    boolean[] goes = new boolean[to - from];
    if (!pattern.isGrouped()) {
      for (int j = from; j < to; j++) {
        goes[j - from] = score(x[at + j], u[j * cols + j]) <= threshold;
      }
    }
    double[] errors = new double[to - from];
    for (int i = from; i < to; i++) {
      if (pattern.isGrouped() && i % pattern.group() == 0) {
        group(x, at, cols, u, i, from, pattern, goes);
      }
      if (!goes[i - from]) {
        continue;
      }
      double error = x[at + i] / u[i * cols + i];
      errors[i - from] = error;
      x[at + i] = 0;
      for (int j = i + 1; j < to; j++) {
        x[at + j] -= error * u[i * cols + j];
      }
    }
    for (int i = from; i < to; i++) {
      double error = errors[i - from];
      if (error != 0) {
        for (int j = to; j < cols; j++) {
          x[at + j] -= error * u[i * cols + j];
        }
      }
    }
  }

  /** Chooses in a group that begins at column i, on the weights as they are by now. */
  private static void group(
      double[] x, int at, int cols, double[] u, int i, int from, Pattern pattern, boolean[] goes) {
    for (int k = 0; k < pattern.group() - pattern.keep(); k++) {
      int least = -1;
      double leastScore = Double.POSITIVE_INFINITY;
      for (int j = i; j < i + pattern.group(); j++) {
        double score = score(x[at + j], u[j * cols + j]);
        if (!goes[j - from] && (least < 0 || score < leastScore)) {
          least = j;
          leastScore = score;
        }
      }
      goes[least - from] = true;
    }
  }

  /** The upper triangular U with {@code U^T U} the inverse of the damped matrix, in its memory. */
  static double[] inverseFactor(double[] h, int n) {
    double mean = 0;
    for (int i = 0; i < n; i++) {
      mean += h[i * n + i] / n;
    }
    for (int i = 0; i < n; i++) {
      h[i * n + i] += DAMPING * mean;
    }
    choleskyUpper(h, n);
    invertUpper(h, n);
    // H = R^T R, so its inverse is V V^T with V = R^-1, of which the upper factor is wanted.
    double[] inverse = new double[n * n];
    IntStream.range(0, n)
        .parallel()
        .forEach(i -> {
          for (int j = i; j < n; j++) {
            double sum = 0;
            for (int k = j; k < n; k++) {
              sum += h[i * n + k] * h[j * n + k];
            }
            inverse[i * n + j] = sum;
          }
        });
    choleskyUpper(inverse, n);
    return inverse;
  }

  /** Replaces the upper triangle of a symmetric matrix by R with {@code R^T R} equal to it. */
  private static void choleskyUpper(double[] a, int n) {
    for (int k = 0; k < n; k++) {
      double pivot = a[k * n + k];
      if (!(pivot > 0)) {
        throw new ArithmeticException(
            "Hessian: expected=positive definite actual=pivot " + pivot + " at column " + k);
      }
      double root = Math.sqrt(pivot);
      int row = k * n;
      a[row + k] = root;
      for (int j = k + 1; j < n; j++) {
        a[row + j] /= root;
      }
      IntStream rest = IntStream.range(k + 1, n);
      (n - k > 256 ? rest.parallel() : rest)
          .forEach(i -> {
            double f = a[row + i];
            if (f != 0) {
              for (int j = i; j < n; j++) {
                a[i * n + j] -= f * a[row + j];
              }
            }
          });
    }
  }

  /** Replaces an upper triangular matrix by its inverse. */
  private static void invertUpper(double[] r, int n) {
    double[] inverse = new double[n * n];
    IntStream.range(0, n)
        .parallel()
        .forEach(i -> {
          // Row i of the inverse V: V R = I.
          inverse[i * n + i] = 1;
          for (int k = i; k < n; k++) {
            double v = inverse[i * n + k] / r[k * n + k];
            inverse[i * n + k] = v;
            if (v != 0) {
              for (int j = k + 1; j < n; j++) {
                inverse[i * n + j] -= v * r[k * n + j];
              }
            }
          }
        });
    System.arraycopy(inverse, 0, r, 0, r.length);
  }
}
