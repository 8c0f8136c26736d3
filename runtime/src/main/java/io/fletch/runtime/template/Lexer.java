package io.fletch.runtime.template;

import java.util.ArrayList;
import java.util.List;

/**
 * Cuts a template into tokens. White space around tags follows Jinja with {@code trim_blocks} and
 * {@code lstrip_blocks} on and {@code keep_trailing_newline} off.
 */
final class Lexer {
  private static final List<String> OPERATORS =
      List.of(
          "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{",
          "}", ">", "<", "=", ".", ":", "|", ",", ";");

  private final String source;
  private final List<Token> tokens = new ArrayList<>();
  private int at;
  private int line = 1;

  /** Whether the last tag took a line feed with it, so that the text after it starts a line. */
  private boolean lineStarting = true;

  private Lexer(String source) {
    String lines = source.replace("\r\n", "\n").replace('\r', '\n');
    this.source = lines.endsWith("\n") ? lines.substring(0, lines.length() - 1) : lines;
  }

  /** All tokens, with {@link Token.Kind#END} at the end. */
  static List<Token> tokens(String source) {
    Lexer lexer = new Lexer(source);
    try {
      lexer.run();
    } catch (TemplateError e) {
      throw new TemplateError("line " + lexer.line + ": " + e.getMessage());
    }
    return lexer.tokens;
  }

  private void run() {
    while (at < source.length()) {
      int open = nextTag();
      if (open < 0) {
        data(source.substring(at));
        at = source.length();
        break;
      }
      char kind = source.charAt(open + 1);
      int inner = open + 2;
      String text = source.substring(at, open);
      char sign = inner < source.length() ? source.charAt(inner) : ' ';
      if (sign == '-') {
        text = stripEnd(text);
        inner++;
      } else if (sign == '+') {
        inner++;
      } else if (kind != '{') {
        text = stripLine(text);
      }
      data(text);
      line += count(source, at, open) - count(text);
      at = inner;
      switch (kind) {
        case '{' -> output();
        case '%' -> {
          if (!raw()) {
            block();
          }
        }
        default -> comment();
      }
    }
    tokens.add(new Token(Token.Kind.END, "", line));
  }

  private int nextTag() {
    for (int i = source.indexOf('{', at); i >= 0; i = source.indexOf('{', i + 1)) {
      if (i + 1 < source.length() && "{%#".indexOf(source.charAt(i + 1)) >= 0) {
        return i;
      }
    }
    return -1;
  }

  private void data(String text) {
    if (!text.isEmpty()) {
      tokens.add(new Token(Token.Kind.DATA, text, line));
      line += count(text);
    }
  }

  private static int count(String text) {
    return count(text, 0, text.length());
  }

  private static int count(String text, int from, int to) {
    int lines = 0;
    for (int i = from; i < to; i++) {
      lines += text.charAt(i) == '\n' ? 1 : 0;
    }
    return lines;
  }

  private static String stripEnd(String text) {
    int end = text.length();
    while (end > 0 && Values.isSpace(text.charAt(end - 1))) {
      end--;
    }
    return text.substring(0, end);
  }

  /** Drops the indentation before a tag that is the first thing on its line. */
  private String stripLine(String text) {
    int start = text.lastIndexOf('\n') + 1;
    if (start == 0 && !lineStarting) {
      return text;
    }
    for (int i = start; i < text.length(); i++) {
      if (!Values.isSpace(text.charAt(i))) {
        return text;
      }
    }
    return text.substring(0, start);
  }

  /** Moves over the end of a tag at {@code from}; {@code trim} drops one line feed after it. */
  private void close(int from, char sign, int length, boolean trim) {
    int end = from + length;
    if (sign == '-') {
      while (end < source.length() && Values.isSpace(source.charAt(end))) {
        end++;
      }
    } else if (sign != '+' && trim && end < source.length() && source.charAt(end) == '\n') {
      end++;
    }
    line += count(source, from, end);
    lineStarting = source.charAt(end - 1) == '\n';
    at = end;
  }

