package io.fletch.graph.cpu;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;

/** Attention with the operations of {@link ScalarKernels#attention} in their order. */
final class VectorAttention {
  private static final VectorSpecies<Float> F = VectorMath.FLOATS;
  private static final VectorSpecies<Integer> I = VectorMath.INTS;
  private static final int L = F.length();
  private static final int LANES = ActivationLayout.LANES;
  private static final int CHUNK = Kernels.ATTENTION_CHUNK;

  private VectorAttention() {}

  static void run(AttentionSpec spec, AttentionTile tile, KvRun kv) {
    MemorySegment q = tile.queries();
    MemorySegment states = tile.states();
    VectorScratch s = VectorScratch.get();
    int heads = tile.rows() * spec.group();
    int keyDim = spec.keyDim();
    int valueDim = spec.valueDim();
    int keyStride = (keyDim + LANES - 1) & -LANES;
    int valueStride = (valueDim + LANES - 1) & -LANES;
    float[] queries = s.x(heads * keyStride);
    boolean codes = kv.type() == KvCache.Type.Q8_0;
    int[] queryCodes = codes ? s.ints(heads * keyDim) : s.ints;
    // Scores of a chunk, then maximum, sum and scale of the scores of every head.
    float[] scores = s.sums(heads * (CHUNK + 3));
    float[] results = s.acc(heads * valueStride);
    for (int i = 0; i < heads; i++) {
      int r = i / spec.group();
      long head = tile.query(r) + (long) (i % spec.group()) * keyDim;
      MemorySegment.copy(q, Segments.FLOAT, head << 2, queries, i * keyStride, keyDim);
      Arrays.fill(queries, i * keyStride + keyDim, (i + 1) * keyStride, 0f);
      scores[heads * CHUNK + 2 * i] = Float.NEGATIVE_INFINITY;
      scores[heads * CHUNK + 2 * i + 1] = 0f;
      scores[heads * (CHUNK + 2) + i] =
          codes
              ? spec.scale() * CodeProducts.quantize(q, head, keyDim, queryCodes, i * keyDim)
              : spec.scale();
    }
    Arrays.fill(results, 0, heads * valueStride, 0f);
    int end = tile.end();
    int stop;
    for (int start = tile.start(); start < end; start = stop) {
      int chunk = start & -CHUNK;
      stop = Math.min(end - chunk, CHUNK) + chunk;
      chunk(spec, tile, kv, start, stop, s);
    }
    for (int i = 0; i < heads; i++) {
      int h = i % spec.group();
      long state = tile.state(i / spec.group());
      Segments.f32(states, state + h, scores[heads * CHUNK + 2 * i]);
      Segments.f32(states, state + spec.group() + h, scores[heads * CHUNK + 2 * i + 1]);
      long head = state + 2L * spec.group() + (long) h * valueDim;
      MemorySegment.copy(results, i * valueStride, states, Segments.FLOAT, head << 2, valueDim);
    }
  }

