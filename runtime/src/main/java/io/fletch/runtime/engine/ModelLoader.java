package io.fletch.runtime.engine;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.FletchException;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Tokenizer;
import io.fletch.ffm.ExecutableMemory;
import io.fletch.ffm.NativeAccess;
import io.fletch.ffm.NativeException;
import io.fletch.ffm.Threads;
import io.fletch.ffm.device.CudaContext;
import io.fletch.ffm.device.CudaDevices;
import io.fletch.graph.Backend;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.SplitBackend;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.graph.cpu.KernelSets;
import io.fletch.graph.cpu.Kernels;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.quant.Metadata;
import io.fletch.quant.QuantizedCheckpoint;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import io.fletch.quant.WeightFileException;
import io.fletch.runtime.arch.AdapterFile;
import io.fletch.runtime.arch.HyperParameters;
import io.fletch.runtime.arch.ModelGraph;
import io.fletch.runtime.arch.WeightTensors;
import io.fletch.runtime.tokenizer.Tokenizers;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;

/**
 * Opens models: file, hyper-parameters, tokenizer, graph, executable, in this order, so that what
 * is cheap to check fails first. Stateless.
 */
public final class ModelLoader {
  private static final Logger LOG = System.getLogger("io.fletch");

  /** Canvases of a diffusion model that one forward holds, as long as they are small. */
  private static final int CANVASES = 8;

  /** Most rows that more than one canvas makes room for. */
  private static final int CANVAS_ROWS = 2048;

  /** Context of sessions unless asked otherwise. */
  static final int DEFAULT_CONTEXT = 4096;

  private ModelLoader() {}

  /** Opens an embedded demo model. */
  public static Model demo(String name, ModelOptions options) {
    return open(DemoModels.file(name), name, options);
  }

  /** The file of a demo model, extracted if it is not there yet. */
  public static Path demoFile(String name) {
    return DemoModels.file(name);
  }

  /** Opens the tokenizer of a file or folder alone; a file without tensors will do. */
  public static Tokenizer tokenizer(Path path) {
    try (WeightFile file = WeightFile.open(path)) {
      return tokenizer(file, path);
    } catch (WeightFileException | FletchException e) {
      throw failure(path, e);
    }
  }

  /** Names the file, unless the message does (perhaps a shard, or a file of the folder). */
  static FletchException failure(Path path, RuntimeException e) {
    String message = String.valueOf(e.getMessage());
    return new FletchException(
        message.startsWith(path.toString()) ? message : path + ": " + message, e);
  }

  /** Opens a file or folder. */
  public static Model open(Path path, ModelOptions options) {
    Objects.requireNonNull(options, "options");
    Path file = path.toAbsolutePath().normalize().getFileName();
    return open(path, file == null ? path.toString() : file.toString(), options);
  }

  /** The event of a model that is being opened; null without a recorder. */
  static ModelLoadEvent begunEvent() {
    ModelLoadEvent event = RecordedExecutable.isRecorded() ? new ModelLoadEvent() : null;
    if (event != null) {
      event.begin();
    }
    return event;
  }

  /** Commits the event of an opened model; does nothing with null. */
  static void commit(
      ModelLoadEvent event, Path path, String architecture, long weightBytes, String backend) {
    if (event != null) {
      event.path = path.toString();
      event.architecture = architecture;
      event.weightBytes = weightBytes;
      event.backend = backend;
      event.commit();
    }
  }

  private static Model open(Path path, String name, ModelOptions options) {
    ModelLoadEvent event = begunEvent();
    try {
      WeightFile file = WeightFile.open(path);
      TensorStore derived = TensorStore.create();
      try {
        LoadedModel model = load(file, derived, path, name, options);
        commit(
            event,
            path,
            model.info().architecture(),
            model.info().weightBytes(),
            model.backendDescription());
        LOG.log(level(options), () -> model.name() + ": " + model.backendDescription());
        return model;
      } catch (RuntimeException | Error e) {
        derived.close();
        file.close();
        throw e;
      }
    } catch (WeightFileException | GraphException | FletchException e) {
      throw failure(path, e);
    }
  }

