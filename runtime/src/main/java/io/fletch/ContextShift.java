package io.fletch;

/**
 * What happens when an answer, or the prompt, outgrows the context: the first {@code keep} tokens
 * stay, of the others the older half is dropped, and the rest is computed again behind them. The
 * model then sees exactly what a new session would see that was given the tokens that are left.
 * Without it an answer that fills the context ends with {@link Generation.FinishReason#LENGTH} and
 * a prompt that does not fit is refused.
 *
 * @param keep tokens at the start that are never dropped, for example those of a system prompt; at
 *     most half of the context. A beginning token is always kept
 */
public record ContextShift(int keep) {
  /** Checks the range. */
  public ContextShift {
    if (keep < 0) {
      throw new IllegalArgumentException("context shift: keep expected>=0 actual=" + keep);
    }
  }
}
