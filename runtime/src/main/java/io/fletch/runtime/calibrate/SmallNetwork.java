package io.fletch.runtime.calibrate;

import io.fletch.graph.Activation;
import java.util.Arrays;
import java.util.Optional;
import java.util.SplittableRandom;

/**
 * A network of one or two layers, {@code W2 act(W1 x + b1) + b2} or {@code W2 x + b2}, and its
 * training by AdamW on mini-batches (specs autoregressive 3). Float32 on the heap; used by one
 * thread, and the same seed gives the same weights.
 */
final class SmallNetwork {
  /** What is minimised. */
  enum Loss {
    /** Mean over elements of the Huber loss with a bend at 1. */
    SMOOTH_L1,
    /** Of a softmax over the results; targets are probabilities. */
    CROSS_ENTROPY
  }

  /**
   * How it is trained.
   *
   * @param steps mini-batches
   * @param batch rows of each
   * @param rate learning rate at the start
   * @param cosine whether it falls to 0 along a cosine
   * @param decay of the weights, per unit of learning rate
   * @param clip largest norm of a gradient
   */
  record Schedule(int steps, int batch, double rate, boolean cosine, double decay, double clip) {}

  private static final double BETA1 = 0.9;
  private static final double BETA2 = 0.999;
  private static final double EPS = 1e-8;

  private final int in;
  private final int hidden;
  private final int out;
  private final Optional<Activation> activation;

  /** {@code [in, hidden]}: the transpose of W1; empty without a hidden layer. */
  final float[] first;

  final float[] firstBias;

  /** {@code [hidden, out]}, or {@code [in, out]}: the transpose of W2. */
  final float[] second;

  final float[] secondBias;

  /**
   * All zeros.
   *
   * @param hidden 0 for one layer
   * @param activation between two layers: SiLU, ReLU or none
   */
  SmallNetwork(int in, int hidden, int out, Optional<Activation> activation) {
    this.in = in;
    this.hidden = hidden;
    this.out = out;
    this.activation = activation;
    first = new float[in * hidden];
    firstBias = new float[hidden];
    second = new float[(hidden == 0 ? in : hidden) * out];
    secondBias = new float[out];
  }

  int hidden() {
    return hidden;
  }

  /** Kaiming's uniform start for layers before a ReLU; biases stay 0. */
  void randomise(long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    fill(first, Math.sqrt(6.0 / in), random);
    fill(second, Math.sqrt(3.0 / (hidden == 0 ? in : hidden)), random);
  }

  private static void fill(float[] w, double bound, SplittableRandom random) {
    for (int i = 0; i < w.length; i++) {
      w[i] = (float) ((2 * random.nextDouble() - 1) * bound);
    }
  }

  /** Holds what a row's pass computes; one per thread. */
  private final class Scratch {
    final float[] pre = new float[hidden];
    final float[] act = new float[hidden];
    final float[] y = new float[out];
    final float[] dy = new float[out];
    final float[] dact = new float[hidden];
  }

  /** Results of {@code rows} rows. */
  float[] apply(float[] x, int rows) {
    float[] y = new float[rows * out];
    Scratch s = new Scratch();
    for (int r = 0; r < rows; r++) {
      forward(x, r * in, s);
      System.arraycopy(s.y, 0, y, r * out, out);
    }
    return y;
  }

  private void forward(float[] x, int at, Scratch s) {
    if (hidden == 0) {
      times(x, at, in, second, secondBias, s.y);
      return;
    }
    times(x, at, in, first, firstBias, s.pre);
    for (int i = 0; i < hidden; i++) {
      s.act[i] = activate(s.pre[i]);
    }
    times(s.act, 0, hidden, second, secondBias, s.y);
  }

  private float activate(float z) {
    if (activation.isEmpty()) {
      return z;
    }
    return activation.get() == Activation.SILU ? (float) (z / (1 + Math.exp(-z))) : Math.max(z, 0);
  }

  private float slope(float z) {
    if (activation.isEmpty()) {
      return 1;
    }
    if (activation.get() == Activation.SILU) {
      double sigmoid = 1 / (1 + Math.exp(-z));
      return (float) (sigmoid * (1 + z * (1 - sigmoid)));
    }
    return z > 0 ? 1 : 0;
  }

  private static void times(float[] x, int at, int n, float[] w, float[] bias, float[] y) {
    int m = y.length;
    System.arraycopy(bias, 0, y, 0, m);
    for (int j = 0; j < n; j++) {
      add(y, x[at + j], w, j * m);
    }
  }

  private static void add(float[] y, float factor, float[] w, int from) {
    for (int i = 0; i < y.length; i++) {
      y[i] += factor * w[from + i];
    }
  }

  private static void outer(float[] sum, int from, float factor, float[] row) {
    for (int i = 0; i < row.length; i++) {
      sum[from + i] += factor * row[i];
    }
  }

