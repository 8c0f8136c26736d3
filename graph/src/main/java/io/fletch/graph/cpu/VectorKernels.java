package io.fletch.graph.cpu;

import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.RopeSpec;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import java.util.Arrays;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.VectorMask;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorShuffle;
import jdk.incubator.vector.VectorSpecies;

/**
 * Kernels on the Vector API. They give the bits of {@link ScalarKernels}: sums have the sixteen
 * partial sums of {@link ActivationLayout} whatever the width of a register, and elementary
 * functions the operations of {@link FloatMath}.
 *
 * <p>Loops are kept small and work on heap arrays where they can: past C2's inlining node budget
 * vectors are boxed and everything is several times slower. {@code KernelBenchmark} with {@code
 * -prof gc} shows boxing.
 */
final class VectorKernels implements Kernels {
  private static final ByteOrder LITTLE = ByteOrder.LITTLE_ENDIAN;
  private static final VectorSpecies<Float> F = VectorMath.FLOATS;
  private static final VectorSpecies<Integer> I = VectorSpecies.of(int.class, F.vectorShape());
  private static final int L = F.length();
  private static final int LANES = ActivationLayout.LANES;

  private static final VectorShuffle<Float> EVEN = VectorShuffle.makeUnzip(F, 0);
  private static final VectorShuffle<Float> ODD = VectorShuffle.makeUnzip(F, 1);
  private static final VectorShuffle<Float> LOW_PAIRS = VectorShuffle.makeZip(F, 0);
  private static final VectorShuffle<Float> HIGH_PAIRS = VectorShuffle.makeZip(F, 1);

  private static final Kernels SCALAR = ScalarKernels.INSTANCE;

  VectorKernels() {}

  @Override
  public String name() {
    return "vector-" + F.vectorBitSize();
  }

  @Override
  public Matmul matmul(TensorType type, int in) {
    return new VectorMatmul(type, in);
  }

  private static FloatVector load(MemorySegment s, long index) {
    return FloatVector.fromMemorySegment(F, s, index << 2, LITTLE);
  }

  private static void store(FloatVector v, MemorySegment s, long index) {
    v.intoMemorySegment(s, index << 2, LITTLE);
  }

  // ---- forms of activations

  @Override
  public long activationBytes(ActivationFormat format, int n) {
    return ActivationLayout.bytes(format, n);
  }

  @Override
  public void quantize(
      ActivationFormat format,
      MemorySegment x,
      long offset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    int block = ActivationLayout.blockSize(format);
    long scales = dstOffset + ActivationLayout.scalesOffset(format, n);
    long sums = dstOffset + ActivationLayout.sumsOffset(format, n);
    VectorScratch s = VectorScratch.get();
    float[] xs = s.x(n);
    int[] codes = s.ints(n);
    byte[] bytes = s.bytes(n);
    MemorySegment.copy(x, Segments.FLOAT, offset << 2, xs, 0, n);
    for (int i = 0; i < n; i += block) {
      float amax = amax(xs, i, block);
      dst.set(Segments.FLOAT, scales + 4L * (i / block), ScalarKernels.blockScale(amax));
      codes(xs, i, block, ScalarKernels.blockInverse(amax), codes);
    }
    narrow(codes, bytes, n);
    MemorySegment.copy(bytes, 0, dst, Segments.BYTE, dstOffset, n);
    if (format == ActivationFormat.Q8_BLOCK32) {
      for (int i = 0; i < n; i += 32) {
        dst.set(Segments.INT, sums + i / 8, sum16(codes, i) + sum16(codes, i + 16));
      }
    } else {
      for (int i = 0; i < n; i += 16) {
        dst.set(Segments.SHORT, sums + i / 8, (short) sum16(codes, i));
      }
    }
  }

  private static float amax(float[] x, int at, int n) {
    IntVector bits = IntVector.zero(I);
    for (int i = at; i < at + n; i += L) {
      bits = bits.max(FloatVector.fromArray(F, x, i).reinterpretAsInts().and(0x7fffffff));
    }
    return Float.intBitsToFloat(bits.reduceLanes(VectorOperators.MAX));
  }

  private static void codes(float[] x, int at, int n, float inverse, int[] codes) {
    if (inverse == 0f) {
      Arrays.fill(codes, at, at + n, 0);
      return;
    }
    for (int i = at; i < at + n; i += L) {
      FloatVector rounded = FloatVector.fromArray(F, x, i).mul(inverse).add(FloatMath.ROUND);
      rounded.reinterpretAsInts().sub(FloatMath.ROUND_BITS).intoArray(codes, i);
    }
  }

  private static void narrow(int[] codes, byte[] bytes, int n) {
    for (int i = 0; i < n; i++) {
      bytes[i] = (byte) codes[i];
    }
  }

