package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.B16;
import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Gate;
import io.fletch.graph.KvCache;
import java.util.Optional;

/**
 * Attention on tensor cores over F16 and Q8_0 caches. A warp takes sixteen queries that share a
 * head of keys and values: the heads of one row, or of several rows. It runs over tiles of sixteen
 * slots; a tile's keys and values are read once for all its queries.
 *
 * <p>Slots are cut into at most {@link #PIECES} pieces of equal size, at least {@link #LEAST}
 * slots, a power of two that depends on the cache's capacity alone. With few rows each piece is a
 * warp's ({@link #split}); with many rows a warp takes its pieces one after the other ({@link
 * #whole}). {@link #combine} adds the pieces in their order. Both do the same operations for a
 * query, so that its result has the same bits whatever the number of rows, and does not depend on
 * queries beside it: what a query does not see adds exactly nothing, and if a value that only
 * others see is no number, rows are run again one by one.
 *
 * <p>That pieces can be added late rests on the running maximum: it is rounded up to a power of
 * two, so that all that is ever rescaled is so exactly.
 *
 * <p>Queries are two halves each after a power of two per query (22 bits), keys and values are the
 * cache's own numbers, and so are weights two halves each; sums are float. Blocks of Q8_0 give
 * their scale to the scores, and to the weights before these are cut.
 *
 * <p>The order of slots is that of the sequence: rows of a window that lies elsewhere in the cache
 * come where their positions say, if these are free.
 */
final class AttentionTiles {
  static final int PIECES = 64;
  private static final int LEAST = 64;

  /** Slots of a tile and queries of a warp. */
  static final int TILE = 16;

  private static final int SHARED = 48 << 10;
  private static final float NOTHING = -1e30f;

  /** Bits of positive infinity; those of NaN are larger. */
  private static final long INFINITY = 0x7f800000L;

  private static final float LOG2E = 1.4426950408889634f;

  private final Control control;
  private final Emitter emit;
  private final AttentionSpec spec;
  private final KvCache.Type type;
  private final int window;
  private final int keysBefore;
  private final Optional<Gate> gate;

  /** Query heads per head of keys. */
  private final int group;

  /**
   * Warps that share the elements of values, and the elements of each: as many as registers hold.
   */
  private final int shares;

  private final int width;
  private final int keyRow;
  private final int valueRow;
  private final int queryStride;
  private final int valueStride;

  private PtxKernel k;
  private PtxRegister block;
  private PtxRegister lane;
  private PtxRegister g;
  private PtxRegister t;
  private PtxRegister kvHead;

  /** Which elements of values the warp has. */
  private PtxRegister share;

  private PtxRegister queries;
  private PtxRegister values;
  private PtxRegister keyBase;
  private PtxRegister valueBase;
  private PtxRegister capacity;

  /** Of the lane's two queries: ranges [query][from, to, from, to, from, to], factor. */
  private PtxRegister[][] ranges;

  private PtxRegister[] factor;
  private PtxRegister[] most;
  private PtxRegister[] total;
  private PtxRegister[][] sums;

  /** Where slots of a row that lies elsewhere come in the order: first, end, and the distance. */
  private PtxRegister movedFrom;

  private PtxRegister movedTo;
  private PtxRegister moved;

  AttentionTiles(
      Control control,
      Emitter emit,
      AttentionSpec spec,
      KvCache.Type type,
      int window,
      int keysBefore,
      Optional<Gate> gate) {
    this.control = control;
    this.emit = emit;
    this.spec = spec;
    this.type = type;
    this.window = window;
    this.keysBefore = keysBefore;
    this.gate = gate;
    group = spec.heads() / spec.kvHeads();
    keyRow = Emitter.kvBytes(type, spec.kvHeads() * spec.keyDim());
    valueRow = Emitter.kvBytes(type, spec.kvHeads() * spec.valueDim());
    queryStride = 2 * (spec.keyDim() + 8);
    shares = shares(spec, type);
    width = spec.valueDim() / shares;
    valueStride = 2 * (width + 8);
  }

  /** Whether there are kernels for a shape. */
  static boolean takes(AttentionSpec spec, KvCache.Type type, int keysBefore) {
    return type != KvCache.Type.F32
        && spec.keyDim() % 32 == 0
        && spec.valueDim() % (32 * shares(spec, type)) == 0
        && spec.keyDim() <= 256
        && spec.valueDim() <= 256
        && (type == KvCache.Type.Q8_0 || keysBefore % 16 == 0);
  }

  private static int shares(AttentionSpec spec, KvCache.Type type) {
    int most = type == KvCache.Type.Q8_0 && spec.keyDim() > 128 ? 64 : 128;
    return (spec.valueDim() + most - 1) / most;
  }

  /** Bytes of the sums of a query over a piece: maximum, total, 8 unused, elements. */
  static int partBytes(AttentionSpec spec) {
    return 4 * (spec.valueDim() + 4);
  }

  /** Bytes of all parts of so many rows. */
  static long scratch(AttentionSpec spec, int rows) {
    long few = Math.min(rows, Products.FEW) * (long) PIECES;
    return Math.max(few, rows) * spec.heads() * partBytes(spec);
  }

