package io.fletch.runtime.tokenizer;

import java.util.function.IntPredicate;

/**
 * A set of code points of a regular expression. Two sets with the same key are the same set.
 *
 * @param key canonical spelling, used to recognise equal sets
 * @param test membership
 */
record CharSet(String key, IntPredicate test) {
  static final CharSet ANY = new CharSet("any", cp -> true);

  /**
   * White space as Unicode defines it. {@link Character#isWhitespace} is another set: it lacks
   * U+00A0 and has U+001C to U+001F.
   */
  static final CharSet SPACE = new CharSet("\\s", CharSet::isSpace);

  static final CharSet DIGIT =
      new CharSet("\\d", cp -> Character.getType(cp) == Character.DECIMAL_DIGIT_NUMBER);

  /** Oniguruma's word characters: those of Unicode and all numbers. */
  static final CharSet WORD = new CharSet("\\w", cp -> isWord(cp) || isNumeric(cp));

  boolean contains(int cp) {
    return test.test(cp);
  }

  CharSet negate() {
    IntPredicate inner = test;
    return key.startsWith("^(")
        ? new CharSet(key.substring(2, key.length() - 1), inner.negate())
        : new CharSet("^(" + key + ")", inner.negate());
  }

  CharSet or(CharSet other) {
    return new CharSet("(" + key + "|" + other.key + ")", test.or(other.test));
  }

  CharSet and(CharSet other) {
    return new CharSet("(" + key + "&" + other.key + ")", test.and(other.test));
  }

  static CharSet of(int cp) {
    return new CharSet("U" + Integer.toHexString(cp), c -> c == cp);
  }

  static CharSet range(int first, int last) {
    return new CharSet(
        "U" + Integer.toHexString(first) + "-" + Integer.toHexString(last),
        c -> c >= first && c <= last);
  }

  /** The set without regard to case (simple Unicode case folding). */
  CharSet ignoreCase() {
    IntPredicate inner = test;
    return new CharSet(
        "i(" + key + ")",
        cp ->
            inner.test(cp)
                || inner.test(Character.toLowerCase(cp))
                || inner.test(Character.toUpperCase(cp))
                || inner.test(Character.toLowerCase(Character.toUpperCase(cp))));
  }

  /** A general category ({@code Lu}, {@code L}) or script ({@code Han}); null if there is none. */
  static CharSet property(String name) {
    int mask =
        switch (name) {
          case "L", "Letter" -> types("LU", "LL", "LT", "LM", "LO");
          case "Lu" -> types("LU");
          case "Ll" -> types("LL");
          case "Lt" -> types("LT");
          case "Lm" -> types("LM");
          case "Lo" -> types("LO");
          case "M", "Mark" -> types("MN", "MC", "ME");
          case "Mn" -> types("MN");
          case "Mc" -> types("MC");
          case "Me" -> types("ME");
          case "N", "Number" -> types("ND", "NL", "NO");
          case "Nd" -> types("ND");
          case "Nl" -> types("NL");
          case "No" -> types("NO");
          case "P", "Punctuation" -> types("PC", "PD", "PS", "PE", "PI", "PF", "PO");
          case "Pc" -> types("PC");
          case "Pd" -> types("PD");
          case "Ps" -> types("PS");
          case "Pe" -> types("PE");
          case "Pi" -> types("PI");
          case "Pf" -> types("PF");
          case "Po" -> types("PO");
          case "S", "Symbol" -> types("SM", "SC", "SK", "SO");
          case "Sm" -> types("SM");
          case "Sc" -> types("SC");
          case "Sk" -> types("SK");
          case "So" -> types("SO");
          case "Z", "Separator" -> types("ZS", "ZL", "ZP");
          case "Zs" -> types("ZS");
          case "Zl" -> types("ZL");
          case "Zp" -> types("ZP");
          case "C", "Other" -> types("CC", "CF", "CO", "CS", "CN");
          case "Cc" -> types("CC");
          case "Cf" -> types("CF");
          case "Co" -> types("CO");
          case "Cn" -> types("CN");
          default -> 0;
        };
    if (mask != 0) {
      return new CharSet("\\p{" + name + "}", cp -> (mask >> Character.getType(cp) & 1) != 0);
    }
    try {
      Character.UnicodeScript script = Character.UnicodeScript.forName(name);
      return new CharSet("\\p{" + name + "}", cp -> Character.UnicodeScript.of(cp) == script);
    } catch (IllegalArgumentException unknown) {
      return null;
    }
  }

