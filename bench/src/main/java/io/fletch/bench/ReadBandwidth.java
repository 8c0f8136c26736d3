package io.fletch.bench;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.NativeMemory;
import io.fletch.ffm.x86.ReadLoop;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BrokenBarrierException;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.atomic.AtomicLong;

/**
 * What threads read together from 1 GiB in huge pages, more than caches hold. Used by one thread.
 */
final class ReadBandwidth implements AutoCloseable {
  private static final long BYTES = 1L << 30;

  /** Bytes of one call of the read loop, about a matrix. */
  private static final long PART = 16L << 20;

  private static final int PASSES = 5;

  private static final long LEAST_WORKING_SET = 192L << 20;

  private final NativeMemory memory = NativeMemory.allocate(BYTES);
  private final ReadLoop loop = ReadLoop.best();
  private final AtomicLong sink = new AtomicLong();
  private final int threads;

  /** For that many threads, the calling one included. */
  ReadBandwidth(int threads) {
    this.threads = threads;
    // Written, or all pages would be the one page of zeros.
    memory.segment().fill((byte) 1);
  }

  /** Bytes that do not fit in the last-level cache, for what shall come from memory. */
  static long workingSet() {
    return Math.clamp(2 * CpuFeatures.host().l3Bytes(), LEAST_WORKING_SET, BYTES);
  }

  /** GB/s of some threads, measured once. */
  static double gigabytes(int threads) {
    try (ReadBandwidth read = new ReadBandwidth(threads)) {
      return read.gigabytesPerSecond();
    }
  }

  /**
   * All of the memory, the threads side by side, by wall clock: the best of some passes, since a
   * limit that other processes lowered would flatter.
   */
  double gigabytesPerSecond() {
    long part = BYTES / threads / PART * PART;
    AtomicLong start = new AtomicLong();
    AtomicLong best = new AtomicLong(Long.MAX_VALUE);
    CyclicBarrier begin = new CyclicBarrier(threads, () -> start.set(System.nanoTime()));
    CyclicBarrier end =
        new CyclicBarrier(
            threads, () -> best.accumulateAndGet(System.nanoTime() - start.get(), Math::min));
    List<Thread> others = new ArrayList<>();
    for (int t = 1; t < threads; t++) {
      long from = t * part;
      others.add(Thread.ofPlatform().start(() -> read(from, part, begin, end)));
    }
    read(0, part, begin, end);
    for (Thread other : others) {
      try {
        other.join();
      } catch (InterruptedException e) {
        throw new IllegalStateException("the measurement was interrupted", e);
      }
    }
    return (double) part * threads / best.get();
  }

  private void read(long from, long bytes, CyclicBarrier begin, CyclicBarrier end) {
    try {
      for (int pass = 0; pass < PASSES; pass++) {
        begin.await();
        for (long at = from; at < from + bytes; at += PART) {
          sink.addAndGet(loop.sum(memory.segment().asSlice(at, PART)));
        }
        end.await();
      }
    } catch (InterruptedException | BrokenBarrierException e) {
      throw new IllegalStateException("the measurement was interrupted", e);
    }
  }

  @Override
  public void close() {
    memory.close();
  }
}
