package io.fletch.graph.cpu;

import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.x86.AttentionCode;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.MemorySegment;
import java.util.Objects;
import java.util.concurrent.atomic.AtomicReferenceArray;
import java.util.function.Supplier;

/**
 * Online softmax attention in machine code ({@link AttentionCode}): the loop over chunks of slots
 * and over the query heads that share them is here, what happens in a chunk is emitted. Keys and
 * values of a chunk stay in the first-level cache for all heads of the group.
 */
final class X86Attention {
  private static final int MAX_DIM = 1024;
  private static final int UNIT = 16;

  private final Isa isa;
  private final Kernels kernels;

  /** Entries by cache type and head width, for scores and for updates. */
  private final AtomicReferenceArray<MemorySegment> scores;

  private final AtomicReferenceArray<MemorySegment> updates;

  X86Attention(Isa isa, Kernels kernels) {
    this.isa = isa;
    this.kernels = kernels;
    int size = KvCache.Type.values().length * (MAX_DIM / UNIT + 1);
    scores = new AtomicReferenceArray<>(size);
    updates = new AtomicReferenceArray<>(size);
  }

  private MemorySegment scoresCode(KvCache.Type type, int n) {
    MemorySegment found = n <= MAX_DIM ? scores.getAcquire(index(type, n)) : null;
    return found != null
        ? found
        : emit(
            scores,
            "attention scores",
            type,
            n,
            () -> AttentionCode.scores(type, n, KvLayout.bytes(type, n), isa));
  }

  private MemorySegment updateCode(KvCache.Type type, int n) {
    MemorySegment found = n <= MAX_DIM ? updates.getAcquire(index(type, n)) : null;
    return found != null
        ? found
        : emit(
            updates,
            "attention update",
            type,
            n,
            () -> AttentionCode.update(type, n, KvLayout.bytes(type, n), isa));
  }

  private static int index(KvCache.Type type, int n) {
    return type.ordinal() * (MAX_DIM / UNIT + 1) + n / UNIT;
  }

  private MemorySegment emit(
      AtomicReferenceArray<MemorySegment> cache,
      String name,
      KvCache.Type type,
      int n,
      Supplier<byte[]> code) {
    MemorySegment entry = X86Code.function(name + " " + type + " " + n + " " + isa.label(), code);
    if (n <= MAX_DIM) {
      cache.setRelease(index(type, n), entry);
    }
    return entry;
  }

  void run(
      KvCache.Type type,
      MemorySegment q,
      long qOffset,
      int group,
      int keyDim,
      int valueDim,
      MemorySegment kv,
      long kOffset,
      long vOffset,
      int a0,
      int a1,
      int b0,
      int b1,
      float scale,
      float softCap,
      MemorySegment scratch,
      long scratchOffset,
      MemorySegment out,
      long outOffset) {
    long kStride = KvLayout.bytes(type, keyDim);
    long vStride = KvLayout.bytes(type, valueDim);
    long stateFloats = AttentionCode.VALUES + valueDim;
    int end = Math.max(a1 > a0 ? a1 : 0, b1 > b0 ? b1 : 0);
    if ((a1 > a0 && a0 < 0) || (b1 > b0 && b0 < 0)) {
      throw new IndexOutOfBoundsException("slots: a0=" + a0 + " b0=" + b0);
    }
    Objects.checkFromIndexSize(kOffset, end * kStride, kv.byteSize());
    Objects.checkFromIndexSize(vOffset, end * vStride, kv.byteSize());
    Objects.checkFromIndexSize(4 * qOffset, 4L * group * keyDim, q.byteSize());
    Objects.checkFromIndexSize(4 * scratchOffset, 4 * group * stateFloats, scratch.byteSize());
    for (int h = 0; h < group; h++) {
      long state = scratchOffset + h * stateFloats;
      Segments.f32(scratch, state + AttentionCode.MAXIMUM, Float.NEGATIVE_INFINITY);
      Segments.f32(scratch, state + AttentionCode.SUM, 0f);
      for (int i = 0; i < valueDim; i++) {
        Segments.f32(scratch, state + AttentionCode.VALUES + i, 0f);
      }
    }
    MemorySegment scoresCode = scoresCode(type, keyDim);
    MemorySegment updateCode = updateCode(type, valueDim);
    long scaleBits = Float.floatToRawIntBits(scale) & 0xffffffffL;
    for (int range = 0; range < 2; range++) {
      int to = range == 0 ? a1 : b1;
      for (int s = range == 0 ? a0 : b0; s < to; s += AttentionCode.CHUNK) {
        int slots = Math.min(AttentionCode.CHUNK, to - s);
        long keys = kv.address() + kOffset + s * kStride;
        long values = kv.address() + vOffset + s * vStride;
        for (int h = 0; h < group; h++) {
          long at = scratchOffset + h * stateFloats;
          long state = scratch.address() + 4 * at;
          long query = q.address() + 4 * (qOffset + (long) h * keyDim);
          X86Code.call(scoresCode, query, keys, slots, state, scaleBits);
          if (softCap != 0f) {
            kernels.softCap(scratch, at, softCap, slots, scratch, at);
          }
          X86Code.call(updateCode, values, slots, state, 0, 0);
        }
      }
    }
    for (int h = 0; h < group; h++) {
      long state = scratchOffset + h * stateFloats;
      float sum = Segments.f32(scratch, state + AttentionCode.SUM);
      float inverse = sum == 0f ? 0f : 1f / sum;
      kernels.scale(
          scratch,
          state + AttentionCode.VALUES,
          inverse,
          valueDim,
          out,
          outOffset + (long) h * valueDim);
    }
  }
}
