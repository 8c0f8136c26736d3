package io.fletch.runtime.calibrate;

import java.util.Arrays;
import java.util.SplittableRandom;
import java.util.stream.IntStream;

/**
 * Linear regression of rank r with a ridge, in closed form (specs autoregressive 3, pure-Java
 * calibration). With {@code X} and {@code Y} centred and {@code G = X'X + lambda I = L L'}, the
 * optimum is {@code G^-1 X'Y V V'}, where {@code V} are the first eigenvectors of {@code Z'Z},
 * {@code Z = L^-1 X'Y}. All in double; only sums over the rows are kept: {@code (in + out) in}
 * elements. Used by one thread; the work inside is spread over the common pool, and no result
 * depends on how.
 */
public final class ReducedRankRidge {
  private static final int OVERSAMPLE = 16;
  private static final int MOST_ITERATIONS = 300;

  private final int in;
  private final int out;
  private final double[] sumX;
  private final double[] sumY;

  /** Row i: sums of x_i x_j, then of x_i y_k. */
  private final double[][] moments;

  private double squaresY;
  private long rows;

  /**
   * {@code y = up (down x) + bias}, which minimises the squared error plus ridge.
   *
   * @param down {@code [rank, in]}, row-major
   * @param downBias {@code [rank]}: the inputs' mean is taken off
   * @param up {@code [out, rank]}, row-major
   * @param upBias {@code [out]}: the results' mean
   * @param objective squared error plus ridge, summed over rows and elements, at the optimum
   */
  public record Solution(
      int rank, double[] down, double[] downBias, double[] up, double[] upBias, double objective) {}

  /** Nothing is summed up yet. */
  public ReducedRankRidge(int in, int out) {
    if (in < 1 || out < 1) {
      throw new IllegalArgumentException("widths: expected>=1 actual in=" + in + " out=" + out);
    }
    this.in = in;
    this.out = out;
    sumX = new double[in];
    sumY = new double[out];
    moments = new double[in][in + out];
  }

  /** Rows so far. */
  public long rows() {
    return rows;
  }

  /**
   * Adds rows.
   *
   * @param x {@code count} rows of inputs
   * @param y as many of results
   */
  public void add(float[] x, float[] y, int count) {
    if (x.length < (long) count * in || y.length < (long) count * out) {
      throw new IllegalArgumentException(
          "rows: expected=" + count + " actual x=" + x.length / in + " y=" + y.length / out);
    }
    int width = in + out;
    double[][] both = new double[count][width];
    for (int r = 0; r < count; r++) {
      for (int i = 0; i < in; i++) {
        both[r][i] = x[r * in + i];
        sumX[i] += x[r * in + i];
      }
      for (int k = 0; k < out; k++) {
        double v = y[r * out + k];
        both[r][in + k] = v;
        sumY[k] += v;
        squaresY += v * v;
      }
    }
    IntStream.range(0, in).parallel().forEach(i -> accumulate(moments[i], both, i));
    rows += count;
  }

  /** Four rows at a time; the elements of an inner loop lie side by side. */
  private static void accumulate(double[] sum, double[][] both, int i) {
    int width = sum.length;
    int r = 0;
    for (; r + 4 <= both.length; r += 4) {
      double[] p = both[r];
      double[] q = both[r + 1];
      double[] s = both[r + 2];
      double[] t = both[r + 3];
      double a = p[i];
      double b = q[i];
      double c = s[i];
      double d = t[i];
      for (int j = 0; j < width; j++) {
        sum[j] += a * p[j] + b * q[j] + c * s[j] + d * t[j];
      }
    }
    for (; r < both.length; r++) {
      double[] p = both[r];
      double a = p[i];
      for (int j = 0; j < width; j++) {
        sum[j] += a * p[j];
      }
    }
  }

  /**
   * Mean of the squares of an input's centred elements: what a ridge is given as a share of.
   *
   * @throws IllegalStateException without rows
   */
  public double inputVariance() {
    checkRows();
    double trace = 0;
    for (int i = 0; i < in; i++) {
      trace += moments[i][i] - sumX[i] * sumX[i] / rows;
    }
    return Math.max(0, trace) / rows / in;
  }

  /** Sum of the squares of the centred results. */
  public double resultSquares() {
    checkRows();
    double squares = squaresY;
    for (double s : sumY) {
      squares -= s * s / rows;
    }
    return Math.max(0, squares);
  }

  private void checkRows() {
    if (rows == 0) {
      throw new IllegalStateException("nothing was added");
    }
  }

