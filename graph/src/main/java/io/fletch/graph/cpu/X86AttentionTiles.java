package io.fletch.graph.cpu;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.cpu.x86.AttentionTileCode;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.MemorySegment;
import java.util.Objects;

/**
 * Attention of the rows of a tile together, in machine code ({@link AttentionTileCode}): every
 * chunk of keys and values is widened once, then blocks of queries take it in turn.
 */
final class X86AttentionTiles {
  /** Functions and what they were emitted for. */
  private record Entry(
      KvCache.Type type,
      int keyDim,
      int valueDim,
      boolean capped,
      boolean mixed,
      MemorySegment widen,
      MemorySegment queries,
      MemorySegment[] weights,
      MemorySegment[] results)
      implements X86AttentionTable.Entry {
    @Override
    public boolean fits(AttentionSpec spec, KvCache.Type type, int heads) {
      return this.type == type
          && keyDim == spec.keyDim()
          && valueDim == spec.valueDim()
          && capped == (spec.softCap() != 0f)
          && mixed == mixesRows(spec);
    }
  }

  private static final int LEAST_ROWS = 4;
  private static final int LEAST_QUERIES = 6;

  private final Isa isa;

  /** Queries of a vector. */
  private final int lanes;

  /** Queries of a block. */
  private final int blockLanes;

  private final X86AttentionTable<Entry> functions = new X86AttentionTable<>(this::emit);

  X86AttentionTiles(Isa isa) {
    this.isa = isa;
    this.lanes = isa.lanes();
    this.blockLanes = AttentionTileCode.MAX_VECTORS * lanes;
  }

  /** Whether queries that are taken together may be of several rows. */
  private static boolean mixesRows(AttentionSpec spec) {
    return spec.group() % AttentionTileCode.QUAD != 0;
  }

  private Entry emit(AttentionSpec spec, KvCache.Type type, int heads) {
    int keyDim = spec.keyDim();
    int valueDim = spec.valueDim();
    boolean capped = spec.softCap() != 0f;
    boolean mixed = mixesRows(spec);
    MemorySegment widen =
        X86Code.function(
            "attention widen " + type + " " + isa.label(),
            () -> AttentionTileCode.emitWiden(type, isa));
    MemorySegment queries =
        X86Code.function(
            "attention queries " + keyDim + " " + isa.label(),
            () -> AttentionTileCode.emitQueries(keyDim, isa));
    MemorySegment[] weights = new MemorySegment[AttentionTileCode.MAX_VECTORS];
    MemorySegment[] results = new MemorySegment[AttentionTileCode.MAX_VECTORS];
    for (int i = 0; i < AttentionTileCode.MAX_VECTORS; i++) {
      int vectors = i + 1;
      String name = " vectors=" + vectors + " " + isa.label();
      weights[i] =
          X86Code.function(
              "attention weights " + keyDim + (capped ? " capped" : "") + name,
              () -> AttentionTileCode.emitWeights(keyDim, vectors, capped, isa));
      results[i] =
          X86Code.function(
              "attention results " + valueDim + (mixed ? " mixed" : "") + name,
              () -> AttentionTileCode.emitResults(valueDim, vectors, mixed, isa));
    }
    return new Entry(type, keyDim, valueDim, capped, mixed, widen, queries, weights, results);
  }

  /** Whether rows of a tile are done faster together than one by one: measured. */
  static boolean pays(AttentionSpec spec, AttentionTile tile) {
    int rows = tile.segments() == 1 ? tile.rows() : 1;
    return rows >= LEAST_ROWS && rows * spec.group() >= LEAST_QUERIES;
  }

  /** Floats of scratch memory for a full tile. */
  int scratchFloats(AttentionSpec spec) {
    int blocks = (AttentionTile.ROWS * spec.group() + blockLanes - 1) / blockLanes;
    int blockBytes = AttentionTileCode.blockBytes(spec.keyDim(), isa);
    int shared = AttentionTileCode.sharedBytes(spec.keyDim(), spec.valueDim());
    return Math.addExact(shared, Math.multiplyExact(blocks, blockBytes)) / Float.BYTES;
  }

