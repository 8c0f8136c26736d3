package io.fletch;

import io.fletch.sampling.Grammar;
import java.io.IOException;
import java.util.ArrayDeque;
import java.util.Collections;
import java.util.Deque;
import java.util.IdentityHashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;

/**
 * Calls in the notation of Qwen3-Coder, which is XML to the eye alone: nothing is escaped.
 *
 * <pre>{@code
 * <tool_call>
 * <function=NAME>
 * <parameter=KEY>
 * value, of any number of lines
 * </parameter>
 * </function>
 * </tool_call>
 * }</pre>
 *
 * <p>A parameter ends at the first {@code </parameter>} behind which another parameter or the end
 * of the function stands.
 */
final class XmlToolCalls {
  static final String FUNCTION = "<function=";
  static final String PARAMETER = "<parameter=";
  private static final String END_FUNCTION = "</function>";
  private static final String END_PARAMETER = "</parameter>";

  /** A call and where it ends. */
  record Found(ToolCallFormat.Call call, int end) {}

  private XmlToolCalls() {}

  /**
   * Reads a call.
   *
   * @param at where {@link #FUNCTION} begins
   * @param tools schemas by name
   * @return empty if it is none, or not whole
   */
  static Optional<Found> read(String text, int at, Map<String, ?> tools) {
    int nameEnd = text.indexOf('>', at);
    if (nameEnd < 0) {
      return Optional.empty();
    }
    String name = text.substring(at + FUNCTION.length(), nameEnd).strip();
    Map<String, Object> arguments = new LinkedHashMap<>();
    int next = ToolCallFormat.skipBlanks(text, nameEnd + 1);
    while (text.startsWith(PARAMETER, next)) {
      int keyEnd = text.indexOf('>', next);
      int end = keyEnd < 0 ? -1 : endOfParameter(text, keyEnd + 1);
      if (end < 0) {
        return Optional.empty();
      }
      String key = text.substring(next + PARAMETER.length(), keyEnd).strip();
      String value = withoutLineEnds(text.substring(keyEnd + 1, end));
      arguments.put(key, value(value, types(tools.get(name), key)));
      next = ToolCallFormat.skipBlanks(text, end + END_PARAMETER.length());
    }
    // Text about the notation has no name of a function there.
    boolean isName = tools.containsKey(name) || name.matches("[^\\s<]+");
    if (!isName || !text.startsWith(END_FUNCTION, next)) {
      return Optional.empty();
    }
    try {
      return Optional.of(
          new Found(
              new ToolCallFormat.Call(name, ToolCallFormat.EXACT.asString(arguments)),
              next + END_FUNCTION.length()));
    } catch (IOException e) {
      throw new IllegalStateException(e);
    }
  }

  private static int endOfParameter(String text, int from) {
    for (int end = text.indexOf(END_PARAMETER, from);
        end >= 0;
        end = text.indexOf(END_PARAMETER, end + 1)) {
      int next = ToolCallFormat.skipBlanks(text, end + END_PARAMETER.length());
      if (text.startsWith(PARAMETER, next) || text.startsWith(END_FUNCTION, next)) {
        return end;
      }
    }
    return -1;
  }

  /** Without the line ends that the notation puts around a value. */
  private static String withoutLineEnds(String value) {
    int from = value.startsWith("\n") ? 1 : 0;
    int to = value.endsWith("\n") ? value.length() - 1 : value.length();
    return from < to ? value.substring(from, to) : "";
  }

  /** The types that a schema allows for an argument; empty if it does not say. */
  private static Set<String> types(Object schema, String key) {
    Set<String> out = new TreeSet<>();
    if (!(schema instanceof Map<?, ?> root)
        || !(root.get("properties") instanceof Map<?, ?> properties)) {
      return out;
    }
    // Each schema once: references may go in circles, and meet.
    Set<Object> seen = Collections.newSetFromMap(new IdentityHashMap<>());
    Deque<Object> rest = new ArrayDeque<>();
    Object next = properties.get(key);
    while (next != null) {
      if (next instanceof Map<?, ?> map && seen.add(map)) {
        add(map, root, out, rest);
      }
      next = rest.poll();
    }
    return out;
  }

  /** Adds the types that a schema names itself, and the schemas that it refers to. */
  private static void add(Map<?, ?> schema, Map<?, ?> root, Set<String> out, Deque<Object> others) {
    if (schema.get("$ref") instanceof String reference && reference.startsWith("#/")) {
      Object at = root;
      for (String step : reference.substring(2).split("/")) {
        at = at instanceof Map<?, ?> parent ? parent.get(step) : null;
      }
      if (at != null) {
        others.add(at);
      }
    }
    switch (schema.get("type")) {
      case String type -> out.add(type);
      case List<?> types -> types.forEach(t -> out.add(String.valueOf(t)));
      case null, default -> {
        if (schema.get("enum") instanceof List<?> values
            && values.stream().anyMatch(String.class::isInstance)) {
          out.add("string");
        }
      }
    }
    for (String either : List.of("anyOf", "oneOf")) {
      if (schema.get(either) instanceof List<?> schemas) {
        schemas.stream().filter(Objects::nonNull).forEach(others::add);
      }
    }
  }

