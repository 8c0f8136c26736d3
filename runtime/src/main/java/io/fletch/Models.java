package io.fletch;

import io.fletch.runtime.engine.EmbedderLoader;
import io.fletch.runtime.engine.ModelLoader;
import java.nio.file.Path;
import java.util.Objects;

/** Opens models: the way from the interfaces to their implementation. */
final class Models {
  private Models() {}

  static Model open(Path path, ModelOptions options) {
    Objects.requireNonNull(path, "path");
    return ModelLoader.open(path, options);
  }

  static Model demo(String name, ModelOptions options) {
    return ModelLoader.demo(name, options);
  }

  static Path demoFile(String name) {
    return ModelLoader.demoFile(name);
  }

  static Embedder openEmbedder(Path path, EmbedderOptions options) {
    Objects.requireNonNull(path, "path");
    return EmbedderLoader.open(path, options);
  }

  static boolean isEmbeddingModel(Path path) {
    return EmbedderLoader.isEmbeddingModel(path);
  }

  static Tokenizer tokenizer(Path path) {
    Objects.requireNonNull(path, "path");
    return ModelLoader.tokenizer(path);
  }
}
