package io.fletch.runtime.engine;

import io.fletch.UnitPolicy;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.GreedySteps;
import io.fletch.graph.KvCache;
import io.fletch.graph.LowRankAdapter;
import io.fletch.graph.Value;
import io.fletch.sampling.CausalForward;
import io.fletch.sampling.DecodeCounters;
import io.fletch.sampling.RowStatistics;
import io.fletch.sampling.UnitUse;
import io.fletch.sampling.WeightUse;
import java.io.IOException;
import java.nio.channels.ReadableByteChannel;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * The graph as a causal decoder sees it: one cache, one reusable batch, and the tokens whose keys
 * and values the cache holds. Long inputs run in chunks of the batch's rows. Ids that the tokenizer
 * does not define (rows that pad the output matrix) have logits of negative infinity.
 *
 * <p>Owned by a session and used by one thread at a time. After construction nothing is allocated.
 */
final class GraphForward extends ScheduledStep implements CausalForward, AutoCloseable {
  private final Executable executable;
  private final KvCache kv;
  private final Batch batch;
  private final int vocabulary;
  private final int defined;
  private final int[] tokens;
  private final float[] scratch;
  private final PassCost cost;
  private final long slotBytes;
  private final Batch.RowStatistics statistics = new Batch.RowStatistics();
  private int logitRows;

  /** Steps that the device may be ahead of what was appended. */
  private static final int STEPS_AHEAD = 4;

  /** Null until they are used. */
  private GreedySteps steps;

  private boolean cannotGoAhead;

  /** Tokens that will be appended, each the argmax of the row before. */
  private int expected;

  /** Whether the latest append was a step that ran ahead, and whether its token is not taken. */
  private boolean isAhead;

  private boolean inStep;

  /** Whether a row that has been counted runs once more. */
  private boolean isRepeat;

  /** The token of the latest step that was taken, and the slot of the row that it is for. */
  private int stepToken = -1;

  private int stepSlot = -1;
  private int firstLogitRow;
  private long forwards;
  private long rows;
  private long headRows;
  private long bytesRead;
  private long weightBytes;
  private final PassCost.Tally tally = new PassCost.Tally();

  /** What rows ask of the gates, and how many leading slots were computed by all units. */
  private UnitRule rule = UnitRule.DENSE;

  private List<UnitPolicy> decidedBy = List.of();

  /** What is added to products for its rows. */
  private List<LowRankAdapter.Term> terms = List.of();

  private int dense;
  private int firstRow;

  // Shared with the scheduler, guarded by its lock or by this session being in its forward.
  private final StepScheduler scheduler;
  private final AtomicInteger open;
  private int[] source;
  private int at;
  private int pending;
  private Logits wanted = Logits.NONE;
  private Throwable failure;

  /** What is read of logit rows, as {@link CausalForward#expectRead} has it. */
  private int read = WHOLE_ROWS;

  /** The logits where they came out of a shared batch, and whether they did. */
  private float[] copied;

  private boolean isCopied;

  /** What came out of it, as {@link #read} has it: the argmax, pairs, or all logits. */
  private int taken = WHOLE_ROWS;

  /** Slot of the row whose results can be read. */
  private int resultSlot;

  private int copiedArgmax;
  private int[] topIds = {};
  private float[] topLogits = {};

  /** The hidden state where it came out of a shared batch; null unless it is wanted. */
  private float[] copiedHidden;

