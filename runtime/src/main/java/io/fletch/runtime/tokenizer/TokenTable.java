package io.fletch.runtime.tokenizer;

import java.util.Arrays;

/**
 * Ids by byte string: an open hash table over {@link TokenBytes}. Immutable after {@link #build};
 * lookups allocate nothing.
 */
final class TokenTable {
  /** Changes per process, so that a vocabulary cannot be made whose tokens all collide. */
  private static final long SEED = System.nanoTime() * 0x9E3779B97F4A7C15L | 1;

  private final TokenBytes tokens;
  private final byte[] block;
  private final int[] offsets;
  private final int[] slots;
  private final int mask;
  private final int longest;

  private TokenTable(TokenBytes tokens, int[] slots, int longest) {
    this.tokens = tokens;
    block = tokens.block;
    offsets = tokens.offsets;
    this.slots = slots;
    this.mask = slots.length - 1;
    this.longest = longest;
  }

  /** Told of an id whose bytes are those of an earlier id. */
  interface DuplicateHandler {
    void duplicate(int first, int second);
  }

  /**
   * Builds a table.
   *
   * @param tokens bytes by id; null or empty entries cannot be found
   * @param duplicates called for every repeated token; the first id keeps the entry
   */
  static TokenTable build(byte[][] tokens, DuplicateHandler duplicates) {
    TokenBytes all = TokenBytes.of(tokens);
    int longest = 0;
    for (int i = 0; i < tokens.length; i++) {
      longest = Math.max(longest, all.length(i));
    }
    int[] slots = new int[Integer.highestOneBit(Math.max(4, tokens.length)) * 4];
    Arrays.fill(slots, -1);
    TokenTable table = new TokenTable(all, slots, longest);
    for (int i = 0; i < tokens.length; i++) {
      if (all.length(i) == 0) {
        continue;
      }
      int slot = table.slot(all.block, all.offsets[i], all.offsets[i + 1]);
      if (slots[slot] >= 0) {
        duplicates.duplicate(slots[slot], i);
      } else {
        slots[slot] = i;
      }
    }
    return table;
  }

  /** The strings. */
  TokenBytes tokens() {
    return tokens;
  }

  int length(int id) {
    return tokens.length(id);
  }

  byte at(int id, int index) {
    return tokens.at(id, index);
  }

  /** The id of {@code bytes[from, to)}, or -1. */
  int find(byte[] bytes, int from, int to) {
    return to - from > longest || to <= from ? -1 : slots[slot(bytes, from, to)];
  }

  /** The slot of the string if it is there, else the free slot where it belongs. */
  private int slot(byte[] bytes, int from, int to) {
    long h = SEED;
    for (int i = from; i < to; i++) {
      h = (h ^ bytes[i]) * 0x9E3779B97F4A7C15L;
      h ^= h >>> 32;
    }
    int slot = (int) (h * SEED >>> 33) & mask;
    while (true) {
      int id = slots[slot];
      if (id < 0 || Arrays.equals(block, offsets[id], offsets[id + 1], bytes, from, to)) {
        return slot;
      }
      slot = slot + 1 & mask;
    }
  }
}
