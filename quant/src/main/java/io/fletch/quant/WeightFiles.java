package io.fletch.quant;

import java.nio.file.Path;

/** Chooses the reader for a path. */
final class WeightFiles {
  private WeightFiles() {}

  static WeightFile open(Path path) {
    return GgufFiles.open(path);
  }
}
