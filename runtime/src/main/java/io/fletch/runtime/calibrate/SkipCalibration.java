package io.fletch.runtime.calibrate;

import io.fletch.FfnSkip;
import io.fletch.Session;
import io.fletch.runtime.engine.UnitScores;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.function.ToDoubleFunction;

/**
 * Finds region and threshold of FFN-SkipLLM for a model (specs autoregressive 2), from the
 * similarities that dense forwards of given tokens show. Used by one thread.
 */
public final class SkipCalibration {
  /** How much a later layer's mean similarity may be below the one before. */
  private static final double TOLERANCE = 0.01;

  private final int layers;
  private final List<float[][]> sequences = new ArrayList<>();

  /**
   * Nothing is measured yet.
   *
   * @param layers feed-forward units of the model
   */
  public SkipCalibration(int layers) {
    this.layers = layers;
  }

  /**
   * The policy with which a model must be opened to be measured: it looks at all layers and never
   * skips.
   */
  public static FfnSkip observer(int layers) {
    return new FfnSkip(0, layers, Float.POSITIVE_INFINITY, 0, 0, 0, "");
  }

  /**
   * Measures tokens.
   *
   * @param session of a model that was opened with {@link #observer}
   */
  public void add(Session session, ForcedText text) {
    float[][] scores = UnitScores.of(session, text.ids(), 0).scores();
    if (scores[0].length != layers) {
      throw new IllegalArgumentException(
          "layers: expected=" + layers + " actual=" + scores[0].length);
    }
    sequences.add(Arrays.copyOfRange(scores, text.start(), scores.length));
  }

  /** Tokens of the longest text that count as generated. */
  public int longest() {
    return sequences.stream().mapToInt(s -> s.length).max().orElse(0);
  }

  /** Tokens measured. */
  public int tokens() {
    return sequences.stream().mapToInt(s -> s.length).sum();
  }

  /** Mean similarity per layer. */
  public double[] means() {
    double[] means = new double[layers];
    for (float[][] sequence : sequences) {
      for (float[] token : sequence) {
        for (int l = 0; l < layers; l++) {
          means[l] += token[l];
        }
      }
    }
    int n = Math.max(1, tokens());
    for (int l = 0; l < layers; l++) {
      means[l] /= n;
    }
    return means;
  }

  /**
   * The longest run of at least two layers whose mean similarity reaches {@code least} and does not
   * fall: first layer, end. Empty where nothing is saturated.
   */
  public Optional<int[]> region(double least) {
    double[] means = means();
    int[] best = {0, 0};
    for (int from = 0; from < layers; from++) {
      int to = from;
      while (to < layers
          && means[to] >= least
          && (to == from || means[to] >= means[to - 1] - TOLERANCE)) {
        to++;
      }
      if (to - from > best[1] - best[0]) {
        best = new int[] {from, to};
      }
    }
    return best[1] - best[0] < 2 ? Optional.empty() : Optional.of(best);
  }

  /**
   * Share of all feed-forward units of the tokens past the warm-up that a policy would have let
   * rest, if resting changed no similarity.
   */
  public double predict(FfnSkip skip) {
    long skipped = 0;
    long units = 0;
    for (float[][] sequence : sequences) {
      // Token i is generated number i + 1.
      for (int i = Math.max(0, skip.warmUp() - 1); i < sequence.length; i++) {
        units += layers;
        skipped += skipped(skip, sequence[i]);
      }
    }
    return units == 0 ? 0 : (double) skipped / units;
  }

  private static int skipped(FfnSkip skip, float[] scores) {
    int budget = skip.budget();
    int run = skip.run() == 0 ? Integer.MAX_VALUE : skip.run();
    int skipped = 0;
    for (int l = skip.from(); l + 1 < skip.to(); l++) {
      if (scores[l] >= skip.threshold()) {
        int n = Math.min(Math.min(run, budget), skip.to() - l - 1);
        budget -= n;
        skipped += n;
        l += n;
      }
    }
    return skipped;
  }

  /**
   * The policy with the largest threshold whose predicted share reaches a target, or the one that
   * rests most if none does.
   */
  public FfnSkip fit(FfnSkip shape, double ratio) {
    float[] seen = seen(shape);
    int low = 0;
    int high = seen.length - 1;
    while (low < high) {
      int middle = (low + high + 1) / 2;
      if (predict(shape.withThreshold(seen[middle])) >= ratio) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return shape.withThreshold(seen[low]);
  }

  /** The similarities that a threshold may lie between, in rising order. */
  private float[] seen(FfnSkip shape) {
    float[] seen = new float[tokens() * (shape.to() - shape.from() - 1)];
    int n = 0;
    for (float[][] sequence : sequences) {
      for (float[] token : sequence) {
        for (int l = shape.from(); l + 1 < shape.to(); l++) {
          seen[n++] = token[l];
        }
      }
    }
    Arrays.sort(seen);
    return seen;
  }

  /**
   * A threshold that free decoding has confirmed.
   *
   * @param skip the policy
   * @param share of all feed-forward units that rested when text was decoded with it
   * @param most the same if everything in the region rests: no threshold gives more
   */
  public record Tuned(FfnSkip skip, double share, double most) {}

  /** A share as close as this to the wanted one is not improved any more. */
  public static final double CLOSE = 0.005;

  /** Decodings that {@link #tune} asks for at most. */
  private static final int TRIES = 12;

  /**
   * Looks for the threshold whose share in free decoding is a target: units that rest change what
   * is decoded and the similarities of later tokens, and the first tokens of an answer warm up, so
   * that the share is not the predicted one. Starts from the prediction and halves the interval
   * between the similarities that were seen.
   *
   * @param decode decodes text and says the share of all feed-forward units that rested
   * @return the closest that was found
   */
  public Tuned tune(FfnSkip shape, double ratio, ToDoubleFunction<FfnSkip> decode) {
    float[] seen = seen(shape);
    // Below every cosine.
    FfnSkip everything = shape.withThreshold(-2);
    double most = decode.applyAsDouble(everything);
    Tuned best = new Tuned(everything, most, most);
    if (most <= ratio) {
      return best;
    }
    int low = 0;
    int high = seen.length - 1;
    int at = Math.max(0, Arrays.binarySearch(seen, fit(shape, ratio).threshold()));
    for (int i = 0; i < TRIES && low <= high; i++) {
      FfnSkip skip = shape.withThreshold(seen[at]);
      double share = decode.applyAsDouble(skip);
      if (Math.abs(share - ratio) < Math.abs(best.share() - ratio)) {
        best = new Tuned(skip, share, most);
      }
      if (Math.abs(share - ratio) <= CLOSE) {
        break;
      }
      if (share > ratio) {
        low = at + 1;
      } else {
        high = at - 1;
      }
      at = (low + high) >>> 1;
    }
    return best;
  }
}
