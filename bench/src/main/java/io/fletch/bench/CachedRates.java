package io.fletch.bench;

import io.fletch.ffm.x86.ReadLoop;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import org.openjdk.jmh.annotations.AuxCounters;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;

/**
 * What one second reads and writes of operands that lie in a cache: GB/s, and the share of what a
 * read loop reads of as many bytes, again and again, in the same process.
 */
@AuxCounters(AuxCounters.Type.OPERATIONS)
@State(Scope.Thread)
public class CachedRates {
  private static final long NANOS = 500_000_000;
  private static final int CALLS = 64;

  public double gigabytes;
  public double percent;

  @Setup(Level.Iteration)
  public void clear() {
    gigabytes = 0;
    percent = 0;
  }

  /**
   * Counts an operation.
   *
   * @param bytes that it reads and writes
   * @param peak of {@link #peak}
   */
  void add(long bytes, double peak) {
    gigabytes += bytes * 1e-9;
    percent += 100e-9 * bytes / peak;
  }

  /** GB/s of the read loop over so many bytes, the best of some passes. */
  static double peak(long bytes) {
    ReadLoop loop = ReadLoop.best();
    long whole = Math.max(1, Math.ceilDiv(bytes, ReadLoop.GRANULE)) * ReadLoop.GRANULE;
    double best = 0;
    long sum = 0;
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment memory = arena.allocate(whole, 4096).fill((byte) 1);
      long end = System.nanoTime() + NANOS;
      do {
        long start = System.nanoTime();
        for (int i = 0; i < CALLS; i++) {
          sum += loop.sum(memory);
        }
        best = Math.max(best, (double) CALLS * whole / (System.nanoTime() - start));
      } while (System.nanoTime() < end);
    }
    // A sum that nobody wants would not have to be computed.
    return sum == Long.MIN_VALUE ? Double.NaN : best;
  }
}
