package io.fletch.runtime.tokenizer;

/** Turns one piece of text into tokens. Immutable and thread-safe but for a cache. */
interface PieceEncoder {
  /** Appends the tokens of {@code text[from, to)}. */
  void encode(String text, int from, int to, Scratch scratch, IntList out);
}