  /**
   * A warning where machine code would make the model faster and a flag is missing or the host
   * refuses it: the description says which. Slower kernels that were asked for are no surprise.
   */
  static Level level(ModelOptions options) {
    boolean wantsMachineCode =
        options.backend() == ModelOptions.Backend.CPU
            && options.kernels() == ModelOptions.Kernels.AUTO;
    boolean missing = !NativeAccess.granted() || ExecutableMemory.refused();
    return wantsMachineCode && missing ? Level.WARNING : Level.INFO;
  }

  /**
   * The tensors of a file, unpacked where its format needs that, with the adapters of the options.
   */
  static WeightTensors weights(
      WeightFile file, TensorStore derived, HyperParameters declared, ModelOptions options) {
    WeightTensors weights =
        WeightTensors.of(
            file.format(),
            QuantizedCheckpoint.tensors(file, derived),
            declared.architecture(),
            derived);
    weights.adapt(
        options.adapters().stream()
            .map(a -> AdapterFile.open(a.path(), a.scale(), derived, file.format(), declared))
            .toList());
    return weights;
  }

  /**
   * Reads the tokenizer on a thread of its own meanwhile: a vocabulary of 128k tokens takes as long
   * as the graph and its kernels.
   */
  private static LoadedModel load(
      WeightFile file, TensorStore derived, Path path, String name, ModelOptions options) {
    FutureTask<Tokenizer> tokenizer = new FutureTask<>(() -> tokenizer(file, path));
    Thread reader = Thread.ofPlatform().daemon(true).name("fletch-tokenizer").start(tokenizer);
    try {
      return load(file, derived, path, name, options, tokenizer);
    } finally {
      // The file may be closed next, and the reader must not outlive its mapping.
      Threads.join(reader);
    }
  }

  /** The tokenizer, or what its reader failed with. */
  private static Tokenizer result(FutureTask<Tokenizer> task) {
    boolean interrupted = false;
    try {
      while (true) {
        try {
          return task.get();
        } catch (InterruptedException e) {
          interrupted = true;
        } catch (ExecutionException e) {
          switch (e.getCause()) {
            case RuntimeException x -> throw x;
            case Error x -> throw x;
            default -> throw new AssertionError("reading a tokenizer declares nothing", e);
          }
        }
      }
    } finally {
      if (interrupted) {
        Thread.currentThread().interrupt();
      }
    }
  }

  private static LoadedModel load(
      WeightFile file,
      TensorStore derived,
      Path path,
      String name,
      ModelOptions options,
      FutureTask<Tokenizer> tokenizerTask) {
    Metadata metadata = file.metadata();
    HyperParameters declared = HyperParameters.read(file.format(), metadata);
    WeightTensors weights = weights(file, derived, declared, options);
    HyperParameters hp = weights.fit(declared);
    int context = context(hp, options, name);
    Graph plain = ModelGraph.build(hp, weights, context, name);
    if (hp.diffusion() && !options.units().isEmpty()) {
      throw new FletchException("a diffusion model runs all units: " + options.units());
    }
    String identity =
        options.units().isEmpty()
            ? ""
            : HexFormat.of()
                .formatHex(LoadedModel.identity(hp.architecture().id(), file, options.adapters()));
    UnitTechniques units = UnitTechniques.of(plain, options.units(), identity);
    try {
      return load(file, derived, path, name, options, tokenizerTask, hp, weights, context, units);
    } catch (RuntimeException | Error e) {
      units.close();
      throw e;
    }
  }