  /**
   * Makes an empty cache.
   *
   * @param capacity slots of the cache
   * @param defined ids below this are tokens
   * @param maxLogitRows most logit rows of one append
   * @param cost what a forward reads of the weights
   * @param slotBytes bytes of keys and values per slot
   * @param scheduler runs the steps together with those of other sessions; null to run alone
   * @param open counts forwards that are not closed
   */
  GraphForward(
      Executable executable,
      int capacity,
      KvCache.Type type,
      int defined,
      int maxRows,
      int maxLogitRows,
      PassCost cost,
      long slotBytes,
      StepScheduler scheduler,
      AtomicInteger open) {
    super(scheduler == null ? null : scheduler.newTurn());
    this.executable = executable;
    this.scheduler = scheduler;
    this.vocabulary = executable.graph().vocabulary();
    this.defined = defined;
    this.cost = cost;
    this.slotBytes = slotBytes;
    this.tokens = new int[capacity];
    this.scratch = defined < vocabulary ? new float[vocabulary] : null;
    this.kv = executable.newKvCache(capacity, type);
    try {
      this.batch = executable.newBatch(maxRows, maxLogitRows);
    } catch (RuntimeException | Error e) {
      kv.close();
      throw e;
    }
    this.open = open;
    open.incrementAndGet();
  }

  @Override
  public int vocabulary() {
    return vocabulary;
  }

  @Override
  public int capacity() {
    return kv.capacity();
  }

  @Override
  public int length() {
    return kv.length();
  }

  @Override
  public int maxLogitRows() {
    return batch.maxLogitRows();
  }

  /** Most tokens of one forward pass. */
  @Override
  int chunk() {
    return batch.maxRows();
  }

  /** Token {@code i} of the cache. */
  int token(int i) {
    return tokens[i];
  }

  @Override
  public void expectRead(int what) {
    read = what;
  }

  @Override
  public void expectArgmax(int most) {
    expected = Math.max(0, most);
  }

  /**
   * Takes the step of one token from those that run ahead on the device, and keeps them running.
   *
   * @return false if the step has to be run
   */
  private boolean ahead(int token) {
    boolean possible =
        expected > 0
            && !cannotGoAhead
            && rule == UnitRule.DENSE
            && terms.isEmpty()
            && kv.length() < kv.capacity()
            && (scheduler == null || scheduler.isAlone(this));
    if (!possible) {
      return false;
    }
    if (steps == null) {
      steps = executable.newGreedySteps(kv, batch).orElse(null);
      if (steps == null) {
        cannotGoAhead = true;
        return false;
      }
    }
    takeStep();
    if (steps.pending() == 0 || stepToken != token || stepSlot != kv.length()) {
      steps.start(token);
    }
    int most = Math.min(expected, STEPS_AHEAD);
    while (steps.pending() < most && steps.follow()) {}
    expected--;
    inStep = true;
    logitRows = 1;
    // All units run.
    ran(batch, 1, 1, 0);
    return true;
  }

  private void takeStep() {
    if (inStep) {
      inStep = false;
      stepToken = steps.take();
      stepSlot = kv.length();
    }
  }

  /** The sequence is no longer the one that steps went ahead of. */
  private void forgetSteps() {
    inStep = false;
    stepSlot = -1;
  }

  /**
   * Runs the latest row again where its results are gone: a step that ran ahead, whose place the
   * next steps have taken, or a row of a shared batch of which only what was expected was kept. The
   * pass counts as one more, the row's units and parameters do not: they are of its token.
   */
  private void runAgain() {
    if (isAhead || isCopied && taken != WHOLE_ROWS) {
      forgetSteps();
      isAhead = false;
      // What was cut off meanwhile is still in the cache.
      int length = kv.length();
      kv.length(resultSlot);
      source = tokens;
      at = resultSlot;
      pending = 1;
      wanted = Logits.LAST;
      isRepeat = true;
      try {
        runAlone(executable, 1);
      } finally {
        isRepeat = false;
        pending = 0;
        kv.length(length);
        dense = Math.min(dense, length);
      }
    }
  }

