package io.fletch.sampling;

/**
 * Judges whether the token that a small model proposes would lead astray, from the small model's
 * own logits (specs/autoregressive.md 4). The larger the score, the more likely it should be drawn
 * from the large model instead. Used by one thread at a time; {@link #score} allocates nothing.
 */
public interface TokenRouter {
  /**
   * The score of a proposal, never negative.
   *
   * @param logits of the small model, unprocessed
   * @param vocabulary number of logits
   * @param candidate the token that the sampler chose from them
   */
  double score(float[] logits, int vocabulary, int candidate);

  /** Name and version of what decides, for reports. */
  String name();

  /** Another one with the same parameters, for another thread. */
  TokenRouter copy();

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
