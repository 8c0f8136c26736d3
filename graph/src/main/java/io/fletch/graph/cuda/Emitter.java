package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.B16;
import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.F64;
import static io.fletch.ffm.ptx.PtxType.S32;
import static io.fletch.ffm.ptx.PtxType.S8;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;
import static io.fletch.ffm.ptx.PtxType.U8;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Gate;
import io.fletch.graph.KvCache;
import io.fletch.graph.Op;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.Value;
import io.fletch.graph.support.AbstractBatch;
import io.fletch.quant.TensorType;
import java.util.List;
import java.util.Optional;

/**
 * Writes the kernels, specialised to shapes, types and a row bucket. The first parameter of each is
 * the control block; activations are float32, one row after the other. {@code ctaid.y} is the row
 * (of products: the group of rows); blocks of rows that the batch does not have end at once.
 *
 * <p>Every sum has an order that depends on shapes alone: neither on the bucket nor on other rows.
 */
final class Emitter {
  static final int THREADS = 128;
  static final int WARPS = THREADS / 32;

  /** Most rows that a block of a product takes. */
  static final int TILE = 8;

  /** Bytes of a logit row's statistics: argmax, top1, top2, padding, sum, weighted sum. */
  static final int STATISTICS = 32;

  private static final float LOG2E = 1.4426950408889634f;

  private final Control control;

  Emitter(Control control) {
    this.control = control;
  }

  /** What kernels of one row per block start with. */
  final class Row {
    final PtxKernel k = new PtxKernel(THREADS);
    final PtxRegister block = k.parameter(U64);
    final PtxRegister thread = k.special("tid.x");
    final PtxRegister row = k.special("ctaid.y");
    final PtxRegister batchRow;

    Row(Value.Rows rows) {
      boolean logits = rows == Value.Rows.LOGITS;
      PtxRegister count = k.load(U32, block, logits ? Control.LOGIT_ROWS : Control.ROWS);
      k.when(k.compare("ge", row, count), k::exit);
      batchRow = logits ? word(row, control.logitSource()) : row;
    }

    PtxRegister word(PtxRegister index, int offset) {
      return k.load(U32, k.address(block, index, 4), offset);
    }

    PtxRegister skipped(Gate gate) {
      return Emitter.this.skipped(k, block, batchRow, gate);
    }

    /** The row of a matrix of floats. */
    PtxRegister floats(PtxRegister base, PtxRegister index, int width) {
      return k.address(base, index, 4 * width);
    }

    /** Ends threads past the width; the others have one element each. */
    PtxRegister element(int width) {
      PtxRegister i = k.fma(k.special("ctaid.x"), THREADS, thread);
      k.when(k.compare("ge", i, width), k::exit);
      return i;
    }

    PtxRegister get(PtxRegister floats, PtxRegister i) {
      return k.load(F32, k.address(floats, i, 4), 0);
    }

    void put(PtxRegister floats, PtxRegister i, PtxRegister value) {
      k.store(F32, k.address(floats, i, 4), 0, value);
    }
  }

  /** Whether a batch row does not run what a gate lets run. */
  PtxRegister skipped(PtxKernel k, PtxRegister block, PtxRegister batchRow, Gate gate) {
    int at = control.gate(AbstractBatch.gateIndex(gate.layer(), gate.unit()));
    PtxRegister is = k.load(U8, k.address(block, batchRow, 1), at);
    return k.compare("ne", is, gate.branch().runsAt());
  }

  /** log(N(x) / N(-x)) / x as a polynomial of x^2 up to 30, the highest power first. */
  private static final float[] GELU = {
    -2.7793236e-11f,
    5.270821e-9f,
    -3.0449104e-7f,
    8.350775e-6f,
    -1.1280115e-4f,
    -5.9748036e-5f,
    0.07266046f,
    1.5957717f
  };

  static PtxRegister exp(PtxKernel k, PtxRegister x) {
    return k.unary("ex2.approx.ftz", k.mul(x, LOG2E));
  }

  /** 1 - 2 / (exp(2 x) + 1). */
  static PtxRegister tanh(PtxKernel k, PtxRegister x) {
    PtxRegister e = k.add(exp(k, k.add(x, x)), 1f);
    return k.sub(k.constant(F32, 1f), k.quotient(k.constant(F32, 2f), e));
  }

  /** Element {@code lane} of the 32 from {@code base} on of a stored row. */
  static PtxRegister weight(
      PtxKernel k, TensorType type, PtxRegister data, PtxRegister base, PtxRegister lane) {
    String space = "global.nc";
    PtxRegister column = k.add(base, lane);
    return switch (type) {
      case F32 -> k.load(space, F32, k.address(data, column, 4), 0);
      case F16 -> half(k, k.load(space, B16, k.address(data, column, 2), 0));
      case BF16 -> k.bfloat(k.load(space, B16, k.address(data, column, 2), 0));
      case Q8_0 -> {
        PtxRegister at = k.address(data, k.shr(base, 5), type.blockBytes());
        PtxRegister q = k.load(space, S8, k.address(at, lane, 1), 2);
        yield k.mul(half(k, k.load(space, B16, at, 0)), k.convert(".rn", F32, "f32", q, "s32"));
      }
      case Q4_0 -> {
        PtxRegister at = k.address(data, k.shr(base, 5), type.blockBytes());
        PtxRegister pair = k.load(space, U8, k.address(at, k.and(lane, 15), 1), 2);
        // Lanes 16 to 31 have the upper halves.
        PtxRegister q = k.and(k.shr(pair, k.shl(k.shr(lane, 4), 2)), 15);
        PtxRegister f = k.add(k.convert(".rn", F32, "f32", q, "u32"), -8f);
        yield k.mul(half(k, k.load(space, B16, at, 0)), f);
      }
      default -> throw new IllegalArgumentException("no kernel for " + type);
    };
  }

  /** Whether kernels read a type as it is stored. */
  static boolean isNative(TensorType type) {
    return switch (type) {
      case F32, F16, BF16, Q8_0, Q4_0 -> true;
      default -> false;
    };
  }

  static PtxRegister half(PtxKernel k, PtxRegister bits) {
    return k.convert("", F32, "f32", bits, "f16");
  }

