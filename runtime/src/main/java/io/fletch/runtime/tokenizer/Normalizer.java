package io.fletch.runtime.tokenizer;

import java.util.List;

/** Changes a text before it is split. Immutable and thread-safe. */
@FunctionalInterface
interface Normalizer {
  /** SentencePiece's mark for a space. */
  char SPACE_MARK = '\u2581';

  Normalizer NONE = (text, first) -> text;

  /**
   * The changed text.
   *
   * @param text not empty
   * @param first whether the text is the beginning of the input (not after an added token)
   */
  String apply(String text, boolean first);

  /** The steps one after another. */
  static Normalizer sequence(List<Normalizer> steps) {
    List<Normalizer> copy = List.copyOf(steps);
    return (text, first) -> {
      String result = text;
      for (Normalizer step : copy) {
        result = result.isEmpty() ? result : step.apply(result, first);
      }
      return result;
    };
  }
}
