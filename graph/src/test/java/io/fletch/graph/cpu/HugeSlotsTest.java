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
  private static final int CAPACITY = 8192;

  /** One layer of four heads with keys and values of 128 bytes: 8 MiB. */
  private static KvBlocks blocks(int capacity) {
    return new KvBlocks(capacity, new int[] {4}, new long[] {128}, new long[] {128});
  }

  @Test
  void aBlockIsAskedForWhenHalfOfTheOneBeforeIsFilled() {
    KvBlocks blocks = blocks(CAPACITY);
    try (NativeMemory memory = NativeMemory.allocateSparse(blocks.bytes())) {
      HugeSlots slots = new HugeSlots(memory, blocks);
      for (long at = 0; at < memory.segment().byteSize(); at += 64) {
        memory.segment().set(ValueLayout.JAVA_LONG, at, at * 31);
      }
      slots.filled(511);
      assertEquals(0, slots.asked());
      slots.filled(512);
      assertEquals(PAGE, slots.asked(), "slots 1024 to 2048, and the half page before them");
      slots.filled(1535);
      assertEquals(PAGE, slots.asked());
      slots.filled(1536);
      assertEquals(2 * PAGE, slots.asked(), "slots 2048 to 4096");
      slots.filled(100);
      slots.filled(CAPACITY);
      assertEquals(4 * PAGE, slots.asked());
      for (long at = 0; at < memory.segment().byteSize(); at += 64) {
        assertEquals(at * 31, memory.segment().get(ValueLayout.JAVA_LONG, at));
      }
    }
  }

  @Test
  void whatIsRestoredIsAskedForBeforeItIsWritten() {
    KvBlocks blocks = blocks(CAPACITY);
    try (NativeMemory memory = NativeMemory.allocateSparse(blocks.bytes())) {
      HugeSlots slots = new HugeSlots(memory, blocks);
      slots.expect(KvBlocks.FIRST);
      assertEquals(0, slots.asked());
      slots.expect(KvBlocks.FIRST + 1);
      assertEquals(PAGE, slots.asked());
      slots.expect(CAPACITY);
      assertEquals(4 * PAGE, slots.asked());
    }
  }

  @Test
  void shortCachesStayAsTheyAre() {
    KvBlocks blocks = blocks(KvBlocks.FIRST);
    try (NativeMemory memory = NativeMemory.allocateSparse(blocks.bytes())) {
      HugeSlots slots = new HugeSlots(memory, blocks);
      slots.filled(KvBlocks.FIRST);
      slots.expect(KvBlocks.FIRST);
      assertEquals(0, slots.asked());
    }
  }

  /** A page that the first block of the next layer begins in is left alone. */
  @Test
  void layersDoNotShareWhatIsAskedFor() {
    KvBlocks blocks =
        new KvBlocks(5000, new int[] {3, 5, 1}, new long[] {68, 128, 64}, new long[] {136, 64, 32});
    try (NativeMemory memory = NativeMemory.allocateSparse(blocks.bytes())) {
      HugeSlots slots = new HugeSlots(memory, blocks);
      slots.filled(5000);
      // Layers of 2.9, 4.6 and 0.5 MiB: pages [0, 1), [2, 3) and none.
      assertEquals(0, blocks.base(0));
      assertEquals(5 * PAGE / 4, blocks.base(1), PAGE / 4.0);
      assertEquals(2 * PAGE, slots.asked());
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
