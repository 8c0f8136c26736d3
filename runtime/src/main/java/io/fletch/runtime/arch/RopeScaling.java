package io.fletch.runtime.arch;

import io.fletch.FletchException;

/**
 * How rotary frequencies are stretched for contexts longer than those of pre-training (specs
 * weights 1.7). Each kind is reduced to a table by {@link RopeParameters#spec}.
 */
public sealed interface RopeScaling {
  /** No scaling. */
  record None() implements RopeScaling {}

  /** All frequencies divided by {@code factor}. */
  record Linear(double factor) implements RopeScaling {
    /** Checks the range. */
    public Linear {
      check("rope scaling factor", factor, 0);
    }
  }

  /**
   * Llama 3.1: long waves divided by {@code factor}, short ones kept, a smooth passage between.
   *
   * @param original context length of pre-training, in tokens
   */
  record Llama3(double factor, double low, double high, double original) implements RopeScaling {
    /** Checks the ranges. */
    public Llama3 {
      check("rope scaling factor", factor, 0);
      check("rope scaling low_freq_factor", low, 0);
      check("rope scaling high_freq_factor", high, 0);
      check("rope scaling original context", original, 0);
      if (!(high > low)) {
        throw new FletchException(
            "rope scaling high_freq_factor: expected > low_freq_factor=" + low + " actual=" + high);
      }
    }
  }

  /**
   * YaRN: interpolation of long waves, extrapolation of short ones, a ramp between.
   *
   * @param original context length of pre-training, in tokens
   * @param extrapolation 1 for YaRN proper, 0 for plain interpolation
   * @param magnitude factor on cosine and sine, all parts of it multiplied out
   */
  record Yarn(
      double factor,
      double original,
      double betaFast,
      double betaSlow,
      double extrapolation,
      double magnitude)
      implements RopeScaling {
    /** Checks the ranges. */
    public Yarn {
      check("rope scaling factor", factor, 0);
      check("rope scaling original context", original, 0);
      check("rope scaling beta_fast", betaFast, 0);
      check("rope scaling beta_slow", betaSlow, 0);
      check("rope scaling attention factor", magnitude, 0);
      if (!(extrapolation >= 0 && extrapolation <= 1)) {
        throw new FletchException(
            "rope scaling ext_factor: expected=[0, 1] actual=" + extrapolation);
      }
    }
  }

  /**
   * A divisor for every pair: the {@code rope_freqs} tensor of GGUF files.
   *
   * @param factors one per pair; not changed by anyone after construction
   */
  record Factors(float[] factors) implements RopeScaling {
    /** Checks the values. */
    public Factors {
      checkFactors("rope_freqs", factors);
    }
  }

  /**
   * LongRoPE (Phi-3): one table of divisors up to the original context, another beyond it.
   *
   * @param original context length of pre-training, in tokens
   * @param magnitude factor on cosine and sine
   */
  record LongRope(float[] shortFactors, float[] longFactors, double original, double magnitude)
      implements RopeScaling {
    /** Checks the values. */
    public LongRope {
      checkFactors("rope short factors", shortFactors);
      checkFactors("rope long factors", longFactors);
      check("rope scaling original context", original, 0);
      check("rope scaling attention factor", magnitude, 0);
    }
  }

  /**
   * LongRoPE whose divisors are tensors of the file: a promise that {@link WeightTensors#fit}
   * replaces by {@link LongRope}, or by {@link None} where the file has no such tensors.
   */
  record LongRopeTensors(double original, double magnitude) implements RopeScaling {}

  private static void check(String what, double value, double above) {
    if (!(value > above && value < Double.POSITIVE_INFINITY)) {
      throw new FletchException(what + ": expected > " + above + " actual=" + value);
    }
  }

  private static void checkFactors(String what, float[] factors) {
    for (int i = 0; i < factors.length; i++) {
      if (!(factors[i] > 0 && factors[i] < Float.POSITIVE_INFINITY)) {
        throw new FletchException(what + "[" + i + "]: expected > 0 actual=" + factors[i]);
      }
    }
  }
}
