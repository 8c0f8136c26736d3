package io.fletch.graph.cpu;

import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.RopeSpec;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;

/**
 * Kernels in plain Java, without the Vector API and without machine code: the last resort, and the
 * definition of the bits that the other sets are compared with. Orders of reduction are those of
 * {@link ActivationLayout}; elementary functions those of {@link FloatMath}.
 *
 * <p>Non-finite values propagate: a NaN or infinite element makes what is computed from it NaN or
 * infinite by the usual rules. Destinations may be the same range as a source of the same shape,
 * but must not overlap it otherwise.
 */
final class ScalarKernels implements Kernels {
  static final ScalarKernels INSTANCE = new ScalarKernels();

  private static final float NAN = Float.intBitsToFloat(0x7fc00000);
  private static final int INFINITY_BITS = 0x7f800000;
  private static final int MIN_AMAX_BITS = Float.floatToRawIntBits(ActivationLayout.MIN_AMAX);

  private ScalarKernels() {}

  @Override
  public String name() {
    return "scalar";
  }

  @Override
  public Matmul matmul(TensorType type, int in) {
    return new ScalarMatmul(type, in);
  }

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
    for (int b = 0, i = 0; i < n; b++, i += block) {
      float amax = amax(x, offset + i, block);
      dst.set(Segments.FLOAT, scales + 4L * b, blockScale(amax));
      quantizeCodes(x, offset + i, block, blockInverse(amax), dst, dstOffset + i);
    }
    if (format == ActivationFormat.Q8_BLOCK32) {
      for (int i = 0; i < n; i += 32) {
        dst.set(Segments.INT, sums + i / 8, sum(dst, dstOffset + i, 32));
      }
    } else {
      for (int i = 0; i < n; i += ActivationLayout.SUM_GROUP) {
        int sum = sum(dst, dstOffset + i, ActivationLayout.SUM_GROUP);
        dst.set(Segments.SHORT, sums + i / 8, (short) sum);
      }
    }
  }

  /** The largest magnitude; NaN counts as larger than infinity. */
  static float amax(MemorySegment x, long offset, int n) {
    int bits = 0;
    for (int i = 0; i < n; i++) {
      bits = Math.max(bits, x.get(Segments.INT, offset + i << 2) & 0x7fffffff);
    }
    return Float.intBitsToFloat(bits);
  }

  /** The scale of a block (see {@link ActivationLayout}). */
  static float blockScale(float amax) {
    int bits = Float.floatToRawIntBits(amax);
    return bits >= INFINITY_BITS ? NAN : bits < MIN_AMAX_BITS ? 0f : amax / 127f;
  }

  /** What elements are multiplied by, 0 where all codes are 0. */
  static float blockInverse(float amax) {
    int bits = Float.floatToRawIntBits(amax);
    return bits >= INFINITY_BITS || bits < MIN_AMAX_BITS ? 0f : 127f / amax;
  }

  private static void quantizeCodes(
      MemorySegment x, long offset, int n, float inverse, MemorySegment dst, long dstOffset) {
    for (int i = 0; i < n; i++) {
      // (int) of NaN, which infinity * 0 gives, is 0.
      int code = (int) Math.rint(Segments.f32(x, offset + i) * inverse);
      dst.set(Segments.BYTE, dstOffset + i, (byte) code);
    }
  }

  private static int sum(MemorySegment codes, long offset, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++) {
      sum += codes.get(Segments.BYTE, offset + i);
    }
    return sum;
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
    switch (type) {
      case F32 -> {
        for (int i = 0; i < n; i++) {
          Segments.f32(dst, dstOffset + i, scale * src.get(Segments.FLOAT, srcOffset + 4L * i));
        }
      }
      case F16 -> {
        for (int i = 0; i < n; i++) {
          Segments.f32(dst, dstOffset + i, scale * Segments.f16(src, srcOffset + 2L * i));
        }
      }
      case BF16 -> {
        for (int i = 0; i < n; i++) {
          Segments.f32(dst, dstOffset + i, scale * Segments.bf16(src, srcOffset + 2L * i));
        }
      }
      default -> {
        WeightBlocks blocks = ScalarScratch.get().blocks;
        int size = type.blockSize();
        for (int i = 0; i < n; i += size, srcOffset += type.blockBytes()) {
          blocks.unpack(type, src, srcOffset, size, 0);
          int m = Math.min(size, n - i);
          for (int j = 0; j < m; j++) {
            Segments.f32(dst, dstOffset + i + j, scale * blocks.value(type, j));
          }
        }
      }
    }
  }

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
    float[] lanes = ScalarScratch.get().clearedLanes();
    for (int i = 0; i < n; i++) {
      float v = Segments.f32(x, offset + i);
      int l = i & ActivationLayout.LANES - 1;
      lanes[l] = Math.fma(v, v, lanes[l]);
    }
    float factor = rmsFactor(ScalarScratch.reduce(lanes), n, eps, scale);
    for (int i = 0; i < n; i++) {
      float v = Segments.f32(x, offset + i) * factor * Segments.f32(weight, i);
      Segments.f32(dst, dstOffset + i, v);
    }
  }

  /** {@code scale / sqrt(sum / n + eps)}; elements are multiplied by it, then by their weight. */
  static float rmsFactor(float sumOfSquares, int n, float eps, float scale) {
    return scale / (float) Math.sqrt(sumOfSquares / n + eps);
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
    boolean adjacent = style == RopeSpec.Style.NORM;
    for (int i = 0; i < pairs; i++) {
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
    for (int i = 0; i < n; i++) {
      float v = activate(activation, Segments.f32(gate, gateOffset + i));
      Segments.f32(dst, dstOffset + i, v * Segments.f32(up, upOffset + i));
    }
  }

  @Override
  public void activate(
      Activation activation,
      MemorySegment x,
      long offset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    for (int i = 0; i < n; i++) {
      Segments.f32(dst, dstOffset + i, activate(activation, Segments.f32(x, offset + i)));
    }
  }

  private static float activate(Activation activation, float x) {
    return switch (activation) {
      case SILU -> FloatMath.silu(x);
      case GELU_TANH -> FloatMath.geluTanh(x);
      case GELU_ERF -> FloatMath.geluErf(x);
      case RELU -> FloatMath.relu(x);
      case RELU_SQUARED -> FloatMath.reluSquared(x);
    };
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
    for (int i = 0; i < n; i++) {
      float v = Math.fma(scale, Segments.f32(b, bOffset + i), Segments.f32(a, aOffset + i));
      Segments.f32(dst, dstOffset + i, v);
    }
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
    for (int i = 0; i < n; i++) {
      float sum = Segments.f32(y, yOffset + i);
      for (int k = 0; k < b.rank(); k++) {
        long row = k * b.stride() + b.type().bytes(from);
        sum = Math.fma(Segments.f32(h, hOffset + k), element(b.type(), b.rows(), row, i), sum);
      }
      Segments.f32(y, yOffset + i, sum);
    }
  }

  private static float element(TensorType type, MemorySegment s, long offset, int i) {
    return switch (type) {
      case F32 -> s.get(Segments.FLOAT, offset + 4L * i);
      case F16 -> Segments.f16(s, offset + 2L * i);
      case BF16 -> Segments.bf16(s, offset + 2L * i);
      default ->
          throw new IllegalArgumentException("type: expected=F32, F16 or BF16 actual=" + type);
    };
  }

  @Override
  public void scale(
      MemorySegment x, long offset, float factor, int n, MemorySegment dst, long dstOffset) {
    for (int i = 0; i < n; i++) {
      Segments.f32(dst, dstOffset + i, factor * Segments.f32(x, offset + i));
    }
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
    for (int i = 0; i < n; i++) {
      float v = Segments.f32(a, aOffset + i) * Segments.f32(b, bOffset + i);
      Segments.f32(dst, dstOffset + i, v);
    }
  }

  @Override
  public void softCap(
      MemorySegment x, long offset, float cap, int n, MemorySegment dst, long dstOffset) {
    for (int i = 0; i < n; i++) {
      Segments.f32(dst, dstOffset + i, softCap(Segments.f32(x, offset + i), cap));
    }
  }

  private static float softCap(float x, float cap) {
    return cap * FloatMath.tanh(x / cap);
  }

  @Override
  public long kvBytes(KvCache.Type type, int n) {
    return KvLayout.bytes(type, n);
  }

  @Override
  public void kvStore(
      KvCache.Type type, MemorySegment x, long offset, int n, MemorySegment kv, long kvOffset) {
    switch (type) {
      case F32 -> MemorySegment.copy(x, offset << 2, kv, kvOffset, 4L * n);
      case F16 -> {
        for (int i = 0; i < n; i++) {
          short half = Float.floatToFloat16(Segments.f32(x, offset + i));
          kv.set(Segments.SHORT, kvOffset + 2L * i, half);
        }
      }
      case Q8_0 -> {
        KvLayout.bytes(type, n);
        for (int i = 0; i < n; i += 32) {
          float amax = amax(x, offset + i, 32);
          quantizeCodes(x, offset + i, 32, blockInverse(amax), kv, kvOffset + i);
          kv.set(Segments.SHORT, kvOffset + n + i / 16, Float.floatToFloat16(blockScale(amax)));
        }
      }
    }
  }

  @Override
  public int attentionScratch(AttentionSpec spec) {
    return ATTENTION_CHUNK;
  }

  /**
   * Online softmax. Per row and head, from maximum m = -inf, sum l = 0 and result v = 0, chunk by
   * chunk:
   *
   * <pre>
   *   s_j = scale * dot16(q, k_j)                 then softCap, if not 0
   *   m' = max(m, max s_j);  f = exp(m - m')  (0 for the first chunk)
   *   p_j = exp(s_j - m');   l = fma(l, f, sum p_j)   the sum by halves: p_j + p_(j+32), j + 16 ...
   *   v = v * f;             v_i = fma(p_j, value_j[i], v_i)  positions ascending
   * </pre>
   *
   * with exp as {@link FloatMath#weight} takes it, {@code j} the position's place in its chunk and
   * p_j = 0 where the row does not see it. What a Q8_0 cache has instead of dot16 and the sum over
   * positions is in {@link CodeProducts}.
   */
  @Override
  public void attention(AttentionSpec spec, AttentionTile tile, KvRun kv, MemorySegment scratch) {
    KvCache.Type type = kv.type();
    MemorySegment q = tile.queries();
    MemorySegment states = tile.states();
    int group = spec.group();
    for (int r = 0; r < tile.rows(); r++) {
      for (int h = 0; h < group; h++) {
        long maximum = tile.state(r) + h;
        Segments.f32(states, maximum, Float.NEGATIVE_INFINITY);
        Segments.f32(states, maximum + group, 0f);
        long result = tile.state(r) + 2L * group + (long) h * spec.valueDim();
        for (int i = 0; i < spec.valueDim(); i++) {
          Segments.f32(states, result + i, 0f);
        }
        long query = tile.query(r) + (long) h * spec.keyDim();
        float scale = spec.scale();
        if (type == KvCache.Type.Q8_0) {
          int[] codes = ScalarScratch.get().queryCodes(spec.keyDim());
          scale *= CodeProducts.quantize(q, query, spec.keyDim(), codes, 0);
        }
        int to = tile.to(r);
        int end;
        for (int from = tile.from(r); from < to; from = end) {
          end =
              Math.min(to - (from & -ATTENTION_CHUNK), ATTENTION_CHUNK) + (from & -ATTENTION_CHUNK);
          scores(spec, kv, scale, q, query, from, end, scratch);
          float factor = softmaxStep(scratch, states, maximum, maximum + group);
          for (int i = 0; i < spec.valueDim(); i++) {
            Segments.f32(states, result + i, Segments.f32(states, result + i) * factor);
          }
          long stride = KvLayout.bytes(type, spec.valueDim());
          if (type == KvCache.Type.Q8_0) {
            CodeProducts.accumulate(
                scratch,
                from % ATTENTION_CHUNK,
                end - from,
                kv.memory(),
                kv.values() + from * stride,
                spec.valueDim(),
                ScalarScratch.get().weightCodes,
                states,
                result);
            continue;
          }
          for (int p = from; p < end; p++) {
            float weight = Segments.f32(scratch, p % ATTENTION_CHUNK);
            long value = kv.values() + p * stride;
            boolean halves = type == KvCache.Type.F16;
            accumulate(halves, weight, kv.memory(), value, spec.valueDim(), states, result);
          }
        }
      }
    }
  }

  /** Scores of the positions of a chunk; -inf at those outside of the range. */
  private static void scores(
      AttentionSpec spec,
      KvRun kv,
      float scale,
      MemorySegment q,
      long query,
      int from,
      int to,
      MemorySegment scores) {
    KvCache.Type type = kv.type();
    ScalarScratch s = ScalarScratch.get();
    int n = spec.keyDim();
    long stride = KvLayout.bytes(type, n);
    for (int j = 0; j < ATTENTION_CHUNK; j++) {
      Segments.f32(scores, j, Float.NEGATIVE_INFINITY);
    }
    for (int p = from; p < to; p++) {
      long key = kv.keys() + p * stride;
      float dot =
          type == KvCache.Type.Q8_0
              ? scale * CodeProducts.product(s.queryCodes(n), 0, kv.memory(), key, n)
              : scale * dot(type == KvCache.Type.F16, q, query, kv.memory(), key, n, s.lanes);
      Segments.f32(
          scores, p % ATTENTION_CHUNK, spec.softCap() == 0f ? dot : softCap(dot, spec.softCap()));
    }
  }

  /**
   * Turns the scores of a chunk into weights, of which those of -inf are zero.
   *
   * @return what the results of earlier chunks are worth
   */
  private static float softmaxStep(
      MemorySegment scores, MemorySegment states, long maximum, long sum) {
    float before = Segments.f32(states, maximum);
    float max = before;
    for (int j = 0; j < ATTENTION_CHUNK; j++) {
      max = Math.max(max, Segments.f32(scores, j));
    }
    // All scores -inf: nothing to subtract from; NaN and +inf give NaN weights below.
    float base = max == Float.NEGATIVE_INFINITY ? 0f : max;
    float[] p = ScalarScratch.get().row(ATTENTION_CHUNK);
    for (int j = 0; j < ATTENTION_CHUNK; j++) {
      p[j] = FloatMath.weight(Segments.f32(scores, j) - base);
      Segments.f32(scores, j, p[j]);
    }
    float factor = FloatMath.weight(before - base);
    float added = ScalarScratch.reduce(p, ATTENTION_CHUNK);
    Segments.f32(states, maximum, max);
    Segments.f32(states, sum, Math.fma(Segments.f32(states, sum), factor, added));
    return factor;
  }

  private static float dot(
      boolean halves, MemorySegment q, long qo, MemorySegment kv, long ko, int n, float[] lanes) {
    ScalarScratch.clear(lanes);
    int mask = ActivationLayout.LANES - 1;
    for (int i = 0; i < n; i++) {
      float k = element(halves, kv, ko, i);
      lanes[i & mask] = Math.fma(Segments.f32(q, qo + i), k, lanes[i & mask]);
    }
    return ScalarScratch.reduce(lanes);
  }

  private static void accumulate(
      boolean halves, float p, MemorySegment kv, long vo, int n, MemorySegment acc, long at) {
    for (int i = 0; i < n; i++) {
      float v = element(halves, kv, vo, i);
      Segments.f32(acc, at + i, Math.fma(p, v, Segments.f32(acc, at + i)));
    }
  }

  private static float element(boolean halves, MemorySegment kv, long head, int i) {
    return halves ? Segments.f16(kv, head + 2L * i) : kv.get(Segments.FLOAT, head + 4L * i);
  }

  @Override
  public int argmax(MemorySegment x, long offset, int n) {
    int best = -1;
    float max = 0f;
    for (int i = 0; i < n; i++) {
      float v = Segments.f32(x, offset + i);
      if (best < 0 ? !Float.isNaN(v) : v > max) {
        best = i;
        max = v;
      }
    }
    return best;
  }
}
