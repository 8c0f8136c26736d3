package io.fletch.runtime.tokenizer;

import java.util.Arrays;

/**
 * Byte strings by id and ids by byte string: all tokens in one block of bytes plus an open hash
 * table. Immutable after {@link #build}; lookups allocate nothing.
 */
final class TokenTable {
  /** Changes per process, so that a vocabulary cannot be made whose tokens all collide. */
  private static final long SEED = System.nanoTime() * 0x9E3779B97F4A7C15L | 1;

  private final byte[] block;
  private final int[] offsets;
  private final int[] slots;
  private final int mask;
  private final int longest;

  private TokenTable(byte[] block, int[] offsets, int[] slots, int longest) {
    this.block = block;
    this.offsets = offsets;
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
    int total = 0;
    int longest = 0;
    int[] offsets = new int[tokens.length + 1];
    for (int i = 0; i < tokens.length; i++) {
      int length = tokens[i] == null ? 0 : tokens[i].length;
      total = Math.addExact(total, length);
      longest = Math.max(longest, length);
      offsets[i + 1] = total;
    }
    byte[] block = new byte[total];
    int[] slots = new int[Integer.highestOneBit(Math.max(4, tokens.length)) * 4];
    Arrays.fill(slots, -1);
    TokenTable table = new TokenTable(block, offsets, slots, longest);
    for (int i = 0; i < tokens.length; i++) {
      byte[] token = tokens[i];
      if (token == null || token.length == 0) {
        continue;
      }
      System.arraycopy(token, 0, block, offsets[i], token.length);
      int slot = table.slot(token, 0, token.length);
      if (slots[slot] >= 0) {
        duplicates.duplicate(slots[slot], i);
      } else {
        slots[slot] = i;
      }
    }
    return table;
  }

  int size() {
    return offsets.length - 1;
  }

  /** The bytes of an id (a copy). */
  byte[] bytes(int id) {
    return Arrays.copyOfRange(block, offsets[id], offsets[id + 1]);
  }

  int length(int id) {
    return offsets[id + 1] - offsets[id];
  }

  byte at(int id, int index) {
    return block[offsets[id] + index];
  }

  /** Appends the bytes of an id. */
  void appendTo(int id, ByteList out) {
    out.append(block, offsets[id], offsets[id + 1]);
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
