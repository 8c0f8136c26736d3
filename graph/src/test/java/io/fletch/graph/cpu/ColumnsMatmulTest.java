package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.ExecutableMemory;
import io.fletch.graph.cpu.x86.Isa;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.Quantizer;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.SplittableRandom;
import java.util.stream.Stream;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Products that leave out columns whose activation is zero, against their definition. */
class ColumnsMatmulTest {
  private static final int GUARD = 32;

  static Stream<Optional<Isa>> sets() {
    List<Optional<Isa>> all = new ArrayList<>(List.of(Optional.empty()));
    if (ExecutableMemory.refusal().isEmpty()) {
      Arrays.stream(Isa.values())
          .filter(isa -> isa.supportedBy(CpuFeatures.host()))
          .forEach(isa -> all.add(Optional.of(isa)));
    }
    return all.stream();
  }

  private record Case(TensorType type, int out, int in, int rows, double density) {}

  private static List<Case> cases() {
    List<Case> all = new ArrayList<>();
    for (TensorType type : new TensorType[] {TensorType.F32, TensorType.F16, TensorType.BF16}) {
      for (double density : new double[] {0, 0.05, 0.5, 1}) {
        all.add(new Case(type, 272, 64, 1, density));
        all.add(new Case(type, 16, 33, 3, density));
        all.add(new Case(type, 512, 300, 4, density));
        all.add(new Case(type, 300, 130, 7, density));
        all.add(new Case(type, 320, 257, 9, density));
        all.add(new Case(type, 5, 2, 2, density));
      }
    }
    return all;
  }

  @ParameterizedTest
  @MethodSource("sets")
  void rowsTakeColumnsInOrder(Optional<Isa> isa) {
    SplittableRandom random = new SplittableRandom(3);
    for (Case c : cases()) {
      try (TensorStore store = TensorStore.create()) {
        check(c, isa, random, 0, store);
      }
    }
  }

  /**
   * A zero leaves its column out whatever the weights are, in every way through the product and in
   * panels with and without such weights; products that are too small for a float end as +0.
   */
  @Property(tries = 60)
  void zerosLeaveOutWhatIsNotFinite(
      @ForAll long seed,
      @ForAll @IntRange(min = 1, max = 34) int units,
      @ForAll boolean ragged,
      @ForAll @IntRange(min = 1, max = 90) int in,
      @ForAll @IntRange(min = 1, max = 10) int rows,
      @ForAll @IntRange(min = 0, max = 2) int type,
      @ForAll @IntRange(min = 0, max = 3) int thirds) {
    TensorType t = new TensorType[] {TensorType.F32, TensorType.F16, TensorType.BF16}[type];
    int out = ragged ? 16 * units - 3 : 16 * units;
    Case c = new Case(t, out, in, rows, thirds / 3.0);
    sets()
        .forEach(isa -> {
          try (TensorStore store = TensorStore.create()) {
            SplittableRandom random = new SplittableRandom(seed);
            check(c, isa, random, random.nextBoolean() ? 0.3 / out : 0.1 / (out * in), store);
          }
        });
  }

  /** Machine code packs to the bytes of plain Java, from and to exactly the memory there is. */
  @Property(tries = 40)
  void packsAsPlainJava(
      @ForAll long seed,
      @ForAll @IntRange(min = 1, max = 530) int out,
      @ForAll @IntRange(min = 1, max = 120) int in,
      @ForAll @IntRange(min = 0, max = 2) int type) {
    TensorType t = new TensorType[] {TensorType.F32, TensorType.F16, TensorType.BF16}[type];
    byte[] bytes = new byte[Math.toIntExact(t.bytes((long) out * in))];
    SplittableRandom random = new SplittableRandom(seed);
    random.nextBytes(bytes);
    // Random bits of 16 are not finite too often to tell panels apart.
    for (int i = 1; random.nextInt(4) > 0 && i < bytes.length; i += 2) {
      bytes[i] &= random.nextInt(bytes.length) == 0 ? -1 : (byte) 0xbb;
    }
    ColumnsMatmul plain = new ColumnsMatmul(t, in, Optional.empty());
    byte[] expected = new byte[Math.toIntExact(plain.packedBytes(out))];
    MemorySegment source = MemorySegment.ofArray(bytes);
    plain.pack(source, MemorySegment.ofArray(expected), out, 0, out);
    long middle = Math.min(out, ColumnsMatmul.PANEL);
    sets()
        .flatMap(Optional::stream)
        .forEach(isa -> {
          try (GuardedMemory memory = new GuardedMemory(seed % 2 == 0)) {
            MemorySegment guarded = memory.allocate(bytes.length).copyFrom(source);
            MemorySegment packed = memory.allocate(expected.length).fill((byte) 0x55);
            ColumnsMatmul coded = new ColumnsMatmul(t, in, Optional.of(isa));
            coded.pack(guarded, packed, out, middle, out);
            coded.pack(guarded, packed, out, 0, middle);
            assertArrayEquals(expected, packed.toArray(ValueLayout.JAVA_BYTE));
          }
        });
  }

  /** What is not finite, or so small that products are none. */
  private static float extreme(SplittableRandom random) {
    float[] all = {
      Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY, 1e-30f, -1e-30f, Float.MIN_VALUE
    };
    return all[random.nextInt(all.length)];
  }

