package io.fletch.quant.prune;

import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * The singular value decomposition of a matrix whose columns are weighted, as factors {@code U V}
 * of a chosen rank (specs weights 3.5). With {@code D} the weights, {@code W D = L S R'}; the
 * factors of rank k are {@code U = L_k sqrt(S_k)} and {@code V = sqrt(S_k) R_k' D^-1}. With the
 * norms of the inputs as weights {@code |(W - U V) x|^2} is least for inputs whose channels are
 * independent of each other.
 *
 * <p>By the eigenvectors of the smaller one of the two Gram matrices in double precision
 * (Householder's tridiagonal form, then implicit QL), so singular values below about 1e-7 of the
 * largest count as none. Time is cubic in the smaller side. Immutable.
 */
public final class LowRank {
  /** Most QL steps for one eigenvalue; a few suffice. */
  private static final int STEPS = 60;

  private final float[] w;
  private final int out;
  private final int in;
  private final double[] weights;

  /** Falling. */
  private final double[] values;

  /** Left singular vectors if there are fewer rows than columns, else right ones, as rows. */
  private final double[][] vectors;

  private LowRank(
      float[] w, int out, int in, double[] weights, double[] values, double[][] vectors) {
    this.w = w;
    this.out = out;
    this.in = in;
    this.weights = weights;
    this.values = values;
    this.vectors = vectors;
  }

  /**
   * Decomposes a matrix.
   *
   * @param w {@code [out, in]}, row-major; not changed, and not to be changed while this is used
   * @param norms weight of each column, at least 0; a weight below a thousandth of the largest
   *     counts as that, so that its column is not lost. Null for equal weights
   * @throws IllegalArgumentException if sizes do not fit, or an element is not finite
   */
  public static LowRank of(float[] w, int out, int in, double[] norms) {
    if (out < 1 || in < 1 || (long) out * in != w.length || norms != null && norms.length != in) {
      throw new IllegalArgumentException(
          "matrix: expected=[" + out + ", " + in + "] actual=" + w.length + " elements");
    }
    for (float x : w) {
      if (!Float.isFinite(x)) {
        throw new IllegalArgumentException("matrix: expected=finite elements actual=" + x);
      }
    }
    double[] weights = new double[in];
    double most = norms == null ? 0 : Arrays.stream(norms).max().orElse(0);
    for (int j = 0; j < in; j++) {
      weights[j] = most > 0 ? Math.max(norms[j], most * 1e-3) : 1;
    }
    boolean byRows = out < in;
    int n = Math.min(out, in);
    double[][] gram = byRows ? rows(w, out, in, weights) : columns(w, out, in, weights);
    double[] d = new double[n];
    eigen(gram, d);
    Integer[] order = IntStream.range(0, n).boxed().toArray(Integer[]::new);
    Arrays.sort(order, (a, b) -> Double.compare(d[b], d[a]));
    double[] values = new double[n];
    double[][] vectors = new double[n][n];
    double none = Math.max(0, d[order[0]]) * 1e-14;
    for (int k = 0; k < n; k++) {
      values[k] = d[order[k]] > none ? Math.sqrt(d[order[k]]) : 0;
      for (int i = 0; i < n; i++) {
        vectors[k][i] = gram[i][order[k]];
      }
    }
    return new LowRank(w, out, in, weights, values, vectors);
  }

  /** Singular values of the weighted matrix, falling. A copy. */
  public double[] singularValues() {
    return values.clone();
  }

  /** The smallest rank, at least 1, that keeps a share of the sum of squared singular values. */
  public int rankByEnergy(double share) {
    double all = Arrays.stream(values).map(v -> v * v).sum();
    double sum = 0;
    for (int k = 0; k < values.length; k++) {
      sum += values[k] * values[k];
      if (sum >= share * all) {
        return k + 1;
      }
    }
    return values.length;
  }

  /** How many singular values are above a share of the largest (WeLore), at least 1. */
  public int rankByThreshold(double share) {
    int k = 1;
    while (k < values.length && values[k] > share * values[0]) {
      k++;
    }
    return k;
  }

  /** The largest rank, at least 1, whose factors have at most that share of the elements. */
  public static int rankByRatio(int out, int in, double share) {
    long k = (long) Math.floor(share * out * in / ((double) out + in));
    return Math.clamp(k, 1, Math.min(out, in));
  }

  /**
   * Factors.
   *
   * @param u {@code [out, rank]}
   * @param v {@code [rank, in]}
   */
  public record Factors(int rank, float[] u, float[] v) {}

  /**
   * The factors of a rank.
   *
   * @throws IllegalArgumentException if it is not in {@code [1, min(out, in)]}
   */
  public Factors factors(int rank) {
    if (rank < 1 || rank > values.length) {
      throw new IllegalArgumentException(
          "rank: expected=[1, " + values.length + "] actual=" + rank);
    }
    float[] u = new float[out * rank];
    float[] v = new float[rank * in];
    boolean byRows = out < in;
    IntStream.range(0, rank)
        .parallel()
        .forEach(k -> {
          double root = Math.sqrt(values[k]);
          if (root == 0) {
            return;
          }
          double[] x = vectors[k];
          if (byRows) {
            // L is known: R' S = L' W D.
            double[] sum = new double[in];
            for (int i = 0; i < out; i++) {
              u[i * rank + k] = (float) (x[i] * root);
              for (int j = 0; j < in; j++) {
                sum[j] += x[i] * w[i * in + j];
              }
            }
            for (int j = 0; j < in; j++) {
              v[k * in + j] = (float) (sum[j] / root);
            }
          } else {
            // R is known: L S = W D R.
            for (int j = 0; j < in; j++) {
              v[k * in + j] = (float) (root * x[j] / weights[j]);
            }
            for (int i = 0; i < out; i++) {
              double sum = 0;
              for (int j = 0; j < in; j++) {
                sum += w[i * in + j] * weights[j] * x[j];
              }
              u[i * rank + k] = (float) (sum / root);
            }
          }
        });
    return new Factors(rank, u, v);
  }

  /** What factors leave of the matrix. */
  public float[] residual(Factors f) {
    float[] rest = w.clone();
    IntStream.range(0, out)
        .parallel()
        .forEach(i -> {
          double[] sum = new double[in];
          for (int k = 0; k < f.rank(); k++) {
            double a = f.u()[i * f.rank() + k];
            for (int j = 0; j < in; j++) {
              sum[j] += a * f.v()[k * in + j];
            }
          }
          for (int j = 0; j < in; j++) {
            rest[i * in + j] -= (float) sum[j];
          }
        });
    return rest;
  }

  private static double[][] rows(float[] w, int out, int in, double[] weights) {
    double[][] g = new double[out][out];
    IntStream.range(0, out)
        .parallel()
        .forEach(a -> {
          for (int b = 0; b <= a; b++) {
            double sum = 0;
            for (int j = 0; j < in; j++) {
              double d = weights[j] * weights[j];
              sum += w[a * in + j] * d * w[b * in + j];
            }
            g[a][b] = sum;
          }
        });
    return full(g);
  }

  private static double[][] columns(float[] w, int out, int in, double[] weights) {
    double[][] g = new double[in][in];
    IntStream.range(0, in)
        .parallel()
        .forEach(a -> {
          double[] sum = g[a];
          for (int i = 0; i < out; i++) {
            double x = w[i * in + a] * weights[a];
            for (int b = 0; b <= a; b++) {
              sum[b] += x * w[i * in + b];
            }
          }
          for (int b = 0; b <= a; b++) {
            sum[b] *= weights[b];
          }
        });
    return full(g);
  }

  private static double[][] full(double[][] lower) {
    for (int a = 0; a < lower.length; a++) {
      for (int b = 0; b < a; b++) {
        lower[b][a] = lower[a][b];
      }
    }
    return lower;
  }

  /** Eigenvalues of a symmetric matrix into {@code d}; its columns become the eigenvectors. */
  static void eigen(double[][] a, double[] d) {
    double[] e = new double[d.length];
    tridiagonal(a, d, e);
    ql(a, d, e);
  }

  /** Householder reflections, from the last row to the second; {@code a} becomes their product. */
  private static void tridiagonal(double[][] a, double[] d, double[] e) {
    int n = d.length;
    for (int i = n - 1; i > 0; i--) {
      double scale = 0;
      for (int k = 0; k < i; k++) {
        scale += Math.abs(a[i][k]);
      }
      double h = 0;
      if (i == 1 || scale == 0) {
        e[i] = a[i][i - 1];
      } else {
        for (int k = 0; k < i; k++) {
          a[i][k] /= scale;
          h += a[i][k] * a[i][k];
        }
        double f = a[i][i - 1];
        double g = f > 0 ? -Math.sqrt(h) : Math.sqrt(h);
        e[i] = scale * g;
        h -= f * g;
        a[i][i - 1] = f - g;
        // p = A u / h, with the lower triangle alone.
        double[] p = new double[i];
        for (int j = 0; j < i; j++) {
          double u = a[i][j];
          double sum = a[j][j] * u;
          for (int k = 0; k < j; k++) {
            sum += a[j][k] * a[i][k];
            p[k] += a[j][k] * u;
          }
          p[j] += sum;
        }
        double up = 0;
        for (int j = 0; j < i; j++) {
          p[j] /= h;
          up += p[j] * a[i][j];
        }
        double half = up / (h + h);
        for (int j = 0; j < i; j++) {
          p[j] -= half * a[i][j];
        }
        for (int j = 0; j < i; j++) {
          double u = a[i][j];
          for (int k = 0; k <= j; k++) {
            a[j][k] -= u * p[k] + p[j] * a[i][k];
          }
        }
      }
      d[i] = h;
    }
    d[0] = 0;
    e[0] = 0;
    for (int i = 0; i < n; i++) {
      if (d[i] != 0) {
        // The product so far times the reflection of row i.
        double[] g = new double[i];
        for (int k = 0; k < i; k++) {
          for (int j = 0; j < i; j++) {
            g[j] += a[i][k] * a[k][j];
          }
        }
        for (int k = 0; k < i; k++) {
          double u = a[i][k] / d[i];
          for (int j = 0; j < i; j++) {
            a[k][j] -= g[j] * u;
          }
        }
      }
      d[i] = a[i][i];
      a[i][i] = 1;
      for (int j = 0; j < i; j++) {
        a[j][i] = 0;
        a[i][j] = 0;
      }
    }
  }

  private static void ql(double[][] z, double[] d, double[] e) {
    int n = d.length;
    // Rows of the transpose are contiguous where a rotation needs two columns.
    double[][] t = transposed(z);
    System.arraycopy(e, 1, e, 0, n - 1);
    e[n - 1] = 0;
    for (int l = 0; l < n; l++) {
      for (int step = 0; ; step++) {
        int m = l;
        while (m < n - 1) {
          double size = Math.abs(d[m]) + Math.abs(d[m + 1]);
          if (Math.abs(e[m]) <= Math.ulp(size)) {
            break;
          }
          m++;
        }
        if (m == l) {
          break;
        }
        if (step == STEPS) {
          throw new ArithmeticException("eigenvalues do not converge");
        }
        double g = (d[l + 1] - d[l]) / (2 * e[l]);
        double r = Math.hypot(g, 1);
        g = d[m] - d[l] + e[l] / (g + Math.copySign(r, g));
        double s = 1;
        double c = 1;
        double p = 0;
        int i = m - 1;
        for (; i >= l; i--) {
          double f = s * e[i];
          double b = c * e[i];
          r = Math.hypot(f, g);
          e[i + 1] = r;
          if (r == 0) {
            d[i + 1] -= p;
            e[m] = 0;
            break;
          }
          s = f / r;
          c = g / r;
          g = d[i + 1] - p;
          r = (d[i] - g) * s + 2 * c * b;
          p = s * r;
          d[i + 1] = g + p;
          g = c * r - b;
          double[] x = t[i];
          double[] y = t[i + 1];
          for (int k = 0; k < n; k++) {
            double v = y[k];
            y[k] = s * x[k] + c * v;
            x[k] = c * x[k] - s * v;
          }
        }
        if (r == 0 && i >= l) {
          continue;
        }
        d[l] -= p;
        e[l] = g;
        e[m] = 0;
      }
    }
    for (int i = 0; i < n; i++) {
      for (int k = 0; k < n; k++) {
        z[k][i] = t[i][k];
      }
    }
  }

  private static double[][] transposed(double[][] a) {
    int n = a.length;
    double[][] t = new double[n][n];
    for (int i = 0; i < n; i++) {
      for (int k = 0; k < n; k++) {
        t[k][i] = a[i][k];
      }
    }
    return t;
  }
}
