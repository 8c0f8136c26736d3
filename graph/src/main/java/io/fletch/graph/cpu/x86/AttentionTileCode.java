package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Opmask;
import io.fletch.ffm.x86.Vec;
import io.fletch.ffm.x86.Xmm;
import io.fletch.graph.KvCache;
import java.util.function.IntConsumer;

/**
 * Attention of many queries, the heads of several rows, over chunks of positions that they share,
 * in the order of operations of the scalar kernel. A lane is a query, whatever row and head it
 * belongs to: sums of products, maxima and sums of weights of all lanes go side by side and nothing
 * is added across a vector. Keys and values are widened once for all of them ({@link #emitWiden}),
 * queries are laid out {@code [element][lane]} once ({@link #emitQueries}). It takes the heads that
 * {@link AttentionCode} takes.
 *
 * <p>What {@link #emitWeights} and {@link #emitResults} work on are a block, the queries of one or
 * two vectors with their scores ({@link #blockBytes}), and memory that blocks share ({@link
 * #sharedBytes}): keys or values of a chunk as float32 and room to work. Results are taken in quads
 * of queries; each lies where its pointer in the block says.
 */
public final class AttentionTileCode {
  /** Positions of a chunk. */
  public static final int CHUNK = SoftmaxCode.CHUNK;

  /** Vectors of a block at most. */
  public static final int MAX_VECTORS = 2;

  /** Queries whose results are in registers together. */
  public static final int QUAD = 4;

  private static final int ARRAY_BYTES = MAX_VECTORS * 64;

  /** Byte offset in a block of its maxima, float32 like the sums; -inf before the first chunk. */
  public static final int MAXIMA = 0;

  /** Byte offset in a block of its sums of weights; 0 before the first chunk. */
  public static final int SUMS = MAXIMA + ARRAY_BYTES;

  private static final int FACTORS = SUMS + ARRAY_BYTES;

  /**
   * Byte offset in a block of the first position of the chunk that each query sees, int32, 0 to 64;
   * read where the block is {@link #RAGGED}.
   */
  public static final int FROM = FACTORS + ARRAY_BYTES;

  /** Byte offset in a block of the end of the positions that each query sees, int32, from to 64. */
  public static final int TO = FROM + ARRAY_BYTES;

  /** Byte offset in a block of the addresses of unnormalised results, int64. */
  public static final int POINTERS = TO + ARRAY_BYTES;

  /** Byte offset in a block of the number of its quads, int64. */
  public static final int QUADS = POINTERS + 2 * ARRAY_BYTES;

  /** Byte offset in a block of the first position of the chunk that a query sees, int64. */
  public static final int SEEN_FROM = QUADS + 8;

  /** Byte offset in a block of the end of the positions that a query sees, int64; 0 for none. */
  public static final int SEEN_TO = QUADS + 16;

  /** Byte offset in a block of 0 where all queries see the whole chunk, else 1, int64. */
  public static final int RAGGED = QUADS + 24;

  /** Byte offset in a block of scores and then weights, {@code [CHUNK][vector][lane]}. */
  private static final int SCORES = QUADS + 64;

  /** Byte offset in a block of its queries, {@code [vector][element][lane]}. */
  private static final int QUERIES = SCORES + CHUNK * ARRAY_BYTES;

  /** Byte offset in the shared memory of what scores are multiplied by. */
  public static final int SCALE = 0;

  /** Byte offset in the shared memory of the soft cap of scores. */
  public static final int CAP = 4;

  /** Sums of products, of some positions and vectors, that are not in registers. */
  private static final int SPILL = 64;

  /** Sums of the weights of positions eight apart. */
  private static final int PARTIAL = SPILL + 1024;

  /**
   * Byte offset in the shared memory of the keys of the chunk, {@code [CHUNK][keyDim]}, and then
   * its values, {@code [CHUNK][valueDim]}: what was just there is in the level-1 cache.
   */
  public static final int ELEMENTS = PARTIAL + 8 * ARRAY_BYTES;

  /** Elements of a partial sum that are not in a loop, at most. */
  private static final int UNROLLED = 8;

