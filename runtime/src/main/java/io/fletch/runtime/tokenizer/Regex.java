package io.fletch.runtime.tokenizer;

import io.fletch.FletchException;
import java.util.ArrayList;
import java.util.List;

/**
 * Syntax tree of the regular expressions that tokenizers use, and their parser: classes (nested,
 * negated, {@code &&}), properties, groups with {@code (?i:)}, alternation, greedy, lazy and
 * possessive quantifiers, look-ahead over one character, {@code $}. Syntax and meaning are those of
 * Oniguruma, which the {@code tokenizers} library uses; white space, words and digits are the
 * Unicode sets. Anything else is an error that quotes the pattern and the position: a tokenizer
 * that splits almost right would be worse than none.
 */
sealed interface Regex {
  /** One character of a set. */
  record Chars(CharSet set) implements Regex {}

  /** All parts one after another. */
  record Sequence(List<Regex> parts) implements Regex {}

  /** The first alternative that matches. */
  record Choice(List<Regex> alternatives) implements Regex {}

  /** Repetition; {@code max} of -1 is unbounded. */
  record Repeat(Regex part, int min, int max, Greed greed) implements Regex {}

  /** Nothing consumed; the next character is (not) in the set. Negated it holds at the end too. */
  record Look(CharSet set, boolean negated) implements Regex {}

  /** How much a quantifier takes. */
  enum Greed {
    /** As much as possible. */
    GREEDY,
    /** As little as possible. */
    LAZY,
    /** As much as there is, nothing given back. */
    POSSESSIVE
  }

  /** Parses a pattern. */
  static Regex parse(String pattern) {
    return new Parser(pattern).parse();
  }

  /** Recursive descent over one pattern. */
  final class Parser {
    private static final int MAX_DEPTH = 50;
    private static final int MAX_REPEAT = 1000;

    private final String pattern;
    private int at;
    private int depth;

    Parser(String pattern) {
      this.pattern = pattern;
    }

    Regex parse() {
      Regex regex = choice(false);
      if (at < pattern.length()) {
        throw error("unbalanced ')'");
      }
      return regex;
    }

    private FletchException error(String what) {
      return new FletchException(
          "pre-tokenizer pattern not supported: "
              + what
              + " at index "
              + at
              + " of: "
              + (pattern.length() > 300 ? pattern.substring(0, 300) + "..." : pattern));
    }

    private Regex choice(boolean ignoreCase) {
      if (++depth > MAX_DEPTH) {
        throw error("nesting deeper than " + MAX_DEPTH);
      }
      List<Regex> alternatives = new ArrayList<>();
      boolean fold = ignoreCase;
      List<Regex> parts = new ArrayList<>();
      while (at < pattern.length() && pattern.charAt(at) != ')') {
        if (pattern.charAt(at) == '|') {
          at++;
          alternatives.add(sequence(parts));
          parts = new ArrayList<>();
        } else if (pattern.startsWith("(?i)", at)) {
          at += 4;
          fold = true;
        } else {
          parts.add(quantified(atom(fold)));
        }
      }
      alternatives.add(sequence(parts));
      depth--;
      return alternatives.size() == 1 ? alternatives.getFirst() : new Choice(alternatives);
    }

    private static Regex sequence(List<Regex> parts) {
      return parts.size() == 1 ? parts.getFirst() : new Sequence(List.copyOf(parts));
    }

