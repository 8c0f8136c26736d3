package io.fletch.sampling;

import java.util.Objects;

/**
 * Consecutive rows of a canvas to run. Row {@code i} holds {@code tokens[i]}, has position {@code
 * position + i} and writes slot {@code slot + i}. It sees slots {@code [0, prefix)} and {@code
 * [suffixFrom, suffixTo)} of its cache and its window's own rows as {@link #own()} says. The arrays
 * belong to the window and are not changed.
 *
 * @param cache which cache
 * @param position position of the first row
 * @param slot slot of the first row
 * @param prefix slots {@code [0, prefix)} are visible
 * @param suffixFrom first slot of a second visible range
 * @param suffixTo its end; equal to {@code suffixFrom} for none
 * @param own how rows of the window see each other
 * @param block block length of {@link Own#BLOCK_CAUSAL}, else 0
 * @param tokens the rows' token ids
 * @param heads ascending indices of the rows whose logits are needed
 */
public record CanvasWindow(
    int cache,
    int position,
    int slot,
    int prefix,
    int suffixFrom,
    int suffixTo,
    Own own,
    int block,
    int[] tokens,
    int[] heads) {
  /** How rows of a window see each other. */
  public enum Own {
    /** All see all. */
    BIDIRECTIONAL,
    /** A row sees up to the end of its own block, on a grid from position 0. */
    BLOCK_CAUSAL
  }

  /** Checks the ranges. */
  public CanvasWindow {
    Objects.requireNonNull(own, "own");
    if (cache < 0
        || position < 0
        || slot < 0
        || prefix < 0
        || suffixFrom < 0
        || suffixTo < suffixFrom
        || tokens.length == 0
        || (own == Own.BLOCK_CAUSAL ? block <= 0 : block != 0)) {
      throw new IllegalArgumentException(
          "out of range: cache="
              + cache
              + " position="
              + position
              + " slot="
              + slot
              + " prefix="
              + prefix
              + " suffix=["
              + suffixFrom
              + ", "
              + suffixTo
              + ") own="
              + own
              + " block="
              + block
              + " rows="
              + tokens.length);
    }
    for (int i = 0; i < heads.length; i++) {
      if (heads[i] >= tokens.length || heads[i] <= (i == 0 ? -1 : heads[i - 1])) {
        throw new IllegalArgumentException(
            "heads do not ascend within the rows: index="
                + i
                + " actual="
                + heads[i]
                + " rows="
                + tokens.length);
      }
    }
  }

  /** Number of rows. */
  public int rows() {
    return tokens.length;
  }
}
