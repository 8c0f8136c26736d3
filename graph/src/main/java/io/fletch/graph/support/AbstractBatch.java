package io.fletch.graph.support;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.LowRankAdapter.Term;
import io.fletch.graph.Op;
import io.fletch.graph.Span;
import io.fletch.graph.Span.Own;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;

/**
 * The inputs of a batch, checked and held in flat arrays, and the readers of its logits. A backend
 * extends it with the storage of the logits. Used by one thread at a time, except that the workers
 * of a forward read it.
 */
public abstract class AbstractBatch implements Batch {
  private static final int CHUNK = 4096;
  private static final int UNITS = Gate.Unit.values().length;

  private final Graph graph;
  private final int maxRows;
  private final int maxLogitRows;
  private final int positions;

  // Spans, one entry each.
  private final KvCache[] kv;
  private final int[] spanStart;
  private final int[] spanRows;
  private final int[] spanPosition;
  private final int[] spanSlot;
  private final int[] spanPrefix;
  private final int[] suffixFrom;
  private final int[] suffixTo;
  private final Own[] own;
  private final int[] block;

  // Rows, one entry each.
  private final int[] token;
  private final int[] spanOf;
  private final int[] logitOf;
  private final int[] logitSource;

  // Logit rows, one entry each: ids of which the largest are wanted, and how many.
  private final int[] topDefined;
  private final int[] topCount;

  // Gate bytes, [gate index][row].
  private final boolean[] gateExists;
  private final byte[] gates;
  private boolean anyGate;

  // Decisions of the graph. Without any, what was decided is what was asked for.
  private final List<Op> decisions;
  private final boolean canSkip;
  private final boolean canRoute;
  private final byte[] decided;
  private final float[] scores;
  private final boolean[] skips;
  private final float[] skipThreshold;
  private final int[] skipRun;
  private final int[] skipBudget;
  private final int[] skipLeft;
  private final boolean[] routes;
  private final float[] routeThreshold;
  private final byte[] routeOtherwise;

  // Numbers that come with the rows, [row][number].
  private final int inputWidth;
  private final float[] inputs;

  // Low-rank terms, one immutable list each; rows of a sequence share one.
  private final List<Term>[] terms;
  private boolean adapted;

  private final float[] chunk;
  private final LogitReduction reduction = new LogitReduction();
  private int spans;
  private int rows;
  private int logitRows;
  private boolean ran;
  private boolean closed;

  /** Makes an empty batch for a graph. */
  protected AbstractBatch(Graph graph, int maxRows, int maxLogitRows) {
    if (maxRows < 1 || maxLogitRows < 0 || maxLogitRows > maxRows) {
      throw new IllegalArgumentException(
          "batch size: expected 1<=maxRows, 0<=maxLogitRows<=maxRows, actual maxRows="
              + maxRows
              + " maxLogitRows="
              + maxLogitRows);
    }
    this.graph = graph;
    this.maxRows = maxRows;
    this.maxLogitRows = maxLogitRows;
    positions = graph.positions();
    kv = new KvCache[maxRows];
    spanStart = new int[maxRows];
    spanRows = new int[maxRows];
    spanPosition = new int[maxRows];
    spanSlot = new int[maxRows];
    spanPrefix = new int[maxRows];
    suffixFrom = new int[maxRows];
    suffixTo = new int[maxRows];
    own = new Own[maxRows];
    block = new int[maxRows];
    token = new int[maxRows];
    spanOf = new int[maxRows];
    logitOf = new int[maxRows];
    logitSource = new int[maxLogitRows];
    topDefined = new int[maxLogitRows];
    topCount = new int[maxLogitRows];
    gateExists = gatesOf(graph);
    gates = new byte[Math.multiplyExact(gateExists.length, maxRows)];
    decisions = graph.decisions();
    canSkip = decisions.stream().anyMatch(Op.SkipSimilar.class::isInstance);
    canRoute = decisions.stream().anyMatch(Op.RouteUnit.class::isInstance);
    decided = decisions.isEmpty() ? gates : new byte[gates.length];
    int deciding = decisions.isEmpty() ? 0 : maxRows;
    scores = new float[Math.multiplyExact(decisions.size(), maxRows)];
    skips = new boolean[deciding];
    skipThreshold = new float[deciding];
    skipRun = new int[deciding];
    skipBudget = new int[deciding];
    skipLeft = new int[deciding];
    routes = new boolean[deciding];
    routeThreshold = new float[deciding];
    routeOtherwise = new byte[deciding];
    inputWidth = graph.inputWidth();
    inputs = new float[Math.multiplyExact(inputWidth, maxRows)];
    terms = lists(maxRows);
    chunk = new float[Math.min(CHUNK, graph.logits().width())];
  }

