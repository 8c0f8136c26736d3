package io.fletch.sampling;

import io.fletch.sampling.GrammarRules.Element;
import io.fletch.sampling.GrammarRules.Reference;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** Reads GBNF, see {@link Grammar}. One instance reads one text. */
final class GrammarParser {
  private static final int MOST_LENGTH = 1 << 20;
  private static final int MOST_REPETITIONS = 10_000;
  private static final int MOST_DEPTH = 200;
  private static final int CODE_POINTS = 0x110000;

  private final String text;
  private final GrammarRules rules = new GrammarRules();
  private final Map<String, Integer> names = new HashMap<>();
  private final Map<Integer, Integer> firstUse = new HashMap<>();
  private int at;
  private int depth;

  private GrammarParser(String text) {
    this.text = text;
  }

  static GrammarRules parse(String text) {
    if (text.length() > MOST_LENGTH) {
      throw new SamplingException(
          "the grammar is too long: characters expected<="
              + MOST_LENGTH
              + " actual="
              + text.length());
    }
    return new GrammarParser(text).rules();
  }

  private GrammarRules rules() {
    skip(true);
    while (at < text.length()) {
      rule();
      skip(true);
    }
    Integer root = names.get("root");
    if (root == null || !rules.isDefined(root)) {
      at = text.length();
      throw error("a rule named root", "none");
    }
    firstUse.forEach((rule, position) -> {
      if (!rules.isDefined(rule)) {
        at = position;
        throw error("a rule that is defined", name());
      }
    });
    return rules.build(root);
  }

  private void rule() {
    int start = at;
    String name = name();
    if (name.isEmpty()) {
      throw error("the name of a rule", here());
    }
    int rule = names.computeIfAbsent(name, rules::newRule);
    if (rules.isDefined(rule)) {
      at = start;
      throw error("a rule that is not defined yet", name);
    }
    skip(false);
    if (!text.startsWith("::=", at)) {
      throw error("::=", here());
    }
    at += 3;
    skip(true);
    alternatives(rule, false);
    if (at < text.length() && text.charAt(at) != '\n' && text.charAt(at) != '\r') {
      throw error("the end of the line", here());
    }
  }

  private void alternatives(int rule, boolean nested) {
    while (true) {
      rules.add(rule, sequence(nested));
      int end = at;
      skip(true);
      if (at < text.length() && text.charAt(at) == '|') {
        at++;
        skip(true);
      } else {
        if (!nested) {
          at = end;
        }
        return;
      }
    }
  }

  private List<Element> sequence(boolean nested) {
    List<Element> out = new ArrayList<>();
    while (true) {
      skip(nested);
      if (at == text.length()) {
        return out;
      }
      int begin = out.size();
      char c = text.charAt(at);
      if (c == '"') {
        literal(out);
      } else if (c == '[') {
        out.add(rules.character(characters()));
      } else if (c == '.') {
        at++;
        out.add(rules.character(all()));
      } else if (c == '(') {
        at++;
        if (++depth > MOST_DEPTH) {
          throw error("at most " + MOST_DEPTH + " nested groups", "more");
        }
        int group = rules.newRule("group");
        skip(true);
        alternatives(group, true);
        if (at == text.length() || text.charAt(at) != ')') {
          throw error(")", here());
        }
        at++;
        depth--;
        out.add(new Reference(group));
      } else if (isName(c)) {
        int where = at;
        int rule = names.computeIfAbsent(name(), rules::newRule);
        firstUse.putIfAbsent(rule, where);
        out.add(new Reference(rule));
      } else {
        return out;
      }
      repetition(out, begin);
    }
  }

  /** Applies an operator to what stands behind {@code begin}. */
  private void repetition(List<Element> out, int begin) {
    while (true) {
      skip(false);
      if (at == text.length() || "*+?{".indexOf(text.charAt(at)) < 0) {
        return;
      }
      int start = at;
      int least;
      int most;
      switch (text.charAt(at++)) {
        case '*' -> {
          least = 0;
          most = -1;
        }
        case '+' -> {
          least = 1;
          most = -1;
        }
        case '?' -> {
          least = 0;
          most = 1;
        }
        default -> {
          skip(true);
          least = number();
          most = least;
          skip(true);
          if (at < text.length() && text.charAt(at) == ',') {
            at++;
            skip(true);
            most = at < text.length() && text.charAt(at) != '}' ? number() : -1;
            skip(true);
          }
          if (at == text.length() || text.charAt(at) != '}') {
            throw error("}", here());
          }
          at++;
        }
      }
      if (most >= 0 && most < least) {
        at = start;
        throw error("{least,most} with least <= most", least + "," + most);
      }
      List<Element> operand = new ArrayList<>(out.subList(begin, out.size()));
      out.subList(begin, out.size()).clear();
      Element one;
      if (operand.size() == 1) {
        one = operand.getFirst();
      } else {
        int group = rules.newRule("literal");
        rules.add(group, operand);
        one = new Reference(group);
      }
      out.add(rules.repeat(one, least, most));
    }
  }

