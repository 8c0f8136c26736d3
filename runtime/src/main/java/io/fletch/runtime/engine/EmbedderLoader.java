package io.fletch.runtime.engine;

import io.fletch.Embedder;
import io.fletch.EmbedderOptions;
import io.fletch.FletchException;
import io.fletch.ModelOptions;
import io.fletch.Pooling;
import io.fletch.Tokenizer;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import io.fletch.quant.WeightFileException;
import io.fletch.runtime.arch.HyperParameters;
import io.fletch.runtime.arch.ModelGraph;
import io.fletch.runtime.arch.WeightTensors;
import java.lang.System.Logger;
import java.nio.file.Path;
import java.util.Objects;
import java.util.Optional;

/** Opens embedding models, as {@link ModelLoader} opens others. Stateless. */
public final class EmbedderLoader {
  private static final Logger LOG = System.getLogger("io.fletch");

  private EmbedderLoader() {}

  /** Opens a file or folder. */
  public static Embedder open(Path path, EmbedderOptions options) {
    Objects.requireNonNull(options, "options");
    Path last = path.toAbsolutePath().normalize().getFileName();
    String name = last == null ? path.toString() : last.toString();
    ModelLoadEvent event = ModelLoader.begunEvent();
    try {
      WeightFile file = WeightFile.open(path);
      TensorStore derived = TensorStore.create();
      try {
        LoadedEmbedder embedder = load(file, derived, path, name, options);
        ModelLoader.commit(
            event,
            path,
            embedder.info().architecture(),
            embedder.info().weightBytes(),
            embedder.backendDescription());
        LOG.log(
            ModelLoader.level(options.model()), () -> name + ": " + embedder.backendDescription());
        return embedder;
      } catch (RuntimeException | Error e) {
        derived.close();
        file.close();
        throw e;
      }
    } catch (WeightFileException | GraphException | FletchException e) {
      throw ModelLoader.failure(path, e);
    }
  }

  /** Whether a file or folder says that it is one. */
  public static boolean isEmbeddingModel(Path path) {
    try (WeightFile file = WeightFile.open(path)) {
      HyperParameters hp = HyperParameters.read(file.format(), file.metadata());
      return hp.isEmbedding()
          || !hp.causal() && !hp.diffusion()
          || settings(file, path).isEmbedding();
    } catch (WeightFileException | FletchException e) {
      throw ModelLoader.failure(path, e);
    }
  }

  private static SentenceSettings settings(WeightFile file, Path path) {
    return switch (file.format()) {
      case GGUF, ARROW -> SentenceSettings.NONE;
      case SAFETENSORS -> SentenceSettings.read(ModelLoader.folder(path));
    };
  }

  private static LoadedEmbedder load(
      WeightFile file, TensorStore derived, Path path, String name, EmbedderOptions options) {
    HyperParameters declared = HyperParameters.read(file.format(), file.metadata());
    if (declared.diffusion()) {
      throw new FletchException(
          "a diffusion model gives no vectors of texts: architecture="
              + declared.architecture().id());
    }
    SentenceSettings settings = settings(file, path);
    ModelOptions model = options.model();
    WeightTensors weights = ModelLoader.weights(file, derived, declared, model);
    HyperParameters hp = weights.fit(declared);
    int width = hp.embeddingLength();
    if (options.dimensions() > width) {
      throw new FletchException(
          "dimensions: expected=[1, " + width + "] actual=" + options.dimensions());
    }
    Tokenizer tokenizer = ModelLoader.tokenizer(file, path);
    ModelLoader.checkRows(tokenizer, hp);
    int context = ModelLoader.context(hp, model, name);
    Graph graph = ModelGraph.buildHidden(hp, weights, context, name);
    // Tokens that see each other must be in one forward.
    int rows = hp.causal() ? model.prefillChunk() : Math.max(context, model.prefillChunk());
    Executable executable = ModelLoader.compile(graph, rows, model, file);
    try {
      file.dropPages();
      Optional<Pooling> ofFile = settings.pooling().or(hp::pooling);
      int wanted = options.maxTokens() > 0 ? options.maxTokens() : settings.maxTokens();
      Embedder.Info info =
          new Embedder.Info(
              hp.architecture().id(),
              options.pooling().or(() -> ofFile).orElse(hp.causal() ? Pooling.LAST : Pooling.MEAN),
              options.dimensions() > 0 ? options.dimensions() : width,
              options.normalize(),
              hp.causal(),
              width,
              wanted > 0 ? Math.min(wanted, context) : context,
              hp.blocks().size(),
              weights.elements(),
              weights.bytes(),
              weights.mainType().name());
      return new LoadedEmbedder(name, info, file, derived, executable, rows, tokenizer, options);
    } catch (RuntimeException | Error e) {
      executable.close();
      throw e;
    }
  }
}
