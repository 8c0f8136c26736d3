package io.fletch.graph;

/**
 * Forwards of one sequence that follow each other on the device: each runs one row, whose token is
 * the argmax of the row before, at the next slot and position, with all units running. The host
 * queues steps and reads their tokens when it likes; it need not know a token for the next step to
 * run. Made by {@link Executable#newGreedySteps}; used by one thread at a time.
 *
 * <p>Steps do not change the length of the cache: the row of the i-th step since {@link #start}
 * lies in slot {@code length + i}, where {@code length} is that of the start. Steps that turn out
 * not to be wanted need no undoing: what they stored lies behind the sequence. Logits of a step
 * cannot be read.
 */
public interface GreedySteps extends AutoCloseable {
  /**
   * Queues a first step, at the end of the cache. What was queued before is forgotten.
   *
   * @param token its token
   * @throws IllegalArgumentException if the token is outside the vocabulary
   * @throws IllegalStateException if the cache is full or closed
   * @throws GraphException if a kernel failed
   */
  void start(int token);

  /**
   * Queues the step after the latest one.
   *
   * @return false, with nothing done, if other forwards have come between, the cache is full, or as
   *     many steps are pending as there is room for their tokens
   * @throws GraphException if a kernel failed
   */
  boolean follow();

  /** Steps whose tokens have not been taken. */
  int pending();

  /**
   * Waits for the oldest pending step and no other.
   *
   * @return the token with its largest logit, the lowest id on ties
   * @throws IllegalStateException if none is pending
   * @throws GraphException if a kernel failed
   */
  int take();

  /** Waits for what is queued, and frees memory. */
  @Override
  void close();
}
