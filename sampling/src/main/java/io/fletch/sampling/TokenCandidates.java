package io.fletch.sampling;

import java.util.Arrays;
import java.util.function.IntPredicate;

/**
 * The tokens that may still be drawn, with their logits: what {@link SamplerStep}s work on. Ids
 * always ascend, so a filter's result and the draw do not depend on how the filter found it; where
 * a filter must choose between equal logits it keeps the lowest ids. Filters run in expected linear
 * time without sorting. Reused from token to token; allocates nothing after construction. Used by
 * one thread at a time.
 */
public final class TokenCandidates {
  /** Up to so many candidates are found with a heap. */
  private static final int FEW = 256;

  private final int vocabulary;
  private final int[] ids;
  private final float[] logits;
  private final float[] work;
  private final double[] weights;
  private final float[] keys;
  private int size;

  /** Room for a vocabulary. */
  TokenCandidates(int vocabulary) {
    if (vocabulary <= 0) {
      throw new IllegalArgumentException("vocabulary: expected=positive actual=" + vocabulary);
    }
    this.vocabulary = vocabulary;
    ids = new int[vocabulary];
    logits = new float[vocabulary];
    work = new float[vocabulary];
    weights = new double[vocabulary];
    keys = new float[vocabulary];
  }

  /** All ids with these logits. */
  void load(float[] row) {
    if (row.length < vocabulary) {
      throw new IllegalArgumentException(
          "logits: expected=" + vocabulary + " actual=" + row.length);
    }
    for (int i = 0; i < vocabulary; i++) {
      float l = row[i];
      if (Float.isNaN(l)) {
        throw SamplingException.nan(i);
      }
      if (l == Float.POSITIVE_INFINITY) {
        throw new SamplingException("logit is infinite: token=" + i);
      }
      ids[i] = i;
      logits[i] = l;
    }
    size = vocabulary;
  }

  /** Ids that ascend, with their logits: the largest ones of a row. */
  void load(int[] top, float[] values) {
    if (top.length != values.length || top.length > vocabulary) {
      throw new IllegalArgumentException(
          "candidates: expected=at most "
              + vocabulary
              + " actual ids="
              + top.length
              + " logits="
              + values.length);
    }
    System.arraycopy(top, 0, ids, 0, top.length);
    System.arraycopy(values, 0, logits, 0, top.length);
    size = top.length;
  }

  /** Number of ids there are in all. */
  public int vocabulary() {
    return vocabulary;
  }

  /** Number of candidates left. */
  public int size() {
    return size;
  }

  /** Id of the i-th candidate; ascending. */
  public int id(int i) {
    return ids[i];
  }

  /** Logit of the i-th candidate. */
  public float logit(int i) {
    return logits[i];
  }

  /**
   * Changes the logit of the i-th candidate; negative infinity forbids it.
   *
   * @throws IllegalArgumentException for NaN or positive infinity
   */
  public void logit(int i, float value) {
    if (!(value < Float.POSITIVE_INFINITY)) {
      throw new IllegalArgumentException("logit: expected=below infinity actual=" + value);
    }
    logits[i] = value;
  }

  /** Index of the candidate with this id, negative if it is not one. */
  public int indexOf(int id) {
    if (size == vocabulary) {
      return id >= 0 && id < vocabulary ? id : -1;
    }
    return Arrays.binarySearch(ids, 0, size, id);
  }

  /** Index of the largest logit, the lowest id on ties; -1 if every logit is negative infinity. */
  public int best() {
    int best = -1;
    float max = Float.NEGATIVE_INFINITY;
    for (int i = 0; i < size; i++) {
      if (logits[i] > max) {
        max = logits[i];
        best = i;
      }
    }
    return best;
  }

  /** Keeps the candidates whose ids pass. */
  public void retain(IntPredicate keep) {
    int n = 0;
    for (int i = 0; i < size; i++) {
      if (keep.test(ids[i])) {
        ids[n] = ids[i];
        logits[n++] = logits[i];
      }
    }
    size = n;
  }

  /** Keeps the ids whose bit is set ({@code bits[id >> 6] >> id & 1}). */
  void retain(long[] bits) {
    int n = 0;
    for (int i = 0; i < size; i++) {
      int id = ids[i];
      if ((bits[id >> 6] >>> id & 1) != 0) {
        ids[n] = id;
        logits[n++] = logits[i];
      }
    }
    size = n;
  }

  /** Keeps the {@code k} largest logits. */
  public void keepTop(int k) {
    if (k <= 0) {
      throw new IllegalArgumentException("k: expected=positive actual=" + k);
    }
    if (k >= size) {
      return;
    }
    if (k <= FEW) {
      keepFew(k);
      return;
    }
    System.arraycopy(logits, 0, work, 0, size);
    int lo = 0;
    int hi = size;
    float threshold;
    int ties;
    while (true) {
      float pivot = pivot(lo, hi);
      int greater = partition(lo, hi, pivot, false);
      int equal = equalEnd;
      if (k <= greater) {
        hi = greater;
      } else if (k <= equal) {
        threshold = pivot;
        ties = k - greater;
        break;
      } else {
        lo = equal;
      }
    }
    keepAbove(logits, threshold, ties);
  }