  @Override
  public void append(int[] source, int offset, int count, Logits wanted) {
    int most = wanted == Logits.ALL ? batch.maxLogitRows() : Integer.MAX_VALUE;
    if (count < 1 || count > most) {
      throw new IllegalArgumentException("count: expected=[1, " + most + "] actual=" + count);
    }
    if (count > kv.capacity() - kv.length()) {
      throw new IndexOutOfBoundsException(
          "the cache is full: capacity="
              + kv.capacity()
              + " length="
              + kv.length()
              + " appended="
              + count);
    }
    this.source = source;
    this.at = offset;
    this.pending = count;
    this.wanted = wanted;
    this.failure = null;
    this.logitRows = 0;
    isAhead = count == 1 && wanted == Logits.LAST && ahead(source[offset]);
    if (isAhead) {
      return;
    }
    forgetSteps();
    // Shared forwards hand out one logit row per session.
    if (scheduler != null && wanted != Logits.ALL) {
      scheduler.run(this);
      return;
    }
    while (pending > 0) {
      runAlone(executable, Math.min(batch.maxRows(), pending));
    }
  }

  @Override
  boolean isPending() {
    return pending > 0;
  }

  @Override
  int pendingRows() {
    return pending;
  }

  /** Runs the next {@code n} rows in the batch of its own. */
  @Override
  void runAlone(Executable on, int n) {
    batch.clear();
    addTo(batch, n);
    on.forward(batch);
    ran(batch, n, 1, bytesSpared(batch));
  }

  /** Bytes of weights that a batch with rows of this did not read; nothing is asked if all run. */
  @Override
  long bytesSpared(Batch in) {
    return rule == UnitRule.DENSE ? in.skippedBytes() : cost.bytesSpared(in);
  }

  /** Adds the next {@code n} rows to a batch. */
  @Override
  void addTo(Batch into, int n) {
    int first = into.append(kv, source, at, n);
    firstRow = first;
    for (int i = 0; rule != UnitRule.DENSE && i < n; i++) {
      rule.ask(into, first + i, kv.length() + i, source[at + i]);
    }
    for (int i = 0; !terms.isEmpty() && i < n; i++) {
      into.adapt(first + i, terms);
    }
    firstLogitRow = into.logitRows();
    if (wanted == Logits.ALL) {
      for (int i = 0; i < n; i++) {
        into.wantLogits(first + i);
      }
    } else if (wanted == Logits.LAST && n == pending) {
      int row = into.wantLogits(first + n - 1);
      if (read > 0) {
        into.wantTop(row, defined, read);
      }
    }
    logitRows = into.logitRows() - firstLogitRow;
  }

  /**
   * The rows have run, together with those of {@code sessions - 1} others.
   *
   * @param spared bytes of weights that all of them together did not read
   */
  @Override
  void ran(Batch in, int n, int sessions, long spared) {
    isCopied = in != batch;
    taken = WHOLE_ROWS;
    if (isCopied && logitRows > 0) {
      take(in);
    }
    int length = kv.length();
    System.arraycopy(source, at, tokens, length, n);
    kv.length(length + n);
    resultSlot = length + n - 1;
    forwards++;
    rows += n;
    headRows += logitRows;
    // The weights are read once for all of them.
    long weights = (cost.bytes(logitRows > 0) - spared) / sessions;
    if (rule != UnitRule.DENSE) {
      if (!isRepeat) {
        countUnits(in, n, length);
      }
    } else if (dense == length) {
      dense = length + n;
    }
    weightBytes += weights;
    bytesRead += weights + (length + n) * slotBytes;
    at += n;
    pending -= n;
  }

  /** Takes its results out of a shared batch, which the next forward fills again. */
  private void take(Batch in) {
    if (copiedHidden != null) {
      in.hidden(firstLogitRow, copiedHidden);
    }
    if (read == 0) {
      copiedArgmax = in.argmax(firstLogitRow);
      taken = copiedArgmax < defined ? 0 : WHOLE_ROWS;
    } else if (read > 0) {
      if (topIds.length != read) {
        topIds = new int[read];
        topLogits = new float[read];
      }
      taken = in.top(firstLogitRow, defined, topIds, topLogits) ? read : WHOLE_ROWS;
    }
    if (taken == WHOLE_ROWS) {
      if (copied == null) {
        copied = new float[vocabulary];
      }
      in.logits(firstLogitRow, copied);
    }
  }

