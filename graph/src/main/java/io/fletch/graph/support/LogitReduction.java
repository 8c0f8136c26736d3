package io.fletch.graph.support;

import io.fletch.graph.Batch.RowStatistics;

/**
 * Running argmax, two largest logits, log-sum-exp and entropy over chunks of a row, one pass. A
 * reusable holder; used by one thread at a time.
 *
 * <p>With m the largest logit so far it keeps s = sum exp(x - m) and t = sum (x - m) exp(x - m) in
 * double; then log-sum-exp is m + log s and the entropy log s - t / s.
 */
final class LogitReduction {
  private static final double LOG2E = 1.4426950408889634;
  private static final double LN2_HIGH = 0.6931471803691238;
  private static final double LN2_LOW = 1.9082149292705877e-10;

  private int argmax;
  private float top1;
  private float top2;
  private double max;
  private double sum;
  private double weighted;

  void start() {
    argmax = 0;
    top1 = Float.NEGATIVE_INFINITY;
    top2 = Float.NEGATIVE_INFINITY;
    max = Double.NEGATIVE_INFINITY;
    sum = 0;
    weighted = 0;
  }

  /** Adds {@code x[0 .. n)}, the logits of ids {@code first ..}. */
  void add(float[] x, int n, int first) {
    for (int i = 0; i < n; i++) {
      float v = x[i];
      if (v > top2) {
        if (v > top1) {
          top2 = top1;
          top1 = v;
          argmax = first + i;
        } else {
          top2 = v;
        }
      }
    }
    if (top1 > max) {
      rescale(top1);
    }
    double s = 0;
    double t = 0;
    double m = max;
    for (int i = 0; i < n; i++) {
      double d = x[i] - m;
      double e = exp(d);
      s += e;
      // exp underflows to 0 at -infinity, where d * e would be NaN.
      t += Math.max(d, -1e300) * e;
    }
    sum += s;
    weighted += t;
  }

  private void rescale(double next) {
    if (sum != 0) {
      double d = max - next;
      double factor = Math.exp(d);
      weighted = (weighted + d * sum) * factor;
      sum *= factor;
    }
    max = next;
  }

  void finish(RowStatistics into) {
    into.argmax = argmax;
    into.top1 = top1;
    into.top2 = top2;
    into.logSumExp = max + Math.log(sum);
    into.entropy = Math.log(sum) - weighted / sum;
  }

  /**
   * exp of a number that is not positive, to 1e-10 relative, 0 below -708, NaN for NaN. A
   * polynomial, because {@code Math.exp} would cost more than a small model's head.
   */
  static double exp(double x) {
    if (x < -708) {
      return 0;
    }
    double k = Math.rint(x * LOG2E);
    double r = (x - k * LN2_HIGH) - k * LN2_LOW;
    double p = 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1;
    p = p * r + 1;
    return p * Double.longBitsToDouble(((long) k + 1023) << 52);
  }
}
