package io.fletch.sampling;

import java.util.Arrays;

/**
 * A causal model without a network: the logits behind a sequence are hashed from its latest tokens,
 * so that they depend on everything the context order says and can be computed anew at any time.
 */
final class TableCausalModel implements CausalForward {
  private final int vocabulary;
  private final int order;
  private final long seed;
  private final int[] tokens;
  private final float[] work;
  private int length;
  private int firstRow;
  private int rows;
  private long forwards;
  private long ran;

  TableCausalModel(int vocabulary, int capacity, int order, long seed) {
    this.vocabulary = vocabulary;
    this.order = order;
    this.seed = seed;
    tokens = new int[capacity];
    work = new float[vocabulary];
  }

  /** Logits that follow the first {@code count} of these tokens. */
  void row(int[] sequence, int count, float[] target) {
    long h = seed;
    for (int i = Math.max(0, count - order); i < count; i++) {
      h = h * 6364136223846793005L + sequence[i] + 1;
      h ^= h >>> 29;
    }
    for (int v = 0; v < vocabulary; v++) {
      target[v] = (float) (6 * CounterRandom.uniform(h, 9, v, 0, 0) - 3);
    }
  }

  @Override
  public int vocabulary() {
    return vocabulary;
  }

  @Override
  public int capacity() {
    return tokens.length;
  }

  @Override
  public int length() {
    return length;
  }

  @Override
  public void append(int[] source, int offset, int count, Logits wanted) {
    if (count < 1 || length + count > tokens.length) {
      throw new IndexOutOfBoundsException("length=" + length + " count=" + count);
    }
    System.arraycopy(source, offset, tokens, length, count);
    length += count;
    rows = wanted == Logits.NONE ? 0 : wanted == Logits.LAST ? 1 : count;
    firstRow = length - rows;
    forwards++;
    ran += count;
  }

  @Override
  public void truncate(int newLength) {
    if (newLength < 0 || newLength > length) {
      throw new IndexOutOfBoundsException("length=" + newLength);
    }
    length = newLength;
  }

  @Override
  public int logitRows() {
    return rows;
  }

  @Override
  public void logits(int row, float[] target) {
    row(tokens, firstRow + row + 1, target);
  }

  @Override
  public int argmax(int row) {
    logits(row, work);
    int best = 0;
    for (int v = 1; v < vocabulary; v++) {
      if (work[v] > work[best]) {
        best = v;
      }
    }
    return best;
  }

  @Override
  public void statistics(int row, RowStatistics into) {
    logits(row, work);
    into.set(work, 0, vocabulary);
  }

  @Override
  public long forwards() {
    return forwards;
  }

  @Override
  public long rows() {
    return ran;
  }

  int[] sequence() {
    return Arrays.copyOf(tokens, length);
  }
}
