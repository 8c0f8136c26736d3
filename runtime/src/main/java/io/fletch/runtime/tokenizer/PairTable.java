package io.fletch.runtime.tokenizer;

import java.util.Arrays;

/** Merges of a BPE vocabulary: (left id, right id) to (rank, merged id). Immutable once filled. */
final class PairTable {
  private static final long FREE = -1;
  private static final long SEED = System.nanoTime() * 0xD6E8FEB86659FD93L | 1;

  private final long[] keys;
  private final long[] values;
  private final int mask;

  PairTable(int merges) {
    int capacity = Integer.highestOneBit(Math.max(8, merges)) * 4;
    keys = new long[capacity];
    values = new long[capacity];
    mask = capacity - 1;
    Arrays.fill(keys, FREE);
  }

  /** Adds a merge; the first of two equal pairs stays. */
  void put(int left, int right, int rank, int merged) {
    long key = (long) left << 32 | right;
    int slot = slot(key);
    if (keys[slot] == FREE) {
      keys[slot] = key;
      values[slot] = (long) rank << 32 | merged;
    }
  }

  /** Rank in the upper and merged id in the lower 32 bits, or -1. Ids may be negative. */
  long get(int left, int right) {
    if ((left | right) < 0) {
      return -1;
    }
    long key = (long) left << 32 | right;
    int slot = slot(key);
    return keys[slot] == key ? values[slot] : -1;
  }

  private int slot(long key) {
    long h = (key ^ key >>> 29) * SEED;
    int slot = (int) (h >>> 32 ^ h >>> 15) & mask;
    while (keys[slot] != FREE && keys[slot] != key) {
      slot = slot + 1 & mask;
    }
    return slot;
  }
}
