package io.fletch.sampling;

/**
 * One step between a row of logits and the draw: it changes logits or removes candidates. An
 * application may add its own: the options of a generation take them, and {@link
 * Sampler#of(SamplingOptions, int, java.util.List)} does for decoders of one's own. A step must be
 * a function of its two arguments, or a run cannot be repeated; it may be applied more than once
 * for one token. Called by the decoding thread; a step with scratch memory belongs to one sampler.
 */
@FunctionalInterface
public interface SamplerStep {
  /**
   * Applies the step.
   *
   * @param candidates what may still be drawn
   * @param history tokens so far, prompt included
   */
  void apply(TokenCandidates candidates, TokenHistory history);

  /**
   * Penalties on tokens among the latest {@code window} of the history (-1 for all): a positive
   * logit is divided and a negative one multiplied by {@code repetition}, then {@code frequency}
   * times the number of occurrences and {@code presence} are subtracted.
   */
  static SamplerStep penalties(
      int vocabulary, float repetition, float frequency, float presence, int window) {
    return new PenaltyStep(vocabulary, repetition, frequency, presence, window);
  }

  /** Adds values to single logits. */
  static SamplerStep bias(LogitEdits edits) {
    return (candidates, history) -> {
      for (int i = 0; i < edits.size(); i++) {
        int index = candidates.indexOf(edits.id(i));
        if (index >= 0) {
          candidates.logit(index, candidates.logit(index) + edits.addend(i));
        }
      }
    };
  }

  /** Divides logits by a positive temperature. */
  static SamplerStep temperature(double temperature) {
    return (candidates, history) -> candidates.scale(temperature);
  }

  /** Keeps the k most likely candidates. */
  static SamplerStep topK(int k) {
    return (candidates, history) -> candidates.keepTop(k);
  }

  /** Keeps the smallest set of candidates with probability p. */
  static SamplerStep topP(double p) {
    return (candidates, history) -> candidates.keepMass(p);
  }

  /** Keeps candidates with at least this share of the best one's probability. */
  static SamplerStep minP(double share) {
    return (candidates, history) -> candidates.keepShare(share);
  }
}
