package io.fletch.sampling;

import java.util.Arrays;
import java.util.function.IntPredicate;

/**
 * The tokens that may still be drawn, with their logits: what {@link SamplerStep}s work on. Ids
 * always ascend, so a filter's result and the draw do not depend on how the filter found it; where
 * a filter must choose between equal logits it keeps the lowest ids. Filters run in expected linear
 * time without sorting. Reused from token to token; allocates nothing after construction. Used by
 * one thread at a time.
 *
 * <p>Weights, that is {@code exp(logit - largest)}, are rounded to multiples of so small a power of
 * two that their sums are exact. A set of candidates has one mass, whatever the order in which it
 * is summed, so a filter that selects gives the set that sorting would.
 */
public final class TokenCandidates {
  /** Up to so many candidates are found with a heap. */
  private static final int FEW = 256;

  /** From so many candidates on a sample says first which of them can matter. */
  private static final int MANY = 4096;

  /** Weights that are summed while they are in the nearest cache. */
  private static final int PIECE = 1024;

  private static final int SAMPLES = 1024;
  private static final int BUCKETS = 1024;

  /** Parts of the mass that may be left out which the sample is asked for, in turn. */
  private static final double[] CAUTION = {0.8, 0.3};

  private final int vocabulary;
  private final int[] ids;
  private final float[] logits;

  /** Of a filter: keys of candidates, or logits that it moves about. */
  private final float[] work;

  private final double[] weights;
  private final int[] picked;
  private final int[] order;
  private final double[] masses = new double[BUCKETS];
  private int size;

  /** Leading elements of {@link #ids} that may not equal their index. */
  private int mixed;

  /** The largest logit, where it is known. */
  private float largest;

  private boolean known;

