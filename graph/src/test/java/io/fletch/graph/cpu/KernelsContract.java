package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.graph.cpu.Kernels.Matmul;
import io.fletch.quant.TensorType;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.Random;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.constraints.IntRange;

/**
 * What every kernel set must satisfy, against double-precision references. A subclass names the
 * set. Inputs are segments of exactly the stated size, so that a Java kernel that reads beyond them
 * fails by the bounds check; outputs lie between canaries.
 */
abstract class KernelsContract {
  private static final String SEED = "20250917";
  private static final double EPS = 0x1p-24;
  private static final int CANARY = 64;
  private static final byte CANARY_BYTE = (byte) 0xa5;

  abstract Kernels kernels();

  @Provide
  Arbitrary<TensorType> types() {
    return Arbitraries.of(WeightOracle.TYPES);
  }

  // ---- products

  @Property(tries = 300, seed = SEED)
  void productIsWithinRoundingOfTheExactOne(
      @ForAll("types") TensorType type,
      @ForAll @IntRange(min = 1, max = 9) int blocks,
      @ForAll @IntRange(min = 1, max = 40) int out,
      @ForAll @IntRange(min = 1, max = 19) int rows,
      @ForAll long seed) {
    Random random = new Random(seed);
    int in = type.isQuantized() ? type.blockSize() * blocks : 1 + random.nextInt(150);
    try (Arena arena = Arena.ofConfined()) {
      byte[] w = WeightOracle.random(type, out * in, random);
      Matmul matmul = kernels().matmul(type, in);
      MemorySegment weight = weight(arena, matmul, w, out);
      float[] x = activations(rows * in, random);
      MemorySegment xs = quantized(arena, matmul.activation(), x, rows, in);
      long from = random.nextInt(out) / matmul.rowGranule() * (long) matmul.rowGranule();
      long to = Math.min(out, from + random.nextLong(1, out + 1L) * matmul.rowGranule());
      int yStride = out + random.nextInt(5);
      Output y = new Output(arena, 3 + (rows - 1) * yStride + out);
      matmul.run(weight, out, from, to, xs, 0, rows, y.segment, y.offset + 3, yStride);
      y.checkCanaries();
      Row row = new Row(matmul.activation(), xs, in);
      for (int i = 0; i < y.n; i++) {
        int r = i < 3 ? -1 : (i - 3) / yStride;
        int o = i < 3 ? -1 : (i - 3) % yStride;
        if (r < 0 || o < from || o >= to) {
          y.checkUntouched(i);
          continue;
        }
        double sum = 0;
        double abs = 0;
        for (int k = 0; k < in; k++) {
          double product = WeightOracle.value(type, w, o * in + k) * row.value(r, k);
          sum += product;
          abs += Math.abs(product);
        }
        // The minimum terms can be larger than their difference; bound them by themselves.
        double slack = minimumMagnitude(type, w, o, in, row, r);
        double bound = (2.0 * in / 16 + 8) * EPS * (abs + slack) + 1e-37;
        assertEquals(sum, y.get(i), bound, () -> type + " in=" + in);
      }
    }
  }

  @Property(tries = 150, seed = SEED)
  void rowsDoNotDependOnEachOther(
      @ForAll("types") TensorType type,
      @ForAll @IntRange(min = 1, max = 6) int blocks,
      @ForAll @IntRange(min = 1, max = 23) int rows,
      @ForAll long seed) {
    Random random = new Random(seed);
    int in = type.isQuantized() ? type.blockSize() * blocks : 1 + random.nextInt(150);
    int out = 1 + random.nextInt(35);
    try (Arena arena = Arena.ofConfined()) {
      Matmul matmul = kernels().matmul(type, in);
      byte[] w = WeightOracle.random(type, out * in, random);
      MemorySegment weight = weight(arena, matmul, w, out);
      float[] x = activations(rows * in, random);
      MemorySegment xs = quantized(arena, matmul.activation(), x, rows, in);
      long stride = kernels().activationBytes(matmul.activation(), in);
      Output together = new Output(arena, rows * out);
      matmul.run(weight, out, 0, out, xs, 0, rows, together.segment, together.offset, out);
      Output alone = new Output(arena, rows * out);
      for (int r = 0; r < rows; r++) {
        long split = random.nextInt(out + 1) / matmul.rowGranule() * (long) matmul.rowGranule();
        long y = alone.offset + (long) r * out;
        matmul.run(weight, out, 0, split, xs, r * stride, 1, alone.segment, y, out);
        matmul.run(weight, out, split, out, xs, r * stride, 1, alone.segment, y, out);
      }
      assertArrayEquals(together.bits(), alone.bits(), () -> type + " in=" + in);
    }
  }

