package io.fletch.tools;

import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.Routing;
import io.fletch.sampling.TokenRouter;
import java.nio.file.Path;
import java.util.List;

/** The options of token routing: a small model in front of the model. */
final class RoutingFlags {
  /** Thresholds as published (specs/autoregressive.md 4). */
  private static final double ENTROPY = 0.45;

  private static final double LOGU = 2.275;
  private static final String DEMO = "demo-router.arrow";

  private RoutingFlags() {}

  static Command.Section section() {
    return new Command.Section(
        "Token routing (R2R)",
        List.of(
            Command.value(
                "small", "F", "a small model that proposes every token; a file or a demo model"),
            Command.value(
                "router",
                "R",
                "what sends a token to the large model: a file of fletch calibrate r2r, entropy or"
                    + " logu (default: demo for the demo models, else entropy)"),
            Command.value(
                "router-threshold",
                "X",
                "score from which it does; 0 for always (default: the router's own)")));
  }

  /** Opens the small model; null (which closes as nothing) if none was given. */
  static Model openSmall(Arguments arguments, Io io) {
    if (!arguments.has("small")) {
      for (String option : List.of("router", "router-threshold")) {
        if (arguments.has(option)) {
          throw new UsageException("--" + option + " needs --small");
        }
      }
      return null;
    }
    return ModelFlags.openNamed(arguments.required("small"), arguments);
  }

  /** What the section adds to the options. */
  static GenerationOptions apply(
      Arguments arguments, Model model, Model small, GenerationOptions options) {
    Routing routing = routing(arguments, model, small);
    return routing == null ? options : options.withRouting(routing);
  }

  /** What the section asks for; null without a small model. */
  static Routing routing(Arguments arguments, Model model, Model small) {
    if (small == null) {
      return null;
    }
    Routing routing =
        switch (router(arguments)) {
          case "entropy", "logu" -> untrained(router(arguments), small);
          case "demo" -> Routing.load(DemoFiles.path(DEMO), small, model);
          case String file -> Routing.load(Path.of(file), small, model);
        };
    if (arguments.has("router-threshold")) {
      routing =
          routing.withThreshold(
              arguments.real(
                  "router-threshold", (float) routing.threshold(), 0, Float.POSITIVE_INFINITY));
    }
    return routing;
  }

  /** What was asked for, or what the pair of models suggests. */
  private static String router(Arguments arguments) {
    boolean demo =
        ModelFlags.name(arguments).equals("demo")
            && arguments.required("small").equals("demo-small");
    return arguments.string("router").orElse(demo ? "demo" : "entropy");
  }

  /** Whether the router is one that was trained. */
  static boolean trained(Arguments arguments) {
    return !List.of("entropy", "logu").contains(router(arguments));
  }

  /** A router without training at its published threshold. */
  static Routing untrained(String name, Model small) {
    return name.equals("entropy")
        ? new Routing(small, TokenRouter.entropy(), ENTROPY)
        : new Routing(small, TokenRouter.logU(), LOGU);
  }
}
