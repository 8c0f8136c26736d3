package io.fletch.sampling;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * Trains a {@link LearnedRouter}: collects examples, then fits them by full-batch Adam on the
 * cross-entropy, divergent ones weighted by {@code (n0 / n1) * recallFactor}
 * (specs/autoregressive.md 4, training step 6). Deterministic. Used by one thread.
 */
public final class RouterTraining {
  private static final int EPOCHS = 400;
  private static final double RATE = 0.05;
  private static final double DECAY = 1e-4;
  private static final double[] NONE = {};

  private final RouterSignals signals = new RouterSignals();
  private final List<double[]> dense = new ArrayList<>();
  private final List<double[]> hidden = new ArrayList<>();
  private final List<Integer> tokens = new ArrayList<>();
  private final List<Boolean> labels = new ArrayList<>();

  private final HiddenProjections projections;

  /** For a router that goes by logits; without examples yet. */
  public RouterTraining() {
    this(0);
  }

  /**
   * Without examples yet.
   *
   * @param hiddenWidth of the hidden states that a router may read; 0 for none
   */
  public RouterTraining(int hiddenWidth) {
    projections =
        hiddenWidth == 0 ? null : new HiddenProjections(hiddenWidth, LearnedRouter.PROJECTIONS);
  }

  /**
   * Adds an example.
   *
   * @param logits of the small model
   * @param candidate what it proposes
   * @param divergent whether that leads astray
   */
  public void add(float[] logits, int vocabulary, int candidate, boolean divergent) {
    add(logits, vocabulary, candidate, null, divergent);
  }

  /**
   * Adds an example.
   *
   * @param logits of the small model
   * @param candidate what it proposes
   * @param state hidden state of the small model; null if none are read
   * @param divergent whether that leads astray
   */
  public void add(float[] logits, int vocabulary, int candidate, float[] state, boolean divergent) {
    if (projections != null) {
      double[] p = new double[LearnedRouter.PROJECTIONS];
      projections.apply(state, p);
      hidden.add(p);
    }
    double[] x = new double[LearnedRouter.DENSE];
    LearnedRouter.features(signals, logits, vocabulary, candidate, x);
    dense.add(x);
    tokens.add(LearnedRouter.bucket(candidate));
    labels.add(divergent);
  }

  /** Number of examples. */
  public int size() {
    return labels.size();
  }

  /** Number of divergent examples. */
  public int divergent() {
    return (int) labels.stream().filter(l -> l).count();
  }

  /**
   * Fits the weights of a router that goes by logits.
   *
   * @param recallFactor above 1 to miss fewer divergent tokens
   * @throws IllegalArgumentException unless there are examples of both kinds
   */
  public LearnedRouter fit(double recallFactor) {
    return fit(recallFactor, false);
  }

  /**
   * Fits the weights.
   *
   * @param recallFactor above 1 to miss fewer divergent tokens
   * @param states whether the router reads hidden states
   * @throws IllegalArgumentException unless there are examples of both kinds, with hidden states if
   *     these are to be read
   */
  public LearnedRouter fit(double recallFactor, boolean states) {
    if (states && projections == null) {
      throw new IllegalArgumentException("the examples have no hidden states");
    }
    int hiddenWidth = states ? projections.width() : 0;
    int n = size();
    int positive = divergent();
    if (positive == 0 || positive == n) {
      throw new IllegalArgumentException(
          "examples of both kinds are needed: divergent=" + positive + " of " + n);
    }
    double weight = (double) (n - positive) / positive * recallFactor;
    int size = LearnedRouter.weights(hiddenWidth);
    double[] w = new double[size];
    double[] mean = new double[size];
    double[] square = new double[size];
    double[] gradient = new double[size];
    for (int epoch = 1; epoch <= EPOCHS; epoch++) {
      gradient(w, weight, gradient);
      for (int i = 0; i < size; i++) {
        mean[i] = 0.9 * mean[i] + 0.1 * gradient[i];
        square[i] = 0.999 * square[i] + 0.001 * gradient[i] * gradient[i];
        double m = mean[i] / (1 - Math.pow(0.9, epoch));
        double v = square[i] / (1 - Math.pow(0.999, epoch));
        w[i] -= RATE * m / (Math.sqrt(v) + 1e-8);
      }
    }
    float[] out = new float[size];
    for (int i = 0; i < size; i++) {
      out[i] = (float) w[i];
    }
    return new LearnedRouter(out, hiddenWidth);
  }

