package io.fletch.sampling;

/**
 * Log-probabilities of a row of logits under the model itself: before penalties, grammar and
 * temperature. Reused from token to token; allocates nothing after construction. Not thread-safe.
 */
public final class LogProbabilities {
  private final int[] topIds;
  private final double[] topValues;
  private final float[] topLogits;
  private float[] logits = new float[0];
  private int count;
  private double logSumExp;
  private int top;

  /** Reports up to {@code alternatives} most likely tokens. */
  public LogProbabilities(int alternatives) {
    if (alternatives < 0) {
      throw new IllegalArgumentException("alternatives: expected=0 or more actual=" + alternatives);
    }
    topIds = new int[alternatives];
    topValues = new double[alternatives];
    topLogits = new float[alternatives];
  }

  /**
   * Takes a row, which must stay unchanged while this holder is asked about it.
   *
   * @throws SamplingException if a logit is NaN or none is finite
   */
  public void set(float[] row, int vocabulary) {
    float max = Float.NEGATIVE_INFINITY;
    for (int i = 0; i < vocabulary; i++) {
      float l = row[i];
      if (Float.isNaN(l)) {
        throw SamplingException.nan(i);
      }
      max = Math.max(max, l);
    }
    if (Float.isInfinite(max)) {
      throw new SamplingException(
          "logits have no finite maximum: expected=a finite value actual=" + max);
    }
    double sum = 0;
    for (int i = 0; i < vocabulary; i++) {
      sum += Math.exp((double) row[i] - max);
    }
    logits = row;
    count = vocabulary;
    logSumExp = max + Math.log(sum);
    select();
  }

  private void select() {
    top = 0;
    if (topIds.length == 0) {
      return;
    }
    for (int id = 0; id < count; id++) {
      float l = logits[id];
      if (top == topIds.length && l <= topLogits[top - 1]) {
        continue;
      }
      int i = top < topIds.length ? top++ : top - 1;
      while (i > 0 && topLogits[i - 1] < l) {
        topLogits[i] = topLogits[i - 1];
        topIds[i] = topIds[i - 1];
        i--;
      }
      topLogits[i] = l;
      topIds[i] = id;
    }
    for (int i = 0; i < top; i++) {
      topValues[i] = topLogits[i] - logSumExp;
    }
  }

  /** Natural logarithm of the token's probability. */
  public double of(int token) {
    if (token < 0 || token >= count) {
      throw new IndexOutOfBoundsException("token " + token + " of " + count);
    }
    return logits[token] - logSumExp;
  }

  /** Number of alternatives. */
  public int alternatives() {
    return top;
  }

  /** Id of the i-th most likely token, the lowest id first on ties. */
  public int alternative(int i) {
    if (i < 0 || i >= top) {
      throw new IndexOutOfBoundsException("alternative " + i + " of " + top);
    }
    return topIds[i];
  }

  /** Log-probability of the i-th most likely token. */
  public double alternativeLogProbability(int i) {
    if (i < 0 || i >= top) {
      throw new IndexOutOfBoundsException("alternative " + i + " of " + top);
    }
    return topValues[i];
  }
}