  private void comment() {
    int end = source.indexOf("#}", at);
    if (end < 0) {
      throw new TemplateError("comment without end");
    }
    char sign = end > at ? source.charAt(end - 1) : ' ';
    line += count(source, at, end);
    close(end, sign, 2, true);
  }

  private boolean raw() {
    int name = skipSpace(at);
    if (!source.startsWith("raw", name)) {
      return false;
    }
    int end = skipSpace(name + 3);
    boolean strip = end < source.length() && source.charAt(end) == '-';
    end += strip ? 1 : 0;
    if (!source.startsWith("%}", end)) {
      return false;
    }
    int body = end + 2;
    if (strip) {
      body = skipSpace(body);
    } else if (body < source.length() && source.charAt(body) == '\n') {
      body++;
    }
    line += count(source, at, body);
    lineStarting = source.charAt(body - 1) == '\n';
    at = body;
    for (int open = source.indexOf("{%", at); open >= 0; open = source.indexOf("{%", open + 2)) {
      int inner = open + 2;
      char begin = inner < source.length() ? source.charAt(inner) : ' ';
      int word = skipSpace(begin == '-' || begin == '+' ? inner + 1 : inner);
      if (!source.startsWith("endraw", word)) {
        continue;
      }
      int close = skipSpace(word + 6);
      char sign = close < source.length() ? source.charAt(close) : ' ';
      int mark = sign == '-' || sign == '+' ? close + 1 : close;
      if (!source.startsWith("%}", mark)) {
        continue;
      }
      String text = source.substring(at, open);
      String kept = begin == '-' ? stripEnd(text) : begin == '+' ? text : stripLine(text);
      data(kept);
      line += count(text) - count(kept) + count(source, open, mark);
      close(mark, sign, 2, true);
      return true;
    }
    throw new TemplateError("raw block without endraw");
  }

  private int skipSpace(int from) {
    int i = from;
    while (i < source.length() && Values.isSpace(source.charAt(i))) {
      i++;
    }
    return i;
  }

  private void output() {
    tokens.add(new Token(Token.Kind.OUTPUT_BEGIN, "{{", line));
    expression("}}");
    tokens.add(new Token(Token.Kind.OUTPUT_END, "}}", line));
  }

  private void block() {
    tokens.add(new Token(Token.Kind.BLOCK_BEGIN, "{%", line));
    expression("%}");
    tokens.add(new Token(Token.Kind.BLOCK_END, "%}", line));
  }

  /** Tokens up to the end mark, which counts only outside of brackets. */
  private void expression(String mark) {
    int depth = 0;
    while (true) {
      int next = skipSpace(at);
      line += count(source, at, next);
      at = next;
      if (at >= source.length()) {
        throw new TemplateError("expected '" + mark + "', found end of template");
      }
      if (depth == 0) {
        char sign = source.charAt(at);
        boolean signed = sign == '-' || sign == '+' && mark.equals("%}");
        if (signed && source.startsWith(mark, at + 1)) {
          close(at + 1, sign, 2, false);
          return;
        }
        if (source.startsWith(mark, at)) {
          close(at, ' ', 2, mark.equals("%}"));
          return;
        }
      }
      char c = source.charAt(at);
      if (c == '"' || c == '\'') {
        string(c);
      } else if (c >= '0' && c <= '9') {
        number();
      } else if (Character.isUnicodeIdentifierStart(c) || c == '_') {
        int end = at + 1;
        while (end < source.length()
            && (Character.isUnicodeIdentifierPart(source.charAt(end))
                || source.charAt(end) == '_')) {
          end++;
        }
        tokens.add(new Token(Token.Kind.NAME, source.substring(at, end), line));
        at = end;
      } else {
        String operator = operator();
        if ("([{".contains(operator)) {
          depth++;
        } else if (")]}".contains(operator)) {
          if (depth == 0) {
            throw new TemplateError("unexpected '" + operator + "'");
          }
          depth--;
        }
        tokens.add(new Token(Token.Kind.OPERATOR, operator, line));
        at += operator.length();
      }
    }
  }

