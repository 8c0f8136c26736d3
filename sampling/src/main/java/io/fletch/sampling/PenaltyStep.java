package io.fletch.sampling;

import io.fletch.sampling.support.Ranges;

/**
 * Repetition, frequency and presence penalties (see {@link SamplerStep#penalties}). Holds one
 * counter per id, all zero between calls.
 */
final class PenaltyStep implements SamplerStep {
  private final float repetition;
  private final float frequency;
  private final float presence;
  private final int window;
  private final int[] counts;

  PenaltyStep(int vocabulary, float repetition, float frequency, float presence, int window) {
    Ranges.check("repetition", repetition, repetition > 0, "positive");
    Ranges.check("window", window, window >= -1, ">= -1");
    this.repetition = repetition;
    this.frequency = frequency;
    this.presence = presence;
    this.window = window;
    counts = new int[vocabulary];
  }

  @Override
  public void apply(TokenCandidates candidates, TokenHistory history) {
    int to = history.length();
    int from = window < 0 ? 0 : Math.max(0, to - window);
    int[] tokens = history.array();
    for (int i = from; i < to; i++) {
      counts[tokens[i]]++;
    }
    for (int i = from; i < to; i++) {
      int token = tokens[i];
      int count = counts[token];
      if (count == 0) {
        continue;
      }
      counts[token] = 0;
      int index = candidates.indexOf(token);
      if (index >= 0) {
        float l = candidates.logit(index);
        l = l > 0 ? l / repetition : l * repetition;
        candidates.logit(index, l - frequency * count - presence);
      }
    }
  }
}