  /** Warps of sixteen heads that the queries of a row and a head of keys take. */
  private int headTiles() {
    return (group + TILE - 1) / TILE;
  }

  private int queryBytes() {
    // Upper and lower parts, and the sizes of the queries.
    return 2 * TILE * queryStride + 4 * TILE;
  }

  private int warps(boolean split) {
    int bytes = queryBytes() + TILE * valueStride + (split ? 0 : 4 * TILE * width);
    return bytes * 4 <= SHARED ? 4 : bytes * 2 <= SHARED ? 2 : 1;
  }

  /** Blocks of {@link #split} in x direction; in y direction there are the rows. */
  int splitBlocks() {
    return spec.kvHeads() * shares * headTiles() * (PIECES / warps(true));
  }

  /** Blocks of {@link #whole} in x direction. */
  int wholeAcross() {
    return spec.kvHeads() * shares;
  }

  /** Blocks of {@link #whole} in y direction. */
  int wholeBlocks(int rows) {
    int tiles = (rows * group + TILE - 1) / TILE;
    return (tiles + warps(false) - 1) / warps(false);
  }

  private PtxRegister word(PtxRegister row, int offset) {
    return k.load(U32, k.address(block, row, 4), offset);
  }

  private PtxRegister range(PtxRegister row) {
    return k.address(block, row, Control.RANGE_BYTES);
  }

  private PtxRegister zero() {
    return k.constant(U32, 0);
  }

  private void begin(int warps) {
    k = new PtxKernel(32 * warps).resident(1);
    block = k.parameter(U64);
    PtxRegister thread = k.special("tid.x");
    lane = k.and(thread, 31);
    g = k.shr(lane, 2);
    t = k.and(lane, 3);
    PtxRegister warp = k.shr(thread, 5);
    queries = k.fma(warp, queryBytes(), k.shared(warps * queryBytes()));
    values = k.fma(warp, TILE * valueStride, k.shared(warps * TILE * valueStride));
  }

  /**
   * A piece of a row's slots per warp. Parameters: control, queries, parts of sums. Blocks as of
   * {@link #splitBlocks} by rows.
   */
  PtxKernel split() {
    int warps = warps(true);
    begin(warps);
    PtxRegister in = k.parameter(U64);
    PtxRegister out = k.parameter(U64);
    PtxRegister row = k.special("ctaid.y");
    k.when(k.compare("ge", row, k.load(U32, block, Control.ROWS)), k::exit);
    gate.ifPresent(x -> k.when(emit.skipped(k, block, row, x), k::exit));
    PtxRegister x = k.special("ctaid.x");
    PtxRegister unit = k.div(x, PIECES / warps);
    PtxRegister piece = k.fma(k.rem(x, PIECES / warps), warps, k.shr(k.special("tid.x"), 5));
    PtxRegister tile = k.div(unit, shares);
    share = k.rem(unit, shares);
    kvHead = k.div(tile, headTiles());
    PtxRegister head = k.mul(k.rem(tile, headTiles()), TILE);
    PtxRegister shift = cache(row);
    ranges = new PtxRegister[2][];
    for (int j = 0; j < 2; j++) {
      PtxRegister exists = k.compare("lt", k.add(k.add(head, g), 8 * j), group);
      ranges[j] = ranges(row, exists);
    }
    PtxRegister[] seen = seen();
    k.when(k.compare("ge", seen[0], seen[1]), k::exit);
    PtxRegister from = k.shl(piece, shift);
    k.when(k.compare("ge", from, seen[1]), k::exit);
    PtxRegister to = k.shl(k.add(piece, 1), shift);
    k.when(k.compare("le", to, seen[0]), k::exit);
    loadQueries(
        in,
        i -> {
          PtxRegister h = k.add(head, i);
          return new Query(row, h, k.compare("lt", h, group));
        });
    fresh();
    tiles(k.max(from, seen[0]), k.min(to, seen[1]));
    finishTotal();
    int bytes = partBytes(spec);
    for (int j = 0; j < 2; j++) {
      PtxRegister h = k.add(k.add(head, g), 8 * j);
      int q = j;
      k.when(
          k.compare("lt", h, group),
          () -> {
            PtxRegister of = k.fma(row, spec.heads(), k.fma(kvHead, group, h));
            write(k.address(out, k.fma(of, PIECES, piece), bytes), q, sums);
          });
    }
    return k;
  }

