package io.fletch.runtime.tokenizer;

import java.util.Arrays;

/**
 * Merges the symbols of one piece: the best pair first, of equal pairs the leftmost, until none is
 * left. Short pieces are scanned, long ones go through a heap (O(n log n)). Holds the scratch of
 * one encoder call; not thread-safe.
 */
final class Merger {
  /** How good a pair is. */
  @FunctionalInterface
  interface Pairs {
    /**
     * Priority of merging two neighbouring symbols, smaller is better, in the upper 32 bits and the
     * merged id in the lower; -1 if they do not merge.
     *
     * @param leftStart where the left symbol starts in the piece
     * @param rightEnd where the right symbol ends
     */
    long pair(int left, int right, int leftStart, int rightEnd);
  }

  private static final int SCAN_LIMIT = 48;

  private int[] ids = new int[64];
  private int[] starts = new int[65];
  private int[] previous = new int[0];
  private int[] next = new int[0];
  private long[] pairs = new long[64];
  private long[] heap = new long[0];
  private int heapSize;
  private int count;

  /** Begins a piece. */
  void reset() {
    count = 0;
    starts[0] = 0;
  }

  /** Appends a symbol that ends at {@code end} of the piece; id -1 if the vocabulary lacks it. */
  void symbol(int id, int end) {
    if (count == ids.length) {
      ids = Arrays.copyOf(ids, Math.multiplyExact(count, 2));
      starts = Arrays.copyOf(starts, ids.length + 1);
    }
    ids[count++] = id;
    starts[count] = end;
  }

  int count() {
    return count;
  }

  int id(int index) {
    return ids[index];
  }

  int start(int index) {
    return starts[index];
  }

  int end(int index) {
    return starts[index + 1];
  }

  /** Merges; afterwards {@link #id}, {@link #start} and {@link #end} tell the result. */
  void merge(Pairs table) {
    if (count > SCAN_LIMIT) {
      mergeWithHeap(table);
    } else if (count > 1) {
      mergeByScan(table);
    }
  }

  private void mergeByScan(Pairs table) {
    for (int i = 0; i + 1 < count; i++) {
      pairs[i] = table.pair(ids[i], ids[i + 1], starts[i], starts[i + 2]);
    }
    while (count > 1) {
      int best = -1;
      int bestRank = Integer.MAX_VALUE;
      for (int i = 0; i + 1 < count; i++) {
        if (pairs[i] >= 0 && (int) (pairs[i] >>> 32) < bestRank) {
          best = i;
          bestRank = (int) (pairs[i] >>> 32);
        }
      }
      if (best < 0) {
        return;
      }
      ids[best] = (int) pairs[best];
      int moved = count - best - 2;
      System.arraycopy(ids, best + 2, ids, best + 1, moved);
      System.arraycopy(starts, best + 2, starts, best + 1, moved + 1);
      System.arraycopy(pairs, best + 2, pairs, best + 1, Math.max(0, moved - 1));
      count--;
      if (best > 0) {
        pairs[best - 1] = table.pair(ids[best - 1], ids[best], starts[best - 1], starts[best + 1]);
      }
      if (best + 1 < count) {
        pairs[best] = table.pair(ids[best], ids[best + 1], starts[best], starts[best + 2]);
      }
    }
  }

  /**
   * The heap holds rank and left symbol of candidates. A candidate is stale when the pair that now
   * stands at its place has another rank; a pair that has the same rank is as good a candidate.
   */
  private void mergeWithHeap(Pairs table) {
    if (next.length < count) {
      previous = new int[count];
      next = new int[count];
    }
    if (pairs.length < count) {
      pairs = new long[count];
    }
    heapSize = 0;
    if (heap.length < count) {
      heap = new long[count];
    }
    for (int i = 0; i < count; i++) {
      previous[i] = i - 1;
      next[i] = i + 1;
      pairs[i] = i + 1 < count ? table.pair(ids[i], ids[i + 1], starts[i], starts[i + 2]) : -1;
      if (pairs[i] >= 0) {
        heap[heapSize++] = pairs[i] >>> 32 << 32 | i;
      }
    }
    for (int i = heapSize / 2 - 1; i >= 0; i--) {
      siftDown(i);
    }
    while (heapSize > 0) {
      long top = heap[0];
      heap[0] = heap[--heapSize];
      siftDown(0);
      int left = (int) top;
      if (pairs[left] < 0 || pairs[left] >>> 32 != top >>> 32) {
        continue;
      }
      int right = next[left];
      ids[left] = (int) pairs[left];
      int after = next[right];
      next[left] = after;
      pairs[right] = -1;
      if (after < count) {
        previous[after] = left;
      }
      refresh(table, left);
      if (previous[left] >= 0) {
        refresh(table, previous[left]);
      }
    }
    int kept = 0;
    for (int i = 0; i < count; i = next[i]) {
      int following = next[i];
      ids[kept] = ids[i];
      starts[kept++] = starts[i];
      if (following >= count) {
        starts[kept] = starts[count];
        break;
      }
    }
    count = kept;
  }

  private void refresh(Pairs table, int left) {
    int right = next[left];
    if (right >= count) {
      pairs[left] = -1;
      return;
    }
    int end = next[right] >= count ? starts[count] : starts[next[right]];
    pairs[left] = table.pair(ids[left], ids[right], starts[left], end);
    if (pairs[left] >= 0) {
      push(pairs[left] >>> 32 << 32 | left);
    }
  }

  private void push(long value) {
    if (heapSize == heap.length) {
      heap = Arrays.copyOf(heap, Math.multiplyExact(heap.length, 2));
    }
    int at = heapSize++;
    while (at > 0) {
      int parent = (at - 1) >>> 1;
      if (heap[parent] <= value) {
        break;
      }
      heap[at] = heap[parent];
      at = parent;
    }
    heap[at] = value;
  }

  private void siftDown(int from) {
    if (from >= heapSize) {
      return;
    }
    long value = heap[from];
    int at = from;
    while (true) {
      int child = 2 * at + 1;
      if (child >= heapSize) {
        break;
      }
      if (child + 1 < heapSize && heap[child + 1] < heap[child]) {
        child++;
      }
      if (heap[child] >= value) {
        break;
      }
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = value;
  }
}