    private Regex quantified(Regex atom) {
      Regex regex = atom;
      while (at < pattern.length()) {
        int min;
        int max;
        char c = pattern.charAt(at);
        boolean interval = false;
        if (c == '?') {
          min = 0;
          max = 1;
        } else if (c == '*') {
          min = 0;
          max = -1;
        } else if (c == '+') {
          min = 1;
          max = -1;
        } else if (c == '{') {
          int close = pattern.indexOf('}', at);
          String[] bounds =
              close < 0 ? new String[0] : pattern.substring(at + 1, close).split(",", -1);
          if (bounds.length < 1 || bounds.length > 2 || !bounds[0].matches("\\d{1,6}|")) {
            throw error("malformed interval");
          }
          min = number(bounds[0].isEmpty() ? "0" : bounds[0]);
          max = bounds.length == 1 ? min : bounds[1].isEmpty() ? -1 : number(bounds[1]);
          if (max >= 0 && max < min) {
            throw error("interval with max < min");
          }
          at = close;
          interval = true;
        } else {
          return regex;
        }
        at++;
        if (regex instanceof Look) {
          throw error("quantified look-ahead");
        }
        Greed greed = Greed.GREEDY;
        if (at < pattern.length() && pattern.charAt(at) == '?') {
          greed = Greed.LAZY;
          at++;
        } else if (!interval && at < pattern.length() && pattern.charAt(at) == '+') {
          // After an interval Oniguruma's '+' repeats the whole instead of making it possessive.
          greed = Greed.POSSESSIVE;
          at++;
          if (!(regex instanceof Chars)) {
            throw error("possessive quantifier on a group");
          }
        }
        regex = new Repeat(regex, min, max, greed);
      }
      return regex;
    }

    private int number(String digits) {
      if (!digits.matches("\\d{1,6}") || Integer.parseInt(digits) > MAX_REPEAT) {
        throw error("repetition count, expected=0 to " + MAX_REPEAT + " actual=" + digits);
      }
      return Integer.parseInt(digits);
    }

    private Regex atom(boolean fold) {
      char c = pattern.charAt(at);
      switch (c) {
        case '(':
          return group(fold);
        case '[':
          at++;
          return chars(charClass(), fold);
        case '.':
          at++;
          return new Chars(CharSet.of('\n').negate());
        case '$':
          at++;
          // Oniguruma's (Ruby) '$': at the end or before a line feed.
          return new Look(CharSet.of('\n').negate(), true);
        case '\\':
          if (pattern.startsWith("\\z", at)) {
            at += 2;
            return new Look(CharSet.ANY, true);
          }
          return chars(escape(), fold);
        case '^', '*', '+', '?', '{':
          throw error("'" + c + "'");
        default:
          int cp = pattern.codePointAt(at);
          at += Character.charCount(cp);
          return chars(CharSet.of(cp), fold);
      }
    }

    private static Regex chars(CharSet set, boolean fold) {
      return new Chars(fold ? set.ignoreCase() : set);
    }

    private Regex group(boolean fold) {
      at++;
      boolean inner = fold;
      boolean look = false;
      boolean negated = false;
      if (pattern.startsWith("?:", at)) {
        at += 2;
      } else if (pattern.startsWith("?i:", at)) {
        at += 3;
        inner = true;
      } else if (pattern.startsWith("?-i:", at)) {
        at += 4;
        inner = false;
      } else if (pattern.startsWith("?=", at) || pattern.startsWith("?!", at)) {
        look = true;
        negated = pattern.charAt(at + 1) == '!';
        at += 2;
      } else if (pattern.startsWith("?", at)) {
        throw error("group '(" + pattern.substring(at, Math.min(at + 3, pattern.length())) + "'");
      }
      Regex body = choice(inner);
      if (at >= pattern.length()) {
        throw error("missing ')'");
      }
      at++;
      if (!look) {
        return body;
      }
      CharSet set = single(body);
      if (set == null) {
        throw error("look-ahead over more than one character");
      }
      return new Look(set, negated);
    }

    /** The set if the tree matches exactly one character, else null. */
    private static CharSet single(Regex regex) {
      return switch (regex) {
        case Chars chars -> chars.set();
        case Choice choice -> {
          CharSet union = null;
          for (Regex alternative : choice.alternatives()) {
            CharSet set = single(alternative);
            if (set == null) {
              yield null;
            }
            union = union == null ? set : union.or(set);
          }
          yield union;
        }
        default -> null;
      };
    }

