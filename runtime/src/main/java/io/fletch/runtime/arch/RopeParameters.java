package io.fletch.runtime.arch;

import io.fletch.FletchException;
import io.fletch.graph.RopeSpec;
import java.util.Objects;

/**
 * Rotary embedding of a layer before it is reduced to a table.
 *
 * @param style which elements form a pair
 * @param rotated elements of a head that are rotated; even, at least 2
 * @param base frequency base, above 1
 * @param scaling long-context scaling
 */
public record RopeParameters(RopeSpec.Style style, int rotated, double base, RopeScaling scaling) {
  /** Checks the ranges. */
  public RopeParameters {
    Objects.requireNonNull(style, "style");
    Objects.requireNonNull(scaling, "scaling");
    if (rotated < 2 || rotated % 2 != 0) {
      throw new FletchException("rotated elements of a head: expected=even, > 0 actual=" + rotated);
    }
    if (!(base > 1 && base < Double.POSITIVE_INFINITY)) {
      throw new FletchException("rope base: expected > 1 actual=" + base);
    }
  }

  /** With another scaling. */
  public RopeParameters withScaling(RopeScaling value) {
    return new RopeParameters(style, rotated, base, value);
  }

  /**
   * The table of inverse frequencies for sessions of {@code contextLength} tokens. Computed in
   * double and rounded once.
   */
  public RopeSpec spec(int contextLength) {
    double[] frequency = new double[rotated / 2];
    for (int i = 0; i < frequency.length; i++) {
      frequency[i] = Math.pow(base, -2.0 * i / rotated);
    }
    double magnitude = 1;
    switch (scaling) {
      case RopeScaling.None _ -> {}
      case RopeScaling.Linear(double factor) -> {
        for (int i = 0; i < frequency.length; i++) {
          frequency[i] /= factor;
        }
      }
      case RopeScaling.Llama3 s -> llama3(frequency, s);
      case RopeScaling.Yarn s -> {
        yarn(frequency, s);
        magnitude = s.magnitude();
      }
      case RopeScaling.Factors(float[] factors) -> divide(frequency, factors, "rope_freqs");
      case RopeScaling.LongRope s -> {
        boolean isLong = contextLength > s.original();
        divide(
            frequency,
            isLong ? s.longFactors() : s.shortFactors(),
            isLong ? "rope long factors" : "rope short factors");
        magnitude = s.magnitude();
      }
      case RopeScaling.LongRopeTensors _ ->
          throw new IllegalStateException("hyper-parameters were not fitted to the tensors");
    }
    float[] table = new float[frequency.length];
    for (int i = 0; i < table.length; i++) {
      table[i] = (float) frequency[i];
    }
    return new RopeSpec(style, table, (float) magnitude);
  }

  private static void llama3(double[] frequency, RopeScaling.Llama3 s) {
    double lowWavelength = s.original() / s.low();
    double highWavelength = s.original() / s.high();
    for (int i = 0; i < frequency.length; i++) {
      double wavelength = 2 * Math.PI / frequency[i];
      if (wavelength > lowWavelength) {
        frequency[i] /= s.factor();
      } else if (wavelength >= highWavelength) {
        double smooth = (s.original() / wavelength - s.low()) / (s.high() - s.low());
        frequency[i] *= (1 - smooth) / s.factor() + smooth;
      }
    }
  }

  private void yarn(double[] frequency, RopeScaling.Yarn s) {
    double low = Math.max(0, Math.floor(correction(s.betaFast(), s.original())));
    double high = Math.min(rotated - 1, Math.ceil(correction(s.betaSlow(), s.original())));
    for (int i = 0; i < frequency.length; i++) {
      double ramp = 1 - Math.clamp((i - low) / Math.max(0.001, high - low), 0, 1);
      double mix = ramp * s.extrapolation();
      frequency[i] = frequency[i] / s.factor() * (1 - mix) + frequency[i] * mix;
    }
  }

  /** The pair that turns {@code rotations} times within the original context. */
  private double correction(double rotations, double original) {
    return rotated * Math.log(original / (2 * Math.PI * rotations)) / (2 * Math.log(base));
  }

  private static void divide(double[] frequency, float[] factors, String what) {
    if (factors.length != frequency.length) {
      throw new FletchException(
          what + ": expected=" + frequency.length + " values actual=" + factors.length);
    }
    for (int i = 0; i < frequency.length; i++) {
      frequency[i] /= factors[i];
    }
  }
}
