package io.fletch.tests.softgpu;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Splits PTX text into kernels, variables, registers and statements; knows no instruction. */
final class PtxParser {
  /** A register; {@code slot} counts predicates and others apart. */
  record Register(String name, String type, int slot) {
    boolean predicate() {
      return type.equals("pred");
    }
  }

  /** A kernel parameter in the parameter block. */
  record Parameter(String name, int offset, int size, int align) {}

  /** A variable with its place in its space. */
  record Variable(String space, String name, int align, long size, byte[] initial) {}

  /** One instruction, its operands as written. */
  record Statement(
      int line,
      String text,
      String guard,
      boolean negated,
      String opcode,
      List<String> operands,
      Map<String, Register> scope) {}

  static final class Kernel {
    String name;
    final List<Parameter> parameters = new ArrayList<>();
    int parameterBytes;
    final List<Statement> statements = new ArrayList<>();
    final Map<String, Integer> labels = new HashMap<>();
    final Map<String, Variable> shared = new LinkedHashMap<>();
    int registers;
    int predicates;
    int maxThreads = 1024;
    int[] requiredThreads;
  }

  final Map<String, Kernel> kernels = new LinkedHashMap<>();
  final Map<String, Variable> variables = new LinkedHashMap<>();
  String version = "";
  String target = "";

  private final String text;
  private int at;
  private int line = 1;

  PtxParser(String source) {
    text = withoutComments(source);
    module();
  }

  private static String withoutComments(String s) {
    StringBuilder out = new StringBuilder(s.length());
    for (int i = 0; i < s.length(); i++) {
      if (s.startsWith("//", i)) {
        while (i < s.length() && s.charAt(i) != '\n') {
          i++;
        }
        out.append('\n');
      } else if (s.startsWith("/*", i)) {
        int end = s.indexOf("*/", i + 2);
        end = end < 0 ? s.length() : end + 2;
        for (; i < end; i++) {
          if (s.charAt(i) == '\n') {
            out.append('\n');
          }
        }
        i--;
      } else {
        out.append(s.charAt(i));
      }
    }
    return out.toString();
  }

  private PtxException error(String message) {
    return new PtxException(line, message);
  }

  private void space() {
    while (at < text.length() && Character.isWhitespace(text.charAt(at))) {
      if (text.charAt(at) == '\n') {
        line++;
      }
      at++;
    }
  }

  private boolean end() {
    space();
    return at >= text.length();
  }

  private boolean peek(char c) {
    return !end() && text.charAt(at) == c;
  }

  private void expect(char c) {
    if (!peek(c)) {
      throw error(
          "expected '" + c + "' actual=" + (end() ? "end of text" : "'" + text.charAt(at) + "'"));
    }
    at++;
  }

  private static boolean wordChar(char c) {
    return Character.isLetterOrDigit(c) || c == '_' || c == '$' || c == '%' || c == '.' || c == ':';
  }

  private String word() {
    space();
    int from = at;
    while (at < text.length() && wordChar(text.charAt(at))) {
      // A single colon ends a label; a double one is part of a modifier.
      if (text.charAt(at) == ':') {
        if (!text.startsWith("::", at)) {
          break;
        }
        at++;
      }
      at++;
    }
    if (from == at) {
      throw error(
          "expected a word, actual="
              + (at < text.length() ? "'" + text.charAt(at) + "'" : "end of text"));
    }
    return text.substring(from, at);
  }

  /** Text up to one of the characters, outside of brackets; not consumed. */
  private String until(char stop, char other) {
    space();
    int from = at;
    int depth = 0;
    while (at < text.length()) {
      char c = text.charAt(at);
      if (depth == 0 && (c == stop || c == other)) {
        return text.substring(from, at).strip();
      }
      if (c == '{' || c == '[' || c == '(') {
        depth++;
      } else if (c == '}' || c == ']' || c == ')') {
        depth--;
      } else if (c == '\n') {
        line++;
      }
      at++;
    }
    throw error("expected '" + stop + "', actual=end of text");
  }

  private void module() {
    while (!end()) {
      String w = word();
      switch (w) {
        case ".version" -> version = word();
        case ".target" -> {
          target = word();
          while (peek(',')) {
            at++;
            word();
          }
        }
        case ".address_size" -> {
          if (!word().equals("64")) {
            throw error("only 64-bit addresses");
          }
        }
        case ".visible", ".extern", ".weak" -> {
          boolean extern = w.equals(".extern");
          String next = word();
          if (next.equals(".entry")) {
            kernel();
          } else if (next.equals(".global") || next.equals(".const") || next.equals(".shared")) {
            Variable v = variable(next, extern);
            variables.put(v.name(), v);
          } else {
            throw error("unsupported directive: " + next);
          }
        }
        case ".entry" -> kernel();
        case ".global", ".const", ".shared" -> {
          Variable v = variable(w, false);
          variables.put(v.name(), v);
        }
        default -> throw error("unsupported directive: " + w);
      }
    }
    if (version.isEmpty() || target.isEmpty()) {
      throw error("missing .version or .target");
    }
  }

