package io.fletch.sampling;

import java.util.Arrays;
import java.util.function.IntPredicate;

/**
 * The DRY penalty (see {@link SamplerExtras.Dry}). Repetitions of the latest tokens are found with
 * the Z function of the history read backwards, in linear time. Scratch memory grows with the
 * history and is kept.
 */
final class DryStep implements SamplerStep {
  private final SamplerExtras.Dry options;
  private final IntPredicate breaks;
  private final int[] longest;
  private int[] z = new int[256];

  /**
   * A step.
   *
   * @param breaks whether no repetition runs across a token
   */
  DryStep(int vocabulary, SamplerExtras.Dry options, IntPredicate breaks) {
    this.options = options;
    this.breaks = breaks;
    longest = new int[vocabulary];
  }

  @Override
  public void apply(TokenCandidates candidates, TokenHistory history) {
    int length = history.length();
    int n = options.lastTokens() < 0 ? length : Math.min(length, options.lastTokens());
    int[] tokens = history.array();
    int last = length - 1;
    int reach = 0;
    while (reach < n && !breaks.test(tokens[last - reach])) {
      reach++;
    }
    if (n < 2 || reach < options.allowedLength()) {
      return;
    }
    if (z.length < n) {
      z = new int[Math.max(n, 2 * z.length)];
    }
    matches(tokens, last, n);
    // The text that ends k tokens ago agrees with the latest on z[k] tokens; what came behind it
    // would go on repeating.
    for (int k = 1; k < n; k++) {
      int match = Math.min(z[k], reach);
      int next = tokens[last - k + 1];
      if (match >= options.allowedLength() && match > longest[next]) {
        longest[next] = match;
      }
    }
    for (int k = 1; k < n; k++) {
      int next = tokens[last - k + 1];
      int match = longest[next];
      longest[next] = 0;
      int index = match == 0 ? -1 : candidates.indexOf(next);
      if (index >= 0) {
        double penalty =
            options.multiplier() * Math.pow(options.base(), match - options.allowedLength());
        double value = candidates.logit(index) - penalty;
        candidates.logit(index, (float) Math.max(value, -Float.MAX_VALUE));
      }
    }
  }

  /** z[k] = how many tokens the history shares with itself k tokens earlier, read backwards. */
  private void matches(int[] tokens, int last, int n) {
    Arrays.fill(z, 0, n, 0);
    int from = 0;
    int to = 0;
    for (int k = 1; k < n; k++) {
      int m = k < to ? Math.min(to - k, z[k - from]) : 0;
      while (k + m < n && tokens[last - m] == tokens[last - k - m]) {
        m++;
      }
      z[k] = m;
      if (k + m > to) {
        from = k;
        to = k + m;
      }
    }
  }
}