  private static LoadedModel load(
      WeightFile file,
      TensorStore derived,
      Path path,
      String name,
      ModelOptions options,
      FutureTask<Tokenizer> tokenizerTask,
      HyperParameters hp,
      WeightTensors weights,
      int context,
      UnitTechniques units) {
    Graph graph = units.graph();
    // Rows that see each other must be in one forward: a diffusion canvas is not cut into chunks.
    // Several canvases run side by side where a technique drafts or keeps a beam.
    int rows =
        hp.diffusion()
            ? Math.max(context, Math.min(CANVASES * context, CANVAS_ROWS))
            : Math.min(context, options.prefillChunk());
    Executable executable = compile(graph, rows, options.withContextLength(context), file);
    try {
      Tokenizer tokenizer = result(tokenizerTask);
      checkRows(tokenizer, hp);
      // What was packed is read from its packed copy from now on.
      file.dropPages();
      Model.Info info =
          new Model.Info(
              hp.architecture().id(),
              hp.diffusion() ? "diffusion" : "autoregressive",
              context,
              hp.vocabulary(),
              hp.blocks().size(),
              hp.embeddingLength(),
              weights.elements(),
              weights.bytes(),
              executable.plans().getFirst().weightBytes(),
              weights.mainType().name());
      return new LoadedModel(
          name,
          info,
          file,
          derived,
          hp,
          executable,
          tokenizer,
          template(file, path),
          units,
          options);
    } catch (RuntimeException | Error e) {
      executable.close();
      throw e;
    }
  }

  /** Tokens of a session: what was asked for, but no more than the model was made for. */
  static int context(HyperParameters hp, ModelOptions options, String name) {
    int wanted = options.contextLength() == 0 ? DEFAULT_CONTEXT : options.contextLength();
    int context = Math.min(hp.contextLength(), wanted);
    if (context < options.contextLength()) {
      LOG.log(
          Level.WARNING,
          () ->
              name
                  + ": the context is that of the model: asked for="
                  + options.contextLength()
                  + " tokens="
                  + context);
    }
    return context;
  }

  /** A tokenizer must not give ids that the embedding has no rows for. */
  static void checkRows(Tokenizer tokenizer, HyperParameters hp) {
    if (tokenizer.vocabularySize() > hp.vocabulary()) {
      throw new FletchException(
          "the tokenizer has more tokens than the embedding has rows: tokens="
              + tokenizer.vocabularySize()
              + " rows="
              + hp.vocabulary());
    }
  }

  static Tokenizer tokenizer(WeightFile file, Path path) {
    return switch (file.format()) {
      case GGUF, ARROW -> Tokenizers.fromGguf(file.metadata());
      case SAFETENSORS -> Tokenizers.fromFolder(folder(path));
    };
  }

  static Executable compile(Graph graph, int rows, ModelOptions options, WeightFile file) {
    return new RecordedExecutable(compileUnrecorded(graph, rows, options, file));
  }

  private static Executable compileUnrecorded(
      Graph graph, int rows, ModelOptions options, WeightFile file) {
    return switch (options.backend()) {
      case CPU, REFERENCE -> backend(options, file).compile(graph, rows);
      case GPU -> {
        try {
          yield gpu(graph, rows, options, file);
        } catch (NativeException e) {
          throw new FletchException(e.getMessage(), e);
        }
      }
      case AUTO -> {
        try {
          yield gpu(graph, rows, options, file);
        } catch (GraphException | NativeException e) {
          LOG.log(Level.WARNING, () -> "runs on the CPU: " + e.getMessage());
          yield backend(options.withBackend(ModelOptions.Backend.CPU), file).compile(graph, rows);
        }
      }
    };
  }

  /**
   * On the first GPU, or its last layers there and the others on the CPU. A {@link NativeException}
   * says why there is no GPU.
   */
  private static Executable gpu(Graph graph, int rows, ModelOptions options, WeightFile file) {
    CudaDevices found = CudaDevices.find();
    CudaBackend gpu =
        new CudaBackend(found.first(), options.progress()::prepared)
            .withModules(PackCaches.modules(options, file, found.driverVersion()));
    // Held until there is an executable: a context that nobody holds is torn down and built again.
    CudaContext held = CudaContext.open(found.first());
    Executable made = null;
    try {
      made = gpu(graph, rows, options, file, gpu);
    } finally {
      try {
        CudaBackend.close(held);
      } catch (NativeException e) {
        if (made != null) {
          made.close();
        }
        throw e;
      }
    }
    return made;
  }

