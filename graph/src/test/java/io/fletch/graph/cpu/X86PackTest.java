package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.fletch.graph.cpu.Kernels.Matmul;
import io.fletch.graph.cpu.x86.Isa;
import io.fletch.graph.cpu.x86.PackedLayout;
import io.fletch.quant.TensorType;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Random;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** Packing by machine code against packing in Java, and mapped against packed products. */
class X86PackTest {
  @ParameterizedTest
  @EnumSource(Isa.class)
  void emittedPackingGivesTheSameBytes(Isa isa) {
    Kernels kernels = X86TestSets.orSkip(isa);
    Random random = new Random(7);
    for (TensorType type : TensorType.values()) {
      if (!PackedLayout.supports(type)) {
        continue;
      }
      int in = 3 * type.blockSize();
      int out = 2 * isa.lanes() + 5;
      try (Arena arena = Arena.ofConfined()) {
        MemorySegment rows = random(arena, type.bytes((long) in * out), random);
        Matmul matmul = kernels.matmul(type, in);
        MemorySegment actual = arena.allocate(matmul.packedBytes(out), 64);
        matmul.pack(rows, actual, out, 0, isa.lanes());
        matmul.pack(rows, actual, out, isa.lanes(), out);
        MemorySegment expected = arena.allocate(matmul.packedBytes(out), 64);
        new PackedLayout(type, in, isa).pack(rows, 0, out, expected, 0);
        assertEquals(-1, expected.mismatch(actual), type.toString());
      }
    }
  }

  @ParameterizedTest
  @EnumSource(Isa.class)
  void mappedProductsHaveTheBitsOfPackedOnes(Isa isa) {
    Kernels kernels = X86TestSets.orSkip(isa);
    Random random = new Random(8);
    for (TensorType type : TensorType.values()) {
      if (!PackedLayout.supports(type)) {
        continue;
      }
      // Few rows multiply some types where they are; those take rows of weights in eights.
      for (int tail : new int[] {0, 3, isa.lanes() - 1}) {
        mappedHasTheBitsOfPacked(kernels, isa, type, 1, 5 * isa.lanes() + tail, random);
      }
      mappedHasTheBitsOfPacked(kernels, isa, type, 3, 5 * isa.lanes() + 3, random);
      int rows = 5 + random.nextInt(16);
      mappedHasTheBitsOfPacked(kernels, isa, type, rows, 5 * isa.lanes() + 3, random);
    }
  }

  private static void mappedHasTheBitsOfPacked(
      Kernels kernels, Isa isa, TensorType type, int rows, int out, Random random) {
    for (int blocks : new int[] {1, 2, 7}) {
      int in = blocks * type.blockSize();
      try (Arena arena = Arena.ofConfined()) {
        byte[] weights = WeightOracle.random(type, in * out, random);
        MemorySegment w = arena.allocate(weights.length).copyFrom(MemorySegment.ofArray(weights));
        Matmul packed = kernels.matmul(type, in);
        Matmul mapped = kernels.matmulMapped(type, in);
        assertEquals(false, mapped.packs());
        MemorySegment p = arena.allocate(packed.packedBytes(out), 64);
        packed.pack(w, p, out, 0, out);
        long stride = kernels.activationBytes(packed.activation(), in);
        MemorySegment x = arena.allocate(rows * stride, 64);
        MemorySegment f = arena.allocate(4L * in);
        for (int r = 0; r < rows; r++) {
          for (int i = 0; i < in; i++) {
            Segments.f32(f, i, (float) random.nextGaussian());
          }
          if (random.nextInt(4) == 0) {
            Segments.f32(f, random.nextInt(in), Float.NaN);
          }
          kernels.quantize(packed.activation(), f, 0, in, x, r * stride);
        }
        MemorySegment expected = arena.allocate(4L * rows * out);
        MemorySegment actual = arena.allocate(4L * rows * out);
        packed.run(p, out, 0, out, x, 0, rows, expected, 0, out);
        long split = 2L * isa.lanes();
        mapped.run(w, out, 0, split, x, 0, rows, actual, 0, out);
        mapped.run(w, out, split, out, x, 0, rows, actual, 0, out);
        assertEquals(-1, expected.mismatch(actual), type + " rows=" + rows + " out=" + out);
      }
    }
  }