  @SuppressWarnings({"unchecked", "rawtypes"})
  private static List<Term>[] lists(int n) {
    List<Term>[] all = new List[n];
    Arrays.fill(all, List.of());
    return all;
  }

  private static boolean[] gatesOf(Graph graph) {
    List<Gate> all = new ArrayList<>();
    for (Op op : graph.ops()) {
      Gate.of(op).ifPresent(all::add);
      all.addAll(Gate.decidedBy(op));
    }
    int layers = all.stream().mapToInt(g -> g.layer() + 1).max().orElse(0);
    boolean[] exists = new boolean[layers * UNITS];
    all.forEach(g -> exists[gateIndex(g.layer(), g.unit())] = true);
    return exists;
  }

  /** Where the bytes of a gate lie: rows of gate g start at {@code g * maxRows}. */
  public static int gateIndex(int layer, Gate.Unit unit) {
    return layer * UNITS + unit.ordinal();
  }

  /** The graph it was made for. */
  public final Graph graph() {
    return graph;
  }

  /** The executable that runs it, and no other. */
  protected abstract Executable owner();

  /** Copies {@code count} logits from id {@code from} on of a logit row that was computed. */
  protected abstract void copyLogits(int logitRow, int from, int count, float[] dst, int dstOffset);

  /** Copies a row of {@code graph().hidden()} that was computed. */
  protected abstract void copyHidden(int logitRow, int width, float[] dst);

  /** Releases the logits. Called once. */
  protected abstract void release();

  @Override
  public final int maxRows() {
    return maxRows;
  }

  @Override
  public final int maxLogitRows() {
    return maxLogitRows;
  }

  @Override
  public final void clear() {
    checkOpen();
    Arrays.fill(kv, 0, spans, null);
    if (anyGate) {
      Arrays.fill(gates, Gate.RUN);
      anyGate = false;
    }
    if (adapted) {
      Arrays.fill(terms, List.of());
      adapted = false;
    }
    spans = 0;
    rows = 0;
    logitRows = 0;
    ran = false;
  }

  @Override
  public final int add(Span span, int[] tokens, int offset) {
    return add(
        span.kv(),
        span.rows(),
        span.position(),
        span.slot(),
        span.prefix(),
        span.suffixFrom(),
        span.suffixTo(),
        span.own(),
        span.block(),
        tokens,
        offset);
  }

  @Override
  public final int append(KvCache cache, int[] tokens, int offset, int count) {
    int n = cache.length();
    if (count <= 0 || count > cache.capacity() - n) {
      throw new IllegalArgumentException(
          "append outside the cache: count="
              + count
              + " length="
              + n
              + " capacity="
              + cache.capacity());
    }
    return add(cache, count, n, n, n, 0, 0, Own.CAUSAL, 0, tokens, offset);
  }

  private int add(
      KvCache cache,
      int count,
      int position,
      int slot,
      int prefix,
      int from,
      int to,
      Own kind,
      int blockLength,
      int[] tokens,
      int offset) {
    checkOpen();
    AbstractKvCache.check(cache, owner());
    Objects.checkFromIndexSize(offset, count, tokens.length);
    if (count > maxRows - rows) {
      throw new IllegalArgumentException(
          "batch is full: maxRows=" + maxRows + " rows=" + rows + " wanted=" + count);
    }
    if (position > positions - count) {
      throw new IllegalArgumentException(
          "position out of range: expected in [0, "
              + positions
              + ") actual=["
              + position
              + ", "
              + ((long) position + count)
              + ")");
    }
    for (int i = 0; i < count; i++) {
      int id = tokens[offset + i];
      if (id < 0 || id >= graph.vocabulary()) {
        throw new IllegalArgumentException(
            "token id outside the vocabulary: expected in [0, "
                + graph.vocabulary()
                + ") actual="
                + id
                + " at index "
                + (offset + i));
      }
    }
    for (int s = 0; s < spans; s++) {
      if (kv[s] == cache && slot < spanSlot[s] + spanRows[s] && spanSlot[s] < slot + count) {
        throw new IllegalArgumentException(
            "two spans write the same slots: ["
                + slot
                + ", "
                + (slot + count)
                + ") and ["
                + spanSlot[s]
                + ", "
                + (spanSlot[s] + spanRows[s])
                + ")");
      }
    }
    int s = spans++;
    int first = rows;
    kv[s] = cache;
    spanStart[s] = first;
    spanRows[s] = count;
    spanPosition[s] = position;
    spanSlot[s] = slot;
    spanPrefix[s] = prefix;
    suffixFrom[s] = from;
    suffixTo[s] = to;
    own[s] = kind;
    block[s] = blockLength;
    System.arraycopy(tokens, offset, token, first, count);
    Arrays.fill(inputs, first * inputWidth, (first + count) * inputWidth, 0);
    Arrays.fill(spanOf, first, first + count, s);
    Arrays.fill(logitOf, first, first + count, -1);
    if (!decisions.isEmpty()) {
      Arrays.fill(skips, first, first + count, false);
      Arrays.fill(routes, first, first + count, false);
    }
    rows += count;
    ran = false;
    return first;
  }

