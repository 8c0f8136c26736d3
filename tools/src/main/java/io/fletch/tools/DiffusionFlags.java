package io.fletch.tools;

import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.sampling.DiffusionModel;
import io.fletch.sampling.DiffusionOptions;
import io.fletch.sampling.DiffusionPresets;
import io.fletch.sampling.DiffusionTechnique;
import io.fletch.sampling.Search;
import java.util.List;

/** The options that say how a diffusion model decodes. */
final class DiffusionFlags {
  private static final int ANSWER = 64;

  private DiffusionFlags() {}

  static Command.Section section() {
    return new Command.Section(
        "Diffusion models",
        List.of(
            Command.value(
                "technique",
                "T",
                "a preset ("
                    + String.join(", ", DiffusionPresets.names())
                    + ") and techniques with their parameters, joined by +, for example"
                    + " freedave(depth=4)+freecache; docs/diffusion.md lists them (default: one"
                    + " token per step in blocks of 16, up to the block that ends the answer)"),
            lengthOption(),
            blockOption(),
            guideOption()));
  }

  static org.apache.commons.cli.Option lengthOption() {
    return Command.value(
        "length", "N", "masks of the answer's canvas (default: " + ANSWER + ", or --max-tokens)");
  }

  static org.apache.commons.cli.Option blockOption() {
    return Command.value(
        "block", "N", "masks that are finished before the next; divides the length");
  }

  static org.apache.commons.cli.Option guideOption() {
    return Command.value(
        "guide", "F", "the autoregressive model of guided diffusion, a file or a demo model");
  }

  /** Opens the guide; null (which closes as nothing) if none was given. */
  static Model openGuide(Arguments arguments, Io io) {
    if (!arguments.has("guide")) {
      return null;
    }
    return ModelFlags.openNamed(arguments.required("guide"), arguments);
  }

  /** Masks of an answer. */
  static int length(Arguments arguments) {
    int most =
        arguments.integer(
            "gen-tokens",
            arguments.integer("max-tokens", 0, 0, Integer.MAX_VALUE),
            0,
            Integer.MAX_VALUE);
    return arguments.integer("length", most == 0 ? ANSWER : most, 1, 1 << 20);
  }

  /** What the section adds to the options; they stay as they are if none of it was given. */
  static GenerationOptions apply(
      Arguments arguments, Model model, Model guide, GenerationOptions options) {
    boolean asked =
        List.of("technique", "length", "block", "guide").stream().anyMatch(arguments::has);
    if (!asked) {
      return options;
    }
    return with(
        arguments.string("technique").orElse("reference"), arguments, model, guide, options);
  }

  /** Options for one technique. */
  static GenerationOptions with(
      String technique, Arguments arguments, Model model, Model guide, GenerationOptions options) {
    DiffusionModel facts =
        model
            .diffusion()
            .orElseThrow(() ->
                new CommandException(
                    "model "
                        + model.name()
                        + " is autoregressive: diffusion options do not apply"));
    String text = technique;
    if (arguments.has("block")) {
      int block = arguments.integer("block", 0, 1, Integer.MAX_VALUE);
      // A preset, if there is one, stands first; what is written out counts over the flag.
      int plus = text.indexOf('+');
      String first = plus < 0 ? text : text.substring(0, plus);
      boolean isPreset = DiffusionPresets.names().contains(first.strip());
      String rest = isPreset ? text.substring(first.length()) : text.isBlank() ? "" : "+" + text;
      text = (isPreset ? first : "reference") + "+block(tokens=" + block + ")" + rest;
    }
    DiffusionOptions parsed = DiffusionTechnique.parse(text, facts, length(arguments));
    if (arguments.has("temp")) {
      parsed = parsed.withTemperature(options.sampling().temperature());
    }
    if (parsed.seed() == 0) {
      parsed = parsed.withSeed(options.sampling().seed());
    }
    GenerationOptions out = options.withDiffusion(parsed);
    if (parsed.search() instanceof Search.Guided) {
      if (guide == null) {
        throw new UsageException("technique " + technique + " needs --guide");
      }
      return out.withGuide(guide);
    }
    return out;
  }
}
