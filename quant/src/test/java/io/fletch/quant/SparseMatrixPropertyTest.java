package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.foreign.ValueLayout;
import java.util.SplittableRandom;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.ShrinkingMode;
import net.jqwik.api.constraints.IntRange;
import org.junit.jupiter.api.Test;

/**
 * Sparse encodings: round trips, structure, and damage (specs weights 6, properties 17, 18, 20).
 */
class SparseMatrixPropertyTest {
  @Provide
  Arbitrary<TensorType> floats() {
    return Arbitraries.of(TensorType.F32, TensorType.F16, TensorType.BF16);
  }

  private static Tensor random(
      SplittableRandom r, TensorStore store, TensorType type, int out, int in, double density) {
    float[] x = new float[out * in];
    for (int i = 0; i < x.length; i++) {
      x[i] = r.nextDouble() < density ? (float) (r.nextDouble() - 0.5) : r.nextBoolean() ? 0 : -0f;
    }
    return Quantizer.quantize(store.floats("w.weight", x, out, in), type, store);
  }

  /** Every -0 becomes +0. */
  private static float[] positiveZeros(Tensor t) {
    float[] x = Dequantizer.toFloats(t);
    for (int i = 0; i < x.length; i++) {
      x[i] += 0f;
    }
    return x;
  }

  @Property(tries = 80, shrinking = ShrinkingMode.OFF)
  void bitmapsBlocksAndColumnsComeBackExactly(
      @ForAll long seed,
      @ForAll("floats") TensorType type,
      @ForAll @IntRange(min = 0, max = 10) int tenths) {
    SplittableRandom r = new SplittableRandom(seed);
    int out = 1 + r.nextInt(12);
    int in = 1 + r.nextInt(40);
    try (TensorStore store = TensorStore.create()) {
      Tensor w = random(r, store, type, out, in, tenths / 10.0);
      float[] expected = positiveZeros(w);
      SparseMatrix.Bitmap bitmap = SparseEncoder.bitmap(w, type, store);
      assertArrayEquals(expected, SparseMatrix.toFloats(bitmap));
      long width = bitmap.mask().cols();
      long total = 0;
      for (int o = 0; o < out; o++) {
        int ones = 0;
        for (int b = 0; b < width; b++) {
          ones +=
              Integer.bitCount(
                  bitmap.mask().segment().get(ValueLayout.JAVA_BYTE, o * width + b) & 0xff);
        }
        long[] start = bitmap.valueStart();
        assertEquals(ones, start[o + 1] - start[o], "bits of row " + o);
        total += ones;
      }
      assertEquals(total, bitmap.kept());
      assertEquals(out * in - SparseEncoder.zeros(w).zeros(), bitmap.kept());
      int height = divisor(r, out);
      int blockWidth = divisor(r, in);
      SparseMatrix.Block block = SparseEncoder.block(w, height, blockWidth, type, store);
      assertArrayEquals(expected, SparseMatrix.toFloats(block));
      LinearOp.Columns columns = SparseEncoder.columns(w, type, store);
      assertEquals(in - SparseEncoder.zeros(w).zeroColumns(), columns.columns().elements());
      float[] back = new float[out * in];
      int[] index = columns.indices();
      float[] chosen = Dequantizer.toFloats(((LinearOp.Dense) columns.weight()).weight());
      for (int i = 0; i < chosen.length; i++) {
        back[i / index.length * in + index[i % index.length]] = chosen[i];
      }
      assertArrayEquals(expected, back);
    }
  }

  /** Every kept value is within half a step of its window's scale, and nothing else is stored. */
  @Property(tries = 60, shrinking = ShrinkingMode.OFF)
  void codesAreNearAndTheirPlacesExact(
      @ForAll long seed, @ForAll boolean eight, @ForAll @IntRange(min = 0, max = 10) int tenths) {
    SplittableRandom r = new SplittableRandom(seed);
    int out = 1 + r.nextInt(6);
    int in = 32 * (1 + r.nextInt(5));
    try (TensorStore store = TensorStore.create()) {
      Tensor w = random(r, store, TensorType.F32, out, in, tenths / 10.0);
      float[] expected = positiveZeros(w);
      SparseMatrix.BitmapCodes m = SparseEncoder.bitmapCodes(w, eight ? 8 : 4, store);
      float[] actual = SparseMatrix.toFloats(m);
      assertEquals(out * in - SparseEncoder.zeros(w).zeros(), m.kept());
      for (int i = 0; i < actual.length; i++) {
        if (expected[i] == 0) {
          assertEquals(0f, actual[i]);
          continue;
        }
        // One end of the range of four bits is a step further away than the other.
        float d = Math.abs(m.scale(i / in, i % in));
        float bound = eight ? 0.562f * d + 1e-7f : 1.01f * d;
        assertEquals(expected[i], actual[i], bound, "element " + i);
      }
      if (m.mask().bytes() > 0 && out * in > 0) {
        long at = r.nextLong(m.mask().bytes());
        byte old = m.mask().segment().get(ValueLayout.JAVA_BYTE, at);
        // Three bits more or fewer change the bytes of codes, of four bits too.
        byte damaged = (byte) (old == 0 ? 7 : 0);
        m.mask().segment().set(ValueLayout.JAVA_BYTE, at, damaged);
        if (eight || Integer.bitCount(old & 0xff) > 1 || old == 0) {
          assertThrows(
              WeightFileException.class,
              () ->
                  new SparseMatrix.BitmapCodes(
                      in, m.bits(), m.mask(), m.rowStart(), m.scales(), m.codes()));
        }
      }
    }
  }