  @Override
  public final int wantLogits(int row) {
    checkOpen();
    Objects.checkIndex(row, rows);
    if (logitOf[row] >= 0) {
      return logitOf[row];
    }
    if (logitRows == maxLogitRows) {
      throw new IllegalArgumentException("no logit row left: maxLogitRows=" + maxLogitRows);
    }
    logitSource[logitRows] = row;
    logitOf[row] = logitRows;
    topCount[logitRows] = 0;
    ran = false;
    return logitRows++;
  }

  @Override
  public final void wantTop(int logitRow, int defined, int count) {
    checkOpen();
    Objects.checkIndex(logitRow, logitRows);
    if (count < 1 || defined < 1 || defined > graph.logits().width()) {
      throw new IllegalArgumentException(
          "largest logits: expected at least 1 of 1 to "
              + graph.logits().width()
              + " ids, actual count="
              + count
              + " of="
              + defined);
    }
    topDefined[logitRow] = defined;
    topCount[logitRow] = count;
    ran = false;
  }

  /** How many of the largest logits of a row are wanted; 0 if nobody said so. */
  public final int topCount(int logitRow) {
    return topCount[logitRow];
  }

  /** The ids among which {@link #topCount} are wanted are below this. */
  public final int topDefined(int logitRow) {
    return topDefined[logitRow];
  }

  @Override
  public final void input(int row, float[] values) {
    checkOpen();
    Objects.checkIndex(row, rows);
    if (inputWidth == 0 || values.length != inputWidth) {
      throw new IllegalArgumentException(
          "numbers of a row: expected=" + inputWidth + " actual=" + values.length);
    }
    System.arraycopy(values, 0, inputs, row * inputWidth, inputWidth);
    ran = false;
  }

  @Override
  public final void adapt(int row, List<Term> list) {
    checkOpen();
    Objects.checkIndex(row, rows);
    List<Term> own = List.copyOf(list);
    for (int i = 0; i < own.size(); i++) {
      PreparedAdapter.check(own.get(i).adapter(), owner());
      adapted |= own.get(i).scale() != 0;
    }
    owner().checkTerms(own);
    // Rows of one list are multiplied together.
    terms[row] = row > 0 && own.equals(terms[row - 1]) ? terms[row - 1] : own;
    ran = false;
  }

  @Override
  public final void gate(int layer, Gate.Unit unit, int row, byte value) {
    checkOpen();
    Objects.checkIndex(row, rows);
    int g = gateIndexChecked(layer, unit);
    if (value != Gate.RUN && value != Gate.SKIP && value != Gate.SUBSTITUTE) {
      throw new IllegalArgumentException(
          "gate byte: expected RUN, SKIP or SUBSTITUTE, actual=" + value);
    }
    gates[g * maxRows + row] = value;
    anyGate |= value != Gate.RUN;
    ran = false;
  }

  private int gateIndexChecked(int layer, Gate.Unit unit) {
    int g = layer < 0 ? -1 : gateIndex(layer, unit);
    if (g < 0 || g >= gateExists.length || !gateExists[g]) {
      throw new IllegalArgumentException("no such gate: layer=" + layer + " unit=" + unit);
    }
    return g;
  }

  @Override
  public final void skipSimilar(int row, float threshold, int run, int budget) {
    checkDecides(row, Op.SkipSimilar.class);
    if (Float.isNaN(threshold) || run < 0 || budget < 0) {
      throw new IllegalArgumentException(
          "skipping: expected a threshold, run>=0, budget>=0, actual threshold="
              + threshold
              + " run="
              + run
              + " budget="
              + budget);
    }
    skips[row] = true;
    skipThreshold[row] = threshold;
    skipRun[row] = run;
    skipBudget[row] = budget;
    ran = false;
  }