  private static final Gpr BLOCK = Gpr.RDI;
  private static final Gpr SHARED = Gpr.RSI;
  private static final Gpr FIRST = Gpr.RDX;
  private static final Gpr END = Gpr.RCX;
  private static final Gpr SOME_HIDDEN = Gpr.R8;
  private static final Gpr[] SAVED = {Gpr.RBX, Gpr.RBP, Gpr.R12, Gpr.R13, Gpr.R14, Gpr.R15};
  private static final Gpr[] RESULTS = {Gpr.R12, Gpr.R13, Gpr.R14, Gpr.R15};

  private final Assembler a = new Assembler();
  private final Lanes lanes;
  private final int bytes;

  /** Sums of products in work at a time: positions times vectors. */
  private final int tiles;

  private final int keyDim;
  private final int valueDim;
  private final int vectors;
  private final boolean capped;
  private final boolean mixed;

  /** Bytes of the scores of a position. */
  private final int scoreBytes;

  private AttentionTileCode(
      int keyDim, int valueDim, int vectors, boolean capped, boolean mixed, Isa isa) {
    this.keyDim = keyDim;
    this.valueDim = valueDim;
    this.vectors = vectors;
    this.capped = capped;
    this.mixed = mixed;
    this.bytes = isa.bytes();
    this.tiles = isa.bytes() / 8;
    this.lanes = new Lanes(a, isa);
    this.scoreBytes = vectors * bytes;
  }

  /** Bytes of a block, a multiple of 64. */
  public static int blockBytes(int keyDim, Isa isa) {
    return QUERIES + MAX_VECTORS * keyDim * isa.bytes();
  }

  /** Bytes of the memory that blocks share, a multiple of 64. */
  public static int sharedBytes(int keyDim, int valueDim) {
    return ELEMENTS + 4 * CHUNK * Math.max(keyDim, valueDim);
  }