  /** The order of float operations is written down, so all sets agree to the bit. */
  @Property(tries = 200, seed = SEED)
  void productHasTheBitsOfTheScalarOne(
      @ForAll("types") TensorType type,
      @ForAll @IntRange(min = 1, max = 9) int blocks,
      @ForAll @IntRange(min = 1, max = 40) int out,
      @ForAll @IntRange(min = 1, max = 19) int rows,
      @ForAll boolean special,
      @ForAll long seed) {
    Random random = new Random(seed);
    int in = type.isQuantized() ? type.blockSize() * blocks : 1 + random.nextInt(150);
    try (Arena arena = Arena.ofConfined()) {
      Matmul matmul = kernels().matmul(type, in);
      byte[] w = WeightOracle.random(type, out * in, random);
      float[] x = activations(rows * in, random);
      if (special) {
        x[random.nextInt(x.length)] =
            switch (random.nextInt(3)) {
              case 0 -> Float.NaN;
              case 1 -> Float.POSITIVE_INFINITY;
              default -> Float.NEGATIVE_INFINITY;
            };
      }
      MemorySegment xs = quantized(arena, matmul.activation(), x, rows, in);
      Output y = new Output(arena, rows * out);
      matmul.run(weight(arena, matmul, w, out), out, 0, out, xs, 0, rows, y.segment, y.offset, out);
      Output expected = new Output(arena, rows * out);
      ScalarKernels.INSTANCE
          .matmul(type, in)
          .run(
              exact(arena, w),
              out,
              0,
              out,
              quantizedBy(ScalarKernels.INSTANCE, arena, matmul.activation(), x, rows, in),
              0,
              rows,
              expected.segment,
              expected.offset,
              out);
      assertArrayEquals(expected.bits(), y.bits(), () -> type + " in=" + in);
    }
  }

  /**
   * Scales and activations at the ends of their ranges, and no numbers among them: the bits of the
   * scalar product, packed and as mapped.
   */
  @Property(tries = 300, seed = SEED)
  void extremeScalesGiveTheBitsOfTheScalarProduct(
      @ForAll("types") TensorType type,
      @ForAll @IntRange(min = 1, max = 5) int blocks,
      @ForAll @IntRange(min = 1, max = 40) int out,
      @ForAll @IntRange(min = 1, max = 17) int rows,
      @ForAll boolean finite,
      @ForAll long seed) {
    Random random = new Random(seed);
    int in = type.isQuantized() ? type.blockSize() * blocks : 1 + random.nextInt(150);
    byte[] w = WeightOracle.extreme(type, out * in, finite, random);
    float[] x = activations(rows * in, random);
    float[] ends = {1e-45f, 1e-38f, 0x1p-121f, 0x1p-120f, 1e30f, Float.MAX_VALUE};
    float end = ends[random.nextInt(ends.length)];
    for (int i = 0; i < x.length; i++) {
      x[i] = random.nextInt(3) == 0 ? x[i] : (random.nextBoolean() ? end : -end);
    }
    try (Arena arena = Arena.ofConfined()) {
      Kernels scalar = ScalarKernels.INSTANCE;
      Matmul reference = scalar.matmul(type, in);
      MemorySegment xs = quantizedBy(scalar, arena, reference.activation(), x, rows, in);
      Output expected = new Output(arena, rows * out);
      MemorySegment rowMajor = exact(arena, w);
      reference.run(rowMajor, out, 0, out, xs, 0, rows, expected.segment, expected.offset, out);
      for (boolean mapped : new boolean[] {false, true}) {
        Matmul matmul = mapped ? kernels().matmulMapped(type, in) : kernels().matmul(type, in);
        MemorySegment own = quantized(arena, matmul.activation(), x, rows, in);
        Output y = new Output(arena, rows * out);
        MemorySegment weight = weight(arena, matmul, w, out);
        matmul.run(weight, out, 0, out, own, 0, rows, y.segment, y.offset, out);
        y.checkCanaries();
        assertArrayEquals(expected.bits(), y.bits(), () -> matmul.name() + " in=" + in);
      }
      for (int i = 0; i < rows * out; i++) {
        assertFollows(type, w, i % out, in, expected.get(i));
      }
    }
  }

