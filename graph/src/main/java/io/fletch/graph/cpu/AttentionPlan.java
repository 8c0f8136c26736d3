package io.fletch.graph.cpu;

import io.fletch.graph.Value;
import java.util.Arrays;
import java.util.concurrent.atomic.AtomicIntegerArray;

/**
 * How the workers divide the attention of one stage: rows into tiles, and, where tiles and
 * key/value heads are too few for the workers, contexts into segments. A tile is consecutive rows
 * of one cache that have their positions in the same slots, or rows that a gate skips.
 *
 * <p>Made by the thread that starts the stage, then read by the workers; grows to the largest stage
 * seen. The bits of a result do not depend on it.
 *
 * <p>Every layer's rows are divided anew, though layers with one window and gates that let the same
 * rows through divide alike. That takes 0.06 us for one row (0.18 us where its context is split),
 * 0.6 us for 16 rows and 2.4 to 4.7 us for 128 (Emerald Rapids, 2026-11-30): 0.6 % of the attention
 * of that layer at 64 slots (8 key/value heads of 64 with 4 query heads each), 0.2 % of 128 rows
 * over 512. A division that is kept would have to be compared with window, shape and the gates of
 * all rows, which decisions change within a forward.
 */
final class AttentionPlan {
  /** A division is good where workers are idle for less than this part of the time. */
  private static final double IDLE = 0.15;

  /** States of one stage take at most so many floats. */
  private static final long MOST_STATES = 16L << 20;

  private final int workers;

  // Tile t is rows [rowFrom[t], rowFrom[t + 1]).
  private final int[] rowFrom;

  // Segments that some row of a tile sees, and the sum of their numbers over the tiles before.
  private final int[] firstSegment;
  private final int[] unitFrom;

  // Rows times segments of the tiles before, in states of a head.
  private final long[] stateFrom;
  private int tiles;
  private int longest;
  private int largest;
  private int heads;
  private boolean split;
  private AtomicIntegerArray pending = new AtomicIntegerArray(0);

  AttentionPlan(int workers, int maxRows) {
    this.workers = workers;
    rowFrom = new int[maxRows + 1];
    firstSegment = new int[maxRows];
    unitFrom = new int[maxRows + 1];
    stateFrom = new long[maxRows + 1];
  }

  /**
   * Divides the rows of a stage.
   *
   * @param stateFloats floats of a state
   * @return the number of tasks
   */
  int make(Frame f, Value.Rows kind, int window, int gate, int kvHeads, int stateFloats) {
    heads = kvHeads;
    split = false;
    int rows = AttentionTile.ROWS;
    while (true) {
      tile(f, kind, window, gate, rows);
      int tasks = tiles * kvHeads;
      if (good(tasks)) {
        return tasks;
      }
      int parts = unitFrom[tiles] * kvHeads;
      long states = stateFrom[tiles] * kvHeads * stateFloats;
      if (longest > 1 && states <= MOST_STATES && (good(parts) || largest == 1)) {
        split = true;
        expect();
        return parts;
      }
      if (largest <= 1) {
        return tasks;
      }
      rows = (largest + 1) / 2;
    }
  }

  private boolean good(int tasks) {
    int rounds = (tasks + workers - 1) / workers;
    return tasks >= (1 - IDLE) * rounds * workers;
  }

  private void tile(Frame f, Value.Rows kind, int window, int gate, int most) {
    int rows = f.rows(kind);
    tiles = 0;
    longest = 0;
    largest = 0;
    for (int from = 0; from < rows; ) {
      int end = from + 1;
      int row = f.batchRow(kind, from);
      boolean skipped = f.skips(gate, row);
      while (end < rows && follows(f, window, gate, row, skipped, f.batchRow(kind, end))) {
        end++;
      }
      // As equal as can be, so that tiles take equally long.
      int parts = (end - from + most - 1) / most;
      for (int p = 0; p < parts; p++) {
        int before = (int) ((long) (end - from) * p / parts);
        int next = (int) ((long) (end - from) * (p + 1) / parts);
        add(f, kind, window, skipped, from + before, from + next);
      }
      from = end;
    }
    rowFrom[tiles] = rows;
  }

