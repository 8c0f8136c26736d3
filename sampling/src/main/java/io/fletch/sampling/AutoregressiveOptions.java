package io.fletch.sampling;

import io.fletch.sampling.support.Ranges;
import java.util.Arrays;

/**
 * When an autoregressive decoder stops, and what it reports.
 *
 * @param maxTokens most tokens to generate; 0 for what the model's context still holds
 * @param stopTokens ids that end the generation; the one that does is still reported
 * @param logprobs number of alternatives to report per token; -1 for no log-probabilities at all
 */
public record AutoregressiveOptions(int maxTokens, int[] stopTokens, int logprobs) {
  /** Copies, sorts and checks. */
  public AutoregressiveOptions {
    stopTokens = stopTokens.clone();
    Arrays.sort(stopTokens);
    Ranges.check("maxTokens", maxTokens, maxTokens >= 0, ">= 0");
    Ranges.check("logprobs", logprobs, logprobs >= -1, ">= -1");
  }

  /** The stop tokens, ascending; a copy. */
  @Override
  public int[] stopTokens() {
    return stopTokens.clone();
  }

  boolean stops(int token) {
    return Arrays.binarySearch(stopTokens, token) >= 0;
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof AutoregressiveOptions o
        && maxTokens == o.maxTokens
        && logprobs == o.logprobs
        && Arrays.equals(stopTokens, o.stopTokens);
  }

  @Override
  public int hashCode() {
    return (31 * maxTokens + logprobs) * 31 + Arrays.hashCode(stopTokens);
  }

  @Override
  public String toString() {
    return "AutoregressiveOptions[maxTokens="
        + maxTokens
        + ", stopTokens="
        + Arrays.toString(stopTokens)
        + ", logprobs="
        + logprobs
        + "]";
  }
}
