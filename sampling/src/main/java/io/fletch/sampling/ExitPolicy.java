package io.fletch.sampling;

/**
 * Tests, on every state of the chain in order and before its step, whether all masks may be filled
 * now. Sees only the state and its own evaluation, so drafting does not move the exit. Mutable (the
 * stability guard remembers the state before); one per run.
 */
interface ExitPolicy {
  /**
   * Whether to exit.
   *
   * @param from start of the masks that an exit would fill
   * @param to end of them
   */
  boolean fires(CanvasState state, Evaluation evaluation, int from, int to);
}