  /** Parameters: control, table, out. */
  PtxKernel embedding(TensorType type, int width, Op.Embedding.Index index, float scale) {
    Row b = new Row(Value.Rows.BATCH);
    PtxKernel k = b.k;
    PtxRegister table = k.parameter(U64);
    PtxRegister out = b.floats(k.parameter(U64), b.row, width);
    PtxRegister i = b.element(width);
    PtxRegister data =
        switch (index) {
          case TOKEN -> k.address(table, b.word(b.row, control.token()), rowBytes(type, width));
          case POSITION ->
              k.address(table, b.word(b.row, control.position()), rowBytes(type, width));
          case FIRST -> table;
        };
    PtxRegister lane = k.and(i, 31);
    b.put(out, i, k.mul(weight(k, type, data, k.sub(i, lane), lane), scale));
    return k;
  }

  /** Parameters: control, out. */
  PtxKernel input(int from, int width) {
    Row b = new Row(Value.Rows.BATCH);
    PtxKernel k = b.k;
    PtxRegister out = b.floats(k.parameter(U64), b.row, width);
    PtxRegister i = b.element(width);
    PtxRegister at = k.address(b.block, k.fma(b.row, control.numbers(), i), 4);
    b.put(out, i, k.load(F32, at, control.input() + 4 * from));
    return k;
  }

  static int rowBytes(TensorType type, int width) {
    return Math.toIntExact((long) width / type.blockSize() * type.blockBytes());
  }

  /**
   * A warp computes one element of up to {@link #TILE} rows: lane l sums columns l, l + 32, ... in
   * this order, then the lanes are added. Parameters: control, weights, in, out, bias if any.
   */
  PtxKernel linear(
      TensorType type, int in, int out, boolean bias, Optional<Gate> gate, Value.Rows rows) {
    int tile = Math.min(TILE, control.rows());
    PtxKernel k = new PtxKernel(THREADS);
    PtxRegister block = k.parameter(U64);
    PtxRegister weights = k.parameter(U64);
    PtxRegister x = k.parameter(U64);
    PtxRegister y = k.parameter(U64);
    Optional<PtxRegister> biases = bias ? Optional.of(k.parameter(U64)) : Optional.empty();
    boolean logits = rows == Value.Rows.LOGITS;
    PtxRegister count = k.load(U32, block, logits ? Control.LOGIT_ROWS : Control.ROWS);
    PtxRegister first = k.mul(k.special("ctaid.y"), tile);
    k.when(k.compare("ge", first, count), k::exit);
    PtxRegister thread = k.special("tid.x");
    PtxRegister lane = k.and(thread, 31);
    PtxRegister o = k.fma(k.special("ctaid.x"), WARPS, k.shr(thread, 5));
    k.when(k.compare("ge", o, out), k::exit);
    PtxRegister last = k.sub(count, 1);
    if (gate.isPresent() && tile == 1) {
      // The rows of weights of a unit that rests are not read.
      k.when(
          skipped(k, block, batchRow(k, block, first, logits), gate.get()),
          () -> {
            PtxRegister to = k.address(k.address(y, first, 4 * out), o, 4);
            k.when(k.compare("eq", lane, 0), () -> k.store(F32, to, 0, k.constant(F32, 0)));
            k.exit();
          });
    }
    PtxRegister[] at = new PtxRegister[tile];
    PtxRegister[] sums = new PtxRegister[tile];
    for (int r = 0; r < tile; r++) {
      // Rows past the last are computed as it and not stored.
      at[r] = k.address(x, k.min(k.add(first, r), last), 4 * in);
      sums[r] = k.constant(F32, 0);
    }
    PtxRegister data = k.address(weights, o, rowBytes(type, in));
    PtxRegister base = k.constant(U32, 0);
    int whole = in & -32;
    Runnable step =
        () -> {
          PtxRegister w = weight(k, type, data, base, lane);
          PtxRegister column = k.add(base, lane);
          for (int r = 0; r < tile; r++) {
            k.fmaInto(sums[r], w, k.load(F32, k.address(at[r], column, 4), 0), sums[r]);
          }
        };
    k.loop(base, whole, 32, step);
    if (whole < in) {
      k.when(k.compare("lt", lane, in - whole), step);
    }
    for (int r = 0; r < tile; r++) {
      PtxRegister sum = k.warpSum(sums[r]);
      PtxRegister row = k.add(first, r);
      PtxRegister stores = k.both(k.compare("eq", lane, 0), k.compare("lt", row, count));
      k.when(
          stores,
          () -> {
            PtxRegister value =
                biases.map(b -> k.add(sum, k.load(F32, k.address(b, o, 4), 0))).orElse(sum);
            if (gate.isPresent()) {
              PtxRegister skip = skipped(k, block, batchRow(k, block, row, logits), gate.get());
              value = k.select(skip, k.constant(F32, 0), value);
            }
            k.store(F32, k.address(k.address(y, row, 4 * out), o, 4), 0, value);
          });
    }
    return k;
  }

  private PtxRegister batchRow(PtxKernel k, PtxRegister block, PtxRegister row, boolean logits) {
    return logits ? k.load(U32, k.address(block, row, 4), control.logitSource()) : row;
  }

  /**
   * The rule of {@link io.fletch.graph.Op.SkipSimilar}, a block per row. Parameters: control,
   * before, after.
   *
   * @param targets indices of gate bytes, nearest first
   */
  PtxKernel skipSimilar(int decision, int width, Gate unit, int[] targets) {
    Row b = new Row(Value.Rows.BATCH);
    PtxKernel k = b.k;
    PtxRegister x = b.floats(k.parameter(U64), b.row, width);
    PtxRegister y = b.floats(k.parameter(U64), b.row, width);
    k.when(k.compare("eq", b.word(b.row, control.skips()), 0), k::exit);
    k.when(b.skipped(unit), k::exit);
    PtxRegister shared = k.shared(8 * WARPS);
    PtxRegister dot = k.constant(F64, 0);
    PtxRegister xx = k.constant(F64, 0);
    PtxRegister yy = k.constant(F64, 0);
    PtxRegister i = k.register(U32);
    k.assign(i, b.thread);
    k.loop(
        i,
        width,
        THREADS,
        () -> {
          PtxRegister v = wide(k, b.get(x, i));
          PtxRegister w = wide(k, b.get(y, i));
          k.fmaInto(dot, v, w, dot);
          k.fmaInto(xx, v, v, xx);
          k.fmaInto(yy, w, w, yy);
        });
    PtxRegister product = blockSum(k, shared, dot);
    PtxRegister squares = k.mul(blockSum(k, shared, xx), blockSum(k, shared, yy));
    PtxRegister score = narrow(k, k.div(product, k.unary("sqrt.rn", squares)));
    k.when(
        k.compare("eq", b.thread, 0),
        () -> {
          PtxRegister of = k.address(b.block, b.row, 4);
          k.store(F32, of, control.score(decision), score);
          PtxRegister threshold = k.load(F32, of, control.skipThreshold());
          k.when(
              k.compare("ge", score, threshold),
              () -> {
                PtxRegister left = k.load(U32, of, control.skipLeft());
                PtxRegister n = k.min(k.load(U32, of, control.skipRun()), left);
                n = k.min(n, k.constant(U32, targets.length));
                PtxRegister at = k.address(b.block, b.row, 1);
                for (int t = 0; t < targets.length; t++) {
                  int gate = control.gate(targets[t]);
                  k.when(
                      k.compare("gt", n, t),
                      () -> k.store(U8, at, gate, k.constant(U32, Gate.SKIP)));
                }
                k.store(U32, of, control.skipLeft(), k.sub(left, n));
              });
        });
    return k;
  }