  static int sizeOf(String type) {
    String t = type.startsWith(".") ? type.substring(1) : type;
    return switch (t) {
      case "b8", "u8", "s8" -> 1;
      case "b16", "u16", "s16", "f16", "bf16" -> 2;
      case "b32", "u32", "s32", "f32", "f16x2", "bf16x2", "tf32" -> 4;
      case "b64", "u64", "s64", "f64" -> 8;
      case "b128" -> 16;
      case "pred" -> 0;
      default -> -1;
    };
  }

  private Variable variable(String space, boolean extern) {
    int align = 0;
    String type = word();
    if (type.equals(".align")) {
      align = Integer.parseInt(word());
      type = word();
    }
    int element = sizeOf(type);
    if (element <= 0) {
      throw error("unknown type: " + type);
    }
    String name = word();
    long count = 1;
    boolean sized = true;
    while (peek('[')) {
      at++;
      String n = until(']', ']');
      at++;
      if (n.isEmpty()) {
        sized = false;
      } else {
        count *= Long.decode(n);
      }
    }
    byte[] initial = null;
    if (peek('=')) {
      at++;
      initial = initial(until(';', ';'), element, Math.toIntExact(count));
    }
    expect(';');
    if (!sized && !(extern && space.equals(".shared"))) {
      throw error("variable without a size: " + name);
    }
    return new Variable(
        space, name, align == 0 ? element : align, sized ? count * element : -1, initial);
  }

  private byte[] initial(String text, int element, int count) {
    String t = text.strip();
    String[] values =
        t.startsWith("{") ? t.substring(1, t.length() - 1).split(",") : new String[] {t};
    byte[] bytes = new byte[element * count];
    for (int i = 0; i < values.length; i++) {
      long v = immediate(values[i].strip(), line);
      for (int b = 0; b < element; b++) {
        bytes[i * element + b] = (byte) (v >>> (8 * b));
      }
    }
    return bytes;
  }

  static boolean isImmediate(String s) {
    return !s.isEmpty()
        && (Character.isDigit(s.charAt(0))
            || s.charAt(0) == '-' && s.length() > 1 && Character.isDigit(s.charAt(1)));
  }

  /** The bits of a literal; floats as 64-bit unless written as 0f. */
  static long immediate(String s, int line) {
    try {
      boolean negative = s.startsWith("-");
      String t = negative ? s.substring(1) : s;
      if (t.startsWith("0f") || t.startsWith("0F")) {
        return Integer.parseUnsignedInt(t.substring(2), 16) ^ (negative ? 0x80000000L : 0);
      }
      if (t.startsWith("0d") || t.startsWith("0D")) {
        return Long.parseUnsignedLong(t.substring(2), 16);
      }
      if (t.endsWith("U")) {
        t = t.substring(0, t.length() - 1);
      }
      long v;
      if (t.startsWith("0x") || t.startsWith("0X")) {
        v = Long.parseUnsignedLong(t.substring(2), 16);
      } else if (t.startsWith("0b")) {
        v = Long.parseUnsignedLong(t.substring(2), 2);
      } else if (t.contains(".") || t.contains("e")) {
        return Double.doubleToRawLongBits(Double.parseDouble(s));
      } else {
        v = Long.parseUnsignedLong(t);
      }
      return negative ? -v : v;
    } catch (NumberFormatException e) {
      throw new PtxException(line, "not a number: " + s);
    }
  }

