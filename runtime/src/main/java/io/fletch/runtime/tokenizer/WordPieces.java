package io.fletch.runtime.tokenizer;

/** What WordPiece vocabularies have in common. */
final class WordPieces {
  /** Characters of a word beyond which it is unknown, unless the tokenizer says otherwise. */
  static final int LONGEST_WORD = 100;

  private WordPieces() {}

  /**
   * What each token adds to a text: its spelling without the mark, after a space if it begins a
   * word.
   *
   * @param begins written before tokens that begin a word; may be empty, but not both
   * @param goesOn written before tokens that go on with one
   */
  static TokenBytes bytes(
      String[] spellings, Vocabulary.Kind[] kinds, String begins, String goesOn) {
    byte[][] bytes = new byte[spellings.length][];
    for (int id = 0; id < bytes.length; id++) {
      String text = spellings[id];
      if (kinds[id] == Vocabulary.Kind.CONTROL || kinds[id] == Vocabulary.Kind.UNKNOWN) {
        bytes[id] = TextTokenizer.utf8(text);
        continue;
      }
      boolean isBeginning = goesOn.isEmpty() ? text.startsWith(begins) : !text.startsWith(goesOn);
      String mark = isBeginning ? begins : goesOn;
      String word = text.startsWith(mark) ? text.substring(mark.length()) : text;
      bytes[id] = TextTokenizer.utf8(isBeginning ? " " + word : word);
    }
    return TokenBytes.of(bytes);
  }
}
