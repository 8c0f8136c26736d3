package io.fletch.runtime.engine;

import io.fletch.FletchException;
import io.fletch.Tokenizer;

/** Two models that judge each other's tokens by their ids: an id must be the same text to both. */
final class SameTokens {
  private SameTokens() {}

  /**
   * Checks that another model defines all tokens of a model, with the same spelling.
   *
   * @param role what to call the other one in messages
   */
  static void check(String role, LoadedModel model, LoadedModel other) {
    Tokenizer mine = model.tokenizer();
    Tokenizer theirs = other.tokenizer();
    int count = model.definedTokens();
    if (other.definedTokens() < count) {
      throw new FletchException(
          role
              + " "
              + other.name()
              + ": vocabulary expected>="
              + count
              + " tokens actual="
              + other.definedTokens());
    }
    for (int id = 0; id < count; id++) {
      if (!mine.token(id).equals(theirs.token(id))) {
        throw new FletchException(
            role
                + " "
                + other.name()
                + " has another vocabulary: token "
                + id
                + " expected="
                + mine.token(id)
                + " actual="
                + theirs.token(id));
      }
    }
  }
}