  /** See {@link Kernels#attention}. */
  void run(AttentionSpec spec, AttentionTile tile, KvRun kv, MemorySegment scratch) {
    check(spec, tile, kv, scratch);
    final KvCache.Type type = kv.type();
    final Entry code = functions.get(spec, type, AttentionTileCode.QUAD);
    final int keyDim = spec.keyDim();
    final int valueDim = spec.valueDim();
    final long keyBytes = KvLayout.bytes(type, keyDim);
    final long valueBytes = KvLayout.bytes(type, valueDim);
    final long keys = kv.memory().address() + kv.keys();
    final long values = kv.memory().address() + kv.values();
    final long elements = scratch.address() + AttentionTileCode.ELEMENTS;
    final long blocks = AttentionTileCode.sharedBytes(keyDim, valueDim);
    final long blockBytes = AttentionTileCode.blockBytes(keyDim, isa);
    final int queries = tile.rows() * spec.group();
    scratch.set(Segments.FLOAT, AttentionTileCode.SCALE, spec.scale());
    scratch.set(Segments.FLOAT, AttentionTileCode.CAP, spec.softCap());
    for (int first = 0; first < queries; first += blockLanes) {
      long block = blocks + first / blockLanes * blockBytes;
      begin(spec, tile, code, first, scratch, block);
    }
    // A number, not an end: behind the last chunk there may be no int.
    int firstChunk = tile.start() / AttentionTileCode.CHUNK;
    int chunks = tile.start() < tile.end() ? (tile.end() - 1) / AttentionTileCode.CHUNK + 1 : 0;
    for (int chunk = firstChunk; chunk < chunks; chunk++) {
      int at = chunk * AttentionTileCode.CHUNK;
      int from = from(tile, at, 0, tile.rows());
      int to = to(tile, at, 0, tile.rows());
      if (from >= to) {
        continue;
      }
      X86Code.call(
          code.widen,
          keys + (at + from) * keyBytes,
          elements + 4L * from * keyDim,
          (long) (to - from) * keyDim,
          0,
          0);
      for (int first = 0; first < queries; first += blockLanes) {
        long block = blocks + first / blockLanes * blockBytes;
        see(tile, spec.group(), at, first, scratch, block);
        run(code.weights, queries, first, scratch, block);
      }
      X86Code.call(
          code.widen,
          values + (at + from) * valueBytes,
          elements + 4L * from * valueDim,
          (long) (to - from) * valueDim,
          0,
          0);
      for (int first = 0; first < queries; first += blockLanes) {
        long block = blocks + first / blockLanes * blockBytes;
        run(code.results, queries, first, scratch, block);
      }
    }
    for (int i = 0; i < queries; i++) {
      long block = blocks + i / blockLanes * blockBytes + Float.BYTES * (i % blockLanes);
      long state = tile.state(i / spec.group()) + i % spec.group();
      float maximum = scratch.get(Segments.FLOAT, block + AttentionTileCode.MAXIMA);
      Segments.f32(tile.states(), state, maximum);
      float sum = scratch.get(Segments.FLOAT, block + AttentionTileCode.SUMS);
      Segments.f32(tile.states(), state + spec.group(), sum);
    }
  }

  private void check(AttentionSpec spec, AttentionTile tile, KvRun kv, MemorySegment scratch) {
    X86Attention.checkPositions(spec, kv, tile.start(), tile.end());
    long queryBytes = 4L * spec.group() * spec.keyDim();
    long stateBytes = 4L * spec.group() * (2 + spec.valueDim());
    for (int r = 0; r < tile.rows(); r++) {
      Objects.checkFromIndexSize(4 * tile.query(r), queryBytes, tile.queries().byteSize());
      Objects.checkFromIndexSize(4 * tile.state(r), stateBytes, tile.states().byteSize());
    }
    Objects.checkFromIndexSize(0, 4L * scratchFloats(spec), scratch.byteSize());
  }

  /** Vectors of the block that begins with a query. */
  private int vectors(int queries, int first) {
    return (Math.min(queries - first, blockLanes) + lanes - 1) / lanes;
  }

