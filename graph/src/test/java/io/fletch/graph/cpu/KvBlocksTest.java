package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.Executable;
import io.fletch.graph.KvCache;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.TestGraphs.Shape;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.channels.Channels;
import java.util.Arrays;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Where keys and values of a cache lie. */
class KvBlocksTest {
  private static final int[] HEADS = {3, 1, 2};
  private static final long[] KEYS = {34, 64, 6};
  private static final long[] VALUES = {68, 2, 512};

  @ParameterizedTest
  @ValueSource(ints = {1, 5, 1023, 1024, 1025, 2048, 2049, 3001, 4096, 5000})
  void nothingOverlaps(int capacity) {
    KvBlocks blocks = new KvBlocks(capacity, HEADS, KEYS, VALUES);
    long[] from = new long[2 * 6 * capacity];
    int n = 0;
    for (int l = 0; l < HEADS.length; l++) {
      for (int h = 0; h < HEADS[l]; h++) {
        for (int s = 0; s < capacity; s++) {
          // The length in the low bits: less than 1024.
          from[n++] = blocks.key(l, h, s) << 10 | KEYS[l];
          from[n++] = blocks.value(l, h, s) << 10 | VALUES[l];
        }
      }
    }
    assertEquals(n, from.length);
    Arrays.sort(from);
    long end = 0;
    for (long f : from) {
      assertTrue(f >> 10 >= end, "overlap");
      end = (f >> 10) + (f & 1023);
    }
    assertTrue(end <= blocks.bytes());
    long filled = 0;
    for (int l = 0; l < HEADS.length; l++) {
      filled += HEADS[l] * (KEYS[l] + VALUES[l]) * capacity;
    }
    assertTrue(blocks.bytes() - filled <= 2 * 6 * 63, "padding");
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 1023, 1024, 1025, 3001, 5000})
  void slotsOfARunAndOfASegmentLieSideBySide(int capacity) {
    KvBlocks blocks = new KvBlocks(capacity, HEADS, KEYS, VALUES);
    for (int s = 0; s < capacity; s++) {
      int run = blocks.run(s);
      assertTrue(run >= 1 && s + run <= capacity, "slot " + s + " run " + run);
      int segmentEnd = (s / KvBlocks.FIRST + 1) * KvBlocks.FIRST;
      assertTrue(s + run >= Math.min(segmentEnd, capacity), "a segment is divided at " + s);
      if (run > 1) {
        assertEquals(blocks.key(2, 1, s) + KEYS[2], blocks.key(2, 1, s + 1));
        assertEquals(blocks.value(0, 2, s) + VALUES[0], blocks.value(0, 2, s + 1));
      }
    }
  }

  /** The largest caches there can be are counted in longs, or refused. */
  @Test
  void sizesDoNotOverflow() {
    int slots = Integer.MAX_VALUE;
    KvBlocks blocks = new KvBlocks(slots, new int[] {128}, new long[] {1024}, new long[] {1024});
    assertTrue(blocks.bytes() >= slots * 128L * 2048);
    assertTrue(blocks.value(0, 127, slots - 1) + 1024 <= blocks.bytes());
    assertEquals(1, blocks.run(slots - 1));
    assertThrows(
        ArithmeticException.class,
        () -> new KvBlocks(slots, new int[] {1 << 20}, new long[] {1 << 20}, new long[] {1 << 20}));
  }

  /** Files have the slots of a head one after another, wherever blocks end. */
  @Test
  void slotsAreLoadedCopiedAndSavedAcrossBlocks() throws IOException {
    int slots = 2600;
    Random random = new Random(5);
    try (TestGraphs graphs = new TestGraphs(3);
        Executable e =
            CpuBackendTest.compile(graphs.llama(Shape.small()), 4, 1, KernelSets.scalar());
        KvCache a = e.newKvCache(3000, KvCache.Type.F16);
        KvCache b = e.newKvCache(2700, KvCache.Type.F16)) {
      byte[] first = new byte[Math.toIntExact(slots * a.slotBytes())];
      byte[] second = new byte[first.length];
      random.nextBytes(first);
      random.nextBytes(second);
      a.load(slots, Channels.newChannel(new ByteArrayInputStream(first)));
      b.load(slots, Channels.newChannel(new ByteArrayInputStream(second)));
      assertArrayEquals(first, saved(a, slots));
      int source = 700;
      int target = 1500;
      int count = 1050;
      b.copy(a, source, target, count);
      // Keys and values of a head are runs of slots, all of 64 bytes in this shape.
      int bytes = 64;
      int runs = first.length / (slots * bytes);
      for (int r = 0; r < runs; r++) {
        int at = r * slots * bytes;
        System.arraycopy(first, at + source * bytes, second, at + target * bytes, count * bytes);
      }
      assertArrayEquals(second, saved(b, slots));
      b.copy(b, 1000, 2100, 500);
      for (int r = 0; r < runs; r++) {
        int at = r * slots * bytes;
        System.arraycopy(second, at + 1000 * bytes, second, at + 2100 * bytes, 500 * bytes);
      }
      assertArrayEquals(second, saved(b, slots));
    }
  }

  private static byte[] saved(KvCache cache, int slots) throws IOException {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    cache.save(slots, Channels.newChannel(out));
    return out.toByteArray();
  }
}
