package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Random;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** Attention of the rows of a tile together leaves the states that the scalar kernel leaves. */
class X86AttentionTilesTest {
  private static final int[] DIMS = {16, 32, 48, 64, 80, 96, 128, 160, 256, 272};

  @ParameterizedTest
  @EnumSource(Isa.class)
  void leavesTheStatesOfTheScalarKernel(Isa isa) {
    X86TestSets.orSkip(isa);
    X86AttentionTiles tiles = new X86AttentionTiles(isa);
    for (int seed = 0; seed < 120; seed++) {
      Random random = new Random(seed);
      KvCache.Type type = random.nextBoolean() ? KvCache.Type.F16 : KvCache.Type.F32;
      int keyDim = DIMS[random.nextInt(DIMS.length)];
      int valueDim = DIMS[random.nextInt(DIMS.length)];
      int group = 1 + random.nextInt(9);
      float softCap = random.nextInt(3) == 0 ? 3f : 0f;
      float scale = random.nextInt(4) == 0 ? -0.125f : 0.125f;
      AttentionSpec spec = new AttentionSpec(0, group, 1, keyDim, valueDim, scale, softCap, 0);
      int begin = random.nextInt(3) * Kernels.ATTENTION_SEGMENT + random.nextInt(200);
      int slots = 1 + random.nextInt(200);
      int rows = 1 + random.nextInt(AttentionTile.ROWS);
      int windows = random.nextInt(3);
      int[] from = new int[rows];
      int[] to = new int[rows];
      for (int r = 0; r < rows; r++) {
        from[r] = begin;
        to[r] = begin + Math.max(0, slots - rows + r + 1);
        if (windows == 1) {
          from[r] = Math.max(begin, to[r] - 20);
        } else if (windows == 2) {
          from[r] = begin + random.nextInt(slots + 1);
          to[r] = from[r] + random.nextInt(begin + slots - from[r] + 1);
        }
      }
      String what = "seed=" + seed + " " + spec + " " + type + " rows=" + rows + " slots=" + slots;
      compare(tiles, spec, type, from, to, begin, slots, random, what);
    }
  }

  private static void compare(
      X86AttentionTiles tiles,
      AttentionSpec spec,
      KvCache.Type type,
      int[] from,
      int[] to,
      int begin,
      int slots,
      Random random,
      String what) {
    Kernels scalar = ScalarKernels.INSTANCE;
    int rows = from.length;
    int stateFloats = rows * scalar.attentionState(spec);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment q = arena.allocate(4L * rows * spec.group() * spec.keyDim());
      float spread = random.nextInt(3) == 0 ? 40f : 1f;
      for (int i = 0; i < q.byteSize() / 4; i++) {
        Segments.f32(q, i, spread * (float) random.nextGaussian());
      }
      long keyBytes = scalar.kvBytes(type, spec.keyDim());
      long valueBytes = scalar.kvBytes(type, spec.valueDim());
      MemorySegment kv = arena.allocate(slots * (keyBytes + valueBytes));
      MemorySegment row = arena.allocate(4L * Math.max(spec.keyDim(), spec.valueDim()));
      float oddity = random.nextBoolean() ? 0.01f : 0f;
      for (int s = 0; s < slots; s++) {
        fill(row, spec.keyDim(), random, oddity);
        scalar.kvStore(type, row, 0, spec.keyDim(), kv, s * keyBytes);
        fill(row, spec.valueDim(), random, oddity);
        scalar.kvStore(type, row, 0, spec.valueDim(), kv, slots * keyBytes + s * valueBytes);
      }
      KvRun run =
          new KvRun().set(type, kv, -begin * keyBytes, slots * keyBytes - begin * valueBytes);
      MemorySegment expected = states(arena, stateFloats);
      MemorySegment scratch = arena.allocate(4L * scalar.attentionScratch(spec));
      scalar.attention(spec, tile(spec, from, to, begin, q, expected), run, scratch);
      MemorySegment actual = states(arena, stateFloats);
      MemorySegment room = states(arena, 1 + tiles.scratchFloats(spec)).asSlice(4);
      tiles.run(spec, tile(spec, from, to, begin, q, actual), run, room);
      for (int i = 0; i < stateFloats; i++) {
        float e = Segments.f32(expected, i);
        float a = Segments.f32(actual, i);
        boolean maximum = i % scalar.attentionState(spec) < spec.group();
        if (maximum && (Float.isNaN(e) || Float.isNaN(a))) {
          continue; // The sum is NaN as well: maxima of NaN and something are not the same.
        }
        assertEquals(e, a, what + " i=" + i);
      }
    }
  }

  /** Rows with the queries of others, and states in the opposite order. */
  private static AttentionTile tile(
      AttentionSpec spec, int[] from, int[] to, int begin, MemorySegment q, MemorySegment states) {
    AttentionTile tile = new AttentionTile();
    tile.begin(begin / Kernels.ATTENTION_SEGMENT, q, states);
    int rows = from.length;
    int stateFloats = ScalarKernels.INSTANCE.attentionState(spec);
    for (int r = 0; r < rows; r++) {
      long query = (long) (r + 3) % rows * spec.group() * spec.keyDim();
      tile.add(query, from[r], to[r], (long) (rows - 1 - r) * stateFloats);
    }
    return tile;
  }

  /** Memory full of NaN, so that what is not written shows. */
  private static MemorySegment states(Arena arena, int floats) {
    return arena.allocate(4L * floats).fill((byte) 0xff);
  }

  private static void fill(MemorySegment row, int n, Random random, float oddity) {
    for (int i = 0; i < n; i++) {
      Segments.f32(row, i, (float) random.nextGaussian());
    }
    if (random.nextFloat() < oddity) {
      Segments.f32(row, random.nextInt(n), random.nextBoolean() ? Float.NaN : 1e38f);
    }
  }
}