  /**
   * Lays out the queries of a block and starts its sums; what is left of the last vector repeats
   * the last query, to the same result.
   */
  private void begin(
      AttentionSpec spec,
      AttentionTile tile,
      Entry code,
      int first,
      MemorySegment scratch,
      long block) {
    final MemorySegment q = tile.queries();
    final MemorySegment states = tile.states();
    int group = spec.group();
    int queries = tile.rows() * group;
    int vectors = vectors(queries, first);
    for (int i = 0; i < vectors * lanes; i++) {
      int query = Math.min(first + i, queries - 1);
      long at = tile.query(query / group) + (long) (query % group) * spec.keyDim();
      scratch.set(Segments.LONG, block + AttentionTileCode.POINTERS + 8L * i, q.address() + 4 * at);
    }
    X86Code.call(code.queries, scratch.address() + block, vectors, 0, 0, 0);
    for (int i = 0; i < vectors * lanes; i++) {
      int query = Math.min(first + i, queries - 1);
      long at = tile.state(query / group) + 2L * group + (long) (query % group) * spec.valueDim();
      scratch.set(
          Segments.LONG, block + AttentionTileCode.POINTERS + 8L * i, states.address() + 4 * at);
      Segments.zero(states, at, spec.valueDim());
      scratch.set(
          Segments.FLOAT, block + AttentionTileCode.MAXIMA + 4L * i, Float.NEGATIVE_INFINITY);
      scratch.set(Segments.FLOAT, block + AttentionTileCode.SUMS + 4L * i, 0f);
    }
    int used = Math.min(queries - first, blockLanes);
    long quads = (used + AttentionTileCode.QUAD - 1) / AttentionTileCode.QUAD;
    scratch.set(Segments.LONG, block + AttentionTileCode.QUADS, quads);
  }

  /** Says in a block which positions of a chunk its queries see. */
  private void see(
      AttentionTile tile, int group, int at, int first, MemorySegment scratch, long block) {
    int queries = tile.rows() * group;
    int firstRow = first / group;
    int endRow = (Math.min(first + blockLanes, queries) - 1) / group + 1;
    boolean ragged = false;
    for (int r = firstRow; r < endRow; r++) {
      ragged |= tile.from(r) > at || tile.to(r) - at < AttentionTileCode.CHUNK;
    }
    int from = from(tile, at, firstRow, endRow);
    int to = to(tile, at, firstRow, endRow);
    scratch.set(Segments.LONG, block + AttentionTileCode.SEEN_FROM, from);
    scratch.set(Segments.LONG, block + AttentionTileCode.SEEN_TO, to);
    scratch.set(Segments.LONG, block + AttentionTileCode.RAGGED, ragged ? 1 : 0);
    if (!ragged) {
      return;
    }
    for (int i = 0; i < vectors(queries, first) * lanes; i++) {
      int row = Math.min(first + i, queries - 1) / group;
      from = inChunk(tile.from(row) - at);
      to = inChunk(tile.to(row) - at);
      scratch.set(Segments.INT, block + AttentionTileCode.FROM + 4L * i, from);
      scratch.set(Segments.INT, block + AttentionTileCode.TO + 4L * i, to);
    }
  }

  private void run(
      MemorySegment[] code, int queries, int first, MemorySegment scratch, long block) {
    long address = scratch.address();
    X86Code.call(code[vectors(queries, first) - 1], address + block, address, 0, 0, 0);
  }

  private static int inChunk(int position) {
    return Math.clamp(position, 0, AttentionTileCode.CHUNK);
  }

  /** First position of a chunk that any of the rows sees; 64 if none sees any. */
  private static int from(AttentionTile tile, int at, int firstRow, int endRow) {
    int from = AttentionTileCode.CHUNK;
    for (int r = firstRow; r < endRow; r++) {
      if (tile.from(r) < tile.to(r) && tile.to(r) > at) {
        from = Math.min(from, inChunk(tile.from(r) - at));
      }
    }
    return from;
  }

  private static int to(AttentionTile tile, int at, int firstRow, int endRow) {
    int to = 0;
    for (int r = firstRow; r < endRow; r++) {
      if (tile.from(r) < tile.to(r) && tile.from(r) - at < AttentionTileCode.CHUNK) {
        to = Math.max(to, inChunk(tile.to(r) - at));
      }
    }
    return to;
  }
}
