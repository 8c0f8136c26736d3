package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.F64;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.graph.Op;
import io.fletch.graph.RouteSpec;
import io.fletch.graph.Value;
import io.fletch.quant.TensorType;
import java.util.Optional;

/**
 * Kernels of mixtures of experts. The choice follows {@link io.fletch.graph.support.Router}:
 * probabilities are doubles, ties go to the lowest index, NaN scores come last.
 *
 * <p>One row alone takes its experts' matrices directly. With more rows the pairs (row, place of
 * the expert among the row's) are listed by expert, in order, and a block of a product reads a part
 * of an expert's matrix for up to eight of its pairs. Both sum in the same order.
 */
final class ExpertKernels {
  /** Most experts: each lane of a warp remembers those it may choose from in one word. */
  static final int MAX_EXPERTS = 1024;

  private final Emitter emit;
  private final Control control;

  ExpertKernels(Emitter emit, Control control) {
    this.emit = emit;
    this.control = control;
  }

  /** Bytes of the list of an expert's pairs: their number, then the pairs. */
  static int listBytes(int rows, int used) {
    return Math.multiplyExact(4, Math.addExact(1, Math.multiplyExact(rows, used)));
  }

  /** A block per row. Parameters: control, scores, out, bias if any. */
  PtxKernel route(RouteSpec spec, boolean bias, Value.Rows rows) {
    int n = spec.experts();
    int used = spec.used();
    Emitter.Row b = emit.new Row(rows);
    PtxKernel k = b.k;
    PtxRegister scores = b.floats(k.parameter(U64), b.row, n);
    PtxRegister out = b.floats(k.parameter(U64), b.row, spec.width());
    Optional<PtxRegister> biases = bias ? Optional.of(k.parameter(U64)) : Optional.empty();
    PtxRegister maxima = k.shared(4 * Emitter.WARPS);
    PtxRegister sums = k.shared(8 * Emitter.WARPS);
    PtxRegister i = k.register(U32);
    PtxRegister most = k.constant(F32, Float.NEGATIVE_INFINITY);
    each(b, i, n, () -> k.assign(most, k.max(most, score(b, scores, i))));
    PtxRegister max = Emitter.wide(k, blockMax(b, maxima, most));
    PtxRegister sum = k.constant(F64, 0);
    if (spec.scoring() == RouteSpec.Scoring.SOFTMAX) {
      each(
          b,
          i,
          n,
          () -> {
            PtxRegister d = k.sub(Emitter.wide(k, score(b, scores, i)), max);
            k.assign(sum, k.add(sum, exp(k, d)));
          });
    }
    PtxRegister total = Emitter.blockSum(k, sums, sum);
    int choice = 2 * used;
    each(
        b,
        i,
        n,
        () -> {
          PtxRegister p = probability(b, spec, scores, i, max, total);
          PtxRegister q = biases.map(w -> k.add(p, Emitter.wide(k, b.get(w, i)))).orElse(p);
          b.put(out, k.add(i, choice), Emitter.narrow(k, q));
        });
    k.barrier();
    Optional<PtxRegister> kept =
        spec.groupsUsed() < spec.groups()
            ? Optional.of(groups(b, spec, k.address(out, k.constant(U32, choice), 4)))
            : Optional.empty();
    k.when(k.compare("lt", b.thread, 32), () -> choose(b, spec, scores, out, kept, max, total));
    return k;
  }

  private static void each(Emitter.Row b, PtxRegister i, int n, Runnable body) {
    b.k.assign(i, b.thread);
    b.k.loop(i, n, Emitter.THREADS, body);
  }

  /** A score; what is not a number is the least. */
  private static PtxRegister score(Emitter.Row b, PtxRegister scores, PtxRegister i) {
    PtxRegister x = b.get(scores, i);
    return b.k.select(b.k.compare("eq", x, x), x, -Float.MAX_VALUE);
  }

  /** exp of a double that is not positive. */
  private static PtxRegister exp(PtxKernel k, PtxRegister x) {
    PtxRegister low = k.compare("lt", x, -700.0);
    PtxRegister bounded = k.select(low, k.constant(F64, -700.0), x);
    return k.select(low, k.constant(F64, 0), Emitter.expDouble(k, bounded));
  }

