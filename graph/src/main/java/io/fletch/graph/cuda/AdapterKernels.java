package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.B16;
import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.graph.Gate;
import io.fletch.graph.Value;
import io.fletch.quant.TensorType;
import java.util.Optional;
import java.util.function.Consumer;

/**
 * Low-rank terms of rows: which ones a row has, the control block says ({@link Control#terms}); an
 * adapter's table ({@link CudaAdapter}) has an entry per product. Rows without terms end at once,
 * and all sums have an order that depends on shapes alone.
 */
final class AdapterKernels {
  /** Most terms of a row. */
  static final int MOST_TERMS = 8;

  /** Most elements between the factors, of all terms of a row. */
  static final int MOST_INNER = 512;

  /** Bytes of a term in the control block: address of the table, scale, padding. */
  static final int TERM_BYTES = 16;

  /** Bytes of a product's entry in an adapter's table. */
  static final int ENTRY_BYTES = 48;

  // An entry: addresses of both factors, rank (0 for nothing), types, the adapter's own scale,
  // address of the gain (0 for none).
  static final int FIRST = 0;
  static final int SECOND = 8;
  static final int RANK = 16;
  static final int FIRST_TYPE = 20;
  static final int SECOND_TYPE = 24;
  static final int FACTOR = 28;
  static final int GAIN = 32;

  /** Blocks of the first factor. */
  static final int BLOCKS = 16;

  private static final TensorType[] TYPES = {TensorType.F32, TensorType.F16, TensorType.BF16};

  private final Emitter emit;
  private final Control control;

  AdapterKernels(Emitter emit, Control control) {
    this.emit = emit;
    this.control = control;
  }

  /** The number of a type in an entry. */
  static int code(TensorType type) {
    for (int i = 0; i < TYPES.length; i++) {
      if (TYPES[i] == type) {
        return i;
      }
    }
    throw new IllegalArgumentException("type: expected=F32, F16 or BF16 actual=" + type);
  }

  /** What both kernels do with each term of a row. */
  private final class Terms {
    final Emitter.Row b;
    final PtxKernel k;
    final PtxRegister offset;
    final PtxRegister count;
    final PtxRegister base;

    Terms(Value.Rows rows) {
      b = emit.new Row(rows);
      k = b.k;
      offset = k.parameter(U64);
      count = b.word(b.batchRow, control.termCount());
      k.when(k.compare("eq", count, 0), k::exit);
      base = k.constant(U32, 0);
    }

    /** Calls with the entry of each term and its scale. */
    void each(Consumer<PtxRegister[]> body) {
      PtxRegister terms = k.address(b.block, b.batchRow, TERM_BYTES * MOST_TERMS);
      PtxRegister t = k.constant(U32, 0);
      k.loop(
          t,
          count,
          1,
          () -> {
            PtxRegister at = k.address(terms, t, TERM_BYTES);
            PtxRegister entry = k.add(k.load(U64, at, control.terms()), offset);
            PtxRegister rank = k.load(U32, entry, RANK);
            PtxRegister scale = k.load(F32, at, control.terms() + 8L);
            body.accept(new PtxRegister[] {entry, rank, scale});
            k.assign(base, k.add(base, rank));
          });
    }

    /** Emits code for each type that a factor may have; one of them runs. */
    void types(PtxRegister type, Consumer<TensorType> body) {
      for (TensorType t : TYPES) {
        k.when(k.compare("eq", type, code(t)), () -> body.accept(t));
      }
    }

    PtxRegister element(TensorType type, PtxRegister row, PtxRegister i) {
      return switch (type) {
        case F32 -> k.load("global.nc", F32, k.address(row, i, 4), 0);
        case F16 -> Emitter.half(k, k.load("global.nc", B16, k.address(row, i, 2), 0));
        default -> k.bfloat(k.load("global.nc", B16, k.address(row, i, 2), 0));
      };
    }
  }

