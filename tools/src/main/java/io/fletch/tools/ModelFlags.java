package io.fletch.tools;

import io.fletch.Adapter;
import io.fletch.Model;
import io.fletch.ModelOptions;
import java.nio.file.Path;
import java.util.List;
import java.util.Set;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Function;

/** The options that say which model is opened, and how. */
final class ModelFlags {
  private static final Set<String> DEMOS = Set.of("demo", "demo-small", "demo-diffusion");
  private static final String DEFAULT = "demo";

  private ModelFlags() {}

  /** {@code --model} alone, for commands that read a file and run nothing. */
  static Command.Section fileSection() {
    return new Command.Section("Model", List.of(modelOption()));
  }

  /** All of them. */
  static Command.Section section() {
    return new Command.Section(
        "Model",
        List.of(
            modelOption(),
            Command.value(
                "t",
                "threads",
                "N",
                "worker threads (default: one per physical core; 0 means the default)"),
            Command.value("backend", "NAME", "cpu (default) or reference (plain Java, slow)"),
            Command.value(
                "device",
                "NAME",
                "cpu (default), gpu, or auto (the GPU if the model can run on one, else the CPU)"),
            Command.value(
                "gpu-layers",
                "N",
                "most layers, the last ones, on the GPU, the others on the CPU: a number, all, or"
                    + " auto (default: all if the GPU has the memory, else as many as fit)"),
            Command.value(
                "kernels",
                "NAME",
                "auto (default: the fastest that works here), scalar, vector (Vector API) or native"
                    + " (emitted machine code)"),
            Command.value(
                "weights",
                "NAME",
                "auto (default), mapped (as in the file, instant start) or packed (repacked for"
                    + " speed)"),
            Command.value(
                "pack-cache",
                "WHERE",
                "on (default: packed weights are kept beside the model or in the user's cache"
                    + " folder), off or a folder"),
            Command.flag(
                "verify-pack-cache",
                "verify every byte of kept packed weights before use, not beside the first tokens"),
            Command.value(
                "huge-pages",
                "on|off",
                "copy weights of files to huge pages beside the first tokens, where memory is"
                    + " plenty (default: on)"),
            Command.value(
                "pin",
                "on|off",
                "bind worker threads to a core each, for a machine that runs nothing else (default:"
                    + " off)"),
            Command.value(
                "lora",
                "FILE[=SCALE]",
                "low-rank adapter that is added to the matrices: a PEFT folder or a GGUF adapter;"
                    + " may be given several times"),
            Command.value("kv", "TYPE", "element type of the KV cache: f16 (default), f32, q8_0"),
            Command.value(
                "ctx", "N", "context length in tokens (default: the model's own, at most 4096)")));
  }

  private static org.apache.commons.cli.Option modelOption() {
    return Command.value(
        "m",
        "model",
        "F",
        "a GGUF file, a safetensors file or folder, or demo (default), demo-small, demo-diffusion");
  }

  /** What {@code --model} names. */
  static String name(Arguments arguments) {
    return arguments.string("model").orElse(DEFAULT);
  }

  /** Whether a name is that of an embedded model. A file of that name is {@code ./demo}. */
  static boolean isDemo(String name) {
    return DEMOS.contains(name);
  }

  /** The file or folder of the model of the command line. */
  static Path path(Arguments arguments) {
    String name = name(arguments);
    return isDemo(name) ? Model.demoFile(name) : Path.of(name);
  }

  /** The options of the model section. */
  static ModelOptions options(Arguments arguments) {
    ModelOptions defaults = ModelOptions.defaults();
    return defaults
        .withThreads(arguments.integer("threads", defaults.threads(), 0, 1024))
        .withBackend(backend(arguments, defaults))
        .withGpuLayers(gpuLayers(arguments))
        .withKernels(arguments.choice("kernels", defaults.kernels()))
        .withWeights(arguments.choice("weights", defaults.weights()))
        .withPackCache(packCache(arguments))
        .withUnits(UnitFlags.policies(arguments))
        .withAdapters(arguments.strings("lora").stream().map(ModelFlags::adapter).toList())
        .withCpu(
            defaults
                .cpu()
                .withHugePages(onOff(arguments, "huge-pages", defaults.cpu().hugePages()))
                .withPinned(onOff(arguments, "pin", defaults.cpu().pinned())))
        .withKvType(arguments.choice("kv", defaults.kvType()))
        .withContextLength(
            arguments.integer("ctx", defaults.contextLength(), 0, Integer.MAX_VALUE));
  }

  /** {@code FILE} or {@code FILE=SCALE}; a file whose own name ends so needs the scale as well. */
  static ModelOptions.Adapter adapter(String text) {
    int at = text.lastIndexOf('=');
    String file = at < 0 ? text : text.substring(0, at);
    float scale = Float.NaN;
    try {
      scale = at < 0 ? 1 : Float.parseFloat(text.substring(at + 1));
    } catch (NumberFormatException _) {
      // Refused below.
    }
    if (file.isBlank() || !Float.isFinite(scale)) {
      throw new UsageException("--lora: expected=FILE or FILE=NUMBER actual=" + text);
    }
    return new ModelOptions.Adapter(Path.of(file), scale);
  }

