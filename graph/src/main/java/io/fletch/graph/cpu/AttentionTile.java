package io.fletch.graph.cpu;

import java.lang.foreign.MemorySegment;
import java.util.Objects;

/**
 * Rows that attention takes together over one segment of positions. Positions number what a row
 * sees: the order of operations depends on them alone, wherever keys and values lie. Rows of a tile
 * share keys and values, and each sees a contiguous part of the segment, possibly none of it. With
 * the rows it has where their queries are and where their states go.
 *
 * <p>Or one row over several consecutive segments: what it sees of each counts as a row of the tile
 * ({@link #nextSegment}), with the same query and a state of its own.
 *
 * <p>Made once and filled again and again by one thread; nothing allocates.
 */
public final class AttentionTile {
  /** Most rows of a tile. */
  public static final int ROWS = 16;

  private final long[] query = new long[ROWS];
  private final int[] from = new int[ROWS];
  private final int[] to = new int[ROWS];
  private final long[] state = new long[ROWS];
  private MemorySegment queries = MemorySegment.NULL;
  private MemorySegment states = MemorySegment.NULL;
  private long segmentFrom;
  private int segments = 1;
  private int rows;

  /** An empty tile of segment 0. */
  public AttentionTile() {}

  /**
   * Removes all rows.
   *
   * @param segment number of the segment, whose positions are {@link Kernels#ATTENTION_SEGMENT}
   *     times it and what follows
   * @param queries floats {@code [group][keyDim]} of every row that will be added
   * @param states takes a state, {@link Kernels#attentionState} floats, of every row
   */
  public void begin(int segment, MemorySegment queries, MemorySegment states) {
    if (segment < 0) {
      throw new IllegalArgumentException("segment: expected>=0 actual=" + segment);
    }
    this.queries = Objects.requireNonNull(queries);
    this.states = Objects.requireNonNull(states);
    segmentFrom = (long) segment * Kernels.ATTENTION_SEGMENT;
    segments = 1;
    rows = 0;
  }

  /**
   * What is added next is what the one row sees of the segment behind the last one.
   *
   * @throws IllegalStateException if there is not just one row, which sees something, of each
   *     segment so far
   */
  public void nextSegment() {
    if (rows != segments || from[rows - 1] == to[rows - 1]) {
      throw new IllegalStateException(
          "rows that see something: expected=" + segments + " actual=" + rows);
    }
    segmentFrom += Kernels.ATTENTION_SEGMENT;
    segments++;
  }

  /**
   * Adds a row.
   *
   * @param query index of the float in the queries at which the row's first head begins
   * @param from first visible position, in the segment
   * @param to end of the visible positions; {@code from} if the row sees nothing of the segment
   * @param state index of the float in the states at which the row's state begins
   */
  public void add(long query, int from, int to, long state) {
    if (rows == ROWS) {
      throw new IllegalStateException("rows: expected<=" + ROWS);
    }
    if (from < segmentFrom || to < from || to > segmentFrom + Kernels.ATTENTION_SEGMENT) {
      throw new IllegalArgumentException(
          "positions: expected in ["
              + segmentFrom
              + ", "
              + (segmentFrom + Kernels.ATTENTION_SEGMENT)
              + "] actual="
              + from
              + " to "
              + to);
    }
    if (segments > 1 && (query != this.query[0] || from == to)) {
      throw new IllegalArgumentException(
          "a part of the row: expected query="
              + this.query[0]
              + " actual="
              + query
              + " positions="
              + (to - from));
    }
    this.query[rows] = query;
    this.from[rows] = from;
    this.to[rows] = to;
    this.state[rows] = state;
    rows++;
  }

  /** What the rows' queries lie in. */
  public MemorySegment queries() {
    return queries;
  }

  /** What the rows' states go to. */
  public MemorySegment states() {
    return states;
  }

  /** Segments that there are: more than one are all of one row. */
  public int segments() {
    return segments;
  }

  /** Rows that were added. */
  public int rows() {
    return rows;
  }

  /** Where the queries of a row begin, in floats. */
  public long query(int row) {
    return query[row];
  }

  /** First visible position of a row. */
  public int from(int row) {
    return from[row];
  }

  /** End of the visible positions of a row. */
  public int to(int row) {
    return to[row];
  }

  /** Where the state of a row begins, in floats. */
  public long state(int row) {
    return state[row];
  }

  /** First position that any row sees; {@link #end} if none sees any. */
  public int start() {
    int start = Integer.MAX_VALUE;
    int end = 0;
    for (int r = 0; r < rows; r++) {
      if (from[r] < to[r]) {
        start = Math.min(start, from[r]);
        end = Math.max(end, to[r]);
      }
    }
    return Math.min(start, end);
  }

  /** End of the positions that any row sees; 0 if none sees any. */
  public int end() {
    int end = 0;
    for (int r = 0; r < rows; r++) {
      if (from[r] < to[r]) {
        end = Math.max(end, to[r]);
      }
    }
    return end;
  }
}