  private static float dot(float[] w, int from, float[] x) {
    float a = 0;
    float b = 0;
    int i = 0;
    for (; i + 2 <= x.length; i += 2) {
      a += w[from + i] * x[i];
      b += w[from + i + 1] * x[i + 1];
    }
    for (; i < x.length; i++) {
      a += w[from + i] * x[i];
    }
    return a + b;
  }

  /**
   * Trains on rows, in an order that the seed gives.
   *
   * @param target as many rows of {@code out} elements
   */
  void train(float[] x, float[] target, int rows, Loss loss, Schedule schedule, long seed) {
    float[][] weights = {first, firstBias, second, secondBias};
    float[][] gradients = like(weights);
    float[][] mean = like(weights);
    float[][] square = like(weights);
    Scratch s = new Scratch();
    SplittableRandom random = new SplittableRandom(seed);
    for (int step = 0; step < schedule.steps(); step++) {
      for (float[] g : gradients) {
        Arrays.fill(g, 0);
      }
      for (int b = 0; b < schedule.batch(); b++) {
        backward(x, target, random.nextInt(rows), loss, schedule.batch(), gradients, s);
      }
      double norm = 0;
      for (float[] g : gradients) {
        for (float v : g) {
          norm += (double) v * v;
        }
      }
      double clip = Math.min(1, schedule.clip() / Math.max(Math.sqrt(norm), 1e-30));
      double rate =
          schedule.cosine()
              ? schedule.rate() * 0.5 * (1 + Math.cos(Math.PI * step / schedule.steps()))
              : schedule.rate();
      double size = rate * Math.sqrt(1 - Math.pow(BETA2, step + 1));
      size /= 1 - Math.pow(BETA1, step + 1);
      double eps = EPS * Math.sqrt(1 - Math.pow(BETA2, step + 1));
      for (int k = 0; k < weights.length; k++) {
        // Biases do not decay.
        double keep = 1 - (k % 2 == 0 ? rate * schedule.decay() : 0);
        float[] w = weights[k];
        for (int i = 0; i < w.length; i++) {
          double g = gradients[k][i] * clip;
          double m = BETA1 * mean[k][i] + (1 - BETA1) * g;
          double v = BETA2 * square[k][i] + (1 - BETA2) * g * g;
          mean[k][i] = (float) m;
          square[k][i] = (float) v;
          w[i] = (float) (w[i] * keep - size * m / (Math.sqrt(v) + eps));
        }
      }
    }
  }

  private static float[][] like(float[][] weights) {
    float[][] zeros = new float[weights.length][];
    for (int k = 0; k < zeros.length; k++) {
      zeros[k] = new float[weights[k].length];
    }
    return zeros;
  }

  private void backward(
      float[] x, float[] target, int row, Loss loss, int batch, float[][] gradients, Scratch s) {
    forward(x, row * in, s);
    if (loss == Loss.SMOOTH_L1) {
      for (int k = 0; k < out; k++) {
        float d = s.y[k] - target[row * out + k];
        s.dy[k] = Math.clamp(d, -1, 1) / (batch * out);
      }
    } else {
      double max = Double.NEGATIVE_INFINITY;
      for (float v : s.y) {
        max = Math.max(max, v);
      }
      double sum = 0;
      for (float v : s.y) {
        sum += Math.exp(v - max);
      }
      for (int k = 0; k < out; k++) {
        s.dy[k] = (float) ((Math.exp(s.y[k] - max) / sum - target[row * out + k]) / batch);
      }
    }
    outer(gradients[3], 0, 1, s.dy);
    if (hidden == 0) {
      for (int j = 0; j < in; j++) {
        outer(gradients[2], j * out, x[row * in + j], s.dy);
      }
      return;
    }
    for (int i = 0; i < hidden; i++) {
      outer(gradients[2], i * out, s.act[i], s.dy);
      s.dact[i] = dot(second, i * out, s.dy) * slope(s.pre[i]);
    }
    outer(gradients[1], 0, 1, s.dact);
    for (int j = 0; j < in; j++) {
      outer(gradients[0], j * hidden, x[row * in + j], s.dact);
    }
  }

  /** Makes the input's normalisation {@code (x - mean) / deviation} part of the first layer. */
  void foldNormalisation(double[] mean, double[] deviation) {
    float[] w = hidden == 0 ? second : first;
    float[] bias = hidden == 0 ? secondBias : firstBias;
    int m = bias.length;
    double[] shift = new double[m];
    for (int j = 0; j < in; j++) {
      for (int i = 0; i < m; i++) {
        double scaled = w[j * m + i] / deviation[j];
        w[j * m + i] = (float) scaled;
        shift[i] += scaled * mean[j];
      }
    }
    for (int i = 0; i < m; i++) {
      bias[i] = (float) (bias[i] - shift[i]);
    }
  }

  /** Row-major {@code [m, n]} of a matrix that is held as {@code [n, m]}. */
  static float[] transposed(float[] w, int n, int m) {
    float[] t = new float[w.length];
    for (int j = 0; j < n; j++) {
      for (int i = 0; i < m; i++) {
        t[i * n + j] = w[j * m + i];
      }
    }
    return t;
  }
}
