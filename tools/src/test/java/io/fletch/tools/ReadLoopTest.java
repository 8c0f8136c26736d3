package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.x86.ReadLoop;
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
    ReadBandwidth bandwidth = ReadBandwidth.measure(2);
    assertEquals(2, bandwidth.threads());
    assertTrue(bandwidth.bufferBytes() >= 200L << 20, bandwidth.toString());
    // No machine that runs Java 25 is outside of this, and a unit that is wrong is.
    assertTrue(
        bandwidth.gigabytesPerSecond() > 0.05 && bandwidth.gigabytesPerSecond() < 20_000,
        bandwidth.toString());
  }
}
