package io.fletch.graph.support;

import io.fletch.graph.Span.Own;

/**
 * Which cache slots a row sees, as at most three disjoint ranges in the order of the sequence:
 * prefix, the span's own rows, suffix. A draft thus sees its slots in the order in which the same
 * window in place would, wherever they are. Stateless; allocates nothing.
 *
 * <p>A sliding window of w counts slots in the order in which the sequence has them, prefix first,
 * then the span's own rows: a row sees itself and at most w - 1 slots before it. Slots after it (a
 * suffix, or later rows of a bidirectional span) are not limited by the window.
 */
public final class Visibility {
  /** Ints that the ranges of a row take: from and to of each. */
  public static final int INTS = 6;

  private Visibility() {}

  /**
   * Rows of the span that row {@code i} sees are {@code [0, result)}.
   *
   * @param position position of the span's first row
   */
  static int ownEnd(Own own, int block, int position, int rows, int i) {
    return switch (own) {
      case CAUSAL -> i + 1;
      case BIDIRECTIONAL -> rows;
      case BLOCK_CAUSAL -> {
        long blockEnd = ((long) (position + i) / block + 1) * block;
        yield (int) Math.min(rows, blockEnd - position);
      }
    };
  }

  /**
   * The place of the first slot that row {@code i} sees in the order of its sequence: 0 without a
   * window, else how many slots of prefix and own rows come before the window.
   */
  static int first(int i, int slot, int prefix, int window) {
    // A prefix that reaches into the own rows counts them once.
    return window > 0 ? Math.max(0, Math.min(prefix, slot) + i - window + 1) : 0;
  }

  /**
   * Writes the ranges of one row as (from, to) pairs.
   *
   * @param ownEnd from {@link #ownEnd}
   * @param window 0 for no limit
   * @param into takes up to {@link #INTS} ints from {@code offset} on
   * @return the number of ranges, 1 to 3
   */
  static int ranges(
      int i,
      int slot,
      int prefix,
      int suffixFrom,
      int suffixTo,
      int ownEnd,
      int window,
      int[] into,
      int offset) {
    int first = first(i, slot, prefix, window);
    int prefixFrom = Math.min(first, prefix);
    int ownFrom = Math.max(0, first - Math.min(prefix, slot));
    int count = insert(into, offset, 0, prefixFrom, prefix);
    count = insert(into, offset, count, slot + ownFrom, slot + ownEnd);
    return insert(into, offset, count, suffixFrom, suffixTo);
  }

  /** Adds a range to disjoint ones; it is merged with what it overlaps or directly continues. */
  private static int insert(int[] into, int offset, int count, int from, int to) {
    if (from >= to) {
      return count;
    }
    int n = 0;
    int low = from;
    int high = to;
    int at = -1;
    for (int k = 0; k < count; k++) {
      int a = into[offset + 2 * k];
      int b = into[offset + 2 * k + 1];
      boolean overlaps = a < high && low < b;
      boolean continues = k == count - 1 && b == low;
      if (overlaps || continues) {
        low = Math.min(low, a);
        high = Math.max(high, b);
        at = at < 0 ? n++ : at;
      } else {
        into[offset + 2 * n] = a;
        into[offset + 2 * n + 1] = b;
        n++;
      }
    }
    at = at < 0 ? n++ : at;
    into[offset + 2 * at] = low;
    into[offset + 2 * at + 1] = high;
    return n;
  }
}