  private String operator() {
    for (String operator : OPERATORS) {
      if (source.startsWith(operator, at)) {
        return operator;
      }
    }
    throw new TemplateError(
        "unexpected character '" + Character.toString(source.codePointAt(at)) + "'");
  }

  private void number() {
    int end = at;
    while (end < source.length() && isDigit(source.charAt(end))) {
      end++;
    }
    boolean isFloat = false;
    if (end + 1 < source.length()
        && source.charAt(end) == '.'
        && isDigit(source.charAt(end + 1))
        && source.charAt(end + 1) != '_') {
      isFloat = true;
      end++;
      while (end < source.length() && isDigit(source.charAt(end))) {
        end++;
      }
    }
    if (end < source.length() && (source.charAt(end) == 'e' || source.charAt(end) == 'E')) {
      int exponent = end + 1;
      if (exponent < source.length() && "+-".indexOf(source.charAt(exponent)) >= 0) {
        exponent++;
      }
      if (exponent < source.length() && isDigit(source.charAt(exponent))) {
        isFloat = true;
        end = exponent;
        while (end < source.length() && isDigit(source.charAt(end))) {
          end++;
        }
      }
    }
    if (end < source.length() && Character.isLetter(source.charAt(end))) {
      throw new TemplateError("malformed number");
    }
    String digits = source.substring(at, end).replace("_", "");
    Object value;
    try {
      value = isFloat ? (Object) Double.valueOf(digits) : (Object) Long.valueOf(digits);
    } catch (NumberFormatException e) {
      throw new TemplateError("number out of range: " + digits);
    }
    tokens.add(new Token(Token.Kind.NUMBER, value, line));
    at = end;
  }

  private static boolean isDigit(char c) {
    return c >= '0' && c <= '9' || c == '_';
  }

  private void string(char quote) {
    StringBuilder text = new StringBuilder();
    int i = at + 1;
    while (true) {
      if (i >= source.length()) {
        throw new TemplateError("string without end");
      }
      char c = source.charAt(i++);
      if (c == quote) {
        break;
      }
      if (c != '\\') {
        text.append(c);
        continue;
      }
      if (i >= source.length()) {
        throw new TemplateError("string without end");
      }
      char escaped = source.charAt(i++);
      switch (escaped) {
        case '\n' -> {}
        case 'n' -> text.append('\n');
        case 't' -> text.append('\t');
        case 'r' -> text.append('\r');
        case 'b' -> text.append('\b');
        case 'f' -> text.append('\f');
        case 'v' -> text.append('\u000B');
        case 'a' -> text.append('\u0007');
        case '\\', '\'', '"' -> text.append(escaped);
        case 'x' -> i = hex(text, i, 2);
        case 'u' -> i = hex(text, i, 4);
        case 'U' -> i = hex(text, i, 8);
        case '0', '1', '2', '3', '4', '5', '6', '7' -> {
          int value = escaped - '0';
          for (int n = 0;
              n < 2 && i < source.length() && source.charAt(i) >= '0' && source.charAt(i) <= '7';
              n++) {
            value = value * 8 + source.charAt(i++) - '0';
          }
          text.append((char) value);
        }
        case 'N' -> throw new TemplateError("escape \\N is not supported");
        default -> text.append('\\').append(escaped);
      }
    }
    tokens.add(new Token(Token.Kind.STRING, text.toString(), line));
    line += count(source, at, i);
    at = i;
  }

  private int hex(StringBuilder text, int from, int digits) {
    int end = from + digits;
    if (end > source.length() || !source.substring(from, end).matches("\\p{XDigit}+")) {
      throw new TemplateError("malformed escape in string");
    }
    long value = Long.parseLong(source.substring(from, end), 16);
    if (value > Character.MAX_CODE_POINT) {
      throw new TemplateError("malformed escape in string");
    }
    text.appendCodePoint((int) value);
    return end;
  }
}
