package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.Activation;
import io.fletch.graph.KvCache;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Random;
import java.util.function.BiConsumer;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * The row kernels in machine code give the bits of the scalar ones, NaN and infinities included.
 */
class X86RowKernelsTest {
  private static final Kernels SCALAR = ScalarKernels.INSTANCE;
  private static final float[] SPECIAL = {
    0f,
    -0f,
    Float.NaN,
    Float.POSITIVE_INFINITY,
    Float.NEGATIVE_INFINITY,
    1e-41f,
    -3e38f,
    0.63f,
    -0.62999999f,
    88.8f,
    -104f,
    1e30f,
    0x1p-121f
  };
  private static final int OUT_BYTES = 8192;

  private final Random random = new Random(31);

  private int size(int round) {
    return round < 70 ? round : 70 + random.nextInt(800);
  }

  /** Ordinary numbers of several magnitudes; in every third row some special ones. */
  private void fill(MemorySegment x, int n) {
    float magnitude = (float) Math.pow(10, random.nextInt(5) - 2);
    boolean special = random.nextInt(3) == 0;
    for (int i = 0; i < n; i++) {
      float v = (float) random.nextGaussian() * magnitude;
      if (special && random.nextInt(9) == 0) {
        v = SPECIAL[random.nextInt(SPECIAL.length)];
      }
      Segments.f32(x, i, v);
    }
  }

