package io.fletch;

import io.fletch.runtime.engine.UnitFiles;
import io.fletch.sampling.support.Ranges;
import java.nio.file.Path;
import java.util.Map;
import java.util.Objects;

/**
 * FFN-SkipLLM (specs autoregressive 2): while tokens are generated, a feed-forward unit that hardly
 * turns the residual stream lets those after it rest. Prompts run all units, and so do the first
 * tokens of an answer.
 *
 * @param from first layer of the region in which units may rest
 * @param to its end, exclusive; the region has at least two layers
 * @param threshold cosine between the residual stream before and after a unit from which on the
 *     next ones rest; positive infinity for never
 * @param run units that rest before the next one is looked at again; 0 for all to the end of the
 *     region
 * @param budget most units that rest per token
 * @param warmUp generated tokens before the first unit rests
 * @param model hash of the model that this was calibrated for; empty for one made by hand
 */
public record FfnSkip(
    int from, int to, float threshold, int run, int budget, int warmUp, String model)
    implements UnitPolicy {
  /** Warm-up where nothing else is said. */
  public static final int WARM_UP = 32;

  /** Checks ranges. */
  public FfnSkip {
    Objects.requireNonNull(model, "model");
    if (from < 0 || to < from + 2) {
      throw new IllegalArgumentException(
          "region: expected=at least two layers actual=[" + from + ", " + to + ")");
    }
    Ranges.check("threshold", threshold, !Float.isNaN(threshold), "a number");
    Ranges.check("run", run, run >= 0, ">= 0");
    Ranges.check("budget", budget, budget >= 0, ">= 0");
    Ranges.check("warmUp", warmUp, warmUp >= 0, ">= 0");
  }

  /** Skipping to the end of a region, as much as the threshold allows. */
  public static FfnSkip of(int from, int to, float threshold) {
    return new FfnSkip(from, to, threshold, 0, Integer.MAX_VALUE, WARM_UP, "");
  }

  /**
   * What {@code fletch calibrate ffn-skip} found.
   *
   * @throws FletchException if the file is not one of these, or is damaged
   */
  public static FfnSkip load(Path file) {
    return UnitFiles.loadSkip(file);
  }

  /**
   * Writes this for a model, as a Fletch Arrow file.
   *
   * @param facts what else to record: texts and numbers
   */
  public void save(Path file, Model target, Map<String, Object> facts) {
    UnitFiles.saveSkip(this, file, target, facts);
  }

  /** With another threshold. */
  public FfnSkip withThreshold(float value) {
    return new FfnSkip(from, to, value, run, budget, warmUp, model);
  }

  /** With another number of units that rest after one decision. */
  public FfnSkip withRun(int value) {
    return new FfnSkip(from, to, threshold, value, budget, warmUp, model);
  }

  /** With another limit per token. */
  public FfnSkip withBudget(int value) {
    return new FfnSkip(from, to, threshold, run, value, warmUp, model);
  }

  /** With another warm-up. */
  public FfnSkip withWarmUp(int value) {
    return new FfnSkip(from, to, threshold, run, budget, value, model);
  }
}
