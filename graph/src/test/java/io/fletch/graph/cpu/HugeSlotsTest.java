package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.fletch.ffm.NativeMemory;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;

/** Caches grow into huge pages as they fill, and not before. */
class HugeSlotsTest {
  private static final long PAGE = NativeMemory.HUGE_PAGE;
  private static final int SLOT = 128;
  private static final int CAPACITY = (int) (5 * PAGE / 2 / SLOT);
  private static final int HALF = (int) (PAGE / 2 / SLOT);

  private static HugeSlots slots(NativeMemory memory, int runs, int capacity) {
    long[] base = new long[runs];
    long[] bytes = new long[runs];
    for (int i = 0; i < runs; i++) {
      base[i] = i * (long) capacity * SLOT;
      bytes[i] = SLOT;
    }
    return new HugeSlots(memory, capacity, base, bytes);
  }

  @Test
  void aPieceIsAskedForWhenHalfOfTheOneBeforeIsFilled() {
    int runs = 6;
    try (NativeMemory memory = NativeMemory.allocateSparse(runs * (long) CAPACITY * SLOT)) {
      HugeSlots slots = slots(memory, runs, CAPACITY);
      for (long at = 0; at < memory.segment().byteSize(); at += 64) {
        memory.segment().set(ValueLayout.JAVA_LONG, at, at * 31);
      }
      // Every other run begins in the middle of a piece, which is shared and left alone.
      slots.filled(HALF - 1);
      assertEquals(0, slots.asked());
      slots.filled(HALF);
      assertEquals((3 * 2 + 3) * PAGE, slots.asked(), "the piece at hand and the next");
      slots.filled(HALF + 1);
      assertEquals(9 * PAGE, slots.asked());
      slots.filled(CAPACITY);
      assertEquals(12 * PAGE, slots.asked());
      for (long at = 0; at < memory.segment().byteSize(); at += 64) {
        assertEquals(at * 31, memory.segment().get(ValueLayout.JAVA_LONG, at));
      }
    }
  }

  @Test
  void whatIsRestoredIsAskedForBeforeItIsWritten() {
    try (NativeMemory memory = NativeMemory.allocateSparse(2L * CAPACITY * SLOT)) {
      HugeSlots slots = slots(memory, 2, CAPACITY);
      slots.expect(HALF);
      assertEquals(0, slots.asked());
      slots.expect(CAPACITY);
      assertEquals(4 * PAGE, slots.asked());
    }
  }

  @Test
  void shortCachesStayAsTheyAre() {
    try (NativeMemory memory = NativeMemory.allocateSparse(PAGE)) {
      HugeSlots slots = slots(memory, 2, HALF);
      slots.filled(HALF);
      slots.expect(HALF);
      assertEquals(0, slots.asked());
    }
  }

  /** The kernel's flag of a mapping that wants huge pages. */
  @Test
  void theSystemHearsOfIt() throws IOException {
    try (NativeMemory memory = NativeMemory.allocateSparse(4 * PAGE)) {
      assumeTrue(memory.lazy(), "no mapping of its own");
      assumeTrue(Files.isReadable(Path.of("/proc/self/smaps")), "no /proc");
      assumeTrue(memory.adviseHugePages(PAGE, PAGE), "a system without huge pages");
      String start = Long.toHexString(memory.segment().address() + PAGE);
      boolean found = false;
      boolean flagged = false;
      for (String line : Files.readAllLines(Path.of("/proc/self/smaps"))) {
        if (line.matches("[0-9a-f]+-[0-9a-f]+ .*")) {
          found = line.startsWith(start + "-");
        }
        flagged |= found && line.startsWith("VmFlags:") && line.contains(" hg");
      }
      assertTrue(flagged, "no mapping with this advice at " + start);
    }
  }

  @Test
  void otherPartsThanHugePagesAreRefused() {
    try (NativeMemory memory = NativeMemory.allocateSparse(2 * PAGE)) {
      assertThrows(IllegalArgumentException.class, () -> memory.adviseHugePages(4096, PAGE));
      assertThrows(IndexOutOfBoundsException.class, () -> memory.adviseHugePages(PAGE, 2 * PAGE));
    }
  }
}