  /**
   * Code of {@code void (long from, long to, long n)}: {@code n} elements of a cache, a multiple of
   * 16 above zero, as float32.
   */
  public static byte[] emitWiden(KvCache.Type type, Isa isa) {
    Assembler a = new Assembler();
    int elementBytes = type == KvCache.Type.F16 ? 2 : 4;
    Label loop = a.here();
    for (int i = 0; i < 16; i += isa.lanes()) {
      Vec x = Vec.of(isa.bytes(), i / isa.lanes());
      Mem from = Mem.of(Gpr.RDI, elementBytes * i);
      if (type == KvCache.Type.F16) {
        a.vcvtph2ps(x, from);
      } else {
        a.vmovups(x, from);
      }
      a.vmovups(Mem.of(Gpr.RSI, 4 * i), x);
    }
    a.add(Gpr.RDI, 16 * elementBytes);
    a.add(Gpr.RSI, 64);
    a.sub(Gpr.RDX, 16);
    a.jcc(Condition.G, loop);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /**
   * Code of {@code void (long block, long vectors)}: lays out the queries that the pointers of a
   * block name, all lanes of as many vectors.
   */
  public static byte[] emitQueries(int keyDim, Isa isa) {
    Assembler a = new Assembler();
    Gpr[] query = {Gpr.RAX, Gpr.RCX, Gpr.RDX, Gpr.R8};
    Gpr to = Gpr.R9;
    a.lea(to, Mem.of(Gpr.RDI, QUERIES));
    Label loop = a.here();
    for (int quad = 0; quad < isa.lanes(); quad += QUAD) {
      for (int i = 0; i < QUAD; i++) {
        a.mov(query[i], Mem.of(Gpr.RDI, POINTERS + 8 * (quad + i)));
      }
      a.lea(Gpr.R10, Mem.of(to, 4 * quad));
      a.mov(Gpr.R11, keyDim / 4);
      Label elements = a.here();
      for (int i = 0; i < QUAD; i++) {
        a.vmovups(Xmm.of(i), Mem.of(query[i]));
        a.add(query[i], 16);
      }
      a.vunpcklps(Xmm.XMM4, Xmm.XMM0, Xmm.XMM1);
      a.vunpckhps(Xmm.XMM5, Xmm.XMM0, Xmm.XMM1);
      a.vunpcklps(Xmm.XMM6, Xmm.XMM2, Xmm.XMM3);
      a.vunpckhps(Xmm.XMM7, Xmm.XMM2, Xmm.XMM3);
      for (int i = 0; i < QUAD; i++) {
        Xmm low = i < 2 ? Xmm.XMM4 : Xmm.XMM5;
        Xmm high = i < 2 ? Xmm.XMM6 : Xmm.XMM7;
        a.vshufps(Xmm.XMM0, low, high, i % 2 == 0 ? 0x44 : 0xee);
        a.vmovups(Mem.of(Gpr.R10, i * isa.bytes()), Xmm.XMM0);
      }
      a.add(Gpr.R10, QUAD * isa.bytes());
      a.dec(Gpr.R11);
      a.jcc(Condition.NE, elements);
    }
    a.add(Gpr.RDI, 8 * isa.lanes());
    a.add(to, keyDim * isa.bytes());
    a.dec(Gpr.RSI);
    a.jcc(Condition.NE, loop);
    a.ret();
    return a.assemble();
  }

  /**
   * Code of {@code void (long block, long shared)}: from the keys of a chunk, weights, maxima, sums
   * and factors of a block. Keys of positions that a query does not see are multiplied to no
   * effect.
   *
   * @param vectors vectors of queries of the block
   * @param capped whether scores have a soft cap
   */
  public static byte[] emitWeights(int keyDim, int vectors, boolean capped, Isa isa) {
    AttentionTileCode code = new AttentionTileCode(keyDim, 0, vectors, capped, false, isa);
    return code.function(code::weightsOfKeys);
  }

  /**
   * Code of {@code void (long block, long shared)}: from the weights and factors of a block and the
   * values of the chunk, the results. Values are multiplied for the queries that see them only.
   *
   * @param mixed whether queries of a quad may see different positions
   */
  public static byte[] emitResults(int valueDim, int vectors, boolean mixed, Isa isa) {
    AttentionTileCode code = new AttentionTileCode(0, valueDim, vectors, false, mixed, isa);
    return code.function(code::results);
  }

  private byte[] function(Runnable body) {
    Label nothing = a.label();
    a.mov(FIRST, Mem.of(BLOCK, SEEN_FROM));
    a.mov(END, Mem.of(BLOCK, SEEN_TO));
    a.cmp(FIRST, END);
    a.jcc(Condition.GE, nothing);
    a.mov(SOME_HIDDEN, Mem.of(BLOCK, RAGGED));
    a.pushAll(SAVED);
    body.run();
    a.popAll(SAVED);
    a.vzeroupper();
    a.bind(nothing);
    a.ret();
    return a.assemble();
  }

  private void weightsOfKeys() {
    scores();
    scale();
    Label full = a.label();
    a.test(SOME_HIDDEN, SOME_HIDDEN);
    a.jcc(Condition.E, full);
    hide();
    a.bind(full);
    weights();
  }

  // ---- scores

  private int positions() {
    return tiles / vectors;
  }

  private Vec tile(int set, int vector, int position) {
    return lanes.reg(tiles * set + vectors * position + vector);
  }

  private void scores() {
    final int together = positions();
    final Gpr key = Gpr.R9;
    final Gpr score = Gpr.R10;
    final Gpr left = Gpr.R11;
    a.mov(Gpr.RAX, FIRST);
    a.and(Gpr.RAX, -together);
    a.mov(left, END);
    a.sub(left, Gpr.RAX);
    a.imul(key, Gpr.RAX, 4 * keyDim);
    a.lea(key, Mem.of(SHARED, key, 1, ELEMENTS));
    a.imul(score, Gpr.RAX, scoreBytes);
    a.lea(score, Mem.of(BLOCK, score, 1, SCORES));
    Label loop = a.here();
    sum(0, 1, 0);
    for (int p = 0; p < together; p++) {
      for (int v = 0; v < vectors; v++) {
        a.vmovups(Mem.of(score, p * scoreBytes + v * bytes), tile(0, v, p));
      }
    }
    a.add(key, together * 4 * keyDim);
    a.add(score, together * scoreBytes);
    a.sub(left, together);
    a.jcc(Condition.G, loop);
  }

  /**
   * The products of the elements {@code i} with {@code i % step == first}, summed by halves of what
   * is left of sixteen. The registers hold the deepest sums only.
   */
  private void sum(int first, int step, int set) {
    if (step == 16) {
      products(first, set);
      return;
    }
    sum(first, 2 * step, set);
    boolean spilled = step < 4;
    if (spilled) {
      eachTile(set, (x, i) -> a.vmovups(spill(step, i), x));
    }
    sum(first + step, 2 * step, spilled ? set : set + 1);
    eachTile(set, (x, i) -> a.vaddps(x, x, spilled ? spill(step, i) : lanes.reg(x.code() + tiles)));
  }

  private interface Tile {
    void emit(Vec x, int index);
  }

  private void eachTile(int set, Tile body) {
    for (int i = 0; i < tiles; i++) {
      body.emit(lanes.reg(tiles * set + i), i);
    }
  }

  private Mem spill(int step, int index) {
    int level = Integer.numberOfTrailingZeros(step);
    return Mem.of(SHARED, SPILL + (level * tiles + index) * bytes);
  }

  private void products(int first, int set) {
    eachTile(set, (x, i) -> a.vxorps(x, x, x));
    int n = keyDim / 16;
    int unrolled = Math.min(n, UNROLLED);
    while (n % unrolled != 0) {
      unrolled--;
    }
    if (unrolled == n) {
      productsOf(Gpr.RDI, Gpr.R9, first, n, set);
      return;
    }
    Gpr query = Gpr.R12;
    Gpr key = Gpr.R13;
    Gpr left = Gpr.R14;
    a.mov(query, BLOCK);
    a.mov(key, Gpr.R9);
    a.mov(left, n / unrolled);
    Label loop = a.here();
    productsOf(query, key, first, unrolled, set);
    a.add(query, unrolled * 16 * bytes);
    a.add(key, unrolled * 64);
    a.dec(left);
    a.jcc(Condition.NE, loop);
  }

  private void productsOf(Gpr query, Gpr key, int first, int n, int set) {
    Vec[] q = {lanes.reg(bytes == 64 ? 24 : 12), lanes.reg(bytes == 64 ? 25 : 13)};
    int broadcast = bytes == 64 ? 26 : 14;
    for (int j = 0; j < n; j++) {
      int i = first + 16 * j;
      for (int v = 0; v < vectors; v++) {
        a.vmovups(q[v], Mem.of(query, QUERIES + (v * keyDim + i) * bytes));
      }
      for (int p = 0; p < positions(); p++) {
        Mem element = Mem.of(key, 4 * (p * keyDim + i));
        if (vectors == 1 && bytes == 64) {
          a.vfmadd231ps(tile(set, 0, p), q[0], element.each());
          continue;
        }
        Vec k = lanes.reg(broadcast + p % (bytes == 64 ? 4 : 2));
        a.vbroadcastss(k, element);
        for (int v = 0; v < vectors; v++) {
          a.vfmadd231ps(tile(set, v, p), q[v], k);
        }
      }
    }
  }

  // ---- softmax

  private Mem score(Gpr at, int position, int vector) {
    return Mem.of(at, SCORES + position * scoreBytes + vector * bytes);
  }

  private Mem lane(int array, int vector) {
    return Mem.of(BLOCK, array + vector * bytes);
  }

  /** Maxima so far, two for each vector. */
  private Vec maximum(int vector, int which) {
    return lanes.reg(8 + 2 * vector + which);
  }

  private void eachVector(IntConsumer body) {
    for (int v = 0; v < vectors; v++) {
      body.accept(v);
    }
  }

  private void startOfMaxima() {
    eachVector(v -> {
      a.vmovups(maximum(v, 0), lane(MAXIMA, v));
      a.vmovups(maximum(v, 1), maximum(v, 0));
    });
  }

  /** Scales and caps all scores and finds the maxima, if all positions are visible. */
  private void scale() {
    final Vec cap = lanes.reg(13);
    final Vec scale = lanes.reg(14);
    final int unrolled = capped ? 2 : 4;
    a.vbroadcastss(scale, Mem.of(SHARED, SCALE));
    if (capped) {
      a.vbroadcastss(cap, Mem.of(SHARED, CAP));
    }
    startOfMaxima();
    a.mov(Gpr.R9, BLOCK);
    a.mov(Gpr.RAX, CHUNK / unrolled);
    Label loop = a.here();
    for (int p = 0; p < unrolled; p++) {
      for (int v = 0; v < vectors; v++) {
        Vec x = lanes.reg(capped ? 0 : p % 2 * vectors + v);
        a.vmulps(x, scale, score(Gpr.R9, p, v));
        if (capped) {
          lanes.softCap(x, cap, lanes.reg(2), lanes.reg(3));
        }
        a.vmovups(score(Gpr.R9, p, v), x);
        // A NaN may get lost here: its weight is one, and through the sum the result.
        a.vmaxps(maximum(v, p % 2), maximum(v, p % 2), x);
      }
    }
    a.add(Gpr.R9, unrolled * scoreBytes);
    a.dec(Gpr.RAX);
    a.jcc(Condition.NE, loop);
  }

  /** Scores of positions that a query does not see become -inf, whose weight is 0. */
  private void hide() {
    final Vec infinity = lanes.reg(4);
    final Vec position = lanes.reg(5);
    final Vec one = lanes.reg(6);
    a.vmovups(infinity, lanes.all(Float.NEGATIVE_INFINITY));
    a.vxorps(position, position, position);
    a.vmovups(one, a.repeated(1, bytes));
    startOfMaxima();
    a.mov(Gpr.R9, BLOCK);
    a.mov(Gpr.RAX, CHUNK);
    Label loop = a.here();
    for (int v = 0; v < vectors; v++) {
      Vec x = lanes.reg(v);
      Vec from = lanes.reg(2);
      Vec to = lanes.reg(3);
      a.vmovups(x, score(Gpr.R9, 0, v));
      if (bytes == 64) {
        a.vmovups(from, lane(FROM, v));
        a.vpcmpd(Opmask.K1, position, lane(TO, v), 1);
        a.masked(Opmask.K1);
        a.vpcmpd(Opmask.K2, from, position, 2);
        a.masked(Opmask.K2);
        a.vblendmps(x, infinity, x);
      } else {
        a.vmovups(from, lane(FROM, v));
        a.vpcmpgtd(from, from, position);
        a.vmovups(to, lane(TO, v));
        a.vpcmpgtd(to, to, position);
        a.vandnps(to, from, to);
        a.vblendvps(x, infinity, x, to);
      }
      a.vmovups(score(Gpr.R9, 0, v), x);
      a.vmaxps(maximum(v, 0), maximum(v, 0), x);
    }
    a.vpaddd(position, position, one);
    a.add(Gpr.R9, scoreBytes);
    a.dec(Gpr.RAX);
    a.jcc(Condition.NE, loop);
  }

  /** Scores to weights; maxima, sums and the factors for what was there before. */
  private void weights() {
    final Vec infinity = lanes.reg(4);
    final Vec t = lanes.reg(5);
    a.vmovups(infinity, lanes.all(Float.NEGATIVE_INFINITY));
    for (int v = 0; v < vectors; v++) {
      Vec max = maximum(v, 0);
      a.vmaxps(max, max, maximum(v, 1));
      Vec factor = lanes.reg(0);
      a.vmovups(factor, lane(MAXIMA, v));
      a.vmovups(lane(MAXIMA, v), max);
      // All scores -inf: nothing to subtract from.
      if (bytes == 64) {
        a.vcmpps(Opmask.K1, max, infinity, 4);
        a.zeroed(Opmask.K1);
        a.vmovups(max, max);
      } else {
        a.vcmpps(t, max, infinity, 0);
        a.vandnps(max, t, max);
      }
      a.vsubps(factor, factor, max);
      lanes.weight(factor, lanes.reg(12), lanes.reg(13), lanes.reg(14));
      a.vmovups(lane(FACTORS, v), factor);
    }
    a.mov(Gpr.R9, BLOCK);
    a.mov(Gpr.R10, SHARED);
    a.mov(Gpr.RAX, 8);
    Label loop = a.here();
    for (int v = 0; v < vectors; v++) {
      sumOfWeights(0, 8, v, 0);
      a.vmovups(Mem.of(Gpr.R10, PARTIAL + v * bytes), lanes.reg(0));
    }
    a.add(Gpr.R9, scoreBytes);
    a.add(Gpr.R10, scoreBytes);
    a.dec(Gpr.RAX);
    a.jcc(Condition.NE, loop);
    for (int v = 0; v < vectors; v++) {
      sumOfPartials(0, 1, v, 0);
      Vec total = lanes.reg(0);
      a.vmovups(t, lane(SUMS, v));
      a.vfmadd231ps(total, t, lane(FACTORS, v));
      a.vmovups(lane(SUMS, v), total);
    }
  }

  /**
   * Turns the scores of the positions {@code first, first + step, ...} of what {@code R9} points to
   * into weights, and sums them into the register {@code to}: positions 32 apart first, then 16 and
   * so on.
   */
  private void sumOfWeights(int first, int step, int vector, int to) {
    Vec x = lanes.reg(to);
    if (step < CHUNK) {
      sumOfWeights(first, 2 * step, vector, to);
      sumOfWeights(first + step, 2 * step, vector, to + 1);
      a.vaddps(x, x, lanes.reg(to + 1));
      return;
    }
    a.vmovups(x, score(Gpr.R9, first, vector));
    a.vsubps(x, x, maximum(vector, 0));
    lanes.weight(x, lanes.reg(12), lanes.reg(13), lanes.reg(14));
    a.vmovups(score(Gpr.R9, first, vector), x);
  }

  private void sumOfPartials(int first, int step, int vector, int to) {
    Vec x = lanes.reg(to);
    if (step < 8) {
      sumOfPartials(first, 2 * step, vector, to);
      sumOfPartials(first + step, 2 * step, vector, to + 1);
      a.vaddps(x, x, lanes.reg(to + 1));
      return;
    }
    a.vmovups(x, Mem.of(SHARED, PARTIAL + first * scoreBytes + vector * bytes));
  }

  // ---- results

  private static final Gpr QUADS_LEFT = Gpr.RBX;

  /** Sixteen bytes for each quad in front. */
  private static final Gpr QUAD_OFFSET = Gpr.RBP;

  private static final Gpr COLUMN = Gpr.R9;
  private static final Gpr VALUE = Gpr.R10;
  private static final Gpr WEIGHT = Gpr.RAX;
  private static final Gpr COUNT = Gpr.R11;

  private Mem quad(int array, int query) {
    return Mem.of(BLOCK, QUAD_OFFSET, 1, array + 4 * query);
  }

  /** Adds the weighted values of the chunk to the results, quad by quad. */
  private void results() {
    a.mov(QUADS_LEFT, Mem.of(BLOCK, QUADS));
    a.xor32(QUAD_OFFSET, QUAD_OFFSET);
    Label loop = a.here();
    for (int i = 0; i < QUAD; i++) {
      a.mov(RESULTS[i], Mem.of(BLOCK, QUAD_OFFSET, 2, POINTERS + 8 * i));
    }
    Label full = a.label();
    a.xor32(FIRST, FIRST);
    a.mov(END, CHUNK);
    a.test(SOME_HIDDEN, SOME_HIDDEN);
    a.jcc(Condition.E, full);
    commonPositions();
    a.bind(full);
    // As many as registers hold, and no pass with much fewer than others: few sums in work at a
    // time wait for each other.
    int columns = 4 * valueDim / bytes;
    int most = lanes.parts == 1 ? 4 : 3;
    int passes = (columns + most - 1) / most;
    int narrow = columns / passes;
    int wide = columns % passes;
    a.xor32(COLUMN, COLUMN);
    passes(wide, narrow + 1, 0);
    passes(passes - wide, narrow, wide * (narrow + 1));
    a.add(QUAD_OFFSET, 4 * QUAD);
    a.dec(QUADS_LEFT);
    a.jcc(Condition.NE, loop);
  }

  /** The positions that all of a quad see, between {@code FIRST} and {@code END}; may be none. */
  private void commonPositions() {
    a.movsxd(FIRST, quad(FROM, 0));
    a.movsxd(END, quad(TO, 0));
    if (!mixed) {
      return;
    }
    for (int i = 1; i < QUAD; i++) {
      a.movsxd(Gpr.RAX, quad(FROM, i));
      a.cmp(FIRST, Gpr.RAX);
      a.cmov(Condition.L, FIRST, Gpr.RAX);
      a.movsxd(Gpr.RAX, quad(TO, i));
      a.cmp(END, Gpr.RAX);
      a.cmov(Condition.G, END, Gpr.RAX);
    }
    a.cmp(END, FIRST);
    a.cmov(Condition.L, END, FIRST);
  }

  private void passes(int times, int columns, int from) {
    if (times == 0) {
      return;
    }
    Label loop = a.here();
    pass(columns);
    a.add(COLUMN, columns * bytes);
    a.cmp(COLUMN, (from + times * columns) * bytes);
    a.jcc(Condition.L, loop);
  }

  private Vec sumOf(int count, int query, int column) {
    return lanes.reg(count * query + column);
  }

  /** As many columns of the results as registers hold. */
  private void pass(int count) {
    Vec factor = lanes.reg(QUAD * count);
    for (int i = 0; i < QUAD; i++) {
      a.vbroadcastss(factor, quad(FACTORS, i));
      for (int c = 0; c < count; c++) {
        a.vmulps(sumOf(count, i, c), factor, Mem.of(RESULTS[i], COLUMN, 1, c * bytes));
      }
    }
    Label full = a.label();
    Label done = a.label();
    if (mixed) {
      a.test(SOME_HIDDEN, SOME_HIDDEN);
      a.jcc(Condition.E, full);
      for (int i = 0; i < QUAD; i++) {
        a.movsxd(COUNT, quad(TO, i));
        a.cmp(COUNT, FIRST);
        a.cmov(Condition.G, COUNT, FIRST);
        a.movsxd(WEIGHT, quad(FROM, i));
        positions(count, i, i + 1);
      }
      a.bind(full);
    }
    a.mov(COUNT, END);
    a.mov(WEIGHT, FIRST);
    positions(count, 0, QUAD);
    if (mixed) {
      a.test(SOME_HIDDEN, SOME_HIDDEN);
      a.jcc(Condition.E, done);
      for (int i = 0; i < QUAD; i++) {
        a.movsxd(COUNT, quad(TO, i));
        a.movsxd(WEIGHT, quad(FROM, i));
        a.cmp(WEIGHT, END);
        a.cmov(Condition.L, WEIGHT, END);
        positions(count, i, i + 1);
      }
      a.bind(done);
    }
    for (int i = 0; i < QUAD; i++) {
      for (int c = 0; c < count; c++) {
        a.vmovups(Mem.of(RESULTS[i], COLUMN, 1, c * bytes), sumOf(count, i, c));
      }
    }
  }

  /** The positions from {@code WEIGHT} to {@code COUNT}, which both are overwritten. */
  private void positions(int count, int firstQuery, int endQuery) {
    int unrolled = endQuery - firstQuery == QUAD ? 4 : 1;
    Label single = a.label();
    Label done = a.label();
    a.sub(COUNT, WEIGHT);
    a.imul(VALUE, WEIGHT, 4 * valueDim);
    a.add(VALUE, COLUMN);
    a.lea(VALUE, Mem.of(SHARED, VALUE, 1, ELEMENTS));
    a.imul(WEIGHT, WEIGHT, scoreBytes);
    a.add(WEIGHT, QUAD_OFFSET);
    a.lea(WEIGHT, Mem.of(BLOCK, WEIGHT, 1, SCORES));
    if (unrolled > 1) {
      a.sub(COUNT, unrolled);
      a.jcc(Condition.L, single);
      Label loop = a.here();
      for (int p = 0; p < unrolled; p++) {
        position(count, firstQuery, endQuery, p);
      }
      a.add(VALUE, unrolled * 4 * valueDim);
      a.add(WEIGHT, unrolled * scoreBytes);
      a.sub(COUNT, unrolled);
      a.jcc(Condition.GE, loop);
      a.bind(single);
      a.add(COUNT, unrolled);
    } else {
      a.test(COUNT, COUNT);
    }
    a.jcc(Condition.LE, done);
    Label loop = a.here();
    position(count, firstQuery, endQuery, 0);
    a.add(VALUE, 4 * valueDim);
    a.add(WEIGHT, scoreBytes);
    a.dec(COUNT);
    a.jcc(Condition.NE, loop);
    a.bind(done);
  }

  private void position(int count, int firstQuery, int endQuery, int at) {
    int base = QUAD * count;
    for (int c = 0; c < count; c++) {
      a.vmovups(lanes.reg(base + c), Mem.of(VALUE, at * 4 * valueDim + c * bytes));
    }
    for (int i = firstQuery; i < endQuery; i++) {
      Vec weight = lanes.reg(base + count + i % (lanes.parts == 1 ? QUAD : 1));
      a.vbroadcastss(weight, Mem.of(WEIGHT, at * scoreBytes + 4 * i));
      for (int c = 0; c < count; c++) {
        a.vfmadd231ps(sumOf(count, i, c), weight, lanes.reg(base + c));
      }
    }
  }
}