  /** The rule of {@link io.fletch.graph.Op.RouteUnit}. Parameters: control, scores. */
  PtxKernel routeUnit(int decision, Gate target) {
    Row b = new Row(Value.Rows.BATCH);
    PtxKernel k = b.k;
    PtxRegister scores = b.floats(k.parameter(U64), b.row, 2);
    PtxRegister otherwise = b.word(b.row, control.routeOtherwise());
    k.when(k.compare("eq", otherwise, 0), k::exit);
    k.when(k.compare("ne", b.thread, 0), k::exit);
    k.when(b.skipped(target), k::exit);
    PtxRegister score = k.sub(k.load(F32, scores, 0), k.load(F32, scores, 4));
    PtxRegister of = k.address(b.block, b.row, 4);
    k.store(F32, of, control.score(decision), score);
    PtxRegister at = k.address(b.block, b.row, 1);
    int gate = control.gate(AbstractBatch.gateIndex(target.layer(), target.unit()));
    k.when(
        k.compare("lt", score, k.load(F32, of, control.routeThreshold())),
        () -> k.store(U8, at, gate, otherwise));
    return k;
  }

  /** Sum over the block of one double per thread, in every thread; may be used repeatedly. */
  static PtxRegister blockSum(PtxKernel k, PtxRegister shared, PtxRegister value) {
    PtxRegister thread = k.special("tid.x");
    PtxRegister warp = k.warpSum(value);
    PtxRegister at = k.fma(k.shr(thread, 5), 8, shared);
    k.barrier();
    k.when(k.compare("eq", k.and(thread, 31), 0), () -> k.store("shared", F64, at, 0, warp));
    k.barrier();
    PtxRegister sum = k.load("shared", F64, shared, 0);
    for (int w = 1; w < WARPS; w++) {
      sum = k.add(sum, k.load("shared", F64, shared, 8L * w));
    }
    return sum;
  }

  static PtxRegister wide(PtxKernel k, PtxRegister x) {
    return k.convert("", F64, "f64", x, "f32");
  }

  static PtxRegister narrow(PtxKernel k, PtxRegister x) {
    return k.convert(".rn", F32, "f32", x, "f64");
  }

  /** One group per block in x direction. Parameters: control, in, weight, out. */
  PtxKernel rmsNorm(int width, int groups, float eps, float scale, Value.Rows rows) {
    int n = width / groups;
    Row b = new Row(rows);
    PtxKernel k = b.k;
    PtxRegister group = k.special("ctaid.x");
    PtxRegister x = k.address(b.floats(k.parameter(U64), b.row, width), group, 4 * n);
    PtxRegister weight = k.parameter(U64);
    PtxRegister y = k.address(b.floats(k.parameter(U64), b.row, width), group, 4 * n);
    PtxRegister shared = k.shared(8 * WARPS);
    PtxRegister squares = k.constant(F64, 0);
    PtxRegister i = k.register(U32);
    k.assign(i, b.thread);
    k.loop(
        i,
        n,
        THREADS,
        () -> {
          PtxRegister v = wide(k, b.get(x, i));
          k.fmaInto(squares, v, v, squares);
        });
    PtxRegister mean = k.div(blockSum(k, shared, squares), (double) n);
    PtxRegister root = k.unary("sqrt.rn", k.add(mean, (double) eps));
    PtxRegister factor = k.div(k.constant(F64, (double) scale), root);
    k.assign(i, b.thread);
    k.loop(
        i,
        n,
        THREADS,
        () -> {
          PtxRegister v = k.mul(wide(k, b.get(x, i)), factor);
          b.put(y, i, narrow(k, k.mul(v, wide(k, b.get(weight, i)))));
        });
    return k;
  }

  /** Parameters: control, in, weight, out, bias if any. */
  PtxKernel layerNorm(int n, float eps, boolean bias, Value.Rows rows) {
    Row b = new Row(rows);
    PtxKernel k = b.k;
    PtxRegister x = b.floats(k.parameter(U64), b.row, n);
    PtxRegister weight = k.parameter(U64);
    PtxRegister y = b.floats(k.parameter(U64), b.row, n);
    Optional<PtxRegister> biases = bias ? Optional.of(k.parameter(U64)) : Optional.empty();
    PtxRegister shared = k.shared(8 * WARPS);
    PtxRegister sum = k.constant(F64, 0);
    PtxRegister i = k.register(U32);
    k.assign(i, b.thread);
    k.loop(i, n, THREADS, () -> k.assign(sum, k.add(sum, wide(k, b.get(x, i)))));
    PtxRegister mean = k.div(blockSum(k, shared, sum), (double) n);
    PtxRegister squares = k.constant(F64, 0);
    k.assign(i, b.thread);
    k.loop(
        i,
        n,
        THREADS,
        () -> {
          PtxRegister d = k.sub(wide(k, b.get(x, i)), mean);
          k.fmaInto(squares, d, d, squares);
        });
    PtxRegister variance = k.div(blockSum(k, shared, squares), (double) n);
    PtxRegister root = k.unary("sqrt.rn", k.add(variance, (double) eps));
    k.assign(i, b.thread);
    k.loop(
        i,
        n,
        THREADS,
        () -> {
          PtxRegister d = k.div(k.sub(wide(k, b.get(x, i)), mean), root);
          PtxRegister v = k.mul(d, wide(k, b.get(weight, i)));
          PtxRegister shifted = biases.map(w -> k.add(v, wide(k, b.get(w, i)))).orElse(v);
          b.put(y, i, narrow(k, shifted));
        });
    return k;
  }

