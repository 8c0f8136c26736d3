package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Random;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** Attention in machine code has the bits of the scalar kernel. */
class X86AttentionTest {
  @ParameterizedTest
  @EnumSource(Isa.class)
  void hasTheBitsOfTheScalarKernel(Isa isa) {
    Kernels kernels = X86TestSets.orSkip(isa);
    int[] dims = {16, 32, 48, 64, 80, 96, 128, 160, 256, 7, 24};
    for (int seed = 0; seed < 150; seed++) {
      Random random = new Random(seed);
      KvCache.Type type = KvCache.Type.values()[random.nextInt(3)];
      int unit = type == KvCache.Type.Q8_0 ? 32 : 1;
      int keyDim = (dims[random.nextInt(dims.length)] + unit - 1) / unit * unit;
      int valueDim = (dims[random.nextInt(dims.length)] + unit - 1) / unit * unit;
      int group = 1 + random.nextInt(9);
      int slots = 1 + random.nextInt(random.nextInt(8) == 0 ? 600 : 140);
      // Slots anywhere about the beginning and the end of a segment.
      int begin = Math.max(0, Kernels.ATTENTION_SEGMENT - random.nextInt(2 * slots));
      begin = random.nextBoolean() ? begin : random.nextInt(100);
      int rows = random.nextInt(3) == 0 ? 1 + random.nextInt(AttentionTile.ROWS) : 1;
      float softCap = random.nextInt(3) == 0 ? 3f : 0f;
      float spread = random.nextInt(3) == 0 ? 40f : 1f;
      AttentionSpec spec = new AttentionSpec(0, group, 1, keyDim, valueDim, 0.125f, softCap, 0);
      try (Arena arena = Arena.ofConfined()) {
        float[] q = floats(rows * group * keyDim, random, spread);
        MemorySegment query = arena.allocate(4L * q.length);
        MemorySegment.copy(q, 0, query, ValueLayout.JAVA_FLOAT, 0, q.length);
        long kBytes = kernels.kvBytes(type, keyDim);
        long vBytes = kernels.kvBytes(type, valueDim);
        MemorySegment kv = arena.allocate(slots * (kBytes + vBytes));
        MemorySegment row = arena.allocate(4L * Math.max(keyDim, valueDim));
        for (int s = 0; s < slots; s++) {
          fill(row, keyDim, random, 1f);
          // Rows that make the score infinite or NaN.
          if (random.nextInt(100) == 0) {
            Segments.f32(row, random.nextInt(keyDim), random.nextBoolean() ? Float.NaN : 1e38f);
          }
          kernels.kvStore(type, row, 0, keyDim, kv, s * kBytes);
          fill(row, valueDim, random, 1f);
          kernels.kvStore(type, row, 0, valueDim, kv, slots * kBytes + s * vBytes);
        }
        int[] from = new int[rows];
        int[] to = new int[rows];
        for (int r = 0; r < rows; r++) {
          from[r] = begin + random.nextInt(slots + 1);
          to[r] = begin + slots - random.nextInt(begin + slots - from[r] + 1);
        }
        KvRun run = new KvRun().set(type, kv, -begin * kBytes, slots * kBytes - begin * vBytes);
        MemorySegment[] results = new MemorySegment[2];
        for (int i = 0; i < 2; i++) {
          Kernels set = i == 0 ? ScalarKernels.INSTANCE : kernels;
          MemorySegment scratch = arena.allocate(4L * AttentionRows.floats(set, spec));
          results[i] = arena.allocate(4L * rows * group * valueDim);
          AttentionRows tile = new AttentionRows(scratch);
          tile.begin(set, spec, query, results[i]);
          for (int r = 0; r < rows; r++) {
            tile.add((long) r * group * keyDim, from[r], to[r], (long) r * group * valueDim);
          }
          tile.run(run);
        }
        for (int i = 0; i < rows * group * valueDim; i++) {
          assertEquals(
              Segments.f32(results[0], i),
              Segments.f32(results[1], i),
              "seed=" + seed + " " + type + " key=" + keyDim + " value=" + valueDim + " i=" + i);
        }
      }
    }
  }

  /** States as attention leaves them: where a maximum is no number, neither is the sum. */
  @ParameterizedTest
  @EnumSource(Isa.class)
  void statesAreMergedToTheBitsOfTheScalarKernel(Isa isa) {
    Kernels kernels = X86TestSets.orSkip(isa);
    float[] maxima = {
      Float.NEGATIVE_INFINITY, -70f, 0f, 3f, 90f, Float.POSITIVE_INFINITY, Float.NaN
    };
    for (int seed = 0; seed < 200; seed++) {
      Random random = new Random(seed);
      int group = 1 + random.nextInt(9);
      int dim = random.nextInt(8) == 0 ? 7 : 16 * (1 + random.nextInt(17));
      AttentionSpec spec = new AttentionSpec(0, group, 1, dim, dim, 1f, 0f, 0);
      int state = kernels.attentionState(spec);
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment states = arena.allocate(4L * (3 + 2 * state));
        fill(states, 3 + 2 * state, random, 1f);
        for (int s = 3; s < 3 + 2 * state; s += state) {
          for (int h = 0; h < group; h++) {
            float max = random.nextBoolean() ? maxima[random.nextInt(7)] : random.nextFloat();
            boolean none = Float.isNaN(max) || max == Float.POSITIVE_INFINITY;
            float sum = none ? Float.NaN : 1f + random.nextInt(60);
            Segments.f32(states, s + h, max);
            Segments.f32(states, s + group + h, max == Float.NEGATIVE_INFINITY ? 0f : sum);
          }
        }
        float[][] results = new float[2][];
        for (int i = 0; i < 2; i++) {
          Kernels set = i == 0 ? ScalarKernels.INSTANCE : kernels;
          MemorySegment copy = arena.allocate(states.byteSize()).copyFrom(states);
          MemorySegment out = arena.allocate(4L * (2 + group * dim));
          set.attentionMerge(spec, copy, 3, 3 + state);
          set.attentionFinish(spec, copy, 3, out, 2);
          results[i] = out.toArray(ValueLayout.JAVA_FLOAT);
        }
        assertArrayEquals(results[0], results[1], "seed=" + seed);
      }
    }
  }

  private static void fill(MemorySegment row, int n, Random random, float spread) {
    for (int i = 0; i < n; i++) {
      Segments.f32(row, i, spread * (float) random.nextGaussian());
    }
  }

  private static float[] floats(int n, Random random, float spread) {
    float[] values = new float[n];
    for (int i = 0; i < n; i++) {
      values[i] = spread * (float) random.nextGaussian();
    }
    return values;
  }
}
