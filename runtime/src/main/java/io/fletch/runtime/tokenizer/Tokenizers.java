package io.fletch.runtime.tokenizer;

import io.fletch.FletchException;
import io.fletch.Tokenizer;
import io.fletch.quant.Metadata;
import io.fletch.quant.WeightFileException;
import java.nio.file.Path;

/** Opens the tokenizer of a model. Callable from any thread; the results are thread-safe. */
public final class Tokenizers {
  private Tokenizers() {}

  /**
   * The tokenizer in the metadata of a GGUF file.
   *
   * @throws FletchException if it is missing, damaged or of a kind that is not supported; the
   *     message names the key
   */
  public static Tokenizer fromGguf(Metadata metadata) {
    try {
      return new GgufTokenizers(metadata).read();
    } catch (WeightFileException e) {
      throw new FletchException("tokenizer: " + e.getMessage(), e);
    }
  }

  /**
   * The tokenizer of a Hugging Face folder ({@code tokenizer.json} and the files beside it).
   *
   * @throws FletchException if it is missing, damaged or of a kind that is not supported; the
   *     message names file and field
   */
  public static Tokenizer fromFolder(Path folder) {
    return new JsonTokenizers(folder).read();
  }
}