    /** A class, after its '['. */
    private CharSet charClass() {
      if (++depth > MAX_DEPTH) {
        throw error("nesting deeper than " + MAX_DEPTH);
      }
      boolean negated = at < pattern.length() && pattern.charAt(at) == '^';
      if (negated) {
        at++;
      }
      CharSet intersection = null;
      CharSet union = null;
      boolean first = true;
      while (true) {
        if (at >= pattern.length()) {
          throw error("missing ']'");
        }
        char c = pattern.charAt(at);
        if (c == ']' && !first) {
          at++;
          break;
        }
        first = false;
        if (pattern.startsWith("[:", at)) {
          throw error("POSIX class");
        }
        CharSet item;
        if (c == '[') {
          at++;
          item = charClass();
        } else if (pattern.startsWith("&&", at)) {
          if (union == null) {
            throw error("empty operand of '&&'");
          }
          at += 2;
          intersection = intersection == null ? union : intersection.and(union);
          union = null;
          continue;
        } else {
          int from = at;
          item = classItem();
          if (at + 1 < pattern.length()
              && pattern.charAt(at) == '-'
              && pattern.charAt(at + 1) != ']') {
            at++;
            int low = only(item, from);
            int highAt = at;
            int high = only(classItem(), highAt);
            if (high < low) {
              throw error("reversed range");
            }
            item = CharSet.range(low, high);
          }
        }
        union = union == null ? item : union.or(item);
      }
      if (union == null) {
        throw error("empty class");
      }
      depth--;
      CharSet set = intersection == null ? union : intersection.and(union);
      return negated ? set.negate() : set;
    }

    private CharSet classItem() {
      if (pattern.charAt(at) == '\\') {
        return escape();
      }
      int cp = pattern.codePointAt(at);
      at += Character.charCount(cp);
      return CharSet.of(cp);
    }

    private int only(CharSet set, int from) {
      if (!set.key().startsWith("U") || set.key().contains("-")) {
        at = from;
        throw error("range with a class as its end");
      }
      return Integer.parseInt(set.key().substring(1), 16);
    }

    private CharSet escape() {
      at++;
      if (at >= pattern.length()) {
        throw error("trailing backslash");
      }
      char c = pattern.charAt(at++);
      return switch (c) {
        case 's' -> CharSet.SPACE;
        case 'S' -> CharSet.SPACE.negate();
        case 'd' -> CharSet.DIGIT;
        case 'D' -> CharSet.DIGIT.negate();
        case 'w' -> CharSet.WORD;
        case 'W' -> CharSet.WORD.negate();
        case 'r' -> CharSet.of('\r');
        case 'n' -> CharSet.of('\n');
        case 't' -> CharSet.of('\t');
        case 'f' -> CharSet.of('\f');
        case 'v' -> CharSet.of(0x0B);
        case 'x' -> CharSet.of(hex(pattern.startsWith("{", at) ? -1 : 2));
        case 'u' -> CharSet.of(hex(4));
        case 'p', 'P' -> property(c == 'P');
        default -> {
          if (Character.isLetterOrDigit(c)) {
            at -= 2;
            throw error("escape '\\" + c + "'");
          }
          at--;
          int cp = pattern.codePointAt(at);
          at += Character.charCount(cp);
          yield CharSet.of(cp);
        }
      };
    }

    private int hex(int digits) {
      int end = digits < 0 ? pattern.indexOf('}', at) : at + digits;
      int from = digits < 0 ? at + 1 : at;
      if (end < 0
          || end > pattern.length()
          || !pattern.substring(from, end).matches("\\p{XDigit}{1,6}")) {
        throw error("malformed hexadecimal escape");
      }
      int value = Integer.parseInt(pattern.substring(from, end), 16);
      if (value > Character.MAX_CODE_POINT) {
        throw error("code point out of range");
      }
      at = digits < 0 ? end + 1 : end;
      return value;
    }

    private CharSet property(boolean negatedByCase) {
      String name;
      boolean negated = negatedByCase;
      int close = pattern.indexOf('}', at);
      if (!pattern.startsWith("{", at) || close < 0) {
        throw error("property without braces");
      }
      name = pattern.substring(at + 1, close);
      if (name.startsWith("^")) {
        negated = !negated;
        name = name.substring(1);
      }
      CharSet set = CharSet.property(name);
      if (set == null) {
        throw error("property '" + name + "'");
      }
      at = close + 1;
      return negated ? set.negate() : set;
    }
  }
}
