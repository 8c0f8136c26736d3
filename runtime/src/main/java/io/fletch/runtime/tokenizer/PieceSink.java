package io.fletch.runtime.tokenizer;

/** Takes the pieces of a text in order. Not thread-safe. */
@FunctionalInterface
interface PieceSink {
  /** Takes {@code text[from, to)}; never empty. */
  void accept(String text, int from, int to);
}