  /** Mass above what {@link #select} found. */
  private double above;

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
    picked = new int[vocabulary];
    order = new int[vocabulary];
    mixed = vocabulary;
  }

  /** All ids with these logits. */
  void load(float[] row) {
    if (row.length < vocabulary) {
      throw new IllegalArgumentException(
          "logits: expected=" + vocabulary + " actual=" + row.length);
    }
    System.arraycopy(row, 0, logits, 0, vocabulary);
    for (int i = 0; i < mixed; i++) {
      ids[i] = i;
    }
    mixed = 0;
    size = vocabulary;
    known = false;
    if (!(max() < Float.POSITIVE_INFINITY)) {
      refuse();
    }
  }

  /** Names the logit that is no number. */
  private void refuse() {
    for (int i = 0; i < size; i++) {
      if (Float.isNaN(logits[i])) {
        throw SamplingException.nan(i);
      }
      if (logits[i] == Float.POSITIVE_INFINITY) {
        throw new SamplingException("logit is infinite: token=" + i);
      }
    }
  }

  /** The largest logit. Written so that the compiler uses vectors. */
  private float max() {
    if (known) {
      return largest;
    }
    float max = Float.NEGATIVE_INFINITY;
    for (int i = 0; i < size; i++) {
      max = Math.max(max, logits[i]);
    }
    largest = max;
    known = true;
    return max;
  }

  /** Leaves the first {@code n}, which were moved there. */
  private void shrink(int n) {
    size = n;
    mixed = Math.max(mixed, n);
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
    known = false;
    System.arraycopy(top, 0, ids, 0, top.length);
    System.arraycopy(values, 0, logits, 0, top.length);
    shrink(top.length);
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
    known = false;
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
    float max = max();
    if (max == Float.NEGATIVE_INFINITY) {
      return -1;
    }
    int best = 0;
    while (logits[best] != max) {
      best++;
    }
    return best;
  }

  /** Keeps the candidates whose ids pass. */
  public void retain(IntPredicate keep) {
    known = false;
    int n = 0;
    for (int i = 0; i < size; i++) {
      if (keep.test(ids[i])) {
        ids[n] = ids[i];
        logits[n++] = logits[i];
      }
    }
    shrink(n);
  }

  /** Keeps the ids whose bit is set ({@code bits[id >> 6] >> id & 1}). */
  void retain(long[] bits) {
    known = false;
    int n = 0;
    for (int i = 0; i < size; i++) {
      int id = ids[i];
      if ((bits[id >> 6] >>> id & 1) != 0) {
        ids[n] = id;
        logits[n++] = logits[i];
      }
    }
    shrink(n);
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
      int greater = partition(lo, hi, pivot);
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
    keepAbove(threshold, ties);
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
    keepAbove(least, ties);
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
    float max = max();
    if (p == 1 || max == Float.NEGATIVE_INFINITY) {
      return;
    }
    double total = fillWeights(max);
    double entropy = entropy(max, total);
    double logTotal = Math.log(total);
    for (int i = 0; i < size; i++) {
      double surprise = logTotal - ((double) logits[i] - max);
      work[i] = (float) -Math.abs(surprise - entropy);
    }
    keepByKeys(work, total, p);
    known = false;
  }

  /** Entropy in nats, of weights that were filled in. */
  private double entropy(float max, double total) {
    // The weight of a forbidden one is 0, and its logit no factor for that.
    for (int i = 0; i < size; i++) {
      work[i] = Math.max(logits[i] - max, -Float.MAX_VALUE);
    }
    double even = 0;
    double odd = 0;
    int i = 0;
    for (; i + 2 <= size; i += 2) {
      even += weights[i] * work[i];
      odd += weights[i + 1] * work[i + 1];
    }
    if (i < size) {
      even += weights[i] * work[i];
    }
    return Math.log(total) - (even + odd) / total;
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
    float max = max();
    if (size < 2 || max == Float.NEGATIVE_INFINITY) {
      return;
    }
    double most = Math.log(size);
    double share = Math.clamp(entropy(max, fillWeights(max)) / most, 0, 1);
    scale(Math.max(low + (high - low) * Math.pow(share, exponent), 1e-6));
  }

  /**
   * If two or more candidates have at least this probability, removes all of those but the least
   * likely one (the highest id on ties).
   */
  public void excludeTop(double threshold) {
    float max = max();
    if (max == Float.NEGATIVE_INFINITY) {
      return;
    }
    double least = threshold * fillWeights(max);
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
    known = false;
    int n = 0;
    for (int i = 0; i < size; i++) {
      if (weights[i] < least || i == last) {
        ids[n] = ids[i];
        logits[n++] = logits[i];
      }
    }
    shrink(n);
  }

  /** Keeps candidates with a surprise of at most {@code bits}, the best one in any case. */
  public void keepSurprise(double bits) {
    float max = max();
    if (max == Float.NEGATIVE_INFINITY) {
      return;
    }
    double least = max + Math.log(fillWeights(max)) - bits * Math.log(2);
    keepAtLeast(Math.min(least, max));
  }

  /** Surprise of a candidate in bits. */
  double surprise(int index) {
    float max = max();
    double total = fillWeights(max);
    return (Math.log(total) - ((double) logits[index] - max)) / Math.log(2);
  }

  private void keepAtLeast(double least) {
    int n = 0;
    for (int i = 0; i < size; i++) {
      if (logits[i] >= least) {
        ids[n] = ids[i];
        logits[n++] = logits[i];
      }
    }
    shrink(n);
  }

  /**
   * Keeps the smallest set of most likely candidates whose probability, relative to all candidates,
   * is at least {@code p}.
   */
  public void keepMass(double p) {
    if (!(p > 0 && p <= 1)) {
      throw new IllegalArgumentException("p: expected=in (0, 1] actual=" + p);
    }
    float max = max();
    if (p == 1 || max == Float.NEGATIVE_INFINITY) {
      return;
    }
    keepByKeys(logits, fillWeights(max), p);
  }

  /**
   * A number that, added and taken away again, rounds numbers up to 1 to multiples of which {@code
   * n} have an exact sum: below it are 53 bits, above them the bits of {@code n}.
   */
  static double grid(int n) {
    return 1.5 * (1L << Math.max(1, 31 - Integer.numberOfLeadingZeros(n)));
  }

  /**
   * {@code exp(x)} of a number up to 0, rounded to the {@link #grid}: a polynomial and squares, and
   * so without a branch or a bit pattern, which compilers turn into vectors. Exact to 2e-14 before
   * it is rounded.
   */
  static double weight(double x, double grid) {
    double r = Math.max(x, -40) * 0x1p-6;
    double p = Math.fma(r, 1 / 3628800.0, 1 / 362880.0);
    p = Math.fma(r, p, 1 / 40320.0);
    p = Math.fma(r, p, 1 / 5040.0);
    p = Math.fma(r, p, 1 / 720.0);
    p = Math.fma(r, p, 1 / 120.0);
    p = Math.fma(r, p, 1 / 24.0);
    p = Math.fma(r, p, 1 / 6.0);
    p = Math.fma(r, p, 0.5);
    p = Math.fma(r, p, 1);
    p = Math.fma(r, p, 1);
    p *= p;
    p *= p;
    p *= p;
    p *= p;
    p *= p;
    p *= p;
    return (p + grid) - grid;
  }

  /** Fills in the weights of all candidates; returns the sum. */
  private double fillWeights(float max) {
    double grid = grid(size);
    double total = 0;
    for (int from = 0; from < size; from += PIECE) {
      int to = Math.min(from + PIECE, size);
      fill(logits, weights, from, to, max, grid);
      total += sum(from, to);
    }
    return total;
  }

  /** A method of arrays and numbers alone: the loop becomes one of vectors. */
  private static void fill(
      float[] logits, double[] weights, int from, int to, float max, double grid) {
    for (int i = from; i < to; i++) {
      weights[i] = weight((double) logits[i] - max, grid);
    }
  }

  /** Of weights; in several chains, as compilers do not split a sum of floating-point numbers. */
  private double sum(int from, int to) {
    double a = 0;
    double b = 0;
    double c = 0;
    double d = 0;
    int i = from;
    for (; i + 4 <= to; i += 4) {
      a += weights[i];
      b += weights[i + 1];
      c += weights[i + 2];
      d += weights[i + 3];
    }
    for (; i < to; i++) {
      a += weights[i];
    }
    return a + b + c + d;
  }

  // ---- the largest keys with a mass

  /**
   * Keeps the candidates with the largest keys, of equal ones the lowest ids, until their weights
   * make up a share of the total. Of many candidates most are far below the last one that is kept:
   * a sample says where to look.
   */
  private void keepByKeys(float[] key, double total, double share) {
    double target = share * total;
    if (size >= MANY) {
      for (double caution : CAUTION) {
        float from = keyByTail(key, caution * (total - target));
        int n = pick(key, from);
        double mass = 0;
        for (int i = 0; i < n; i++) {
          mass += weights[picked[i]];
        }
        if (mass >= target) {
          narrow(key, n, from, target);
          return;
        }
      }
    }
    for (int i = 0; i < size; i++) {
      picked[i] = i;
    }
    selectOf(key, size, target);
  }

  /** About the largest key below which the weights are at most {@code mass}. */
  private float keyByTail(float[] key, double mass) {
    double tail = mass * SAMPLES / size;
    float low = Float.POSITIVE_INFINITY;
    float high = Float.NEGATIVE_INFINITY;
    for (int k = 0; k < SAMPLES; k++) {
      int at = sample(k);
      if (weights[at] > 0) {
        low = Math.min(low, key[at]);
        high = Math.max(high, key[at]);
      }
    }
    float scale = (BUCKETS - 1) / (high - low);
    if (!(scale > 0 && scale < Float.POSITIVE_INFINITY)) {
      return low;
    }
    Arrays.fill(masses, 0);
    for (int k = 0; k < SAMPLES; k++) {
      int at = sample(k);
      if (weights[at] > 0) {
        masses[BUCKETS - 1 - bucket(key[at], high, scale)] += weights[at];
      }
    }
    int b = 0;
    for (double below = masses[0]; below <= tail && b < BUCKETS - 1; below += masses[b]) {
      b++;
    }
    return low + b / scale;
  }

  private int sample(int k) {
    return (int) ((long) k * size / SAMPLES);
  }

  /** Indices of keys from a value on, ascending; returns how many. */
  private int pick(float[] key, float from) {
    int n = 0;
    for (int i = 0; i < size; i++) {
      picked[n] = i;
      n += key[i] >= from ? 1 : 0;
    }
    return n;
  }

  /** Finds by buckets of keys the few among which the last one to keep is. */
  private void narrow(float[] key, int n, float from, double target) {
    float top = from;
    for (int i = 0; i < n; i++) {
      top = Math.max(top, key[picked[i]]);
    }
    float scale = (BUCKETS - 1) / (top - from);
    if (!(scale > 0 && scale < Float.POSITIVE_INFINITY)) {
      selectOf(key, n, target);
      return;
    }
    Arrays.fill(masses, 0);
    for (int i = 0; i < n; i++) {
      int at = picked[i];
      masses[bucket(key[at], top, scale)] += weights[at];
    }
    int last = 0;
    double above = 0;
    while (above + masses[last] < target) {
      above += masses[last++];
    }
    int few = 0;
    for (int i = 0; i < n; i++) {
      int at = picked[i];
      if (bucket(key[at], top, scale) == last) {
        order[few++] = at;
      }
    }
    keep(key, n, select(key, few, above, target), target);
  }

  private void selectOf(float[] key, int n, double target) {
    System.arraycopy(picked, 0, order, 0, n);
    keep(key, n, select(key, n, 0, target), target);
  }

  /**
   * The least key that is needed to reach the target, among {@code order[0 .. n)}, all of whose
   * larger ones have the mass {@code before}; leaves the mass above it in {@link #above}.
   */
  private float select(float[] key, int n, double before, double target) {
    int lo = 0;
    int hi = n;
    above = before;
    while (lo < hi) {
      float pivot =
          median(
              key[order[lo + scattered(lo, hi - lo)]],
              key[order[lo + (hi - lo >>> 1)]],
              key[order[hi - 1]]);
      int greater = lo;
      int less = hi;
      double mass = above;
      double equal = 0;
      for (int i = lo; i < less; ) {
        int at = order[i];
        if (key[at] > pivot) {
          order[i++] = order[greater];
          order[greater++] = at;
          mass += weights[at];
        } else if (key[at] < pivot) {
          order[i] = order[--less];
          order[less] = at;
        } else {
          i++;
          equal += weights[at];
        }
      }
      if (mass >= target) {
        hi = greater;
      } else if (mass + equal >= target) {
        above = mass;
        return pivot;
      } else {
        above = mass + equal;
        lo = less;
      }
    }
    return Float.NEGATIVE_INFINITY;
  }

  /** Keeps of the picked ones those above a key, and as many at it as the target needs. */
  private void keep(float[] key, int n, float threshold, double target) {
    double mass = above;
    int kept = 0;
    for (int i = 0; i < n; i++) {
      int at = picked[i];
      float k = key[at];
      if (k > threshold || (k == threshold && mass < target)) {
        mass += k == threshold ? weights[at] : 0;
        ids[kept] = ids[at];
        logits[kept++] = logits[at];
      }
    }
    shrink(kept);
  }

  private static int bucket(float key, float top, float scale) {
    return Math.min((int) ((top - key) * scale), BUCKETS - 1);
  }

  /** Keeps candidates with at least {@code share} of the best candidate's probability. */
  public void keepShare(double share) {
    if (!(share >= 0 && share <= 1)) {
      throw new IllegalArgumentException("share: expected=in [0, 1] actual=" + share);
    }
    float max = max();
    if (share == 0 || max == Float.NEGATIVE_INFINITY) {
      return;
    }
    keepAtLeast(max + Math.log(share));
  }

  /** Divides logits, relative to the best one, by a temperature. */
  public void scale(double temperature) {
    if (!(temperature > 0)) {
      throw new IllegalArgumentException("temperature: expected=positive actual=" + temperature);
    }
    float max = max();
    if (max == Float.NEGATIVE_INFINITY) {
      return;
    }
    for (int i = 0; i < size; i++) {
      logits[i] = (float) (((double) logits[i] - max) / temperature);
    }
    largest = 0;
  }

  /**
   * Draws by the inverse of the distribution function over ascending ids.
   *
   * @param u in [0, 1)
   * @return an index, -1 if every logit is negative infinity
   */
  int draw(double u) {
    float max = max();
    if (max == Float.NEGATIVE_INFINITY) {
      return -1;
    }
    double target = u * fillWeights(max);
    double sum = 0;
    int last = -1;
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

  private float pivot(int lo, int hi) {
    int n = hi - lo;
    return median(work[lo + scattered(lo, n)], work[lo + (n >>> 1)], work[hi - 1]);
  }

  private static float median(float a, float b, float c) {
    return Math.max(Math.min(a, b), Math.min(Math.max(a, b), c));
  }

  /** Deterministic, so that no fixed input pattern meets it at its worst every time. */
  private static int scattered(int lo, int n) {
    long h = (lo * 0x9E3779B97F4A7C15L) ^ (n * 0xD1B54A32D192ED03L);
    h = (h ^ (h >>> 32)) * 0x9E3779B97F4A7C15L;
    return (int) Math.unsignedMultiplyHigh(h, n);
  }

  /** Orders [lo, hi) of the work array into greater, equal, less; returns where equal starts. */
  private int partition(int lo, int hi, float pivot) {
    int greater = lo;
    int i = lo;
    int less = hi;
    while (i < less) {
      float v = work[i];
      if (v > pivot) {
        swap(greater++, i++);
      } else if (v < pivot) {
        swap(i, --less);
      } else {
        i++;
      }
    }
    equalEnd = less;
    return greater;
  }

  private void swap(int a, int b) {
    float v = work[a];
    work[a] = work[b];
    work[b] = v;
  }

  private void keepAbove(float threshold, int ties) {
    int n = 0;
    for (int i = 0; i < size; i++) {
      float l = logits[i];
      if (l > threshold || (l == threshold && ties-- > 0)) {
        ids[n] = ids[i];
        logits[n++] = l;
      }
    }
    shrink(n);
  }
}