  /**
   * A thread turns a pair of all heads; angles, sines and products are doubles. Parameters:
   * control, in, frequencies, out.
   */
  PtxKernel rope(RopeSpec spec, int heads, int headDim, Value.Rows rows) {
    int width = heads * headDim;
    int pairs = spec.inverseFrequency().length;
    boolean normal = spec.style() == RopeSpec.Style.NORM;
    Row b = new Row(rows);
    PtxKernel k = b.k;
    PtxRegister x = b.floats(k.parameter(U64), b.row, width);
    PtxRegister frequencies = k.parameter(U64);
    PtxRegister y = b.floats(k.parameter(U64), b.row, width);
    PtxRegister position =
        k.convert(".rn", F64, "f64", b.word(b.batchRow, control.position()), "u32");
    PtxRegister i = k.register(U32);
    k.assign(i, b.thread);
    k.loop(
        i,
        pairs,
        THREADS,
        () -> {
          PtxRegister[] turn = turn(k, position, b.get(frequencies, i), spec.magnitude());
          PtxRegister sine = turn[0];
          PtxRegister cosine = turn[1];
          PtxRegister p = k.register(U32);
          k.assign(p, normal ? k.shl(i, 1) : i);
          int second = normal ? 1 : pairs;
          k.loop(
              p,
              width,
              headDim,
              () -> {
                PtxRegister u = wide(k, b.get(x, p));
                PtxRegister v = wide(k, b.get(x, k.add(p, second)));
                PtxRegister left = k.sub(k.mul(u, cosine), k.mul(v, sine));
                b.put(y, p, narrow(k, left));
                PtxRegister right = k.fma(v, cosine, k.mul(u, sine));
                b.put(y, k.add(p, second), narrow(k, right));
              });
        });
    if (2 * pairs < headDim) {
      k.assign(i, b.thread);
      k.loop(
          i,
          width,
          THREADS,
          () ->
              k.when(
                  k.compare("ge", k.rem(i, headDim), 2 * pairs), () -> b.put(y, i, b.get(x, i))));
    }
    return k;
  }

  /**
   * Sine and cosine of a position times a frequency, both times a magnitude.
   *
   * @param position a double
   * @param frequency a float
   */
  static PtxRegister[] turn(
      PtxKernel k, PtxRegister position, PtxRegister frequency, float magnitude) {
    PtxRegister angle = k.mul(position, wide(k, frequency));
    PtxRegister turns = k.convert(".rni", F64, "f64", k.mul(angle, 2 / Math.PI), "f64");
    PtxRegister r = k.fma(turns, -1.5707963267948966, angle);
    r = k.fma(turns, -6.123233995736766e-17, r);
    PtxRegister quarter = k.convert(".rzi", S32, "s32", turns, "f64");
    PtxRegister square = k.mul(r, r);
    PtxRegister s = k.mul(polynomial(k, square, 1, 3, 5, 7, 9, 11, 13, 15), r);
    PtxRegister c = polynomial(k, square, 0, 2, 4, 6, 8, 10, 12, 14, 16);
    PtxRegister odd = k.compare("ne", k.and(quarter, 1), 0);
    PtxRegister sin = k.select(odd, c, s);
    PtxRegister cos = k.select(odd, s, c);
    PtxRegister negateSin = k.compare("ne", k.and(quarter, 2), 0);
    PtxRegister negateCos = k.compare("ne", k.and(k.add(quarter, 1), 2), 0);
    sin = k.select(negateSin, k.unary("neg", sin), sin);
    cos = k.select(negateCos, k.unary("neg", cos), cos);
    return new PtxRegister[] {k.mul(sin, (double) magnitude), k.mul(cos, (double) magnitude)};
  }

  /** Taylor terms of those powers, of alternating sign, the argument being squared. */
  private static PtxRegister polynomial(PtxKernel k, PtxRegister square, int... powers) {
    PtxRegister sum = k.constant(F64, 0.0);
    for (int n = powers.length - 1; n >= 0; n--) {
      double term = n % 2 == 0 ? 1 : -1;
      for (int f = 2; f <= powers[n]; f++) {
        term /= f;
      }
      sum = k.fma(sum, square, term);
    }
    return sum;
  }

  static int kvBytes(KvCache.Type type, int elements) {
    return switch (type) {
      case F32 -> 4 * elements;
      case F16 -> 2 * elements;
      case Q8_0 -> elements / 32 * 34;
    };
  }

  /**
   * Where a row's slot lies in its cache.
   *
   * @param before bytes per slot of what lies before these keys or values in a cache
   */
  PtxRegister slot(
      PtxKernel k, PtxRegister block, PtxRegister row, int before, KvCache.Type type, int width) {
    PtxRegister cache = k.load(U64, k.address(block, row, 8), control.cache());
    PtxRegister words = k.address(block, row, 4);
    PtxRegister layer = k.address(cache, k.load(U32, words, control.capacity()), before);
    return k.address(layer, k.load(U32, words, control.slot()), kvBytes(type, width));
  }

  /** Writes an element of a slot; of a Q8_0 cache all lanes of a warp write a block. */
  static void intoCache(
      PtxKernel k, KvCache.Type type, PtxRegister to, PtxRegister i, PtxRegister x) {
    switch (type) {
      case F32 -> k.store(F32, k.address(to, i, 4), 0, x);
      case F16 -> k.store(B16, k.address(to, i, 2), 0, k.convert(".rn", B16, "f16", x, "f32"));
      case Q8_0 -> {
        PtxRegister largest = k.unary("abs", x);
        for (int mask = 16; mask > 0; mask >>= 1) {
          largest = k.max(largest, k.shuffleXor(largest, mask));
        }
        PtxRegister d = k.div(largest, 127f);
        PtxRegister inverse = k.div(k.constant(F32, 1), d);
        PtxRegister zero = k.compare("eq", d, 0);
        PtxRegister scaled = k.mul(x, k.select(zero, k.constant(F32, 0), inverse));
        PtxRegister q = k.convert(".rni", S32, "s32", scaled, "f32");
        PtxRegister at = k.address(to, k.shr(i, 5), 34);
        PtxRegister lane = k.and(i, 31);
        k.store(U8, k.address(at, lane, 1), 2, q);
        PtxRegister scale = k.convert(".rn", B16, "f16", d, "f32");
        k.when(k.compare("eq", lane, 0), () -> k.store(B16, at, 0, scale));
      }
    }
  }

