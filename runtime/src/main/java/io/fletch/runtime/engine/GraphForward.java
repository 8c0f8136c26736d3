package io.fletch.runtime.engine;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.KvCache;
import io.fletch.sampling.CausalForward;
import io.fletch.sampling.DecodeCounters;
import io.fletch.sampling.RowStatistics;
import java.util.Arrays;

/**
 * The graph as a causal decoder sees it: one cache, one reusable batch, and the tokens whose keys
 * and values the cache holds. Long inputs run in chunks of the batch's rows. Ids that the tokenizer
 * does not define (rows that pad the output matrix) have logits of negative infinity.
 *
 * <p>Owned by a session and used by one thread at a time. After construction nothing is allocated.
 */
final class GraphForward implements CausalForward, AutoCloseable {
  private final Executable executable;
  private final KvCache kv;
  private final Batch batch;
  private final int vocabulary;
  private final int defined;
  private final int[] tokens;
  private final float[] scratch;
  private final long weightBytes;
  private final long slotBytes;
  private final Batch.RowStatistics statistics = new Batch.RowStatistics();
  private int logitRows;
  private long forwards;
  private long rows;
  private long headRows;
  private long bytesRead;

  /**
   * Makes an empty cache.
   *
   * @param capacity slots of the cache
   * @param defined ids below this are tokens
   * @param maxLogitRows most logit rows of one append
   * @param weightBytes bytes of weights that a forward reads
   * @param slotBytes bytes of keys and values per slot
   */
  GraphForward(
      Executable executable,
      int capacity,
      KvCache.Type type,
      int defined,
      int maxRows,
      int maxLogitRows,
      long weightBytes,
      long slotBytes) {
    this.executable = executable;
    this.vocabulary = executable.graph().vocabulary();
    this.defined = defined;
    this.weightBytes = weightBytes;
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
  int chunk() {
    return batch.maxRows();
  }

  /** Token {@code i} of the cache. */
  int token(int i) {
    return tokens[i];
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
    for (int done = 0; done < count; ) {
      int n = Math.min(batch.maxRows(), count - done);
      boolean last = done + n == count;
      int length = kv.length();
      batch.clear();
      int first = batch.append(kv, source, offset + done, n);
      if (wanted == Logits.ALL) {
        for (int i = 0; i < n; i++) {
          batch.wantLogits(first + i);
        }
      } else if (wanted == Logits.LAST && last) {
        batch.wantLogits(first + n - 1);
      }
      executable.forward(batch);
      System.arraycopy(source, offset + done, tokens, length, n);
      kv.length(length + n);
      forwards++;
      rows += n;
      headRows += batch.logitRows();
      bytesRead += weightBytes + (length + n) * slotBytes;
      done += n;
    }
    logitRows = batch.logitRows();
  }

  @Override
  public void truncate(int length) {
    if (length < 0 || length > kv.length()) {
      throw new IndexOutOfBoundsException(
          "length: expected=[0, " + kv.length() + "] actual=" + length);
    }
    kv.length(length);
  }

  @Override
  public int logitRows() {
    return logitRows;
  }

  @Override
  public void logits(int row, float[] target) {
    batch.logits(row, target);
    Arrays.fill(target, defined, vocabulary, Float.NEGATIVE_INFINITY);
  }

  /** Copies a logit row as the model gave it. */
  void rawLogits(int row, float[] target) {
    batch.logits(row, target);
  }

  @Override
  public int argmax(int row) {
    int best = batch.argmax(row);
    if (best < defined) {
      return best;
    }
    batch.logits(row, scratch);
    best = 0;
    for (int i = 1; i < defined; i++) {
      if (scratch[i] > scratch[best]) {
        best = i;
      }
    }
    return best;
  }

  @Override
  public void statistics(int row, RowStatistics into) {
    if (scratch == null) {
      batch.statistics(row, statistics);
      copy(statistics, into);
    } else {
      logits(row, scratch);
      into.set(scratch, 0, vocabulary);
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

  /** What has been run so far. */
  DecodeCounters counters() {
    return new DecodeCounters(forwards, rows, headRows, bytesRead, 0, 0, 0, 0, 0, -1, 0, 0);
  }

  @Override
  public void close() {
    batch.close();
    kv.close();
  }
}