  private static int sum16(int[] codes, int at) {
    IntVector sum = IntVector.fromArray(I, codes, at);
    for (int i = L; i < 16; i += L) {
      sum = sum.add(IntVector.fromArray(I, codes, at + i));
    }
    return sum.reduceLanes(VectorOperators.ADD);
  }

  @Override
  public void dequantize(
      TensorType type,
      MemorySegment src,
      long srcOffset,
      int n,
      float scale,
      MemorySegment dst,
      long dstOffset) {
    // One row per token, for embeddings: not worth code of its own.
    SCALAR.dequantize(type, src, srcOffset, n, scale, dst, dstOffset);
  }

  // ---- rows and elements

  @Override
  public void rmsNorm(
      MemorySegment x,
      long offset,
      MemorySegment weight,
      int n,
      float eps,
      float scale,
      MemorySegment dst,
      long dstOffset) {
    float factor = ScalarKernels.rmsFactor(sumOfSquares(x, offset, n), n, eps, scale);
    int whole = n - n % L;
    for (int i = 0; i < whole; i += L) {
      store(load(x, offset + i).mul(factor).mul(load(weight, i)), dst, dstOffset + i);
    }
    for (int i = whole; i < n; i++) {
      float v = Segments.f32(x, offset + i) * factor * Segments.f32(weight, i);
      Segments.f32(dst, dstOffset + i, v);
    }
  }

  private static float sumOfSquares(MemorySegment x, long offset, int n) {
    float[] lanes = VectorScratch.get().lanes;
    int whole = n & -LANES;
    for (int l = 0; l < LANES; l += L) {
      FloatVector sum = FloatVector.zero(F);
      for (int i = l; i < whole; i += LANES) {
        FloatVector v = load(x, offset + i);
        sum = v.fma(v, sum);
      }
      sum.intoArray(lanes, l);
    }
    for (int i = whole; i < n; i++) {
      float v = Segments.f32(x, offset + i);
      lanes[i - whole] = Math.fma(v, v, lanes[i - whole]);
    }
    return ScalarScratch.reduce(lanes);
  }

  @Override
  public void rope(
      RopeSpec.Style style,
      MemorySegment x,
      long offset,
      int headDim,
      MemorySegment table,
      long tableOffset,
      int pairs,
      MemorySegment dst,
      long dstOffset) {
    int whole = pairs - pairs % L;
    if (style == RopeSpec.Style.NORM) {
      ropeAdjacent(x, offset, table, tableOffset, pairs, whole, dst, dstOffset);
    } else {
      ropeHalves(x, offset, table, tableOffset, pairs, whole, dst, dstOffset);
    }
    boolean adjacent = style == RopeSpec.Style.NORM;
    for (int i = whole; i < pairs; i++) {
      int first = adjacent ? 2 * i : i;
      int second = adjacent ? 2 * i + 1 : i + pairs;
      float cos = Segments.f32(table, tableOffset + i);
      float sin = Segments.f32(table, tableOffset + pairs + i);
      float a = Segments.f32(x, offset + first);
      float b = Segments.f32(x, offset + second);
      Segments.f32(dst, dstOffset + first, Math.fma(-b, sin, a * cos));
      Segments.f32(dst, dstOffset + second, Math.fma(b, cos, a * sin));
    }
    for (int i = 2 * pairs; i < headDim; i++) {
      Segments.f32(dst, dstOffset + i, Segments.f32(x, offset + i));
    }
  }

  private static void ropeAdjacent(
      MemorySegment x,
      long offset,
      MemorySegment table,
      long tableOffset,
      int pairs,
      int whole,
      MemorySegment dst,
      long dstOffset) {
    for (int i = 0; i < whole; i += L) {
      FloatVector cos = load(table, tableOffset + i);
      FloatVector sin = load(table, tableOffset + pairs + i);
      FloatVector v0 = load(x, offset + 2L * i);
      FloatVector v1 = load(x, offset + 2L * i + L);
      FloatVector a = v0.rearrange(EVEN, v1);
      FloatVector b = v0.rearrange(ODD, v1);
      FloatVector ra = b.neg().fma(sin, a.mul(cos));
      FloatVector rb = b.fma(cos, a.mul(sin));
      store(ra.rearrange(LOW_PAIRS, rb), dst, dstOffset + 2L * i);
      store(ra.rearrange(HIGH_PAIRS, rb), dst, dstOffset + 2L * i + L);
    }
  }

