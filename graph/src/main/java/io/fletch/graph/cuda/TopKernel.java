package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;

/**
 * The largest logits of rows, for samplers that drop all others: pairs instead of a vocabulary
 * cross to the host.
 *
 * <p>One block per row. Logits become integers of the same order, whose bytes a radix selection
 * counts from the highest on: each pass keeps the byte that the last of the chosen has. If not all
 * logits that equal it are chosen, three more passes find the ids, the lowest first. The chosen are
 * written in any order.
 */
final class TopKernel {
  /** Most pairs. */
  static final int MOST = 1024;

  /**
   * Bytes of what is asked of a row: how many of its logits count (at most 2^24), how many are
   * wanted (less than these, 0 for none), where the result begins, and four unused.
   */
  static final int REQUEST = 16;

  /** Bytes of the result: pairs, logits that forbid a choice, then pairs of id and logit. */
  static int bytes(int wanted) {
    return 8 + 8 * wanted;
  }

  private static final int THREADS = 1024;
  private static final int BINS = 256;

  /** The bin of what does not take part. */
  private static final int NONE = BINS;

  private final PtxKernel k = new PtxKernel(THREADS);
  private final PtxRegister row;
  private final PtxRegister n;
  private final PtxRegister wanted;
  private final PtxRegister out;
  private final PtxRegister thread = k.special("tid.x");
  private final PtxRegister below = k.special("lanemask_lt");
  private final PtxRegister bins = k.shared(4 * (BINS + 1));
  private final PtxRegister groups = k.shared(4 * 16);

  /** Digit, how many are above it, how many have it; then pairs written and bad logits. */
  private final PtxRegister state = k.shared(32);

  /** How many are still to be chosen among those that have the digits so far. */
  private final PtxRegister need = k.register(U32);

  private final PtxRegister equal = k.register(U32);

  private TopKernel(int rowBytes) {
    PtxRegister logits = k.parameter(U64);
    PtxRegister requests = k.parameter(U64);
    PtxRegister results = k.parameter(U64);
    PtxRegister index = k.special("ctaid.x");
    PtxRegister request = k.address(requests, index, REQUEST);
    n = k.load(U32, request, 0);
    wanted = k.load(U32, request, 4);
    out = k.address(results, k.load(U32, request, 8), 1);
    row = k.address(logits, index, rowBytes);
  }

  /**
   * Parameters: rows of logits, a request for each, memory for the results.
   *
   * @param rowBytes bytes from a row to the next
   */
  static PtxKernel kernel(int rowBytes) {
    return new TopKernel(rowBytes).build();
  }

  private PtxKernel build() {
    k.when(k.compare("eq", wanted, 0), k::exit);
    k.when(
        k.compare("eq", thread, 0),
        () -> {
          k.store("shared", U32, state, 16, k.constant(U32, 0));
          k.store("shared", U32, state, 20, k.constant(U32, 0));
        });
    k.assign(need, wanted);
    k.assign(equal, 0);
    PtxRegister key = k.constant(U32, 0);
    for (int shift = 24; shift >= 0; shift -= 8) {
      int s = shift;
      pass(
          i -> {
            PtxRegister own = key(i, s == 24);
            PtxRegister digit = k.and(k.shr(own, s), 255);
            return s == 24
                ? digit
                : k.select(k.compare("eq", k.shr(own, s + 8), key), digit, k.constant(U32, NONE));
          },
          key);
    }
    PtxRegister id = k.constant(U32, 0);
    // The same for all threads: they read the counts that decide it from shared memory.
    k.when(
        k.compare("ne", need, equal),
        () -> {
          for (int shift = 16; shift >= 0; shift -= 8) {
            int s = shift;
            pass(
                i -> {
                  PtxRegister own = inverse(i);
                  PtxRegister ties = k.compare("eq", key(i, false), key);
                  PtxRegister digit = k.and(k.shr(own, s), 255);
                  PtxRegister part =
                      s == 16 ? ties : k.both(ties, k.compare("eq", k.shr(own, s + 8), id));
                  return k.select(part, digit, k.constant(U32, NONE));
                },
                id);
          }
        });
    PtxRegister i = k.register(U32);
    k.assign(i, thread);
    k.loop(
        i,
        n,
        THREADS,
        () -> {
          PtxRegister own = key(i, false);
          PtxRegister tie = k.both(k.compare("eq", own, key), k.compare("ge", inverse(i), id));
          k.when(
              k.either(k.compare("gt", own, key), tie),
              () -> {
                PtxRegister at = k.atomicAdd("shared", state, 16, 1);
                // Counts are wrong where a logit is no number; nothing may be written outside.
                k.when(
                    k.compare("lt", at, wanted),
                    () -> {
                      PtxRegister pair = k.address(out, at, 8);
                      k.store(U32, pair, 8, i);
                      k.store(F32, pair, 12, logit(i));
                    });
              });
        });
    k.barrier();
    k.when(
        k.compare("eq", thread, 0),
        () -> {
          k.store(U32, out, 0, k.load("shared", U32, state, 16));
          k.store(U32, out, 4, k.load("shared", U32, state, 20));
        });
    return k;
  }

