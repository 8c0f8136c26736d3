package io.fletch;

import java.util.List;
import java.util.Objects;

/**
 * Units that rest without a reason: always, or at random. What methods that choose are measured
 * against. Applies to all tokens, those of the prompt included, unless {@code prompts} is false.
 *
 * @param layers whose units rest
 * @param unit which of the two
 * @param share probability with which one rests for a token, in [0, 1]; decided by seed, layer,
 *     position and token alone
 * @param seed of the draws
 * @param prompts whether units rest for tokens of the prompt too
 */
public record UnitDrop(List<Integer> layers, Unit unit, double share, long seed, boolean prompts)
    implements UnitPolicy {
  /** The two units of a layer. */
  public enum Unit {
    /** Attention. */
    ATTENTION,
    /** The feed-forward network. */
    FFN
  }

  /** Copies and checks. */
  public UnitDrop {
    layers = List.copyOf(layers);
    Objects.requireNonNull(unit, "unit");
    if (!(share >= 0 && share <= 1)) {
      throw new IllegalArgumentException("share: expected=[0, 1] actual=" + share);
    }
  }
}
