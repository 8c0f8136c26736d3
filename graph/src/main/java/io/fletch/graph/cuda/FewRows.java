package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.F64;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.graph.Gate;
import io.fletch.graph.KvCache;
import io.fletch.graph.Op;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.Value;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * Writes the products of few rows with all that happens to their results, in one launch: the
 * matrices are streamed once for each {@link Products#SKINNY} rows.
 *
 * <p>A <em>unit</em> is two or four tiles (of 16 outputs) whose results are finished together: 32
 * neighbours, which share parts or a block of a Q8_0 cache; the two halves of rotated pairs; 32
 * activations and the 32 numbers that they multiply. Units of all matrices are numbered through;
 * blocks take them in turn. Each of a block's 8 warps sums one of the runs of columns of every tile
 * and has loaded the next chunk, of whatever tile it is, before it uses the last one. A warp then
 * finishes a row: two tiles are a <em>cell</em> of 32 outputs, a lane has one of each cell.
 */
final class FewRows {
  /** Where things lie on the device. */
  interface Addresses {
    long of(Value value);

    long weights(Object source);

    long parts(Fusion.Source source);

    /** Bytes per slot of what lies before a layer's keys in a cache of that type. */
    int keysBefore(KvCache.Type type, int layer);
  }

  /**
   * A kernel, what it is launched with after the control block, how many units it has, and how many
   * of its blocks run at the same time on a multiprocessor.
   */
  record Built(PtxKernel kernel, List<Long> addresses, int units, int resident) {}

  /** Bytes of a tile's runs of sums. */
  private static final int TILE_SUMS = 512 * Products.STRANDS;

  /** Bytes that a warp asks for ahead: all blocks of a device together, 17 MB of its cache. */
  private static final int PREFETCHED = 8 << 10;

  private final Control control;
  private final Emitter emit;
  private final Addresses addresses;
  private final KvCache.Type type;
  private final boolean overlaps;

  private PtxKernel k;
  private PtxRegister block;
  private PtxRegister thread;
  private PtxRegister lane;
  private PtxRegister warp;
  private PtxRegister first;
  private PtxRegister count;
  private Value.Rows rows;
  private Fusion.Source source;
  private Parts parts;
  private PtxRegister in;
  private PtxRegister begin;
  private PtxRegister stop;
  private PtxRegister step;
  private PtxRegister mine;
  private PtxRegister pairRow;
  private int second;
  private PtxRegister sums;
  private PtxRegister policy;
  private int buffer;
  private final Map<TensorType, Optional<PtxRegister>> tables = new EnumMap<>(TensorType.class);
  private final List<Long> values = new ArrayList<>();

  /**
   * Writes products.
   *
   * @param overlaps whether the kernel may be launched before the one before it ends; it has its
   *     first weights brought nearer then
   */
  FewRows(Control control, Emitter emit, Addresses addresses, KvCache.Type type, boolean overlaps) {
    this.overlaps = overlaps;
    this.control = control;
    this.emit = emit;
    this.addresses = addresses;
    this.type = type;
  }

  private PtxRegister parameter(long address) {
    values.add(address);
    return k.parameter(U64);
  }

  /** How the units of a branch lie in its matrices. */
  private final class Segment {
    final Fusion.Branch branch;
    final Op.Linear linear;
    final PackedMatrix matrix;
    final int tiles;
    final int units;
    final PtxRegister weights;
    final Optional<PtxRegister> bias;

    /** Of an activated pair the other matrix. */
    Optional<PtxRegister> otherWeights = Optional.empty();

    Optional<PtxRegister> otherBias = Optional.empty();

    /** Tiles between the halves of pairs, 0 if pairs lie in one cell or there are none. */
    int apart;

    Segment(Fusion.Branch branch) {
      this.branch = branch;
      linear = branch.linear();
      matrix = Fusion.packed(linear).orElseThrow();
      weights = parameter(addresses.weights(Fusion.matrix(linear)));
      bias = linear.bias().map(b -> parameter(addresses.weights(b)));
      Optional<Op.Rope> rope = rope();
      int pairs = rope.map(r -> r.spec().inverseFrequency().length).orElse(0);
      boolean far =
          rope.isPresent()
              && rope.get().spec().style() == RopeSpec.Style.NEOX
              && rope.get().headDim() > PackedMatrix.GROUP;
      if (branch.tail() instanceof Fusion.Activated a && a.up().isPresent()) {
        Op.Linear up = a.up().get();
        otherWeights = Optional.of(parameter(addresses.weights(Fusion.matrix(up))));
        otherBias = up.bias().map(b -> parameter(addresses.weights(b)));
        tiles = 4;
        units = (matrix.tiles() + 1) / 2;
      } else if (far) {
        apart = pairs / PackedMatrix.TILE;
        tiles = type == KvCache.Type.Q8_0 && branch.tail() instanceof Fusion.Cache ? 4 : 2;
        units = matrix.tiles() / tiles;
      } else {
        tiles = 2;
        units = (matrix.tiles() + 1) / 2;
      }
    }

    Optional<Op.Rope> rope() {
      return switch (branch.tail()) {
        case Fusion.Rotate r -> Optional.of(r.rope());
        case Fusion.Cache c -> c.rope();
        default -> Optional.empty();
      };
    }

    /** The tile at a place of a unit. */
    PtxRegister tile(PtxRegister unit, PtxRegister place) {
      if (otherWeights.isPresent()) {
        return k.fma(unit, 2, k.and(place, 1));
      }
      if (apart == 0) {
        return k.fma(unit, tiles, place);
      }
      int span = tiles / 2;
      int perHead = apart / span;
      PtxRegister head = k.div(unit, perHead);
      PtxRegister at = k.fma(head, 2 * apart, k.mul(k.rem(unit, perHead), span));
      PtxRegister half = span == 1 ? place : k.shr(place, 1);
      PtxRegister base = k.fma(half, apart, at);
      return span == 1 ? base : k.add(base, k.and(place, 1));
    }

    /** Where the tile at a place of a unit lies; past the last tile that one. */
    PtxRegister address(PtxRegister unit, PtxRegister place) {
      PtxRegister tile = k.min(tile(unit, place), matrix.tiles() - 1);
      PtxRegister base =
          otherWeights.isPresent()
              ? k.select(k.compare("lt", place, 2), weights, otherWeights.get())
              : weights;
      return k.address(base, tile, matrix.tileBytes());
    }
  }

  /** Writes a node's kernel. */
  Built product(Fusion.Product node) {
    source = node.source();
    // The words of two chunks of long codes, and what several rows need, take the registers of two
    // blocks.
    int longest = control.rows() == 1 ? 8 : 6;
    boolean wide =
        source.kind() == Parts.Kind.HALF
            && node.branches().stream()
                .anyMatch(b -> Fusion.packed(b.linear()).orElseThrow().columnBits() > longest);
    int resident = wide ? 1 : 2;
    k = new PtxKernel(Products.THREADS).resident(resident);
    parts = source.parts();
    rows = node.branches().getFirst().linear().in().rows();
    block = k.parameter(U64);
    in = parameter(addresses.parts(source));
    List<Segment> segments = new ArrayList<>();
    node.branches().forEach(b -> segments.add(new Segment(b)));
    first = k.mul(k.special("ctaid.y"), Products.SKINNY);
    thread = k.special("tid.x");
    lane = k.and(thread, 31);
    warp = k.shr(thread, 5);
    int chunks = segments.getFirst().matrix.chunks();
    begin = k.shr(k.mul(warp, chunks), 3);
    stop = k.shr(k.mul(k.add(warp, 1), chunks), 3);
    if (overlaps) {
      prefetch(segments);
      k.awaitPrevious();
    }
    count = Products.exitPast(k, block, first, rows);
    for (Segment s : segments) {
      tables.computeIfAbsent(s.matrix.type(), t -> Tile.table(k, s.matrix, thread));
    }
    policy = k.cachePolicy("evict_first");
    PtxRegister last = k.sub(count, 1);
    PtxRegister g = k.shr(lane, 2);
    PtxRegister t = k.and(lane, 3);
    // Columns past the last row repeat it and are not stored; what their sums are multiplied by
    // does not matter.
    mine = k.address(k.address(in, k.min(k.add(first, g), last), parts.bytes()), t, 16);
    second = control.rows() == 1 ? 0 : parts.bytes();
    pairRow = k.address(in, k.fma(t, 2, first), second);
    step = k.special("nctaid.x");
    int most = segments.stream().mapToInt(s -> s.tiles).max().orElseThrow();
    // Two buffers: sums of a unit are finished while those of the next are made.
    buffer = most * TILE_SUMS;
    sums = k.shared(2 * buffer);
    PtxRegister unit = k.register(U32);
    k.assign(unit, k.special("ctaid.x"));
    PtxRegister which = k.constant(U32, 0);
    int from = 0;
    for (Segment s : segments) {
      run(s, unit, which, from);
      from += s.units;
    }
    return new Built(k, List.copyOf(values), from, resident);
  }

  /** Asks for the first weights of each warp, while the kernel before still runs. */
  private void prefetch(List<Segment> segments) {
    PtxRegister unit = k.special("ctaid.x");
    PtxRegister asks = k.compare("lt", begin, stop);
    int from = 0;
    for (Segment s : segments) {
      PtxRegister own = k.compare("lt", unit, from + s.units);
      own = from == 0 ? own : k.both(own, k.compare("ge", unit, from));
      int before = from;
      k.when(
          k.both(asks, own), () -> prefetch(s, s.address(k.sub(unit, before), k.constant(U32, 0))));
      from += s.units;
    }
  }

  private void run(Segment s, PtxRegister unit, PtxRegister which, int from) {
    int end = from + s.units;
    PtxRegister some = k.both(k.compare("lt", unit, end), k.compare("lt", begin, stop));
    Optional<Gate> gate = s.linear.gate();
    if (gate.isPresent() && control.rows() == 1) {
      // A single row that is skipped reads no weights.
      PtxRegister skip = emit.skipped(k, block, batchRow(first), gate.get());
      some = k.both(some, k.compare("eq", k.select(skip, k.constant(U32, 1), 0), 0));
    }
    PtxRegister streams = some;
    PtxRegister place = k.register(U32);
    PtxRegister base = k.register(U64);
    Optional<PtxRegister> table = tables.get(s.matrix.type());
    Tile[] tile = new Tile[1];
    Tile.Words[] now = new Tile.Words[1];
    k.assign(place, 0);
    k.assign(base, s.weights);
    tile[0] = new Tile(k, s.matrix, base, lane, table, Optional.of(policy));
    k.when(
        streams,
        () -> {
          tile[0].move(s.address(k.sub(unit, from), place));
          now[0] = tile[0].load(begin, 0, 4);
        });
    k.loop(
        unit,
        end,
        step,
        () -> {
          PtxRegister to = k.fma(which, buffer, sums);
          k.assign(place, 0);
          k.loop(
              place,
              s.tiles,
              1,
              () -> {
                PtxRegister[] acc = Products.zeros(k);
                k.when(streams, () -> tile(s, tile[0], now[0], unit, place, from, acc));
                put(acc, k.fma(place, TILE_SUMS, to));
              });
          k.barrier();
          PtxRegister row = k.add(first, warp);
          k.when(k.compare("lt", row, count), () -> finish(s, k.sub(unit, from), row, to));
          k.assign(which, k.sub(k.constant(U32, 1), which));
        });
  }

  /** Unit and place of the tile after a tile. */
  private PtxRegister[] next(Segment s, PtxRegister unit, PtxRegister place) {
    PtxRegister next = k.add(place, 1);
    PtxRegister over = k.compare("ge", next, s.tiles);
    return new PtxRegister[] {
      k.select(over, k.add(unit, step), unit), k.select(over, k.constant(U32, 0), next)
    };
  }

  /**
   * Asks for the beginning of the warp's run of a tile: loads are a chunk ahead, which is less than
   * hides the way to memory where codes are short or the block is alone. A lane asks for each part
   * of the tile.
   */
  private void prefetch(Segment s, PtxRegister tile) {
    PackedMatrix m = s.matrix;
    int chunkBytes = m.lowBytes() + m.highBytes() + m.scaleBytes();
    PtxRegister n = k.min(k.sub(stop, begin), Math.max(1, PREFETCHED / chunkBytes));
    PtxRegister at = k.mul(begin, m.lowBytes());
    PtxRegister bytes = k.mul(n, m.lowBytes());
    int parts = 1;
    int[][] others = {{m.highAt(), m.highBytes()}, {m.scalesAt(), m.scaleBytes()}};
    for (int[] part : others) {
      if (part[1] > 0) {
        PtxRegister own = k.compare("eq", lane, parts++);
        at = k.select(own, k.fma(begin, part[1], k.constant(U32, part[0])), at);
        bytes = k.select(own, k.mul(n, part[1]), bytes);
      }
    }
    if (m.scales().superBlocks) {
      PtxRegister own = k.compare("eq", lane, parts++);
      PtxRegister first = k.shr(begin, 1);
      PtxRegister end = k.add(k.shr(k.sub(k.add(begin, n), 1), 1), 1);
      at = k.select(own, k.fma(first, 64, k.constant(U32, m.supersAt())), at);
      bytes = k.select(own, k.mul(k.sub(end, first), 64), bytes);
    }
    PtxRegister from = k.address(tile, at, 1);
    PtxRegister size = bytes;
    k.when(k.compare("lt", lane, parts), () -> k.prefetchBulk(from, size));
  }

  /** Sums a run of a tile; the words of its first chunk are there, those of the next tile after. */
  private void tile(
      Segment s,
      Tile tile,
      Tile.Words now,
      PtxRegister unit,
      PtxRegister place,
      int from,
      PtxRegister[] acc) {
    if (overlaps) {
      PtxRegister[] next = next(s, unit, place);
      k.when(
          k.compare("lt", next[0], from + s.units),
          () -> prefetch(s, s.address(k.sub(next[0], from), next[1])));
    }
    PtxRegister chunk = k.register(U32);
    k.assign(chunk, begin);
    k.loop(
        chunk,
        stop,
        1,
        () -> {
          PtxRegister ahead = k.register(U32);
          k.assign(ahead, k.add(chunk, 1));
          PtxRegister more = k.register(U32);
          k.assign(more, 1);
          k.when(
              k.compare("ge", ahead, stop),
              () -> {
                PtxRegister[] next = next(s, unit, place);
                k.assign(ahead, begin);
                k.assign(
                    more,
                    k.select(k.compare("lt", next[0], from + s.units), k.constant(U32, 1), 0));
                tile.move(s.address(k.sub(next[0], from), next[1]));
              });
          PtxRegister loads = k.compare("ne", more, 0);
          Tile.Words[] words = new Tile.Words[1];
          k.when(loads, () -> words[0] = tile.load(ahead, 0, 4));
          Products.chunk(k, tile, now, chunk, parts, mine, pairRow, second, acc);
          k.when(
              loads,
              () -> {
                PtxRegister[] to = now.all();
                PtxRegister[] of = words[0].all();
                for (int i = 0; i < to.length; i++) {
                  k.assign(to[i], of[i]);
                }
              });
        });
  }

  /** The runs of an element lie 512 bytes apart, those of a row 64. */
  private void put(PtxRegister[] acc, PtxRegister tile) {
    PtxRegister g = k.shr(lane, 2);
    PtxRegister t = k.and(lane, 3);
    PtxRegister to = k.fma(t, 128, k.fma(g, 4, k.fma(warp, 512, tile)));
    for (int i = 0; i < 4; i++) {
      k.store("shared", F32, to, 64L * (i % 2) + 32L * (i / 2), acc[i]);
    }
  }

  private PtxRegister batchRow(PtxRegister row) {
    return rows == Value.Rows.LOGITS
        ? k.load(U32, k.address(block, row, 4), control.logitSource())
        : row;
  }

  private PtxRegister skipped(Gate gate, PtxRegister row) {
    return emit.skipped(k, block, batchRow(row), gate);
  }

  /** The lane's output of a cell, and whether there is one. */
  private record Output(PtxRegister index, PtxRegister exists, PtxRegister value) {}

  private void finish(Segment s, PtxRegister unit, PtxRegister row, PtxRegister from) {
    Optional<PtxRegister> factor =
        source.factor().map(n -> parts.factor(k, k.address(in, row, parts.bytes()), lane, n));
    Output[] cells = new Output[s.tiles / 2];
    PtxRegister half = k.shr(lane, 4);
    PtxRegister inTile = k.and(lane, 15);
    for (int c = 0; c < cells.length; c++) {
      PtxRegister place = k.add(half, 2 * c);
      PtxRegister at = k.fma(place, TILE_SUMS, k.fma(warp, 64, k.fma(inTile, 4, from)));
      PtxRegister total = k.constant(F32, 0);
      for (int i = 0; i < Products.STRANDS; i++) {
        total = k.add(total, k.load("shared", F32, at, 512L * i));
      }
      PtxRegister sum = total;
      PtxRegister o = k.fma(s.tile(unit, place), PackedMatrix.TILE, inTile);
      PtxRegister exists = k.compare("lt", o, s.matrix.rows());
      PtxRegister value = k.register(F32);
      k.assign(value, factor.map(f -> k.mul(sum, f)).orElse(sum));
      boolean other = c == 1 && s.otherWeights.isPresent();
      (other ? s.otherBias : s.bias)
          .ifPresent(b ->
              k.when(
                  exists, () -> k.assign(value, k.add(value, k.load(F32, k.address(b, o, 4), 0)))));
      Optional<Gate> gate = other ? other(s).gate() : s.linear.gate();
      gate.ifPresent(g -> k.assign(value, k.select(skipped(g, row), k.constant(F32, 0), value)));
      cells[c] = new Output(o, exists, value);
    }
    switch (s.branch.tail()) {
      case Fusion.Store t -> store(cells, s.linear.out(), row);
      case Fusion.Rotate t -> store(rotate(t.rope(), s, cells, row), t.rope().out(), row);
      case Fusion.Cache t -> {
        Output[] all = t.rope().map(r -> rotate(r, s, cells, row)).orElse(cells);
        cache(t, all, row);
      }
      case Fusion.Activated t -> activated(t, cells, unit, row);
      case Fusion.Residual t -> residual(t, cells[0], unit, row);
    }
  }

  private static Op.Linear other(Segment s) {
    return ((Fusion.Activated) s.branch.tail()).up().orElseThrow();
  }

  private void store(Output[] cells, Value to, PtxRegister row) {
    PtxRegister y = k.address(parameter(addresses.of(to)), row, 4 * to.width());
    for (Output c : cells) {
      k.when(c.exists(), () -> k.store(F32, k.address(y, c.index(), 4), 0, c.value()));
    }
  }

  private Output[] rotate(Op.Rope op, Segment s, Output[] cells, PtxRegister row) {
    int pairs = op.spec().inverseFrequency().length;
    boolean normal = op.spec().style() == RopeSpec.Style.NORM;
    PtxRegister frequencies = parameter(addresses.weights(op.spec()));
    PtxRegister at = k.address(block, batchRow(row), 4);
    PtxRegister position = k.convert(".rn", F64, "f64", k.load(U32, at, control.position()), "u32");
    Output[] all = new Output[cells.length];
    for (int c = 0; c < cells.length; c++) {
      Output cell = cells[c];
      PtxRegister partner =
          cells.length == 2
              ? cells[1 - c].value()
              : k.shuffleXor(cell.value(), normal ? 1 : s.apart == 0 ? pairs : PackedMatrix.TILE);
      PtxRegister d = k.rem(cell.index(), op.headDim());
      PtxRegister index = normal ? k.shr(d, 1) : k.rem(d, pairs);
      PtxRegister isFirst = normal ? k.compare("eq", k.and(d, 1), 0) : k.compare("lt", d, pairs);
      PtxRegister frequency = k.load(F32, k.address(frequencies, index, 4), 0);
      PtxRegister[] turn = Emitter.turn(k, position, frequency, op.spec().magnitude());
      PtxRegister me = Emitter.wide(k, cell.value());
      PtxRegister across = k.mul(Emitter.wide(k, partner), turn[0]);
      PtxRegister left = k.sub(k.mul(me, turn[1]), across);
      PtxRegister right = k.fma(me, turn[1], across);
      PtxRegister turned = Emitter.narrow(k, k.select(isFirst, left, right));
      all[c] = new Output(cell.index(), cell.exists(), turned);
    }
    return all;
  }

  private void cache(Fusion.Cache t, Output[] cells, PtxRegister row) {
    int keys = t.store().key().width();
    int width = t.keys() ? keys : t.store().value().width();
    int before = addresses.keysBefore(type, t.store().spec().layer());
    PtxRegister to =
        emit.slot(
            k, block, row, before + (t.keys() ? 0 : Emitter.kvBytes(type, keys)), type, width);
    for (Output c : cells) {
      // Blocks of a Q8_0 cache are whole cells.
      k.when(c.exists(), () -> Emitter.intoCache(k, type, to, c.index(), c.value()));
    }
  }

  private void activated(Fusion.Activated t, Output[] cells, PtxRegister unit, PtxRegister row) {
    PtxRegister a = Emitter.activation(k, t.op().activation(), cells[0].value());
    PtxRegister value = cells.length == 2 ? k.mul(a, cells[1].value()) : a;
    if (t.op().gate().isPresent()) {
      PtxRegister skip = skipped(t.op().gate().get(), row);
      value = k.select(skip, k.constant(F32, 0), value);
    }
    Output result = new Output(cells[0].index(), cells[0].exists(), value);
    if (t.next().isEmpty()) {
      store(new Output[] {result}, t.op().out(), row);
      return;
    }
    parts(t.next().get(), unit, row, result, value);
  }

  private void residual(Fusion.Residual t, Output cell, PtxRegister unit, PtxRegister row) {
    Op.Add add = t.add();
    int width = add.out().width();
    PtxRegister from = k.address(parameter(addresses.of(add.residual())), row, 4 * width);
    PtxRegister x = k.register(F32);
    k.assign(x, 0);
    k.when(cell.exists(), () -> k.assign(x, k.load(F32, k.address(from, cell.index(), 4), 0)));
    PtxRegister sum = k.fma(cell.value(), add.scale(), x);
    PtxRegister value = add.gate().map(g -> k.select(skipped(g, row), x, sum)).orElse(sum);
    Output result = new Output(cell.index(), cell.exists(), value);
    store(new Output[] {result}, add.out(), row);
    t.next()
        .ifPresent(next -> {
          PtxRegister scaled = value;
          if (next.norm().isPresent()) {
            Tensor weight = next.norm().get().weight();
            PtxRegister w = k.register(F32);
            k.assign(w, 0);
            PtxRegister weights = parameter(addresses.weights(weight));
            k.when(
                cell.exists(),
                () ->
                    k.assign(
                        w, k.load(Products.GLOBAL, F32, k.address(weights, cell.index(), 4), 0)));
            scaled = k.mul(value, w);
          }
          parts(next, unit, row, new Output(cell.index(), cell.exists(), scaled), value);
        });
  }

  /** Writes a cell, which is group {@code unit}, as parts of the next input. */
  private void parts(
      Fusion.Source next, PtxRegister unit, PtxRegister row, Output cell, PtxRegister normed) {
    Parts p = next.parts();
    PtxRegister zero = k.constant(F32, 0);
    PtxRegister to = k.address(parameter(addresses.parts(next)), row, p.bytes());
    if (next.norm().isPresent()) {
      p.writeSquares(k, to, unit, lane, k.select(cell.exists(), normed, zero));
    }
    p.write(k, to, unit, lane, k.select(cell.exists(), cell.value(), zero));
  }
}
