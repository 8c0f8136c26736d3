package io.fletch.quant;

import java.nio.file.Path;
import java.util.Map;
import java.util.Optional;

/**
 * An open weight file (all its shards): metadata, and tensors over memory-mapped Arrow buffers.
 * Closing it unmaps everything, so nothing that came from it may be used afterwards. Safe for use
 * by several threads; closing must happen once, after the last use.
 */
public interface WeightFile extends AutoCloseable {
  /** The container. */
  enum Format {
    GGUF,
    SAFETENSORS
  }

  /** The container of this file. */
  Format format();

  /** What was opened: the (first) file, or the folder of a safetensors model. */
  Path path();

  /** Metadata: GGUF key/values, or the content of {@code config.json} for safetensors. */
  Metadata metadata();

  /** All tensors by name, in file order. */
  Map<String, Tensor> tensors();

  /** The tensor of that name, if present. */
  default Optional<Tensor> tensor(String name) {
    return Optional.ofNullable(tensors().get(name));
  }

  @Override
  void close();

  /**
   * Opens a {@code .gguf} file (first shard of a split one), a {@code .safetensors} file, or a
   * folder with {@code model.safetensors[.index.json]} and {@code config.json}.
   *
   * @throws WeightFileException if the content is damaged or unsupported
   * @throws java.io.UncheckedIOException if reading fails
   */
  static WeightFile open(Path path) {
    return WeightFiles.open(path);
  }
}
