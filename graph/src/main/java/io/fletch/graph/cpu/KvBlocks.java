package io.fletch.graph.cpu;

/**
 * Where keys and values of a cache lie. A layer is one range of memory, of blocks that double:
 * slots {@code [0, 1024)}, {@code [1024, 2048)}, {@code [2048, 4096)} and so on, the last one cut
 * at the capacity. A block is {@code [head][slot][dim]} keys, then the same for values. So a head's
 * keys lie side by side for as long as it takes to stream them, a segment of attention is never
 * divided, and a layer fills its range from its start on: its next block can lie in huge pages
 * ({@link HugeSlots}) without more than doubling the memory of what is filled.
 *
 * <p>Immutable.
 */
final class KvBlocks {
  /** Slots of the first block. */
  static final int FIRST = Kernels.ATTENTION_SEGMENT;

  private static final long ALIGNMENT = 64;

  private final int capacity;
  private final int[] heads;
  private final long[] keyBytes;
  private final long[] valueBytes;
  private final long[] base;
  private final long bytes;

  /**
   * The blocks of a cache.
   *
   * @param heads key/value heads of each layer
   * @param keyBytes bytes of a head's key, for each layer
   * @param valueBytes bytes of a head's value, for each layer
   * @throws ArithmeticException if that is more than a {@code long} counts
   */
  KvBlocks(int capacity, int[] heads, long[] keyBytes, long[] valueBytes) {
    this.capacity = capacity;
    this.heads = heads;
    this.keyBytes = keyBytes;
    this.valueBytes = valueBytes;
    base = new long[heads.length];
    long end = 0;
    int last = start(Math.max(0, capacity - 1));
    for (int l = 0; l < heads.length; l++) {
      base[l] = end;
      // First what a multiplication may overflow with.
      long slots = Math.multiplyExact(capacity, Math.addExact(keyBytes[l], valueBytes[l]));
      Math.multiplyExact(heads[l], Math.addExact(slots, 2 * ALIGNMENT));
      end = Math.addExact(end, offset(l, last) - base[l] + blockBytes(l, last));
    }
    bytes = end;
  }

  /** The first slot of the block that a slot lies in. */
  static int start(int slot) {
    return slot < FIRST ? 0 : Integer.highestOneBit(slot);
  }

  /** Slots of the block that begins with a slot. */
  private int length(int start) {
    return Math.min(start == 0 ? FIRST : start, capacity - start);
  }

  /** How many slots lie side by side from a slot on, it included. */
  int run(int slot) {
    int start = start(slot);
    return start + length(start) - slot;
  }

  private static long align(long n) {
    return (n + ALIGNMENT - 1) & -ALIGNMENT;
  }

  /** Where the block that begins with a slot begins; those before it are full. */
  long offset(int layer, int start) {
    return base[layer] + (long) start * heads[layer] * (keyBytes[layer] + valueBytes[layer]);
  }

  /** Bytes of the block that begins with a slot. */
  long blockBytes(int layer, int start) {
    int n = length(start);
    return heads[layer] * (align(n * keyBytes[layer]) + align(n * valueBytes[layer]));
  }

  /** Byte of the key of a slot. */
  long key(int layer, int head, int slot) {
    int start = start(slot);
    long run = align(length(start) * keyBytes[layer]);
    return offset(layer, start) + head * run + (slot - start) * keyBytes[layer];
  }

  /** Byte of the value of a slot. */
  long value(int layer, int head, int slot) {
    int start = start(slot);
    int n = length(start);
    long keys = heads[layer] * align(n * keyBytes[layer]);
    long run = align(n * valueBytes[layer]);
    return offset(layer, start) + keys + head * run + (slot - start) * valueBytes[layer];
  }

  int capacity() {
    return capacity;
  }

  int layers() {
    return heads.length;
  }

  /** Where a layer begins. */
  long base(int layer) {
    return base[layer];
  }

  /** Bytes of all layers. */
  long bytes() {
    return bytes;
  }
}
