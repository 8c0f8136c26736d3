package io.fletch.sampling;

/**
 * What decode schedules need of a row of logits (specs/diffusion.md 1): a reusable holder that a
 * backend fills with one reduction over the vocabulary, so that the logits need not leave the
 * device. Not thread-safe.
 */
public final class RowStatistics {
  /** Token with the largest logit, the lowest id on ties. */
  public int argmax;

  /** Largest logit. */
  public float top1;

  /** Second largest logit; equal to {@link #top1} on a tie, negative infinity if there is none. */
  public float top2;

  /** Logarithm of the sum of the exponentials of all logits. */
  public double logSumExp;

  /** Entropy of the softmax in nats. */
  public double entropy;

  /** An empty holder. */
  public RowStatistics() {}

  /** Probability of {@link #argmax}, rounded to float32, the precision that ties are decided in. */
  public float probability() {
    return (float) Math.exp(top1 - logSumExp);
  }

  /** Difference of the two largest probabilities. */
  public float probabilityMargin() {
    return (float) (Math.exp(top1 - logSumExp) - Math.exp(top2 - logSumExp));
  }

  /** Difference of the two largest logits. */
  public float gap() {
    return top1 - top2;
  }

  /**
   * Fills this holder from logits on the host: the reference of the reduction. Sums are in float64
   * and in index order. Negative infinity stands for a suppressed id.
   *
   * @throws SamplingException if a logit is NaN or no logit is finite
   */
  public void set(float[] logits, int offset, int count) {
    int best = -1;
    float first = Float.NEGATIVE_INFINITY;
    float second = Float.NEGATIVE_INFINITY;
    for (int i = 0; i < count; i++) {
      float l = logits[offset + i];
      if (l > first) {
        second = first;
        first = l;
        best = i;
      } else if (l > second) {
        second = l;
      } else if (Float.isNaN(l)) {
        throw SamplingException.nan(i);
      }
    }
    if (best < 0 || first == Float.POSITIVE_INFINITY) {
      throw new SamplingException(
          "logits have no finite maximum: expected=a finite value actual=" + first);
    }
    double sum = 0;
    double weighted = 0;
    for (int i = 0; i < count; i++) {
      double d = (double) logits[offset + i] - first;
      double e = Math.exp(d);
      if (e > 0) {
        sum += e;
        weighted += e * d;
      }
    }
    double log = Math.log(sum);
    argmax = best;
    top1 = first;
    top2 = second;
    logSumExp = first + log;
    entropy = Math.max(0, log - weighted / sum);
  }
}
