package io.fletch;

import io.fletch.sampling.Grammar;
import io.fletch.sampling.SamplingException;
import java.io.IOException;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Deque;
import java.util.HashMap;
import java.util.HashSet;
import java.util.IdentityHashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.IntStream;

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

  private final AnswerText text;
  private final Map<String, ?> tools;

  /** Names of tools that hold what ends other names. */
  private final List<String> oddNames;

  /** Types of arguments by tool and key. */
  private final Map<List<String>, Set<String>> types = new HashMap<>();

  /** Where the parameters go on that do not lead to the end of a function. */
  private final Set<Integer> dead = new HashSet<>();

  /** Where parameters end, ascending; null before the first is looked for. */
  private int[] ends;

  /**
   * Reads the calls of an answer.
   *
   * @param tools schemas by name
   */
  XmlToolCalls(AnswerText text, Map<String, ?> tools) {
    this.text = text;
    this.tools = tools;
    oddNames = tools.keySet().stream().filter(n -> n.contains("<") && !n.contains(">")).toList();
  }

  /**
   * Reads a call.
   *
   * @param at where {@link #FUNCTION} begins; later than those before
   * @return empty if it is none, or not whole
   */
  Optional<Found> read(int at) {
    int nameEnd = endOfName(at + FUNCTION.length());
    int first = nameEnd < 0 ? -1 : text.skipBlanks(nameEnd + 1);
    int end = first < 0 ? -1 : endOfFunction(first);
    if (end < 0) {
      return Optional.empty();
    }
    String all = text.text();
    String name = all.substring(at + FUNCTION.length(), nameEnd).strip();
    Map<String, Object> arguments = new LinkedHashMap<>();
    for (int next = first; next < end; ) {
      int keyEnd = text.find(">", next);
      int valueEnd = endOfParameter(keyEnd + 1);
      String key = all.substring(next + PARAMETER.length(), keyEnd).strip();
      String value = withoutLineEnds(all.substring(keyEnd + 1, valueEnd));
      arguments.put(
          key,
          value(
              value, types.computeIfAbsent(List.of(name, key), _ -> types(tools.get(name), key))));
      next = text.skipBlanks(valueEnd + END_PARAMETER.length());
    }
    return Optional.of(
        new Found(
            new ToolCallFormat.Call(name, ToolCallFormat.written(arguments)),
            end + END_FUNCTION.length()));
  }

  /** Where the name ends that begins there; -1 for text about the notation, which has none. */
  private int endOfName(int from) {
    int end = text.findEither('>', '<', from);
    if (end >= 0 && text.startsWith(">", end)) {
      String name = text.text().substring(from, end).strip();
      boolean isWord = !name.isEmpty() && name.chars().noneMatch(Character::isWhitespace);
      return isWord || tools.containsKey(name) ? end : -1;
    }
    for (String name : oddNames) {
      if (text.startsWith(name + ">", from)) {
        return from + name.length();
      }
    }
    return -1;
  }

  /**
   * Where {@link #END_FUNCTION} begins behind all parameters; -1 if something else comes. From a
   * place where parameters go on there is one way, so none is gone twice in vain.
   */
  private int endOfFunction(int first) {
    List<Integer> way = new ArrayList<>();
    int next = first;
    while (text.startsWith(PARAMETER, next) && !dead.contains(next)) {
      way.add(next);
      int keyEnd = text.find(">", next);
      int end = keyEnd < 0 ? -1 : endOfParameter(keyEnd + 1);
      if (end < 0) {
        break;
      }
      next = text.skipBlanks(end + END_PARAMETER.length());
    }
    if (text.startsWith(END_FUNCTION, next)) {
      return next;
    }
    dead.addAll(way);
    return -1;
  }

  /** The first {@link #END_PARAMETER} from there that ends one; -1 if there is none. */
  private int endOfParameter(int from) {
    if (ends == null) {
      ends = ends();
    }
    int found = Arrays.binarySearch(ends, from);
    int index = found < 0 ? -found - 1 : found;
    return index < ends.length ? ends[index] : -1;
  }

  private int[] ends() {
    IntStream.Builder out = IntStream.builder();
    for (int end = text.find(END_PARAMETER, 0); end >= 0; ) {
      int behind = end + END_PARAMETER.length();
      int next = text.skipBlanks(behind);
      if (text.startsWith(PARAMETER, next) || text.startsWith(END_FUNCTION, next)) {
        out.add(end);
      }
      end = text.find(END_PARAMETER, behind);
    }
    return out.build().toArray();
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
    if (types.contains("integer") && isWhole || types.contains("number") && isNumber) {
      try {
        return ToolCallFormat.EXACT.anyFrom(word);
      } catch (IOException _) {
        return text;
      }
    }
    boolean isJson =
        types.contains("object") && word.startsWith("{")
            || types.contains("array") && word.startsWith("[");
    return isJson
        ? new AnswerText(word)
            .value(0)
            .filter(v -> v.end() == word.length())
            .map(AnswerText.Value::value)
            .orElse(text)
        : text;
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
        if (key.contains(">") || !key.equals(key.strip())) {
          throw new SamplingException(
              "tool "
                  + tool.getKey()
                  + ": name of a parameter expected=none of > and blanks around it actual="
                  + key);
        }
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

  /** Any text in which {@link #END_PARAMETER} does not stand: what ends a value is certain then. */
  private static final String TEXT = without(END_PARAMETER);

  /**
   * The rule {@code text}: an automaton whose state is how much of a mark has just been read
   * (Knuth, Morris, Pratt). Every alternative ends with the next state, so texts take no room on
   * the stack.
   *
   * @param mark whose first character stands nowhere else in it, and is nothing special in a class
   */
  private static String without(String mark) {
    StringBuilder out = new StringBuilder();
    char first = mark.charAt(0);
    for (int n = 0; n < mark.length(); n++) {
      char next = mark.charAt(n);
      out.append("text").append(n == 0 ? "" : "-" + n).append(" ::= ( [^").append(first);
      if (n > 0) {
        out.append(next);
      }
      out.append("] text | \"").append(first).append("\" text-1");
      if (n > 0 && n + 1 < mark.length()) {
        out.append(" | \"").append(next).append("\" text-").append(n + 1);
      }
      out.append(" )?\n");
    }
    return out.toString();
  }

  private static String literal(String text) {
    return '"'
        + text.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n").replace("\r", "\\r")
        + '"';
  }
}