  private static void ropeHalves(
      MemorySegment x,
      long offset,
      MemorySegment table,
      long tableOffset,
      int pairs,
      int whole,
      MemorySegment dst,
      long dstOffset) {
    for (int i = 0; i < whole; i += L) {
      FloatVector cos = load(table, tableOffset + i);
      FloatVector sin = load(table, tableOffset + pairs + i);
      FloatVector a = load(x, offset + i);
      FloatVector b = load(x, offset + pairs + i);
      store(b.neg().fma(sin, a.mul(cos)), dst, dstOffset + i);
      store(b.fma(cos, a.mul(sin)), dst, dstOffset + pairs + i);
    }
  }

  @Override
  public void activate(
      Activation activation,
      MemorySegment gate,
      long gateOffset,
      MemorySegment up,
      long upOffset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    int whole = n - n % L;
    switch (activation) {
      case SILU -> {
        for (int i = 0; i < whole; i += L) {
          FloatVector v = VectorMath.silu(load(gate, gateOffset + i));
          store(v.mul(load(up, upOffset + i)), dst, dstOffset + i);
        }
      }
      case GELU_TANH -> {
        for (int i = 0; i < whole; i += L) {
          FloatVector v = VectorMath.geluTanh(load(gate, gateOffset + i));
          store(v.mul(load(up, upOffset + i)), dst, dstOffset + i);
        }
      }
      case GELU_ERF -> {
        for (int i = 0; i < whole; i += L) {
          FloatVector v = VectorMath.geluErf(load(gate, gateOffset + i));
          store(v.mul(load(up, upOffset + i)), dst, dstOffset + i);
        }
      }
      case RELU -> {
        for (int i = 0; i < whole; i += L) {
          FloatVector v = VectorMath.relu(load(gate, gateOffset + i));
          store(v.mul(load(up, upOffset + i)), dst, dstOffset + i);
        }
      }
      case RELU_SQUARED -> {
        for (int i = 0; i < whole; i += L) {
          FloatVector v = VectorMath.relu(load(gate, gateOffset + i));
          store(v.mul(v).mul(load(up, upOffset + i)), dst, dstOffset + i);
        }
      }
    }
    SCALAR.activate(
        activation,
        gate,
        gateOffset + whole,
        up,
        upOffset + whole,
        n - whole,
        dst,
        dstOffset + whole);
  }

  @Override
  public void activate(
      Activation activation,
      MemorySegment x,
      long offset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    int whole = n - n % L;
    switch (activation) {
      case SILU -> {
        for (int i = 0; i < whole; i += L) {
          store(VectorMath.silu(load(x, offset + i)), dst, dstOffset + i);
        }
      }
      case GELU_TANH -> {
        for (int i = 0; i < whole; i += L) {
          store(VectorMath.geluTanh(load(x, offset + i)), dst, dstOffset + i);
        }
      }
      case GELU_ERF -> {
        for (int i = 0; i < whole; i += L) {
          store(VectorMath.geluErf(load(x, offset + i)), dst, dstOffset + i);
        }
      }
      case RELU -> {
        for (int i = 0; i < whole; i += L) {
          store(VectorMath.relu(load(x, offset + i)), dst, dstOffset + i);
        }
      }
      case RELU_SQUARED -> {
        for (int i = 0; i < whole; i += L) {
          FloatVector v = VectorMath.relu(load(x, offset + i));
          store(v.mul(v), dst, dstOffset + i);
        }
      }
    }
    SCALAR.activate(activation, x, offset + whole, n - whole, dst, dstOffset + whole);
  }

  @Override
  public void add(
      MemorySegment a,
      long aOffset,
      MemorySegment b,
      long bOffset,
      float scale,
      int n,
      MemorySegment dst,
      long dstOffset) {
    FloatVector factor = FloatVector.broadcast(F, scale);
    int whole = n - n % L;
    for (int i = 0; i < whole; i += L) {
      store(factor.fma(load(b, bOffset + i), load(a, aOffset + i)), dst, dstOffset + i);
    }
    SCALAR.add(a, aOffset + whole, b, bOffset + whole, scale, n - whole, dst, dstOffset + whole);
  }

  @Override
  public void accumulate(
      LowRankFactor b,
      long from,
      int n,
      MemorySegment h,
      long hOffset,
      MemorySegment y,
      long yOffset) {
    int whole = n - n % L;
    VectorScratch s = VectorScratch.get();
    float[] sums = s.x(whole);
    float[] row = s.w(whole);
    MemorySegment.copy(y, Segments.FLOAT, yOffset << 2, sums, 0, whole);
    for (int k = 0; k < b.rank(); k++) {
      long at = k * b.stride() + b.type().bytes(from);
      VectorMatmul.floats(b.type(), b.rows(), at, row, 0, whole, s);
      FloatVector factor = FloatVector.broadcast(F, Segments.f32(h, hOffset + k));
      for (int i = 0; i < whole; i += L) {
        FloatVector sum = FloatVector.fromArray(F, sums, i);
        factor.fma(FloatVector.fromArray(F, row, i), sum).intoArray(sums, i);
      }
    }
    MemorySegment.copy(sums, 0, y, Segments.FLOAT, yOffset << 2, whole);
    SCALAR.accumulate(b, from + whole, n - whole, h, hOffset, y, yOffset + whole);
  }

