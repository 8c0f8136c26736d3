package io.fletch.graph.cpu;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.x86.AttentionCode;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.MemorySegment;
import java.util.Objects;

/**
 * Online softmax attention in machine code ({@link AttentionCode}), which takes positions for a few
 * query heads in one call; checks are here.
 */
final class X86Attention {
  /** A function and what it was emitted for. */
  private record Entry(
      KvCache.Type type, int keyDim, int valueDim, int heads, boolean capped, MemorySegment code)
      implements X86AttentionTable.Entry {
    @Override
    public boolean fits(AttentionSpec spec, KvCache.Type type, int heads) {
      return this.type == type
          && keyDim == spec.keyDim()
          && valueDim == spec.valueDim()
          && this.heads == heads
          && capped == (spec.softCap() != 0f);
    }
  }

  /** Slots that all heads of a group take before the next ones: they fit a level-2 cache. */
  private static final int PIECE = 8 * AttentionCode.CHUNK;

  private final Isa isa;
  private final X86AttentionTiles tiles;
  private final X86AttentionTable<Entry> functions = new X86AttentionTable<>(this::emit);

  X86Attention(Isa isa) {
    this.isa = isa;
    this.tiles = new X86AttentionTiles(isa);
  }

  private Entry emit(AttentionSpec spec, KvCache.Type type, int heads) {
    int keyDim = spec.keyDim();
    int valueDim = spec.valueDim();
    boolean capped = spec.softCap() != 0f;
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
    return new Entry(type, keyDim, valueDim, heads, capped, code);
  }

  /** Whether there is code for a shape. */
  static boolean supports(AttentionSpec spec, KvCache.Type type) {
    return AttentionCode.supports(type, spec.keyDim(), spec.valueDim());
  }

  /** Room for a tile. */
  int scratchFloats(AttentionSpec spec) {
    return Math.max(rowFloats(spec), tiles.scratchFloats(spec));
  }

  /** Room for the states of a group: the same for all rows, so that it stays in the caches. */
  private static int rowFloats(AttentionSpec spec) {
    return Math.multiplyExact(stateFloats(spec.valueDim()), parts(spec));
  }

  private static int parts(AttentionSpec spec) {
    return (spec.group() + AttentionCode.MAX_HEADS - 1) / AttentionCode.MAX_HEADS;
  }

  /** Floats of the state of a function, a multiple of a cache line. */
  private static int stateFloats(int valueDim) {
    return (AttentionCode.VALUES + AttentionCode.MAX_HEADS * valueDim + 15) & -16;
  }

  /** See {@link Kernels#attention}. */
  void run(AttentionSpec spec, AttentionTile tile, KvRun kv, MemorySegment scratch) {
    Objects.checkFromIndexSize(0, 4L * scratchFloats(spec), scratch.byteSize());
    if (X86AttentionTiles.pays(spec, tile)) {
      tiles.run(spec, tile, kv, scratch);
      return;
    }
    for (int r = 0; r < tile.rows(); r++) {
      checkPositions(spec, kv, tile.from(r), tile.to(r));
      long query = 4L * spec.group() * spec.keyDim();
      Objects.checkFromIndexSize(4 * tile.query(r), query, tile.queries().byteSize());
    }
    // As little as can be between calls that read memory.
    for (int r = 0; r < tile.rows(); r++) {
      begin(spec, scratch);
      row(spec, tile, r, kv, scratch);
      end(spec, scratch, tile.states(), tile.state(r));
    }
  }

  private static void begin(AttentionSpec spec, MemorySegment scratch) {
    long state = 0;
    for (int first = 0; first < spec.group(); first += AttentionCode.MAX_HEADS) {
      int heads = Math.min(AttentionCode.MAX_HEADS, spec.group() - first);
      for (int h = 0; h < AttentionCode.MAX_HEADS; h++) {
        Segments.f32(scratch, state + AttentionCode.MAXIMUM + h, Float.NEGATIVE_INFINITY);
        Segments.f32(scratch, state + AttentionCode.SUM + h, 0f);
      }
      Segments.f32(scratch, state + AttentionCode.SCALE, spec.scale());
      Segments.f32(scratch, state + AttentionCode.CAP, spec.softCap());
      Segments.zero(scratch, state + AttentionCode.VALUES, (long) heads * spec.valueDim());
      state += stateFloats(spec.valueDim());
    }
  }

  private void row(
      AttentionSpec spec, AttentionTile tile, int row, KvRun kv, MemorySegment scratch) {
    KvCache.Type type = kv.type();
    int group = spec.group();
    final long kStride = KvLayout.bytes(type, spec.keyDim());
    final long vStride = KvLayout.bytes(type, spec.valueDim());
    int to = tile.to(row);
    // With more heads than a function takes, slots are read once from memory and then from a cache.
    int piece = group > AttentionCode.MAX_HEADS ? PIECE : Kernels.ATTENTION_SEGMENT;
    int end;
    for (int from = tile.from(row); from < to; from = end) {
      end = Math.min(to - (from & -piece), piece) + (from & -piece);
      long state = 0;
      for (int first = 0; first < group; first += AttentionCode.MAX_HEADS) {
        int heads = Math.min(AttentionCode.MAX_HEADS, group - first);
        MemorySegment code = functions.get(spec, type, heads).code;
        long query = tile.query(row) + (long) first * spec.keyDim();
        scratch.set(Segments.LONG, 4 * (state + AttentionCode.FRONT), from % AttentionCode.CHUNK);
        X86Code.call(
            code,
            tile.queries().address() + 4 * query,
            kv.memory().address() + kv.keys() + from * kStride,
            kv.memory().address() + kv.values() + from * vStride,
            end - from,
            scratch.address() + 4 * state);
        state += stateFloats(spec.valueDim());
      }
    }
  }

  private static void end(
      AttentionSpec spec, MemorySegment scratch, MemorySegment states, long into) {
    long state = 0;
    int group = spec.group();
    int valueDim = spec.valueDim();
    for (int first = 0; first < group; first += AttentionCode.MAX_HEADS) {
      long heads = Math.min(AttentionCode.MAX_HEADS, group - first);
      copy(scratch, state + AttentionCode.MAXIMUM, states, into + first, heads);
      copy(scratch, state + AttentionCode.SUM, states, into + group + first, heads);
      long values = into + 2L * group + (long) first * valueDim;
      copy(scratch, state + AttentionCode.VALUES, states, values, heads * valueDim);
      state += stateFloats(valueDim);
    }
  }

  /** Refuses keys and values of positions that are not all in the segment. */
  static void checkPositions(AttentionSpec spec, KvRun kv, int from, int to) {
    if (from < to) {
      long key = KvLayout.bytes(kv.type(), spec.keyDim());
      long value = KvLayout.bytes(kv.type(), spec.valueDim());
      long bytes = kv.memory().byteSize();
      Objects.checkFromIndexSize(kv.keys() + from * key, (to - from) * key, bytes);
      Objects.checkFromIndexSize(kv.values() + from * value, (to - from) * value, bytes);
    }
  }

  private static void copy(MemorySegment from, long at, MemorySegment to, long into, long floats) {
    MemorySegment.copy(from, 4 * at, to, 4 * into, 4 * floats);
  }
}
