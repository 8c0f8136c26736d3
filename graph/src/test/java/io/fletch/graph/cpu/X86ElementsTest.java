package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.fletch.graph.Activation;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.MemorySegment;
import java.util.Random;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * Element-wise machine code has the bits of the scalar kernels, special values included, and stays
 * inside operands that end at inaccessible pages.
 */
class X86ElementsTest {
  private static final float[] SPECIAL = {
    0f,
    -0f,
    Float.NaN,
    Float.POSITIVE_INFINITY,
    Float.NEGATIVE_INFINITY,
    Float.MIN_VALUE,
    Float.MAX_VALUE,
    0x1p-121f,
    0x1p-120f,
    -88.5f,
    -104f,
    89.5f
  };

  @ParameterizedTest
  @EnumSource(Isa.class)
  void elementWise(Isa isa) {
    Kernels kernels = X86TestSets.orSkip(isa);
    for (int n : new int[] {1, 7, 8, 15, 16, 17, 31, 64, 207}) {
      Random random = new Random(n);
      try (GuardedMemory memory = new GuardedMemory(true)) {
        MemorySegment x = floats(memory, n, random, true);
        MemorySegment y = floats(memory, n, random, true);
        MemorySegment tame = floats(memory, n, random, false);
        MemorySegment e = memory.allocate(4L * n);
        MemorySegment r = memory.allocate(4L * n);
        for (Activation f : Activation.values()) {
          ScalarKernels.INSTANCE.activate(f, x, 0, n, e, 0);
          kernels.activate(f, x, 0, n, r, 0);
          same(e, r, n, f.toString());
          ScalarKernels.INSTANCE.activate(f, x, 0, y, 0, n, e, 0);
          kernels.activate(f, x, 0, y, 0, n, r, 0);
          same(e, r, n, f + " gated");
        }
        ScalarKernels.INSTANCE.add(x, 0, y, 0, 0.7f, n, e, 0);
        kernels.add(x, 0, y, 0, 0.7f, n, r, 0);
        same(e, r, n, "add");
        ScalarKernels.INSTANCE.scale(x, 0, -3f, n, e, 0);
        kernels.scale(x, 0, -3f, n, r, 0);
        same(e, r, n, "scale");
        ScalarKernels.INSTANCE.rmsNorm(tame, 0, y, n, 1e-5f, 1.5f, e, 0);
        kernels.rmsNorm(tame, 0, y, n, 1e-5f, 1.5f, r, 0);
        same(e, r, n, "rmsNorm");
      }
    }
  }

  @ParameterizedTest
  @EnumSource(Isa.class)
  void quantization(Isa isa) {
    Kernels kernels = X86TestSets.orSkip(isa);
    for (ActivationFormat format :
        new ActivationFormat[] {ActivationFormat.Q8_BLOCK32, ActivationFormat.Q8_BLOCK256}) {
      for (int seed = 0; seed < 60; seed++) {
        Random random = new Random(seed);
        int n = ActivationLayout.blockSize(format) * (1 + random.nextInt(5));
        try (GuardedMemory memory = new GuardedMemory(true)) {
          MemorySegment x = floats(memory, n, random, seed % 3 == 0);
          if (seed % 5 == 0) {
            float tiny = SPECIAL[7 + random.nextInt(2)];
            for (int i = 0; i < 32; i++) {
              Segments.f32(x, i, i == 3 ? tiny : 0f);
            }
          }
          long bytes = ActivationLayout.bytes(format, n);
          MemorySegment e = memory.allocate(bytes);
          MemorySegment r = memory.allocate(bytes);
          ScalarKernels.INSTANCE.quantize(format, x, 0, n, e, 0);
          kernels.quantize(format, x, 0, n, r, 0);
          assertEquals(-1, e.mismatch(r), format + " seed=" + seed);
        }
      }
    }
  }

  private static MemorySegment floats(GuardedMemory memory, int n, Random random, boolean special) {
    MemorySegment s = memory.allocate(4L * n);
    for (int i = 0; i < n; i++) {
      boolean use = special && random.nextInt(6) == 0;
      float v = use ? SPECIAL[random.nextInt(SPECIAL.length)] : 5 * (float) random.nextGaussian();
      Segments.f32(s, i, v);
    }
    return s;
  }

  /** Bits, but any NaN is as good as another. */
  private static void same(MemorySegment e, MemorySegment r, int n, String what) {
    for (int i = 0; i < n; i++) {
      int expected = Float.floatToIntBits(Segments.f32(e, i));
      int actual = Float.floatToIntBits(Segments.f32(r, i));
      assertEquals(expected, actual, what + " n=" + n + " i=" + i);
    }
  }
}
