package io.fletch.ffm.x86;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.NativeMemory;
import io.fletch.ffm.Threads;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BrokenBarrierException;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.atomic.AtomicLong;

/**
 * What threads read together from memory in huge pages, more than caches hold: the yardstick of
 * decoding, which reads all weights for every token. Used by one thread.
 */
public final class ReadBandwidth implements AutoCloseable {
  private static final long LEAST = 192L << 20;
  private static final long MOST = 1L << 30;

  /** Bytes of one call of the read loop, about a matrix. */
  private static final long PART = 16L << 20;

  private static final int PASSES = 5;

  private final NativeMemory memory;
  private final ReadLoop loop = ReadLoop.best();
  private final AtomicLong sink = new AtomicLong();
  private final int threads;
  private final long slice;

  /** For that many threads, the calling one included, over 1 GiB. */
  public ReadBandwidth(int threads) {
    this(threads, MOST);
  }

  /**
   * For that many threads, the calling one included.
   *
   * @param bytes of memory, about: threads read equal slices
   */
  public ReadBandwidth(int threads, long bytes) {
    if (threads < 1 || bytes / threads < ReadLoop.GRANULE) {
      throw new IllegalArgumentException(
          "expected=a slice for each thread actual=threads " + threads + " bytes " + bytes);
    }
    this.threads = threads;
    slice = bytes / threads / ReadLoop.GRANULE * ReadLoop.GRANULE;
    memory = NativeMemory.allocate(slice * threads);
    // Written, or all pages would be the one page of zeros.
    memory.segment().fill((byte) 1);
  }

  /** Bytes that do not fit in the last-level cache, for what shall come from memory. */
  public static long workingSet() {
    return workingSet(2);
  }

  /** So many times the last-level cache, at least 192 MiB and at most 1 GiB. */
  public static long workingSet(int caches) {
    return Math.clamp(caches * CpuFeatures.host().l3Bytes(), LEAST, MOST);
  }

  /** GB/s of some threads, measured once. */
  public static double gigabytes(int threads) {
    try (ReadBandwidth read = new ReadBandwidth(threads)) {
      return read.gigabytesPerSecond();
    }
  }

  /** Bytes that a pass reads. */
  public long bytes() {
    return slice * threads;
  }

  /** As {@link #gigabytesPerSecond(int)}, with five passes. */
  public double gigabytesPerSecond() {
    return gigabytesPerSecond(PASSES);
  }

  /**
   * All of the memory, the threads side by side, by wall clock: the best of some passes, since a
   * limit that other processes lowered would flatter.
   *
   * @throws IllegalStateException if the thread is interrupted; it stays so
   */
  public double gigabytesPerSecond(int passes) {
    AtomicLong start = new AtomicLong();
    AtomicLong best = new AtomicLong(Long.MAX_VALUE);
    CyclicBarrier begin = new CyclicBarrier(threads, () -> start.set(System.nanoTime()));
    CyclicBarrier end =
        new CyclicBarrier(
            threads, () -> best.accumulateAndGet(System.nanoTime() - start.get(), Math::min));
    List<Thread> others = new ArrayList<>();
    for (int t = 1; t < threads; t++) {
      long from = t * slice;
      others.add(
          Thread.ofPlatform()
              .daemon()
              .name("fletch-read-" + t)
              .start(() -> isRead(from, passes, begin, end)));
    }
    boolean whole;
    try {
      whole = isRead(0, passes, begin, end);
    } finally {
      // They read memory that may be given back after this.
      others.forEach(Threads::join);
    }
    if (!whole) {
      throw new IllegalStateException("the measurement was interrupted");
    }
    return (double) bytes() / best.get();
  }

  /** Reads a slice in every pass; false if one of the threads was interrupted, which ends all. */
  private boolean isRead(long from, int passes, CyclicBarrier begin, CyclicBarrier end) {
    try {
      for (int pass = 0; pass < passes; pass++) {
        begin.await();
        for (long at = 0; at < slice; at += PART) {
          long bytes = Math.min(PART, slice - at);
          sink.addAndGet(loop.sum(memory.segment().asSlice(from + at, bytes)));
        }
        end.await();
      }
      return true;
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      return false;
    } catch (BrokenBarrierException e) {
      return false;
    }
  }

  @Override
  public void close() {
    memory.close();
  }
}