  /**
   * Small batches and prefill tiles, over more weights than a tile keeps in the cache, have the
   * bits of single rows.
   */
  @ParameterizedTest
  @EnumSource(Isa.class)
  void manyRowsHaveTheBitsOfSingleOnes(Isa isa) {
    Kernels kernels = X86TestSets.orSkip(isa);
    Random random = new Random(9);
    int in = 2048;
    int out = 300;
    int most = 70;
    for (TensorType type : WeightOracle.TYPES) {
      try (Arena arena = Arena.ofConfined()) {
        byte[] weights = WeightOracle.random(type, in * out, random);
        MemorySegment w = arena.allocate(weights.length).copyFrom(MemorySegment.ofArray(weights));
        Matmul matmul = kernels.matmul(type, in);
        MemorySegment p = w;
        if (matmul.packs()) {
          p = arena.allocate(matmul.packedBytes(out), 64);
          matmul.pack(w, p, out, 0, out);
        }
        MemorySegment x = activations(kernels, matmul, in, most, arena, random);
        long stride = kernels.activationBytes(matmul.activation(), in);
        MemorySegment expected = arena.allocate(4L * most * out);
        for (int r = 0; r < most; r++) {
          matmul.run(p, out, 0, out, x, r * stride, 1, expected, (long) r * out, out);
        }
        Matmul mapped = kernels.matmulMapped(type, in);
        MemorySegment actual = arena.allocate(4L * most * out);
        for (int rows = 2; rows <= most; rows = rows < 17 ? rows + 1 : rows + 53) {
          matmul.run(p, out, 0, out, x, 0, rows, actual, 0, out);
          long bytes = 4L * rows * out;
          MemorySegment some = expected.asSlice(0, bytes);
          assertEquals(-1, some.mismatch(actual.asSlice(0, bytes)), type + " rows=" + rows);
          mapped.run(w, out, 0, out, x, 0, rows, actual.fill((byte) 1), 0, out);
          assertEquals(-1, some.mismatch(actual.asSlice(0, bytes)), type + " mapped rows=" + rows);
        }
      }
    }
  }

  private static MemorySegment activations(
      Kernels kernels, Matmul matmul, int in, int rows, Arena arena, Random random) {
    long stride = kernels.activationBytes(matmul.activation(), in);
    MemorySegment x = arena.allocate(rows * stride, 64);
    MemorySegment f = arena.allocate(4L * in);
    for (int r = 0; r < rows; r++) {
      for (int i = 0; i < in; i++) {
        Segments.f32(f, i, (float) random.nextGaussian());
      }
      if (matmul.activation() == Kernels.ActivationFormat.F32) {
        MemorySegment.copy(f, 0, x, r * stride, 4L * in);
      } else {
        kernels.quantize(matmul.activation(), f, 0, in, x, r * stride);
      }
    }
    return x;
  }

  @ParameterizedTest
  @EnumSource(Isa.class)
  void refusesRangesThatSplitAGroup(Isa isa) {
    Kernels kernels = X86TestSets.orSkip(isa);
    Matmul matmul = kernels.matmul(TensorType.Q8_0, 32);
    int out = 4 * isa.lanes();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment w = arena.allocate(matmul.packedBytes(out), 64);
      MemorySegment x = arena.allocate(kernels.activationBytes(matmul.activation(), 32), 64);
      MemorySegment y = arena.allocate(4L * out);
      assertThrows(
          IllegalArgumentException.class, () -> matmul.run(w, out, 1, out, x, 0, 1, y, 0, out));
      assertThrows(
          IllegalArgumentException.class, () -> matmul.run(w, out, 0, 3, x, 0, 1, y, 0, out));
      assertThrows(
          IndexOutOfBoundsException.class, () -> matmul.run(w, out, 0, out, x, 0, 2, y, 0, out));
      assertThrows(
          IndexOutOfBoundsException.class, () -> matmul.run(w, out, 0, out, x, 0, 1, y, 1, out));
      assertThrows(
          IndexOutOfBoundsException.class,
          () -> matmul.run(w.asSlice(64), out, 0, out, x, 0, 1, y, 0, out));
      assertThrows(IllegalArgumentException.class, () -> kernels.matmul(TensorType.Q8_0, 33));
      assertThrows(IllegalArgumentException.class, () -> kernels.matmul(TensorType.I32, 32));
    }
  }

  private static MemorySegment random(Arena arena, long bytes, Random random) {
    byte[] data = new byte[(int) bytes];
    random.nextBytes(data);
    return arena.allocate(bytes).copyFrom(MemorySegment.ofArray(data));
  }
}
