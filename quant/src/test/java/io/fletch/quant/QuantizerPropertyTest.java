package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.SplittableRandom;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.Assume;
import net.jqwik.api.Combinators;
import net.jqwik.api.Example;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.constraints.IntRange;

/** Specs weights section 6, items 1 to 8. */
class QuantizerPropertyTest {
  private static final float EPS16 = 0x1p-11f;
  private static final float MIN_NORMAL_HALF = 0x1p-14f;

  /** 256 values: bell-shaped, heavy-tailed, constant, spike, sparse, or ties; of any scale. */
  @Provide
  Arbitrary<float[]> values() {
    Arbitrary<Integer> kinds = Arbitraries.integers().between(0, 6);
    Arbitrary<Integer> scales = Arbitraries.integers().between(-20, 8);
    Arbitrary<Long> seeds = Arbitraries.longs();
    return Combinators.combine(kinds, scales, seeds).as(QuantizerPropertyTest::draw);
  }

  private static float[] draw(int kind, int scale, long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    float[] x = new float[256];
    float constant = (float) random.nextGaussian();
    int spike = random.nextInt(256);
    for (int i = 0; i < x.length; i++) {
      double v = random.nextGaussian();
      double value =
          switch (kind) {
            case 0 -> v;
            case 1 -> v / Math.sqrt(Math.abs(random.nextGaussian()) + 0.01);
            case 2 -> constant;
            case 3 -> i == spike ? v : 0;
            case 4 -> random.nextInt(4) == 0 ? v : 0;
            case 5 -> random.nextInt(17) - 8;
            default -> Math.abs(v);
          };
      x[i] = Math.scalb((float) value, scale);
    }
    return x;
  }

  private static byte[] quantize(TensorType type, float[] x) {
    byte[] bytes = new byte[(int) type.bytes(x.length)];
    Quantizer.quantize(type, x, 0, x.length, MemorySegment.ofArray(bytes), 0);
    return bytes;
  }

  private static float[] dequantize(TensorType type, byte[] bytes, int n) {
    float[] x = new float[n];
    Dequantizer.dequantize(type, MemorySegment.ofArray(bytes), 0, x, 0, n);
    return x;
  }

  private static float[] roundTrip(TensorType type, float[] x) {
    return dequantize(type, quantize(type, x), x.length);
  }

  private static float largest(float[] x, int from, int n) {
    float largest = 0;
    for (int i = from; i < from + n; i++) {
      largest = Math.max(largest, Math.abs(x[i]));
    }
    return largest;
  }

  /** The signed element of largest magnitude. */
  private static float extreme(float[] x, int from) {
    float extreme = 0;
    for (int i = from; i < from + 32; i++) {
      extreme = Math.abs(x[i]) > Math.abs(extreme) ? x[i] : extreme;
    }
    return extreme;
  }

  @Property(tries = 300, seed = "1")
  void boundOfQ8(@ForAll("values") float[] x) {
    float[] y = roundTrip(TensorType.Q8_0, x);
    for (int i = 0; i < x.length; i++) {
      float d = largest(x, i / 32 * 32, 32) / 127;
      float bound = d >= MIN_NORMAL_HALF ? d * (0.5f + 127 * EPS16) : d / 2 + 127 * 0x1p-25f;
      assertTrue(Math.abs(x[i] - y[i]) <= bound * 1.000001f, x[i] + " " + y[i] + " d=" + d);
    }
  }

  @Property(tries = 300, seed = "1")
  void boundOfQ4AndQ5WithoutMinimum(@ForAll("values") float[] x) {
    for (TensorType type : new TensorType[] {TensorType.Q4_0, TensorType.Q5_0}) {
      int codes = type == TensorType.Q4_0 ? 8 : 16;
      float[] y = roundTrip(type, x);
      for (int i = 0; i < x.length; i++) {
        float d = extreme(x, i / 32 * 32) / -codes;
        // Below a normal half the error of the scale is absolute instead of relative.
        float scaleError = codes * Math.max(Math.abs(d) * EPS16, 0x1p-25f);
        boolean clipped = d != 0 && x[i] / d > codes - 0.5f;
        float bound = Math.abs(d) * (clipped ? 1 : 0.5f) + scaleError;
        assertTrue(
            Math.abs(x[i] - y[i]) <= bound * 1.000001f, type + " " + x[i] + " " + y[i] + " " + d);
      }
    }
  }

