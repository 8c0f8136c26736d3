package io.fletch.sampling;

/**
 * What one canvas keeps in its cache: decides the rows of the next forward and learns what was run
 * and committed. Mutable; one per canvas (or beam), used by one thread.
 */
interface CachePolicy {
  /** Rows that the evaluation of this state runs. Does not change the policy. */
  Region plan(CanvasState state);

  /**
   * Rows of clean tokens to run, without logits, before {@link #plan} holds; null for none. They
   * are stored when {@link #stored} is called.
   */
  default Region before(CanvasState state) {
    return null;
  }

  /** {@link #before} has been run. */
  default void stored(Region region) {}

  /** The forward of {@link #plan} has been run in place. */
  default void evaluated(CanvasState state, Region region) {}

  /**
   * Whether a later state of the chain must not be evaluated together with this one, because a
   * forward between them changes what is kept.
   *
   * @param ahead how many steps later
   */
  default boolean refreshesWithin(CanvasState state, int ahead) {
    return false;
  }

  /**
   * The block [from, to) has no masks left, after a step on this evaluation.
   *
   * @return rows whose keys and values of that evaluation must be in place (their slots equal to
   *     their positions) from now on; null for none
   */
  default Region blockDone(int from, int to, Evaluation evaluation) {
    return null;
  }

  /** An equal policy that goes its own way. */
  CachePolicy copy();

  /** A policy in its initial state. */
  static CachePolicy of(Caching caching, DiffusionModel model, int prompt) {
    return switch (caching) {
      case Caching.None _ -> new NoCache();
      case Caching.Prefix _ -> new BlockRefreshCache(model.lead(), false);
      case Caching.Dual _ -> new BlockRefreshCache(model.lead(), true);
      case Caching.FreeCache f -> new FreezingCache(model.lead(), prompt, f);
      case Caching.BlockCausal b -> new BlockCausalCache(model.lead(), b.fused());
    };
  }
}
