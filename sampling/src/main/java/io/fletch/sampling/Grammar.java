package io.fletch.sampling;

import java.util.Map;
import java.util.Objects;

/**
 * A set of texts that an answer must be one of: a context-free grammar over bytes, from GBNF text
 * or a JSON schema. Immutable and thread-safe; two grammars are equal if their texts are.
 *
 * <p>GBNF is the notation of llama.cpp: rules {@code name ::= ...}, the first to be used is {@code
 * root}; quoted text with the escapes of C for newline, return and tab, of backslash, quotation
 * mark and brackets, and {@code x}, {@code u}, {@code U} with 2, 4, 8 hexadecimal digits; classes
 * {@code [a-z_]} and {@code [^0-9]}; {@code .} for any character; groups in parentheses; {@code |};
 * repetition {@code * + ? {3} {3,} {3,5}}; comments from {@code #}. A rule ends with its line,
 * except inside parentheses and before a line that begins with {@code |}. Left recursion is
 * refused.
 */
public final class Grammar {
  private final String text;
  private final GrammarRules rules;

  private Grammar(String text) {
    this.text = Objects.requireNonNull(text, "text");
    this.rules = GrammarParser.parse(text);
  }

  /**
   * Reads GBNF.
   *
   * @throws SamplingException with line and column if it is not a grammar
   */
  public static Grammar parse(String gbnf) {
    return new Grammar(gbnf);
  }

  /**
   * The JSON texts that a schema describes; every one of them validates. It may describe fewer than
   * the schema: members come in the order of {@code properties} and no others where that is given,
   * whitespace runs are at most 8 characters, numbers at most 16 digits before and after the point.
   *
   * @param schema the schema as parsed JSON: maps, lists, strings, numbers, booleans, null
   * @throws SamplingException for keywords that cannot be guaranteed, naming them
   */
  public static Grammar ofJsonSchema(Map<String, ?> schema) {
    return new Grammar(new JsonSchemaRules(schema).text());
  }

  /** Any JSON object. */
  public static Grammar ofJsonObject() {
    return ofJsonSchema(Map.of("type", "object"));
  }

  /** The texts of this grammar and those of another. */
  public Grammar or(Grammar other) {
    return new Grammar(
        "root ::= a-root | b-root\n" + renamed("a-", text) + "\n" + renamed("b-", other.text));
  }

  /**
   * The grammar as a rule to be put into a larger GBNF text: {@code prefix-root} and all rules that
   * it needs, renamed in the same way.
   *
   * @param prefix a letter and then letters, digits or hyphens
   */
  public String part(String prefix) {
    if (!prefix.matches("[a-zA-Z][a-zA-Z0-9-]*")) {
      throw new IllegalArgumentException(
          "prefix: expected=a letter, then letters, digits or hyphens actual=" + prefix);
    }
    return renamed(prefix + "-", text);
  }

  /** Puts a prefix before every name, which is what stands outside of texts and classes. */
  private static String renamed(String prefix, String gbnf) {
    StringBuilder out = new StringBuilder(gbnf.length() * 2);
    for (int i = 0; i < gbnf.length(); ) {
      char c = gbnf.charAt(i);
      int end = i + 1;
      if (c == '"' || c == '[') {
        char close = c == '"' ? '"' : ']';
        while (gbnf.charAt(end) != close) {
          end += gbnf.charAt(end) == '\\' ? 2 : 1;
        }
        end++;
      } else if (c == '{') {
        end = gbnf.indexOf('}', i) + 1;
      } else if (c == '#') {
        int line = gbnf.indexOf('\n', i);
        end = line < 0 ? gbnf.length() : line;
      } else if (GrammarParser.isName(c)) {
        out.append(prefix);
        while (end < gbnf.length() && GrammarParser.isName(gbnf.charAt(end))) {
          end++;
        }
      }
      out.append(gbnf, i, end);
      i = end;
    }
    return out.toString();
  }

  /** The grammar as GBNF. */
  public String text() {
    return text;
  }

  GrammarRules rules() {
    return rules;
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Grammar g && text.equals(g.text);
  }

  @Override
  public int hashCode() {
    return text.hashCode();
  }

  @Override
  public String toString() {
    return text;
  }
}