  private static int gpuLayers(Arguments arguments) {
    if (!arguments.has("gpu-layers")) {
      return ModelOptions.AS_MANY_AS_FIT;
    }
    ModelOptions.Backend device = backend(arguments, ModelOptions.defaults());
    if (device != ModelOptions.Backend.GPU && device != ModelOptions.Backend.AUTO) {
      throw new UsageException("--gpu-layers needs --device gpu or auto");
    }
    return switch (arguments.required("gpu-layers")) {
      case "auto" -> ModelOptions.AS_MANY_AS_FIT;
      case "all" -> Integer.MAX_VALUE;
      default -> arguments.integer("gpu-layers", 1, 1, Integer.MAX_VALUE);
    };
  }

  private static ModelOptions.Backend backend(Arguments arguments, ModelOptions defaults) {
    if (!arguments.has("device")) {
      return arguments.choice("backend", defaults.backend());
    }
    if (arguments.has("backend")) {
      throw new UsageException("--device and --backend exclude each other");
    }
    ModelOptions.Backend device = arguments.choice("device", defaults.backend());
    if (device == ModelOptions.Backend.REFERENCE) {
      throw new UsageException("--device: expected=cpu, gpu or auto actual=reference");
    }
    return device;
  }

  /** Opens the model of the command line. */
  static Model open(Arguments arguments, Io io) {
    return open(arguments, io, options(arguments));
  }

  /** Opens the model of the command line with options that the command has changed. */
  static Model open(Arguments arguments, Io io, ModelOptions options) {
    String name = name(arguments);
    return load(
        arguments,
        io,
        options,
        heard -> isDemo(name) ? Model.demo(name, heard) : Model.open(Path.of(name), heard),
        Model::name);
  }

  /** Opens what the command line names, with a progress line. */
  static <T> T load(
      Arguments arguments,
      Io io,
      ModelOptions options,
      Function<ModelOptions, T> open,
      Function<T, String> nameOf) {
    String name = name(arguments);
    long start = System.nanoTime();
    T model;
    AtomicInteger percent = new AtomicInteger();
    ModelOptions heard =
        options.withProgress((done, total) -> percent.set((int) (100 * done / Math.max(1, total))));
    try (Progress _ =
        arguments.has("verbose")
            ? Progress.silent()
            : Progress.show(io, () -> loading(name, percent.get()))) {
      VectorModule.load(options);
      model = open.apply(heard);
    }
    if (arguments.has("verbose")) {
      io.note(
          Texts.format(
              "fletch: %s loaded in %.0f ms",
              nameOf.apply(model), (System.nanoTime() - start) / 1e6));
    }
    return model;
  }

  /**
   * Opens the model of the command line without its adapters, which sessions get with {@link
   * #attach}; with them where units may rest, whose policies must know them.
   */
  static Model openPlain(Arguments arguments, Io io, ModelOptions options) {
    return open(arguments, io, atOpen(options) ? options : options.withAdapters(List.of()));
  }

  private static boolean atOpen(ModelOptions options) {
    return !options.units().isEmpty();
  }

  /** Registers the adapters of the command line with a model that {@link #openPlain} has opened. */
  static List<Adapter.Scaled> attach(Model model, ModelOptions options) {
    return atOpen(options)
        ? List.of()
        : options.adapters().stream().map(a -> model.adapter(a.path()).scaled(a.scale())).toList();
  }

  /** Opens another model, a file or a demo model, with the same options but the adapters. */
  static Model openNamed(String name, Arguments arguments) {
    return openNamed(name, othersOptions(arguments));
  }

  /** The options that another model than that of {@code --model} has. */
  static ModelOptions othersOptions(Arguments arguments) {
    return options(arguments).withUnits(List.of()).withAdapters(List.of());
  }

  /** Opens a model, a file or a demo model. */
  static Model openNamed(String name, ModelOptions options) {
    return isDemo(name) ? Model.demo(name, options) : Model.open(Path.of(name), options);
  }

  private static String loading(String name, int percent) {
    return "loading " + name + (percent == 0 ? "" : ", weights " + percent + " %");
  }

  private static boolean onOff(Arguments arguments, String name, boolean otherwise) {
    return switch (arguments.string(name).orElse(otherwise ? "on" : "off")) {
      case "on" -> true;
      case "off" -> false;
      case String value ->
          throw new UsageException("--" + name + ": expected=on|off actual=" + value);
    };
  }

  private static ModelOptions.PackCache packCache(Arguments arguments) {
    ModelOptions.PackCache where =
        switch (arguments.string("pack-cache").orElse("on")) {
          case "on" -> ModelOptions.PackCache.on();
          case "off" -> ModelOptions.PackCache.off();
          case String folder when folder.isBlank() ->
              throw new UsageException("--pack-cache: expected=on|off|FOLDER actual=nothing");
          case String folder -> ModelOptions.PackCache.in(Path.of(folder));
        };
    return arguments.has("verify-pack-cache") ? where.verified() : where;
  }
}