  private static PtxRegister probability(
      Emitter.Row b,
      RouteSpec spec,
      PtxRegister scores,
      PtxRegister i,
      PtxRegister max,
      PtxRegister total) {
    PtxKernel k = b.k;
    PtxRegister s = Emitter.wide(k, score(b, scores, i));
    return switch (spec.scoring()) {
      case SOFTMAX -> k.div(exp(k, k.sub(s, max)), total);
      case SIGMOID -> {
        PtxRegister e = exp(k, k.unary("neg", k.unary("abs", s)));
        PtxRegister above = k.select(k.compare("ge", s, 0.0), k.constant(F64, 1.0), e);
        yield k.div(above, k.add(e, 1.0));
      }
    };
  }

  private static PtxRegister blockMax(Emitter.Row b, PtxRegister shared, PtxRegister value) {
    PtxKernel k = b.k;
    PtxRegister most = value;
    for (int mask = 16; mask > 0; mask >>= 1) {
      most = k.max(most, k.shuffleXor(most, mask));
    }
    PtxRegister warp = most;
    PtxRegister at = k.fma(k.shr(b.thread, 5), 4, shared);
    k.when(k.compare("eq", k.and(b.thread, 31), 0), () -> k.store("shared", F32, at, 0, warp));
    k.barrier();
    PtxRegister all = k.load("shared", F32, shared, 0);
    for (int w = 1; w < Emitter.WARPS; w++) {
      all = k.max(all, k.load("shared", F32, shared, 4L * w));
    }
    return all;
  }

  /** Words in shared memory, 1 for the groups that are kept. */
  private static PtxRegister groups(Emitter.Row b, RouteSpec spec, PtxRegister choice) {
    PtxKernel k = b.k;
    int size = spec.experts() / spec.groups();
    PtxRegister sums = k.shared(8 * spec.groups());
    PtxRegister kept = k.shared(4 * spec.groups());
    k.when(
        k.compare("lt", b.thread, spec.groups()),
        () -> {
          PtxRegister first = k.constant(F32, Float.NEGATIVE_INFINITY);
          PtxRegister second = k.constant(F32, Float.NEGATIVE_INFINITY);
          PtxRegister e = k.mul(b.thread, size);
          k.loop(
              e,
              k.add(e, size),
              1,
              () -> {
                PtxRegister v = b.get(choice, e);
                PtxRegister larger = k.compare("gt", v, first);
                k.assign(second, k.select(larger, first, k.max(second, v)));
                k.assign(first, k.select(larger, v, first));
              });
          PtxRegister sum = Emitter.wide(k, first);
          if (size > 1) {
            sum = k.add(sum, Emitter.wide(k, second));
          }
          k.store("shared", F64, k.fma(b.thread, 8, sums), 0, sum);
          k.store("shared", U32, k.fma(b.thread, 4, kept), 0, k.constant(U32, 0));
        });
    k.barrier();
    k.when(
        k.compare("eq", b.thread, 0),
        () -> {
          PtxRegister n = k.constant(U32, 0);
          k.loop(
              n,
              spec.groupsUsed(),
              1,
              () -> {
                PtxRegister best = k.constant(U32, spec.groups());
                PtxRegister bestSum = k.constant(F64, 0);
                PtxRegister g = k.constant(U32, 0);
                k.loop(
                    g,
                    spec.groups(),
                    1,
                    () -> {
                      PtxRegister sum = k.load("shared", F64, k.fma(g, 8, sums), 0);
                      PtxRegister is = k.load("shared", U32, k.fma(g, 4, kept), 0);
                      PtxRegister better =
                          k.either(
                              k.compare("eq", best, spec.groups()), k.compare("gt", sum, bestSum));
                      PtxRegister take = k.both(k.compare("eq", is, 0), better);
                      k.assign(best, k.select(take, g, best));
                      k.assign(bestSum, k.select(take, sum, bestSum));
                    });
                k.store("shared", U32, k.fma(best, 4, kept), 0, k.constant(U32, 1));
              });
        });
    k.barrier();
    return kept;
  }

