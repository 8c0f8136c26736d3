package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.B16;
import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.F64;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.graph.Value;
import io.fletch.quant.TensorType;
import java.util.Optional;

/**
 * How a row of activations lies in memory for products on tensor cores: each element as two numbers
 * of 16 bits. Whoever computes 32 neighbouring elements of a row can write their parts, so that
 * what makes activations writes them itself.
 *
 * <p>Columns come in groups of 32, four groups to a chunk; groups past the last column are zeros. A
 * row has, for all groups: 64 bytes of upper and 64 of lower parts in the order of fragments (for
 * {@code t} and then {@code p} columns {@code 8p + 2t} and the next); the sum of the elements, a
 * float; what the parts are multiples of, a float; the sum of squares, a double. Then comes the
 * factor of the whole row, a float, in 16 bytes. Squares and factor are those of a norm.
 *
 * <p>The parts of what a norm gives are those of its input times its weights; the norm's factor is
 * applied to finished sums. It follows from the squares of the groups: lane l of a warp adds groups
 * l, l + 32, ..., then the lanes are added.
 *
 * @param cols elements of a row
 * @param kind type of the parts
 */
record Parts(int cols, Kind kind) {
  static final int THREADS = 256;

  private static final float LARGEST_BFLOAT = Float.intBitsToFloat(0x7f7f0000);

  /** Types of parts. */
  enum Kind {
    /**
     * Halves of the elements times a power of two per group: together 22 bits of an element, and
     * 2^-40 of the group's largest.
     */
    HALF("f16"),
    /** Bfloat16, for matrices of it: 17 bits. */
    BFLOAT("bf16");

    final String text;

    Kind(String text) {
      this.text = text;
    }

    /** What products with matrices of a type take. */
    static Kind of(TensorType type) {
      return type == TensorType.BF16 ? BFLOAT : HALF;
    }
  }

  /** What a norm does to its rows after the multiplication with its weights. */
  record Norm(float eps, float scale) {}

  /** Groups with columns. */
  int used() {
    return (cols + PackedMatrix.GROUP - 1) / PackedMatrix.GROUP;
  }

  private int groups() {
    return (cols + PackedMatrix.CHUNK - 1) / PackedMatrix.CHUNK * 4;
  }

  int sumsAt() {
    return groups() * 128;
  }

  int sizesAt() {
    return sumsAt() + groups() * 4;
  }

  int squaresAt() {
    return sizesAt() + groups() * 4;
  }

  int factorAt() {
    return squaresAt() + groups() * 8;
  }

  /** Bytes of a row. */
  int bytes() {
    return factorAt() + 16;
  }

  /**
   * Writes a group of a row; all lanes of a warp take part. Writes the groups past the last column
   * too when it writes the last one that has columns.
   *
   * @param row address of the row's parts
   * @param v the lane's element, zero past the last column
   */
  void write(PtxKernel k, PtxRegister row, PtxRegister group, PtxRegister lane, PtxRegister v) {
    PtxRegister finite = finite(k, v);
    PtxRegister upper;
    PtxRegister rest;
    PtxRegister size;
    if (kind == Kind.HALF) {
      PtxRegister bits = k.bits(U32, k.select(finite, k.unary("abs", v), k.constant(F32, 0)));
      // Exponent e + 127 of the largest becomes 14 - e + 127, where that is a number whose inverse
      // is one.
      PtxRegister exponent = k.shr(k.warpMax(bits), 23);
      PtxRegister biased = k.min(k.sub(k.constant(U32, 268), exponent), 253);
      size = k.bits(F32, k.shl(k.sub(k.constant(U32, 254), biased), 23));
      PtxRegister scaled = k.mul(v, k.bits(F32, k.shl(biased, 23)));
      upper = k.convert(".rn", B16, "f16", scaled, "f32");
      rest = k.sub(scaled, k.convert("", F32, "f32", upper, "f16"));
    } else {
      size = k.constant(F32, 1);
      // The largest floats would round to infinity.
      PtxRegister within = k.min(k.max(v, -LARGEST_BFLOAT), LARGEST_BFLOAT);
      upper = k.convert(".rn", B16, "bf16", k.select(finite, within, v), "f32");
      rest = k.sub(v, k.bfloat(upper));
    }
    PtxRegister lower =
        k.convert(".rn", B16, kind.text, k.select(finite, rest, k.constant(F32, 0)), "f32");
    // Lane 8p + 2t + e writes half e of word p of t.
    PtxRegister t = k.shl(k.and(k.shr(lane, 1), 3), 4);
    PtxRegister p = k.shl(k.shr(lane, 3), 2);
    PtxRegister place = k.add(k.add(t, p), k.shl(k.and(lane, 1), 1));
    PtxRegister at = k.address(k.address(row, place, 1), group, 128);
    k.store(B16, at, 0, upper);
    k.store(B16, at, 64, lower);
    PtxRegister sum = k.warpSum(v);
    PtxRegister first = k.compare("eq", lane, 0);
    PtxRegister of = k.address(row, group, 4);
    k.when(
        first,
        () -> {
          k.store(F32, of, sumsAt(), sum);
          k.store(F32, of, sizesAt(), size);
        });
    int past = groups() - used();
    if (past > 0) {
      k.when(
          k.compare("eq", group, used() - 1),
          () -> {
            PtxRegister none = k.constant(B16, 0);
            PtxRegister zero = k.constant(F32, 0);
            for (int i = 1; i <= past; i++) {
              k.store(B16, at, 128L * i, none);
              k.store(B16, at, 128L * i + 64, none);
              k.store(F32, of, sumsAt() + 4L * i, zero);
              k.store(F32, of, sizesAt() + 4L * i, zero);
            }
          });
    }
  }

