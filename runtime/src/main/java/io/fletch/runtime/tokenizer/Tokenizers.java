package io.fletch.runtime.tokenizer;

import io.fletch.FletchException;
import io.fletch.Tokenizer;
import io.fletch.quant.Metadata;
import io.fletch.quant.WeightFileException;

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
}