  /** A weight that is infinite or NaN is not lost. */
  private static void assertFollows(TensorType type, byte[] w, int o, int in, float y) {
    boolean finite = true;
    for (int k = 0; k < in; k++) {
      finite &= Double.isFinite(WeightOracle.value(type, w, o * in + k));
    }
    assertTrue(finite || !Float.isFinite(y), () -> type + " row " + o + " result=" + y);
  }

  // ---- forms of activations and weights

  @Property(tries = 300, seed = SEED)
  void quantizationFollowsTheLayout(
      @ForAll boolean superBlock,
      @ForAll @IntRange(min = 1, max = 7) int blocks,
      @ForAll long seed) {
    Random random = new Random(seed);
    ActivationFormat format =
        superBlock ? ActivationFormat.Q8_BLOCK256 : ActivationFormat.Q8_BLOCK32;
    int size = superBlock ? 256 : 32;
    int n = blocks * size;
    float[] x = activations(n, random);
    int zero = random.nextInt(blocks);
    Arrays.fill(x, zero * size, zero * size + size, random.nextBoolean() ? 0f : 1e-37f);
    int bad = random.nextInt(2 * blocks);
    if (bad < blocks) {
      x[bad * size + random.nextInt(size)] =
          random.nextBoolean() ? Float.NaN : Float.NEGATIVE_INFINITY;
    }
    try (Arena arena = Arena.ofConfined()) {
      Row row = new Row(format, quantized(arena, format, x, 1, n), n);
      for (int b = 0; b < blocks; b++) {
        float amax = 0;
        boolean finite = true;
        for (int i = b * size; i < (b + 1) * size; i++) {
          amax = Math.max(amax, Math.abs(x[i]));
          finite &= Float.isFinite(x[i]);
        }
        float scale = row.scale(0, b);
        if (!finite) {
          assertEquals(0x7fc00000, Float.floatToRawIntBits(scale));
        } else {
          assertEquals(amax < 0x1p-120f ? 0f : amax / 127f, scale);
        }
        for (int i = b * size; i < (b + 1) * size; i++) {
          int expected = 0;
          if (finite && amax >= 0x1p-120f) {
            expected = (int) Math.rint(x[i] * (127f / amax));
            assertEquals(x[i], (double) scale * row.code(0, i), scale * 0.50001);
          }
          assertEquals(expected, row.code(0, i));
        }
      }
      int group = superBlock ? 16 : 32;
      for (int g = 0; g < n / group; g++) {
        int sum = 0;
        for (int i = g * group; i < (g + 1) * group; i++) {
          sum += row.code(0, i);
        }
        assertEquals(sum, row.sum(0, g));
      }
    }
  }

  @Property(tries = 200, seed = SEED)
  void dequantizationIsExact(
      @ForAll("types") TensorType type,
      @ForAll @IntRange(min = 1, max = 600) int n,
      @ForAll long seed) {
    Random random = new Random(seed);
    int size = type.blockSize();
    byte[] w = WeightOracle.random(type, (n + size - 1) / size * size, random);
    float scale = random.nextBoolean() ? 1f : (float) random.nextGaussian();
    try (Arena arena = Arena.ofConfined()) {
      Output dst = new Output(arena, n);
      int before = random.nextInt(3) * type.blockBytes();
      MemorySegment src = arena.allocate(before + w.length, 1);
      MemorySegment.copy(MemorySegment.ofArray(w), 0, src, before, w.length);
      kernels().dequantize(type, src, before, n, scale, dst.segment, dst.offset);
      dst.checkCanaries();
      for (int i = 0; i < n; i++) {
        // Doubles hold products and minimum exactly; one rounding to float32, one by the scale.
        assertEquals(scale * (float) WeightOracle.value(type, w, i), dst.get(i), 0f);
      }
    }
  }

