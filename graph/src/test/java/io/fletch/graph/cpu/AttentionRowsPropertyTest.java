package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.Example;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.ShrinkingMode;

/**
 * The bits of a row of attention depend on what it sees and at which positions, on nothing else:
 * not on the rows beside it, on who computes its segments and in which order, on where keys and
 * values lie, or on what is at positions that only others see.
 */
class AttentionRowsPropertyTest {
  private static final int SEGMENT = Kernels.ATTENTION_SEGMENT;

  /** Keys and values of consecutive positions. */
  private record Slots(MemorySegment kv, int begin, long keyBytes, long valueBytes, int count) {
    long key(int position) {
      return (position - begin) * keyBytes;
    }

    long value(int position) {
      return count * keyBytes + (position - begin) * valueBytes;
    }
  }

  /** Everything but keys and values, and what rows see. */
  private record Problem(
      Kernels kernels,
      AttentionSpec spec,
      KvCache.Type type,
      MemorySegment q,
      int[] from,
      int[] to) {
    int rows() {
      return from.length;
    }

    int width() {
      return spec.group() * spec.valueDim();
    }

    AttentionRows rows(Arena arena, MemorySegment out, int first, int count) {
      AttentionRows rows = new AttentionRows(scratch(arena));
      rows.begin(kernels, spec, q, out);
      for (int r = first; r < first + count; r++) {
        long query = (long) r * spec.group() * spec.keyDim();
        rows.add(query, from[r], to[r], (long) (r - first) * width());
      }
      return rows;
    }

    /** Working memory, full of numbers that must not matter. */
    MemorySegment scratch(Arena arena) {
      return arena.allocate(4L * AttentionRows.floats(kernels, spec)).fill((byte) 0xff);
    }

    KvRun kv(Slots slots) {
      return new KvRun().set(type, slots.kv, slots.key(0), slots.value(0));
    }

    /** Results of consecutive rows, row by row. */
    int[][] run(Slots slots, int first, int count) {
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment out = arena.allocate(4L * count * width()).fill((byte) 0xff);
        rows(arena, out, first, count).run(kv(slots));
        return bits(out, count);
      }
    }

