package io.fletch.graph.cpu;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;

/** Attention with the operations of {@link ScalarKernels#attention} in their order. */
final class VectorAttention {
  private static final VectorSpecies<Float> F = VectorMath.FLOATS;
  private static final int L = F.length();
  private static final int LANES = ActivationLayout.LANES;
  private static final int CHUNK = ScalarKernels.ATTENTION_CHUNK;

  private VectorAttention() {}

  static void run(
      AttentionSpec spec,
      KvCache.Type type,
      MemorySegment q,
      long qOffset,
      MemorySegment kv,
      long kOffset,
      long vOffset,
      int slots,
      MemorySegment out,
      long outOffset) {
    VectorScratch s = VectorScratch.get();
    int group = spec.group();
    int keyDim = spec.keyDim();
    int valueDim = spec.valueDim();
    int keyStride = (keyDim + LANES - 1) & -LANES;
    int valueStride = (valueDim + LANES - 1) & -LANES;
    float[] queries = s.x(group * keyStride);
    float[] scores = s.sums(group * (CHUNK + 2));
    float[] values = s.acc(group * valueStride);
    for (int h = 0; h < group; h++) {
      long head = qOffset + (long) h * keyDim;
      MemorySegment.copy(q, Segments.FLOAT, head << 2, queries, h * keyStride, keyDim);
      Arrays.fill(queries, h * keyStride + keyDim, (h + 1) * keyStride, 0f);
      scores[group * CHUNK + 2 * h] = Float.NEGATIVE_INFINITY;
      scores[group * CHUNK + 2 * h + 1] = 0f;
    }
    Arrays.fill(values, 0, group * valueStride, 0f);
    long kBytes = KvLayout.bytes(type, keyDim);
    long vBytes = KvLayout.bytes(type, valueDim);
    boolean scaled = type == KvCache.Type.Q8_0;
    for (int slot = 0; slot < slots; slot += CHUNK) {
      int n = Math.min(CHUNK, slots - slot);
      widen(type, kv, kOffset + slot * kBytes, n, keyDim, keyStride, s);
      if (scaled) {
        multiplyByScales(s.w, s.scales, n * keyDim);
      }
      for (int h = 0; h < group; h++) {
        int at = h * CHUNK;
        for (int j = 0; j < n; j++) {
          scores[at + j] = dot(queries, h * keyStride, s.w, j * keyStride, keyStride, s.lanes);
        }
        finish(scores, at, n, spec.scale(), spec.softCap());
        softmaxStep(
            scores, at, group * CHUNK + 2 * h, values, h * valueStride, valueStride, s.lanes);
      }
      widen(type, kv, vOffset + slot * vBytes, n, valueDim, valueStride, s);
      for (int h = 0; h < group; h++) {
        int at = h * CHUNK;
        if (scaled) {
          accumulateScaled(scores, at, n, s.w, s.scales, valueStride, values, h * valueStride);
        } else {
          accumulate(scores, at, n, s.w, valueStride, values, h * valueStride);
        }
      }
    }
    for (int h = 0; h < group; h++) {
      float sum = scores[group * CHUNK + 2 * h + 1];
      multiply(values, h * valueStride, valueStride, sum == 0f ? 0f : 1f / sum);
      long head = outOffset + (long) h * valueDim;
      MemorySegment.copy(values, h * valueStride, out, Segments.FLOAT, head << 2, valueDim);
    }
  }

  /**
   * Consecutive heads of the cache as float32 rows of {@code stride} elements, zeros at their ends;
   * for Q8_0 codes, with the scales apart.
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
        VectorMath.codesToFloats(codes, rows, slots * n);
      }
    }
    if (n < stride) {
      for (int j = 0; j < slots; j++) {
        Arrays.fill(rows, j * stride + n, (j + 1) * stride, 0f);
      }
    }
  }

  /** Codes of consecutive blocks to values, which float32 holds exactly. */
  private static void multiplyByScales(float[] codes, float[] scales, int n) {
    for (int i = 0; i < n; i += 32) {
      multiply(codes, i, 32, scales[i >> 5]);
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

  /** Scales the dot products, and fills the rest of the chunk with -inf. */
  private static void finish(float[] scores, int at, int slots, float scale, float softCap) {
    for (int j = 0; j < slots; j++) {
      scores[at + j] *= scale;
    }
    Arrays.fill(scores, at + slots, at + CHUNK, Float.NEGATIVE_INFINITY);
    if (softCap != 0f) {
      for (int j = 0; j < slots; j++) {
        scores[at + j] = softCap * FloatMath.tanh(scores[at + j] / softCap);
      }
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
    float factor = FloatMath.exp(before - base);
    scores[state] = max;
    scores[state + 1] = Math.fma(scores[state + 1], factor, ScalarScratch.reduce(lanes));
    multiply(values, vo, n, factor);
  }

  private static FloatVector weight(float[] scores, int at, float base) {
    FloatVector p = VectorMath.exp(FloatVector.fromArray(F, scores, at).sub(base));
    p.intoArray(scores, at);
    return p;
  }

  private static void multiply(float[] values, int at, int n, float factor) {
    for (int i = 0; i < n; i += L) {
      FloatVector.fromArray(F, values, at + i).mul(factor).intoArray(values, at + i);
    }
  }

  private static void accumulate(
      float[] p, int po, int slots, float[] rows, int n, float[] values, int at) {
    for (int i = 0; i < n; i += L) {
      FloatVector v = FloatVector.fromArray(F, values, at + i);
      for (int j = 0; j < slots; j++) {
        FloatVector row = FloatVector.fromArray(F, rows, j * n + i);
        v = row.fma(FloatVector.broadcast(F, p[po + j]), v);
      }
      v.intoArray(values, at + i);
    }
  }

  private static void accumulateScaled(
      float[] p, int po, int slots, float[] rows, float[] scales, int n, float[] values, int at) {
    int blocks = n >> 5;
    for (int i = 0; i < n; i += L) {
      FloatVector v = FloatVector.fromArray(F, values, at + i);
      for (int j = 0; j < slots; j++) {
        FloatVector row = FloatVector.fromArray(F, rows, j * n + i);
        v = row.fma(FloatVector.broadcast(F, p[po + j] * scales[j * blocks + (i >> 5)]), v);
      }
      v.intoArray(values, at + i);
    }
  }
}