  /**
   * All pieces of sixteen queries per warp. Parameters: control, queries, parts of sums. Blocks:
   * {@link #wholeAcross} by {@link #wholeBlocks}.
   */
  PtxKernel whole() {
    int warps = warps(false);
    begin(warps);
    PtxRegister in = k.parameter(U64);
    PtxRegister out = k.parameter(U64);
    PtxRegister warp = k.shr(k.special("tid.x"), 5);
    PtxRegister sumsAt = k.fma(warp, 4 * TILE * width, k.shared(warps * 4 * TILE * width));
    PtxRegister rows = k.load(U32, block, Control.ROWS);
    PtxRegister firstQuery = k.mul(k.fma(k.special("ctaid.y"), warps, warp), TILE);
    PtxRegister firstRow = k.div(firstQuery, group);
    k.when(k.compare("ge", firstRow, rows), k::exit);
    PtxRegister lastRow = k.min(k.div(k.add(firstQuery, TILE - 1), group), k.sub(rows, 1));
    kvHead = k.div(k.special("ctaid.x"), shares);
    share = k.rem(k.special("ctaid.x"), shares);
    loadQueries(
        in,
        i -> {
          PtxRegister q = k.add(firstQuery, i);
          PtxRegister row = k.div(q, group);
          return new Query(row, k.rem(q, group), k.compare("lt", row, rows));
        });
    PtxRegister[] topOf = new PtxRegister[2];
    PtxRegister[] totalOf = new PtxRegister[2];
    PtxRegister[] place = new PtxRegister[2];
    for (int j = 0; j < 2; j++) {
      topOf[j] = k.register(F32);
      totalOf[j] = k.register(F32);
      place[j] = k.fma(k.add(g, 8 * j), 4 * width, k.fma(t, 8, sumsAt));
    }
    // Twice if a sum is no number: a value that is none reaches, as zero times it, queries that do
    // not see it. The second time rows run one by one, and get what they get alone.
    PtxRegister attempt = zero();
    PtxRegister attempts = k.constant(U32, 1);
    k.loop(
        attempt,
        attempts,
        1,
        () -> {
          for (int j = 0; j < 2; j++) {
            k.assign(topOf[j], NOTHING);
            k.assign(totalOf[j], 0);
            for (int n = 0; n < width / 8; n++) {
              PtxRegister none = k.constant(F32, 0);
              k.storeVector("shared", F32, place[j], 32L * n, none, none);
            }
          }
          rows(attempt, firstQuery, firstRow, lastRow, topOf, totalOf, place);
          PtxRegister largest = zero();
          for (int j = 0; j < 2; j++) {
            for (int n = 0; n < width / 8; n++) {
              for (PtxRegister x : k.loadVector("shared", F32, 2, place[j], 32L * n)) {
                largest = k.max(largest, k.bits(U32, k.unary("abs", x)));
              }
            }
          }
          PtxRegister again =
              k.both(
                  k.anyLane(k.compare("ge", largest, INFINITY)),
                  k.both(k.compare("lt", firstRow, lastRow), k.compare("eq", attempt, 0)));
          k.when(again, () -> k.assign(attempts, 2));
        });
    int bytes = partBytes(spec);
    for (int j = 0; j < 2; j++) {
      PtxRegister q = k.add(k.add(firstQuery, g), 8 * j);
      PtxRegister of = k.div(q, group);
      int index = j;
      k.when(
          k.compare("lt", of, rows),
          () -> {
            PtxRegister h = k.fma(kvHead, group, k.rem(q, group));
            PtxRegister to = k.address(out, k.fma(of, spec.heads(), h), bytes);
            weigh(to, topOf[index], totalOf[index]);
            PtxRegister elements = k.address(k.address(to, t, 8), share, 4 * width);
            for (int n = 0; n < width / 8; n++) {
              PtxRegister[] two = k.loadVector("shared", F32, 2, place[index], 32L * n);
              k.storeVector("global", F32, elements, 16 + 32L * n, two);
            }
          });
    }
    return k;
  }

  /**
   * Adds up all pieces of all rows of the warp.
   *
   * @param alone whether rows of one cache do not run together
   */
  private void rows(
      PtxRegister alone,
      PtxRegister firstQuery,
      PtxRegister firstRow,
      PtxRegister lastRow,
      PtxRegister[] topOf,
      PtxRegister[] totalOf,
      PtxRegister[] place) {
    PtxRegister row = k.register(U32);
    k.assign(row, firstRow);
    PtxRegister end = k.add(lastRow, 1);
    PtxRegister step = zero();
    k.loop(
        row,
        end,
        step,
        () -> {
          // Rows of one cache in the order of its slots, or one row that lies elsewhere.
          PtxRegister next = k.register(U32);
          k.assign(next, k.add(row, 1));
          PtxRegister shift = cache(row);
          PtxRegister address = k.load(U64, k.address(block, row, 8), control.cache());
          PtxRegister inPlace = k.both(k.compare("eq", moved, 0), k.compare("eq", alone, 0));
          PtxRegister together = k.register(U32);
          k.assign(together, k.select(inPlace, k.constant(U32, 1), zero()));
          PtxRegister limit = k.select(k.compare("ne", together, 0), end, next);
          k.loop(
              next,
              limit,
              together,
              () -> {
                PtxRegister other = k.load(U64, k.address(block, next, 8), control.cache());
                PtxRegister distance = k.load(U32, range(next), control.ranges(window) + 28);
                PtxRegister same =
                    k.both(k.compare("eq", other, address), k.compare("eq", distance, 0));
                // Else the loop ends here: its limit is reached.
                k.unless(same, () -> k.assign(limit, next));
                k.unless(same, () -> k.assign(together, 0));
              });
          k.assign(step, k.sub(next, row));
          ranges = new PtxRegister[2][];
          PtxRegister[] takesPart = new PtxRegister[2];
          for (int j = 0; j < 2; j++) {
            PtxRegister q = k.add(k.add(firstQuery, g), 8 * j);
            PtxRegister of = k.div(q, group);
            takesPart[j] = k.both(k.compare("ge", of, row), k.compare("lt", of, next));
            ranges[j] = ranges(of, takesPart[j]);
          }
          PtxRegister[] seen = seen();
          k.when(
              k.compare("lt", seen[0], seen[1]),
              () -> {
                PtxRegister piece = k.register(U32);
                k.assign(piece, k.shr(seen[0], shift));
                PtxRegister lastPiece = k.shr(k.sub(seen[1], 1), shift);
                k.loop(
                    piece,
                    k.add(lastPiece, 1),
                    1,
                    () -> {
                      PtxRegister from = k.max(k.shl(piece, shift), seen[0]);
                      PtxRegister to = k.min(k.shl(k.add(piece, 1), shift), seen[1]);
                      fresh();
                      tiles(from, to);
                      finishTotal();
                      for (int j = 0; j < 2; j++) {
                        int query = j;
                        k.when(takesPart[j], () -> add(query, topOf, totalOf, place[query]));
                      }
                    });
              });
        });
  }

