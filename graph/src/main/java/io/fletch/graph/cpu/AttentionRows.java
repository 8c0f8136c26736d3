package io.fletch.graph.cpu;

import io.fletch.graph.AttentionSpec;
import java.lang.foreign.MemorySegment;
import java.util.Objects;

/**
 * Attention of up to {@link AttentionTile#ROWS} rows over all that they see, for one key/value
 * head: segment by segment, and the states of a row's segments merged in their order. With maximum
 * M, sum L and result V of what was merged before (of the first segment that the row sees, at
 * first) and m, l and v of the next one
 *
 * <pre>
 *   M' = max(M, m);  F = exp(M - M');  f = exp(m - M')  (from 0 where M' is -inf)
 *   L = fma(L, F, l * f);  V_i = fma(V_i, F, v_i * f)
 * </pre>
 *
 * with exp as {@link FloatMath#weight} takes it, and at the end {@code out = V * (1 / L)}, zero
 * where L is. So the bits do not depend on which thread computed which segment, nor on the rows
 * beside a row.
 *
 * <p>Made once, with working memory of its own, and filled again and again by one thread; nothing
 * allocates. The working memory is what kernels ask for, then, from {@link #statesFrom} on, {@code
 * [2][ROWS]} states: of what is merged so far, and of the next segment, or, of a single row, of the
 * next segments.
 */
public final class AttentionRows {
  private static final int ROWS = AttentionTile.ROWS;
  private static final int SEGMENT = Kernels.ATTENTION_SEGMENT;

  private final AttentionTile tile = new AttentionTile();
  private final long[] query = new long[ROWS];
  private final int[] from = new int[ROWS];
  private final int[] to = new int[ROWS];
  private final long[] out = new long[ROWS];
  private int rows;

  private final MemorySegment scratch;

  // Of all rows, as begin says.
  private Kernels kernels;
  private AttentionSpec spec;
  private MemorySegment queries;
  private MemorySegment results;

  // Of the shape: floats of a state, and where states are in the working memory.
  private int stateFloats;
  private int statesFrom;

  /**
   * No rows.
   *
   * @param scratch working memory: {@link #floats} for each shape that will come
   */
  public AttentionRows(MemorySegment scratch) {
    this.scratch = scratch;
  }

  /** Floats of working memory of one thread for rows of a shape. */
  public static int floats(Kernels kernels, AttentionSpec spec) {
    return Math.addExact(
        statesFrom(kernels, spec), Math.multiplyExact(2 * ROWS, kernels.attentionState(spec)));
  }

  /** Where states begin in the working memory: behind what kernels ask for, on a cache line. */
  private static int statesFrom(Kernels kernels, AttentionSpec spec) {
    return Math.addExact(kernels.attentionScratch(spec), 15) & -16;
  }

  /**
   * Removes all rows; says what those that will be added are rows of.
   *
   * @param queries floats {@code [group][keyDim]} of every row
   * @param results takes floats {@code [group][valueDim]} of every row
   */
  public void begin(
      Kernels kernels, AttentionSpec spec, MemorySegment queries, MemorySegment results) {
    this.kernels = kernels;
    this.spec = spec;
    this.queries = Objects.requireNonNull(queries);
    this.results = Objects.requireNonNull(results);
    stateFloats = kernels.attentionState(spec);
    statesFrom = statesFrom(kernels, spec);
    rows = 0;
  }

  /**
   * Adds a row.
   *
   * @param query index of the float in the queries at which the row's first head begins
   * @param from first visible position
   * @param to end of the visible positions
   * @param out index of the float in the results at which those of the first head go
   */
  public void add(long query, int from, int to, long out) {
    if (rows == ROWS) {
      throw new IllegalStateException("rows: expected<=" + ROWS);
    }
    if (from < 0 || to < from) {
      throw new IllegalArgumentException("positions: from=" + from + " to=" + to);
    }
    this.query[rows] = query;
    this.from[rows] = from;
    this.to[rows] = to;
    this.out[rows] = out;
    rows++;
  }

