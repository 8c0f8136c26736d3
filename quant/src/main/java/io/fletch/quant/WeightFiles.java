package io.fletch.quant;

import java.nio.file.Files;
import java.nio.file.Path;

/** Chooses the reader for a path, by its name. */
final class WeightFiles {
  private WeightFiles() {}

  static WeightFile open(Path path) {
    if (Files.isDirectory(path)) {
      return SafetensorsFiles.openFolder(path);
    }
    String name = String.valueOf(path.getFileName());
    if (name.endsWith(".safetensors")) {
      return SafetensorsFiles.openFile(path);
    }
    if (name.endsWith(SafetensorsFiles.INDEX_SUFFIX)) {
      return SafetensorsFiles.openIndex(path);
    }
    // GGUF files go by any name (blobs of model stores have none), and their magic tells.
    return GgufFiles.open(path);
  }
}
