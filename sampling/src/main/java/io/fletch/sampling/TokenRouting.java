package io.fletch.sampling;

import java.util.Objects;

/**
 * A large model behind a small one (R2R, specs/autoregressive.md 4): the small model proposes every
 * token; where the router's score reaches the threshold, the token is drawn from the large model
 * instead, whose cache catches up with all tokens that it missed in one call.
 *
 * @param large has the vocabulary of the small model
 * @param threshold 0 routes every token, positive infinity none
 */
public record TokenRouting(CausalForward large, TokenRouter router, double threshold) {
  /** Checks the threshold. */
  public TokenRouting {
    Objects.requireNonNull(large, "large");
    Objects.requireNonNull(router, "router");
    if (!(threshold >= 0)) {
      throw new IllegalArgumentException("threshold: expected>=0 actual=" + threshold);
    }
  }
}