  // ---- element-wise and rows

  @Property(tries = 200, seed = SEED)
  void rmsNormMatches(
      @ForAll @IntRange(min = 1, max = 700) int n, @ForAll boolean inPlace, @ForAll long seed) {
    Random random = new Random(seed);
    float[] x = activations(n, random);
    float[] w = activations(n, random);
    float scale = 1f + random.nextFloat();
    try (Arena arena = Arena.ofConfined()) {
      Output dst = new Output(arena, n);
      MemorySegment source = floats(arena, x);
      long offset = 0;
      if (inPlace) {
        dst.fill(x);
        source = dst.segment;
        offset = dst.offset;
      }
      kernels().rmsNorm(source, offset, floats(arena, w), n, 1e-6f, scale, dst.segment, dst.offset);
      dst.checkCanaries();
      double sum = 0;
      for (float v : x) {
        sum += (double) v * v;
      }
      double factor = scale / Math.sqrt(sum / n + 1e-6f);
      for (int i = 0; i < n; i++) {
        double expected = x[i] * factor * w[i];
        assertEquals(expected, dst.get(i), Math.abs(expected) * (n / 16.0 + 12) * EPS + 1e-37);
      }
    }
  }

  @Property(tries = 200, seed = SEED)
  void ropeRotatesPairs(
      @ForAll RopeSpec.Style style,
      @ForAll @IntRange(min = 0, max = 70) int pairs,
      @ForAll @IntRange(min = 0, max = 9) int rest,
      @ForAll boolean inPlace,
      @ForAll long seed) {
    Random random = new Random(seed);
    int dim = 2 * pairs + rest;
    float[] x = activations(dim, random);
    float[] table = new float[2 * pairs + 3];
    for (int i = 0; i < pairs; i++) {
      double angle = random.nextDouble() * 7;
      table[3 + i] = (float) Math.cos(angle);
      table[3 + pairs + i] = (float) Math.sin(angle);
    }
    try (Arena arena = Arena.ofConfined()) {
      Output dst = new Output(arena, dim);
      MemorySegment source = floats(arena, x);
      long offset = 0;
      if (inPlace) {
        dst.fill(x);
        source = dst.segment;
        offset = dst.offset;
      }
      kernels()
          .rope(
              style, source, offset, dim, floats(arena, table), 3, pairs, dst.segment, dst.offset);
      dst.checkCanaries();
      for (int i = 0; i < pairs; i++) {
        int a = style == RopeSpec.Style.NORM ? 2 * i : i;
        int b = style == RopeSpec.Style.NORM ? 2 * i + 1 : i + pairs;
        double cos = table[3 + i];
        double sin = table[3 + pairs + i];
        double bound = (Math.abs(x[a]) + Math.abs(x[b])) * 3 * EPS + 1e-37;
        assertEquals(x[a] * cos - x[b] * sin, dst.get(a), bound);
        assertEquals(x[a] * sin + x[b] * cos, dst.get(b), bound);
      }
      for (int i = 2 * pairs; i < dim; i++) {
        assertEquals(x[i], dst.get(i));
      }
    }
  }

