package io.fletch;

import java.nio.file.Path;
import java.util.List;
import java.util.OptionalInt;

/**
 * Text to token ids and back. Immutable and thread-safe. Methods that take ids throw a {@link
 * FletchException} for one that is not in {@code [0, vocabularySize())}.
 */
public interface Tokenizer {
  /**
   * Opens the tokenizer of a model file or folder without opening the model; a GGUF file without
   * tensors will do.
   *
   * @throws FletchException if there is none, or of a kind that is not supported
   * @throws java.io.UncheckedIOException if reading fails
   */
  static Tokenizer open(Path path) {
    return Models.tokenizer(path);
  }

  /** Number of token ids. */
  int vocabularySize();

  /**
   * Token ids of a text, with beginning/end tokens added as the model wants them and special tokens
   * in the text recognised. The common case for a prompt that is a finished string.
   */
  int[] encode(String text);

  /**
   * Token ids of a text.
   *
   * @param addSpecial add the beginning (and end) tokens that the model declares
   * @param parseSpecial recognise special tokens written in the text; false treats them as plain
   *     text (for untrusted input)
   */
  int[] encode(String text, boolean addSpecial, boolean parseSpecial);

  /** The text of the ids; broken UTF-8 becomes U+FFFD. Special tokens are left out. */
  String decode(int[] ids);

  /** The text of the ids, special tokens written out if asked for. */
  String decode(int[] ids, boolean special);

  /** The bytes of one token (empty for special tokens). */
  byte[] bytes(int id);

  /** The token as the vocabulary spells it. */
  String token(int id);

  /** The id of a token as the vocabulary spells it. */
  OptionalInt id(String token);

  /** Whether the token is a control token that is not text. */
  boolean isSpecial(int id);

  /** Beginning-of-sequence token. */
  OptionalInt bos();

  /** End-of-sequence token. */
  OptionalInt eos();

  /** Mask token of a diffusion model. */
  OptionalInt mask();

  /** All tokens that end a generation (EOS, end of turn, ...). */
  List<Integer> endOfGeneration();

  /**
   * A decoder that takes ids one by one and never gives a broken UTF-8 sequence. Not thread-safe.
   */
  StreamDecoder streamDecoder();

  /** Incremental decoding. */
  interface StreamDecoder {
    /** Takes an id; returns the text that is now complete (possibly empty). */
    String accept(int id);

    /** What is left, incomplete sequences as U+FFFD. */
    String finish();
  }
}
