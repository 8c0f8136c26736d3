package io.fletch.graph;

import java.util.Objects;

/**
 * How a mixture of experts chooses (specs diffusion 2.2, 2.3).
 *
 * <p>Scores become probabilities; the {@code used} experts with the largest ones, the lowest index
 * on ties, get weights. A bias, where there is one, is added for the choice alone. With groups,
 * experts are first limited to the {@code groupsUsed} groups of neighbours whose two best choices
 * have the largest sum.
 *
 * @param experts number of experts
 * @param used experts that each row runs
 * @param scoring how scores become probabilities
 * @param normalize whether the weights of a row are divided by their sum
 * @param scale factor on the weights
 * @param groups groups of {@code experts / groups} neighbours; 1 for no groups
 * @param groupsUsed groups that are kept
 */
public record RouteSpec(
    int experts,
    int used,
    Scoring scoring,
    boolean normalize,
    float scale,
    int groups,
    int groupsUsed) {
  /** Most groups. */
  public static final int MAX_GROUPS = 64;

  /** From scores to probabilities. */
  public enum Scoring {
    /** Over all experts. */
    SOFTMAX,
    /** Each by itself. */
    SIGMOID
  }

  /** Checks the ranges. */
  public RouteSpec {
    Objects.requireNonNull(scoring, "scoring");
    if (groups < 1
        || groups > MAX_GROUPS
        || experts < 1
        || experts % groups != 0
        || groupsUsed < 1
        || groupsUsed > groups) {
      throw new IllegalArgumentException(
          "groups: expected in [1, "
              + MAX_GROUPS
              + "], dividing experts="
              + experts
              + ", actual groups="
              + groups
              + " groupsUsed="
              + groupsUsed);
    }
    if (used < 1 || used > experts / groups * groupsUsed) {
      throw new IllegalArgumentException(
          "used experts: expected in [1, "
              + experts / groups * groupsUsed
              + "] actual="
              + used
              + " experts="
              + experts);
    }
    if (!Float.isFinite(scale)) {
      throw new IllegalArgumentException("scale: expected=finite actual=" + scale);
    }
  }

  /** Softmax over all experts, without groups or bias. */
  public static RouteSpec softmax(int experts, int used, boolean normalize) {
    return new RouteSpec(experts, used, Scoring.SOFTMAX, normalize, 1, 1, 1);
  }

  /**
   * Floats of a row of routing: {@code used} weights, {@code used} indices of experts (exact, being
   * small integers), and {@code experts} values that the choice was made by.
   */
  public int width() {
    return 2 * used + experts;
  }
}
