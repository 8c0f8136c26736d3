package io.fletch.tools;

import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Routing;
import io.fletch.sampling.TokenRouter;
import io.fletch.sampling.TokenRouting;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.apache.commons.cli.Option;

/** The options of token routing: a small model in front of the model. */
final class RoutingFlags {
  /** Thresholds as published (specs/autoregressive.md 4). */
  private static final double ENTROPY = 0.45;

  private static final double LOGU = 2.275;
  private static final String DEMO = "demo-router.arrow";
  private static final List<String> UNTRAINED = List.of("entropy", "logu", "entropy+logu");

  private RoutingFlags() {}

  static Command.Section section() {
    List<Option> options =
        new ArrayList<>(
            List.of(
                Command.value(
                    "small",
                    "F",
                    "a small model that proposes every token; a file or a demo model"),
                Command.value(
                    "router",
                    "R",
                    "what sends a token to the large model: a file of fletch calibrate r2r, a"
                        + " network as safetensors, entropy, logu, or entropy+logu for both at once"
                        + " (default: demo for the demo models, else entropy)"),
                Command.value(
                    "router-threshold",
                    "X",
                    "score from which it does; 0 for always (default: the router's own)"),
                Command.value(
                    "router-hold",
                    "N",
                    "after such a token the large model goes on until the mean of the last N"
                        + " scores is below the threshold (default: 0, every token by itself)")));
    options.addAll(smallOptions());
    return new Command.Section("Token routing (R2R)", options);
  }

  /** How the small model runs, where that is not as the large one does. */
  static List<Option> smallOptions() {
    return List.of(
        Command.value(
            "small-device", "D", "device of the small model: cpu, gpu or auto (default: --device)"),
        Command.value("small-threads", "N", "threads of the small model (default: --threads)"),
        Command.value("small-kv", "TYPE", "its KV cache: f16, f32 or q8_0 (default: --kv)"));
  }

  /** Opens the small model; null (which closes as nothing) if none was given. */
  static Model openSmall(Arguments arguments, Io io) {
    if (!arguments.has("small")) {
      for (String option :
          List.of(
              "router",
              "router-threshold",
              "router-hold",
              "small-device",
              "small-threads",
              "small-kv")) {
        if (arguments.has(option)) {
          throw new UsageException("--" + option + " needs --small");
        }
      }
      return null;
    }
    return openRequired(arguments);
  }

  /** Opens the small model, which must be given. */
  static Model openRequired(Arguments arguments) {
    ModelOptions options = ModelFlags.othersOptions(arguments);
    if (arguments.has("small-device")) {
      ModelOptions.Backend device = arguments.choice("small-device", options.backend());
      if (device == ModelOptions.Backend.REFERENCE) {
        throw new UsageException("--small-device: expected=cpu, gpu or auto actual=reference");
      }
      options = options.withBackend(device);
    }
    options =
        options
            .withThreads(arguments.integer("small-threads", options.threads(), 0, 1024))
            .withKvType(arguments.choice("small-kv", options.kvType()));
    return ModelFlags.openNamed(arguments.required("small"), options);
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
          case String name when isUntrained(name) -> untrained(name, small);
          case "demo" -> Routing.load(DemoFiles.path(DEMO), small, model);
          case String file -> Routing.load(Path.of(file), small, model);
        };
    if (arguments.has("router-threshold")) {
      routing =
          routing.withThreshold(
              arguments.real(
                  "router-threshold", (float) routing.threshold(), 0, Float.POSITIVE_INFINITY));
    }
    return held(arguments, routing);
  }

  /** With the memory of scores that was asked for. */
  static Routing held(Arguments arguments, Routing routing) {
    return routing.withHold(arguments.integer("router-hold", 0, 0, TokenRouting.MOST_HOLD));
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
    return !isUntrained(router(arguments));
  }

  /** Whether a name is that of a router without training. */
  static boolean isUntrained(String name) {
    return UNTRAINED.contains(name);
  }

  /**
   * A router without training at its published threshold; of both, 1 is where both reach theirs.
   */
  static Routing untrained(String name, Model small) {
    return switch (name) {
      case "entropy" -> new Routing(small, TokenRouter.entropy(), ENTROPY);
      case "logu" -> new Routing(small, TokenRouter.logU(), LOGU);
      default -> {
        List<TokenRouter> both = List.of(TokenRouter.entropy(), TokenRouter.logU());
        yield new Routing(small, TokenRouter.all(both, ENTROPY, LOGU), 1);
      }
    };
  }
}
