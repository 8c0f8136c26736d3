package io.fletch.bench;

import io.fletch.ffm.NativeMemory;
import io.fletch.ffm.x86.ReadLoop;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;

/** What threads read together from huge pages: the best of a few passes over 256 MiB. */
final class ReadBandwidth {
  private static final long BYTES = 256L << 20;
  private static final int PASSES = 5;

  private ReadBandwidth() {}

  /** GB/s of some threads, each with its part of the memory. */
  static double gigabytes(int threads) {
    double best = 0;
    try (NativeMemory memory = NativeMemory.allocate(BYTES)) {
      memory.segment().fill((byte) 1);
      for (int i = 0; i < PASSES; i++) {
        long start = System.nanoTime();
        pass(memory.segment(), threads);
        best = Math.max(best, (double) BYTES / (System.nanoTime() - start));
      }
    }
    return best;
  }

  private static void pass(MemorySegment memory, int threads) {
    ReadLoop loop = ReadLoop.best();
    long part = BYTES / threads & -64;
    List<Thread> others = new ArrayList<>();
    for (int t = 1; t < threads; t++) {
      MemorySegment own = memory.asSlice(t * part, part);
      others.add(Thread.ofPlatform().start(() -> loop.sum(own)));
    }
    loop.sum(memory.asSlice(0, part));
    try {
      for (Thread other : others) {
        other.join();
      }
    } catch (InterruptedException e) {
      throw new IllegalStateException("interrupted", e);
    }
  }
}
