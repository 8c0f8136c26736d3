package io.fletch.graph.cpu;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.x86.CodeAttention;
import io.fletch.graph.cpu.x86.CodeAttention.Layout;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.MemorySegment;
import java.util.Objects;

/**
 * Attention over Q8_0 caches in machine code ({@link CodeAttention}): checks, and what a call works
 * with. The heads of a group are divided into parts of equal size, up to four heads, the last of
 * which may begin among those of the part before it.
 */
final class X86CodeAttention {
  private static final int ROWS = AttentionTile.ROWS;

  /** Functions, and what they were emitted for. */
  private record Entry(
      int keyDim,
      int valueDim,
      int group,
      boolean capped,
      Layout layout,
      MemorySegment quantize,
      MemorySegment attend)
      implements X86AttentionTable.Entry {
    @Override
    public boolean fits(AttentionSpec spec, KvCache.Type type, int heads) {
      return keyDim == spec.keyDim()
          && valueDim == spec.valueDim()
          && group == heads
          && capped == (spec.softCap() != 0f);
    }
  }

  private final Isa isa;
  private final X86AttentionTable<Entry> functions = new X86AttentionTable<>(this::emit);

  X86CodeAttention(Isa isa) {
    this.isa = isa;
  }

  /** Whether there is code for a shape. */
  static boolean supports(AttentionSpec spec) {
    return CodeAttention.supports(spec.keyDim(), spec.valueDim());
  }

  private static int parts(AttentionSpec spec) {
    return (spec.group() + CodeAttention.MAX_HEADS - 1) / CodeAttention.MAX_HEADS;
  }

  private static Layout layout(AttentionSpec spec) {
    int parts = parts(spec);
    return new Layout(spec.keyDim(), spec.valueDim(), (spec.group() + parts - 1) / parts);
  }

  /**
   * Working memory of a shape.
   *
   * @param floats room for a tile, wherever it begins
   */
  private record Room(int keyDim, int valueDim, int group, int floats)
      implements X86AttentionTable.Entry {
    @Override
    public boolean fits(AttentionSpec spec, KvCache.Type type, int heads) {
      return keyDim == spec.keyDim() && valueDim == spec.valueDim() && group == heads;
    }
  }

  /** Apart from the functions: caches of other types need the room, too, but not the code. */
  private static final X86AttentionTable<Room> ROOMS =
      new X86AttentionTable<>((spec, _, group) ->
          new Room(spec.keyDim(), spec.valueDim(), group, computeScratch(spec)));

  /** Room for a tile, wherever it begins. Asked for by every attention: it allocates once. */
  static int scratchFloats(AttentionSpec spec) {
    return ROOMS.get(spec, KvCache.Type.Q8_0, spec.group()).floats;
  }

  private static int computeScratch(AttentionSpec spec) {
    Layout l = layout(spec);
    long row = factorBytes(spec) + codeBytes(spec, l);
    long entry = Layout.ENTRY_BYTES + (long) l.stateBytes();
    long bytes = l.bytes() + ROWS * (row + parts(spec) * entry) + 64;
    return Math.toIntExact(bytes / Float.BYTES);
  }

  private static int factorBytes(AttentionSpec spec) {
    return (4 * spec.group() + 63) & -64;
  }

  private static int codeBytes(AttentionSpec spec, Layout layout) {
    return (spec.group() * layout.queryBytes() + 63) & -64;
  }

  private Entry emit(AttentionSpec spec, KvCache.Type type, int group) {
    boolean capped = spec.softCap() != 0f;
    Layout layout = layout(spec);
    int keyDim = spec.keyDim();
    int minAmax = Float.floatToRawIntBits(CodeProducts.MIN_AMAX);
    MemorySegment quantize =
        X86Code.function(
            "attention queries " + keyDim,
            () -> CodeAttention.queries(keyDim, CodeProducts.QUERY_LIMIT, minAmax));
    String name =
        "attention codes "
            + keyDim
            + " "
            + spec.valueDim()
            + " heads="
            + layout.heads
            + (capped ? " capped " : " ")
            + isa.label();
    MemorySegment attend =
        X86Code.function(
            name,
            () -> CodeAttention.emit(layout, capped, isa, CodeProducts.WEIGHT_LIMIT, minAmax));
    return new Entry(keyDim, spec.valueDim(), group, capped, layout, quantize, attend);
  }