  /** Runs an operation of both sets into equal memory and compares all of it, all NaN alike. */
  private static void same(
      Kernels k, boolean floats, BiConsumer<Kernels, MemorySegment> operation) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment expected = arena.allocate(OUT_BYTES, 64).fill((byte) 0x55);
      MemorySegment actual = arena.allocate(OUT_BYTES, 64).fill((byte) 0x55);
      operation.accept(SCALAR, expected);
      operation.accept(k, actual);
      if (floats) {
        assertArrayEquals(bits(expected), bits(actual));
      } else {
        assertEquals(-1, expected.mismatch(actual));
      }
    }
  }

  private static int[] bits(MemorySegment s) {
    int[] bits = new int[(int) (s.byteSize() / 4)];
    for (int i = 0; i < bits.length; i++) {
      bits[i] = Float.floatToIntBits(Segments.f32(s, i));
    }
    return bits;
  }

  @ParameterizedTest
  @EnumSource(Isa.class)
  void elementWise(Isa isa) {
    Kernels k = X86TestSets.orSkip(isa);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment x = arena.allocate(4096 * 4, 64);
      MemorySegment y = arena.allocate(4096 * 4, 64);
      for (int round = 0; round < 160; round++) {
        int n = size(round);
        int at = random.nextInt(20);
        int to = random.nextInt(40);
        fill(x, n + at);
        fill(y, n + at);
        float f = (float) random.nextGaussian();
        for (Activation act : Activation.values()) {
          same(k, true, (set, out) -> set.activate(act, x, at, y, at, n, out, to));
          same(k, true, (set, out) -> set.activate(act, x, at, n, out, to));
        }
        same(k, true, (set, out) -> set.add(x, at, y, at, f, n, out, to));
        same(k, true, (set, out) -> set.multiply(x, at, y, at, n, out, to));
        same(k, true, (set, out) -> set.scale(x, at, f, n, out, to));
        same(k, true, (set, out) -> set.softCap(x, at, 1.5f + Math.abs(f), n, out, to));
        same(k, true, (set, out) -> set.rmsNorm(x, at, y, n, 1e-5f, 1f + f, out, to));
        same(
            k,
            true,
            (set, out) -> {
              MemorySegment.copy(x, 4L * at, out, 4L * to, 4L * n);
              set.activate(Activation.SILU, out, to, y, at, n, out, to);
              set.add(out, to, y, at, f, n, out, to);
              set.rmsNorm(out, to, y, n, 1e-5f, 1f, out, to);
            });
      }
    }
  }

  @ParameterizedTest
  @EnumSource(Isa.class)
  void rope(Isa isa) {
    Kernels k = X86TestSets.orSkip(isa);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment x = arena.allocate(4096 * 4, 64);
      MemorySegment table = arena.allocate(4096 * 4, 64);
      for (int pairs = 0; pairs < 70; pairs++) {
        int p = pairs;
        int dim = 2 * pairs + random.nextInt(20);
        int at = random.nextInt(20);
        fill(x, dim + at);
        fill(table, 2 * pairs + at);
        for (RopeSpec.Style style : RopeSpec.Style.values()) {
          same(k, true, (set, out) -> set.rope(style, x, at, dim, table, at, p, out, at));
          same(
              k,
              true,
              (set, out) -> {
                MemorySegment.copy(x, 0, out, 0, 4L * dim);
                set.rope(style, out, 0, dim, table, at, p, out, 0);
              });
        }
      }
    }
  }

  @ParameterizedTest
  @EnumSource(Isa.class)
  void conversions(Isa isa) {
    Kernels k = X86TestSets.orSkip(isa);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment x = arena.allocate(4096 * 4, 64);
      for (int round = 0; round < 300; round++) {
        int at = random.nextInt(20);
        int blocks = random.nextInt(12);
        fill(x, 3000);
        if (round % 5 == 0) {
          x.asSlice(4L * at, 4 * 256).fill((byte) 0);
        }
        int to = 64 * random.nextInt(3);
        same(
            k,
            false,
            (set, out) -> set.quantize(ActivationFormat.Q8_BLOCK32, x, at, 32 * blocks, out, to));
        same(
            k,
            false,
            (set, out) -> set.quantize(ActivationFormat.Q8_BLOCK256, x, at, 256 * blocks, out, to));
        for (KvCache.Type type : KvCache.Type.values()) {
          int n = type == KvCache.Type.Q8_0 ? 32 * blocks : random.nextInt(150);
          same(k, type == KvCache.Type.F32, (set, out) -> set.kvStore(type, x, at, n, out, to));
        }
      }
    }
  }

  @ParameterizedTest
  @EnumSource(Isa.class)
  void argmax(Isa isa) {
    Kernels k = X86TestSets.orSkip(isa);
    int found = 0;
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment x = arena.allocate(4096 * 4, 64);
      for (int round = 0; round < 400; round++) {
        int n = size(round);
        int at = random.nextInt(20);
        fill(x, n + at + 40);
        for (int i = 0; i < n + at && round % 4 == 0; i++) {
          // Ties, and rows in which nothing is larger than -inf.
          float v = round % 8 == 0 ? random.nextInt(4) : SPECIAL[random.nextInt(2) * 2 + 2];
          Segments.f32(x, i + at, v);
        }
        int expected = SCALAR.argmax(x, at, n);
        assertEquals(expected, k.argmax(x, at, n), "n=" + n);
        found += expected > 0 ? 1 : 0;
      }
    }
    assertTrue(found > 200);
  }

  /** Operands end, or start, at an inaccessible page. */
  @ParameterizedTest
  @CsvSource({
    "AVX2,true",
    "AVX2,false",
    "AVX_VNNI,true",
    "AVX_VNNI,false",
    "AVX512_VNNI,true",
    "AVX512_VNNI,false"
  })
  void touchNothingElse(Isa isa, boolean behind) {
    Kernels k = X86TestSets.orSkip(isa);
    for (int n = 1; n < 70; n++) {
      try (GuardedMemory memory = new GuardedMemory(behind)) {
        MemorySegment x = memory.allocate(4L * n);
        MemorySegment y = memory.allocate(4L * n);
        MemorySegment out = memory.allocate(4L * n);
        fill(x, n);
        fill(y, n);
        k.activate(Activation.SILU, x, 0, y, 0, n, out, 0);
        k.activate(Activation.GELU_TANH, x, 0, n, out, 0);
        k.add(x, 0, y, 0, 1f, n, out, 0);
        k.multiply(x, 0, y, 0, n, out, 0);
        k.scale(x, 0, 2f, n, out, 0);
        k.softCap(x, 0, 30f, n, out, 0);
        k.rmsNorm(x, 0, y, n, 1e-5f, 1f, out, 0);
        assertEquals(SCALAR.argmax(x, 0, n), k.argmax(x, 0, n));
        int pairs = n / 2;
        MemorySegment table = memory.allocate(8L * Math.max(1, pairs));
        for (RopeSpec.Style style : RopeSpec.Style.values()) {
          k.rope(style, x, 0, n, table, 0, pairs, out, 0);
        }
        MemorySegment halves = memory.allocate(2L * n);
        k.kvStore(KvCache.Type.F16, x, 0, n, halves, 0);
        MemorySegment codes = memory.allocate(34L * (n / 32 + 1));
        k.kvStore(KvCache.Type.Q8_0, x, 0, n / 32 * 32, codes, 0);
      }
    }
  }
}