  /** The first segment that a row sees something of; {@link #endSegment} if none does. */
  int firstSegment() {
    int first = endSegment();
    for (int r = 0; r < rows; r++) {
      if (from[r] < to[r]) {
        first = Math.min(first, from[r] / SEGMENT);
      }
    }
    return first;
  }

  /** One more than the last segment that a row sees something of. */
  int endSegment() {
    int end = 0;
    for (int r = 0; r < rows; r++) {
      if (from[r] < to[r]) {
        end = Math.max(end, (to[r] - 1) / SEGMENT + 1);
      }
    }
    return end;
  }

  /** The first position of a segment that a row sees. */
  int begin(int segment) {
    int begin = Integer.MAX_VALUE;
    for (int r = 0; r < rows; r++) {
      if (sees(r, segment)) {
        begin = Math.min(begin, Math.max(from[r], segment * SEGMENT));
      }
    }
    return begin;
  }

  /** The end of the positions of a segment that rows see. */
  int end(int segment) {
    int end = 0;
    for (int r = 0; r < rows; r++) {
      if (sees(r, segment)) {
        end = Math.max(end, end(r, segment));
      }
    }
    return end;
  }

  /** Without overflow at the last positions that there can be. */
  private int end(int row, int segment) {
    return Math.min(to[row] - segment * SEGMENT, SEGMENT) + segment * SEGMENT;
  }

  /** Attention over keys and values that all lie side by side, and the results of all rows. */
  public void run(KvRun kv) {
    int end = endSegment();
    int next;
    for (int s = firstSegment(); s < end; s = next) {
      next = segments(s, Integer.MAX_VALUE, kv);
    }
    finish();
  }

  /**
   * Takes the next segment, in ascending order, into the working memory. Of a single row it takes
   * segments behind that one, too: what is done between two calls takes as long as some dozen
   * positions, since a call leaves little of anything else in the caches.
   *
   * @param until end of the positions of which {@code kv} has keys and values: at least of those of
   *     the segment that rows see
   * @return the next segment
   */
  int segments(int segment, int until, KvRun kv) {
    if (rows == 1) {
      return segmentsOfRow(segment, until, kv);
    }
    long next = statesFrom + (long) ROWS * stateFloats;
    fill(segment, scratch, statesFrom, next);
    if (tile.rows() > 0) {
      kernels.attention(spec, tile, kv, scratch);
      for (int r = 0; r < rows; r++) {
        if (sees(r, segment) && from[r] / SEGMENT < segment) {
          long state = (long) r * stateFloats;
          kernels.attentionMerge(spec, scratch, statesFrom + state, next + state);
        }
      }
    }
    return segment + 1;
  }

  private int segmentsOfRow(int segment, int until, KvRun kv) {
    long next = statesFrom + (long) ROWS * stateFloats;
    int last = (to[0] - 1) / SEGMENT;
    tile.begin(segment, queries, scratch);
    int s = segment;
    do {
      int begin = Math.max(from[0], s * SEGMENT);
      long others = next + (long) tile.rows() * stateFloats;
      if (s > segment) {
        tile.nextSegment();
      }
      tile.add(query[0], begin, end(0, s), begin == from[0] ? statesFrom : others);
      s++;
    } while (s <= last && tile.rows() < ROWS && end(0, s) <= until);
    kernels.attention(spec, tile, kv, scratch);
    for (int i = 0; i < tile.rows(); i++) {
      if (tile.state(i) != statesFrom) {
        kernels.attentionMerge(spec, scratch, statesFrom, tile.state(i));
      }
    }
    return s;
  }

  /** Writes the results of all rows after the last segment. */
  void finish() {
    for (int r = 0; r < rows; r++) {
      finish(r, scratch, statesFrom + (long) r * stateFloats);
    }
  }