  /** Adds the sums of a piece to those of the pieces before; scaling is exact. */
  private void add(int j, PtxRegister[] topOf, PtxRegister[] totalOf, PtxRegister place) {
    PtxRegister top = k.max(topOf[j], most[j]);
    PtxRegister old = k.unary("ex2.approx.ftz", k.sub(topOf[j], top));
    PtxRegister fresh = k.unary("ex2.approx.ftz", k.sub(most[j], top));
    k.assign(topOf[j], top);
    k.assign(totalOf[j], k.fma(total[j], fresh, k.mul(totalOf[j], old)));
    for (int n = 0; n < sums.length; n++) {
      PtxRegister[] two = k.loadVector("shared", F32, 2, place, 32L * n);
      PtxRegister a = k.fma(sums[n][2 * j], fresh, k.mul(two[0], old));
      PtxRegister b = k.fma(sums[n][2 * j + 1], fresh, k.mul(two[1], old));
      k.storeVector("shared", F32, place, 32L * n, a, b);
    }
  }

  private void write(PtxRegister to, int j, PtxRegister[][] of) {
    weigh(to, most[j], total[j]);
    PtxRegister elements = k.address(k.address(to, t, 8), share, 4 * width);
    for (int n = 0; n < of.length; n++) {
      k.storeVector("global", F32, elements, 16 + 32L * n, of[n][2 * j], of[n][2 * j + 1]);
    }
  }

  /** The largest score of a piece and the sum of its weights: all shares know them, one writes. */
  private void weigh(PtxRegister to, PtxRegister top, PtxRegister sum) {
    k.when(
        k.both(k.compare("eq", t, 0), k.compare("eq", share, 0)),
        () -> {
          k.store(F32, to, 0, top);
          k.store(F32, to, 4, sum);
        });
  }

  /** Finds the cache of a row, and where its own slots come; returns the piece's logarithm. */
  private PtxRegister cache(PtxRegister row) {
    PtxRegister base = k.load(U64, k.address(block, row, 8), control.cache());
    capacity = word(row, control.capacity());
    keyBase =
        k.address(
            k.address(base, capacity, keysBefore), kvHead, Emitter.kvBytes(type, spec.keyDim()));
    valueBase =
        k.address(
            k.address(base, capacity, keysBefore + keyRow),
            kvHead,
            Emitter.kvBytes(type, spec.valueDim()));
    valueBase = k.address(valueBase, share, Emitter.kvBytes(type, width));
    moved = k.load(U32, range(row), control.ranges(window) + 28);
    movedFrom = k.register(U32);
    movedTo = k.register(U32);
    k.assign(movedFrom, 0);
    k.assign(movedTo, 0);
    PtxRegister slot = word(row, control.slot());
    PtxRegister at = range(row);
    for (int r = 0; r < 3; r++) {
      PtxRegister from = k.load(U32, at, control.ranges(window) + 4 + 8L * r);
      PtxRegister to = k.load(U32, at, control.ranges(window) + 8 + 8L * r);
      PtxRegister own = k.both(k.compare("ge", slot, from), k.compare("lt", slot, to));
      k.when(
          own,
          () -> {
            k.assign(movedFrom, k.add(from, moved));
            k.assign(movedTo, k.add(to, moved));
          });
    }
    return pieceShift(capacity);
  }

  private PtxRegister pieceShift(PtxRegister slots) {
    // Pieces of the power of two that is not less than a 64th of the capacity.
    PtxRegister per = k.max(k.shr(k.add(slots, PIECES - 1), 6), LEAST);
    return k.sub(k.constant(U32, 32), k.leadingZeros(k.sub(per, 1)));
  }

  /** The ranges that a row sees, in the order of the sequence; none if it does not exist. */
  private PtxRegister[] ranges(PtxRegister row, PtxRegister exists) {
    PtxRegister[] r = k.registers(U32, 6);
    for (PtxRegister x : r) {
      k.assign(x, 0);
    }
    k.when(
        exists,
        () -> {
          PtxRegister n = k.register(U32);
          PtxRegister at = range(row);
          k.assign(n, k.load(U32, at, control.ranges(window)));
          gate.ifPresent(x -> k.when(emit.skipped(k, block, row, x), () -> k.assign(n, 0)));
          PtxRegister slot = word(row, control.slot());
          PtxRegister distance = k.load(U32, at, control.ranges(window) + 28);
          for (int i = 0; i < 3; i++) {
            int of = i;
            k.when(
                k.compare("gt", n, i),
                () -> {
                  PtxRegister from = k.load(U32, at, control.ranges(window) + 4 + 8L * of);
                  PtxRegister to = k.load(U32, at, control.ranges(window) + 8 + 8L * of);
                  PtxRegister own = k.both(k.compare("ge", slot, from), k.compare("lt", slot, to));
                  PtxRegister by = k.select(own, distance, 0);
                  k.assign(r[2 * of], k.add(from, by));
                  k.assign(r[2 * of + 1], k.add(to, by));
                });
          }
        });
    return r;
  }

