package io.fletch;

import java.nio.file.Path;

/** Opens models. */
final class Models {
  private Models() {}

  static Model open(Path path, ModelOptions options) {
    throw new FletchException("unknown model: " + path);
  }

  static Model demo(String name, ModelOptions options) {
    throw new FletchException("unknown demo model: " + name);
  }
}
