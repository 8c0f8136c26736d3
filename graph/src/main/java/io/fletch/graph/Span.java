package io.fletch.graph;

/**
 * Consecutive rows of one sequence in a batch: where their keys and values go and what they see.
 *
 * <p>Row {@code i} of the span has position {@code position + i} (for RoPE) and writes slot {@code
 * slot + i}. It sees slots {@code [0, prefix)}, slots {@code [suffixFrom, suffixTo)}, and of the
 * span's own rows: {@code CAUSAL} rows {@code 0..i}; {@code BIDIRECTIONAL} all; {@code
 * BLOCK_CAUSAL} all rows up to the end of the row's block, blocks being {@code block} positions
 * long on a grid from position 0.
 *
 * <p>The KV modes are values of this: <em>append</em> is slot = prefix = position = length followed
 * by {@link KvCache#length(int) commit}; <em>denoise</em> is the same without the commit; a draft
 * candidate uses a slot range of its own behind a shared prefix; a window inside a frozen canvas
 * has a suffix. Slots written without a commit are garbage to later forwards unless named by them.
 *
 * @param kv the sequence's cache
 * @param rows number of rows
 * @param position position of the first row
 * @param slot cache slot of the first row
 * @param prefix slots {@code [0, prefix)} are seen by all rows
 * @param suffixFrom first slot of a second visible range
 * @param suffixTo end of it; equal to {@code suffixFrom} for none
 * @param own how the span's rows see each other
 * @param block block length for {@code BLOCK_CAUSAL}, else 0
 */
public record Span(
    KvCache kv,
    int rows,
    int position,
    int slot,
    int prefix,
    int suffixFrom,
    int suffixTo,
    Own own,
    int block) {
  /** How rows of a span see each other. */
  public enum Own {
    CAUSAL,
    BIDIRECTIONAL,
    BLOCK_CAUSAL
  }

  /** Checks ranges against the cache. */
  public Span {
    if (rows <= 0 || position < 0 || slot < 0 || slot + rows > kv.capacity()) {
      throw new IllegalArgumentException(
          "span outside the cache: slot="
              + slot
              + " rows="
              + rows
              + " position="
              + position
              + " capacity="
              + kv.capacity());
    }
    if (prefix < 0
        || prefix > kv.capacity()
        || suffixFrom < 0
        || suffixTo < suffixFrom
        || suffixTo > kv.capacity()) {
      throw new IllegalArgumentException(
          "visible range outside the cache: prefix="
              + prefix
              + " suffix=["
              + suffixFrom
              + ", "
              + suffixTo
              + ") capacity="
              + kv.capacity());
    }
    if (own == Own.BLOCK_CAUSAL && block <= 0) {
      throw new IllegalArgumentException("BLOCK_CAUSAL needs a positive block: block=" + block);
    }
  }

  /** The next {@code rows} tokens of a sequence, causal, at the end of its cache. */
  public static Span append(KvCache kv, int rows) {
    int n = kv.length();
    return new Span(kv, rows, n, n, n, 0, 0, Own.CAUSAL, 0);
  }
}
