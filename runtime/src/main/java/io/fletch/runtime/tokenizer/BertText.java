package io.fletch.runtime.tokenizer;

import java.text.Normalizer.Form;

/**
 * The steps {@code BertNormalizer} and {@code BertPreTokenizer} of tokenizer.json. Characters that
 * Unicode got after version 8 are classified as Unicode does today, while the reference
 * implementation takes some of their marks and punctuation for letters. Stateless.
 */
final class BertText {
  /** White space separates words, each punctuation character is a word of its own. */
  static final PreTokenizer WORDS =
      PreTokenizer.sequence(
          java.util.List.of(
              PreTokenizer.splitCharacters(CharSet::isSpace, PreTokenizer.Behavior.REMOVED),
              PreTokenizer.splitCharacters(
                  CharSet::isPunctuation, PreTokenizer.Behavior.ISOLATED)));

  private BertText() {}

  /**
   * The normalizer.
   *
   * @param clean drops control characters and U+FFFD, makes all white space spaces
   * @param ideographs puts spaces around CJK ideographs
   * @param stripAccents decomposes and drops non-spacing marks
   * @param lowercase one character at a time, without regard to its neighbours
   */
  static Normalizer normalizer(
      boolean clean, boolean ideographs, boolean stripAccents, boolean lowercase) {
    return (text, first) -> {
      String result = clean || ideographs ? clean(text, clean, ideographs) : text;
      result = stripAccents ? withoutMarks(result) : result;
      return lowercase ? lowercase(result) : result;
    };
  }

  private static String clean(String text, boolean clean, boolean ideographs) {
    StringBuilder out = new StringBuilder(text.length() + 16);
    for (int i = 0; i < text.length(); ) {
      int cp = text.codePointAt(i);
      i += Character.charCount(cp);
      if (clean && isDropped(cp)) {
        continue;
      }
      if (clean && CharSet.isSpace(cp)) {
        out.append(' ');
      } else if (ideographs && isIdeograph(cp)) {
        out.append(' ').appendCodePoint(cp).append(' ');
      } else {
        out.appendCodePoint(cp);
      }
    }
    return out.toString();
  }

  private static boolean isDropped(int cp) {
    if (cp == '\t' || cp == '\n' || cp == '\r') {
      return false;
    }
    return cp == 0xFFFD
        || switch (Character.getType(cp)) {
          case Character.CONTROL,
              Character.FORMAT,
              Character.PRIVATE_USE,
              // Unpaired: U+FFFD in UTF-8.
              Character.SURROGATE ->
              true;
          default -> false;
        };
  }

  /** The blocks that BERT counts as such; not Hangul, Hiragana or Katakana. */
  private static boolean isIdeograph(int cp) {
    return cp >= 0x4E00 && cp <= 0x9FFF
        || cp >= 0x3400 && cp <= 0x4DBF
        || cp >= 0x20000 && cp <= 0x2A6DF
        || cp >= 0x2A700 && cp <= 0x2B73F
        || cp >= 0x2B740 && cp <= 0x2B81F
        || cp >= 0x2B920 && cp <= 0x2CEAF
        || cp >= 0xF900 && cp <= 0xFAFF
        || cp >= 0x2F800 && cp <= 0x2FA1F;
  }

  private static String withoutMarks(String text) {
    String decomposed =
        java.text.Normalizer.isNormalized(text, Form.NFD)
            ? text
            : java.text.Normalizer.normalize(text, Form.NFD);
    StringBuilder out = new StringBuilder(decomposed.length());
    for (int i = 0; i < decomposed.length(); ) {
      int cp = decomposed.codePointAt(i);
      i += Character.charCount(cp);
      if (Character.getType(cp) != Character.NON_SPACING_MARK) {
        out.appendCodePoint(cp);
      }
    }
    return out.toString();
  }

  private static String lowercase(String text) {
    StringBuilder out = new StringBuilder(text.length());
    for (int i = 0; i < text.length(); ) {
      int cp = text.codePointAt(i);
      i += Character.charCount(cp);
      if (cp == 0x130) {
        // The one character whose lower case is two.
        out.append("i\u0307");
      } else {
        out.appendCodePoint(Character.toLowerCase(cp));
      }
    }
    return out.toString();
  }
}