  /** The digit of an element, or {@link #NONE}. */
  private interface Digit {
    PtxRegister of(PtxRegister i);
  }

  /** Appends the next digit to {@code prefix}; {@link #need} and {@link #equal} follow. */
  private void pass(Digit digit, PtxRegister prefix) {
    PtxRegister bin = k.register(U32);
    k.assign(bin, thread);
    k.loop(bin, BINS + 1, THREADS, () -> k.store("shared", U32, at(bins, bin), 0, zero()));
    k.barrier();
    PtxRegister first = k.register(U32);
    k.assign(first, 0);
    // Whole blocks of elements: all lanes of a warp are needed below.
    k.loop(first, n, THREADS, () -> count(digit, k.add(first, thread)));
    k.barrier();
    PtxRegister j = k.register(U32);
    k.when(
        k.compare("lt", thread, 16),
        () -> {
          PtxRegister sum = k.constant(U32, 0);
          PtxRegister start = k.shl(thread, 4);
          k.assign(j, start);
          k.loop(j, k.add(start, 16), 1, () -> k.assign(sum, k.add(sum, word(bins, j))));
          k.store("shared", U32, at(groups, thread), 0, sum);
        });
    k.barrier();
    k.when(
        k.compare("lt", thread, BINS),
        () -> {
          PtxRegister above = k.constant(U32, 0);
          PtxRegister group = k.add(k.shr(thread, 4), 1);
          k.assign(j, group);
          k.loop(j, 16, 1, () -> k.assign(above, k.add(above, word(groups, j))));
          k.assign(j, k.add(thread, 1));
          k.loop(j, k.shl(group, 4), 1, () -> k.assign(above, k.add(above, word(bins, j))));
          PtxRegister own = word(bins, thread);
          PtxRegister here =
              k.both(k.compare("lt", above, need), k.compare("ge", k.add(above, own), need));
          k.when(
              here,
              () -> {
                k.store("shared", U32, state, 0, thread);
                k.store("shared", U32, state, 4, above);
                k.store("shared", U32, state, 8, own);
              });
        });
    k.barrier();
    k.assign(prefix, k.add(k.shl(prefix, 8), k.load("shared", U32, state, 0)));
    k.assign(need, k.sub(need, k.load("shared", U32, state, 4)));
    k.assign(equal, k.load("shared", U32, state, 8));
    // The next pass writes the same words.
    k.barrier();
  }

  /** Counts one element per thread; lanes with the same digit add once: most have the same. */
  private void count(Digit digit, PtxRegister i) {
    PtxRegister d = k.constant(U32, NONE);
    k.when(k.compare("lt", i, n), () -> k.assign(d, digit.of(i)));
    PtxRegister same = k.matchAny(d);
    k.when(
        k.compare("eq", k.and(same, below), 0),
        () -> {
          PtxRegister unused = k.atomicAdd("shared", at(bins, d), 0, k.ones(same));
        });
  }

  private PtxRegister zero() {
    return k.constant(U32, 0);
  }

  private PtxRegister at(PtxRegister base, PtxRegister index) {
    return k.fma(index, 4, base);
  }

  private PtxRegister word(PtxRegister base, PtxRegister index) {
    return k.load("shared", U32, at(base, index), 0);
  }

  /** Negative zero is zero. */
  private PtxRegister logit(PtxRegister i) {
    return k.add(k.load(F32, k.address(row, i, 4), 0), 0f);
  }

  /** An integer whose order is that of the logits. */
  private PtxRegister key(PtxRegister i, boolean check) {
    PtxRegister x = logit(i);
    if (check) {
      k.unless(
          k.compare("lt", x, Float.POSITIVE_INFINITY),
          () -> {
            PtxRegister unused = k.atomicAdd("shared", state, 20, 1);
          });
    }
    PtxRegister b = k.bits(U32, x);
    PtxRegister negative = k.sub(k.constant(U32, -1), b);
    PtxRegister positive = k.add(b, 0x80000000L);
    return k.select(k.compare("ge", b, 0x80000000L), negative, positive);
  }

  /** Larger for lower ids; 24 bits. */
  private PtxRegister inverse(PtxRegister i) {
    return k.sub(k.constant(U32, (1 << 24) - 1), i);
  }
}