  /**
   * The {@code k} largest in one pass: a heap whose root is the least of them. Nearly all logits
   * are below it and cost a comparison.
   */
  private void keepFew(int k) {
    System.arraycopy(logits, 0, work, 0, k);
    for (int i = k / 2 - 1; i >= 0; i--) {
      sink(i, k);
    }
    float least = work[0];
    for (int i = k; i < size; i++) {
      if (logits[i] > least) {
        work[0] = logits[i];
        sink(0, k);
        least = work[0];
      }
    }
    int ties = 0;
    for (int i = 0; i < k; i++) {
      ties += work[i] == least ? 1 : 0;
    }
    keepAbove(logits, least, ties);
  }

  private void sink(int at, int k) {
    float v = work[at];
    int i = at;
    for (int child = 2 * i + 1; child < k; child = 2 * i + 1) {
      if (child + 1 < k && work[child + 1] < work[child]) {
        child++;
      }
      if (!(work[child] < v)) {
        break;
      }
      work[i] = work[child];
      i = child;
    }
    work[i] = v;
  }

  /**
   * Locally typical candidates: those whose surprise is nearest to the entropy, until they have
   * probability {@code p}.
   */
  public void keepTypical(double p) {
    if (!(p > 0 && p <= 1)) {
      throw new IllegalArgumentException("p: expected=in (0, 1] actual=" + p);
    }
    int best = best();
    if (p == 1 || best < 0) {
      return;
    }
    float max = logits[best];
    double total = fillWeights(max);
    double entropy = entropy(max, total);
    double logTotal = Math.log(total);
    for (int i = 0; i < size; i++) {
      double surprise = logTotal - ((double) logits[i] - max);
      keys[i] = (float) -Math.abs(surprise - entropy);
    }
    keepByKeys(p * total);
  }

  /** Entropy in nats, of weights that were filled in. */
  private double entropy(float max, double total) {
    double sum = 0;
    for (int i = 0; i < size; i++) {
      if (weights[i] > 0) {
        sum += weights[i] * ((double) logits[i] - max);
      }
    }
    return Math.log(total) - sum / total;
  }

  /** Keeps logits at most {@code n} standard deviations below the largest. */
  public void keepSigma(double n) {
    if (!(n > 0)) {
      throw new IllegalArgumentException("n: expected=positive actual=" + n);
    }
    int best = best();
    if (best < 0) {
      return;
    }
    double sum = 0;
    int count = 0;
    for (int i = 0; i < size; i++) {
      if (logits[i] > Float.NEGATIVE_INFINITY) {
        sum += logits[i];
        count++;
      }
    }
    double mean = sum / count;
    double squares = 0;
    for (int i = 0; i < size; i++) {
      if (logits[i] > Float.NEGATIVE_INFINITY) {
        squares += (logits[i] - mean) * (logits[i] - mean);
      }
    }
    keepAtLeast(logits[best] - n * Math.sqrt(squares / count));
  }

  /**
   * Divides logits by a temperature between {@code low} and {@code high} that grows with the
   * entropy, relative to that of equal candidates, to a power.
   */
  public void scaleByEntropy(double low, double high, double exponent) {
    int best = best();
    if (size < 2 || best < 0) {
      return;
    }
    float max = logits[best];
    double most = Math.log(size);
    double share = Math.clamp(entropy(max, fillWeights(max)) / most, 0, 1);
    scale(Math.max(low + (high - low) * Math.pow(share, exponent), 1e-6));
  }

  /**
   * If two or more candidates have at least this probability, removes all of those but the least
   * likely one (the highest id on ties).
   */
  public void excludeTop(double threshold) {
    int best = best();
    if (best < 0) {
      return;
    }
    double least = threshold * fillWeights(logits[best]);
    int count = 0;
    int last = -1;
    for (int i = 0; i < size; i++) {
      if (weights[i] >= least) {
        count++;
        last = last < 0 || logits[i] <= logits[last] ? i : last;
      }
    }
    if (count < 2) {
      return;
    }
    int n = 0;
    for (int i = 0; i < size; i++) {
      if (weights[i] < least || i == last) {
        ids[n] = ids[i];
        logits[n++] = logits[i];
      }
    }
    size = n;
  }

  /** Keeps candidates with a surprise of at most {@code bits}, the best one in any case. */
  public void keepSurprise(double bits) {
    int best = best();
    if (best < 0) {
      return;
    }
    double total = fillWeights(logits[best]);
    double least = logits[best] + Math.log(total) - bits * Math.log(2);
    keepAtLeast(Math.min(least, logits[best]));
  }

  /** Surprise of a candidate in bits. */
  double surprise(int index) {
    int best = best();
    double total = fillWeights(logits[best]);
    return -Math.log(weights[index] / total) / Math.log(2);
  }

