package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.RopeSpec;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Random;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;

/** Beyond the contract of all sets: everything has the bits of the scalar kernels. */
final class VectorKernelsPropertyTest extends KernelsContract {
  private static final String SEED = "20250917";

  @Override
  Kernels kernels() {
    return VectorProvider.kernels().orElseThrow();
  }

  private interface Rows {
    void run(Kernels kernels, MemorySegment dst);
  }

  private void assertSameBits(Arena arena, int n, Rows kernel) {
    MemorySegment expected = arena.allocate(4L * n + 4, 4);
    MemorySegment actual = arena.allocate(4L * n + 4, 4);
    kernel.run(ScalarKernels.INSTANCE, expected);
    kernel.run(kernels(), actual);
    assertArrayEquals(bits(expected), bits(actual));
  }

  /** Bits of floats, all NaN alike. */
  private static int[] bits(MemorySegment s) {
    float[] x = s.toArray(ValueLayout.JAVA_FLOAT);
    int[] bits = new int[x.length];
    for (int i = 0; i < x.length; i++) {
      bits[i] = Float.floatToIntBits(x[i]);
    }
    return bits;
  }

  private static float[] withSpecials(float[] x, Random random) {
    float[] specials = {
      Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY, -0f, 1e38f, -1e38f, 1e-42f
    };
    for (int i = 0; i < x.length; i++) {
      if (random.nextInt(9) == 0) {
        x[i] = specials[random.nextInt(specials.length)];
      }
    }
    return x;
  }

  @Property(tries = 200, seed = SEED)
  void elementWiseKernelsHaveScalarBits(
      @ForAll @IntRange(min = 0, max = 70) int n, @ForAll long seed) {
    Random random = new Random(seed);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment a = floats(arena, withSpecials(gaussians(n, 5, random), random));
      MemorySegment b = floats(arena, withSpecials(gaussians(n, 5, random), random));
      for (Activation act : Activation.values()) {
        assertSameBits(arena, n, (k, dst) -> k.activate(act, a, 0, n, dst, 0));
        assertSameBits(arena, n, (k, dst) -> k.activate(act, a, 0, b, 0, n, dst, 0));
      }
      assertSameBits(arena, n, (k, dst) -> k.add(a, 0, b, 0, 0.3f, n, dst, 0));
      assertSameBits(arena, n, (k, dst) -> k.multiply(a, 0, b, 0, n, dst, 0));
      assertSameBits(arena, n, (k, dst) -> k.scale(a, 0, 0.3f, n, dst, 0));
      assertSameBits(arena, n, (k, dst) -> k.softCap(a, 0, 7f, n, dst, 0));
      assertSameBits(arena, n, (k, dst) -> k.rmsNorm(a, 0, b, n, 1e-5f, 1f, dst, 0));
      for (RopeSpec.Style style : RopeSpec.Style.values()) {
        assertSameBits(arena, n, (k, dst) -> k.rope(style, a, 0, n, b, 0, n / 2, dst, 0));
      }
    }
  }

  @Property(tries = 150, seed = SEED)
  void attentionHasScalarBits(
      @ForAll KvCache.Type type,
      @ForAll @IntRange(min = 1, max = 4) int group,
      @ForAll @IntRange(min = 0, max = 100) int slots,
      @ForAll boolean capped,
      @ForAll long seed) {
    Random random = new Random(seed);
    int dim = 32 * (1 + random.nextInt(4)) + (type == KvCache.Type.Q8_0 ? 0 : random.nextInt(9));
    AttentionSpec spec = new AttentionSpec(0, group, 1, dim, dim, 0.1f, capped ? 15f : 0f, 0);
    try (Arena arena = Arena.ofConfined()) {
      long bytes = kernels().kvBytes(type, dim);
      MemorySegment kv = arena.allocate(2 * slots * bytes + 1, 1);
      for (int s = 0; s < 2 * slots; s++) {
        float[] head = gaussians(dim, 2, random);
        if (random.nextInt(150) == 0) {
          head[random.nextInt(dim)] = Float.POSITIVE_INFINITY;
        }
        kernels().kvStore(type, floats(arena, head), 0, dim, kv, s * bytes);
      }
      int count = 1 + random.nextInt(random.nextBoolean() ? 2 : AttentionTile.ROWS);
      MemorySegment q = floats(arena, gaussians(count * group * dim, 2, random));
      MemorySegment scratch = arena.allocate(4L * ScalarKernels.INSTANCE.attentionScratch(spec), 4);
      // Any place in a segment, and slots that begin there.
      int segment = random.nextInt(3);
      int begin = 1024 * segment + random.nextInt(1024 - slots);
      int state = kernels().attentionState(spec);
      int[] from = new int[count];
      int[] to = new int[count];
      for (int r = 0; r < count; r++) {
        from[r] = begin + random.nextInt(slots + 1);
        to[r] = from[r] + random.nextInt(begin + slots - from[r] + 1);
      }
      KvRun run = new KvRun().set(type, kv, -begin * bytes, (slots - begin) * bytes);
      assertSameBits(
          arena,
          count * state,
          (k, dst) -> {
            AttentionTile tile = new AttentionTile();
            tile.begin(segment, q, dst);
            for (int r = 0; r < count; r++) {
              tile.add((long) r * group * dim, from[r], to[r], (long) (count - 1 - r) * state);
            }
            k.attention(spec, tile, run, scratch);
          });
    }
  }

  @Property(tries = 60, seed = SEED)
  void attentionIsZeroWithoutSlots(@ForAll KvCache.Type type) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment q = floats(arena, gaussians(64, 1, new Random(1)));
      MemorySegment out = floats(arena, gaussians(64, 1, new Random(2)));
      MemorySegment kv = arena.allocate(1, 1);
      AttentionSpec spec = new AttentionSpec(0, 2, 1, 32, 32, 1f, 0f, 0);
      MemorySegment scratch = arena.allocate(4L * AttentionRows.floats(kernels(), spec), 4);
      AttentionRows rows = new AttentionRows(scratch);
      rows.begin(kernels(), spec, q, out);
      rows.add(0, 5, 5, 0);
      rows.run(new KvRun().set(type, kv, 0, 0));
      assertArrayEquals(new float[64], out.toArray(ValueLayout.JAVA_FLOAT));
      assertEquals(0, kernels().attentionScratch(spec));
    }
  }
}
