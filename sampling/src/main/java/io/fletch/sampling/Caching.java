package io.fletch.sampling;

/**
 * Which keys and values a run keeps: exactly one policy per run. All but {@link None} and {@link
 * BlockCausal} change the logits, so a policy is part of a run's identity (specs/diffusion.md 4).
 */
public sealed interface Caching {
  /** Every forward runs the whole canvas. */
  record None() implements Caching {}

  /** One full forward per block; then rows from the block on (Fast-dLLM prefix cache). */
  record Prefix() implements Caching {}

  /** One full forward per block; then the block's rows only (Fast-dLLM dual cache). */
  record Dual() implements Caching {}

  /**
   * FreeCache (5.1): the prompt and finished blocks are frozen, the active block and everything
   * behind it run.
   *
   * @param refresh every how many steps all rows run and the frozen part is rewritten; 0 for never
   *     (the paper), 1 is no cache
   * @param delay forwards between a block's last commit and its freezing: 0 as published, 1 so that
   *     the frozen values have seen the committed tokens
   */
  record FreeCache(int refresh, int delay) implements Caching {
    /** Checks. */
    public FreeCache {
      Checks.atLeast("refresh", refresh, 0);
      Checks.range("delay", delay, 0, 1);
    }
  }

  /**
   * Exact caching of block-causal models (2.5).
   *
   * @param fused whether a finished block's keys and values are stored by the first forward of the
   *     next block instead of a forward of their own
   */
  record BlockCausal(boolean fused) implements Caching {}
}
