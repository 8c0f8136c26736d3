package io.fletch.graph.cpu;

import io.fletch.ffm.NativeMemory;

/**
 * Lets a cache grow into huge pages, whose borders do not end the prefetching of a core every 4
 * KiB. A run of slots, one head's keys or values, asks for its next piece of 2 MiB when it has
 * filled half of the one before: so a cache takes at most about twice the memory of its slots, and
 * an empty one none. The first piece is written in small pages, which the system may join later.
 * Used by the thread that owns the cache.
 */
final class HugeSlots {
  private static final long PAGE = NativeMemory.HUGE_PAGE;

  private final NativeMemory memory;
  private final int capacity;

  /** Per run: byte of the first slot, bytes of one, and the piece that is asked for next. */
  private final long[] base;

  private final long[] slotBytes;
  private final long[] next;

  /** With fewer slots nothing is asked for. */
  private long due;

  /**
   * Nothing is asked for yet.
   *
   * @param base where each run of {@code capacity} slots begins in the memory
   * @param slotBytes bytes of a slot, for each run
   */
  HugeSlots(NativeMemory memory, int capacity, long[] base, long[] slotBytes) {
    this.memory = memory;
    this.capacity = capacity;
    this.base = base;
    this.slotBytes = slotBytes;
    next = new long[base.length];
    for (int i = 0; i < next.length; i++) {
      next[i] = (base[i] + PAGE - 1) & -PAGE;
    }
    due = least();
  }

  /** Slots with which a run asks for its next piece; {@link Long#MAX_VALUE} after the last one. */
  private long slots(int run) {
    if (next[run] + PAGE > base[run] + capacity * slotBytes[run]) {
      return Long.MAX_VALUE;
    }
    long filled = Math.max(next[run] - PAGE / 2 - base[run], PAGE / 2);
    return (filled + slotBytes[run] - 1) / slotBytes[run];
  }

  private long least() {
    long least = Long.MAX_VALUE;
    for (int i = 0; i < base.length; i++) {
      least = Math.min(least, slots(i));
    }
    return least;
  }

  /** Tells that so many slots are filled. */
  void filled(int slots) {
    if (slots < due) {
      return;
    }
    for (int i = 0; i < base.length; i++) {
      while (slots(i) <= slots) {
        advise(i);
      }
    }
    due = least();
  }

  /** Tells that so many slots will be filled at once. */
  void expect(int slots) {
    for (int i = 0; i < base.length; i++) {
      while (next[i] + PAGE <= base[i] + slots * slotBytes[i]) {
        advise(i);
      }
    }
    due = least();
  }

  private void advise(int run) {
    // Advice that is not taken leaves the pages as they are, which is all right.
    memory.adviseHugePages(next[run], PAGE);
    next[run] += PAGE;
  }

  /** Bytes that were asked for. */
  long asked() {
    long sum = 0;
    for (int i = 0; i < base.length; i++) {
      sum += next[i] - ((base[i] + PAGE - 1) & -PAGE);
    }
    return sum;
  }
}