  /**
   * The first factors: a warp per element between the factors, whose lanes sum columns l, l + 32,
   * ... in this order, then the lanes are added. Parameters: control, the entry's offset in a
   * table, in, inner.
   */
  PtxKernel down(int in, Value.Rows rows) {
    Terms terms = new Terms(rows);
    PtxKernel k = terms.k;
    PtxRegister x = terms.b.floats(k.parameter(U64), terms.b.row, in);
    PtxRegister inner = terms.b.floats(k.parameter(U64), terms.b.row, MOST_INNER);
    PtxRegister lane = k.and(terms.b.thread, 31);
    PtxRegister warp = k.fma(k.special("ctaid.x"), Emitter.WARPS, k.shr(terms.b.thread, 5));
    terms.each(term -> {
      PtxRegister entry = term[0];
      PtxRegister factor = k.mul(term[2], k.load(F32, entry, FACTOR));
      PtxRegister data = k.load(U64, entry, FIRST);
      PtxRegister type = k.load(U32, entry, FIRST_TYPE);
      PtxRegister j = k.register(U32);
      k.assign(j, warp);
      k.loop(
          j,
          term[1],
          BLOCKS * Emitter.WARPS,
          () -> {
            PtxRegister sum = k.constant(F32, 0);
            terms.types(
                type,
                t -> {
                  PtxRegister row = k.address(data, j, Math.toIntExact(t.bytes(in)));
                  PtxRegister i = k.register(U32);
                  k.assign(i, lane);
                  k.loop(
                      i,
                      in,
                      32,
                      () -> k.fmaInto(sum, terms.element(t, row, i), terms.b.get(x, i), sum));
                });
            PtxRegister total = k.mul(k.warpSum(sum), factor);
            PtxRegister at = k.add(terms.base, j);
            k.when(k.compare("eq", lane, 0), () -> terms.b.put(inner, at, total));
          });
    });
    return k;
  }

  /**
   * The gains, then the second factors, added to what is there: a thread per output, term after
   * term, rank after rank. Parameters: control, the entry's offset in a table, inner, out, bias if
   * any.
   */
  PtxKernel up(int out, boolean bias, Optional<Gate> gate, Value.Rows rows) {
    Terms terms = new Terms(rows);
    PtxKernel k = terms.k;
    PtxRegister inner = terms.b.floats(k.parameter(U64), terms.b.row, MOST_INNER);
    PtxRegister y = terms.b.floats(k.parameter(U64), terms.b.row, out);
    Optional<PtxRegister> biases = bias ? Optional.of(k.parameter(U64)) : Optional.empty();
    PtxRegister i = terms.b.element(out);
    // The product has left a zero there.
    gate.ifPresent(g -> k.when(terms.b.skipped(g), k::exit));
    PtxRegister sum = k.register(F32);
    k.assign(sum, terms.b.get(y, i));
    PtxRegister product = biases.map(b -> k.sub(sum, terms.b.get(b, i))).orElse(sum);
    PtxRegister gain = k.constant(F32, 0);
    terms.each(term -> {
      PtxRegister data = k.load(U64, term[0], GAIN);
      k.when(k.compare("ne", data, 0), () -> k.fmaInto(gain, term[2], terms.b.get(data, i), gain));
    });
    k.assign(sum, k.fma(gain, product, sum));
    k.assign(terms.base, 0);
    terms.each(term -> {
      PtxRegister entry = term[0];
      PtxRegister data = k.load(U64, entry, SECOND);
      PtxRegister h = k.address(inner, terms.base, 4);
      terms.types(
          k.load(U32, entry, SECOND_TYPE),
          t -> {
            PtxRegister j = k.constant(U32, 0);
            k.loop(
                j,
                term[1],
                1,
                () -> {
                  PtxRegister row = k.address(data, j, Math.toIntExact(t.bytes(out)));
                  k.fmaInto(sum, terms.b.get(h, j), terms.element(t, row, i), sum);
                });
          });
    });
    terms.b.put(y, i, sum);
    return k;
  }
}
