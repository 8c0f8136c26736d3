package io.fletch.sampling;

import io.fletch.sampling.support.Ranges;
import java.util.List;
import java.util.Objects;
import java.util.Optional;

/**
 * The less common samplers, under the names and with the meanings they have in llama.cpp. All are
 * off in {@link #NONE}.
 *
 * @param typicalP locally typical sampling (Meister et al., "Locally Typical Sampling", TACL 2023):
 *     keep the tokens whose surprise is nearest to the entropy, up to this probability; 1 for all
 * @param topNSigma keep logits at most this many standard deviations below the largest (Tang et
 *     al., "Top-nσ", 2024); 0 for all
 * @param dynamicTemperature temperature by entropy instead of a fixed one
 * @param xtc exclude top choices
 * @param dry penalty on tokens that would go on repeating
 * @param mirostat version 2 of Mirostat; replaces all other filters but the temperature
 */
public record SamplerExtras(
    float typicalP,
    float topNSigma,
    Optional<DynamicTemperature> dynamicTemperature,
    Optional<Xtc> xtc,
    Optional<Dry> dry,
    Optional<Mirostat> mirostat) {
  /** Nothing. */
  public static final SamplerExtras NONE =
      new SamplerExtras(
          1, 0, Optional.empty(), Optional.empty(), Optional.empty(), Optional.empty());

  /** Checks the ranges. */
  public SamplerExtras {
    Objects.requireNonNull(dynamicTemperature, "dynamicTemperature");
    Objects.requireNonNull(xtc, "xtc");
    Objects.requireNonNull(dry, "dry");
    Objects.requireNonNull(mirostat, "mirostat");
    Ranges.check("typicalP", typicalP, typicalP > 0 && typicalP <= 1, "in (0, 1]");
    Ranges.check(
        "topNSigma", topNSigma, topNSigma >= 0 && Float.isFinite(topNSigma), "finite, >= 0");
  }

  /**
   * The temperature runs from {@code temperature - range} at no entropy to {@code temperature +
   * range} at the most, by {@code (entropy / most)^exponent}.
   */
  public record DynamicTemperature(float range, float exponent) {
    /** Checks the ranges. */
    public DynamicTemperature {
      Ranges.check("range", range, range > 0 && Float.isFinite(range), "finite, positive");
      Ranges.check(
          "exponent", exponent, exponent > 0 && Float.isFinite(exponent), "finite, positive");
    }
  }

  /**
   * With this probability, of the tokens at or above the threshold all but the least likely are
   * removed.
   */
  public record Xtc(float probability, float threshold) {
    /** Checks the ranges. */
    public Xtc {
      Ranges.check("probability", probability, probability > 0 && probability <= 1, "in (0, 1]");
      Ranges.check("threshold", threshold, threshold > 0 && threshold <= 1, "in (0, 1]");
    }
  }

  /**
   * "Don't repeat yourself": a token that would extend a repetition of n tokens loses {@code
   * multiplier * base^(n - allowedLength)} where n is at least {@code allowedLength}.
   *
   * @param lastTokens how many latest tokens are looked at; -1 for all
   * @param breakers texts that no repetition runs across: a token that contains one ends it
   */
  public record Dry(
      float multiplier, float base, int allowedLength, int lastTokens, List<String> breakers) {
    /** The usual breakers: line break, colon, quote, asterisk. */
    public static final List<String> BREAKERS = List.of("\n", ":", "\"", "*");

    /** Checks the ranges. */
    public Dry {
      breakers = List.copyOf(breakers);
      Ranges.check(
          "multiplier", multiplier, multiplier > 0 && Float.isFinite(multiplier), "positive");
      Ranges.check("base", base, base >= 1 && Float.isFinite(base), ">= 1");
      Ranges.check("allowedLength", allowedLength, allowedLength >= 1, ">= 1");
      Ranges.check("lastTokens", lastTokens, lastTokens >= -1, ">= -1");
      Ranges.check(
          "breakers", breakers, breakers.stream().noneMatch(String::isEmpty), "no empty text");
    }

    /** Base 1.75, allowed length 2, all tokens, the usual breakers. */
    public static Dry of(float multiplier) {
      return new Dry(multiplier, 1.75f, 2, -1, BREAKERS);
    }
  }

  /**
   * Keeps the surprise of the text near {@code tau} bits (Basu et al., "Mirostat", ICLR 2021).
   *
   * @param eta rate at which the bound on the surprise is corrected
   */
  public record Mirostat(float tau, float eta) {
    /** Checks the ranges. */
    public Mirostat {
      Ranges.check("tau", tau, tau > 0 && Float.isFinite(tau), "finite, positive");
      Ranges.check("eta", eta, eta > 0 && Float.isFinite(eta), "finite, positive");
    }
  }

  /** With another typical-p. */
  public SamplerExtras withTypicalP(float value) {
    return new SamplerExtras(value, topNSigma, dynamicTemperature, xtc, dry, mirostat);
  }

  /** With another top-n-sigma. */
  public SamplerExtras withTopNSigma(float value) {
    return new SamplerExtras(typicalP, value, dynamicTemperature, xtc, dry, mirostat);
  }

  /** With a dynamic temperature. */
  public SamplerExtras withDynamicTemperature(float range, float exponent) {
    return new SamplerExtras(
        typicalP,
        topNSigma,
        Optional.of(new DynamicTemperature(range, exponent)),
        xtc,
        dry,
        mirostat);
  }

  /** With XTC. */
  public SamplerExtras withXtc(float probability, float threshold) {
    return new SamplerExtras(
        typicalP,
        topNSigma,
        dynamicTemperature,
        Optional.of(new Xtc(probability, threshold)),
        dry,
        mirostat);
  }

  /** With DRY. */
  public SamplerExtras withDry(Dry value) {
    return new SamplerExtras(
        typicalP, topNSigma, dynamicTemperature, xtc, Optional.of(value), mirostat);
  }

  /** With Mirostat 2. */
  public SamplerExtras withMirostat(float tau, float eta) {
    return new SamplerExtras(
        typicalP, topNSigma, dynamicTemperature, xtc, dry, Optional.of(new Mirostat(tau, eta)));
  }
}