  private void gradient(double[] w, double weight, double[] gradient) {
    Arrays.fill(gradient, 0);
    int last = LearnedRouter.WEIGHTS - 1;
    boolean states = w.length > LearnedRouter.WEIGHTS;
    double total = 0;
    for (int e = 0; e < size(); e++) {
      double[] x = dense.get(e);
      int token = LearnedRouter.DENSE + tokens.get(e);
      double z = w[last] + w[token];
      for (int i = 0; i < x.length; i++) {
        z += w[i] * x[i];
      }
      double[] h = states ? hidden.get(e) : NONE;
      for (int i = 0; i < h.length; i++) {
        z += w[last + 1 + i] * h[i];
      }
      double share = labels.get(e) ? weight : 1;
      double d = share * (1 / (1 + Math.exp(-z)) - (labels.get(e) ? 1 : 0));
      total += share;
      gradient[last] += d;
      gradient[token] += d;
      for (int i = 0; i < x.length; i++) {
        gradient[i] += d * x[i];
      }
      for (int i = 0; i < h.length; i++) {
        gradient[last + 1 + i] += d * h[i];
      }
    }
    for (int i = 0; i < w.length; i++) {
      gradient[i] = gradient[i] / total + (i == last ? 0 : DECAY * w[i]);
    }
  }

  /**
   * How a threshold would have done on the examples.
   *
   * @param threshold route from this score on
   * @param routed share of all tokens that are routed
   * @param precision share of the routed that diverge
   * @param recall share of the divergent that are routed
   */
  public record Point(double threshold, double routed, double precision, double recall) {}

  /** The grid of thresholds of specs/autoregressive.md 4, step 7: 100 values in [0.01, 0.99]. */
  public List<Point> curve(LearnedRouter router) {
    double[] scores = new double[size()];
    float[] w = router.weights();
    for (int e = 0; e < scores.length; e++) {
      scores[e] = score(w, e);
    }
    double[] thresholds = new double[100];
    for (int k = 0; k < thresholds.length; k++) {
      thresholds[k] = 0.01 + 0.98 * k / 99;
    }
    return curve(scores, thresholds);
  }

  /** What a router by entropy would do, at 100 thresholds between the entropies of the examples. */
  public List<Point> entropyCurve() {
    return curve(dense.stream().mapToDouble(x -> x[0]).toArray());
  }

  /** What a router by LogU would do, at 100 thresholds between the values of the examples. */
  public List<Point> logUCurve() {
    return curve(dense.stream().mapToDouble(x -> 2 * x[2]).toArray());
  }

  private List<Point> curve(double[] scores) {
    double[] sorted = scores.clone();
    Arrays.sort(sorted);
    double[] thresholds = new double[Math.min(100, sorted.length)];
    for (int k = 0; k < thresholds.length; k++) {
      thresholds[k] = Math.max(0, sorted[(int) ((long) k * sorted.length / thresholds.length)]);
    }
    return curve(scores, thresholds);
  }

  /** Thresholds rise. */
  private List<Point> curve(double[] scores, double[] thresholds) {
    List<Point> out = new ArrayList<>();
    for (double threshold : thresholds) {
      int routed = 0;
      int hit = 0;
      for (int e = 0; e < scores.length; e++) {
        boolean route = scores[e] >= threshold;
        routed += route ? 1 : 0;
        hit += route && labels.get(e) ? 1 : 0;
      }
      out.add(
          new Point(
              threshold,
              (double) routed / Math.max(1, scores.length),
              routed == 0 ? 1 : (double) hit / routed,
              divergent() == 0 ? 1 : (double) hit / divergent()));
    }
    return out;
  }

  private double score(float[] w, int example) {
    double z = w[LearnedRouter.WEIGHTS - 1] + w[LearnedRouter.DENSE + tokens.get(example)];
    double[] x = dense.get(example);
    for (int i = 0; i < x.length; i++) {
      z += w[i] * x[i];
    }
    double[] h = w.length > LearnedRouter.WEIGHTS ? hidden.get(example) : NONE;
    for (int i = 0; i < h.length; i++) {
      z += w[LearnedRouter.WEIGHTS + i] * h[i];
    }
    return 1 / (1 + Math.exp(-z));
  }
}