  /** First and end of what the queries of the warp see. */
  private PtxRegister[] seen() {
    PtxRegister first = k.constant(U32, 0xffffffffL);
    PtxRegister end = zero();
    for (PtxRegister[] r : ranges) {
      for (int i = 0; i < 6; i += 2) {
        PtxRegister some = k.compare("lt", r[i], r[i + 1]);
        first = k.min(first, k.select(some, r[i], 0xffffffffL));
        end = k.max(end, k.select(some, r[i + 1], 0));
      }
    }
    return new PtxRegister[] {k.warpMin(first), k.warpMax(end)};
  }

  /** A query of the warp: its row, its head among those that share keys. */
  private record Query(PtxRegister row, PtxRegister head, PtxRegister exists) {}

  private interface Queries {
    Query of(PtxRegister i);
  }

  /** Cuts the queries into halves in shared memory, and finds the factors of their scores. */
  private void loadQueries(PtxRegister in, Queries which) {
    int n = spec.keyDim();
    PtxRegister i = zero();
    k.loop(
        i,
        TILE,
        1,
        () -> {
          Query q = which.of(i);
          PtxRegister h = k.fma(kvHead, group, q.head());
          PtxRegister at = k.address(in, k.fma(q.row(), spec.heads(), h), 4 * n);
          PtxRegister[] x = k.registers(F32, n / 32);
          PtxRegister largest = zero();
          for (int p = 0; p < x.length; p++) {
            int part = p;
            k.assign(x[p], 0);
            k.when(
                q.exists(),
                () -> k.assign(x[part], k.load(F32, k.address(at, lane, 4), 128L * part)));
            PtxRegister finite = finite(x[p]);
            PtxRegister size = k.select(finite, k.unary("abs", x[p]), k.constant(F32, 0));
            largest = k.max(largest, k.bits(U32, size));
          }
          PtxRegister exponent = k.shr(k.warpMax(largest), 23);
          PtxRegister biased = k.min(k.sub(k.constant(U32, 268), exponent), 253);
          PtxRegister scale = k.bits(F32, k.shl(biased, 23));
          PtxRegister to = k.fma(i, queryStride, k.fma(lane, 2, queries));
          for (int p = 0; p < x.length; p++) {
            PtxRegister scaled = k.mul(x[p], scale);
            PtxRegister upper = k.convert(".rn", B16, "f16", scaled, "f32");
            PtxRegister rest = k.sub(scaled, k.convert("", F32, "f32", upper, "f16"));
            PtxRegister lower = k.select(finite(x[p]), rest, k.constant(F32, 0));
            k.store("shared", B16, to, 64L * p, upper);
            PtxRegister low = k.convert(".rn", B16, "f16", lower, "f32");
            k.store("shared", B16, to, 64L * p + (long) TILE * queryStride, low);
          }
          PtxRegister inverse = k.shl(k.sub(k.constant(U32, 254), biased), 23);
          PtxRegister sizes = k.fma(i, 4, queries);
          k.when(
              k.compare("eq", lane, 0),
              () -> k.store("shared", U32, sizes, 2L * TILE * queryStride, inverse));
        });
    k.warpBarrier();
    factor = new PtxRegister[2];
    for (int j = 0; j < 2; j++) {
      PtxRegister at = k.fma(k.add(g, 8 * j), 4, queries);
      PtxRegister size = k.load("shared", F32, at, 2L * TILE * queryStride);
      factor[j] = k.mul(size, spec.softCap() > 0 ? spec.scale() : spec.scale() * LOG2E);
    }
  }

  private PtxRegister finite(PtxRegister x) {
    return k.compare("lt", k.unary("abs", x), Float.POSITIVE_INFINITY);
  }

  private void fresh() {
    most = new PtxRegister[2];
    total = new PtxRegister[2];
    for (int j = 0; j < 2; j++) {
      most[j] = k.constant(F32, NOTHING);
      total[j] = k.constant(F32, 0);
    }
    sums = new PtxRegister[width / 8][];
    for (int n = 0; n < sums.length; n++) {
      sums[n] = Products.zeros(k);
    }
  }

  /** Adds up the lanes' shares of the weights of their queries. */
  private void finishTotal() {
    for (int j = 0; j < 2; j++) {
      PtxRegister two = k.add(total[j], k.shuffleXor(total[j], 1));
      k.assign(total[j], k.add(two, k.shuffleXor(two, 2)));
    }
  }