  /**
   * Parameters: control, keys or values.
   *
   * @param bytesBefore bytes per slot of what lies before these in a cache
   */
  PtxKernel kvStore(KvCache.Type type, int width, int bytesBefore) {
    Row b = new Row(Value.Rows.BATCH);
    PtxKernel k = b.k;
    PtxRegister in = b.floats(k.parameter(U64), b.row, width);
    PtxRegister to = slot(k, b.block, b.row, bytesBefore, type, width);
    PtxRegister i = b.element(width);
    intoCache(k, type, to, i, b.get(in, i));
    return k;
  }

  /**
   * One head of one row per block. The visible slots go to the warps in turn; each warp keeps a
   * running maximum, sum and result (a lane has every 32nd element), which are joined in the order
   * of the warps. Parameters: control, queries, out.
   *
   * @param keysBefore bytes per slot of what lies before the layer's keys in a cache
   * @param parts what the result is written as instead of floats
   */
  PtxKernel attention(
      AttentionSpec spec,
      KvCache.Type type,
      int window,
      int keysBefore,
      Optional<Gate> gate,
      Value.Rows rows,
      Optional<Parts> parts) {
    Row b = new Row(rows);
    PtxKernel k = b.k;
    PtxRegister head = k.special("ctaid.x");
    int valueDim = spec.valueDim();
    int keyParts = (spec.keyDim() + 31) / 32;
    int valueParts = (valueDim + 31) / 32;
    PtxRegister q =
        k.address(
            b.floats(k.parameter(U64), b.row, spec.heads() * spec.keyDim()),
            head,
            4 * spec.keyDim());
    Result y = result(b, k.parameter(U64), head, spec, parts);
    PtxRegister i = k.register(U32);
    if (gate.isPresent()) {
      k.when(
          b.skipped(gate.get()),
          () -> {
            k.assign(i, b.thread);
            k.loop(i, valueDim, THREADS, () -> y.put(i, k.constant(F32, 0)));
            k.exit();
          });
    }
    PtxRegister lane = k.and(b.thread, 31);
    PtxRegister warp = k.shr(b.thread, 5);
    PtxRegister cache = k.load(U64, k.address(b.block, b.batchRow, 8), control.cache());
    PtxRegister capacity = b.word(b.batchRow, control.capacity());
    int keyRow = kvBytes(type, spec.kvHeads() * spec.keyDim());
    int valueRow = kvBytes(type, spec.kvHeads() * valueDim);
    PtxRegister kvHead = k.div(head, spec.heads() / spec.kvHeads());
    PtxRegister keys =
        k.address(k.address(cache, capacity, keysBefore), kvHead, kvBytes(type, spec.keyDim()));
    PtxRegister values =
        k.address(k.address(cache, capacity, keysBefore + keyRow), kvHead, kvBytes(type, valueDim));
    PtxRegister[] query = new PtxRegister[keyParts];
    for (int part = 0; part < keyParts; part++) {
      query[part] = k.constant(F32, 0);
      int at = part;
      lanes(
          k,
          lane,
          spec.keyDim(),
          part,
          () -> k.assign(query[at], k.load(F32, k.address(q, lane, 4), 128L * at)));
    }
    PtxRegister[] sums = new PtxRegister[valueParts];
    for (int part = 0; part < valueParts; part++) {
      sums[part] = k.constant(F32, 0);
    }
    PtxRegister most = k.constant(F32, Float.NEGATIVE_INFINITY);
    PtxRegister total = k.constant(F32, 0);
    PtxRegister ranges = k.address(b.block, b.batchRow, Control.RANGE_BYTES);
    PtxRegister count = k.load(U32, ranges, control.ranges(window));
    PtxRegister seen = k.constant(U32, 0);
    PtxRegister slot = k.register(U32);
    for (int range = 0; range < 3; range++) {
      int at = control.ranges(window) + 4 + 8 * range;
      k.when(
          k.compare("gt", count, range),
          () -> {
            PtxRegister from = k.load(U32, ranges, at);
            PtxRegister to = k.load(U32, ranges, at + 4L);
            k.assign(slot, k.add(from, k.and(k.sub(warp, seen), WARPS - 1)));
            k.assign(seen, k.add(seen, k.sub(to, from)));
            k.loop(
                slot,
                to,
                WARPS,
                () -> {
                  PtxRegister key = k.address(keys, slot, keyRow);
                  PtxRegister dot = k.constant(F32, 0);
                  for (int part = 0; part < keyParts; part++) {
                    int p = part;
                    lanes(
                        k,
                        lane,
                        spec.keyDim(),
                        part,
                        () -> k.fmaInto(dot, query[p], kvElement(k, type, key, p, lane), dot));
                  }
                  PtxRegister score = k.mul(k.warpSum(dot), spec.scale());
                  if (spec.softCap() > 0) {
                    score = k.mul(tanh(k, k.div(score, spec.softCap())), spec.softCap());
                  }
                  PtxRegister next = k.max(most, score);
                  // While all scores are minus infinity, their weights are zeros and not
                  // exp(infinity - infinity).
                  PtxRegister base =
                      k.select(k.compare("ne", next, Float.NEGATIVE_INFINITY), next, 0f);
                  PtxRegister old = exp(k, k.sub(most, base));
                  PtxRegister p = exp(k, k.sub(score, base));
                  k.assign(most, next);
                  k.fmaInto(total, total, old, p);
                  PtxRegister value = k.address(values, slot, valueRow);
                  for (int part = 0; part < valueParts; part++) {
                    int at2 = part;
                    lanes(
                        k,
                        lane,
                        valueDim,
                        part,
                        () -> {
                          PtxRegister v = k.mul(kvElement(k, type, value, at2, lane), p);
                          k.fmaInto(sums[at2], sums[at2], old, v);
                        });
                  }
                });
          });
    }
    join(b, valueDim, lane, warp, most, total, sums, y);
    return k;
  }