  /** A warp picks one expert after the other. */
  private static void choose(
      Emitter.Row b,
      RouteSpec spec,
      PtxRegister scores,
      PtxRegister out,
      Optional<PtxRegister> kept,
      PtxRegister max,
      PtxRegister total) {
    PtxKernel k = b.k;
    int used = spec.used();
    PtxRegister lane = b.thread;
    PtxRegister chosen = k.constant(U32, 0);
    PtxRegister weights = k.constant(F64, 0);
    PtxRegister place = k.constant(U32, 0);
    k.loop(
        place,
        used,
        1,
        () -> {
          PtxRegister best = k.constant(F32, Float.NEGATIVE_INFINITY);
          PtxRegister index = k.constant(U32, 0xffffffffL);
          PtxRegister bit = k.constant(U32, 1);
          PtxRegister e = k.register(U32);
          k.assign(e, lane);
          k.loop(
              e,
              spec.experts(),
              32,
              () -> {
                PtxRegister x = b.get(out, k.add(e, 2 * used));
                PtxRegister v = k.select(k.compare("eq", x, x), x, Float.NEGATIVE_INFINITY);
                PtxRegister free = k.compare("eq", k.and(chosen, bit), 0);
                if (kept.isPresent()) {
                  PtxRegister group = k.div(e, spec.experts() / spec.groups());
                  PtxRegister is = k.load("shared", U32, k.fma(group, 4, kept.get()), 0);
                  free = k.both(free, k.compare("ne", is, 0));
                }
                PtxRegister take = k.both(free, precedes(k, v, e, best, index));
                k.assign(best, k.select(take, v, best));
                k.assign(index, k.select(take, e, index));
                k.assign(bit, k.shl(bit, 1));
              });
          for (int mask = 16; mask > 0; mask >>= 1) {
            PtxRegister v = k.shuffleXor(best, mask);
            PtxRegister other = k.shuffleXor(index, mask);
            PtxRegister take = precedes(k, v, other, best, index);
            k.assign(best, k.select(take, v, best));
            k.assign(index, k.select(take, other, index));
          }
          PtxRegister mine = k.compare("eq", k.and(index, 31), lane);
          PtxRegister mark = k.shl(k.constant(U32, 1), k.shr(index, 5));
          k.assign(chosen, k.add(chosen, k.select(mine, mark, 0)));
          PtxRegister p = probability(b, spec, scores, index, max, total);
          k.assign(weights, k.add(weights, p));
          k.when(
              k.compare("eq", lane, 0),
              () -> {
                b.put(out, place, Emitter.narrow(k, p));
                b.put(out, k.add(place, used), k.convert(".rn", F32, "f32", index, "u32"));
              });
        });
    PtxRegister scale = k.constant(F64, (double) spec.scale());
    PtxRegister factor = spec.normalize() ? k.div(scale, weights) : scale;
    k.when(
        k.compare("eq", lane, 0),
        () -> {
          k.assign(place, 0);
          k.loop(
              place,
              used,
              1,
              () -> {
                PtxRegister w = k.mul(Emitter.wide(k, b.get(out, place)), factor);
                b.put(out, place, Emitter.narrow(k, w));
              });
        });
  }

  private static PtxRegister precedes(
      PtxKernel k, PtxRegister v, PtxRegister i, PtxRegister than, PtxRegister index) {
    PtxRegister tie = k.both(k.compare("eq", v, than), k.compare("lt", i, index));
    return k.either(k.compare("gt", v, than), tie);
  }

  private static PtxRegister expert(
      PtxKernel k, PtxRegister routing, PtxRegister row, int width, PtxRegister place, int used) {
    PtxRegister at = k.address(k.address(routing, row, 4 * width), place, 4);
    return k.convert(".rzi", U32, "u32", k.load(F32, at, 4L * used), "f32");
  }

  private static PtxRegister count(PtxKernel k, PtxRegister block, Value.Rows rows) {
    boolean logits = rows == Value.Rows.LOGITS;
    return k.load(U32, block, logits ? Control.LOGIT_ROWS : Control.ROWS);
  }

