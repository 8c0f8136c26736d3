package io.fletch.tools;

import io.fletch.ContextShift;
import io.fletch.GenerationOptions;
import io.fletch.JsonSchemas;
import io.fletch.sampling.Grammar;
import io.fletch.sampling.SamplerExtras;
import io.fletch.sampling.SamplingOptions;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.security.SecureRandom;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

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
            Command.flag(
                "context-shift", "where the context is full, drop the older half of it and go on"),
            Command.value("keep", "N", "tokens at the start that a shift never drops (default: 0)"),
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
                "repeat-last-n",
                "N",
                "how many latest tokens are recent; -1 for all (default: "
                    + defaults.penaltyWindow()
                    + ")"),
            Command.value("typical", "P", "locally typical sampling; 1 for none"),
            Command.value("top-nsigma", "N", "keep logits within N deviations of the largest"),
            Command.value("dynatemp-range", "R", "temperature by entropy, between T-R and T+R"),
            Command.value("dynatemp-exp", "X", "its exponent (default: 1)"),
            Command.value("xtc-probability", "P", "how often top choices are excluded"),
            Command.value("xtc-threshold", "P", "what a top choice is (default: 0.1)"),
            Command.value("dry-multiplier", "X", "penalty on repeating sequences; 0 for none"),
            Command.value("dry-base", "X", "its growth with their length (default: 1.75)"),
            Command.value("dry-allowed-length", "N", "what may be repeated (default: 2)"),
            Command.value("dry-penalty-last-n", "N", "tokens looked at; -1 for all (default: -1)"),
            Command.value(
                "dry-sequence-breaker", "TEXT", "ends a sequence; replaces the usual (repeatable)"),
            Command.value("mirostat", "V", "2: hold the surprise of the text; 0 for none"),
            Command.value("mirostat-ent", "BITS", "the surprise that is held (default: 5)"),
            Command.value("mirostat-lr", "X", "how fast it is corrected (default: 0.1)"),
            Command.value("logit-bias", "ID=X", "adds X to a token; -inf forbids it (repeatable)"),
            Command.value("seed", "N", "seed of the sampler (default: another one every time)"),
            Command.value("stop", "TEXT", "ends the answer, not part of it (repeatable)"),
            Command.value(
                "json-schema", "FILE", "the answer is JSON that fits the schema in the file"),
            Command.value(
                "grammar", "FILE", "the answer is a text of the GBNF grammar in the file"),
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
            arguments.integer("repeat-last-n", defaults.penaltyWindow(), -1, Integer.MAX_VALUE),
            logitBias(arguments.strings("logit-bias")),
            arguments.has("seed")
                ? arguments.whole("seed", 0, Long.MIN_VALUE, Long.MAX_VALUE)
                : new SecureRandom().nextLong(),
            extras(arguments));
    if (arguments.strings("stop").stream().anyMatch(String::isEmpty)) {
      throw new UsageException("--stop: the text is empty");
    }
    GenerationOptions options =
        GenerationOptions.defaults()
            .withSampling(sampling)
            .withMaxTokens(arguments.integer("max-tokens", 0, 0, Integer.MAX_VALUE))
            .withStopStrings(arguments.strings("stop"))
            .withIgnoreEnd(arguments.has("ignore-eos"));
    Optional<ContextShift> shift = contextShift(arguments);
    if (shift.isPresent()) {
      options = options.withContextShift(shift.get());
    }
    return grammar(arguments).map(options::withGrammar).orElse(options);
  }

  /** What --context-shift and --keep say. */
  static Optional<ContextShift> contextShift(Arguments arguments) {
    if (!arguments.has("context-shift")) {
      if (arguments.has("keep")) {
        throw new UsageException("--keep is of no use without --context-shift");
      }
      return Optional.empty();
    }
    return Optional.of(new ContextShift(arguments.integer("keep", 0, 0, Integer.MAX_VALUE)));
  }

  private static Optional<Grammar> grammar(Arguments arguments) {
    if (arguments.has("json-schema") && arguments.has("grammar")) {
      throw new UsageException("--json-schema and --grammar exclude each other");
    }
    for (String name : List.of("json-schema", "grammar")) {
      if (arguments.has(name)) {
        String text;
        try {
          text = Texts.readStrict(Path.of(arguments.required(name)));
        } catch (IOException e) {
          throw new UncheckedIOException(e);
        }
        return Optional.of(
            name.equals("grammar") ? Grammar.parse(text) : JsonSchemas.grammar(text));
      }
    }
    return Optional.empty();
  }

  private static SamplerExtras extras(Arguments arguments) {
    float most = Float.MAX_VALUE;
    float least = Float.MIN_VALUE;
    SamplerExtras extras =
        SamplerExtras.NONE
            .withTypicalP(arguments.real("typical", 1, least, 1))
            .withTopNSigma(arguments.real("top-nsigma", 0, 0, most));
    float range = arguments.real("dynatemp-range", 0, 0, most);
    float exponent = arguments.real("dynatemp-exp", 1, least, most);
    if (range > 0) {
      extras = extras.withDynamicTemperature(range, exponent);
    }
    float probability = arguments.real("xtc-probability", 0, 0, 1);
    float threshold = arguments.real("xtc-threshold", 0.1f, least, 1);
    if (probability > 0) {
      extras = extras.withXtc(probability, threshold);
    }
    float multiplier = arguments.real("dry-multiplier", 0, 0, most);
    float base = arguments.real("dry-base", 1.75f, 1, most);
    int allowed = arguments.integer("dry-allowed-length", 2, 1, Integer.MAX_VALUE);
    int window = arguments.integer("dry-penalty-last-n", -1, -1, Integer.MAX_VALUE);
    List<String> breakers = arguments.strings("dry-sequence-breaker");
    if (multiplier > 0) {
      List<String> texts = breakers.isEmpty() ? SamplerExtras.Dry.BREAKERS : breakers;
      extras = extras.withDry(new SamplerExtras.Dry(multiplier, base, allowed, window, texts));
    }
    int mirostat = arguments.integer("mirostat", 0, 0, 2);
    if (mirostat == 1) {
      throw new UsageException("--mirostat: expected=0 or 2 actual=1");
    }
    float entropy = arguments.real("mirostat-ent", 5, least, most);
    float rate = arguments.real("mirostat-lr", 0.1f, least, most);
    return mirostat == 2 ? extras.withMirostat(entropy, rate) : extras;
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