  /** Runs over the tiles that have slots of {@code [from, to)}, which are of one piece. */
  private void tiles(PtxRegister from, PtxRegister to) {
    PtxRegister first = k.register(U32);
    k.assign(first, k.and(from, -TILE & 0xffffffffL));
    k.loop(first, to, TILE, () -> tile(first));
  }

  /** The slot that comes at a place of the order; slots past the cache are its last one. */
  private PtxRegister slot(PtxRegister at) {
    PtxRegister own = k.both(k.compare("ge", at, movedFrom), k.compare("lt", at, movedTo));
    PtxRegister slot = k.sub(at, k.select(own, moved, 0));
    return k.min(slot, k.sub(capacity, 1));
  }

  private void tile(PtxRegister first) {
    // Slots of a lane: 2t, 2t + 1, 2t + 8, 2t + 9.
    PtxRegister[] at = new PtxRegister[4];
    for (int i = 0; i < 4; i++) {
      at[i] = k.add(k.fma(t, 2, first), i % 2 + i / 2 * 8);
    }
    PtxRegister[] sees = new PtxRegister[2];
    PtxRegister mask = zero();
    for (int j = 0; j < 2; j++) {
      sees[j] = zero();
      for (int i = 0; i < 4; i++) {
        PtxRegister bit = k.shl(k.constant(U32, 1), k.sub(at[i], first));
        for (int r = 0; r < 6; r += 2) {
          PtxRegister in =
              k.both(
                  k.compare("ge", at[i], ranges[j][r]), k.compare("lt", at[i], ranges[j][r + 1]));
          sees[j] = k.logic(sees[j], k.select(in, bit, 0), 0, 0xfc);
        }
      }
      mask = k.logic(mask, sees[j], 0, 0xfc);
    }
    PtxRegister seen = k.warpOr(mask);
    k.when(
        k.compare("ne", seen, 0),
        () -> {
          loadValues(first, seen);
          PtxRegister[][] scores = scores(first);
          PtxRegister[][] visible = new PtxRegister[2][4];
          PtxRegister changed = null;
          PtxRegister[] top = new PtxRegister[2];
          for (int j = 0; j < 2; j++) {
            PtxRegister best = k.constant(F32, NOTHING);
            for (int i = 0; i < 4; i++) {
              PtxRegister bit = k.shl(k.constant(U32, 1), k.sub(at[i], first));
              visible[j][i] = k.compare("ne", k.and(sees[j], bit), 0);
              best = k.select(visible[j][i], k.max(best, scores[j][i]), best);
            }
            best = k.max(best, k.shuffleXor(best, 1));
            best = k.max(best, k.shuffleXor(best, 2));
            top[j] = k.max(most[j], k.convert(".rpi", F32, "f32", best, "f32"));
            PtxRegister more = k.compare("gt", top[j], most[j]);
            changed = changed == null ? more : k.either(changed, more);
          }
          k.when(k.anyLane(changed), () -> rescale(top));
          PtxRegister[][] weights = new PtxRegister[2][4];
          // Weights go up to this power of two, so that their lower halves have all bits.
          float up = type == KvCache.Type.Q8_0 ? 4 : 10;
          for (int j = 0; j < 2; j++) {
            for (int i = 0; i < 4; i++) {
              PtxRegister x = k.sub(scores[j][i], k.sub(most[j], up));
              PtxRegister e = k.unary("ex2.approx.ftz", x);
              weights[j][i] = k.select(visible[j][i], e, k.constant(F32, 0));
            }
            PtxRegister low = k.add(weights[j][0], weights[j][1]);
            PtxRegister high = k.add(weights[j][2], weights[j][3]);
            k.assign(total[j], k.add(total[j], k.add(low, high)));
          }
          k.waitCopies(0);
          k.warpBarrier();
          multiplyValues(first, weights);
          k.warpBarrier();
        });
  }

  private void rescale(PtxRegister[] top) {
    for (int j = 0; j < 2; j++) {
      PtxRegister f = k.unary("ex2.approx.ftz", k.sub(most[j], top[j]));
      k.assign(most[j], top[j]);
      k.assign(total[j], k.mul(total[j], f));
      for (PtxRegister[] s : sums) {
        k.assign(s[2 * j], k.mul(s[2 * j], f));
        k.assign(s[2 * j + 1], k.mul(s[2 * j + 1], f));
      }
    }
  }