  private static Executable gpu(
      Graph graph, int rows, ModelOptions options, WeightFile file, CudaBackend gpu) {
    int layers = graph.kvLayers().size();
    int there = Offload.layers(graph, rows, options, gpu);
    if (there == layers) {
      return gpu.compile(graph, rows);
    }
    ModelOptions cpu =
        options.withBackend(ModelOptions.Backend.CPU).withProgress(ModelOptions.LoadProgress.NONE);
    if (options.gpuLayers() == ModelOptions.AS_MANY_AS_FIT) {
      // How many fit differs from start to start, and each number has a file of its own.
      cpu = cpu.withPackCache(ModelOptions.PackCache.off());
    }
    return new SplitBackend(backend(cpu, file), gpu, layers - there).compile(graph, rows);
  }

  private static Backend backend(ModelOptions options, WeightFile file) {
    return switch (options.backend()) {
      case REFERENCE -> new ReferenceBackend();
      case GPU, AUTO -> throw new IllegalArgumentException("a GPU is asked for its memory first");
      case CPU -> {
        CpuBackend.Options cpu =
            CpuBackend.Options.defaults()
                .withThreads(options.threads())
                .withLayout(CpuBackend.Layout.valueOf(options.weights().name()))
                .withProgress(options.progress()::prepared)
                .withPacked(file::dropPages)
                .withHugePages(options.cpu().hugePages())
                .withWorkers(workers(options.cpu()));
        CpuBackend.Options cached =
            options.packCache().enabled() ? cpu.withCache(PackCaches.of(options, file)) : cpu;
        yield new CpuBackend(kernels(options.kernels()).map(cached::withKernels).orElse(cached));
      }
    };
  }

  private static CpuBackend.Workers workers(ModelOptions.Cpu cpu) {
    CpuBackend.Workers made = CpuBackend.Workers.defaults();
    return new CpuBackend.Workers(cpu.workers().orElse(made.factory()), cpu.pinned());
  }

  /** The kernel set that was asked for, or an error: a slower one is never taken instead. */
  private static Optional<Kernels> kernels(ModelOptions.Kernels wanted) {
    return switch (wanted) {
      case AUTO -> Optional.empty();
      case SCALAR -> Optional.of(KernelSets.scalar());
      case VECTOR ->
          Optional.of(
              KernelSets.vector()
                  .orElseThrow(() ->
                      new FletchException(
                          "kernels=VECTOR cannot run here: start Java with --add-modules"
                              + " jdk.incubator.vector")));
      case NATIVE ->
          Optional.of(
              KernelSets.machineCode()
                  .orElseThrow(() ->
                      new FletchException(
                          "kernels=NATIVE cannot run here: " + KernelSets.best().reason())));
    };
  }

  static Path folder(Path path) {
    return Files.isDirectory(path)
        ? path
        : Objects.requireNonNullElse(path.toAbsolutePath().getParent(), path);
  }

  private static Optional<String> template(WeightFile file, Path path) {
    return switch (file.format()) {
      case GGUF, ARROW -> file.metadata().string("tokenizer.chat_template");
      case SAFETENSORS -> folderTemplate(folder(path));
    };
  }

  /** {@code chat_template.jinja}, or the {@code chat_template} of {@code tokenizer_config.json}. */
  private static Optional<String> folderTemplate(Path folder) {
    try {
      Path jinja = folder.resolve("chat_template.jinja");
      if (Files.isRegularFile(jinja)) {
        return Optional.of(Files.readString(jinja));
      }
      Path config = folder.resolve("tokenizer_config.json");
      if (!Files.isRegularFile(config)) {
        return Optional.empty();
      }
      Object value = JSON.std.mapFrom(config.toFile()).get("chat_template");
      return switch (value) {
        case null -> Optional.empty();
        case String s -> Optional.of(s);
        case List<?> named -> Optional.of(defaultTemplate(named));
        default ->
            throw new FletchException(
                "tokenizer_config.json chat_template: expected=text or list actual="
                    + value.getClass().getSimpleName());
      };
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private static String defaultTemplate(List<?> named) {
    for (Object entry : named) {
      if (entry instanceof Map<?, ?> map
          && "default".equals(map.get("name"))
          && map.get("template") instanceof String text) {
        return text;
      }
    }
    throw new FletchException(
        "tokenizer_config.json chat_template: a list without an entry named \"default\"");
  }
}