  /** Lists the pairs of the expert {@code ctaid.y}. Parameters: control, routing, lists. */
  PtxKernel list(int width, int used, Value.Rows rows) {
    PtxKernel k = new PtxKernel(Emitter.THREADS);
    PtxRegister block = k.parameter(U64);
    PtxRegister routing = k.parameter(U64);
    PtxRegister lists = k.parameter(U64);
    PtxRegister lane = k.special("tid.x");
    k.when(k.compare("ge", lane, 32), k::exit);
    PtxRegister mine = k.special("ctaid.y");
    PtxRegister list = k.address(lists, mine, listBytes(control.rows(), used));
    PtxRegister pairs = k.mul(count(k, block, rows), used);
    PtxRegister last = k.sub(k.max(pairs, 1), 1);
    PtxRegister below = k.special("lanemask_lt");
    PtxRegister n = k.constant(U32, 0);
    PtxRegister base = k.constant(U32, 0);
    k.loop(
        base,
        pairs,
        32,
        () -> {
          PtxRegister pair = k.add(base, lane);
          PtxRegister bounded = k.min(pair, last);
          PtxRegister e =
              expert(k, routing, k.div(bounded, used), width, k.rem(bounded, used), used);
          PtxRegister is = k.both(k.compare("lt", pair, pairs), k.compare("eq", e, mine));
          PtxRegister bit = k.select(is, k.shl(k.constant(U32, 1), lane), 0);
          PtxRegister all = k.warpSum(bit);
          PtxRegister at = k.add(n, k.ones(k.and(all, below)));
          k.when(is, () -> k.store(U32, k.address(list, at, 4), 4, pair));
          k.assign(n, k.add(n, k.ones(all)));
        });
    k.when(k.compare("eq", lane, 0), () -> k.store(U32, list, 0, n));
    return k;
  }

  /**
   * A warp per element of one row's result. {@code ctaid.x} counts parts of the results of all
   * places. Parameters: control, addresses of the matrices, in, routing, out.
   */
  PtxKernel single(Op.ExpertLinear o, TensorType type) {
    Emitter.Row b = emit.new Row(o.in().rows());
    PtxKernel k = b.k;
    int n = Math.toIntExact(o.experts().getFirst().cols());
    int m = Math.toIntExact(o.experts().getFirst().rows());
    int across = (m + Emitter.WARPS - 1) / Emitter.WARPS;
    PtxRegister table = k.parameter(U64);
    PtxRegister x = b.floats(k.parameter(U64), b.row, o.in().width());
    PtxRegister routing = k.parameter(U64);
    PtxRegister y = b.floats(k.parameter(U64), b.row, o.out().width());
    PtxRegister part = k.special("ctaid.x");
    PtxRegister place = k.div(part, across);
    PtxRegister lane = k.and(b.thread, 31);
    PtxRegister i = k.fma(k.rem(part, across), Emitter.WARPS, k.shr(b.thread, 5));
    k.when(k.compare("ge", i, m), k::exit);
    PtxRegister e = expert(k, routing, b.row, o.routing().width(), place, o.used());
    PtxRegister matrix = k.load(U64, k.address(table, e, 8), 0);
    PtxRegister data = k.address(matrix, i, Emitter.rowBytes(type, n));
    PtxRegister[] at = {o.parts() ? k.address(x, place, 4 * n) : x};
    PtxRegister[] sums = {k.constant(F32, 0)};
    products(k, type, data, n, lane, at, sums);
    PtxRegister sum = k.warpSum(sums[0]);
    k.when(k.compare("eq", lane, 0), () -> b.put(k.address(y, place, 4 * m), i, sum));
    return k;
  }