  /** Scores of the lane's queries for its slots, as powers of two, before anything is hidden. */
  private PtxRegister[][] scores(PtxRegister first) {
    PtxRegister[][] acc = new PtxRegister[2][];
    PtxRegister[] keys = new PtxRegister[2];
    PtxRegister[][] scaled = new PtxRegister[2][2];
    boolean blocks = type == KvCache.Type.Q8_0;
    for (int n = 0; n < 2; n++) {
      acc[n] = Products.zeros(k);
      PtxRegister slot = slot(k.add(k.add(first, g), 8 * n));
      keys[n] = k.address(k.address(keyBase, slot, keyRow), t, blocks ? 8 : 16);
      for (int e = 0; e < 2 && blocks; e++) {
        PtxRegister of = slot(k.add(k.fma(t, 2, first), 8 * n + e));
        scaled[n][e] = k.address(keyBase, of, keyRow);
      }
    }
    PtxRegister row = k.fma(g, queryStride, k.fma(t, 16, queries));
    for (int b = 0; b < spec.keyDim() / 32; b++) {
      PtxRegister[][] q = new PtxRegister[4][];
      for (int i = 0; i < 4; i++) {
        long of = (long) (i % 2) * 8 * queryStride + (long) (i / 2) * TILE * queryStride;
        q[i] = k.loadVector("shared", U32, 4, row, of + 64L * b);
      }
      for (int n = 0; n < 2; n++) {
        PtxRegister[] w =
            blocks ? codes(keys[n], 34L * b + 2) : k.loadVector("global", U32, 4, keys[n], 64L * b);
        PtxRegister[] c = blocks ? Products.zeros(k) : acc[n];
        for (int s = 0; s < 2; s++) {
          PtxRegister[] pair = {w[2 * s], w[2 * s + 1]};
          for (int part = 0; part < 4; part += 2) {
            PtxRegister[] a = {
              q[part][2 * s], q[part + 1][2 * s], q[part][2 * s + 1], q[part + 1][2 * s + 1]
            };
            k.mma("f16", c, a, pair, c);
          }
        }
        for (int i = 0; i < 4 && blocks; i++) {
          PtxRegister d = half(scaled[n][i % 2], 34L * b);
          k.fmaInto(acc[n][i], c[i], d, acc[n][i]);
        }
      }
    }
    PtxRegister[][] scores = new PtxRegister[2][4];
    for (int j = 0; j < 2; j++) {
      for (int i = 0; i < 4; i++) {
        PtxRegister s = k.mul(acc[i / 2][2 * j + i % 2], factor[j]);
        if (spec.softCap() > 0) {
          PtxRegister capped = Emitter.tanh(k, k.quotient(s, spec.softCap()));
          s = k.mul(capped, spec.softCap() * LOG2E);
        }
        scores[j][i] = s;
      }
    }
    return scores;
  }

  private PtxRegister half(PtxRegister at, long offset) {
    return k.convert("", F32, "f32", k.load("global", B16, at, offset), "f16");
  }

  /** Eight signed bytes as four words of two halves. */
  private PtxRegister[] codes(PtxRegister at, long offset) {
    PtxRegister[] w = new PtxRegister[4];
    for (int i = 0; i < 4; i++) {
      w[i] = code(at, offset + 2L * i);
    }
    return w;
  }

  private PtxRegister code(PtxRegister at, long offset) {
    PtxRegister two = k.convert("", U32, "u32", k.load("global", B16, at, offset), "u16");
    // With the sign flipped a byte counts from -128; 0x64xx is 1024 + xx as a half.
    PtxRegister flipped = k.logic(two, 0x8080L, 0, 0x3c);
    PtxRegister wide = k.permute(flipped, k.constant(U32, 0x64646464L), 0x4140);
    int minus = Float.floatToFloat16(-1152) & 0xffff;
    return k.addHalves(wide, k.constant(U32, (minus | (long) minus << 16) & 0xffffffffL));
  }

  /** Brings the tile's values, or their codes, to shared memory; zeros where nobody looks. */
  private void loadValues(PtxRegister first, PtxRegister seen) {
    boolean blocks = type == KvCache.Type.Q8_0;
    int pieces = blocks ? width / 2 : width / 8;
    PtxRegister i = k.register(U32);
    k.assign(i, lane);
    k.loop(
        i,
        TILE * pieces,
        32,
        () -> {
          PtxRegister s = k.div(i, pieces);
          PtxRegister p = k.rem(i, pieces);
          PtxRegister from = k.address(valueBase, slot(k.add(first, s)), valueRow);
          PtxRegister to = k.fma(s, valueStride, k.fma(p, blocks ? 4 : 16, values));
          PtxRegister looks = k.compare("ne", k.and(k.shr(seen, s), 1), 0);
          if (blocks) {
            PtxRegister word = zero();
            k.when(
                looks,
                () -> {
                  PtxRegister at = k.address(k.address(from, k.shr(p, 4), 34), k.and(p, 15), 2);
                  k.assign(word, code(at, 2));
                });
            k.store("shared", U32, to, 0, word);
          } else {
            k.when(looks, () -> k.copyAsync(to, 0, k.address(from, p, 16), 0));
            k.unless(
                looks,
                () -> {
                  PtxRegister none = zero();
                  k.storeVector("shared", U32, to, 0, none, none, none, none);
                });
          }
        });
    k.commitCopies();
  }

  /** Adds the values, times the weights. */
  private void multiplyValues(PtxRegister first, PtxRegister[][] weights) {
    boolean blocks = type == KvCache.Type.Q8_0;
    PtxRegister row = k.and(lane, 15);
    PtxRegister at = k.fma(row, valueStride, k.fma(k.shr(lane, 4), 16, values));
    PtxRegister[] scales = new PtxRegister[4];
    for (int i = 0; i < 4 && blocks; i++) {
      PtxRegister s = slot(k.add(k.fma(t, 2, first), i % 2 + i / 2 * 8));
      scales[i] = k.address(valueBase, s, valueRow);
    }
    PtxRegister[][] a = blocks ? null : cut(weights);
    for (int b = 0; b < width / 32; b++) {
      if (blocks) {
        PtxRegister[][] scaled = new PtxRegister[2][4];
        for (int i = 0; i < 4; i++) {
          PtxRegister d = half(scales[i], 34L * b);
          for (int j = 0; j < 2; j++) {
            // A hidden slot's scale may be anything.
            PtxRegister none = k.compare("eq", weights[j][i], 0);
            scaled[j][i] = k.select(none, k.constant(F32, 0), k.mul(weights[j][i], d));
          }
        }
        a = cut(scaled);
      }
      for (int half = 0; half < 2; half++) {
        PtxRegister[] m = k.loadMatrices(4, true, at, 64L * b + 32L * half);
        for (int n = 0; n < 2; n++) {
          PtxRegister[] c = sums[4 * b + 2 * half + n];
          PtxRegister[] v = {m[2 * n], m[2 * n + 1]};
          k.mma("f16", c, a[0], v, c);
          k.mma("f16", c, a[1], v, c);
        }
      }
    }
  }

