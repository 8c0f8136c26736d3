package io.fletch.quant.prune;

import java.util.Arrays;
import java.util.Optional;
import java.util.stream.IntStream;

/**
 * What calibration learns about the input of a linear layer (specs weights 4.1): number of rows,
 * sums and sums of squares per channel, and where asked for the matrix {@code sum x x^T}. Sums are
 * doubles; rows are added in the order they come, whatever the number of threads. Filled by one
 * thread, then read by any.
 */
public final class InputStatistics {
  private final int channels;
  private final double[] sums;
  private final double[] squares;
  private final double[] gram;
  private long rows;

  /**
   * Empty statistics.
   *
   * @param gram whether the matrix is wanted: {@code channels^2} doubles
   */
  public InputStatistics(int channels, boolean gram) {
    this.channels = channels;
    this.sums = new double[channels];
    this.squares = new double[channels];
    this.gram = gram ? new double[Math.multiplyExact(channels, channels)] : null;
  }

  /** Adds {@code count} rows of {@code channels} elements. */
  public void add(float[] x, int count) {
    for (int r = 0; r < count; r++) {
      for (int j = 0; j < channels; j++) {
        float v = x[r * channels + j];
        sums[j] += v;
        squares[j] += (double) v * v;
      }
    }
    rows += count;
    if (gram != null) {
      float[][] parts = new float[count][];
      for (int r = 0; r < count; r++) {
        parts[r] = Arrays.copyOfRange(x, r * channels, (r + 1) * channels);
      }
      IntStream.range(0, channels).parallel().forEach(i -> addRow(parts, i));
    }
  }

  /** Row i of the upper triangle. Floats within the rows of one call, doubles across calls. */
  private void addRow(float[][] x, int i) {
    float[] sum = new float[channels];
    for (float[] row : x) {
      float a = row[i];
      if (a != 0) {
        // Arrays with the same index: the compiler makes vectors of this.
        for (int j = i; j < channels; j++) {
          sum[j] += a * row[j];
        }
      }
    }
    for (int j = i; j < channels; j++) {
      gram[i * channels + j] += sum[j];
    }
  }

  /** Elements of a row. */
  public int channels() {
    return channels;
  }

  /** Rows seen. */
  public long rows() {
    return rows;
  }

  /** Norm of each channel over all rows divided by the root of their number. */
  public double[] norms() {
    double[] norms = new double[channels];
    for (int j = 0; j < channels; j++) {
      norms[j] = Math.sqrt(squares[j] / Math.max(1, rows));
    }
    return norms;
  }

  /** Mean square of each channel. */
  public float[] meanSquares() {
    float[] means = new float[channels];
    for (int j = 0; j < channels; j++) {
      means[j] = (float) (squares[j] / Math.max(1, rows));
    }
    return means;
  }

  /** Mean of each channel. */
  public double[] means() {
    return Arrays.stream(sums).map(s -> s / Math.max(1, rows)).toArray();
  }

  /** Variance of each channel, divided by the number of rows; never negative. */
  public double[] variances() {
    double[] result = new double[channels];
    for (int j = 0; j < channels; j++) {
      double mean = sums[j] / Math.max(1, rows);
      result[j] = Math.max(0, squares[j] / Math.max(1, rows) - mean * mean);
    }
    return result;
  }

  /** {@code 2/n sum x x^T}, row-major and full, if it was collected. A copy. */
  public Optional<double[]> hessian() {
    if (gram == null) {
      return Optional.empty();
    }
    double[] h = new double[gram.length];
    double factor = 2.0 / Math.max(1, rows);
    for (int i = 0; i < channels; i++) {
      for (int j = i; j < channels; j++) {
        h[i * channels + j] = factor * gram[i * channels + j];
        h[j * channels + i] = h[i * channels + j];
      }
    }
    return Optional.of(h);
  }

  /**
   * Mean over the rows seen of {@code |(a - b) x|^2 / |a x|^2}: the relative error of the outputs,
   * exact, from the matrix; without the matrix from the channels' squares alone, as if channels
   * were independent.
   *
   * @param a rows of {@code channels} elements
   */
  public double relativeError(float[] a, float[] b) {
    int out = a.length / channels;
    double[] error = new double[out];
    double[] whole = new double[out];
    IntStream.range(0, out)
        .parallel()
        .forEach(o -> {
          double[] d = new double[channels];
          double[] w = new double[channels];
          for (int j = 0; j < channels; j++) {
            w[j] = a[o * channels + j];
            d[j] = w[j] - b[o * channels + j];
          }
          error[o] = energy(d);
          whole[o] = energy(w);
        });
    double total = Arrays.stream(whole).sum();
    return total == 0 ? 0 : Arrays.stream(error).sum() / total;
  }

  private double energy(double[] w) {
    double sum = 0;
    for (int i = 0; i < channels; i++) {
      if (w[i] == 0) {
        continue;
      }
      if (gram == null) {
        sum += w[i] * w[i] * squares[i];
        continue;
      }
      double row = w[i] * gram[i * channels + i];
      for (int j = i + 1; j < channels; j++) {
        row += 2 * w[j] * gram[i * channels + j];
      }
      sum += w[i] * row;
    }
    return Math.max(0, sum);
  }
}