  private int number() {
    int start = at;
    int value = 0;
    while (at < text.length() && Character.digit(text.charAt(at), 10) >= 0) {
      value = value * 10 + Character.digit(text.charAt(at++), 10);
      if (value > MOST_REPETITIONS) {
        throw error("at most " + MOST_REPETITIONS + " repetitions", text.substring(start, at));
      }
    }
    if (start == at) {
      throw error("a number", here());
    }
    return value;
  }

  private void literal(List<Element> out) {
    int start = at++;
    while (true) {
      if (at == text.length() || text.charAt(at) == '\n') {
        at = start;
        throw error("a closing \"", "none");
      }
      if (text.charAt(at) == '"') {
        at++;
        return;
      }
      BitSet one = new BitSet();
      one.set(character());
      Element e = rules.character(one);
      out.add(e);
    }
  }

  private BitSet characters() {
    int start = at++;
    BitSet set = new BitSet();
    boolean negated = at < text.length() && text.charAt(at) == '^';
    if (negated) {
      at++;
    }
    while (at < text.length() && text.charAt(at) != ']') {
      int from = character();
      int to = from;
      if (at + 1 < text.length() && text.charAt(at) == '-' && text.charAt(at + 1) != ']') {
        at++;
        to = character();
      }
      if (to < from) {
        throw error("a range from small to large", from + "-" + to);
      }
      set.set(from, to + 1);
    }
    if (at == text.length()) {
      at = start;
      throw error("a closing ]", "none");
    }
    at++;
    if (negated) {
      set.flip(0, CODE_POINTS);
    }
    set.clear(0xd800, 0xe000);
    if (set.isEmpty()) {
      at = start;
      throw error(
          "a class with a character", text.substring(start, Math.min(text.length(), start + 8)));
    }
    return set;
  }

  private static BitSet all() {
    BitSet set = new BitSet(CODE_POINTS);
    set.set(0, CODE_POINTS);
    set.clear(0xd800, 0xe000);
    return set;
  }

  /** One character, escaped or not. */
  private int character() {
    int c = text.codePointAt(at);
    if (c != '\\') {
      at += Character.charCount(c);
      if (c >= 0xd800 && c <= 0xdfff) {
        throw error("a character", "half a surrogate pair");
      }
      return c;
    }
    at++;
    if (at == text.length()) {
      throw error("an escape", "the end");
    }
    char e = text.charAt(at++);
    return switch (e) {
      case 'n' -> '\n';
      case 'r' -> '\r';
      case 't' -> '\t';
      case 'x' -> hex(2);
      case 'u' -> hex(4);
      case 'U' -> hex(8);
      case '\\', '"', '[', ']', '-', '^' -> e;
      default -> {
        at--;
        throw error("an escape n r t x u U \\ \" [ ] - ^", String.valueOf(e));
      }
    };
  }

  private int hex(int digits) {
    long value = 0;
    for (int i = 0; i < digits; i++) {
      int digit = at < text.length() ? Character.digit(text.charAt(at), 16) : -1;
      if (digit < 0) {
        throw error(digits + " hexadecimal digits", here());
      }
      value = value * 16 + digit;
      at++;
    }
    if (value >= CODE_POINTS || value >= 0xd800 && value <= 0xdfff) {
      throw error("a character", Long.toHexString(value));
    }
    return (int) value;
  }

  static boolean isName(char c) {
    return c >= 'a' && c <= 'z'
        || c >= 'A' && c <= 'Z'
        || c >= '0' && c <= '9'
        || c == '-'
        || c == '_';
  }

  private String name() {
    int start = at;
    while (at < text.length() && isName(text.charAt(at))) {
      at++;
    }
    return text.substring(start, at);
  }

  private void skip(boolean lines) {
    while (at < text.length()) {
      char c = text.charAt(at);
      if (c == '#') {
        while (at < text.length() && text.charAt(at) != '\n') {
          at++;
        }
      } else if (c == ' ' || c == '\t' || lines && (c == '\n' || c == '\r')) {
        at++;
      } else {
        return;
      }
    }
  }

  private String here() {
    return at == text.length() ? "the end" : new String(Character.toChars(text.codePointAt(at)));
  }

  private SamplingException error(String expected, String actual) {
    int line = 1;
    int column = 1;
    for (int i = 0; i < Math.min(at, text.length()); i++) {
      column++;
      if (text.charAt(i) == '\n') {
        line++;
        column = 1;
      }
    }
    return new SamplingException(
        "grammar line "
            + line
            + " column "
            + column
            + ": expected="
            + expected
            + " actual="
            + actual);
  }
}