  /** Takes positions of one chunk, all that some row sees of it. */
  private static void chunk(
      AttentionSpec spec, AttentionTile tile, KvRun kv, int start, int stop, VectorScratch s) {
    int group = spec.group();
    int heads = tile.rows() * group;
    int keyDim = spec.keyDim();
    int valueDim = spec.valueDim();
    int keyStride = (keyDim + LANES - 1) & -LANES;
    int valueStride = (valueDim + LANES - 1) & -LANES;
    float[] scores = s.sums(heads * (CHUNK + 3));
    boolean codes = kv.type() == KvCache.Type.Q8_0;
    int n = stop - start;
    long key = kv.keys() + start * KvLayout.bytes(kv.type(), keyDim);
    widen(kv.type(), kv.memory(), key, n, keyDim, keyStride, s);
    for (int i = 0; i < heads; i++) {
      int from = Math.max(start, tile.from(i / group));
      int to = Math.min(stop, tile.to(i / group));
      if (from >= to) {
        continue;
      }
      int at = i * CHUNK;
      Arrays.fill(scores, at, at + CHUNK, Float.NEGATIVE_INFINITY);
      float scale = scores[heads * (CHUNK + 2) + i];
      for (int p = from; p < to; p++) {
        float dot =
            codes
                ? product(s, i * keyDim, p - start, keyDim)
                : dot(s.x, i * keyStride, s.w, (p - start) * keyStride, keyStride, s.lanes);
        scores[at + p % CHUNK] = scale * dot;
      }
      if (spec.softCap() != 0f) {
        softCap(scores, at + from % CHUNK, to - from, spec.softCap());
      }
      softmaxStep(scores, at, heads * CHUNK + 2 * i, s.acc, i * valueStride, valueStride, s.lanes);
    }
    long value = kv.values() + start * KvLayout.bytes(kv.type(), valueDim);
    widen(kv.type(), kv.memory(), value, n, valueDim, valueStride, s);
    for (int i = 0; i < heads; i++) {
      int from = Math.max(start, tile.from(i / group));
      int to = Math.min(stop, tile.to(i / group));
      if (from >= to) {
        continue;
      }
      int at = i * CHUNK + from % CHUNK;
      int row = from - start;
      if (codes) {
        accumulateCodes(scores, at, to - from, row, valueDim, s, i * valueStride);
      } else {
        accumulate(scores, at, to - from, s.w, row, valueStride, s.acc, i * valueStride);
      }
    }
  }

  /**
   * Consecutive heads of the cache as float32 rows of {@code stride} elements, zeros at their ends;
   * for Q8_0 codes as integers, with the scales apart.
   */
  private static void widen(
      KvCache.Type type,
      MemorySegment kv,
      long offset,
      int slots,
      int n,
      int stride,
      VectorScratch s) {
    float[] rows = s.w(CHUNK * stride);
    switch (type) {
      case F32 -> {
        for (int j = 0; j < slots; j++) {
          MemorySegment.copy(kv, Segments.FLOAT, offset + 4L * j * n, rows, j * stride, n);
        }
      }
      case F16 -> {
        short[] halves = s.shorts(CHUNK * n);
        MemorySegment.copy(kv, Segments.SHORT, offset, halves, 0, slots * n);
        if (n == stride) {
          VectorMath.halvesToFloats(halves, 0, rows, 0, slots * n);
        } else {
          for (int j = 0; j < slots; j++) {
            VectorMath.halvesToFloats(halves, j * n, rows, j * stride, n);
          }
        }
      }
      case Q8_0 -> {
        int blocks = n / 32;
        byte[] codes = s.bytes(CHUNK * n);
        float[] scales = s.scales(CHUNK * blocks);
        long bytes = KvLayout.bytes(type, n);
        for (int j = 0; j < slots; j++) {
          MemorySegment.copy(kv, Segments.BYTE, offset + j * bytes, codes, j * n, n);
          for (int b = 0; b < blocks; b++) {
            scales[j * blocks + b] = Segments.f16(kv, offset + j * bytes + n + 2L * b);
          }
        }
        int[] wide = s.rowCodes(CHUNK * n);
        for (int i = 0; i < slots * n; i++) {
          wide[i] = codes[i];
        }
        return;
      }
    }
    if (n < stride) {
      for (int j = 0; j < slots; j++) {
        Arrays.fill(rows, j * stride + n, (j + 1) * stride, 0f);
      }
    }
  }

  private static float dot(float[] q, int qo, float[] k, int ko, int n, float[] lanes) {
    for (int l = 0; l < LANES; l += L) {
      FloatVector sum = FloatVector.zero(F);
      for (int i = l; i < n; i += LANES) {
        sum = FloatVector.fromArray(F, q, qo + i).fma(FloatVector.fromArray(F, k, ko + i), sum);
      }
      sum.intoArray(lanes, l);
    }
    return ScalarScratch.reduce(lanes);
  }

  private static void softCap(float[] scores, int at, int n, float softCap) {
    for (int j = at; j < at + n; j++) {
      scores[j] = softCap * FloatMath.tanh(scores[j] / softCap);
    }
  }