  private static PtxRegister finite(PtxKernel k, PtxRegister x) {
    return k.compare("lt", k.unary("abs", x), Float.POSITIVE_INFINITY);
  }

  /** Writes a group's sum of squares of what the norm is of; all lanes of a warp take part. */
  void writeSquares(
      PtxKernel k, PtxRegister row, PtxRegister group, PtxRegister lane, PtxRegister x) {
    PtxRegister wide = k.convert("", F64, "f64", x, "f32");
    PtxRegister sum = k.warpSum(k.mul(wide, wide));
    k.when(
        k.compare("eq", lane, 0), () -> k.store(F64, k.address(row, group, 8), squaresAt(), sum));
  }

  /** The factor of a norm, from the squares of the groups, in all lanes of a warp. */
  PtxRegister factor(PtxKernel k, PtxRegister row, PtxRegister lane, Norm norm) {
    PtxRegister sum = k.constant(F64, 0);
    PtxRegister i = k.register(U32);
    k.assign(i, lane);
    k.loop(
        i,
        used(),
        32,
        () -> k.assign(sum, k.add(sum, k.load(F64, k.address(row, i, 8), squaresAt()))));
    PtxRegister x = k.fma(k.warpSum(sum), 1.0 / cols, k.constant(F64, (double) norm.eps()));
    // Twenty bits, then forty: division and root would be calls.
    PtxRegister y = k.unary("rsqrt.approx.ftz", x);
    PtxRegister square = k.mul(y, y);
    PtxRegister better = k.fma(k.mul(x, -0.5), square, k.constant(F64, 1.5));
    PtxRegister root = k.mul(y, better);
    return k.convert(".rn", F32, "f32", k.mul(root, (double) norm.scale()), "f64");
  }

  /**
   * Writes the parts of rows of floats, a block per row. Parameters: control, in, parts, weights of
   * the norm if any.
   */
  PtxKernel prepare(Control control, Optional<Norm> norm, Value.Rows rows) {
    PtxKernel k = new PtxKernel(THREADS);
    PtxRegister block = k.parameter(U64);
    PtxRegister in = k.parameter(U64);
    PtxRegister out = k.parameter(U64);
    Optional<PtxRegister> weights = norm.map(n -> k.parameter(U64));
    PtxRegister row = k.special("ctaid.y");
    Products.exitPast(k, block, row, rows);
    PtxRegister thread = k.special("tid.x");
    PtxRegister x = k.address(in, row, 4 * cols);
    PtxRegister to = k.address(out, row, bytes());
    PtxRegister lane = k.and(thread, 31);
    PtxRegister group = k.register(U32);
    k.assign(group, k.shr(thread, 5));
    k.loop(
        group,
        used(),
        THREADS / 32,
        () -> {
          PtxRegister column = k.fma(group, 32, lane);
          PtxRegister v = k.constant(F32, 0);
          PtxRegister w = k.constant(F32, 0);
          k.when(
              k.compare("lt", column, cols),
              () -> {
                k.assign(v, k.load(F32, k.address(x, column, 4), 0));
                weights.ifPresent(
                    a -> k.assign(w, k.load(Products.GLOBAL, F32, k.address(a, column, 4), 0)));
              });
          if (norm.isPresent()) {
            writeSquares(k, to, group, lane, v);
          }
          write(k, to, group, lane, norm.isPresent() ? k.mul(v, w) : v);
        });
    if (norm.isEmpty()) {
      return k;
    }
    k.barrier();
    k.when(
        k.compare("lt", thread, 32),
        () -> {
          PtxRegister factor = factor(k, to, lane, norm.get());
          k.when(k.compare("eq", lane, 0), () -> k.store(F32, to, factorAt(), factor));
        });
    return k;
  }
}