  @Override
  public final void routeUnits(int row, float threshold, byte otherwise) {
    checkDecides(row, Op.RouteUnit.class);
    if (Float.isNaN(threshold) || otherwise != Gate.SKIP && otherwise != Gate.SUBSTITUTE) {
      throw new IllegalArgumentException(
          "routing: expected a threshold, SKIP or SUBSTITUTE, actual threshold="
              + threshold
              + " otherwise="
              + otherwise);
    }
    routes[row] = true;
    routeThreshold[row] = threshold;
    routeOtherwise[row] = otherwise;
    ran = false;
  }

  private void checkDecides(int row, Class<? extends Op> kind) {
    checkOpen();
    Objects.checkIndex(row, rows);
    if (!(kind == Op.SkipSimilar.class ? canSkip : canRoute)) {
      throw new IllegalArgumentException(
          "the graph has no op that decides: expected " + kind.getSimpleName());
    }
  }

  @Override
  public byte decided(int layer, Gate.Unit unit, int row) {
    checkRan();
    Objects.checkIndex(row, rows);
    return decided[gateIndexChecked(layer, unit) * maxRows + row];
  }

  @Override
  public float score(int decision, int row) {
    checkRan();
    Objects.checkIndex(decision, decisions.size());
    Objects.checkIndex(row, rows);
    return scores[decision * maxRows + row];
  }

  /** Whether a row takes part in {@link Op.SkipSimilar}. */
  public final boolean skips(int row) {
    return skips[row];
  }

  /** The row's threshold of {@link Op.SkipSimilar}. */
  public final float skipThreshold(int row) {
    return skipThreshold[row];
  }

  /** The row's run of {@link Op.SkipSimilar}. */
  public final int skipRun(int row) {
    return skipRun[row];
  }

  /** The row's budget of {@link Op.SkipSimilar}. */
  public final int skipBudget(int row) {
    return skipBudget[row];
  }

  /** Whether a row takes part in {@link Op.RouteUnit}. */
  public final boolean routes(int row) {
    return routes[row];
  }

  /** The row's threshold of {@link Op.RouteUnit}. */
  public final float routeThreshold(int row) {
    return routeThreshold[row];
  }

  /** The row's other byte of {@link Op.RouteUnit}. */
  public final byte routeOtherwise(int row) {
    return routeOtherwise[row];
  }

  /** Whether the graph decides about gates. */
  public final boolean decides() {
    return !decisions.isEmpty();
  }

  /**
   * Applies {@link Op.SkipSimilar} to a row that takes part and whose unit ran. Different rows by
   * different threads at once.
   *
   * @param targets indices of the gates
   */
  public final void decideSkip(int decision, int[] targets, int row, float score) {
    scores[decision * maxRows + row] = score;
    if (score >= skipThreshold[row]) {
      int n = Math.min(targets.length, Math.min(skipRun[row], skipLeft[row]));
      for (int i = 0; i < n; i++) {
        decided[targets[i] * maxRows + row] = Gate.SKIP;
      }
      skipLeft[row] -= n;
    }
  }

  /** Applies {@link Op.RouteUnit} to a row that takes part and whose gate says run. */
  public final void decideRoute(int decision, int target, int row, float score) {
    scores[decision * maxRows + row] = score;
    if (score < routeThreshold[row]) {
      decided[target * maxRows + row] = routeOtherwise[row];
    }
  }

  /** Takes over what another processor decided: bytes and scores of all rows, in their layout. */
  protected final void take(int gateIndex, int row, byte value) {
    decided[gateIndex * maxRows + row] = value;
  }

  /** Takes over a score that another processor computed. */
  protected final void takeScore(int decision, int row, float score) {
    scores[decision * maxRows + row] = score;
  }

  @Override
  public final int rows() {
    return rows;
  }

  @Override
  public final int logitRows() {
    return logitRows;
  }

  @Override
  public final List<Span> spans() {
    List<Span> all = new ArrayList<>(spans);
    for (int s = 0; s < spans; s++) {
      all.add(
          new Span(
              kv[s],
              spanRows[s],
              spanPosition[s],
              spanSlot[s],
              spanPrefix[s],
              suffixFrom[s],
              suffixTo[s],
              own[s],
              block[s]));
    }
    return all;
  }

  /** The token of a row. */
  public final int token(int row) {
    return token[row];
  }

  /** The numbers of all rows, {@code graph().inputWidth()} a row; borrowed. */
  public final float[] inputs() {
    return inputs;
  }

  /** The low-rank terms of a row, those with a scale of 0 too. */
  public final List<Term> terms(int row) {
    return terms[row];
  }

  /** Whether some row has a low-rank term that adds something. */
  public final boolean adapted() {
    return adapted;
  }

  /** The position of a row. */
  public final int position(int row) {
    int s = spanOf[row];
    return spanPosition[s] + row - spanStart[s];
  }

