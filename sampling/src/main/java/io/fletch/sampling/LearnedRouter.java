package io.fletch.sampling;

/**
 * A logistic regression on what the small model's logits say and on which token it proposes
 * (specs/autoregressive.md 4, model ladder (a)): entropy, margin, LogU, log-probability, the 16
 * largest logits below the largest, and a weight per token, tokens sharing {@link #BUCKETS} of
 * them; if it reads hidden states, also {@link #PROJECTIONS} random projections of the state's
 * direction. The score is the probability that the proposal diverges. Immutable weights; the
 * scratch belongs to one thread.
 */
public final class LearnedRouter implements TokenRouter {
  /** Dense features. */
  static final int DENSE = 5 + RouterSignals.TOP - 1;

  /** Weights that tokens share, by id. */
  static final int BUCKETS = 2048;

  /** Number of weights: dense ones, those of tokens, the constant. */
  public static final int WEIGHTS = DENSE + BUCKETS + 1;

  /** Random projections of a hidden state; their weights follow the others. */
  public static final int PROJECTIONS = 64;

  private final float[] weights;
  private final HiddenProjections projections;
  private final double[] projected;
  private final RouterSignals signals = new RouterSignals();
  private final double[] dense = new double[DENSE];

  /**
   * A router with these weights.
   *
   * @throws IllegalArgumentException unless there are {@link #WEIGHTS} finite ones
   */
  public LearnedRouter(float[] weights) {
    this(weights, 0);
  }

  /**
   * A router with these weights.
   *
   * @param hiddenWidth of the hidden states that it reads; 0 for none
   * @throws IllegalArgumentException unless there are {@link #weights(int)} finite ones
   */
  public LearnedRouter(float[] weights, int hiddenWidth) {
    this(
        weights.clone(), hiddenWidth == 0 ? null : new HiddenProjections(hiddenWidth, PROJECTIONS));
  }

  private LearnedRouter(float[] weights, HiddenProjections projections) {
    int expected = weights(projections == null ? 0 : projections.width());
    if (weights.length != expected) {
      throw new IllegalArgumentException(
          "weights of a router: expected=" + expected + " actual=" + weights.length);
    }
    for (int i = 0; i < weights.length; i++) {
      if (!Float.isFinite(weights[i])) {
        throw new IllegalArgumentException("weight " + i + " of a router: " + weights[i]);
      }
    }
    this.weights = weights;
    this.projections = projections;
    projected = projections == null ? null : new double[PROJECTIONS];
  }

  /** Number of weights of a router that reads hidden states of a width, or none if that is 0. */
  public static int weights(int hiddenWidth) {
    return hiddenWidth == 0 ? WEIGHTS : WEIGHTS + PROJECTIONS;
  }

  /** The weights; a copy. */
  public float[] weights() {
    return weights.clone();
  }

  @Override
  public int hiddenWidth() {
    return projections == null ? 0 : projections.width();
  }

  @Override
  public double score(float[] logits, int vocabulary, int candidate) {
    return score(logits, vocabulary, candidate, null);
  }

  @Override
  public double score(float[] logits, int vocabulary, int candidate, float[] hidden) {
    features(signals, logits, vocabulary, candidate, dense);
    double z = weights[WEIGHTS - 1] + weights[DENSE + bucket(candidate)];
    for (int i = 0; i < DENSE; i++) {
      z += weights[i] * dense[i];
    }
    if (projections != null) {
      if (hidden == null) {
        throw new UnsupportedOperationException("this router needs hidden states");
      }
      projections.apply(hidden, projected);
      for (int i = 0; i < PROJECTIONS; i++) {
        z += weights[WEIGHTS + i] * projected[i];
      }
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
    return projections == null ? "learned" : "learned+hidden";
  }

  @Override
  public TokenRouter copy() {
    return new LearnedRouter(weights, projections);
  }
}