  /**
   * What a text stands for: itself where it may be one, else JSON of one of the types, where the
   * template shows models how Python writes {@code True}, {@code False} and {@code None}. What is
   * neither stays text.
   */
  private static Object value(String text, Set<String> types) {
    String word = text.strip();
    boolean isNull = types.contains("null") && (word.equals("null") || word.equals("None"));
    if (isNull) {
      return null;
    }
    if (types.isEmpty() || types.contains("string")) {
      return text;
    }
    if (types.contains("boolean") && word.matches("[Tt]rue|[Ff]alse")) {
      return Character.toLowerCase(word.charAt(0)) == 't';
    }
    boolean isWhole = word.matches("-?(0|[1-9][0-9]*)");
    boolean isNumber = word.matches("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?");
    boolean isJson =
        types.contains("integer") && isWhole
            || types.contains("number") && isNumber
            || types.contains("object") && isValue('{', word)
            || types.contains("array") && isValue('[', word);
    try {
      return isJson ? ToolCallFormat.EXACT.anyFrom(word) : text;
    } catch (IOException _) {
      return text;
    }
  }

  private static boolean isValue(char begin, String text) {
    return !text.isEmpty()
        && text.charAt(0) == begin
        && ToolCallFormat.endOfValue(text, 0) == text.length();
  }

  /** As {@link ToolCallFormat#grammar}: the arguments come in the order of the schema. */
  static Grammar grammar(Map<String, ?> tools) {
    StringBuilder calls = new StringBuilder();
    StringBuilder rules = new StringBuilder();
    int index = 0;
    for (Map.Entry<String, ?> tool : tools.entrySet()) {
      if (!(tool.getValue() instanceof Map<?, ?> schema)) {
        throw new IllegalArgumentException(
            "tool " + tool.getKey() + ": expected=a JSON object actual=" + tool.getValue());
      }
      calls
          .append(index == 0 ? "" : " | ")
          .append(literal("<tool_call>\n" + FUNCTION + tool.getKey() + ">\n"));
      Map<?, ?> properties = schema.get("properties") instanceof Map<?, ?> map ? map : Map.of();
      List<?> required = schema.get("required") instanceof List<?> list ? list : List.of();
      int argument = 0;
      for (Map.Entry<?, ?> property : properties.entrySet()) {
        String key = String.valueOf(property.getKey());
        String rule = "t" + index + "-" + argument++;
        calls
            .append(" (")
            .append(literal(PARAMETER + key + ">\n"))
            .append(' ')
            .append(rule)
            .append("-root ")
            .append(literal("\n" + END_PARAMETER + "\n"))
            .append(required.contains(key) ? ")" : ")?");
        rules.append(rule(rule, key, property.getValue(), schema)).append('\n');
      }
      calls.append(' ').append(literal(END_FUNCTION + "\n</tool_call>"));
      index++;
    }
    return Grammar.parse("root ::= " + calls + "\n" + rules + TEXT);
  }

  /** The values of an argument: texts as they are, else JSON. */
  private static String rule(String name, String key, Object of, Map<?, ?> root) {
    Set<String> types = types(root, key);
    if (of instanceof Map<?, ?> schema) {
      boolean isChoice =
          schema.get("enum") instanceof List<?> values
              && !values.isEmpty()
              && values.stream().allMatch(String.class::isInstance);
      if (isChoice) {
        StringBuilder out = new StringBuilder(name).append("-root ::=");
        String separator = " ";
        for (Object value : (List<?>) schema.get("enum")) {
          out.append(separator).append(literal((String) value));
          separator = " | ";
        }
        return out.toString();
      }
      if (!types.isEmpty() && !types.contains("string")) {
        Map<String, Object> whole = new LinkedHashMap<>();
        schema.forEach((k, v) -> whole.put(String.valueOf(k), v));
        for (String definitions : List.of("$defs", "definitions")) {
          if (root.get(definitions) != null) {
            whole.put(definitions, root.get(definitions));
          }
        }
        return Grammar.ofJsonSchema(whole).part(name);
      }
    }
    return name + "-root ::= text";
  }

  /** Any text in which {@code </pa} does not begin: what ends a value is then unambiguous. */
  private static final String TEXT =
      """
      text ::= ( [^<] | cut* lt [^</] | cut* lt "/" [^<p] | cut* lt "/p" [^<a] )*
      cut ::= lt "/" "p"?
      lt ::= "<"+
      """;

  private static String literal(String text) {
    return '"'
        + text.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n").replace("\r", "\\r")
        + '"';
  }
}