  /** The slot a row writes. */
  public final int slot(int row) {
    int s = spanOf[row];
    return spanSlot[s] + row - spanStart[s];
  }

  /** The cache of a row's sequence. */
  public final KvCache cache(int row) {
    return kv[spanOf[row]];
  }

  /** The batch row behind a logit row. */
  public final int logitSource(int logitRow) {
    return logitSource[logitRow];
  }

  /** The byte of the gate with that index for a row, as decided so far. */
  public final byte gate(int gateIndex, int row) {
    return decided[gateIndex * maxRows + row];
  }

  /** Whether some gate byte is, or may become, something else than {@link Gate#RUN}. */
  public final boolean anyGate() {
    return anyGate || !decisions.isEmpty();
  }

  /**
   * The slots a row sees under a sliding window (0 for none), see {@link Visibility}.
   *
   * @return the number of ranges written from {@code offset} on
   */
  public final int visible(int row, int window, int[] into, int offset) {
    int s = spanOf[row];
    int i = row - spanStart[s];
    int end = Visibility.ownEnd(own[s], block[s], spanPosition[s], spanRows[s], i);
    return Visibility.ranges(
        i, spanSlot[s], spanPrefix[s], suffixFrom[s], suffixTo[s], end, window, into, offset);
  }

  /** The place of the first slot of {@link #visible} in the order of the row's sequence. */
  public final int firstVisible(int row, int window) {
    int s = spanOf[row];
    return Visibility.first(row - spanStart[s], spanSlot[s], spanPrefix[s], window);
  }

  /** Refuses a batch that cannot be run now; called at the start of a forward. */
  public final void checkRunnable() {
    checkOpen();
    if (rows == 0) {
      throw new IllegalArgumentException("the batch has no rows");
    }
    ran = false;
    for (int s = 0; s < spans; s++) {
      AbstractKvCache.check(kv[s], owner());
    }
    for (int r = 0; adapted && r < rows; r++) {
      if (r == 0 || terms[r] != terms[r - 1]) {
        for (int i = 0; i < terms[r].size(); i++) {
          PreparedAdapter.check(terms[r].get(i).adapter(), owner());
        }
      }
    }
    if (!decisions.isEmpty()) {
      System.arraycopy(gates, 0, decided, 0, gates.length);
      System.arraycopy(skipBudget, 0, skipLeft, 0, rows);
      Arrays.fill(scores, Float.NaN);
    }
  }

  /** Lets the logits be read; called at the end of a forward. */
  public final void ran() {
    ran = true;
  }

  @Override
  public final void logits(int logitRow, float[] dst) {
    checkComputed(logitRow);
    copyLogits(logitRow, 0, graph.logits().width(), dst, 0);
  }

  @Override
  public final void hidden(int logitRow, float[] dst) {
    checkComputed(logitRow);
    int width =
        graph
            .hidden()
            .orElseThrow(
                () -> new IllegalStateException("the graph does not give hidden states out"))
            .width();
    copyHidden(logitRow, width, dst);
  }

  @Override
  public int argmax(int logitRow) {
    checkComputed(logitRow);
    int n = graph.logits().width();
    int best = 0;
    float max = Float.NEGATIVE_INFINITY;
    for (int from = 0; from < n; from += chunk.length) {
      int count = Math.min(chunk.length, n - from);
      copyLogits(logitRow, from, count, chunk, 0);
      for (int i = 0; i < count; i++) {
        if (chunk[i] > max) {
          max = chunk[i];
          best = from + i;
        }
      }
    }
    return best;
  }

  @Override
  public void statistics(int logitRow, RowStatistics into) {
    checkComputed(logitRow);
    int n = graph.logits().width();
    reduction.start();
    for (int from = 0; from < n; from += chunk.length) {
      int count = Math.min(chunk.length, n - from);
      copyLogits(logitRow, from, count, chunk, 0);
      reduction.add(chunk, count, from);
    }
    reduction.finish(into);
  }

  /** Refuses to read logits that no forward has computed. */
  protected final void checkComputed(int logitRow) {
    checkOpen();
    Objects.checkIndex(logitRow, logitRows);
    if (!ran) {
      throw new IllegalStateException("logits are read before the batch was run");
    }
  }

  private void checkRan() {
    checkOpen();
    if (!ran) {
      throw new IllegalStateException("decisions are read before the batch was run");
    }
  }

  private void checkOpen() {
    if (closed) {
      throw new IllegalStateException("the batch is closed");
    }
  }

  @Override
  public final void close() {
    if (!closed) {
      closed = true;
      release();
    }
  }
}