  @Override
  public void scale(
      MemorySegment x, long offset, float factor, int n, MemorySegment dst, long dstOffset) {
    int whole = n - n % L;
    for (int i = 0; i < whole; i += L) {
      store(load(x, offset + i).mul(factor), dst, dstOffset + i);
    }
    SCALAR.scale(x, offset + whole, factor, n - whole, dst, dstOffset + whole);
  }

  @Override
  public void multiply(
      MemorySegment a,
      long aOffset,
      MemorySegment b,
      long bOffset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    int whole = n - n % L;
    for (int i = 0; i < whole; i += L) {
      store(load(a, aOffset + i).mul(load(b, bOffset + i)), dst, dstOffset + i);
    }
    SCALAR.multiply(a, aOffset + whole, b, bOffset + whole, n - whole, dst, dstOffset + whole);
  }

  @Override
  public void softCap(
      MemorySegment x, long offset, float cap, int n, MemorySegment dst, long dstOffset) {
    int whole = n - n % L;
    for (int i = 0; i < whole; i += L) {
      store(VectorMath.tanh(load(x, offset + i).div(cap)).mul(cap), dst, dstOffset + i);
    }
    SCALAR.softCap(x, offset + whole, cap, n - whole, dst, dstOffset + whole);
  }

  @Override
  public int argmax(MemorySegment x, long offset, int n) {
    int whole = n - n % L;
    FloatVector largest = FloatVector.broadcast(F, Float.NEGATIVE_INFINITY);
    for (int i = 0; i < whole; i += L) {
      FloatVector v = load(x, offset + i);
      largest = largest.blend(v, v.compare(VectorOperators.GT, largest));
    }
    float max = largest.reduceLanes(VectorOperators.MAX);
    for (int i = whole; i < n; i++) {
      float v = Segments.f32(x, offset + i);
      max = v > max ? v : max;
    }
    if (max == Float.NEGATIVE_INFINITY) {
      // Nothing but NaN and -inf, which the comparisons above cannot tell apart.
      return SCALAR.argmax(x, offset, n);
    }
    for (int i = 0; i < whole; i += L) {
      VectorMask<Float> found = load(x, offset + i).compare(VectorOperators.EQ, max);
      if (found.anyTrue()) {
        return i + found.firstTrue();
      }
    }
    for (int i = whole; i < n; i++) {
      if (Segments.f32(x, offset + i) == max) {
        return i;
      }
    }
    throw new AssertionError("the elements changed while they were searched");
  }

  // ---- cache and attention

  @Override
  public long kvBytes(KvCache.Type type, int n) {
    return KvLayout.bytes(type, n);
  }

  @Override
  public void kvStore(
      KvCache.Type type, MemorySegment x, long offset, int n, MemorySegment kv, long kvOffset) {
    if (type == KvCache.Type.F32) {
      MemorySegment.copy(x, offset << 2, kv, kvOffset, 4L * n);
      return;
    }
    VectorScratch s = VectorScratch.get();
    float[] xs = s.x(n);
    MemorySegment.copy(x, Segments.FLOAT, offset << 2, xs, 0, n);
    if (type == KvCache.Type.F16) {
      short[] halves = s.shorts(n);
      VectorMath.floatsToHalves(xs, halves, n);
      MemorySegment.copy(halves, 0, kv, Segments.SHORT, kvOffset, n);
      return;
    }
    KvLayout.bytes(type, n);
    int[] codes = s.ints(n);
    byte[] bytes = s.bytes(n);
    for (int i = 0; i < n; i += 32) {
      float amax = amax(xs, i, 32);
      codes(xs, i, 32, ScalarKernels.blockInverse(amax), codes);
      short scale = Float.floatToFloat16(ScalarKernels.blockScale(amax));
      kv.set(Segments.SHORT, kvOffset + n + i / 16, scale);
    }
    narrow(codes, bytes, n);
    MemorySegment.copy(bytes, 0, kv, Segments.BYTE, kvOffset, n);
  }

  /** Working memory is in heap arrays of the thread. */
  @Override
  public int attentionScratch(AttentionSpec spec) {
    return 0;
  }

  /**
   * The algorithm of {@link ScalarKernels#attention}. The keys (then values) of a chunk are widened
   * to float32 once for all rows and heads.
   */
  @Override
  public void attention(AttentionSpec spec, AttentionTile tile, KvRun kv, MemorySegment scratch) {
    VectorAttention.run(spec, tile, kv);
  }
}
