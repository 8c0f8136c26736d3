package io.fletch;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import java.io.IOException;
import java.util.Optional;

/**
 * The text of an answer in which calls are looked for. Answers can be made to look like the
 * beginnings of many calls, so whoever looks for them starts at many places: each look is counted,
 * and together they must stay proportional to the length. Confined to one thread.
 */
final class AnswerText {
  /** Keeps nothing of what it reads. */
  private static final JsonFactory JSON =
      JsonFactory.builder()
          .disable(JsonFactory.Feature.INTERN_FIELD_NAMES)
          .disable(JsonFactory.Feature.CANONICALIZE_FIELD_NAMES)
          .build();

  /** A JSON object or array, and where it ends in the text. */
  record Value(Object value, int end) {}

  private final String text;
  private final char[] characters;
  private long looks;

  AnswerText(String text) {
    this.text = text;
    this.characters = text.toCharArray();
  }

  /** The text. */
  String text() {
    return text;
  }

  int length() {
    return characters.length;
  }

  /** How many characters were looked at, those that were looked at again included. */
  long looks() {
    return looks;
  }

  boolean startsWith(String mark, int at) {
    return text.startsWith(mark, at);
  }

  /** Where a mark begins at {@code from} or later; -1 if nowhere. */
  int find(String mark, int from) {
    int found = text.indexOf(mark, from);
    looks += (found < 0 ? length() : found + mark.length()) - Math.min(from, length());
    return found;
  }

  /** Where the first of two characters stands at {@code from} or later; -1 if nowhere. */
  int findEither(char a, char b, int from) {
    for (int at = from; at < length(); at++) {
      looks++;
      if (characters[at] == a || characters[at] == b) {
        return at;
      }
    }
    return -1;
  }

  int skipBlanks(int from) {
    int at = from;
    while (at < length() && Character.isWhitespace(characters[at])) {
      at++;
    }
    looks += at - from;
    return at;
  }

  /** Where the text goes on behind a mark that may follow at {@code end}, behind blanks. */
  int behind(String mark, int end) {
    int at = skipBlanks(end);
    return startsWith(mark, at) ? at + mark.length() : end;
  }

  /**
   * The JSON object or array that begins at {@code from}; empty if there is none, or it does not
   * end. It is read no further than it is JSON. Two values that are read from different places
   * agree nowhere about what is inside of a text and what is outside, else they were one, and marks
   * of calls stand inside: so a character is in two at most of the values that begin behind marks.
   */
  Optional<Value> value(int from) {
    if (from >= length() || characters[from] != '{' && characters[from] != '[') {
      return Optional.empty();
    }
    try (JsonParser parser = JSON.createParser(characters, from, length() - from)) {
      try {
        Object value = ToolCallFormat.EXACT.anyFrom(parser);
        return Optional.of(new Value(value, from + read(parser)));
      } catch (IOException _) {
        return Optional.empty();
      } finally {
        looks += read(parser);
      }
    } catch (IOException _) {
      return Optional.empty();
    }
  }

  /** How many characters a parser has read. */
  private static int read(JsonParser parser) {
    return Math.toIntExact(parser.currentLocation().getCharOffset());
  }
}
