package io.fletch.runtime.tokenizer;

import java.util.Arrays;
import java.util.function.IntPredicate;

/**
 * WordPiece: the longest token that a word begins with, then the longest that the rest begins with,
 * and so on; a word that cannot be spelled so is one unknown token. Tokens that begin a word and
 * tokens that go on with it are told apart by what is written before them.
 */
final class WordPieceEncoder implements PieceEncoder {
  private final TokenTable tokens;
  private final IntPredicate ordinary;
  private final byte[] begins;
  private final byte[] goesOn;
  private final int most;
  private final int unknown;
  private final int longest;

  /**
   * An encoder.
   *
   * @param ordinary ids that text may become
   * @param begins written before tokens that begin a word, in UTF-8
   * @param goesOn written before the others
   * @param most a word of more characters is unknown
   * @param unknown the token for unknown words
   */
  WordPieceEncoder(
      TokenTable tokens,
      IntPredicate ordinary,
      String begins,
      String goesOn,
      int most,
      int unknown) {
    this.tokens = tokens;
    this.ordinary = ordinary;
    this.begins = TextTokenizer.utf8(begins);
    this.goesOn = TextTokenizer.utf8(goesOn);
    this.most = most;
    this.unknown = unknown;
    int length = 0;
    for (int id = 0; id < tokens.tokens().size(); id++) {
      length = Math.max(length, tokens.length(id));
    }
    longest = length;
  }

  @Override
  public void encode(String text, int from, int to, Scratch scratch, IntList out) {
    if (text.codePointCount(from, to) > most) {
      out.add(unknown);
      return;
    }
    // Room for the marks; that of a later token overwrites the end of the one before.
    int lead = Math.max(begins.length, goesOn.length);
    byte[] utf8 = scratch.utf8(to - from + lead);
    int length = Utf8.encode(text, from, to, utf8);
    System.arraycopy(utf8, 0, utf8, lead, length);
    int end = lead + length;
    int before = out.size();
    for (int at = lead; at < end; ) {
      byte[] mark = at == lead ? begins : goesOn;
      int start = at - mark.length;
      System.arraycopy(mark, 0, utf8, start, mark.length);
      int stop = Math.min(end, start + longest);
      int id = -1;
      if (at > lead && goesOn.length == 0 && startsWith(utf8, at, end, begins)) {
        // The mark itself in a text: what follows would look like the beginning of a word.
        stop = at;
      }
      for (; stop > at && id < 0; stop--) {
        id = tokens.find(utf8, start, stop);
        id = id >= 0 && ordinary.test(id) ? id : -1;
      }
      if (id < 0) {
        out.truncate(before);
        out.add(unknown);
        return;
      }
      out.add(id);
      at = stop + 1;
    }
  }

  private static boolean startsWith(byte[] bytes, int from, int to, byte[] prefix) {
    return to - from >= prefix.length
        && Arrays.equals(bytes, from, from + prefix.length, prefix, 0, prefix.length);
  }
}
