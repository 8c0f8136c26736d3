package io.fletch.sampling;

/**
 * A causal model with one sequence's cache, as the autoregressive decoder and guided diffusion see
 * it. The runtime adapts the graph to it; tests put a table behind it. Used by one thread at a
 * time.
 *
 * <p>The sequence is the list of tokens appended and not truncated. It may lag behind what the
 * caller has decided (specs/autoregressive.md P2): the caller appends all it is missing in one
 * call. After warm-up no method allocates.
 */
public interface CausalForward {
  /** Which rows of an {@link #append} need logits. */
  enum Logits {
    /** None: only keys and values are stored. */
    NONE,
    /** The last token's; it becomes logit row 0. */
    LAST,
    /** Every token's; token {@code i} of the call becomes logit row {@code i}. */
    ALL
  }

  /** Number of token ids. */
  int vocabulary();

  /** Most tokens that the sequence can hold. */
  int capacity();

  /** Tokens in the sequence. */
  int length();

  /**
   * Runs {@code tokens[offset .. offset + count)} behind the sequence and makes them part of it.
   * The implementation may split long inputs into several passes. Logit rows of earlier calls are
   * lost.
   *
   * @param count at least 1
   * @throws IndexOutOfBoundsException if the sequence would outgrow {@link #capacity()}; nothing is
   *     appended then
   * @throws IllegalArgumentException if a token id is outside the vocabulary
   */
  void append(int[] tokens, int offset, int count, Logits wanted);

  /**
   * Says that the next tokens will be appended one by one, each being the {@link #argmax} of the
   * row before, so that the implementation may run them before it is asked to. Nothing else
   * changes: other tokens and other results may be asked for, at the price of running a row again.
   *
   * @param most how many at most; 0 for none
   */
  default void expectArgmax(int most) {}

  /** For {@link #expectRead}: whole rows. */
  int WHOLE_ROWS = -1;

  /**
   * Says what will be read of the logit rows of the calls from now on, so that the implementation
   * may keep no more than that. Nothing else changes: other results may be asked for, at the price
   * of running a row again.
   *
   * @param what 0 for the {@link #argmax} alone, k for {@link #top} of k, or {@link #WHOLE_ROWS}
   */
  default void expectRead(int what) {}

  /**
   * Most tokens per {@link #append} for {@link Logits#ALL}; a caller that wants more logit rows
   * splits.
   */
  default int maxLogitRows() {
    return capacity();
  }

  /** Drops the tokens from {@code length} on; O(1). Logit rows stay readable. */
  void truncate(int length);

  /** Logit rows of the latest {@link #append}. */
  int logitRows();

  /** Copies a logit row into {@code target[0 .. vocabulary)}. */
  void logits(int row, float[] target);

  /** Width of {@link #hidden}; 0 if the model does not give hidden states out. */
  default int hiddenWidth() {
    return 0;
  }

  /** Asks for {@link #hidden} of the logit rows of later calls, which may cost a copy. */
  default void keepHidden() {}

  /**
   * Copies what the output matrix was applied to for a logit row into {@code target[0 ..
   * hiddenWidth)}.
   *
   * @throws UnsupportedOperationException if {@link #hiddenWidth} is 0
   */
  default void hidden(int row, float[] target) {
    throw new UnsupportedOperationException("this model gives no hidden states out");
  }

  /**
   * Token with the largest logit of a row, the lowest id on ties; -1 if no logit is larger than
   * negative infinity (all are NaN).
   */
  int argmax(int row);

  /**
   * Finds the largest logits of a row, where that is cheaper than copying the row: on a device. Of
   * equal ones those with the lowest ids are chosen.
   *
   * @param ids takes the ids, ascending; its length is how many are wanted
   * @param logits takes their logits
   * @return false if the row has to be copied; the arrays are undefined then
   */
  default boolean top(int row, int[] ids, float[] logits) {
    return false;
  }

  /** Reduces a logit row, where the backend can on the device. */
  void statistics(int row, RowStatistics into);

  /** Passes over the weights so far; never decreases. */
  long forwards();

  /** Rows (tokens) run so far; never decreases. */
  long rows();

  /** Bytes of weights and cache read so far, or -1 if not known. */
  default long bytesRead() {
    return -1;
  }
}