  private static void join(
      Row b,
      int valueDim,
      PtxRegister lane,
      PtxRegister warp,
      PtxRegister most,
      PtxRegister total,
      PtxRegister[] sums,
      Result y) {
    PtxKernel k = b.k;
    int stride = 4 * (valueDim + 2);
    PtxRegister shared = k.shared(stride * WARPS);
    PtxRegister mine = k.fma(warp, stride, shared);
    k.when(
        k.compare("eq", lane, 0),
        () -> {
          k.store("shared", F32, mine, 0, most);
          k.store("shared", F32, mine, 4, total);
        });
    for (int part = 0; part < sums.length; part++) {
      int p = part;
      lanes(
          k,
          lane,
          valueDim,
          part,
          () -> k.store("shared", F32, k.fma(lane, 4, mine), 8 + 128L * p, sums[p]));
    }
    k.barrier();
    PtxRegister top = k.load("shared", F32, shared, 0);
    for (int w = 1; w < WARPS; w++) {
      top = k.max(top, k.load("shared", F32, shared, (long) w * stride));
    }
    PtxRegister[] factors = new PtxRegister[WARPS];
    PtxRegister divisor = k.constant(F32, 0);
    for (int w = 0; w < WARPS; w++) {
      factors[w] = exp(k, k.sub(k.load("shared", F32, shared, (long) w * stride), top));
      divisor = k.fma(k.load("shared", F32, shared, (long) w * stride + 4), factors[w], divisor);
    }
    PtxRegister all = divisor;
    PtxRegister i = k.register(U32);
    k.assign(i, b.thread);
    k.loop(
        i,
        valueDim,
        THREADS,
        () -> {
          PtxRegister at = k.fma(i, 4, shared);
          PtxRegister sum = k.constant(F32, 0);
          for (int w = 0; w < WARPS; w++) {
            PtxRegister v = k.load("shared", F32, at, (long) w * stride + 8);
            sum = k.fma(v, factors[w], sum);
          }
          y.put(i, k.div(sum, all));
        });
  }

  /** Takes the elements of a head; of parts all lanes of a warp give a group. */
  private interface Result {
    void put(PtxRegister i, PtxRegister value);
  }

  private static Result result(
      Row b, PtxRegister out, PtxRegister head, AttentionSpec spec, Optional<Parts> parts) {
    PtxKernel k = b.k;
    int n = spec.valueDim();
    if (parts.isEmpty()) {
      PtxRegister y = k.address(b.floats(out, b.row, spec.heads() * n), head, 4 * n);
      return (i, value) -> b.put(y, i, value);
    }
    Parts p = parts.get();
    PtxRegister y = k.address(out, b.row, p.bytes());
    return (i, value) -> {
      PtxRegister column = k.fma(head, n, i);
      p.write(k, y, k.shr(column, 5), k.and(b.thread, 31), value);
    };
  }

  /** Runs a block in the lanes that have an element of a part of 32. */
  private static void lanes(PtxKernel k, PtxRegister lane, int width, int part, Runnable each) {
    if (32 * (part + 1) <= width) {
      each.run();
    } else {
      k.when(k.compare("lt", lane, width - 32 * part), each);
    }
  }

  private static PtxRegister kvElement(
      PtxKernel k, KvCache.Type type, PtxRegister head, int part, PtxRegister lane) {
    return switch (type) {
      case F32 -> k.load(F32, k.address(head, lane, 4), 128L * part);
      case F16 -> half(k, k.load(B16, k.address(head, lane, 2), 64L * part));
      case Q8_0 -> {
        PtxRegister q = k.load(S8, k.address(head, lane, 1), 34L * part + 2);
        PtxRegister f = k.convert(".rn", F32, "f32", q, "s32");
        yield k.mul(f, half(k, k.load(B16, head, 34L * part)));
      }
    };
  }

  /** Parameters: control, up, out, gate half if any. */
  PtxKernel activate(
      Activation kind, int width, boolean gated, Optional<Gate> gate, Value.Rows rows) {
    Row b = new Row(rows);
    PtxKernel k = b.k;
    PtxRegister up = b.floats(k.parameter(U64), b.row, width);
    PtxRegister y = b.floats(k.parameter(U64), b.row, width);
    PtxRegister other = gated ? b.floats(k.parameter(U64), b.row, width) : up;
    PtxRegister i = b.element(width);
    gate.ifPresent(g ->
        k.when(
            b.skipped(g),
            () -> {
              b.put(y, i, k.constant(F32, 0));
              k.exit();
            }));
    PtxRegister x = b.get(other, i);
    PtxRegister a = activation(k, kind, x);
    b.put(y, i, gated ? k.mul(a, b.get(up, i)) : a);
    return k;
  }

  static PtxRegister activation(PtxKernel k, Activation kind, PtxRegister x) {
    return switch (kind) {
      case SILU -> k.quotient(x, k.add(exp(k, k.unary("neg", x)), 1f));
      case GELU_TANH -> {
        PtxRegister cube = k.mul(k.mul(x, x), x);
        PtxRegister inner = k.mul(k.fma(cube, 0.044715f, x), (float) Math.sqrt(2 / Math.PI));
        yield k.mul(k.mul(x, 0.5f), k.add(tanh(k, inner), 1f));
      }
      case GELU_ERF -> geluErf(k, x);
      case RELU -> positive(k, x);
      case RELU_SQUARED -> {
        PtxRegister p = positive(k, x);
        yield k.mul(p, p);
      }
    };
  }

  /** As {@link io.fletch.graph.cpu} does it: x sigmoid(u), u an odd polynomial. */
  private static PtxRegister geluErf(PtxKernel k, PtxRegister x) {
    PtxRegister square = k.mul(x, x);
    PtxRegister z = k.select(k.compare("gt", square, 30f), k.constant(F32, 30f), square);
    PtxRegister p = k.constant(F32, GELU[0]);
    for (int i = 1; i < GELU.length; i++) {
      p = k.fma(p, z, GELU[i]);
    }
    return k.quotient(x, k.add(exp(k, k.unary("neg", k.mul(x, p))), 1f));
  }

  /** max(x, 0) that keeps a NaN. */
  private static PtxRegister positive(PtxKernel k, PtxRegister x) {
    return k.select(k.compare("lt", x, 0), k.constant(F32, 0), x);
  }

