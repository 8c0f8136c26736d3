package io.fletch.sampling;

import java.util.Objects;

/**
 * Which masked positions a step commits: exactly one per run. Options only; the rules are in the
 * {@code ...Policy} classes.
 */
public sealed interface Transfer {
  /** In which order a {@link Schedule} fills a block. */
  enum Order {
    /** The most probable proposal first (LLaDA {@code low_confidence}). */
    LOW_CONFIDENCE,
    /** At random, keyed by the seed (LLaDA {@code random}). */
    RANDOM,
    /** The leftmost mask first (SDAR {@code sequential}). */
    SEQUENTIAL
  }

  /** Dream's algorithms. */
  enum DreamAlgorithm {
    /** Every mask independently with the time step's probability. */
    ORIGIN,
    /** By probability of the proposal. */
    MASKGIT_PLUS,
    /** By difference of the two largest probabilities. */
    TOPK_MARGIN,
    /** By negative entropy. */
    ENTROPY
  }

  /**
   * LLaDA's and SDAR's static schedule (specs/diffusion.md 3.1, 3.4): the masks of a block are
   * spread evenly over its steps.
   *
   * @param steps steps for the whole answer; 0 for one per token
   * @param order which masks go first
   */
  record Schedule(int steps, Order order) implements Transfer {
    /** Checks. */
    public Schedule {
      Objects.requireNonNull(order, "order");
      Checks.atLeast("steps", steps, 0);
    }
  }

  /**
   * Dream's schedule over a time grid from 1 to epsilon (3.2).
   *
   * @param steps steps for the whole answer; 0 for one per token
   * @param algorithm how masks are scored
   * @param algorithmTemperature 0 for the best; above, positions are drawn from softmax(score /
   *     this)
   * @param epsilon end of the time grid
   */
  record Dream(int steps, DreamAlgorithm algorithm, float algorithmTemperature, float epsilon)
      implements Transfer {
    /** Checks. */
    public Dream {
      Objects.requireNonNull(algorithm, "algorithm");
      Checks.atLeast("steps", steps, 0);
      Checks.range("algorithmTemperature", algorithmTemperature, 0, 1e6);
      Checks.range("epsilon", epsilon, 1e-6, 0.5);
    }
  }

  /**
   * Every mask of the block with at least this confidence, and always the best (3.3, Fast-dLLM).
   *
   * @param tau above 1 for one token per step, 0 or less for the whole block at once
   */
  record Threshold(float tau) implements Transfer {
    /** Checks. */
    public Threshold {
      Checks.range("tau", tau, -1e6, 1e6);
    }
  }

  /** The largest n with (n + 1)(1 - n-th confidence) below {@code factor}, at least 1 (3.3). */
  record Factor(float factor) implements Transfer {
    /** Checks. */
    public Factor {
      Checks.range("factor", factor, 0, 1e6);
    }
  }

  /**
   * A threshold that is relaxed near sure tokens (9).
   *
   * @param anchor confidence of an anchor, and the threshold away from anchors
   * @param relaxed threshold near an anchor
   * @param radius how many positions near is
   */
  record LocalLeap(float anchor, float relaxed, int radius) implements Transfer {
    /** Checks. */
    public LocalLeap {
      Checks.range("anchor", anchor, -1e6, 1e6);
      Checks.range("relaxed", relaxed, -1e6, 1e6);
      Checks.atLeast("radius", radius, 0);
    }
  }

  /**
   * SDAR's {@code low_confidence_dynamic} (3.4): all above the threshold if they are at least the
   * schedule's count, else the schedule's count.
   *
   * @param steps steps for the whole answer; 0 for one per token
   * @param tau threshold
   */
  record Dynamic(int steps, float tau) implements Transfer {
    /** Checks. */
    public Dynamic {
      Checks.atLeast("steps", steps, 0);
      Checks.range("tau", tau, -1e6, 1e6);
    }
  }

  /**
   * LLaDA2.1 editing (3.6): committed tokens of the active block may change again.
   *
   * @param tau threshold for masks
   * @param editTau threshold for changing a token
   * @param maxPostSteps most steps after the block's last mask
   */
  record Edit(float tau, float editTau, int maxPostSteps) implements Transfer {
    /** Checks. */
    public Edit {
      Checks.range("tau", tau, -1e6, 1e6);
      Checks.range("editTau", editTau, -1e6, 1e6);
      Checks.atLeast("maxPostSteps", maxPostSteps, 0);
    }
  }
}
