package io.fletch.bench;

import io.fletch.ffm.NativeMemory;
import io.fletch.ffm.x86.ReadLoop;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import java.util.Locale;

/**
 * Question: how much slower does a core read a mapped file, in pages of 4 KiB, than a copy of it in
 * huge pages?
 *
 * <p>The read loop walks through both in turns, in pieces as long as a matrix. Printed: the median,
 * the fastest and the slowest round of each in GB/s, and the median of the ratios of the rounds.
 *
 * <p>Usage: {@code PageBenchmark FILE ROUNDS}, a file of more than the last-level cache, of which
 * at most 1 GiB is read.
 */
public final class PageBenchmark {
  private static final long PIECE = 16L << 20;
  private static final long MOST = 1L << 30;

  private PageBenchmark() {}

  /** Runs the comparison. */
  public static void main(String[] args) throws IOException {
    if (args.length != 2) {
      System.err.println("usage: PageBenchmark FILE ROUNDS");
      System.exit(2);
    }
    int rounds = Integer.parseInt(args[1]);
    if (rounds < 1) {
      throw new IllegalArgumentException("rounds: expected=positive actual=" + rounds);
    }
    try (Arena arena = Arena.ofConfined();
        FileChannel channel = FileChannel.open(Path.of(args[0]), StandardOpenOption.READ)) {
      long bytes = Math.min(MOST, channel.size()) / PIECE * PIECE;
      if (bytes == 0) {
        throw new IllegalArgumentException(
            "file: expected at least " + PIECE + " bytes actual=" + channel.size());
      }
      MemorySegment file = channel.map(FileChannel.MapMode.READ_ONLY, 0, bytes, arena);
      try (NativeMemory memory = NativeMemory.allocate(bytes)) {
        // Also brings the file into the page cache and its pages into the page table.
        memory.segment().copyFrom(file);
        double[] mapped = new double[rounds];
        double[] huge = new double[rounds];
        double[] ratios = new double[rounds];
        for (int round = 0; round < rounds; round++) {
          mapped[round] = gigabytesPerSecond(file);
          huge[round] = gigabytesPerSecond(memory.segment());
          ratios[round] = mapped[round] / huge[round];
        }
        print("mapped file", mapped, " GB/s");
        print("huge pages", huge, " GB/s");
        print("ratio", ratios, "");
      }
    }
  }

  private static double gigabytesPerSecond(MemorySegment memory) {
    ReadLoop loop = ReadLoop.best();
    long sum = 0;
    long start = System.nanoTime();
    for (long at = 0; at < memory.byteSize(); at += PIECE) {
      sum += loop.sum(memory.asSlice(at, PIECE));
    }
    double rate = memory.byteSize() / (double) (System.nanoTime() - start);
    // A sum that nobody wants would not have to be computed.
    return sum == Long.MIN_VALUE ? Double.NaN : rate;
  }

  private static void print(String what, double[] values, String unit) {
    double[] sorted = values.clone();
    Arrays.sort(sorted);
    System.out.printf(
        Locale.ROOT,
        "%-12s %6.2f (%.2f-%.2f)%s%n",
        what,
        sorted[sorted.length / 2],
        sorted[0],
        sorted[sorted.length - 1],
        unit);
  }
}