  private void countUnits(Batch in, int n, int length) {
    for (int i = 0; i < n; i++) {
      int position = length + i;
      boolean counts = rule.counts(position);
      // Of the answer's tokens, each of which was drawn from one row.
      boolean draws = logitRows > 0 && i == n - 1;
      if (counts || draws) {
        cost.tally(in, firstRow + i, counts, draws, tally);
      }
      if (rule.isDense(position) && dense == position) {
        dense++;
      }
    }
    decidedBy = rule.policies();
  }

  /** Sets what the rows from now on ask of the gates. */
  void rule(UnitRule value) {
    rule = value.policies().isEmpty() ? UnitRule.DENSE : value;
  }

  /** Other low-rank terms for rows from now on; the cache is empty then. */
  void adapt(List<LowRankAdapter.Term> next) {
    truncate(0);
    terms = next;
  }

  /** The low-rank terms of its rows. */
  List<LowRankAdapter.Term> terms() {
    return terms;
  }

  /** Leading slots that may stay for a text with this rule. */
  int usable(UnitRule of) {
    if (of.policies().equals(decidedBy)) {
      return kv.length();
    }
    // Else the answer would depend on what the cache happened to hold.
    return of.isDense(0) ? dense : 0;
  }

  /** What a deciding op saw of row {@code i} of the latest append, which was one forward. */
  float score(int decision, int i) {
    return batch.score(decision, firstRow + i);
  }

  /** Leading slots that were computed by all units. */
  int dense() {
    return dense;
  }

  /** The forward failed; what has run before it stays. */
  @Override
  void fail(Throwable why) {
    failure = why;
    pending = 0;
    logitRows = 0;
  }

  /** Throws what made the forward fail. Several sessions may throw the same exception. */
  @Override
  void rethrow() {
    source = null;
    switch (failure) {
      case null -> {}
      case RuntimeException e -> throw e;
      case Error e -> throw e;
      case Throwable e -> throw new IllegalStateException(e);
    }
  }

  /** No step follows soon: sessions that run together need not wait for this one. */
  void leave() {
    if (scheduler != null) {
      scheduler.leave(this);
    }
  }

  @Override
  public void truncate(int length) {
    if (length < 0 || length > kv.length()) {
      throw new IndexOutOfBoundsException(
          "length: expected=[0, " + kv.length() + "] actual=" + length);
    }
    if (length < kv.length()) {
      // Its results stay, the steps behind it do not.
      takeStep();
      forgetSteps();
    }
    kv.length(length);
    dense = Math.min(dense, length);
  }

  KvCache kv() {
    return kv;
  }

  /**
   * Copies slots and tokens {@code [length(), count)} from a cache of the same executable, whose
   * earlier tokens are those of this one.
   */
  void copyFrom(KvCache from, int[] ids, int count) {
    forgetSteps();
    int length = kv.length();
    kv.copy(from, length, length, count - length);
    System.arraycopy(ids, length, tokens, length, count - length);
    kv.length(count);
    if (dense == length) {
      dense = count;
    }
  }

  /** Takes over all of another forward of the same model. */
  void copyFrom(GraphForward other) {
    kv.length(0);
    copyFrom(other.kv, other.tokens, other.length());
    dense = other.dense;
    decidedBy = other.decidedBy;
  }

  /**
   * Replaces the content by what a channel holds; on failure it is empty.
   *
   * @param denseTokens leading ones that all units have computed
   */
  void load(int[] ids, int denseTokens, ReadableByteChannel from) throws IOException {
    forgetSteps();
    kv.length(0);
    dense = 0;
    kv.load(ids.length, from);
    System.arraycopy(ids, 0, tokens, 0, ids.length);
    kv.length(ids.length);
    dense = denseTokens;
    decidedBy = List.of();
  }

  @Override
  public int logitRows() {
    return logitRows;
  }

  @Override
  public void logits(int row, float[] target) {
    rawLogits(row, target);
    Arrays.fill(target, defined, vocabulary, Float.NEGATIVE_INFINITY);
  }