  /**
   * Solves.
   *
   * @param rank at most; fewer where a matrix is smaller
   * @param ridge share of the mean square of an input's elements, times the rows, that is added to
   *     the diagonal; above 0
   */
  public Solution solve(int rank, double ridge) {
    checkRows();
    if (rank < 1 || !(ridge > 0)) {
      throw new IllegalArgumentException("expected rank>=1, ridge>0: " + rank + ", " + ridge);
    }
    int r = Math.min(rank, Math.min(in, out));
    // An input that never changes has no variance: any positive number keeps the matrix regular.
    double lambda = Math.max(ridge * inputVariance() * rows, Double.MIN_NORMAL * 0x1p100);
    double[][] l = new double[in][in];
    double[][] z = new double[in][out];
    for (int i = 0; i < in; i++) {
      for (int j = 0; j <= i; j++) {
        l[i][j] = moments[i][j] - sumX[i] * sumX[j] / rows;
      }
      l[i][i] += lambda;
      for (int k = 0; k < out; k++) {
        z[i][k] = moments[i][in + k] - sumX[i] * sumY[k] / rows;
      }
    }
    choleskyAndForward(l, z);
    double[][] v = leading(z, r);
    // Back substitution: L' W = Z V.
    double[][] w = product(z, v, r);
    for (int i = in - 1; i >= 0; i--) {
      double[] row = w[i];
      for (int c = 0; c < r; c++) {
        row[c] /= l[i][i];
      }
      for (int j = 0; j < i; j++) {
        double f = l[i][j];
        for (int c = 0; c < r; c++) {
          w[j][c] -= f * row[c];
        }
      }
    }
    double[] down = new double[r * in];
    double[] downBias = new double[r];
    double[] up = new double[out * r];
    double[] upBias = new double[out];
    for (int c = 0; c < r; c++) {
      for (int i = 0; i < in; i++) {
        down[c * in + i] = w[i][c];
        downBias[c] -= w[i][c] * sumX[i] / rows;
      }
      for (int k = 0; k < out; k++) {
        up[k * r + c] = v[c][k];
      }
    }
    for (int k = 0; k < out; k++) {
      upBias[k] = sumY[k] / rows;
    }
    double explained = 0;
    for (double[] row : product(z, v, r)) {
      for (double x : row) {
        explained += x * x;
      }
    }
    return new Solution(r, down, downBias, up, upBias, resultSquares() - explained);
  }

  /** {@code L} in place of the matrix, {@code L^-1 Z} in place of Z. */
  private static void choleskyAndForward(double[][] a, double[][] z) {
    int n = a.length;
    for (int p = 0; p < n; p++) {
      int pivot = p;
      double root = Math.sqrt(Math.max(a[p][p], Double.MIN_NORMAL));
      a[p][p] = root;
      double[] zp = z[p];
      for (int k = 0; k < zp.length; k++) {
        zp[k] /= root;
      }
      for (int i = p + 1; i < n; i++) {
        a[i][p] /= root;
      }
      double[] column = new double[n];
      for (int i = p + 1; i < n; i++) {
        column[i] = a[i][p];
      }
      IntStream rest = IntStream.range(p + 1, n);
      (n - p > 256 ? rest.parallel() : rest)
          .forEach(i -> {
            double f = column[i];
            double[] row = a[i];
            for (int j = pivot + 1; j <= i; j++) {
              row[j] -= f * column[j];
            }
            double[] zi = z[i];
            for (int k = 0; k < zi.length; k++) {
              zi[k] -= f * zp[k];
            }
          });
    }
  }

  /** {@code Z V'}: element c of row i is {@code z_i . v_c}. */
  private static double[][] product(double[][] z, double[][] v, int count) {
    double[][] y = new double[z.length][count];
    IntStream.range(0, z.length)
        .parallel()
        .forEach(i -> {
          for (int c = 0; c < count; c++) {
            y[i][c] = dot(z[i], v[c]);
          }
        });
    return y;
  }

  private static double dot(double[] a, double[] b) {
    double s0 = 0;
    double s1 = 0;
    double s2 = 0;
    double s3 = 0;
    int j = 0;
    for (; j + 4 <= a.length; j += 4) {
      s0 += a[j] * b[j];
      s1 += a[j + 1] * b[j + 1];
      s2 += a[j + 2] * b[j + 2];
      s3 += a[j + 3] * b[j + 3];
    }
    for (; j < a.length; j++) {
      s0 += a[j] * b[j];
    }
    return s0 + s1 + (s2 + s3);
  }

