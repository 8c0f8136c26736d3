package io.fletch.tools;

import io.fletch.FfnSkip;
import io.fletch.UnitDrop;
import io.fletch.UnitForecasts;
import io.fletch.UnitPolicy;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** The options of techniques that let attention and feed-forward units rest. */
final class UnitFlags {
  private static final String DEMO_SKIP = "demo-skip.arrow";
  private static final String DEMO_LFF = "demo-lff.arrow";

  private UnitFlags() {}

  static Command.Section section() {
    return new Command.Section(
        "Units that rest",
        List.of(
            Command.value(
                "ffn-skip",
                "FILE",
                "let feed-forward units rest for similar tokens: a file of fletch calibrate"
                    + " ffn-skip, or demo"),
            Command.value("skip-threshold", "X", "cosine from which they do (default: the file's)"),
            Command.value(
                "skip-run",
                "N",
                "units until the next look; 0 for the region (default: the file's)"),
            Command.value("skip-budget", "N", "most units per token (default: the file's)"),
            Command.value(
                "skip-warm-up", "N", "generated tokens before the first (default: the file's)"),
            Command.value(
                "lff",
                "FILE",
                "forecast units instead of running them where a router thinks it can be made good:"
                    + " a file of fletch calibrate lff, a safetensors file of the published shapes,"
                    + " or demo"),
            Command.value(
                "lff-threshold", "X", "score below which a unit does not run (default: 0)"),
            Command.flag("lff-skip", "add nothing in its place, instead of a forecast"),
            Command.flag("lff-decode", "leave prompts alone"),
            Command.value(
                "drop-ffn",
                "LAYERS",
                "feed-forward units that always rest, or at random with @SHARE: 2,3 or 0-7@0.25"),
            Command.value("drop-seed", "N", "seed of the draws (default: 0)")));
  }

  /** What the section asks for. */
  static List<UnitPolicy> policies(Arguments arguments) {
    List<UnitPolicy> all = new ArrayList<>();
    if (arguments.has("ffn-skip")) {
      all.add(skip(arguments));
    } else {
      needs(
          arguments,
          "ffn-skip",
          List.of("skip-threshold", "skip-run", "skip-budget", "skip-warm-up"));
    }
    if (arguments.has("lff")) {
      all.add(forecasts(arguments));
    } else {
      needs(arguments, "lff", List.of("lff-threshold", "lff-skip", "lff-decode"));
    }
    if (arguments.has("drop-ffn")) {
      all.add(drop(arguments));
    } else {
      needs(arguments, "drop-ffn", List.of("drop-seed"));
    }
    return all;
  }

  private static void needs(Arguments arguments, String option, List<String> others) {
    for (String other : others) {
      if (arguments.has(other)) {
        throw new UsageException("--" + other + " needs --" + option);
      }
    }
  }

  private static FfnSkip skip(Arguments arguments) {
    FfnSkip s = FfnSkip.load(file(arguments.required("ffn-skip"), DEMO_SKIP));
    float inf = Float.POSITIVE_INFINITY;
    return s.withThreshold(arguments.real("skip-threshold", s.threshold(), -inf, inf))
        .withRun(arguments.integer("skip-run", s.run(), 0, Integer.MAX_VALUE))
        .withBudget(arguments.integer("skip-budget", s.budget(), 0, Integer.MAX_VALUE))
        .withWarmUp(arguments.integer("skip-warm-up", s.warmUp(), 0, Integer.MAX_VALUE));
  }

  private static UnitForecasts forecasts(Arguments arguments) {
    float inf = Float.POSITIVE_INFINITY;
    return UnitForecasts.of(file(arguments.required("lff"), DEMO_LFF))
        .withThreshold(arguments.real("lff-threshold", 0, -inf, inf))
        .withApproximate(!arguments.has("lff-skip"))
        .withPrompts(!arguments.has("lff-decode"));
  }

  private static UnitDrop drop(Arguments arguments) {
    int seed = arguments.integer("drop-seed", 0, Integer.MIN_VALUE, Integer.MAX_VALUE);
    return drop(arguments.required("drop-ffn"), seed, "--drop-ffn");
  }

  /**
   * Feed-forward units by their layers.
   *
   * @param text layers like {@code 2,3} or {@code 0-7@0.25}
   * @param option where it was given, for the message
   */
  static UnitDrop drop(String text, int seed, String option) {
    String[] parts = text.split("@", 2);
    List<Integer> layers = new ArrayList<>();
    double share = 1;
    try {
      for (String range : parts[0].split(",")) {
        String[] ends = range.split("-", 2);
        int from = Integer.parseInt(ends[0].strip());
        int to = ends.length == 1 ? from : Integer.parseInt(ends[1].strip());
        for (int l = from; l <= to && layers.size() <= 1 << 16; l++) {
          layers.add(l);
        }
      }
      share = parts.length == 1 ? 1 : Double.parseDouble(parts[1]);
      if (layers.isEmpty() || !(share >= 0 && share <= 1)) {
        throw new NumberFormatException();
      }
    } catch (NumberFormatException _) {
      throw new UsageException(option + ": expected=layers like 2,3 or 0-7@0.25 actual=" + text);
    }
    return new UnitDrop(layers, UnitDrop.Unit.FFN, share, seed, false);
  }

  /** A file, or the one that comes with the demo model. */
  private static Path file(String name, String resource) {
    return name.equals("demo") ? DemoFiles.path(resource) : Path.of(name);
  }
}