  /**
   * Leaves the states of one segment where {@link #join} finds them. Other threads may take other
   * segments meanwhile.
   *
   * @param kv keys and values of the positions of the segment that rows see
   * @param states states of the first segment's rows, then those of the next segment and so on,
   *     from float {@code at} on
   */
  void part(int segment, KvRun kv, MemorySegment states, long at) {
    long here = at + (long) (segment - firstSegment()) * rows * stateFloats;
    fill(segment, states, here, here);
    if (tile.rows() > 0) {
      kernels.attention(spec, tile, kv, scratch);
    }
  }

  /** Merges what {@link #part} left for all segments and writes the results of all rows. */
  void join(MemorySegment states, long at) {
    int first = firstSegment();
    int end = endSegment();
    for (int r = 0; r < rows; r++) {
      long row = at + (long) r * stateFloats;
      long merged = row + (long) (from[r] / SEGMENT - first) * rows * stateFloats;
      for (int s = from[r] / SEGMENT + 1; s < end && sees(r, s); s++) {
        long state = row + (long) (s - first) * rows * stateFloats;
        kernels.attentionMerge(spec, states, merged, state);
      }
      finish(r, states, merged);
    }
  }

  private boolean sees(int row, int segment) {
    return from[row] < to[row]
        && from[row] / SEGMENT <= segment
        && segment <= (to[row] - 1) / SEGMENT;
  }

  /**
   * Fills the tile with the rows that see something of a segment.
   *
   * @param firsts float of {@code states} from which on the states of rows go of which it is the
   *     first segment
   * @param others where those of the other rows go
   */
  private void fill(int segment, MemorySegment states, long firsts, long others) {
    int begin = segment * SEGMENT;
    tile.begin(segment, queries, states);
    for (int r = 0; r < rows; r++) {
      if (sees(r, segment)) {
        boolean first = from[r] >= begin;
        tile.add(
            query[r],
            Math.max(from[r], begin),
            end(r, segment),
            (first ? firsts : others) + (long) r * stateFloats);
      }
    }
  }

  /** See {@link Kernels#attentionMerge}; with the other kernels of a set. */
  static void merge(
      Kernels kernels, AttentionSpec spec, MemorySegment states, long merged, long next) {
    int group = spec.group();
    int n = spec.valueDim();
    for (int h = 0; h < group; h++) {
      float before = Segments.f32(states, merged + h);
      float here = Segments.f32(states, next + h);
      float max = Math.max(before, here);
      float base = max == Float.NEGATIVE_INFINITY ? 0f : max;
      float factor = FloatMath.weight(before - base);
      float worth = FloatMath.weight(here - base);
      float sum = Segments.f32(states, merged + group + h);
      float added = Segments.f32(states, next + group + h) * worth;
      Segments.f32(states, merged + h, max);
      Segments.f32(states, merged + group + h, Math.fma(sum, factor, added));
      long v = merged + 2L * group + (long) h * n;
      long w = next + 2L * group + (long) h * n;
      kernels.scale(states, w, worth, n, states, w);
      kernels.add(states, w, states, v, factor, n, states, v);
    }
  }

  private void finish(int row, MemorySegment states, long state) {
    if (from[row] == to[row]) {
      Segments.zero(results, out[row], (long) spec.group() * spec.valueDim());
    } else {
      kernels.attentionFinish(spec, states, state, results, out[row]);
    }
  }

  /** See {@link Kernels#attentionFinish}; with the other kernels of a set. */
  static void finish(
      Kernels kernels,
      AttentionSpec spec,
      MemorySegment states,
      long state,
      MemorySegment into,
      long outOffset) {
    int group = spec.group();
    int n = spec.valueDim();
    for (int h = 0; h < group; h++) {
      float sum = Segments.f32(states, state + group + h);
      float inverse = sum == 0f ? 0f : 1f / sum;
      long v = state + 2L * group + (long) h * n;
      kernels.scale(states, v, inverse, n, into, outOffset + (long) h * n);
    }
  }
}