  /** Upper and lower halves of weights as fragments. */
  private PtxRegister[][] cut(PtxRegister[][] w) {
    PtxRegister[][] a = new PtxRegister[2][4];
    for (int pair = 0; pair < 2; pair++) {
      for (int j = 0; j < 2; j++) {
        PtxRegister x = w[j][2 * pair];
        PtxRegister y = w[j][2 * pair + 1];
        PtxRegister upper = k.packHalves("f16x2", x, y);
        PtxRegister[] halves = k.halves(upper);
        PtxRegister restX = k.sub(x, k.convert("", F32, "f32", halves[0], "f16"));
        PtxRegister restY = k.sub(y, k.convert("", F32, "f32", halves[1], "f16"));
        a[0][2 * pair + j] = upper;
        a[1][2 * pair + j] = k.packHalves("f16x2", restX, restY);
      }
    }
    return a;
  }

  /**
   * Adds the pieces of a row's head and divides by its weights, a block each. Parameters: control,
   * parts of sums, out.
   *
   * @param pieces whether there are parts per piece
   * @param parts what the result is written as instead of floats
   */
  PtxKernel combine(boolean pieces, Optional<Parts> parts) {
    k = new PtxKernel(Emitter.THREADS);
    block = k.parameter(U64);
    PtxRegister in = k.parameter(U64);
    PtxRegister out = k.parameter(U64);
    PtxRegister head = k.special("ctaid.x");
    PtxRegister row = k.special("ctaid.y");
    k.when(k.compare("ge", row, k.load(U32, block, Control.ROWS)), k::exit);
    PtxRegister thread = k.special("tid.x");
    int n = spec.valueDim();
    PtxRegister i = k.register(U32);
    if (gate.isPresent()) {
      k.when(
          emit.skipped(k, block, row, gate.get()),
          () -> {
            k.assign(i, thread);
            k.loop(
                i,
                n,
                Emitter.THREADS,
                () -> put(out, row, head, i, thread, k.constant(F32, 0), parts));
            k.exit();
          });
    }
    PtxRegister first = zero();
    PtxRegister end = k.constant(U32, 1);
    if (pieces) {
      PtxRegister shift = pieceShift(word(row, control.capacity()));
      ranges = new PtxRegister[][] {ranges(row, k.compare("ge", row, 0))};
      PtxRegister[] seen = seen();
      k.assign(first, k.shr(seen[0], shift));
      k.assign(end, k.add(k.shr(k.sub(seen[1], 1), shift), 1));
    }
    int bytes = partBytes(spec);
    PtxRegister of = k.fma(row, spec.heads(), head);
    PtxRegister base = k.address(in, pieces ? k.mul(of, PIECES) : of, bytes);
    PtxRegister top = k.constant(F32, NOTHING);
    PtxRegister p = k.register(U32);
    k.assign(p, first);
    k.loop(p, end, 1, () -> k.assign(top, k.max(top, k.load(F32, k.address(base, p, bytes), 0))));
    k.assign(i, thread);
    k.loop(
        i,
        n,
        Emitter.THREADS,
        () -> {
          PtxRegister sum = k.constant(F32, 0);
          PtxRegister all = k.constant(F32, 0);
          k.assign(p, first);
          k.loop(
              p,
              end,
              1,
              () -> {
                PtxRegister at = k.address(base, p, bytes);
                PtxRegister f = k.unary("ex2.approx.ftz", k.sub(k.load(F32, at, 0), top));
                k.fmaInto(all, k.load(F32, at, 4), f, all);
                k.fmaInto(sum, k.load(F32, k.address(at, i, 4), 16), f, sum);
              });
          put(out, row, head, i, thread, k.div(sum, all), parts);
        });
    return k;
  }

  private void put(
      PtxRegister out,
      PtxRegister row,
      PtxRegister head,
      PtxRegister i,
      PtxRegister thread,
      PtxRegister value,
      Optional<Parts> parts) {
    int n = spec.valueDim();
    PtxRegister column = k.fma(head, n, i);
    if (parts.isPresent()) {
      Parts p = parts.get();
      PtxRegister to = k.address(out, row, p.bytes());
      p.write(k, to, k.shr(column, 5), k.and(thread, 31), value);
    } else {
      PtxRegister to = k.address(out, row, 4 * spec.heads() * n);
      k.store(F32, k.address(to, column, 4), 0, value);
    }
  }
}
