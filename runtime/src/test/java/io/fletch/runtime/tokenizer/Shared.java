package io.fletch.runtime.tokenizer;

import io.fletch.Tokenizer;
import io.fletch.quant.WeightFile;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Assumptions;

/** The folder of models and vocabularies beside the project; tests skip where it is absent. */
public final class Shared {
  private Shared() {}

  /** A file of the folder. */
  public static Path path(String name) {
    Path here = Path.of("").toAbsolutePath();
    for (Path up = here; up != null; up = up.getParent()) {
      Path candidate = up.resolve("../shared").normalize().resolve(name);
      if (Files.isRegularFile(up.resolve("fletchw")) || up.equals(here.getRoot())) {
        Assumptions.assumeTrue(
            Files.exists(candidate), () -> "skipped: no " + candidate + " beside the project");
        return candidate;
      }
    }
    throw new IllegalStateException("no project root above " + here);
  }

  /** The tokenizer of a GGUF file of the folder. */
  static Tokenizer gguf(String name) {
    try (WeightFile file = WeightFile.open(path(name))) {
      return Tokenizers.fromGguf(file.metadata());
    }
  }
}
