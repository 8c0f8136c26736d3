package io.fletch;

import java.nio.file.Path;
import java.util.Objects;

/**
 * Informed routing with lightweight feature forecasters (specs autoregressive 3): a router per unit
 * decides for every token whether the unit runs; where it does not, a small network forecasts what
 * it would have added.
 *
 * @param file forecasters and routers, a Fletch Arrow file of {@code fletch calibrate lff} or a
 *     safetensors file of the published shapes
 * @param threshold units whose score is below it do not run: 0 is what routers are trained for,
 *     negative infinity runs all, positive infinity none
 * @param approximate whether the forecast is added; without, a unit that does not run adds nothing
 *     (greedy routing, to compare with)
 * @param prompts whether tokens of the prompt are routed too
 */
public record UnitForecasts(Path file, float threshold, boolean approximate, boolean prompts)
    implements UnitPolicy {
  /** Refuses what is not a number. */
  public UnitForecasts {
    Objects.requireNonNull(file, "file");
    if (Float.isNaN(threshold)) {
      throw new IllegalArgumentException("threshold: expected=a number actual=NaN");
    }
  }

  /** At the trained operating point, for all tokens. */
  public static UnitForecasts of(Path file) {
    return new UnitForecasts(file, 0, true, true);
  }

  /** With another threshold. */
  public UnitForecasts withThreshold(float value) {
    return new UnitForecasts(file, value, approximate, prompts);
  }

  /** With or without forecasts. */
  public UnitForecasts withApproximate(boolean value) {
    return new UnitForecasts(file, threshold, value, prompts);
  }

  /** With or without routing of prompts. */
  public UnitForecasts withPrompts(boolean value) {
    return new UnitForecasts(file, threshold, approximate, value);
  }
}
