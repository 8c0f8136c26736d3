package io.fletch.sampling;

import io.fletch.sampling.support.Ranges;
import java.util.Map;
import java.util.Objects;
import java.util.function.Consumer;

/**
 * How the next token is drawn from logits.
 *
 * @param temperature 0 is greedy
 * @param topK keep the k most likely; 0 for all
 * @param topP keep the smallest set with this probability; 1 for all
 * @param minP keep tokens with at least this share of the best probability; 0 for all
 * @param repetitionPenalty divides positive and multiplies negative logits of recent tokens; 1 for
 *     none
 * @param frequencyPenalty subtracted per occurrence of a recent token
 * @param presencePenalty subtracted once for a recent token
 * @param penaltyWindow how many latest tokens count as recent; 0 for none, -1 for all
 * @param logitBias added to single tokens; negative infinity forbids
 * @param seed of the counter-based generator
 * @param extras the less common samplers
 */
public record SamplingOptions(
    float temperature,
    int topK,
    float topP,
    float minP,
    float repetitionPenalty,
    float frequencyPenalty,
    float presencePenalty,
    int penaltyWindow,
    Map<Integer, Float> logitBias,
    long seed,
    SamplerExtras extras) {
  /** Copies and checks. */
  public SamplingOptions {
    logitBias = Map.copyOf(logitBias);
    Objects.requireNonNull(extras, "extras");
    Ranges.check(
        "temperature",
        temperature,
        temperature >= 0 && Float.isFinite(temperature),
        "finite, >= 0");
    Ranges.check("topK", topK, topK >= 0, ">= 0");
    Ranges.check("topP", topP, topP > 0 && topP <= 1, "in (0, 1]");
    Ranges.check("minP", minP, minP >= 0 && minP <= 1, "in [0, 1]");
    Ranges.check(
        "repetitionPenalty",
        repetitionPenalty,
        repetitionPenalty > 0 && Float.isFinite(repetitionPenalty),
        "finite, positive");
    Ranges.check("frequencyPenalty", frequencyPenalty, Float.isFinite(frequencyPenalty), "finite");
    Ranges.check("presencePenalty", presencePenalty, Float.isFinite(presencePenalty), "finite");
    Ranges.check("penaltyWindow", penaltyWindow, penaltyWindow >= -1, ">= -1");
    for (Map.Entry<Integer, Float> bias : logitBias.entrySet()) {
      Ranges.check("token of logitBias", bias.getKey(), bias.getKey() >= 0, ">= 0");
      Ranges.check(
          "logitBias of token " + bias.getKey(),
          bias.getValue(),
          bias.getValue() < Float.POSITIVE_INFINITY,
          "a number, or negative infinity");
    }
  }

  /** Without extras. */
  public SamplingOptions(
      float temperature,
      int topK,
      float topP,
      float minP,
      float repetitionPenalty,
      float frequencyPenalty,
      float presencePenalty,
      int penaltyWindow,
      Map<Integer, Float> logitBias,
      long seed) {
    this(
        temperature,
        topK,
        topP,
        minP,
        repetitionPenalty,
        frequencyPenalty,
        presencePenalty,
        penaltyWindow,
        logitBias,
        seed,
        SamplerExtras.NONE);
  }

  /** Temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, seed 0. */
  public static SamplingOptions defaults() {
    return new SamplingOptions(0.8f, 40, 0.95f, 0.05f, 1, 0, 0, 64, Map.of(), 0);
  }

  /** The most likely token, always. */
  public static SamplingOptions greedy() {
    return new SamplingOptions(0, 0, 1, 0, 1, 0, 0, 64, Map.of(), 0);
  }

  /** With another temperature. */
  public SamplingOptions withTemperature(float value) {
    return edit(with -> with.temperature = value);
  }

  /** With another top-k. */
  public SamplingOptions withTopK(int value) {
    return edit(with -> with.topK = value);
  }

  /** With another top-p. */
  public SamplingOptions withTopP(float value) {
    return edit(with -> with.topP = value);
  }

  /** With another min-p. */
  public SamplingOptions withMinP(float value) {
    return edit(with -> with.minP = value);
  }

  /** With other penalties over the latest {@code window} tokens. */
  public SamplingOptions withPenalties(
      float repetition, float frequency, float presence, int window) {
    return edit(with -> {
      with.repetitionPenalty = repetition;
      with.frequencyPenalty = frequency;
      with.presencePenalty = presence;
      with.penaltyWindow = window;
    });
  }

  /** With another logit bias. */
  public SamplingOptions withLogitBias(Map<Integer, Float> value) {
    return edit(with -> with.logitBias = value);
  }

  /** With another seed. */
  public SamplingOptions withSeed(long value) {
    return edit(with -> with.seed = value);
  }

  /** With other extras. */
  public SamplingOptions withExtras(SamplerExtras value) {
    return edit(with -> with.extras = value);
  }

  /** The components as variables, so that a {@code with} method names only what it changes. */
  private static final class Edit {
    private float temperature;
    private int topK;
    private float topP;
    private float minP;
    private float repetitionPenalty;
    private float frequencyPenalty;
    private float presencePenalty;
    private int penaltyWindow;
    private Map<Integer, Float> logitBias;
    private long seed;
    private SamplerExtras extras;

    Edit(SamplingOptions from) {
      temperature = from.temperature;
      topK = from.topK;
      topP = from.topP;
      minP = from.minP;
      repetitionPenalty = from.repetitionPenalty;
      frequencyPenalty = from.frequencyPenalty;
      presencePenalty = from.presencePenalty;
      penaltyWindow = from.penaltyWindow;
      logitBias = from.logitBias;
      seed = from.seed;
      extras = from.extras;
    }

    SamplingOptions build() {
      return new SamplingOptions(
          temperature,
          topK,
          topP,
          minP,
          repetitionPenalty,
          frequencyPenalty,
          presencePenalty,
          penaltyWindow,
          logitBias,
          seed,
          extras);
    }
  }

  private SamplingOptions edit(Consumer<Edit> change) {
    Edit with = new Edit(this);
    change.accept(with);
    return with.build();
  }
}