  private void kernel() {
    Kernel k = new Kernel();
    k.name = word();
    if (kernels.put(k.name, k) != null) {
      throw error("kernel declared twice: " + k.name);
    }
    if (peek('(')) {
      at++;
      int offset = 0;
      while (!peek(')')) {
        if (!word().equals(".param")) {
          throw error("expected .param");
        }
        int align = 0;
        String type = word();
        if (type.equals(".align")) {
          align = Integer.parseInt(word());
          type = word();
        }
        String next = word();
        while (next.startsWith(".")) { // .ptr .global .align n
          if (next.equals(".align")) {
            word();
          }
          next = word();
        }
        int size = sizeOf(type);
        if (size <= 0) {
          throw error("unknown type: " + type);
        }
        int unit = align == 0 ? size : align;
        if (peek('[')) {
          at++;
          size *= Integer.decode(until(']', ']'));
          at++;
        }
        offset = (offset + unit - 1) / unit * unit;
        k.parameters.add(new Parameter(next, offset, size, unit));
        offset += size;
        if (peek(',')) {
          at++;
        }
      }
      at++;
      k.parameterBytes = offset;
    }
    while (!peek('{')) {
      String w = word();
      switch (w) {
        case ".reqntid", ".maxntid" -> {
          int[] n = {1, 1, 1};
          int i = 0;
          do {
            if (i > 0) {
              at++;
            }
            n[i++] = Integer.parseInt(word());
          } while (peek(',') && i < 3);
          if (w.equals(".reqntid")) {
            k.requiredThreads = n;
          }
          k.maxThreads = n[0] * n[1] * n[2];
        }
        case ".minnctapersm", ".maxnreg", ".noreturn" -> {
          if (!w.equals(".noreturn")) {
            word();
          }
        }
        case ".pragma" -> {
          until(';', ';');
          at++;
        }
        default -> throw error("unsupported directive: " + w);
      }
    }
    at++;
    Deque<Map<String, Register>> scopes = new ArrayDeque<>();
    scopes.push(new HashMap<>());
    while (!scopes.isEmpty()) {
      if (end()) {
        throw error("expected '}', actual=end of text");
      }
      if (peek('}')) {
        at++;
        scopes.pop();
        continue;
      }
      if (peek('{')) {
        at++;
        scopes.push(new HashMap<>(scopes.peek()));
        continue;
      }
      if (peek('@')) {
        int l = line;
        at++;
        boolean negated = peek('!');
        if (negated) {
          at++;
        }
        String guard = word();
        statement(k, scopes.peek(), l, guard, negated, word());
        continue;
      }
      int l = line;
      String w = word();
      if (peek(':')) {
        at++;
        if (k.labels.put(w, k.statements.size()) != null) {
          throw error("label declared twice: " + w);
        }
        continue;
      }
      switch (w) {
        case ".reg" -> registers(k, scopes.peek());
        case ".shared" -> {
          Variable v = variable(w, false);
          k.shared.put(v.name(), v);
        }
        case ".pragma", ".loc", ".file" -> {
          until(w.equals(".pragma") ? ';' : '\n', w.equals(".pragma") ? ';' : '\n');
          at++;
          if (!w.equals(".pragma")) {
            line++;
          }
        }
        default -> {
          if (w.startsWith(".")) {
            throw error("unsupported directive: " + w);
          }
          statement(k, scopes.peek(), l, null, false, w);
        }
      }
    }
    k.labels.forEach((name, index) -> {
      if (index > k.statements.size()) {
        throw error("label outside: " + name);
      }
    });
  }

  private void registers(Kernel k, Map<String, Register> scope) {
    String type = word().substring(1);
    if (sizeOf(type) < 0 || type.equals("b128")) {
      throw error("unknown register type: " + type);
    }
    for (String part : until(';', ';').split(",")) {
      String name = part.strip();
      int open = name.indexOf('<');
      if (open >= 0) {
        int n = Integer.parseInt(name.substring(open + 1, name.indexOf('>')).strip());
        for (int i = 0; i < n; i++) {
          declare(k, scope, name.substring(0, open).strip() + i, type);
        }
      } else {
        declare(k, scope, name, type);
      }
    }
    expect(';');
  }

  private static void declare(Kernel k, Map<String, Register> scope, String name, String type) {
    scope.put(name, new Register(name, type, type.equals("pred") ? k.predicates++ : k.registers++));
  }

  private void statement(
      Kernel k, Map<String, Register> scope, int l, String guard, boolean negated, String opcode) {
    String rest = until(';', ';');
    expect(';');
    k.statements.add(
        new Statement(
            l,
            (guard == null ? "" : "@" + (negated ? "!" : "") + guard + " ")
                + opcode
                + (rest.isEmpty() ? "" : " " + rest),
            guard,
            negated,
            opcode,
            split(rest),
            scope));
  }

  /** Splits at commas outside of brackets. */
  static List<String> split(String s) {
    List<String> parts = new ArrayList<>();
    int depth = 0;
    int from = 0;
    for (int i = 0; i < s.length(); i++) {
      char c = s.charAt(i);
      if (c == '{' || c == '[' || c == '(') {
        depth++;
      } else if (c == '}' || c == ']' || c == ')') {
        depth--;
      } else if (c == ',' && depth == 0) {
        parts.add(s.substring(from, i).strip());
        from = i + 1;
      }
    }
    if (!s.isBlank()) {
      parts.add(s.substring(from).strip());
    }
    return parts;
  }
}
