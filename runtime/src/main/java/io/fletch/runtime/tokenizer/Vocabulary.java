package io.fletch.runtime.tokenizer;

import java.nio.charset.StandardCharsets;
import java.util.OptionalInt;

/**
 * The tokens of a model: how each is spelled, what kind it is, which bytes it stands for.
 * Immutable.
 */
final class Vocabulary {
  /** Kinds of tokens, in the order of {@code tokenizer.ggml.token_type} from 1. */
  enum Kind {
    /** Text. */
    NORMAL,
    /** Stands for what the vocabulary lacks. */
    UNKNOWN,
    /** Steers the model, is not text. */
    CONTROL,
    /** Text that is one token wherever it stands. */
    USER_DEFINED,
    /** Never used in training. */
    UNUSED,
    /** One byte. */
    BYTE
  }

  private final TokenTable spellings;
  private final TokenBytes bytes;
  private final Kind[] kinds;

  /**
   * A vocabulary.
   *
   * @param spellings UTF-8 of the spelling by id
   * @param bytes the bytes that each id adds to a text
   */
  Vocabulary(TokenTable spellings, TokenBytes bytes, Kind[] kinds) {
    this.spellings = spellings;
    this.bytes = bytes;
    this.kinds = kinds;
  }

  int size() {
    return kinds.length;
  }

  String spelling(int id) {
    return new String(spellings.tokens().bytes(id), StandardCharsets.UTF_8);
  }

  byte[] bytes(int id) {
    return bytes.bytes(id);
  }

  int length(int id) {
    return bytes.length(id);
  }

  void appendBytes(int id, ByteList out) {
    bytes.appendTo(id, out);
  }

  void appendSpelling(int id, ByteList out) {
    spellings.tokens().appendTo(id, out);
  }

  /** The table of spellings, for encoders. */
  TokenTable bySpelling() {
    return spellings;
  }

  OptionalInt id(String spelling) {
    byte[] utf8 = spelling.getBytes(StandardCharsets.UTF_8);
    int id = spellings.find(utf8, 0, utf8.length);
    return id < 0 ? OptionalInt.empty() : OptionalInt.of(id);
  }

  Kind kind(int id) {
    return kinds[id];
  }

  boolean isSpecial(int id) {
    return kinds[id] == Kind.CONTROL || kinds[id] == Kind.UNKNOWN;
  }

  /** Whether plain text may become this token by merging. */
  boolean isOrdinary(int id) {
    return kinds[id] == Kind.NORMAL || kinds[id] == Kind.USER_DEFINED || kinds[id] == Kind.UNUSED;
  }
}
