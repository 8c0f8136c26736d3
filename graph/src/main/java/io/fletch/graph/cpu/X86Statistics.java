package io.fletch.graph.cpu;

import io.fletch.graph.Batch.RowStatistics;
import io.fletch.graph.cpu.x86.StatisticsCode;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Objects;

/** Statistics of logit rows in machine code ({@link StatisticsCode}). */
final class X86Statistics {
  private static final MemorySegment MAXIMA =
      X86Code.function("logit maxima", StatisticsCode::maxima);
  private static final MemorySegment SUMS = X86Code.function("logit sums", StatisticsCode::sums);

  private X86Statistics() {}

  /**
   * Reduces {@code x[offset .. offset + n)}, floats.
   *
   * @param argmax index of the largest, the lowest on ties
   * @param n at least 1
   */
  static void reduce(MemorySegment x, long offset, int n, int argmax, RowStatistics into) {
    Objects.checkFromIndexSize(4 * offset, 4L * n, x.byteSize());
    long address = x.address() + 4 * offset;
    MemorySegment state = X86Scratch.get().floats(StatisticsCode.STATE / 4 + 1);
    int blocks = n / StatisticsCode.BLOCK;
    int whole = blocks * StatisticsCode.BLOCK;
    float first = Float.NEGATIVE_INFINITY;
    float second = Float.NEGATIVE_INFINITY;
    if (blocks > 0) {
      X86Code.call(MAXIMA, address, blocks, state.address(), 0, 0);
    }
    for (int i = blocks > 0 ? 0 : 2 * StatisticsCode.BLOCK; i < 2 * StatisticsCode.BLOCK; i++) {
      float v = Segments.f32(state, i);
      second = Math.max(second, Math.min(first, v));
      first = Math.max(first, v);
    }
    for (int i = whole; i < n; i++) {
      float v = Segments.f32(x, offset + i);
      if (v > second) {
        second = Math.min(first, v);
        first = Math.max(first, v);
      }
    }
    double sum = 0;
    double weighted = 0;
    if (blocks > 0) {
      long top = state.address() + StatisticsCode.STATE;
      Segments.f32(state, StatisticsCode.STATE / 4, first);
      X86Code.call(SUMS, address, blocks, state.address(), top, 0);
      for (int i = 0; i < 4; i++) {
        sum += state.get(ValueLayout.JAVA_DOUBLE_UNALIGNED, 8L * i);
        weighted += state.get(ValueLayout.JAVA_DOUBLE_UNALIGNED, 32 + 8L * i);
      }
    }
    for (int i = whole; i < n; i++) {
      double d = Math.max((double) Segments.f32(x, offset + i) - first, -StatisticsCode.REACH);
      double e = Math.exp(d);
      sum += e;
      weighted += d * e;
    }
    into.argmax = argmax;
    into.top1 = first;
    into.top2 = second;
    into.logSumExp = first + Math.log(sum);
    into.entropy = Math.log(sum) - weighted / sum;
  }
}