    /** The same by segments that are taken in any order. */
    int[][] divided(Slots slots, int first, int count, Random random) {
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment out = arena.allocate(4L * count * width()).fill((byte) 0xff);
        AttentionRows rows = rows(arena, out, first, count);
        List<Integer> segments = new ArrayList<>();
        for (int s = rows.firstSegment(); s < rows.endSegment(); s++) {
          segments.add(s);
        }
        int floats = Math.max(1, segments.size()) * count * kernels.attentionState(spec);
        MemorySegment states = arena.allocate(4L * (5 + floats)).fill((byte) 0xff);
        Collections.shuffle(segments, random);
        for (int s : segments) {
          rows(arena, out, first, count).part(s, kv(slots), states, 5);
        }
        rows.join(states, 5);
        return bits(out, count);
      }
    }

    /** Bits of floats, all NaN alike. */
    private int[][] bits(MemorySegment out, int count) {
      int[][] bits = new int[count][width()];
      for (int i = 0; i < count * width(); i++) {
        bits[i / width()][i % width()] = Float.floatToIntBits(Segments.f32(out, i));
      }
      return bits;
    }
  }

  @Provide
  Arbitrary<Kernels> kernelSets() {
    return Arbitraries.of(KernelSets.available());
  }

  private static Problem problem(
      Arena arena, Kernels kernels, KvCache.Type type, int begin, int count, Random random) {
    int unit = type == KvCache.Type.Q8_0 ? 32 : 8;
    int keyDim = unit * (1 + random.nextInt(64 / unit));
    int valueDim = unit * (1 + random.nextInt(64 / unit));
    int group = 1 + random.nextInt(6);
    float cap = random.nextInt(3) == 0 ? 4f : 0f;
    AttentionSpec spec = new AttentionSpec(0, group, 1, keyDim, valueDim, 0.2f, cap, 0);
    int rows = 1 + random.nextInt(AttentionTile.ROWS);
    int[] from = new int[rows];
    int[] to = new int[rows];
    // As of a prompt, with a window or not, or of any rows.
    int window = random.nextBoolean() ? count : 1 + random.nextInt(count);
    boolean prompt = random.nextBoolean();
    for (int r = 0; r < rows; r++) {
      to[r] = begin + (prompt ? Math.max(1, count - rows + r + 1) : random.nextInt(count + 1));
      from[r] =
          Math.max(begin, prompt ? to[r] - window : begin + random.nextInt(to[r] - begin + 1));
    }
    MemorySegment q = gaussians(arena, rows * group * keyDim, 1, random);
    return new Problem(kernels, spec, type, q, from, to);
  }

  private static Slots slots(Arena arena, Problem p, int begin, int count, Random random) {
    long keyBytes = p.kernels.kvBytes(p.type, p.spec.keyDim());
    long valueBytes = p.kernels.kvBytes(p.type, p.spec.valueDim());
    MemorySegment kv = arena.allocate(count * (keyBytes + valueBytes));
    Slots slots = new Slots(kv, begin, keyBytes, valueBytes, count);
    for (int s = begin; s < begin + count; s++) {
      store(arena, p, slots, s, 1, random);
    }
    return slots;
  }

  private static void store(
      Arena arena, Problem p, Slots slots, int position, float spread, Random random) {
    MemorySegment k = gaussians(arena, p.spec.keyDim(), spread, random);
    ScalarKernels.INSTANCE.kvStore(p.type, k, 0, p.spec.keyDim(), slots.kv, slots.key(position));
    MemorySegment v = gaussians(arena, p.spec.valueDim(), spread, random);
    ScalarKernels.INSTANCE.kvStore(
        p.type, v, 0, p.spec.valueDim(), slots.kv, slots.value(position));
  }

  private static MemorySegment gaussians(Arena arena, int n, float spread, Random random) {
    MemorySegment x = arena.allocate(4L * n, 4);
    for (int i = 0; i < n; i++) {
      Segments.f32(x, i, spread * (float) random.nextGaussian());
    }
    return x;
  }

  @Property(tries = 250, shrinking = ShrinkingMode.OFF)
  void onlyWhatARowSeesMatters(
      @ForAll("kernelSets") Kernels kernels, @ForAll KvCache.Type type, @ForAll long seed) {
    Random random = new Random(seed);
    int count = 1 + random.nextInt(random.nextInt(4) == 0 ? 2500 : 200);
    // The beginning, about the end of a segment, or the last positions that there can be.
    int[] begins = {0, Math.max(0, SEGMENT - random.nextInt(2 * count)), Integer.MAX_VALUE - count};
    int begin = begins[random.nextInt(3)];
    try (Arena arena = Arena.ofConfined()) {
      Problem p = problem(arena, kernels, type, begin, count, random);
      Slots clean = slots(arena, p, begin, count, random);
      // The same elsewhere, with a position that is not a number for those that see it.
      MemorySegment copy = arena.allocate(clean.kv.byteSize() + 6).asSlice(6);
      Slots spoilt = new Slots(copy, begin, clean.keyBytes, clean.valueBytes, count);
      copy.copyFrom(clean.kv);
      int spoiler = begin + random.nextInt(count);
      store(arena, p, spoilt, spoiler, Float.NaN, random);
      int[][] expected = new int[p.rows()][];
      for (int r = 0; r < p.rows(); r++) {
        boolean sees = p.from[r] <= spoiler && spoiler < p.to[r];
        expected[r] = p.run(sees ? spoilt : clean, r, 1)[0];
        if (sees) {
          assertEquals(Float.floatToIntBits(Float.NaN), expected[r][0], "row " + r);
        }
      }
      check(expected, p.run(spoilt, 0, p.rows()), 0, "together");
      check(expected, p.divided(spoilt, 0, p.rows(), random), 0, "divided");
      int first = random.nextInt(p.rows());
      int some = 1 + random.nextInt(p.rows() - first);
      check(expected, p.run(spoilt, first, some), first, "some");
      check(expected, p.divided(spoilt, first, some, random), first, "some divided");
    }
  }

  private static void check(int[][] expected, int[][] actual, int first, String what) {
    for (int r = 0; r < actual.length; r++) {
      assertArrayEquals(expected[first + r], actual[r], what + ", row " + (first + r));
    }
  }

  @Property(tries = 60, shrinking = ShrinkingMode.OFF)
  void kernelSetsAgree(@ForAll KvCache.Type type, @ForAll long seed) {
    Random random = new Random(seed);
    int count = 1 + random.nextInt(2500);
    int begin = random.nextInt(3000);
    try (Arena arena = Arena.ofConfined()) {
      Problem scalar = problem(arena, KernelSets.scalar(), type, begin, count, random);
      Slots slots = slots(arena, scalar, begin, count, random);
      int[][] expected = scalar.run(slots, 0, scalar.rows());
      for (Kernels kernels : KernelSets.available()) {
        if (kernels == scalar.kernels) {
          continue;
        }
        Problem p = new Problem(kernels, scalar.spec, type, scalar.q, scalar.from, scalar.to);
        check(expected, p.run(slots, 0, p.rows()), 0, kernels.name());
      }
    }
  }

  /**
   * Scores of minus infinity, of a whole segment or of all, leave what the others give, or zero.
   */
  @Example
  void segmentsWithoutWeight() {
    AttentionSpec spec = new AttentionSpec(0, 1, 1, 16, 16, 1f, 0f, 0);
    for (Kernels kernels : KernelSets.available()) {
      for (int lost = 0; lost < 4; lost++) {
        try (Arena arena = Arena.ofConfined()) {
          MemorySegment q = arena.allocate(64);
          for (int i = 0; i < 16; i++) {
            Segments.f32(q, i, 1f);
          }
          int count = 3 * SEGMENT;
          MemorySegment kv = arena.allocate(2L * 64 * count);
          for (int p = 0; p < count; p++) {
            boolean none = lost == 3 || p / SEGMENT == lost;
            Segments.f32(kv, p * 16L, none ? Float.NEGATIVE_INFINITY : 0f);
            Segments.f32(kv, (count + p) * 16L + 5, none ? 7f : 3f);
          }
          Slots slots = new Slots(kv, 0, 64, 64, count);
          Problem p =
              new Problem(kernels, spec, KvCache.Type.F32, q, new int[] {0}, new int[] {count});
          float[] out = new float[16];
          out[5] = lost == 3 ? 0f : 3f;
          int[] bits = p.run(slots, 0, 1)[0];
          for (int i = 0; i < 16; i++) {
            assertEquals(out[i], Float.intBitsToFloat(bits[i]), 1e-6f, kernels.name());
          }
          check(new int[][] {bits}, p.divided(slots, 0, 1, new Random(lost)), 0, kernels.name());
        }
      }
    }
  }

  /** More segments of a row than a kernel takes at a time. */
  @Example
  void manySegmentsOfARow() {
    int from = SEGMENT - 3;
    int to = (AttentionTile.ROWS + 3) * SEGMENT + 5;
    for (KvCache.Type type : KvCache.Type.values()) {
      for (int group : new int[] {2, 5}) {
        try (Arena arena = Arena.ofConfined()) {
          Random random = new Random(group);
          AttentionSpec spec = new AttentionSpec(0, group, 1, 32, 32, 0.2f, 0f, 0);
          MemorySegment q = gaussians(arena, group * 32, 1, random);
          Kernels kernels = KernelSets.available().getFirst();
          Problem p = new Problem(kernels, spec, type, q, new int[] {from}, new int[] {to});
          Slots slots = slots(arena, p, from, to - from, random);
          check(p.run(slots, 0, 1), p.divided(slots, 0, 1, random), 0, type + " " + group);
        }
      }
    }
  }

  @Example
  void tilesRefuseWhatIsNotInTheirSegment() {
    AttentionTile tile = new AttentionTile();
    tile.begin(2, MemorySegment.NULL, MemorySegment.NULL);
    tile.add(0, 2048, 3072, 0);
    tile.add(0, 2100, 2100, 0);
    assertEquals(2048, tile.start());
    assertEquals(3072, tile.end());
    assertThrows(IllegalArgumentException.class, () -> tile.add(0, 2047, 2050, 0));
    assertThrows(IllegalArgumentException.class, () -> tile.add(0, 2060, 3073, 0));
    assertThrows(IllegalArgumentException.class, () -> tile.add(0, 2060, 2059, 0));
    for (int r = 2; r < AttentionTile.ROWS; r++) {
      tile.add(0, 2048, 2048, 0);
    }
    assertThrows(IllegalStateException.class, () -> tile.add(0, 2048, 2048, 0));
    assertThrows(IllegalStateException.class, tile::nextSegment);
    tile.begin(2, MemorySegment.NULL, MemorySegment.NULL);
    assertThrows(IllegalStateException.class, tile::nextSegment);
    tile.add(7, 2048, 3072, 0);
    tile.nextSegment();
    assertEquals(2, tile.segments());
    assertThrows(IllegalStateException.class, tile::nextSegment);
    assertThrows(IllegalArgumentException.class, () -> tile.add(8, 3072, 3073, 0));
    assertThrows(IllegalArgumentException.class, () -> tile.add(7, 3072, 3072, 0));
    assertThrows(IllegalArgumentException.class, () -> tile.add(7, 3071, 3073, 0));
    tile.add(7, 3072, 3073, 0);
    assertEquals(3073, tile.end());
    tile.begin(2, MemorySegment.NULL, MemorySegment.NULL);
    assertEquals(1, tile.segments());
    tile.add(7, 2049, 2049, 0);
    assertThrows(IllegalStateException.class, tile::nextSegment);
    tile.begin(Integer.MAX_VALUE / SEGMENT, MemorySegment.NULL, MemorySegment.NULL);
    assertEquals(0, tile.rows());
    tile.add(0, Integer.MAX_VALUE - 5, Integer.MAX_VALUE, 0);
    assertEquals(Integer.MAX_VALUE, tile.end());
  }
}
