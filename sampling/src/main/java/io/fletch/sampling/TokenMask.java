package io.fletch.sampling;

/**
 * A constraint on the next token, a grammar for one (specs/autoregressive.md 6): a set of ids that
 * may follow, which may hold too many, and an exact check of the id that was drawn. Owned by one
 * decoder; used by its thread.
 */
public interface TokenMask {
  /**
   * Ids that may come next: bit {@code id & 63} of word {@code id >> 6}. The array belongs to the
   * mask, is not changed by the caller, and stays valid until {@link #commit}.
   */
  long[] allowed();

  /**
   * Whether the token may really follow. A token that fails is taken out and another is drawn, so
   * for an exact {@link #allowed} this is always true.
   */
  boolean check(int token);

  /** Goes on to the state behind the token, which has been drawn and checked. */
  void commit(int token);
}
