package io.fletch.ffm;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class NativeMemoryTest {
  @ParameterizedTest
  @ValueSource(longs = {0, 1, 63, 4096, 4097, (2 << 20) - 1, 2 << 20, (5 << 20) + 12345})
  void isZeroedAlignedAndWritableToTheLastByte(long bytes) {
    try (NativeMemory memory = NativeMemory.allocate(bytes)) {
      MemorySegment s = memory.segment();
      assertEquals(bytes, s.byteSize());
      if (bytes > 0) {
        assertEquals(0, s.address() % 64);
        assertEquals(0, s.get(ValueLayout.JAVA_BYTE, 0));
        assertEquals(0, s.get(ValueLayout.JAVA_BYTE, bytes - 1));
        s.fill((byte) 7);
        assertEquals(7, s.get(ValueLayout.JAVA_BYTE, bytes - 1));
      }
      if (memory.hugePages()) {
        assertEquals(0, s.address() % (2 << 20));
      }
    }
  }

  @Test
  void reservationsCostNothingUntilTouched() throws IOException {
    assumeTrue(NativeAccess.libc(), NativeAccess.missing());
    long before = residentPages();
    try (NativeMemory memory = NativeMemory.allocate(64L << 30)) {
      assertTrue(memory.lazy());
      memory.segment().set(ValueLayout.JAVA_BYTE, 40L << 30, (byte) 1);
      assertTrue((residentPages() - before) * 4096 < 256L << 20);
    }
  }

  @Test
  void closingTwiceAndUseAfterCloseAreErrors() {
    NativeMemory memory = NativeMemory.allocate(100);
    MemorySegment s = memory.segment();
    memory.close();
    assertThrows(IllegalStateException.class, memory::close);
    assertThrows(IllegalStateException.class, () -> s.get(ValueLayout.JAVA_BYTE, 0));
  }

  @Test
  void refusesImpossibleSizes() {
    assertThrows(IllegalArgumentException.class, () -> NativeMemory.allocate(-1));
    assumeTrue(NativeAccess.libc(), NativeAccess.missing());
    OutOfMemoryError e =
        assertThrows(OutOfMemoryError.class, () -> NativeMemory.allocate(1L << 60));
    assertTrue(e.getMessage().contains("wanted=" + (1L << 60)), e.getMessage());
  }

  private static long residentPages() throws IOException {
    return Long.parseLong(Files.readString(Path.of("/proc/self/statm")).split(" ")[1]);
  }
}