  /** Copies a logit row as the model gave it. */
  void rawLogits(int row, float[] target) {
    runAgain();
    if (isCopied) {
      Objects.checkIndex(row, logitRows);
      System.arraycopy(copied, 0, target, 0, vocabulary);
    } else {
      batch.logits(row, target);
    }
  }

  @Override
  public int hiddenWidth() {
    return executable.graph().hidden().map(Value::width).orElse(0);
  }

  @Override
  public void keepHidden() {
    if (copiedHidden == null) {
      copiedHidden = new float[hiddenWidth()];
    }
  }

  @Override
  public void hidden(int row, float[] target) {
    if (isCopied) {
      Objects.checkIndex(row, logitRows);
      System.arraycopy(copiedHidden, 0, target, 0, copiedHidden.length);
    } else {
      runAgain();
      batch.hidden(row, target);
    }
  }

  @Override
  public int argmax(int row) {
    if (isAhead) {
      Objects.checkIndex(row, logitRows);
      takeStep();
      if (stepToken < defined) {
        return stepToken;
      }
      // The device does not know which ids are tokens.
      runAgain();
    }
    if (isCopied && taken == 0) {
      Objects.checkIndex(row, logitRows);
      return copiedArgmax;
    }
    runAgain();
    if (isCopied) {
      Objects.checkIndex(row, logitRows);
      return argmax(copied);
    }
    int best = batch.argmax(row);
    if (best < defined) {
      return best;
    }
    batch.logits(row, scratch);
    return argmax(scratch);
  }

  /** The first of the largest; as the batch says it, 0 if none is larger than any other. */
  private int argmax(float[] values) {
    int best = 0;
    float most = Float.NEGATIVE_INFINITY;
    for (int i = 0; i < defined; i++) {
      if (values[i] > most) {
        most = values[i];
        best = i;
      }
    }
    return best;
  }

  @Override
  public boolean top(int row, int[] ids, float[] logits) {
    if (isCopied && taken == ids.length) {
      Objects.checkIndex(row, logitRows);
      System.arraycopy(topIds, 0, ids, 0, ids.length);
      System.arraycopy(topLogits, 0, logits, 0, ids.length);
      return true;
    }
    runAgain();
    return !isCopied && batch.top(row, defined, ids, logits);
  }

  @Override
  public void statistics(int row, RowStatistics into) {
    runAgain();
    if (scratch == null && !isCopied) {
      batch.statistics(row, statistics);
      copy(statistics, into);
    } else {
      float[] values = scratch == null ? new float[vocabulary] : scratch;
      logits(row, values);
      into.set(values, 0, vocabulary);
    }
  }

  /** Hands the graph's numbers to a schedule. */
  static void copy(Batch.RowStatistics from, RowStatistics into) {
    into.argmax = from.argmax;
    into.top1 = from.top1;
    into.top2 = from.top2;
    into.logSumExp = from.logSumExp;
    into.entropy = from.entropy;
  }

  @Override
  public long forwards() {
    return forwards;
  }

  @Override
  public long rows() {
    return rows;
  }

  /** Parameters that a row with logits is multiplied by. */
  long parameters() {
    return cost.parameters();
  }

  /** Parameters that rows with logits were not multiplied by, because units did not run. */
  long sparedParameters() {
    return tally.sparedParameters;
  }

  /** What has been run so far; whose tokens came of it is for the caller to say. */
  DecodeCounters counters() {
    return new DecodeCounters(
        forwards,
        rows,
        headRows,
        bytesRead,
        0,
        0,
        0,
        0,
        0,
        -1,
        0,
        0,
        new WeightUse(0, weightBytes, 0),
        new UnitUse(tally.units, tally.skipped, tally.approximated));
  }

  @Override
  public void close() {
    leave();
    try {
      if (steps != null) {
        steps.close();
      }
    } finally {
      try {
        batch.close();
      } finally {
        open.decrementAndGet();
        kv.close();
      }
    }
  }
}
