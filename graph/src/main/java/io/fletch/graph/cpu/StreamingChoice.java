package io.fletch.graph.cpu;

import io.fletch.graph.cpu.x86.Isa;
import io.fletch.graph.cpu.x86.Streaming;
import io.fletch.quant.TensorType;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLongArray;

/**
 * Which of several ways to read weights is the fastest on this machine, found out by the products
 * themselves: for a while, long products of a single row try all ways in random turns, then the one
 * with the best median stays. The first way is the one that the CPU's family was measured to like;
 * another must be clearly better. This happens with the first tokens, and twice again later, when
 * weights have taken their places in huge pages and caches. Results do not depend on it.
 *
 * <p>One per type and instruction set for the whole process. Thread-safe, without locks and
 * allocations in {@link #begin} and {@link #end}.
 */
final class StreamingChoice {
  /** Products at least this long count: shorter ones may come from a cache. */
  static final long MIN_BYTES = 1L << 20;

  /** Samples of each way in a trial. */
  static final int SAMPLES = 24;

  /** Products before each trial. */
  private static final int[] STARTS = {0, 3000, 30000};

  /** How much faster than the first way another must be. */
  private static final double CLEARLY = 1.04;

  private static final Logger LOG = System.getLogger("io.fletch");
  private static final ConcurrentHashMap<String, StreamingChoice> ALL = new ConcurrentHashMap<>();

  private final String name;
  private final List<Streaming> ways;

  /** Ways in the turns of a trial. */
  private final int[] turns;

  /** Nanoseconds per MiB of each turn. */
  private final AtomicLongArray samples;

  private final AtomicInteger calls = new AtomicInteger();
  private final AtomicInteger sampled = new AtomicInteger();
  private volatile int chosen;

  /** No trial is to come. */
  private volatile boolean settled;

  /**
   * A choice.
   *
   * @param ways the expected one first
   */
  StreamingChoice(String name, List<Streaming> ways) {
    this.name = name;
    this.ways = List.copyOf(ways);
    settled = ways.size() == 1;
    List<Integer> order = new ArrayList<>();
    for (int i = 0; i < SAMPLES * ways.size(); i++) {
      order.add(i % ways.size());
    }
    // Matrices come in a pattern of their own, which turns must not follow.
    Collections.shuffle(order, new Random(1));
    turns = order.stream().mapToInt(Integer::intValue).toArray();
    samples = new AtomicLongArray(turns.length);
  }

  /** The choice of a type and an instruction set. */
  static StreamingChoice of(TensorType type, Isa isa) {
    return ALL.computeIfAbsent(
        type + " " + isa.label(), n -> new StreamingChoice(n, Streaming.candidates(isa, type)));
  }

  /** The ways, in the order of their indices. */
  List<Streaming> ways() {
    return ways;
  }

  /** The index of the way that products outside of trials take. */
  int chosen() {
    return chosen;
  }

  /** Whether no trial is to come. */
  boolean settled() {
    return settled;
  }

  /**
   * Begins a product of so many bytes.
   *
   * @return its turn in a trial; -1 if it is in none and takes the chosen way
   */
  int begin(long bytes) {
    if (settled || bytes < MIN_BYTES) {
      return -1;
    }
    int call = calls.getAndIncrement();
    for (int start : STARTS) {
      if (call >= start && call < start + turns.length) {
        return call - start;
      }
    }
    return -1;
  }

  /** The index of the way that a turn, or -1 for none, takes. */
  int way(int turn) {
    return turn < 0 ? chosen : turns[turn];
  }

  /** Ends a product of a turn. The last one of a trial chooses. */
  void end(int turn, long bytes, long nanos) {
    samples.set(turn, (long) (nanos * (double) (1 << 20) / bytes));
    int n = sampled.incrementAndGet();
    if (n % turns.length == 0) {
      choose();
      settled = n == STARTS.length * turns.length;
    }
  }

  private void choose() {
    double[] medians = new double[ways.size()];
    int best = 0;
    for (int way = 0; way < medians.length; way++) {
      long[] own = new long[SAMPLES];
      int n = 0;
      for (int turn = 0; turn < turns.length; turn++) {
        if (turns[turn] == way) {
          own[n++] = samples.get(turn);
        }
      }
      Arrays.sort(own);
      medians[way] = own[SAMPLES / 2];
      double handicap = best == 0 ? CLEARLY : 1;
      if (medians[way] * handicap < medians[best]) {
        best = way;
      }
    }
    chosen = best;
    LOG.log(
        Level.DEBUG,
        () ->
            name
                + ": reads by "
                + ways.get(chosen)
                + "; nanoseconds per MiB of "
                + ways
                + ": "
                + Arrays.toString(medians));
  }
}