  private static void softmaxStep(
      float[] scores, int at, int state, float[] values, int vo, int n, float[] lanes) {
    FloatVector largest = FloatVector.fromArray(F, scores, at);
    for (int j = L; j < CHUNK; j += L) {
      largest = largest.max(FloatVector.fromArray(F, scores, at + j));
    }
    float before = scores[state];
    float max = Math.max(before, largest.reduceLanes(VectorOperators.MAX));
    float base = max == Float.NEGATIVE_INFINITY ? 0f : max;
    for (int l = 0; l < LANES; l += L) {
      FloatVector p0 = weight(scores, at + l, base);
      FloatVector p1 = weight(scores, at + l + LANES, base);
      FloatVector p2 = weight(scores, at + l + 2 * LANES, base);
      FloatVector p3 = weight(scores, at + l + 3 * LANES, base);
      p0.add(p2).add(p1.add(p3)).intoArray(lanes, l);
    }
    float factor = FloatMath.weight(before - base);
    scores[state] = max;
    scores[state + 1] = Math.fma(scores[state + 1], factor, ScalarScratch.reduce(lanes));
    multiply(values, vo, n, factor);
  }

  private static FloatVector weight(float[] scores, int at, float base) {
    FloatVector p = VectorMath.weight(FloatVector.fromArray(F, scores, at).sub(base));
    p.intoArray(scores, at);
    return p;
  }

  private static void multiply(float[] values, int at, int n, float factor) {
    for (int i = 0; i < n; i += L) {
      FloatVector.fromArray(F, values, at + i).mul(factor).intoArray(values, at + i);
    }
  }

  /** Adds {@code count} rows from {@code first} on, times the weights from {@code po} on. */
  private static void accumulate(
      float[] p, int po, int count, float[] rows, int first, int n, float[] values, int at) {
    for (int i = 0; i < n; i += L) {
      FloatVector v = FloatVector.fromArray(F, values, at + i);
      for (int j = 0; j < count; j++) {
        FloatVector row = FloatVector.fromArray(F, rows, (first + j) * n + i);
        v = row.fma(FloatVector.broadcast(F, p[po + j]), v);
      }
      v.intoArray(values, at + i);
    }
  }

  /** As {@link CodeProducts#product}, of a row of codes. */
  private static float product(VectorScratch s, int query, int row, int n) {
    int blocks = n >> 5;
    float dot = 0f;
    for (int b = 0; b < blocks; b++) {
      IntVector sum = IntVector.zero(I);
      for (int i = 32 * b; i < 32 * b + 32; i += L) {
        IntVector k = IntVector.fromArray(I, s.rowCodes, row * n + i);
        sum = sum.add(IntVector.fromArray(I, s.ints, query + i).mul(k));
      }
      float products = sum.reduceLanes(VectorOperators.ADD);
      dot = Math.fma(products, s.scales[row * blocks + b], dot);
    }
    return dot;
  }

  /** As {@link CodeProducts#accumulate}, of {@code count} rows of codes from {@code first} on. */
  private static void accumulateCodes(
      float[] p, int po, int count, int first, int n, VectorScratch s, int at) {
    int blocks = n >> 5;
    for (int b = 0; b < blocks; b++) {
      int amax = 0;
      for (int j = 0; j < count; j++) {
        s.weights[j] = p[po + j] * s.scales[(first + j) * blocks + b];
        amax = CodeProducts.larger(amax, s.weights[j]);
      }
      float inverse = CodeProducts.inverse(amax, CodeProducts.WEIGHT_LIMIT);
      for (int j = 0; j < count; j++) {
        s.weightCodes[j] = CodeProducts.code(s.weights[j], inverse);
      }
      float d = CodeProducts.scale(amax, CodeProducts.WEIGHT_LIMIT);
      for (int i = 32 * b; i < 32 * b + 32; i += L) {
        IntVector sum = IntVector.zero(I);
        for (int j = 0; j < count; j++) {
          IntVector row = IntVector.fromArray(I, s.rowCodes, (first + j) * n + i);
          sum = sum.add(row.mul(s.weightCodes[j]));
        }
        FloatVector products = (FloatVector) sum.convertShape(VectorOperators.I2F, F, 0);
        FloatVector v = FloatVector.fromArray(F, s.acc, at + i);
        products.fma(FloatVector.broadcast(F, d), v).intoArray(s.acc, at + i);
      }
    }
  }
}