  /** See {@link Kernels#attention}. */
  void run(AttentionSpec spec, AttentionTile tile, KvRun kv, MemorySegment scratch) {
    MemorySegment q = tile.queries();
    MemorySegment states = tile.states();
    int group = spec.group();
    int from = tile.start();
    int to = tile.end();
    X86Attention.checkPositions(spec, kv, from, to);
    Objects.checkFromIndexSize(0, 4L * scratchFloats(spec), scratch.byteSize());
    Entry code = functions.get(spec, KvCache.Type.Q8_0, group);
    Layout l = code.layout;
    int parts = parts(spec);
    // Byte offsets in the scratch.
    long work = -scratch.address() & 63;
    long table = work + l.bytes();
    long factors = table + (long) ROWS * parts * Layout.ENTRY_BYTES;
    long codes = factors + (long) ROWS * factorBytes(spec);
    long results = codes + (long) ROWS * codeBytes(spec, l);
    long base = scratch.address();
    scratch.set(Segments.FLOAT, work + l.scale, spec.scale());
    scratch.set(Segments.FLOAT, work + l.cap, spec.softCap());
    int count = 0;
    for (int r = 0; r < tile.rows(); r++) {
      if (tile.from(r) == tile.to(r)) {
        empty(spec, states, tile.state(r));
        continue;
      }
      // Segments of a row have one query.
      int of = tile.segments() == 1 ? r : 0;
      long rowFactors = factors + (long) of * factorBytes(spec);
      long rowCodes = codes + (long) of * codeBytes(spec, l);
      if (of == r) {
        Objects.checkFromIndexSize(4 * tile.query(r), 4L * group * spec.keyDim(), q.byteSize());
        X86Code.call(
            code.quantize,
            q.address() + 4 * tile.query(r),
            group,
            base + rowCodes,
            base + rowFactors,
            base + work + l.scale);
      }
      for (int p = 0; p < parts; p++) {
        int head = Math.min(p * l.heads, group - l.heads);
        long entry = table + (long) count * Layout.ENTRY_BYTES;
        long state = results + (long) count * l.stateBytes();
        scratch.set(Segments.LONG, entry + Layout.ENTRY_FROM, tile.from(r));
        scratch.set(Segments.LONG, entry + Layout.ENTRY_TO, tile.to(r));
        long headCodes = rowCodes + (long) head * l.queryBytes();
        scratch.set(Segments.LONG, entry + Layout.ENTRY_CODES, base + headCodes);
        scratch.set(Segments.LONG, entry + Layout.ENTRY_FACTORS, base + rowFactors + 4L * head);
        scratch.set(Segments.LONG, entry + Layout.ENTRY_STATE, base + state);
        Segments.zero(scratch, state / 4, Layout.STATE_VALUES + (long) l.heads * spec.valueDim());
        for (int h = 0; h < CodeAttention.MAX_HEADS; h++) {
          Segments.f32(scratch, state / 4 + h, Float.NEGATIVE_INFINITY);
        }
        count++;
      }
    }
    if (count == 0) {
      return;
    }
    scratch.set(Segments.LONG, work + l.keys, kv.memory().address() + kv.keys());
    scratch.set(Segments.LONG, work + l.values, kv.memory().address() + kv.values());
    // All rows of a segment in one call, or, of a row, the parts of each segment.
    int together = count / tile.segments();
    scratch.set(Segments.LONG, work + l.entryCount, together);
    for (int s = 0; s < tile.segments(); s++) {
      boolean one = tile.segments() == 1;
      scratch.set(Segments.LONG, work + l.from, one ? from : tile.from(s));
      scratch.set(Segments.LONG, work + l.to, one ? to : tile.to(s));
      long entry = table + (long) s * together * Layout.ENTRY_BYTES;
      scratch.set(Segments.LONG, work + l.entries, base + entry);
      X86Code.call(code.attend, base + work, 0, 0, 0, 0);
    }
    count = 0;
    for (int r = 0; r < tile.rows(); r++) {
      for (int p = 0; p < parts && tile.from(r) < tile.to(r); p++) {
        int head = Math.min(p * l.heads, group - l.heads);
        long state = (results + (long) count * l.stateBytes()) / 4;
        copy(spec, scratch, state, l.heads, states, tile.state(r), head);
        count++;
      }
    }
  }

  private static void empty(AttentionSpec spec, MemorySegment states, long state) {
    Segments.zero(states, state, spec.group() * (2L + spec.valueDim()));
    for (int h = 0; h < spec.group(); h++) {
      Segments.f32(states, state + h, Float.NEGATIVE_INFINITY);
    }
  }

  /** Copies the state of a part to where it belongs in that of the group. */
  private static void copy(
      AttentionSpec spec,
      MemorySegment from,
      long part,
      int heads,
      MemorySegment states,
      long state,
      int head) {
    int group = spec.group();
    for (int h = 0; h < heads; h++) {
      Segments.f32(states, state + head + h, Segments.f32(from, part + h));
      float sum = Segments.f32(from, part + Layout.STATE_SUMS + h);
      Segments.f32(states, state + group + head + h, sum);
    }
    MemorySegment.copy(
        from,
        4 * (part + Layout.STATE_VALUES),
        states,
        4 * (state + 2L * group + (long) head * spec.valueDim()),
        4L * heads * spec.valueDim());
  }
}