  private static int types(String... categories) {
    int mask = 0;
    for (String category : categories) {
      mask |= 1 << type(category);
    }
    return mask;
  }

  private static int type(String category) {
    return switch (category) {
      case "LU" -> Character.UPPERCASE_LETTER;
      case "LL" -> Character.LOWERCASE_LETTER;
      case "LT" -> Character.TITLECASE_LETTER;
      case "LM" -> Character.MODIFIER_LETTER;
      case "LO" -> Character.OTHER_LETTER;
      case "MN" -> Character.NON_SPACING_MARK;
      case "MC" -> Character.COMBINING_SPACING_MARK;
      case "ME" -> Character.ENCLOSING_MARK;
      case "ND" -> Character.DECIMAL_DIGIT_NUMBER;
      case "NL" -> Character.LETTER_NUMBER;
      case "NO" -> Character.OTHER_NUMBER;
      case "PC" -> Character.CONNECTOR_PUNCTUATION;
      case "PD" -> Character.DASH_PUNCTUATION;
      case "PS" -> Character.START_PUNCTUATION;
      case "PE" -> Character.END_PUNCTUATION;
      case "PI" -> Character.INITIAL_QUOTE_PUNCTUATION;
      case "PF" -> Character.FINAL_QUOTE_PUNCTUATION;
      case "PO" -> Character.OTHER_PUNCTUATION;
      case "SM" -> Character.MATH_SYMBOL;
      case "SC" -> Character.CURRENCY_SYMBOL;
      case "SK" -> Character.MODIFIER_SYMBOL;
      case "SO" -> Character.OTHER_SYMBOL;
      case "ZS" -> Character.SPACE_SEPARATOR;
      case "ZL" -> Character.LINE_SEPARATOR;
      case "ZP" -> Character.PARAGRAPH_SEPARATOR;
      case "CC" -> Character.CONTROL;
      case "CF" -> Character.FORMAT;
      case "CO" -> Character.PRIVATE_USE;
      case "CS" -> Character.SURROGATE;
      default -> Character.UNASSIGNED;
    };
  }

  static boolean isSpace(int cp) {
    if (cp < 0x85) {
      return cp >= 9 && cp <= 13 || cp == ' ';
    }
    return cp == 0x85
        || cp == 0xA0
        || cp == 0x1680
        || cp >= 0x2000 && cp <= 0x200A
        || cp == 0x2028
        || cp == 0x2029
        || cp == 0x202F
        || cp == 0x205F
        || cp == 0x3000;
  }

  /** Word characters as Unicode defines them. */
  static boolean isWord(int cp) {
    int type = Character.getType(cp);
    return Character.isAlphabetic(cp)
        || type == Character.NON_SPACING_MARK
        || type == Character.COMBINING_SPACING_MARK
        || type == Character.ENCLOSING_MARK
        || type == Character.DECIMAL_DIGIT_NUMBER
        || type == Character.CONNECTOR_PUNCTUATION;
  }

  /** Numeric as Rust's {@code char::is_numeric}: categories Nd, Nl and No. */
  static boolean isNumeric(int cp) {
    int type = Character.getType(cp);
    return type == Character.DECIMAL_DIGIT_NUMBER
        || type == Character.LETTER_NUMBER
        || type == Character.OTHER_NUMBER;
  }

  /** Punctuation as the {@code Punctuation} step of tokenizer.json: category P or ASCII. */
  static boolean isPunctuation(int cp) {
    if (cp < 0x80) {
      return cp > ' ' && cp < 0x7F && !Character.isLetterOrDigit(cp);
    }
    return switch (Character.getType(cp)) {
      case Character.CONNECTOR_PUNCTUATION,
          Character.DASH_PUNCTUATION,
          Character.START_PUNCTUATION,
          Character.END_PUNCTUATION,
          Character.INITIAL_QUOTE_PUNCTUATION,
          Character.FINAL_QUOTE_PUNCTUATION,
          Character.OTHER_PUNCTUATION ->
          true;
      default -> false;
    };
  }
}