  /**
   * A warp per element of the results of an expert's pairs, {@code ctaid.y} being the expert.
   * Parameters: control, addresses of the matrices, in, lists, out.
   */
  PtxKernel grouped(Op.ExpertLinear o, TensorType type) {
    PtxKernel k = new PtxKernel(Emitter.THREADS);
    int n = Math.toIntExact(o.experts().getFirst().cols());
    int m = Math.toIntExact(o.experts().getFirst().rows());
    int used = o.used();
    k.parameter(U64);
    PtxRegister table = k.parameter(U64);
    PtxRegister x = k.parameter(U64);
    PtxRegister lists = k.parameter(U64);
    PtxRegister y = k.parameter(U64);
    PtxRegister thread = k.special("tid.x");
    PtxRegister lane = k.and(thread, 31);
    PtxRegister i = k.fma(k.special("ctaid.x"), Emitter.WARPS, k.shr(thread, 5));
    k.when(k.compare("ge", i, m), k::exit);
    PtxRegister e = k.special("ctaid.y");
    PtxRegister list = k.address(lists, e, listBytes(control.rows(), used));
    PtxRegister count = k.load(U32, list, 0);
    PtxRegister matrix = k.load(U64, k.address(table, e, 8), 0);
    PtxRegister data = k.address(matrix, i, Emitter.rowBytes(type, n));
    PtxRegister first = k.constant(U32, 0);
    k.loop(
        first,
        count,
        Emitter.TILE,
        () -> {
          PtxRegister last = k.sub(count, 1);
          PtxRegister[] at = new PtxRegister[Emitter.TILE];
          PtxRegister[] to = new PtxRegister[Emitter.TILE];
          PtxRegister[] sums = new PtxRegister[Emitter.TILE];
          for (int r = 0; r < Emitter.TILE; r++) {
            // Pairs past the last are computed as it and not stored.
            PtxRegister pair = k.load(U32, k.address(list, k.min(k.add(first, r), last), 4), 4);
            PtxRegister row = k.div(pair, used);
            PtxRegister place = k.rem(pair, used);
            at[r] = k.address(x, row, 4 * o.in().width());
            if (o.parts()) {
              at[r] = k.address(at[r], place, 4 * n);
            }
            to[r] = k.address(k.address(y, row, 4 * o.out().width()), place, 4 * m);
            sums[r] = k.constant(F32, 0);
          }
          products(k, type, data, n, lane, at, sums);
          for (int r = 0; r < Emitter.TILE; r++) {
            PtxRegister sum = k.warpSum(sums[r]);
            PtxRegister there = to[r];
            k.when(
                k.both(k.compare("eq", lane, 0), k.compare("lt", k.add(first, r), count)),
                () -> k.store(F32, k.address(there, i, 4), 0, sum));
          }
        });
    return k;
  }

  /** Adds the products of a stored row with rows of floats, 32 columns after the other. */
  static void products(
      PtxKernel k,
      TensorType type,
      PtxRegister data,
      int n,
      PtxRegister lane,
      PtxRegister[] at,
      PtxRegister[] sums) {
    PtxRegister base = k.constant(U32, 0);
    int whole = n & -32;
    Runnable step =
        () -> {
          PtxRegister w = Emitter.weight(k, type, data, base, lane);
          PtxRegister column = k.add(base, lane);
          for (int r = 0; r < at.length; r++) {
            k.fmaInto(sums[r], w, k.load(F32, k.address(at[r], column, 4), 0), sums[r]);
          }
        };
    k.loop(base, whole, 32, step);
    if (whole < n) {
      k.when(k.compare("lt", lane, n - whole), step);
    }
  }

  /** Parameters: control, in, routing, out. */
  PtxKernel mix(Op.Mix o) {
    int m = o.out().width();
    Emitter.Row b = emit.new Row(o.in().rows());
    PtxKernel k = b.k;
    PtxRegister x = b.floats(k.parameter(U64), b.row, o.in().width());
    PtxRegister routing = b.floats(k.parameter(U64), b.row, o.routing().width());
    PtxRegister y = b.floats(k.parameter(U64), b.row, m);
    PtxRegister i = b.element(m);
    PtxRegister sum = k.constant(F64, 0);
    for (int place = 0; place < o.used(); place++) {
      PtxRegister w = Emitter.wide(k, k.load(F32, routing, 4L * place));
      PtxRegister v = k.load(F32, k.address(x, i, 4), 4L * m * place);
      k.fmaInto(sum, w, Emitter.wide(k, v), sum);
    }
    b.put(y, i, Emitter.narrow(k, sum));
    return k;
  }
}
