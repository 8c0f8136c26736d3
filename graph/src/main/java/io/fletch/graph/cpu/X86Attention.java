package io.fletch.graph.cpu;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.x86.AttentionCode;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.Objects;

/**
 * Online softmax attention in machine code ({@link AttentionCode}), which takes slots for a few
 * query heads in one call; checks and the last scaling are here.
 */
final class X86Attention {
  /** A function and what it was emitted for. */
  private record Entry(
      KvCache.Type type, int keyDim, int valueDim, int heads, boolean capped, MemorySegment code) {}

  /** Slots that all heads of a group take before the next ones: they fit a level-2 cache. */
  private static final int PIECE = 8 * AttentionCode.CHUNK;

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

  /** Whether there is code for a shape. */
  static boolean supports(AttentionSpec spec, KvCache.Type type) {
    return AttentionCode.supports(type, spec.keyDim(), spec.valueDim());
  }

  /** Room for the states of a group with any type of cache. */
  static int scratchFloats(AttentionSpec spec) {
    int parts = (spec.group() + AttentionCode.MAX_HEADS - 1) / AttentionCode.MAX_HEADS;
    int values = AttentionCode.values(KvCache.Type.Q8_0, spec.keyDim(), spec.valueDim());
    return parts * values + spec.group() * spec.valueDim();
  }

  void run(
      AttentionSpec spec,
      KvCache.Type type,
      MemorySegment q,
      long qOffset,
      MemorySegment kv,
      long kOffset,
      long vOffset,
      int slots,
      MemorySegment scratch,
      long scratchOffset,
      MemorySegment out,
      long outOffset) {
    int group = spec.group();
    int keyDim = spec.keyDim();
    int valueDim = spec.valueDim();
    long kStride = KvLayout.bytes(type, keyDim);
    long vStride = KvLayout.bytes(type, valueDim);
    Objects.checkFromIndexSize(kOffset, slots * kStride, kv.byteSize());
    Objects.checkFromIndexSize(vOffset, slots * vStride, kv.byteSize());
    Objects.checkFromIndexSize(4 * qOffset, 4L * group * keyDim, q.byteSize());
    Objects.checkFromIndexSize(4 * scratchOffset, 4L * scratchFloats(spec), scratch.byteSize());
    int values = AttentionCode.values(type, keyDim, valueDim);
    long stateFloats = values + (long) AttentionCode.MAX_HEADS * valueDim;
    for (int first = 0; first < group; first += AttentionCode.MAX_HEADS) {
      long state = scratchOffset + first / AttentionCode.MAX_HEADS * stateFloats;
      int heads = Math.min(AttentionCode.MAX_HEADS, group - first);
      for (int h = 0; h < AttentionCode.MAX_HEADS; h++) {
        Segments.f32(scratch, state + AttentionCode.MAXIMUM + h, Float.NEGATIVE_INFINITY);
        Segments.f32(scratch, state + AttentionCode.SUM + h, 0f);
      }
      Segments.f32(scratch, state + AttentionCode.SCALE, spec.scale());
      Segments.f32(scratch, state + AttentionCode.CAP, spec.softCap());
      zero(scratch, 4 * (state + values), 4L * heads * valueDim);
    }
    // With more heads than a function takes, slots are read once from memory and then from a cache.
    int piece = group > AttentionCode.MAX_HEADS ? PIECE : Math.max(slots, 1);
    for (int slot = 0; slot < slots; slot += piece) {
      int n = Math.min(piece, slots - slot);
      long keys = kv.address() + kOffset + slot * kStride;
      long vals = kv.address() + vOffset + slot * vStride;
      for (int first = 0; first < group; first += AttentionCode.MAX_HEADS) {
        int heads = Math.min(AttentionCode.MAX_HEADS, group - first);
        MemorySegment code = code(type, keyDim, valueDim, heads, spec.softCap() != 0f);
        long query = q.address() + 4 * (qOffset + (long) first * keyDim);
        long state = scratchOffset + first / AttentionCode.MAX_HEADS * stateFloats;
        X86Code.call(code, query, keys, vals, n, scratch.address() + 4 * state);
      }
    }
    for (int h = 0; h < group; h++) {
      long state = scratchOffset + h / AttentionCode.MAX_HEADS * stateFloats;
      int head = h % AttentionCode.MAX_HEADS;
      float sum = Segments.f32(scratch, state + AttentionCode.SUM + head);
      float inverse = sum == 0f ? 0f : 1f / sum;
      kernels.scale(
          scratch,
          state + values + (long) head * valueDim,
          inverse,
          valueDim,
          out,
          outOffset + (long) h * valueDim);
    }
  }
}
