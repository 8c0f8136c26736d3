package io.fletch.sampling;

import java.util.Objects;

/**
 * A large model behind a small one (R2R, specs/autoregressive.md 4): the small model proposes every
 * token; where the router's score reaches the threshold, the token is drawn from the large model
 * instead, whose cache catches up with all tokens that it missed in one call.
 *
 * @param large has the vocabulary of the small model
 * @param threshold 0 routes every token, positive infinity none
 * @param hold after a routed token the large model goes on until the mean of so many latest scores
 *     is below the threshold too; 0 to judge every token by itself
 */
public record TokenRouting(CausalForward large, TokenRouter router, double threshold, int hold) {
  /** The longest that scores are remembered. */
  public static final int MOST_HOLD = 1024;

  /** Checks ranges. */
  public TokenRouting {
    Objects.requireNonNull(large, "large");
    Objects.requireNonNull(router, "router");
    if (!(threshold >= 0)) {
      throw new IllegalArgumentException("threshold: expected>=0 actual=" + threshold);
    }
    if (hold < 0 || hold > MOST_HOLD) {
      throw new IllegalArgumentException("hold: expected=[0, " + MOST_HOLD + "] actual=" + hold);
    }
  }

  /** Every token is judged by itself. */
  public TokenRouting(CausalForward large, TokenRouter router, double threshold) {
    this(large, router, threshold, 0);
  }
}
