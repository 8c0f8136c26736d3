package io.fletch.tools;

import io.fletch.GenerationOptions;
import io.fletch.sampling.SamplingOptions;
import java.security.SecureRandom;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The options that say how an answer is generated. */
final class SamplingFlags {
  private SamplingFlags() {}

  static Command.Section section() {
    SamplingOptions defaults = SamplingOptions.defaults();
    return new Command.Section(
        "Sampling",
        List.of(
            Command.value(
                "n", "max-tokens", "N", "most tokens of an answer (default: up to the context)"),
            Command.value(
                "temp",
                "T",
                "temperature; 0 is greedy (default: "
                    + defaults.temperature()
                    + ", greedy for the demo models)"),
            Command.value(
                "top-k",
                "K",
                "keep the K most likely tokens; 0 for all (default: " + defaults.topK() + ")"),
            Command.value(
                "top-p",
                "P",
                "keep the likeliest tokens that make up P (default: " + defaults.topP() + ")"),
            Command.value(
                "min-p",
                "P",
                "drop tokens below P times the best probability (default: "
                    + defaults.minP()
                    + ")"),
            Command.value(
                "repeat-penalty", "X", "divides the logits of recent tokens (default: 1, none)"),
            Command.value("frequency-penalty", "X", "subtracted per occurrence of a recent token"),
            Command.value("presence-penalty", "X", "subtracted once for a recent token"),
            Command.value(
                "repeat-window",
                "N",
                "how many latest tokens are recent; -1 for all (default: "
                    + defaults.penaltyWindow()
                    + ")"),
            Command.value("logit-bias", "ID=X", "adds X to a token; -inf forbids it (repeatable)"),
            Command.value("seed", "N", "seed of the sampler (default: another one every time)"),
            Command.value("stop", "TEXT", "ends the answer, not part of it (repeatable)"),
            Command.flag("ignore-eos", "go on after the model's own end tokens")));
  }

  /**
   * The options of the section.
   *
   * @param greedy decode greedily unless a temperature is given
   */
  static GenerationOptions parse(Arguments arguments, boolean greedy) {
    SamplingOptions defaults =
        greedy && !arguments.has("temp") ? SamplingOptions.greedy() : SamplingOptions.defaults();
    float most = Float.MAX_VALUE;
    SamplingOptions sampling =
        new SamplingOptions(
            arguments.real("temp", defaults.temperature(), 0, most),
            arguments.integer("top-k", defaults.topK(), 0, Integer.MAX_VALUE),
            arguments.real("top-p", defaults.topP(), Float.MIN_VALUE, 1),
            arguments.real("min-p", defaults.minP(), 0, 1),
            arguments.real("repeat-penalty", defaults.repetitionPenalty(), Float.MIN_VALUE, most),
            arguments.real("frequency-penalty", defaults.frequencyPenalty(), -most, most),
            arguments.real("presence-penalty", defaults.presencePenalty(), -most, most),
            arguments.integer("repeat-window", defaults.penaltyWindow(), -1, Integer.MAX_VALUE),
            logitBias(arguments.strings("logit-bias")),
            arguments.has("seed")
                ? arguments.whole("seed", 0, Long.MIN_VALUE, Long.MAX_VALUE)
                : new SecureRandom().nextLong());
    if (arguments.strings("stop").stream().anyMatch(String::isEmpty)) {
      throw new UsageException("--stop: the text is empty");
    }
    return GenerationOptions.defaults()
        .withSampling(sampling)
        .withMaxTokens(arguments.integer("max-tokens", 0, 0, Integer.MAX_VALUE))
        .withStopStrings(arguments.strings("stop"))
        .withIgnoreEnd(arguments.has("ignore-eos"));
  }

  private static Map<Integer, Float> logitBias(List<String> values) {
    Map<Integer, Float> bias = new LinkedHashMap<>();
    for (String value : values) {
      int split = value.indexOf('=');
      try {
        int id = Integer.parseInt(value.substring(0, Math.max(0, split)));
        String text = value.substring(split + 1);
        float amount = text.equals("-inf") ? Float.NEGATIVE_INFINITY : Float.parseFloat(text);
        if (id >= 0 && amount < Float.POSITIVE_INFINITY) {
          bias.put(id, amount);
          continue;
        }
      } catch (NumberFormatException _) {
        // Reported below.
      }
      throw new UsageException("--logit-bias: expected=ID=X actual=" + value);
    }
    return bias;
  }
}
