package io.fletch.quant.prune;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;

/**
 * FLAP (specs weights 4.6): which heads and feed-forward neurons of a model go, by how much their
 * outputs fluctuate, and the bias that stands for what they gave on average. Heads that share a
 * key/value head go together. Stateless.
 */
public final class Flap {
  private Flap() {}

  /** Units of one layer that stay, in order. */
  public record Kept(int[] groups, int[] neurons) {}

  /**
   * Score per input channel of an output or down projection: variance times squared column norm.
   *
   * @param w rows of {@code inputs.channels()} elements
   */
  public static double[] channelScores(float[] w, InputStatistics inputs) {
    int cols = inputs.channels();
    double[] scores = inputs.variances();
    double[] squares = new double[cols];
    for (int i = 0; i < w.length; i++) {
      squares[i % cols] += (double) w[i] * w[i];
    }
    for (int j = 0; j < cols; j++) {
      scores[j] *= squares[j];
    }
    return scores;
  }

  /** Score per group of {@code width} channels: mean of the squared channel scores. */
  public static double[] groupScores(double[] channels, int width) {
    double[] scores = new double[channels.length / width];
    for (int j = 0; j < channels.length; j++) {
      scores[j / width] += channels[j] * channels[j] / width;
    }
    return scores;
  }

  /** Mean 0, deviation 1. */
  static double[] standardized(double[] scores) {
    double mean = 0;
    for (double s : scores) {
      mean += s / scores.length;
    }
    double variance = 0;
    for (double s : scores) {
      variance += (s - mean) * (s - mean) / Math.max(1, scores.length - 1);
    }
    double deviation = Math.sqrt(variance);
    double[] result = new double[scores.length];
    for (int i = 0; i < scores.length; i++) {
      result[i] = deviation == 0 ? 0 : (scores[i] - mean) / deviation;
    }
    return result;
  }

  private record Unit(int layer, boolean group, int index, double score, double cost) {}

  /**
   * Chooses over all layers.
   *
   * @param groups per layer the scores of its key/value groups
   * @param neurons per layer the scores of its neurons
   * @param groupCost weights of a group, counted in neurons
   * @param sparsity share of the weights of all units that goes
   * @return what stays; at least one group and one neuron of each layer
   */
  public static List<Kept> choose(
      List<double[]> groups, List<double[]> neurons, double groupCost, double sparsity) {
    Masks.checkSparsity(sparsity);
    List<Unit> units = new ArrayList<>();
    double total = 0;
    for (int l = 0; l < groups.size(); l++) {
      double[] g = standardized(groups.get(l));
      double[] n = standardized(neurons.get(l));
      for (int i = 0; i < g.length; i++) {
        units.add(new Unit(l, true, i, g[i], groupCost));
        total += groupCost;
      }
      for (int i = 0; i < n.length; i++) {
        units.add(new Unit(l, false, i, n[i], 1));
        total += 1;
      }
    }
    units.sort(Comparator.comparingDouble(u -> -u.score()));
    double budget = total * (1 - sparsity);
    List<boolean[]> keptGroups = new ArrayList<>();
    List<boolean[]> keptNeurons = new ArrayList<>();
    for (int l = 0; l < groups.size(); l++) {
      keptGroups.add(new boolean[groups.get(l).length]);
      keptNeurons.add(new boolean[neurons.get(l).length]);
    }
    double kept = 0;
    for (Unit unit : units) {
      if (kept + unit.cost() / 2 > budget) {
        break;
      }
      kept += unit.cost();
      (unit.group() ? keptGroups : keptNeurons).get(unit.layer())[unit.index()] = true;
    }
    List<Kept> result = new ArrayList<>();
    for (int l = 0; l < groups.size(); l++) {
      result.add(
          new Kept(
              indices(keptGroups.get(l), groups.get(l)),
              indices(keptNeurons.get(l), neurons.get(l))));
    }
    return result;
  }

  private static int[] indices(boolean[] kept, double[] scores) {
    List<Integer> indices = new ArrayList<>();
    int best = 0;
    for (int i = 0; i < kept.length; i++) {
      if (kept[i]) {
        indices.add(i);
      }
      best = scores[i] > scores[best] ? i : best;
    }
    if (indices.isEmpty()) {
      indices.add(best);
    }
    return indices.stream().mapToInt(Integer::intValue).toArray();
  }

  /**
   * What the removed channels gave on average, per output: {@code sum_j w_ij mean_j}.
   *
   * @param kept channels that stay
   */
  public static float[] bias(float[] w, double[] means, boolean[] kept) {
    int cols = means.length;
    float[] bias = new float[w.length / cols];
    for (int r = 0; r < bias.length; r++) {
      double sum = 0;
      for (int j = 0; j < cols; j++) {
        if (!kept[j]) {
          sum += w[r * cols + j] * means[j];
        }
      }
      bias[r] = (float) sum;
    }
    return bias;
  }
}
