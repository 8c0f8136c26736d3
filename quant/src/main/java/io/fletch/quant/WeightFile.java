package io.fletch.quant;

import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * An open weight file (all its shards): metadata, and tensors over memory-mapped Arrow buffers.
 * Closing it unmaps everything, so nothing that came from it may be used afterwards. Safe for use
 * by several threads; close it after the last use (closing again does nothing).
 */
public interface WeightFile extends AutoCloseable {
  /** The container. */
  enum Format {
    GGUF,
    SAFETENSORS,
    /** A Fletch Arrow file, with the names and metadata of GGUF. */
    ARROW
  }

  /** The container of this file. */
  Format format();

  /** What was opened: the (first) file, or the folder of a safetensors model. */
  Path path();

  /** Metadata: GGUF key/values, or the content of {@code config.json} for safetensors. */
  Metadata metadata();

  /** All tensors by name, in file order, apart from the {@link #unsupported()} ones. */
  Map<String, Tensor> tensors();

  /** Tensors of element types that cannot be computed with, by name, in file order. */
  default Map<String, UnsupportedTensor> unsupported() {
    return Map.of();
  }

  /**
   * The tensor of that name, if present.
   *
   * @throws WeightFileException if it is an {@linkplain #unsupported() unsupported} one
   */
  default Optional<Tensor> tensor(String name) {
    Tensor tensor = tensors().get(name);
    UnsupportedTensor other = tensor == null ? unsupported().get(name) : null;
    if (other != null) {
      throw new WeightFileException(
          path() + ": tensor " + name + ": element type " + other.type() + " is not supported");
    }
    return Optional.ofNullable(tensor);
  }

  /**
   * The bytes of an {@linkplain #unsupported() unsupported} tensor of 8-bit elements (U8, FP8), as
   * an I8 tensor of its shape.
   */
  default Optional<Tensor> raw(String name) {
    return Optional.empty();
  }

  /** The files that hold the tensors, in order. */
  List<Path> shards();

  /**
   * Reads all tensors and compares them with the hashes that the files keep of them.
   *
   * @return bytes that were compared; 0 if the container has no hashes
   * @throws WeightFileException if a hash differs
   */
  default long verify() {
    return 0;
  }

  /**
   * Takes the pages of the files that were read so far out of the memory of this process, for use
   * after a large part was read once and will not be soon again. Nothing changes for readers.
   */
  void dropPages();

  @Override
  void close();

  /**
   * Opens a GGUF or Fletch Arrow file ({@link ArrowWriter}; the first shard of a split one), a
   * {@code .safetensors} file or {@code .safetensors.index.json}, or a folder with {@code
   * model.safetensors[.index.json]} and {@code config.json}.
   *
   * @throws WeightFileException if the content is damaged or unsupported
   * @throws java.io.UncheckedIOException if reading fails
   */
  static WeightFile open(Path path) {
    return WeightFiles.open(path);
  }
}