  /** Parameters: control, residual, branch, out. */
  PtxKernel add(int width, float scale, Optional<Gate> gate, Value.Rows rows) {
    Row b = new Row(rows);
    PtxKernel k = b.k;
    PtxRegister residual = b.floats(k.parameter(U64), b.row, width);
    PtxRegister branch = b.floats(k.parameter(U64), b.row, width);
    PtxRegister y = b.floats(k.parameter(U64), b.row, width);
    PtxRegister i = b.element(width);
    PtxRegister x = b.get(residual, i);
    gate.ifPresent(g ->
        k.when(
            b.skipped(g),
            () -> {
              b.put(y, i, x);
              k.exit();
            }));
    b.put(y, i, k.fma(b.get(branch, i), scale, x));
    return k;
  }

  /** Parameters: control, in, out. */
  PtxKernel scale(int width, float factor, Value.Rows rows) {
    Row b = new Row(rows);
    PtxRegister x = b.floats(b.k.parameter(U64), b.row, width);
    PtxRegister y = b.floats(b.k.parameter(U64), b.row, width);
    PtxRegister i = b.element(width);
    b.put(y, i, b.k.mul(b.get(x, i), factor));
    return b.k;
  }

  /** Parameters: control, in, factors, out, bias if there is one. */
  PtxKernel affine(int width, boolean bias, Optional<Gate> gate, Value.Rows rows) {
    Row b = new Row(rows);
    PtxKernel k = b.k;
    PtxRegister x = b.floats(k.parameter(U64), b.row, width);
    PtxRegister factors = k.parameter(U64);
    PtxRegister y = b.floats(k.parameter(U64), b.row, width);
    Optional<PtxRegister> biases = bias ? Optional.of(k.parameter(U64)) : Optional.empty();
    PtxRegister i = b.element(width);
    gate.ifPresent(g ->
        k.when(
            b.skipped(g),
            () -> {
              b.put(y, i, k.constant(F32, 0));
              k.exit();
            }));
    PtxRegister product = k.mul(b.get(factors, i), b.get(x, i));
    b.put(y, i, biases.map(w -> k.add(product, b.get(w, i))).orElse(product));
    return k;
  }

  /** Parameters: control, in, out. */
  PtxKernel softCap(int width, float cap, Value.Rows rows) {
    Row b = new Row(rows);
    PtxKernel k = b.k;
    PtxRegister x = b.floats(k.parameter(U64), b.row, width);
    PtxRegister y = b.floats(k.parameter(U64), b.row, width);
    PtxRegister i = b.element(width);
    b.put(y, i, k.mul(tanh(k, k.div(b.get(x, i), cap)), cap));
    return k;
  }

  /** Parameters: control, in, out. */
  PtxKernel slice(int in, int from, int width, Value.Rows rows) {
    Row b = new Row(rows);
    PtxRegister x = b.floats(b.k.parameter(U64), b.row, in);
    PtxRegister y = b.floats(b.k.parameter(U64), b.row, width);
    PtxRegister i = b.element(width);
    b.put(y, i, b.get(x, b.k.add(i, from)));
    return b.k;
  }

  /** Parameters: control, in, out. */
  PtxKernel keepLargest(int width, int n, int m, Value.Rows rows) {
    Row b = new Row(rows);
    PtxKernel k = b.k;
    PtxRegister x = b.floats(k.parameter(U64), b.row, width);
    PtxRegister y = b.floats(k.parameter(U64), b.row, width);
    PtxRegister i = b.element(width);
    PtxRegister own = k.rem(i, m);
    PtxRegister first = k.sub(i, own);
    PtxRegister value = b.get(x, i);
    PtxRegister size = k.unary("abs", value);
    PtxRegister larger = k.constant(U32, 0);
    for (int j = 0; j < m; j++) {
      PtxRegister other = k.unary("abs", b.get(x, k.add(first, j)));
      PtxRegister before = k.both(k.compare("eq", other, size), k.compare("gt", own, j));
      PtxRegister counts = k.either(k.compare("gt", other, size), before);
      larger = k.add(larger, k.select(counts, k.constant(U32, 1), 0));
    }
    b.put(y, i, k.select(k.compare("lt", larger, n), value, 0f));
    return k;
  }

  /** Parameters: control, residual, branch, out. */
  PtxKernel replace(int width, Gate gate, Value.Rows rows) {
    Row b = new Row(rows);
    PtxKernel k = b.k;
    PtxRegister residual = b.floats(k.parameter(U64), b.row, width);
    PtxRegister branch = b.floats(k.parameter(U64), b.row, width);
    PtxRegister y = b.floats(k.parameter(U64), b.row, width);
    PtxRegister i = b.element(width);
    k.when(
        b.skipped(gate),
        () -> {
          b.put(y, i, b.get(residual, i));
          k.exit();
        });
    b.put(y, i, b.get(branch, i));
    return k;
  }

  /**
   * Elements of a row, from {@code in} on those of a second value. Parameters: control, in,
   * columns, out, the second value if it has a width.
   */
  PtxKernel gather(int in, int more, int width, Value.Rows rows) {
    Row b = new Row(rows);
    PtxKernel k = b.k;
    PtxRegister x = b.floats(k.parameter(U64), b.row, in);
    PtxRegister columns = k.parameter(U64);
    PtxRegister y = b.floats(k.parameter(U64), b.row, width);
    Optional<PtxRegister> second =
        more > 0 ? Optional.of(b.floats(k.parameter(U64), b.row, more)) : Optional.empty();
    PtxRegister i = b.element(width);
    PtxRegister column = k.load(U32, k.address(columns, i, 4), 0);
    second.ifPresent(s ->
        k.when(
            k.compare("ge", column, in),
            () -> {
              b.put(y, i, b.get(s, k.sub(column, in)));
              k.exit();
            }));
    b.put(y, i, b.get(x, column));
    return k;
  }

  /** Parameters: control, in, out. */
  PtxKernel selectRows(int width) {
    Row b = new Row(Value.Rows.LOGITS);
    PtxRegister x = b.floats(b.k.parameter(U64), b.batchRow, width);
    PtxRegister y = b.floats(b.k.parameter(U64), b.row, width);
    PtxRegister i = b.element(width);
    b.put(y, i, b.get(x, i));
    return b.k;
  }

