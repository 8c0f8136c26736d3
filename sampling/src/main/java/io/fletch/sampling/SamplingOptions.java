package io.fletch.sampling;

import java.util.Map;
import java.util.Objects;

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
    if (!(temperature >= 0 && temperature < Float.POSITIVE_INFINITY)
        || topK < 0
        || !(topP > 0 && topP <= 1)
        || !(minP >= 0 && minP <= 1)
        || !(repetitionPenalty > 0 && repetitionPenalty < Float.POSITIVE_INFINITY)
        || !Float.isFinite(frequencyPenalty)
        || !Float.isFinite(presencePenalty)
        || penaltyWindow < -1) {
      throw new IllegalArgumentException(
          "out of range: temperature="
              + temperature
              + " topK="
              + topK
              + " topP="
              + topP
              + " minP="
              + minP
              + " repetitionPenalty="
              + repetitionPenalty
              + " frequencyPenalty="
              + frequencyPenalty
              + " presencePenalty="
              + presencePenalty
              + " penaltyWindow="
              + penaltyWindow);
    }
    for (Map.Entry<Integer, Float> bias : logitBias.entrySet()) {
      if (bias.getKey() < 0 || !(bias.getValue() < Float.POSITIVE_INFINITY)) {
        throw new IllegalArgumentException(
            "logit bias out of range: token=" + bias.getKey() + " value=" + bias.getValue());
      }
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
    return new SamplingOptions(
        value,
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

  /** With another top-k. */
  public SamplingOptions withTopK(int value) {
    return new SamplingOptions(
        temperature,
        value,
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

  /** With another top-p. */
  public SamplingOptions withTopP(float value) {
    return new SamplingOptions(
        temperature,
        topK,
        value,
        minP,
        repetitionPenalty,
        frequencyPenalty,
        presencePenalty,
        penaltyWindow,
        logitBias,
        seed,
        extras);
  }

  /** With another min-p. */
  public SamplingOptions withMinP(float value) {
    return new SamplingOptions(
        temperature,
        topK,
        topP,
        value,
        repetitionPenalty,
        frequencyPenalty,
        presencePenalty,
        penaltyWindow,
        logitBias,
        seed,
        extras);
  }

  /** With other penalties over the latest {@code window} tokens. */
  public SamplingOptions withPenalties(
      float repetition, float frequency, float presence, int window) {
    return new SamplingOptions(
        temperature,
        topK,
        topP,
        minP,
        repetition,
        frequency,
        presence,
        window,
        logitBias,
        seed,
        extras);
  }

  /** With another logit bias. */
  public SamplingOptions withLogitBias(Map<Integer, Float> value) {
    return new SamplingOptions(
        temperature,
        topK,
        topP,
        minP,
        repetitionPenalty,
        frequencyPenalty,
        presencePenalty,
        penaltyWindow,
        value,
        seed,
        extras);
  }

  /** With another seed. */
  public SamplingOptions withSeed(long value) {
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
        value,
        extras);
  }

  /** With other extras. */
  public SamplingOptions withExtras(SamplerExtras value) {
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
        value);
  }
}
