package io.fletch.quant;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;

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
    // These go by any name (blobs of model stores have none), and their magic tells.
    if (isArrow(path)) {
      return ArrowFiles.open(path);
    }
    return GgufFiles.open(path);
  }

  private static boolean isArrow(Path path) {
    try (InputStream in = Files.newInputStream(path)) {
      return Arrays.equals(in.readNBytes(ArrowFiles.MAGIC.length), ArrowFiles.MAGIC);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