  /**
   * Largest two logits, the lowest id of the largest, sum of exp(x - max) and of (x - max) exp(x -
   * max) in double. Parameters: control, logits, out.
   */
  PtxKernel statistics(int width) {
    Row b = new Row(Value.Rows.LOGITS);
    PtxKernel k = b.k;
    PtxRegister x = b.floats(k.parameter(U64), b.row, width);
    PtxRegister out = k.address(k.parameter(U64), b.row, STATISTICS);
    PtxRegister shared = k.shared(12 * THREADS);
    PtxRegister sums = k.shared(8 * WARPS);
    PtxRegister best = k.constant(U32, 0);
    PtxRegister top1 = k.constant(F32, Float.NEGATIVE_INFINITY);
    PtxRegister top2 = k.constant(F32, Float.NEGATIVE_INFINITY);
    PtxRegister i = k.register(U32);
    k.assign(i, b.thread);
    k.loop(
        i,
        width,
        THREADS,
        () -> {
          PtxRegister v = b.get(x, i);
          PtxRegister larger = k.compare("gt", v, top1);
          k.assign(top2, k.select(larger, top1, k.max(top2, v)));
          k.assign(best, k.select(larger, i, best));
          k.assign(top1, k.select(larger, v, top1));
        });
    PtxRegister mine = k.fma(b.thread, 12, shared);
    k.store("shared", F32, mine, 0, top1);
    k.store("shared", F32, mine, 4, top2);
    k.store("shared", U32, mine, 8, best);
    k.barrier();
    // Every thread joins all results, so that all know the maximum.
    PtxRegister at = k.register(U32);
    k.assign(at, shared);
    PtxRegister end = k.add(shared, 12 * THREADS);
    k.assign(best, 0);
    k.assign(top1, Float.NEGATIVE_INFINITY);
    k.assign(top2, Float.NEGATIVE_INFINITY);
    k.loop(
        at,
        end,
        12,
        () -> {
          PtxRegister first = k.load("shared", F32, at, 0);
          PtxRegister second = k.load("shared", F32, at, 4);
          PtxRegister id = k.load("shared", U32, at, 8);
          PtxRegister tie = k.both(k.compare("eq", first, top1), k.compare("lt", id, best));
          PtxRegister larger = k.compare("gt", first, top1);
          k.assign(top2, k.select(larger, k.max(top1, second), k.max(top2, first)));
          k.assign(best, k.select(k.either(larger, tie), id, best));
          k.assign(top1, k.select(larger, first, top1));
        });
    PtxRegister max = wide(k, top1);
    PtxRegister sum = k.constant(F64, 0);
    PtxRegister weighted = k.constant(F64, 0);
    k.assign(i, b.thread);
    k.loop(
        i,
        width,
        THREADS,
        () -> {
          PtxRegister d = k.sub(wide(k, b.get(x, i)), max);
          PtxRegister low = k.compare("lt", d, -700.0);
          PtxRegister e = k.select(low, k.constant(F64, 0), expDouble(k, d));
          k.assign(sum, k.add(sum, e));
          // Below -700 the product is 0, where minus infinity times 0 would be NaN.
          k.fmaInto(weighted, k.select(low, k.constant(F64, 0), d), e, weighted);
        });
    PtxRegister allSum = blockSum(k, sums, sum);
    PtxRegister allWeighted = blockSum(k, sums, weighted);
    k.when(
        k.compare("eq", b.thread, 0),
        () -> {
          k.store(U32, out, 0, best);
          k.store(F32, out, 4, top1);
          k.store(F32, out, 8, top2);
          k.store(F64, out, 16, allSum);
          k.store(F64, out, 24, allWeighted);
        });
    return k;
  }

  /**
   * Makes the first logit row's argmax the token of the next forward of one row, which comes in the
   * next slot and sees all slots up to it; notes the token in a ring of {@link
   * CudaGreedySteps#RING}. Parameters: control, statistics, ring.
   *
   * @param windows sliding windows, 0 for none
   */
  PtxKernel follow(List<Integer> windows) {
    PtxKernel k = new PtxKernel(32);
    PtxRegister block = k.parameter(U64);
    PtxRegister statistics = k.parameter(U64);
    PtxRegister ring = k.parameter(U64);
    k.when(k.compare("ne", k.special("tid.x"), 0), k::exit);
    PtxRegister token = k.load(U32, statistics, 0);
    PtxRegister number = k.load(U32, ring, CudaGreedySteps.COUNT);
    PtxRegister place = k.and(number, CudaGreedySteps.RING - 1);
    k.store(U32, k.address(ring, place, 4), 0, token);
    k.store(U32, ring, CudaGreedySteps.COUNT, k.add(number, 1));
    k.store(U32, block, control.token(), token);
    PtxRegister slot = k.add(k.load(U32, block, control.slot()), 1);
    k.store(U32, block, control.slot(), slot);
    PtxRegister position = k.add(k.load(U32, block, control.position()), 1);
    k.store(U32, block, control.position(), position);
    PtxRegister end = k.add(slot, 1);
    for (int w = 0; w < windows.size(); w++) {
      int window = windows.get(w);
      PtxRegister from = k.constant(U32, 0);
      if (window > 0) {
        from = k.sub(k.max(end, window), window);
      }
      k.store(U32, block, control.ranges(w), k.constant(U32, 1));
      k.store(U32, block, control.ranges(w) + 4L, from);
      k.store(U32, block, control.ranges(w) + 8L, end);
    }
    return k;
  }

  /** exp of a double in [-700, 0] to 1e-10. */
  static PtxRegister expDouble(PtxKernel k, PtxRegister x) {
    PtxRegister n = k.convert(".rni", F64, "f64", k.mul(x, 1.4426950408889634), "f64");
    PtxRegister r = k.fma(n, -0.6931471803691238, x);
    r = k.fma(n, -1.9082149292705877e-10, r);
    double term = 1;
    for (int f = 2; f <= 11; f++) {
      term /= f;
    }
    PtxRegister p = k.constant(F64, term);
    for (int f = 11; f >= 1; f--) {
      term *= f;
      p = k.fma(p, r, term);
    }
    PtxRegister exponent = k.convert(".rzi", S32, "s32", n, "f64");
    PtxRegister biased = k.convert("", U64, "s64", k.add(exponent, 1023), "s32");
    return k.mul(p, k.bits(F64, k.shl(biased, 52)));
  }
}