  private static int divisor(SplittableRandom r, int n) {
    int d = 1 + r.nextInt(n);
    return n % d == 0 ? d : 1;
  }

  @Property(tries = 60, shrinking = ShrinkingMode.OFF)
  void twoOfFourComesBackExactly(@ForAll long seed, @ForAll("floats") TensorType type) {
    SplittableRandom r = new SplittableRandom(seed);
    int out = 1 + r.nextInt(6);
    int in = 4 * (1 + r.nextInt(9));
    try (TensorStore store = TensorStore.create()) {
      float[] x = new float[out * in];
      for (int g = 0; g < x.length; g += 4) {
        int mask = r.nextInt(16);
        while (Integer.bitCount(mask) > 2) {
          mask &= mask - 1;
        }
        for (int i = 0; i < 4; i++) {
          x[g + i] = (mask >> i & 1) != 0 ? (float) (r.nextDouble() - 0.5) : -0f;
        }
      }
      Tensor w = Quantizer.quantize(store.floats("w.weight", x, out, in), type, store);
      assertTrue(SparseEncoder.zeros(w).twoOfFour());
      SparseMatrix.TwoOfFour m = SparseEncoder.twoOfFour(w, type, store);
      assertArrayEquals(positiveZeros(w), SparseMatrix.toFloats(m));
      assertEquals((long) out * in / 2, m.kept());
    }
  }

  @Test
  void everyMaskOfAtMostTwoHasALegalNibbleThatHoldsIt() {
    for (int mask = 0; mask < 16; mask++) {
      int nibble = SparseEncoder.nibble(mask);
      if (Integer.bitCount(mask) > 2) {
        assertTrue(nibble < 0);
        continue;
      }
      int low = nibble & 3;
      int high = nibble >> 2;
      assertTrue(low < high, "ascending: " + nibble);
      assertEquals(0, mask & ~(1 << low | 1 << high), "mask " + mask);
    }
  }

  @Test
  void twoOfFourWithFourBitValuesTakesThreeAndAQuarterBits() {
    try (TensorStore store = TensorStore.create()) {
      float[] x = new float[64 * 256];
      for (int i = 0; i < x.length; i += 2) {
        x[i] = i % 7 - 3;
      }
      Tensor w = store.floats("w.weight", x, 64, 256);
      SparseMatrix.TwoOfFour m = SparseEncoder.twoOfFour(w, TensorType.Q4_0, store);
      assertEquals(3.25, 8.0 * m.bytes() / x.length);
    }
  }

  @Test
  void whatIsNotANumberOrDoesNotFitIsRefused() {
    try (TensorStore store = TensorStore.create()) {
      Tensor nan = store.floats("n", new float[] {1, Float.NaN, 0, 0}, 1, 4);
      assertThrows(
          IllegalArgumentException.class, () -> SparseEncoder.bitmap(nan, TensorType.F32, store));
      Tensor three = store.floats("t", new float[] {1, 2, 3, 0}, 1, 4);
      IllegalArgumentException e =
          assertThrows(
              IllegalArgumentException.class,
              () -> SparseEncoder.twoOfFour(three, TensorType.F32, store));
      assertTrue(e.getMessage().contains("actual=3"), e.getMessage());
    }
  }

  @Test
  void damagedStructureIsRefused() {
    try (TensorStore store = TensorStore.create()) {
      float[] x = {1, 0, 2, 0, 0, 3, 0, 0, 4, 5, 0, 0};
      Tensor w = store.floats("w", x, 2, 6);
      SparseMatrix.Bitmap b = SparseEncoder.bitmap(w, TensorType.F32, store);
      for (int i = 0; i < b.mask().bytes(); i++) {
        for (int bit = 0; bit < 8; bit++) {
          byte old = b.mask().segment().get(ValueLayout.JAVA_BYTE, i);
          b.mask().segment().set(ValueLayout.JAVA_BYTE, i, (byte) (old ^ 1 << bit));
          assertThrows(
              WeightFileException.class,
              () -> new SparseMatrix.Bitmap(6, b.mask(), b.rowStart(), b.values()));
          b.mask().segment().set(ValueLayout.JAVA_BYTE, i, old);
        }
      }
      Tensor nm = store.floats("m", new float[] {1, 0, 2, 0, 0, 3, 0, 0}, 1, 8);
      SparseMatrix.TwoOfFour m = SparseEncoder.twoOfFour(nm, TensorType.F32, store);
      for (int nibble : new int[] {0, 5, 10, 15, 1, 2, 3, 6, 7, 11}) {
        m.index().segment().set(ValueLayout.JAVA_BYTE, 0, (byte) (nibble | 0x80));
        assertThrows(
            WeightFileException.class, () -> new SparseMatrix.TwoOfFour(m.index(), m.values()));
      }
      Tensor bw = store.floats("b", new float[] {1, 0, 0, 1}, 2, 2);
      SparseMatrix.Block k = SparseEncoder.block(bw, 1, 1, TensorType.F32, store);
      k.column().segment().set(ByteCursor.INT, 0, 2);
      assertThrows(
          WeightFileException.class,
          () -> new SparseMatrix.Block(2, k.rowStart(), k.column(), k.values()));
    }
  }
}
