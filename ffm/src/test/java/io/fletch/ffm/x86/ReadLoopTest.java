package io.fletch.ffm.x86;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Random;
import org.junit.jupiter.api.Test;

class ReadLoopTest {
  @Test
  void fastestLoopReadsEveryWord() {
    try (Arena arena = Arena.ofConfined()) {
      for (int granules : new int[] {1, 2, 7}) {
        MemorySegment memory = arena.allocate((long) granules * ReadLoop.GRANULE, 64);
        Random random = new Random(granules);
        for (long i = 0; i < memory.byteSize(); i += 8) {
          memory.set(ValueLayout.JAVA_LONG, i, random.nextLong());
        }
        assertEquals(ReadLoop.plain().sum(memory), ReadLoop.best().sum(memory));
      }
    }
  }

  @Test
  void bandwidthIsPlausible() {
    // Slices that are no whole number of what a call reads.
    long bytes = 40L << 20;
    for (int threads : new int[] {1, 3}) {
      try (ReadBandwidth read = new ReadBandwidth(threads, bytes)) {
        assertEquals(bytes / threads / ReadLoop.GRANULE * ReadLoop.GRANULE * threads, read.bytes());
        // No machine that runs Java 25 is outside of this, and a unit that is wrong is.
        double rate = read.gigabytesPerSecond(3);
        assertTrue(rate > 0.05 && rate < 20_000, "GB/s: " + rate);
      }
    }
    assertThrows(IllegalArgumentException.class, () -> new ReadBandwidth(0, bytes));
    assertThrows(IllegalArgumentException.class, () -> new ReadBandwidth(2, 4096));
  }

  @Test
  void anInterruptedMeasurementEnds() {
    try (ReadBandwidth read = new ReadBandwidth(2, 8L << 20)) {
      Thread.currentThread().interrupt();
      assertThrows(IllegalStateException.class, () -> read.gigabytesPerSecond(2));
      assertTrue(Thread.interrupted());
    }
  }
}
