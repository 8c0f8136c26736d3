package io.fletch.graph.cpu;

import io.fletch.ffm.NativeMemory;

/**
 * Lets a cache grow into huge pages, whose borders do not end the prefetching of a core every 4
 * KiB. Each block of slots but the first ({@link KvBlocks}) asks for them when half of the one
 * before is filled, before any of it is written: so a cache takes at most about twice the memory of
 * its slots, and a short one no huge page. Used by the thread that owns the cache.
 */
final class HugeSlots {
  private static final long PAGE = NativeMemory.HUGE_PAGE;

  private final NativeMemory memory;
  private final KvBlocks blocks;

  /** The block that is asked for next. */
  private long next = KvBlocks.FIRST;

  private long asked;

  /** Nothing is asked for yet. */
  HugeSlots(NativeMemory memory, KvBlocks blocks) {
    this.memory = memory;
    this.blocks = blocks;
  }

  /** Tells that so many slots are filled. */
  void filled(int slots) {
    // A block is as long as all of those before it, and this asks for it at half of the last.
    ask(slots < KvBlocks.FIRST ? 2L * slots : 4L * slots / 3);
  }

  /** Tells that so many slots will be filled at once. */
  void expect(int slots) {
    ask(slots - 1L);
  }

  /** Asks for the blocks up to the one that a slot lies in. */
  private void ask(long slot) {
    while (next <= slot && next < blocks.capacity()) {
      for (int l = 0; l < blocks.layers(); l++) {
        advise(l, (int) next);
      }
      next *= 2;
    }
  }

  private void advise(int layer, int start) {
    // The page in which the block before ends is used from now on, the one in which the next block
    // or layer begins is not.
    long block = blocks.offset(layer, start);
    long from = Math.max(block & -PAGE, (blocks.base(layer) + PAGE - 1) & -PAGE);
    long to = (block + blocks.blockBytes(layer, start)) & -PAGE;
    if (from < to) {
      // Advice that is not taken leaves the pages as they are, which is all right.
      memory.adviseHugePages(from, to - from);
      asked += to - from;
    }
  }

  /** Bytes that were asked for; pages that two blocks share count twice. */
  long asked() {
    return asked;
  }
}
