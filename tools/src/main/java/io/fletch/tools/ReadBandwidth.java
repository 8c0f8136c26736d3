package io.fletch.tools;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.NativeMemory;
import io.fletch.ffm.x86.ReadLoop;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BrokenBarrierException;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.atomic.AtomicLong;

/**
 * How fast this machine reads memory: the yardstick of decoding, which reads all weights for every
 * token.
 *
 * @param gigabytesPerSecond the best pass
 * @param threads that read at once
 * @param bufferBytes of the buffer, well above the caches
 * @param cacheBytes last-level cache; 0 if unknown
 */
record ReadBandwidth(double gigabytesPerSecond, int threads, long bufferBytes, long cacheBytes) {
  private static final long LEAST = 256L << 20;
  private static final long MOST = 1L << 30;

  /** Several, because a shared machine is not quiet; the best one is the closest to the limit. */
  private static final int PASSES = 12;

  /** Reads a buffer of at least four times the cache with that many threads. */
  static ReadBandwidth measure(int threads) {
    long cache = CpuFeatures.host().l3Bytes();
    long slice = Math.clamp(4 * cache, LEAST, MOST) / threads / ReadLoop.GRANULE * ReadLoop.GRANULE;
    try (NativeMemory memory = NativeMemory.allocate(slice * threads)) {
      // Written, or all pages would be the one page of zeros.
      memory.segment().fill((byte) 1);
      long nanos = best(memory.segment(), slice, threads);
      return new ReadBandwidth((double) slice * threads / nanos, threads, slice * threads, cache);
    }
  }

  private static long best(MemorySegment memory, long slice, int threads) {
    ReadLoop loop = ReadLoop.best();
    AtomicLong start = new AtomicLong();
    AtomicLong best = new AtomicLong(Long.MAX_VALUE);
    AtomicLong sink = new AtomicLong();
    CyclicBarrier begin = new CyclicBarrier(threads, () -> start.set(System.nanoTime()));
    CyclicBarrier end =
        new CyclicBarrier(
            threads, () -> best.accumulateAndGet(System.nanoTime() - start.get(), Math::min));
    List<Thread> readers = new ArrayList<>();
    for (int i = 0; i < threads; i++) {
      MemorySegment part = memory.asSlice(i * slice, slice);
      readers.add(
          Thread.ofPlatform()
              .daemon()
              .name("fletch-read-" + i)
              .start(() -> {
                try {
                  for (int pass = 0; pass < PASSES; pass++) {
                    begin.await();
                    sink.addAndGet(loop.sum(part));
                    end.await();
                  }
                } catch (InterruptedException | BrokenBarrierException e) {
                  throw new IllegalStateException("the measurement was interrupted", e);
                }
              }));
    }
    try {
      for (Thread reader : readers) {
        reader.join();
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new CommandException("interrupted while measuring", e);
    }
    return best.get();
  }
}
