package io.fletch.graph.cpu;

import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.x86.AttentionCode;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.Objects;

/**
 * Online softmax attention in machine code ({@link AttentionCode}), which takes a range of slots
 * for a few query heads in one call; checks, the ranges and the last scaling are here.
 */
final class X86Attention {
  /** A function and what it was emitted for. */
  private record Entry(
      KvCache.Type type, int keyDim, int valueDim, int heads, boolean capped, MemorySegment code) {}

  private static final MemorySegment ZEROS = Arena.global().allocate(1024, 64);

  private final Isa isa;
  private final Kernels kernels;

  /** Copied on every addition: a model has very few, and looking one up must not allocate. */
  private volatile Entry[] entries = {};

  X86Attention(Isa isa, Kernels kernels) {
    this.isa = isa;
    this.kernels = kernels;
  }

  private MemorySegment code(
      KvCache.Type type, int keyDim, int valueDim, int heads, boolean capped) {
    for (Entry e : entries) {
      if (e.type == type
          && e.keyDim == keyDim
          && e.valueDim == valueDim
          && e.heads == heads
          && e.capped == capped) {
        return e.code;
      }
    }
    return add(type, keyDim, valueDim, heads, capped);
  }

  private synchronized MemorySegment add(
      KvCache.Type type, int keyDim, int valueDim, int heads, boolean capped) {
    String name =
        "attention "
            + type
            + " "
            + keyDim
            + " "
            + valueDim
            + " heads="
            + heads
            + (capped ? " capped " : " ")
            + isa.label();
    MemorySegment code =
        X86Code.function(
            name,
            () ->
                AttentionCode.emit(
                    type,
                    keyDim,
                    KvLayout.bytes(type, keyDim),
                    valueDim,
                    KvLayout.bytes(type, valueDim),
                    heads,
                    capped,
                    isa));
    Entry[] more = Arrays.copyOf(entries, entries.length + 1);
    more[entries.length] = new Entry(type, keyDim, valueDim, heads, capped, code);
    entries = more;
    return code;
  }

  /** A fill would need a slice, that is, an allocation. */
  private static void zero(MemorySegment s, long offset, long bytes) {
    for (long i = 0; i < bytes; i += ZEROS.byteSize()) {
      MemorySegment.copy(ZEROS, 0, s, offset + i, Math.min(ZEROS.byteSize(), bytes - i));
    }
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
      Segments.f32(scratch, state + AttentionCode.SCALE, scale);
      Segments.f32(scratch, state + AttentionCode.CAP, softCap);
      zero(scratch, 4 * (state + AttentionCode.VALUES), 4L * valueDim);
    }
    for (int first = 0; first < group; first += AttentionCode.MAX_HEADS) {
      int heads = Math.min(AttentionCode.MAX_HEADS, group - first);
      MemorySegment code = code(type, keyDim, valueDim, heads, softCap != 0f);
      long query = q.address() + 4 * (qOffset + (long) first * keyDim);
      long state = scratch.address() + 4 * (scratchOffset + first * stateFloats);
      long keys = kv.address() + kOffset;
      long values = kv.address() + vOffset;
      if (a1 > a0) {
        X86Code.call(code, query, keys + a0 * kStride, values + a0 * vStride, a1 - a0, state);
      }
      if (b1 > b0) {
        X86Code.call(code, query, keys + b0 * kStride, values + b0 * vStride, b1 - b0, state);
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
