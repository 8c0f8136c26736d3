package io.fletch.runtime.tokenizer;

import io.fletch.FletchException;
import java.nio.charset.StandardCharsets;

/**
 * Properties of a SentencePiece vocabulary.
 *
 * @param bytes what each token adds to a text: the space mark is a space, {@code <0x41>} one byte
 * @param byteIds ids of the byte tokens, -1 where there is none; null if there are none at all
 * @param crossesWords whether a token has a space mark after another character, so that a text
 *     cannot be cut at words without changing the result
 */
record Pieces(byte[][] bytes, int[] byteIds, boolean crossesWords) {
  /** Looks at all tokens. */
  static Pieces of(byte[][] tokens, Vocabulary.Kind[] kinds) {
    byte[][] bytes = new byte[tokens.length][];
    int[] byteIds = new int[256];
    java.util.Arrays.fill(byteIds, -1);
    boolean anyByte = false;
    boolean crosses = false;
    for (int id = 0; id < tokens.length; id++) {
      String token = new String(tokens[id], StandardCharsets.UTF_8);
      switch (kinds[id]) {
        case BYTE -> {
          int value = byteValue(token);
          if (value < 0) {
            throw new FletchException(
                "token " + id + ": byte token, expected=<0xHH> actual=" + token);
          }
          bytes[id] = new byte[] {(byte) value};
          byteIds[value] = id;
          anyByte = true;
        }
        case CONTROL, UNKNOWN -> bytes[id] = tokens[id];
        default -> {
          int mark = token.lastIndexOf(Normalizer.SPACE_MARK);
          bytes[id] =
              mark < 0 ? tokens[id] : TextTokenizer.utf8(token.replace(Normalizer.SPACE_MARK, ' '));
          for (int i = 1; i <= mark && !crosses; i++) {
            crosses =
                token.charAt(i) == Normalizer.SPACE_MARK
                    && token.charAt(i - 1) != Normalizer.SPACE_MARK;
          }
        }
      }
    }
    return new Pieces(bytes, anyByte ? byteIds : null, crosses);
  }

  /** The byte of {@code <0xHH>}, or -1. */
  static int byteValue(String token) {
    return token.matches("<0x\\p{XDigit}{2}>") ? Integer.parseInt(token.substring(3, 5), 16) : -1;
  }

  /** Cuts before each run of space marks. */
  static PieceSink splitWords(PieceSink sink) {
    return (text, from, to) -> {
      int done = from;
      for (int at = from + 1; at < to; at++) {
        if (text.charAt(at) == Normalizer.SPACE_MARK
            && text.charAt(at - 1) != Normalizer.SPACE_MARK) {
          sink.accept(text, done, at);
          done = at;
        }
      }
      sink.accept(text, done, to);
    };
  }
}