  @Property(tries = 300, seed = "1")
  void boundOfQ4AndQ5WithMinimum(@ForAll("values") float[] x) {
    for (TensorType type : new TensorType[] {TensorType.Q4_1, TensorType.Q5_1}) {
      int codes = type == TensorType.Q4_1 ? 15 : 31;
      float[] y = roundTrip(type, x);
      for (int from = 0; from < x.length; from += 32) {
        float[] block = Arrays.copyOfRange(x, from, from + 32);
        Arrays.sort(block);
        float m = block[0];
        float d = (block[31] - m) / codes;
        float bound =
            d / 2 + codes * Math.max(d * EPS16, 0x1p-25f) + Math.max(Math.abs(m) * EPS16, 0x1p-25f);
        // The sum q d + m itself is rounded to a float.
        bound += largest(x, from, 32) * 0x1p-22f;
        for (int i = from; i < from + 32; i++) {
          assertTrue(Math.abs(x[i] - y[i]) <= bound * 1.000001f, type + " " + x[i] + " " + y[i]);
        }
      }
    }
  }

  @Property(tries = 300, seed = "1")
  void boundOfMxfp4(@ForAll("values") float[] x) {
    float[] y = roundTrip(TensorType.MXFP4, x);
    for (int i = 0; i < x.length; i++) {
      float amax = largest(x, i / 32 * 32, 32);
      if (amax == 0) {
        assertEquals(0f, y[i]);
        continue;
      }
      float s = Math.scalb(1f, Math.getExponent(amax) - 2);
      float error = Math.abs(x[i] - y[i]);
      if (Math.abs(x[i]) <= 6 * s) {
        assertTrue(error <= s, x[i] + " " + y[i] + " s=" + s);
      } else {
        assertTrue(error < 2 * s, x[i] + " " + y[i] + " s=" + s);
      }
    }
  }

  /** Item 5: with the scales that are stored, no single other code would be nearer. */
  @Property(tries = 6, seed = "1")
  void codesOfKTypesAreTheNearest(@ForAll("values") float[] x) {
    for (TensorType type :
        new TensorType[] {TensorType.Q2_K, TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K}) {
      byte[] stored = quantize(type, x);
      float[] y = dequantize(type, stored, 256);
      int lowBitsAt =
          switch (type) {
            case Q2_K -> 16;
            case Q4_K -> 16;
            case Q5_K -> 48;
            default -> 0;
          };
      int lowBytes = type == TensorType.Q2_K ? 64 : 128;
      // Every code one bit away, and so both neighbours of about half of the codes.
      for (int at = lowBitsAt; at < lowBitsAt + lowBytes; at++) {
        for (int bit = 0; bit < 8; bit++) {
          byte[] other = stored.clone();
          other[at] ^= (byte) (1 << bit);
          float[] z = dequantize(type, other, 256);
          for (int i = 0; i < 256; i++) {
            if (z[i] != y[i]) {
              float error = Math.abs(x[i] - y[i]);
              assertTrue(
                  error <= Math.abs(x[i] - z[i]) + largest(x, 0, 256) * 1e-6f,
                  type + " " + i + ": x=" + x[i] + " y=" + y[i] + " other=" + z[i]);
            }
          }
        }
      }
    }
  }

  @Example
  void accuracyGrowsWithTheBits() {
    TensorType[] types = {
      TensorType.Q2_K,
      TensorType.Q3_K,
      TensorType.IQ4_XS,
      TensorType.Q4_K,
      TensorType.Q5_K,
      TensorType.Q6_K,
      TensorType.Q8_0
    };
    // Relative to the values, of bell-shaped ones; measured and rounded up.
    double[] limits = {0.36, 0.19, 0.095, 0.088, 0.046, 0.023, 0.008};
    for (int seed = 0; seed < 20; seed++) {
      float[] x = draw(0, 0, seed);
      for (int t = 0; t < types.length; t++) {
        float[] y = roundTrip(types[t], x);
        double error = 0;
        double size = 0;
        for (int i = 0; i < 256; i++) {
          error += Math.pow(x[i] - y[i], 2);
          size += Math.pow(x[i], 2);
        }
        double relative = Math.sqrt(error / size);
        assertTrue(relative <= limits[t], types[t] + " " + relative);
        assertTrue(relative >= limits[t] / 4, types[t] + " " + relative);
      }
    }
  }