  private static boolean follows(
      Frame f, int window, int gate, int first, boolean skipped, int row) {
    if (f.skips(gate, row) != skipped) {
      return false;
    }
    return skipped
        || f.batch.cache(row) == f.batch.cache(first) && sameSlots(f, window, first, row);
  }

  /**
   * Whether two rows have every position that both see, or that lies between such, in the same
   * slot: their ranges may differ in where the first begins and the last ends.
   */
  private static boolean sameSlots(Frame f, int window, int a, int b) {
    int ranges = f.rangeCount(window, a);
    if (ranges != f.rangeCount(window, b)) {
      return false;
    }
    int atA = f.firstVisible(window, a);
    int atB = f.firstVisible(window, b);
    for (int r = 0; r < ranges; r++) {
      int fromA = f.rangeFrom(window, a, r);
      int fromB = f.rangeFrom(window, b, r);
      if (fromA - atA != fromB - atB || r > 0 && atA != atB) {
        return false;
      }
      atA += f.rangeTo(window, a, r) - fromA;
      atB += f.rangeTo(window, b, r) - fromB;
    }
    return true;
  }

  /** How many slots a row sees. */
  static int visible(Frame f, int window, int row) {
    int n = 0;
    for (int r = 0; r < f.rangeCount(window, row); r++) {
      n += f.rangeTo(window, row, r) - f.rangeFrom(window, row, r);
    }
    return n;
  }

  private void add(Frame f, Value.Rows kind, int window, boolean skipped, int from, int end) {
    int first = 0;
    int segments = 1;
    if (!skipped) {
      int low = Integer.MAX_VALUE;
      int high = 0;
      for (int r = from; r < end; r++) {
        int row = f.batchRow(kind, r);
        int begin = f.firstVisible(window, row);
        low = Math.min(low, begin);
        high = Math.max(high, begin + visible(f, window, row));
      }
      first = low / Kernels.ATTENTION_SEGMENT;
      segments = (high - 1) / Kernels.ATTENTION_SEGMENT + 1 - first;
    }
    rowFrom[tiles] = from;
    firstSegment[tiles] = first;
    unitFrom[tiles + 1] = unitFrom[tiles] + segments;
    stateFrom[tiles + 1] = stateFrom[tiles] + (long) segments * (end - from);
    longest = Math.max(longest, segments);
    largest = Math.max(largest, end - from);
    tiles++;
  }

  private void expect() {
    int counters = tiles * heads;
    if (pending.length() < counters) {
      pending = new AtomicIntegerArray(2 * counters);
    }
    for (int t = 0; t < tiles; t++) {
      for (int h = 0; h < heads; h++) {
        pending.setPlain(t * heads + h, unitFrom[t + 1] - unitFrom[t]);
      }
    }
  }

  /** Whether a task is one segment of a tile and head; else it is all of them. */
  boolean split() {
    return split;
  }

  /** Floats that the states of a split stage take. */
  long states(int stateFloats) {
    return stateFrom[tiles] * heads * stateFloats;
  }

  /** Where the states of a tile and head begin, in floats. */
  long states(int tile, int head, int stateFloats) {
    long tileStates = stateFrom[tile + 1] - stateFrom[tile];
    return (stateFrom[tile] * heads + head * tileStates) * stateFloats;
  }

  /** The tile of a task. Tiles of later rows, which see more, come first. */
  int tile(int task) {
    int unit = task / heads;
    if (!split) {
      return tiles - 1 - unit;
    }
    int at = Arrays.binarySearch(unitFrom, 0, tiles, unit);
    return at >= 0 ? at : -2 - at;
  }

  /** The key/value head of a task. */
  int head(int task) {
    return task % heads;
  }

  /** The segment of a task, and its tile, of a split stage. */
  int segment(int task, int tile) {
    return firstSegment[tile] + task / heads - unitFrom[tile];
  }

  int rowFrom(int tile) {
    return rowFrom[tile];
  }

  int rowTo(int tile) {
    return rowFrom[tile + 1];
  }

  /** Ends a task of a split stage; true if it is the last one of its tile and head. */
  boolean last(int tile, int head) {
    return pending.decrementAndGet(tile * heads + head) == 0;
  }
}