  /** The first right singular vectors of Z, by subspace iteration on {@code Z'Z}. */
  private static double[][] leading(double[][] z, int rank) {
    int n = z[0].length;
    int k = Math.min(n, rank + OVERSAMPLE);
    SplittableRandom random = new SplittableRandom(1);
    double[][] q = new double[k][n];
    for (double[] row : q) {
      for (int j = 0; j < n; j++) {
        row[j] = random.nextDouble() - 0.5;
      }
    }
    orthonormalise(q);
    double before = -1;
    int settled = 0;
    for (int t = 0; t < MOST_ITERATIONS && settled < 3; t++) {
      double[][] zq = product(z, q, k);
      double captured = 0;
      double[][] ritz = new double[k][k];
      for (double[] row : zq) {
        for (int a = 0; a < k; a++) {
          for (int b = 0; b < k; b++) {
            ritz[a][b] += row[a] * row[b];
          }
        }
      }
      double[][] turn = eigenvectors(ritz);
      for (int a = 0; a < rank; a++) {
        captured += ritz[a][a];
      }
      q = combine(turn, q);
      settled = captured - before <= 1e-13 * Math.abs(captured) ? settled + 1 : 0;
      before = captured;
      if (k == n || settled >= 3) {
        break;
      }
      // Z' (Z q) by the turned basis.
      double[][] next = new double[k][n];
      double[][] turned = product(z, q, k);
      IntStream.range(0, k)
          .parallel()
          .forEach(c -> {
            double[] row = next[c];
            for (int i = 0; i < z.length; i++) {
              double f = turned[i][c];
              double[] zi = z[i];
              for (int j = 0; j < n; j++) {
                row[j] += f * zi[j];
              }
            }
          });
      q = next;
      orthonormalise(q);
    }
    return Arrays.copyOf(q, rank);
  }

  private static double[][] combine(double[][] turn, double[][] q) {
    int k = q.length;
    double[][] y = new double[k][q[0].length];
    for (int c = 0; c < k; c++) {
      for (int a = 0; a < k; a++) {
        double f = turn[a][c];
        for (int j = 0; j < y[c].length; j++) {
          y[c][j] += f * q[a][j];
        }
      }
    }
    return y;
  }

  /** Gram-Schmidt, twice; a row that vanishes is replaced by a unit vector that is free. */
  private static void orthonormalise(double[][] q) {
    int fallback = 0;
    for (int c = 0; c < q.length; c++) {
      double size = Math.sqrt(dot(q[c], q[c]));
      for (int pass = 0; pass < 2; pass++) {
        for (int a = 0; a < c; a++) {
          double f = dot(q[a], q[c]);
          for (int j = 0; j < q[c].length; j++) {
            q[c][j] -= f * q[a][j];
          }
        }
      }
      double left = Math.sqrt(dot(q[c], q[c]));
      if (!(left > 1e-12 * size) || left < 1e-150) {
        Arrays.fill(q[c], 0);
        q[c][fallback++ % q[c].length] = 1;
        c--;
        continue;
      }
      for (int j = 0; j < q[c].length; j++) {
        q[c][j] /= left;
      }
    }
  }

  /**
   * Jacobi rotations of a symmetric matrix, which becomes diagonal with falling values; returns the
   * eigenvectors as columns.
   */
  static double[][] eigenvectors(double[][] a) {
    int n = a.length;
    double[][] v = new double[n][n];
    for (int i = 0; i < n; i++) {
      v[i][i] = 1;
    }
    for (int sweep = 0; sweep < 60; sweep++) {
      double off = 0;
      double all = 0;
      for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) {
          all += a[i][j] * a[i][j];
          off += i == j ? 0 : a[i][j] * a[i][j];
        }
      }
      if (off <= 1e-28 * all) {
        break;
      }
      for (int p = 0; p < n; p++) {
        for (int q = p + 1; q < n; q++) {
          if (a[p][q] * a[p][q] > 1e-36 * all) {
            rotate(a, v, p, q);
          }
        }
      }
    }
    return sorted(a, v);
  }

  private static void rotate(double[][] a, double[][] v, int p, int q) {
    double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
    double t = Math.copySign(1, theta) / (Math.abs(theta) + Math.hypot(theta, 1));
    double c = 1 / Math.hypot(t, 1);
    double s = t * c;
    int n = a.length;
    for (int i = 0; i < n; i++) {
      double x = a[i][p];
      double y = a[i][q];
      a[i][p] = c * x - s * y;
      a[i][q] = s * x + c * y;
    }
    for (int i = 0; i < n; i++) {
      double x = a[p][i];
      double y = a[q][i];
      a[p][i] = c * x - s * y;
      a[q][i] = s * x + c * y;
      double vx = v[i][p];
      double vy = v[i][q];
      v[i][p] = c * vx - s * vy;
      v[i][q] = s * vx + c * vy;
    }
  }

  private static double[][] sorted(double[][] a, double[][] v) {
    int n = a.length;
    Integer[] order = new Integer[n];
    double[] values = new double[n];
    for (int i = 0; i < n; i++) {
      order[i] = i;
      values[i] = a[i][i];
    }
    Arrays.sort(order, (x, y) -> Double.compare(values[y], values[x]));
    double[][] turned = new double[n][n];
    for (int i = 0; i < n; i++) {
      for (int j = 0; j < n; j++) {
        turned[j][i] = v[j][order[i]];
      }
    }
    for (int i = 0; i < n; i++) {
      Arrays.fill(a[i], 0);
      a[i][i] = values[order[i]];
    }
    return turned;
  }
}