  private static void check(
      Case c, Optional<Isa> isa, SplittableRandom random, double extremes, TensorStore store) {
    float[] values = new float[c.out() * c.in()];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextDouble(-1, 1);
      values[i] = random.nextDouble() < extremes ? extreme(random) : values[i];
    }
    // Of so small operands every product rounds to a zero of its sign.
    float size = extremes > 0 && random.nextInt(3) == 0 ? 1e-30f : 1;
    for (int i = 0; i < values.length; i++) {
      values[i] *= size;
    }
    Tensor floats = store.floats("w", values, c.out(), c.in());
    Tensor w = extremes > 0 ? cast(floats, c, store) : Quantizer.quantize(floats, c.type(), store);
    float[] weights = Dequantizer.toFloats(w);
    ColumnsMatmul m = new ColumnsMatmul(c.type(), c.in(), isa);
    MemorySegment packed = store.allocate("p", TensorType.I8, m.packedBytes(c.out())).segment();
    packed.fill((byte) 0x7f);
    // In two parts, as workers do.
    long middle = c.out() > ColumnsMatmul.PANEL ? ColumnsMatmul.PANEL : c.out();
    m.pack(w.segment(), packed, c.out(), middle, c.out());
    m.pack(w.segment(), packed, c.out(), 0, middle);
    long stride = ActivationLayout.bytes(Kernels.ActivationFormat.F32, c.in());
    MemorySegment x = store.allocate("x", TensorType.I8, c.rows() * stride).segment();
    float[][] rows = new float[c.rows()][c.in()];
    for (int r = 0; r < c.rows(); r++) {
      for (int j = 0; j < c.in(); j++) {
        rows[r][j] =
            random.nextDouble() < c.density() ? size * (float) random.nextDouble(-1, 1) : 0;
        if (rows[r][j] != 0 && extremes > 0 && random.nextDouble() < 0.3 / c.in()) {
          rows[r][j] = extreme(random);
        }
        // A zero of either sign is one.
        float v = rows[r][j] == 0 && j % 3 == 0 ? -0f : rows[r][j];
        x.set(ValueLayout.JAVA_FLOAT, r * stride + 4L * j, v);
      }
    }
    int yStride = c.out() + 16;
    MemorySegment y = store.allocate("y", TensorType.F32, c.rows() * yStride + GUARD).segment();
    fill(y);
    m.run(packed, c.out(), 0, middle, x, 0, c.rows(), y, 0, yStride);
    m.run(packed, c.out(), middle, c.out(), x, 0, c.rows(), y, 0, yStride);
    for (int r = 0; r < c.rows(); r++) {
      for (int o = 0; o < c.out(); o++) {
        float sum = 0;
        for (int j = 0; j < c.in(); j++) {
          if (rows[r][j] != 0) {
            sum = Math.fma(rows[r][j], weights[o * c.in() + j], sum);
          }
        }
        sum += 0f;
        float actual = y.getAtIndex(ValueLayout.JAVA_FLOAT, r * yStride + o);
        assertEquals(sum, actual, c + " row " + r + " output " + o);
      }
      for (int o = c.out(); o < yStride; o++) {
        assertEquals(7e7f, y.getAtIndex(ValueLayout.JAVA_FLOAT, r * yStride + o), c.toString());
      }
    }
    if (c.rows() == 1) {
      long zeros = 0;
      for (float v : rows[0]) {
        zeros += v == 0 ? 1 : 0;
      }
      assertEquals(c.type().bytes(zeros * c.out()), m.skippedBytes(), c.toString());
    }
  }

  /** As stored, without refusing what is not finite. */
  private static Tensor cast(Tensor floats, Case c, TensorStore store) {
    Tensor t = store.allocate("cast", c.type(), c.out(), c.in());
    for (long i = 0; i < (long) c.out() * c.in(); i++) {
      float v = floats.segment().getAtIndex(ValueLayout.JAVA_FLOAT, i);
      switch (c.type()) {
        case F32 -> t.segment().setAtIndex(ValueLayout.JAVA_FLOAT, i, v);
        case F16 -> t.segment().setAtIndex(ValueLayout.JAVA_SHORT, i, Float.floatToFloat16(v));
        default ->
            t.segment()
                .setAtIndex(ValueLayout.JAVA_SHORT, i, (short) (Float.floatToIntBits(v) >>> 16));
      }
    }
    return t;
  }

  private static void fill(MemorySegment y) {
    for (long i = 0; i < y.byteSize() / 4; i++) {
      y.setAtIndex(ValueLayout.JAVA_FLOAT, i, 7e7f);
    }
  }

  @ParameterizedTest
  @MethodSource("sets")
  void whatIsNoNumberIsNotLeftOut(Optional<Isa> isa) {
    try (TensorStore store = TensorStore.create()) {
      ColumnsMatmul m = new ColumnsMatmul(TensorType.F32, 8, isa);
      Tensor w = store.floats("w", new float[16 * 8], 16, 8);
      MemorySegment packed = store.allocate("p", TensorType.I8, m.packedBytes(16)).segment();
      m.pack(w.segment(), packed, 16, 0, 16);
      MemorySegment x = store.allocate("x", TensorType.I8, 64).segment();
      x.set(ValueLayout.JAVA_FLOAT, 20, Float.NaN);
      MemorySegment y = store.allocate("y", TensorType.F32, 16).segment();
      m.run(packed, 16, 0, 16, x, 0, 1, y, 0, 16);
      assertTrue(Float.isNaN(y.get(ValueLayout.JAVA_FLOAT, 0)));
    }
  }

  @Test
  void rangesAreWholePanels() {
    ColumnsMatmul m = new ColumnsMatmul(TensorType.F16, 8, Optional.empty());
    assertEquals(ColumnsMatmul.PANEL, m.rowGranule());
    assertTrue(m.packs());
    assertThrows(
        IllegalArgumentException.class,
        () ->
            m.run(
                MemorySegment.NULL,
                512,
                16,
                512,
                MemorySegment.NULL,
                0,
                1,
                MemorySegment.NULL,
                0,
                0));
  }
}