  private void keepAtLeast(double least) {
    int n = 0;
    for (int i = 0; i < size; i++) {
      if (logits[i] >= least) {
        ids[n] = ids[i];
        logits[n++] = logits[i];
      }
    }
    size = n;
  }

  /**
   * Keeps the smallest set of most likely candidates whose probability, relative to all candidates,
   * is at least {@code p}.
   */
  public void keepMass(double p) {
    if (!(p > 0 && p <= 1)) {
      throw new IllegalArgumentException("p: expected=in (0, 1] actual=" + p);
    }
    int best = best();
    if (p == 1 || best < 0) {
      return;
    }
    double total = fillWeights(logits[best]);
    System.arraycopy(logits, 0, keys, 0, size);
    keepByKeys(p * total);
  }

  /** exp(logit - max) of all candidates; returns the sum. */
  private double fillWeights(float max) {
    double total = 0;
    for (int i = 0; i < size; i++) {
      double w = Math.exp((double) logits[i] - max);
      weights[i] = w;
      total += w;
    }
    return total;
  }

  /** Keeps the candidates with the largest keys whose weights make up the target. */
  private void keepByKeys(double target) {
    System.arraycopy(keys, 0, work, 0, size);
    int lo = 0;
    int hi = size;
    double above = 0;
    while (lo < hi) {
      float pivot = pivot(lo, hi);
      int greater = partition(lo, hi, pivot, true);
      int equal = equalEnd;
      double mass = above;
      for (int i = lo; i < greater; i++) {
        mass += weights[i];
      }
      if (mass >= target) {
        hi = greater;
        continue;
      }
      double each = weights[greater];
      double withEqual = mass + each * (equal - greater);
      if (withEqual >= target) {
        int ties = (int) Math.ceil((target - mass) / each);
        keepAbove(keys, pivot, Math.clamp(ties, 1, equal - greater));
        return;
      }
      above = withEqual;
      lo = equal;
    }
    // The sum rounded below the target: everything is needed.
  }

  /** Keeps candidates with at least {@code share} of the best candidate's probability. */
  public void keepShare(double share) {
    if (!(share >= 0 && share <= 1)) {
      throw new IllegalArgumentException("share: expected=in [0, 1] actual=" + share);
    }
    int best = best();
    if (share == 0 || best < 0) {
      return;
    }
    keepAtLeast(logits[best] + Math.log(share));
  }

  /** Divides logits, relative to the best one, by a temperature. */
  public void scale(double temperature) {
    if (!(temperature > 0)) {
      throw new IllegalArgumentException("temperature: expected=positive actual=" + temperature);
    }
    int best = best();
    if (best < 0) {
      return;
    }
    float max = logits[best];
    for (int i = 0; i < size; i++) {
      logits[i] = (float) (((double) logits[i] - max) / temperature);
    }
  }

  /**
   * Draws by the inverse of the distribution function over ascending ids.
   *
   * @param u in [0, 1)
   * @return an index, -1 if every logit is negative infinity
   */
  int draw(double u) {
    int best = best();
    if (best < 0) {
      return -1;
    }
    double target = u * fillWeights(logits[best]);
    double sum = 0;
    int last = best;
    for (int i = 0; i < size; i++) {
      if (weights[i] > 0) {
        sum += weights[i];
        last = i;
        if (sum > target) {
          return i;
        }
      }
    }
    return last;
  }

  /** End of the equal part after {@link #partition}. */
  private int equalEnd;

  /** A deterministic, scattered choice: no fixed input pattern meets it at its worst every time. */
  private float pivot(int lo, int hi) {
    int n = hi - lo;
    long h = (lo * 0x9E3779B97F4A7C15L) ^ (n * 0xD1B54A32D192ED03L);
    h = (h ^ (h >>> 32)) * 0x9E3779B97F4A7C15L;
    float a = work[lo + (int) Math.unsignedMultiplyHigh(h, n)];
    float b = work[lo + (n >>> 1)];
    float c = work[hi - 1];
    return Math.max(Math.min(a, b), Math.min(Math.max(a, b), c));
  }

  /** Orders [lo, hi) of the work arrays into greater, equal, less; returns where equal starts. */
  private int partition(int lo, int hi, float pivot, boolean withWeights) {
    int greater = lo;
    int i = lo;
    int less = hi;
    while (i < less) {
      float v = work[i];
      if (v > pivot) {
        swap(greater++, i++, withWeights);
      } else if (v < pivot) {
        swap(i, --less, withWeights);
      } else {
        i++;
      }
    }
    equalEnd = less;
    return greater;
  }

  private void swap(int a, int b, boolean withWeights) {
    float v = work[a];
    work[a] = work[b];
    work[b] = v;
    if (withWeights) {
      double w = weights[a];
      weights[a] = weights[b];
      weights[b] = w;
    }
  }

  private void keepAbove(float[] key, float threshold, int ties) {
    int n = 0;
    for (int i = 0; i < size; i++) {
      float k = key[i];
      if (k > threshold || (k == threshold && ties-- > 0)) {
        ids[n] = ids[i];
        logits[n++] = logits[i];
      }
    }
    size = n;
  }
}
