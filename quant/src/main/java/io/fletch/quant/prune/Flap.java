package io.fletch.quant.prune;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.stream.IntStream;

/**
 * FLAP (specs weights 4.6): which heads and feed-forward neurons of a model go, by how much their
 * outputs fluctuate, and the bias that stands for what they gave on average. Heads that share a
 * key/value head go together. Stateless.
 */
public final class Flap {
  /**
   * A layer with fewer groups is compared with all layers: of two groups one is always 0.7
   * deviations below their mean, whatever it does.
   */
  private static final int FEW = 8;

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

  /** The scores with the mean and deviation of {@code of} turned into 0 and 1. */
  static double[] standardized(double[] scores, double[] of) {
    double mean = 0;
    for (double s : of) {
      mean += s / of.length;
    }
    double variance = 0;
    for (double s : of) {
      variance += (s - mean) * (s - mean) / Math.max(1, of.length - 1);
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
    double[] allGroups = groups.stream().flatMapToDouble(Arrays::stream).toArray();
    for (int l = 0; l < groups.size(); l++) {
      double[] few = groups.get(l);
      double[] g = standardized(few, few.length < FEW ? allGroups : few);
      double[] n = standardized(neurons.get(l), neurons.get(l));
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
    // A layer needs one of each, so its best ones are kept before the budget is spent.
    for (int l = 0; l < groups.size(); l++) {
      keptGroups.get(l)[best(groups.get(l))] = true;
      keptNeurons.get(l)[best(neurons.get(l))] = true;
      kept += groupCost + 1;
    }
    for (Unit unit : units) {
      boolean[] stays = (unit.group() ? keptGroups : keptNeurons).get(unit.layer());
      if (stays[unit.index()]) {
        continue;
      }
      if (kept + unit.cost() / 2 > budget) {
        break;
      }
      kept += unit.cost();
      stays[unit.index()] = true;
    }
    List<Kept> result = new ArrayList<>();
    for (int l = 0; l < groups.size(); l++) {
      result.add(new Kept(indices(keptGroups.get(l)), indices(keptNeurons.get(l))));
    }
    return result;
  }

  private static int best(double[] scores) {
    int best = 0;
    for (int i = 1; i < scores.length; i++) {
      best = scores[i] > scores[best] ? i : best;
    }
    return best;
  }

  private static int[] indices(boolean[] kept) {
    return IntStream.range(0, kept.length).filter(i -> kept[i]).toArray();
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
