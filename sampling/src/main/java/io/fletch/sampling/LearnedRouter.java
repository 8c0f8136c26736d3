package io.fletch.sampling;

import java.util.Objects;

/**
 * A logistic regression on what the small model's logits say and on which token it proposes
 * (specs/autoregressive.md 4, model ladder (a)): entropy, margin, LogU, log-probability, the 16
 * largest logits below the largest, and a weight per token, tokens sharing {@link #BUCKETS} of
 * them. The score is the probability that the proposal diverges. Immutable weights; the scratch
 * belongs to one thread.
 */
public final class LearnedRouter implements TokenRouter {
  /** Dense features. */
  static final int DENSE = 5 + RouterSignals.TOP - 1;

  /** Weights that tokens share, by id. */
  static final int BUCKETS = 2048;

  /** Number of weights: dense ones, those of tokens, the constant. */
  public static final int WEIGHTS = DENSE + BUCKETS + 1;

  private final float[] weights;
  private final RouterSignals signals = new RouterSignals();
  private final double[] dense = new double[DENSE];

  /**
   * A router with these weights.
   *
   * @throws IllegalArgumentException unless there are {@link #WEIGHTS} finite ones
   */
  public LearnedRouter(float[] weights) {
    Objects.requireNonNull(weights, "weights");
    if (weights.length != WEIGHTS) {
      throw new IllegalArgumentException(
          "weights of a router: expected=" + WEIGHTS + " actual=" + weights.length);
    }
    for (int i = 0; i < WEIGHTS; i++) {
      if (!Float.isFinite(weights[i])) {
        throw new IllegalArgumentException("weight " + i + " of a router: " + weights[i]);
      }
    }
    this.weights = weights.clone();
  }

  /** The weights; a copy. */
  public float[] weights() {
    return weights.clone();
  }

  @Override
  public double score(float[] logits, int vocabulary, int candidate) {
    features(signals, logits, vocabulary, candidate, dense);
    double z = weights[WEIGHTS - 1] + weights[DENSE + bucket(candidate)];
    for (int i = 0; i < DENSE; i++) {
      z += weights[i] * dense[i];
    }
    return 1 / (1 + Math.exp(-z));
  }

  static int bucket(int token) {
    return token % BUCKETS;
  }

  static void features(
      RouterSignals signals, float[] logits, int vocabulary, int candidate, double[] into) {
    signals.read(logits, vocabulary, candidate);
    into[0] = signals.entropy();
    into[1] = Math.min(signals.margin(), 20) / 5;
    into[2] = signals.aleatoric() / 2;
    into[3] = signals.epistemic();
    into[4] = Math.max(signals.logProbability(), -10) / 5;
    for (int i = 1; i < RouterSignals.TOP; i++) {
      double gap = i < signals.count ? (double) signals.top[0] - signals.top[i] : 20;
      into[4 + i] = Math.min(gap, 20) / 10;
    }
  }

  @Override
  public String name() {
    return "learned";
  }

  @Override
  public TokenRouter copy() {
    return new LearnedRouter(weights);
  }
}
