package io.fletch.sampling;

/**
 * What a router sees of a row of logits: entropy, the largest logits, the candidate's place among
 * them. A reusable holder; nothing is allocated after construction.
 */
final class RouterSignals {
  /** Largest logits that are kept. */
  static final int TOP = 16;

  /** Logits that LogU counts as evidence. */
  private static final int EVIDENCE = 10;

  final float[] top = new float[TOP];
  int count;
  double logSumExp;
  private double entropy;
  private double logProbability;

  /** One pass for the largest logits, one for the sums. */
  void read(float[] logits, int vocabulary, int candidate) {
    count = 0;
    for (int i = 0; i < vocabulary; i++) {
      float l = logits[i];
      if (Float.isNaN(l)) {
        throw SamplingException.nan(i);
      }
      if (count < TOP || l > top[TOP - 1]) {
        insert(l);
      }
    }
    double max = top[0];
    double sum = 0;
    double weighted = 0;
    for (int i = 0; i < vocabulary; i++) {
      double d = logits[i] - max;
      double e = Math.exp(d);
      sum += e;
      weighted += e > 0 ? e * d : 0;
    }
    logSumExp = max + Math.log(sum);
    entropy = Math.log(sum) - weighted / sum;
    logProbability = logits[candidate] - logSumExp;
  }

  private void insert(float l) {
    int at = Math.min(count, TOP - 1);
    while (at > 0 && top[at - 1] < l) {
      top[at] = top[at - 1];
      at--;
    }
    top[at] = l;
    count = Math.min(TOP, count + 1);
  }

  /** Entropy of the softmax in nats. */
  double entropy() {
    return entropy;
  }

  /** Log-probability of the candidate. */
  double logProbability() {
    return logProbability;
  }

  /** Difference of the two largest logits. */
  double margin() {
    return count < 2 ? 0 : (double) top[0] - top[1];
  }

  /** LogU's aleatoric uncertainty. */
  double aleatoric() {
    double s = evidence();
    double sum = 0;
    for (int i = 0; i < Math.min(EVIDENCE, count); i++) {
      double a = positive(top[i]);
      sum -= a / s * (digamma(a + 1) - digamma(s + 1));
    }
    return sum;
  }

  /** LogU's epistemic uncertainty. */
  double epistemic() {
    return EVIDENCE / (evidence() + EVIDENCE);
  }

  private double evidence() {
    double s = 0;
    for (int i = 0; i < Math.min(EVIDENCE, count); i++) {
      s += positive(top[i]);
    }
    return s;
  }

  /** LogU takes logits for evidence, which is positive. */
  private static double positive(float logit) {
    return Math.max(logit, 1e-3);
  }

  /** Derivative of log gamma, for x > 0: recurrence up to 6, then the asymptotic series. */
  static double digamma(double x) {
    double result = 0;
    double z = x;
    while (z < 6) {
      result -= 1 / z;
      z++;
    }
    double f = 1 / (z * z);
    return result
        + Math.log(z)
        - 0.5 / z
        - f * (1.0 / 12 - f * (1.0 / 120 - f * (1.0 / 252 - f * (1.0 / 240 - f / 132))));
  }
}