  /** Item 6. */
  @Property(tries = 300, seed = "1")
  void secondPassChangesNothing(@ForAll("values") float[] x) {
    Assume.that(largest(x, 0, 256) > 0);
    for (TensorType type : new TensorType[] {TensorType.Q8_0, TensorType.Q4_0, TensorType.Q5_0}) {
      for (int from = 0; from < 256; from += 32) {
        float[] block = Arrays.copyOfRange(x, from, from + 32);
        float levels = type == TensorType.Q8_0 ? 127 : type == TensorType.Q4_0 ? 8 : 16;
        if (largest(block, 0, 32) / levels >= MIN_NORMAL_HALF) {
          byte[] once = quantize(type, block);
          assertArrayEquals(once, quantize(type, dequantize(type, once, 32)), type.toString());
        }
      }
    }
  }

  /** Item 7. */
  @Property(tries = 200, seed = "1")
  void powersOfTwoScaleTheScaleOnly(
      @ForAll("values") float[] x, @ForAll @IntRange(min = -3, max = 3) int k) {
    for (TensorType type :
        new TensorType[] {
          TensorType.Q4_0,
          TensorType.Q4_1,
          TensorType.Q5_0,
          TensorType.Q5_1,
          TensorType.Q8_0,
          TensorType.MXFP4
        }) {
      float[] scaled = new float[256];
      for (int i = 0; i < 256; i++) {
        scaled[i] = Math.scalb(x[i], k);
      }
      byte[] a = quantize(type, x);
      byte[] b = quantize(type, scaled);
      int header =
          switch (type) {
            case MXFP4 -> 1;
            case Q4_1, Q5_1 -> 4;
            default -> 2;
          };
      for (int block = 0; block < 8; block++) {
        int from = block * type.blockBytes();
        assertArrayEquals(
            Arrays.copyOfRange(a, from + header, from + type.blockBytes()),
            Arrays.copyOfRange(b, from + header, from + type.blockBytes()),
            type.toString());
      }
      float[] ya = dequantize(type, a, 256);
      float[] yb = dequantize(type, b, 256);
      for (int i = 0; i < 256; i++) {
        if (largest(x, i / 32 * 32, 32) > 0.1f) {
          float tolerance = type == TensorType.Q4_1 || type == TensorType.Q5_1 ? 0x1p-8f : 0;
          assertEquals(
              Math.scalb(ya[i], k), yb[i], tolerance * largest(scaled, 0, 256), type.toString());
        }
      }
    }
  }

  @Example
  void zerosStayZeros() {
    for (TensorType type : TensorType.values()) {
      if (type.isQuantized()) {
        for (float v : roundTrip(type, new float[256])) {
          assertEquals(0f, Math.abs(v), type.toString());
        }
      }
    }
    // The signed zero that the formula v / -8 gives is part of the format's reference.
    assertEquals((byte) 0x80, quantize(TensorType.Q4_0, new float[32])[1]);
  }

