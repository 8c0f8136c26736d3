package io.fletch.sampling;

import java.util.List;

/**
 * Judges whether the token that a small model proposes would lead astray, from the small model's
 * own logits and, for some, its hidden state (specs/autoregressive.md 4). The larger the score, the
 * more likely it should be drawn from the large model instead. Used by one thread at a time; {@link
 * #score} allocates nothing.
 */
public interface TokenRouter {
  /**
   * The score of a proposal by its logits, never negative.
   *
   * @param logits of the small model, unprocessed
   * @param vocabulary number of logits
   * @param candidate the token that the sampler chose from them
   * @throws UnsupportedOperationException if it needs hidden states
   */
  double score(float[] logits, int vocabulary, int candidate);

  /** Width of the hidden states that it reads; 0 if it goes by logits alone. */
  default int hiddenWidth() {
    return 0;
  }

  /**
   * The score of a proposal, never negative.
   *
   * @param hidden what the small model's output matrix was applied to, {@link #hiddenWidth}
   *     elements; null if that is 0
   * @see #score(float[], int, int)
   */
  default double score(float[] logits, int vocabulary, int candidate, float[] hidden) {
    return score(logits, vocabulary, candidate);
  }

  /** Weights that a score reads and activates; {@link WeightUse#NONE} if hardly any. */
  default WeightUse cost() {
    return WeightUse.NONE;
  }

  /** Name and version of what decides, for reports. */
  String name();

  /** Another one with the same parameters, for another thread. */
  TokenRouter copy();

  /**
   * Routers that must all reach a threshold of their own; the joint score does so at 1.
   *
   * @param thresholds one per router, above 0 and finite
   */
  static TokenRouter all(List<TokenRouter> routers, double... thresholds) {
    return new JointRouter(routers, thresholds);
  }

  /** Entropy of the small model's distribution in nats; published threshold 0.45. */
  static TokenRouter entropy() {
    return new SignalRouter("entropy", RouterSignals::entropy);
  }

  /**
   * Aleatoric uncertainty of the ten largest logits as the evidence of a Dirichlet distribution
   * ("LogU"); published threshold 2.275. Logits are clamped to be positive.
   */
  static TokenRouter logU() {
    return new SignalRouter("logu", RouterSignals::aleatoric);
  }
}