  @Property(tries = 200, seed = SEED)
  void activationsMatch(
      @ForAll Activation activation,
      @ForAll @IntRange(min = 0, max = 90) int n,
      @ForAll long seed) {
    Random random = new Random(seed);
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) (random.nextGaussian() * (random.nextInt(5) == 0 ? 60 : 3));
    }
    float[] up = activations(n, random);
    try (Arena arena = Arena.ofConfined()) {
      Output plain = new Output(arena, n);
      Output gated = new Output(arena, n);
      MemorySegment xs = floats(arena, x);
      kernels().activate(activation, xs, 0, n, plain.segment, plain.offset);
      kernels().activate(activation, xs, 0, floats(arena, up), 0, n, gated.segment, gated.offset);
      plain.checkCanaries();
      gated.checkCanaries();
      for (int i = 0; i < n; i++) {
        double v = x[i];
        double expected =
            switch (activation) {
              case SILU -> v / (1 + Math.exp(-v));
              case GELU_TANH ->
                  v / (1 + Math.exp(-2 * Math.sqrt(2 / Math.PI) * (v + 0.044715 * v * v * v)));
              case GELU_ERF -> ReferenceActivations.gelu(v);
              case RELU -> Math.max(v, 0);
              case RELU_SQUARED -> Math.max(v, 0) * Math.max(v, 0);
            };
        // An error of the argument of exp, relative to the argument, is one of the result.
        double argument = activation == Activation.GELU_TANH ? 1.6 * (v + 0.044715 * v * v * v) : v;
        double bound =
            activation == Activation.GELU_ERF
                ? 1e-7 + 8 * Math.abs(expected) * EPS
                : Math.abs(expected) * (8 + 4 * Math.min(Math.abs(argument), 110)) * EPS + 1e-36;
        assertEquals(expected, plain.get(i), bound);
        assertEquals(plain.get(i) * up[i], gated.get(i), 0f);
      }
    }
  }

  @Property(tries = 200, seed = SEED)
  void addMultiplyScaleAndSoftCapMatch(
      @ForAll @IntRange(min = 0, max = 90) int n, @ForAll long seed) {
    Random random = new Random(seed);
    float[] a = activations(n, random);
    float[] b = activations(n, random);
    float factor = random.nextBoolean() ? 1f : (float) random.nextGaussian();
    try (Arena arena = Arena.ofConfined()) {
      Output sum = new Output(arena, n);
      sum.fill(a);
      MemorySegment bs = floats(arena, b);
      kernels().add(sum.segment, sum.offset, bs, 0, factor, n, sum.segment, sum.offset);
      Output scaled = new Output(arena, n);
      kernels().scale(bs, 0, factor, n, scaled.segment, scaled.offset);
      Output product = new Output(arena, n);
      product.fill(a);
      kernels()
          .multiply(product.segment, product.offset, bs, 0, n, product.segment, product.offset);
      Output capped = new Output(arena, n);
      kernels().softCap(bs, 0, 30f, n, capped.segment, capped.offset);
      sum.checkCanaries();
      scaled.checkCanaries();
      product.checkCanaries();
      capped.checkCanaries();
      for (int i = 0; i < n; i++) {
        assertEquals(Math.fma(factor, b[i], a[i]), sum.get(i));
        assertEquals(factor * b[i], scaled.get(i));
        assertEquals(a[i] * b[i], product.get(i));
        double expected = 30 * Math.tanh(b[i] / 30.0);
        assertEquals(expected, capped.get(i), Math.abs(expected) * 4e-7 + 1e-37);
      }
    }
  }

  @Property(tries = 200, seed = SEED)
  void accumulateIsAChainOfFusedSums(
      @ForAll @IntRange(min = 0, max = 170) int n,
      @ForAll @IntRange(min = 1, max = 40) int rank,
      @ForAll long seed) {
    Random random = new Random(seed);
    TensorType type =
        new TensorType[] {TensorType.F32, TensorType.F16, TensorType.BF16}[random.nextInt(3)];
    int row = (n + 15 & -16) + 16 * random.nextInt(3);
    int from = 16 * random.nextInt(2);
    try (Arena arena = Arena.ofConfined()) {
      byte[] w = WeightOracle.random(type, rank * row + from, random);
      MemorySegment b = arena.allocate(w.length);
      MemorySegment.copy(w, 0, b, ValueLayout.JAVA_BYTE, 0, w.length);
      float[] h = activations(rank, random);
      float[] y = activations(n, random);
      Output sum = new Output(arena, n);
      sum.fill(y);
      kernels()
          .accumulate(
              new LowRankFactor(type, b, type.bytes(row), rank),
              from,
              n,
              floats(arena, h),
              0,
              sum.segment,
              sum.offset);
      sum.checkCanaries();
      for (int i = 0; i < n; i++) {
        float expected = y[i];
        for (int k = 0; k < rank; k++) {
          float v = (float) WeightOracle.value(type, w, from + k * row + i);
          expected = Math.fma(h[k], v, expected);
        }
        assertEquals(expected, sum.get(i), type + " n=" + n + " element " + i);
      }
    }
  }

  @Property(tries = 200, seed = SEED)
  void argmaxIsTheFirstLargest(@ForAll @IntRange(min = 0, max = 300) int n, @ForAll long seed) {
    Random random = new Random(seed);
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] =
          switch (random.nextInt(8)) {
            case 0 -> Float.NaN;
            case 1 -> Float.NEGATIVE_INFINITY;
            default -> random.nextInt(5) - 5;
          };
    }
    int expected = -1;
    for (int i = 0; i < n; i++) {
      if (!Float.isNaN(x[i]) && (expected < 0 || x[i] > x[expected])) {
        expected = i;
      }
    }
    try (Arena arena = Arena.ofConfined()) {
      assertEquals(expected, kernels().argmax(floats(arena, x), 0, n));
    }
  }

  // ---- cache and attention

  @Property(tries = 200, seed = SEED)
  void kvStoreRounds(
      @ForAll KvCache.Type type,
      @ForAll @IntRange(min = 1, max = 200) int length,
      @ForAll long seed) {
    Random random = new Random(seed);
    int n = type == KvCache.Type.Q8_0 ? (length + 31) / 32 * 32 : length;
    float[] x = activations(n, random);
    if (random.nextInt(4) == 0) {
      x[random.nextInt(n)] = new float[] {Float.NaN, 1e30f, -7e4f, 1e-41f}[random.nextInt(4)];
    }
    try (Arena arena = Arena.ofConfined()) {
      int bytes = Math.toIntExact(kernels().kvBytes(type, n));
      Output kv = new Output(arena, (bytes + 3) / 4 + 1);
      kernels().kvStore(type, floats(arena, x), 0, n, kv.segment, 4 * kv.offset);
      kv.checkCanaries();
      MemorySegment expected = arena.allocate(bytes, 1);
      ScalarKernels.INSTANCE.kvStore(type, floats(arena, x), 0, n, expected, 0);
      assertEquals(-1, expected.mismatch(kv.segment.asSlice(4 * kv.offset, bytes)));
      for (int i = 0; i < n; i++) {
        float stored = stored(type, expected, 0, n, i);
        switch (type) {
          case F32 -> assertEquals(x[i], stored);
          case F16 -> assertEquals(Float.float16ToFloat(Float.floatToFloat16(x[i])), stored);
          case Q8_0 -> {
            float amax = 0;
            for (int k = i & -32; k < (i & -32) + 32; k++) {
              amax = Math.max(amax, Math.abs(x[k]));
            }
            if (Float.isNaN(amax)) {
              assertTrue(Float.isNaN(stored));
            } else if (amax / 127 < 65504) {
              // Half a step, and half an f16 unit of the scale (or half a subnormal one).
              assertEquals(x[i], stored, amax / 127 * 0.5001 + amax * 0x1p-11 + 127 * 0x1p-25);
            }
          }
        }
      }
    }
  }

  @Property(tries = 200, seed = SEED)
  void attentionMatchesSoftmax(
      @ForAll KvCache.Type type,
      @ForAll @IntRange(min = 1, max = 5) int group,
      @ForAll @IntRange(min = 0, max = 130) int visible,
      @ForAll boolean capped,
      @ForAll long seed) {
    Random random = new Random(seed);
    int keyDim = type == KvCache.Type.Q8_0 ? 32 * (1 + random.nextInt(4)) : 1 + random.nextInt(140);
    int valueDim =
        type == KvCache.Type.Q8_0 ? 32 * (1 + random.nextInt(4)) : 1 + random.nextInt(140);
    int from = random.nextInt(3);
    int slots = from + visible;
    float softCap = capped ? 20f : 0f;
    float scale = (float) (1 / Math.sqrt(keyDim));
    AttentionSpec spec = new AttentionSpec(0, group, 1, keyDim, valueDim, scale, softCap, 0);
    try (Arena arena = Arena.ofConfined()) {
      long kBytes = kernels().kvBytes(type, keyDim);
      long vBytes = kernels().kvBytes(type, valueDim);
      MemorySegment kv = arena.allocate(slots * (kBytes + vBytes) + 1, 1);
      for (int s = 0; s < slots; s++) {
        MemorySegment k = floats(arena, gaussians(keyDim, 2, random));
        MemorySegment v = floats(arena, gaussians(valueDim, 1, random));
        kernels().kvStore(type, k, 0, keyDim, kv, s * kBytes);
        kernels().kvStore(type, v, 0, valueDim, kv, slots * kBytes + s * vBytes);
      }
      float[] q = gaussians(group * keyDim, 2, random);
      Output out = new Output(arena, group * valueDim);
      int floats = AttentionRows.floats(kernels(), spec);
      Output scratch = new Output(arena, floats);
      // Anywhere in a sequence, also across the end of a segment.
      int shift = random.nextBoolean() ? random.nextInt(5000) : 1024 - random.nextInt(slots + 1);
      AttentionRows rows =
          new AttentionRows(scratch.segment.asSlice(4L * scratch.offset, 4L * floats));
      rows.begin(kernels(), spec, floats(arena, q), out.segment);
      rows.add(0, shift + from, shift + slots, out.offset);
      rows.run(new KvRun().set(type, kv, -shift * kBytes, slots * kBytes - shift * vBytes));
      out.checkCanaries();
      scratch.checkCanaries();
      for (int h = 0; h < group; h++) {
        double[] scores = new double[slots];
        double max = Double.NEGATIVE_INFINITY;
        for (int s = from; s < slots; s++) {
          double dot = 0;
          for (int i = 0; i < keyDim; i++) {
            dot += (double) q[h * keyDim + i] * stored(type, kv, s * kBytes, keyDim, i);
          }
          scores[s] = capped ? softCap * Math.tanh(scale * dot / softCap) : scale * dot;
          max = Math.max(max, scores[s]);
        }
        double total = 0;
        double[] expected = new double[valueDim];
        for (int s = from; s < slots; s++) {
          double p = max == Double.NEGATIVE_INFINITY ? 0 : Math.exp(scores[s] - max);
          total += p;
          for (int i = 0; i < valueDim; i++) {
            expected[i] += p * stored(type, kv, slots * kBytes + s * vBytes, valueDim, i);
          }
        }
        for (int i = 0; i < valueDim; i++) {
          double e = total == 0 ? 0 : expected[i] / total;
          // Queries of 16 bits and weights of 15: a hundredth of what 8 bits of the cache cost.
          double bound = type == KvCache.Type.Q8_0 ? 1e-3 : 1e-4;
          assertEquals(e, out.get(h * valueDim + i), bound, "head " + h + " element " + i);
        }
      }
    }
  }

  // ---- helpers

  private static double minimumMagnitude(TensorType type, byte[] w, int o, int in, Row row, int r) {
    if (!WeightBlocks.hasMin(type)) {
      return 0;
    }
    double slack = 0;
    for (int k = 0; k < in; k++) {
      // The value with all code bits clear is the minimum itself; bound it by the largest possible.
      slack += Math.abs(row.value(r, k)) * largestMinimum(type, w, o * in + k);
    }
    return slack;
  }

  private static double largestMinimum(TensorType type, byte[] w, int i) {
    int o = i / type.blockSize() * type.blockBytes();
    int at = type == TensorType.Q2_K ? o + 82 : o + 2;
    short bits = (short) (w[at] & 255 | w[at + 1] << 8);
    double m = Math.abs(Float.float16ToFloat(bits));
    return type.blockSize() == 32 ? m : 63 * m;
  }

  /** Mixed magnitudes, many zeros. */
  static float[] activations(int n, Random random) {
    float[] x = new float[n];
    double magnitude = Math.pow(10, random.nextInt(9) - 4);
    for (int i = 0; i < n; i++) {
      x[i] = random.nextInt(6) == 0 ? 0f : (float) (random.nextGaussian() * magnitude);
    }
    return x;
  }

  static float[] gaussians(int n, double sigma, Random random) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) (random.nextGaussian() * sigma);
    }
    return x;
  }

  static MemorySegment floats(Arena arena, float[] x) {
    return arena.allocateFrom(ValueLayout.JAVA_FLOAT, x);
  }

  static MemorySegment exact(Arena arena, byte[] bytes) {
    MemorySegment s = arena.allocate(bytes.length, 1);
    s.copyFrom(MemorySegment.ofArray(bytes));
    return s;
  }

  private static MemorySegment weight(Arena arena, Matmul matmul, byte[] w, int out) {
    MemorySegment rowMajor = exact(arena, w);
    if (!matmul.packs()) {
      return rowMajor;
    }
    MemorySegment packed = arena.allocate(matmul.packedBytes(out), 64);
    matmul.pack(rowMajor, packed, out, 0, out);
    return packed;
  }

  private MemorySegment quantized(
      Arena arena, ActivationFormat format, float[] x, int rows, int in) {
    return quantizedBy(kernels(), arena, format, x, rows, in);
  }

  private static MemorySegment quantizedBy(
      Kernels kernels, Arena arena, ActivationFormat format, float[] x, int rows, int in) {
    long stride = kernels.activationBytes(format, in);
    MemorySegment dst = arena.allocate(stride * rows, 64);
    MemorySegment source = floats(arena, x);
    for (int r = 0; r < rows; r++) {
      if (format == ActivationFormat.F32) {
        MemorySegment.copy(source, 4L * r * in, dst, r * stride, 4L * in);
      } else {
        kernels.quantize(format, source, (long) r * in, in, dst, r * stride);
      }
    }
    return dst;
  }

  private static float stored(KvCache.Type type, MemorySegment kv, long offset, int n, int i) {
    return switch (type) {
      case F32 -> kv.get(Segments.FLOAT, offset + 4L * i);
      case F16 -> Float.float16ToFloat(kv.get(Segments.SHORT, offset + 2L * i));
      case Q8_0 ->
          Float.float16ToFloat(kv.get(Segments.SHORT, offset + n + i / 32 * 2))
              * kv.get(ValueLayout.JAVA_BYTE, offset + i);
    };
  }

  /** Reads activation rows by their documented layout. */
  private record Row(ActivationFormat format, MemorySegment segment, int n) {
    long base(int r) {
      return r * ActivationLayout.bytes(format, n);
    }

    int code(int r, int i) {
      return segment.get(ValueLayout.JAVA_BYTE, base(r) + i);
    }

    float scale(int r, int block) {
      long scales = base(r) + ActivationLayout.scalesOffset(format, n);
      return segment.get(ValueLayout.JAVA_FLOAT, scales + 4L * block);
    }

    int sum(int r, int group) {
      long sums = base(r) + ActivationLayout.sumsOffset(format, n);
      return format == ActivationFormat.Q8_BLOCK32
          ? segment.get(ValueLayout.JAVA_INT, sums + 4L * group)
          : segment.get(ValueLayout.JAVA_SHORT, sums + 2L * group);
    }

    double value(int r, int i) {
      return format == ActivationFormat.F32
          ? segment.get(ValueLayout.JAVA_FLOAT, base(r) + 4L * i)
          : (double) scale(r, i / ActivationLayout.blockSize(format)) * code(r, i);
    }
  }

  /** Floats between canaries, filled with the canary too. */
  private static final class Output {
    final MemorySegment segment;
    final long offset = CANARY / 4;
    final int n;

    Output(Arena arena, int n) {
      this.n = n;
      segment = arena.allocate(4L * n + 2 * CANARY, 64);
      segment.fill(CANARY_BYTE);
    }

    void fill(float[] x) {
      MemorySegment.copy(x, 0, segment, ValueLayout.JAVA_FLOAT, CANARY, x.length);
    }

    float get(int i) {
      return segment.get(ValueLayout.JAVA_FLOAT, CANARY + 4L * i);
    }

    /** Bits of all elements, all NaN alike. */
    int[] bits() {
      int[] bits = new int[n];
      for (int i = 0; i < n; i++) {
        bits[i] = Float.floatToIntBits(get(i));
      }
      return bits;
    }

    void checkUntouched(int i) {
      assertEquals(0xa5a5a5a5, Float.floatToRawIntBits(get(i)), "element " + i + " was written");
    }

    void checkCanaries() {
      for (long i = 0; i < CANARY; i++) {
        assertEquals(CANARY_BYTE, segment.get(ValueLayout.JAVA_BYTE, i), "written before");
        long after = segment.byteSize() - 1 - i;
        assertEquals(CANARY_BYTE, segment.get(ValueLayout.JAVA_BYTE, after), "written after");
      }
    }
  }
}