  @Example
  void refusesWhatCannotBeStored() {
    for (TensorType type : TensorType.values()) {
      switch (type) {
        case I8, I16, I32, I64 ->
            assertThrows(IllegalArgumentException.class, () -> quantize(type, new float[256]));
        default -> {
          for (float bad :
              new float[] {Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY}) {
            float[] x = new float[256];
            x[77] = bad;
            IllegalArgumentException e =
                assertThrows(IllegalArgumentException.class, () -> quantize(type, x));
            assertTrue(e.getMessage().contains("77"), e.getMessage());
          }
          boolean wide =
              type == TensorType.F32 || type == TensorType.F64 || type == TensorType.MXFP4;
          for (float large : new float[] {3e8f, 1e10f, 1e20f, -3e38f}) {
            float[] x = new float[256];
            Arrays.fill(x, 1);
            x[40] = large;
            if (!wide && (type != TensorType.BF16)) {
              assertThrows(IllegalArgumentException.class, () -> quantize(type, x), "" + type);
            } else {
              quantize(type, x);
            }
          }
        }
      }
    }
    float[] edge = {Float.MAX_VALUE};
    assertThrows(IllegalArgumentException.class, () -> quantize(TensorType.BF16, edge));
    assertThrows(
        IllegalArgumentException.class, () -> quantize(TensorType.F16, new float[] {65520}));
    quantize(TensorType.F16, new float[] {65519});
    assertThrows(IllegalArgumentException.class, () -> quantize(TensorType.Q4_0, new float[31]));
    assertThrows(
        IndexOutOfBoundsException.class,
        () ->
            Quantizer.quantize(
                TensorType.F32, new float[4], 0, 4, MemorySegment.ofArray(new byte[15]), 0));
  }

  @Property(tries = 500, seed = "1")
  void plainTypesRoundToNearestEven(@ForAll float value) {
    Assume.that(Float.isFinite(value) && Math.abs(value) < 65504);
    float half = roundTrip(TensorType.F16, new float[] {value})[0];
    assertEquals(Float.float16ToFloat(Float.floatToFloat16(value)), half);
    float bf16 = roundTrip(TensorType.BF16, new float[] {value})[0];
    int bits = Float.floatToRawIntBits(value);
    float down = Float.intBitsToFloat(bits & 0xFFFF0000);
    float up = Float.intBitsToFloat((bits & 0xFFFF0000) + 0x10000);
    double toDown = Math.abs((double) value - down);
    double toUp = Math.abs((double) up - value);
    boolean even = (bits & 0x10000) == 0;
    assertEquals(toDown < toUp || toDown == toUp && even ? down : up, bf16);
    assertEquals(value, roundTrip(TensorType.F32, new float[] {value})[0]);
    assertEquals(value, roundTrip(TensorType.F64, new float[] {value})[0]);
  }

  @Example
  void elementsAndRowsAgreeWithTheWhole() {
    try (TensorStore store = TensorStore.create()) {
      SplittableRandom random = new SplittableRandom(3);
      float[] x = new float[3 * 512];
      for (int i = 0; i < x.length; i++) {
        x[i] = (float) random.nextGaussian();
      }
      Tensor source = store.floats("x", x, 3, 512);
      for (TensorType type : TensorType.values()) {
        if (type.name().startsWith("I") && !type.isQuantized()) {
          continue;
        }
        Tensor t = Quantizer.quantize(source, type, store);
        Dequantizer.checkFinite(t);
        float[] whole = Dequantizer.toFloats(t);
        float[] row = new float[514];
        Dequantizer.row(t, 2, row, 1);
        for (int i = 0; i < 512; i++) {
          assertEquals(whole[1024 + i], row[1 + i]);
          assertEquals(whole[1024 + i], Dequantizer.element(t, 1024 + i));
        }
        assertThrows(IndexOutOfBoundsException.class, () -> Dequantizer.row(t, 3, row, 0));
        assertThrows(IndexOutOfBoundsException.class, () -> Dequantizer.row(t, 2, row, 3));
        assertThrows(IndexOutOfBoundsException.class, () -> Dequantizer.element(t, 1536));
      }
    }
  }

  @Example
  void validationFindsBadScales() {
    try (TensorStore store = TensorStore.create()) {
      for (TensorType type : TensorType.values()) {
        Tensor t = store.allocate("t" + type, type, 2, 256);
        Dequantizer.checkFinite(t);
        t.segment().fill((byte) 0xFF);
        boolean integer = type.name().startsWith("I") && !type.isQuantized();
        if (integer) {
          Dequantizer.checkFinite(t);
        } else {
          assertThrows(WeightFileException.class, () -> Dequantizer.checkFinite(t), "" + type);
        }
      }
    }
  }
}
