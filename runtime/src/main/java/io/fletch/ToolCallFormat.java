package io.fletch;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.sampling.Grammar;
import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * How a model writes calls of tools into its answer. It is a property of the model's chat template,
 * see {@link Model#toolCallFormat()}. What does not parse as a call stays text: nothing is lost and
 * nothing is guessed.
 */
public enum ToolCallFormat {
  /** {@code <tool_call>{"name": ..., "arguments": {...}}</tool_call>}: Hermes, Qwen. */
  HERMES,
  /**
   * The whole answer is {@code {"name": ..., "parameters": {...}}}, several joined by a semicolon.
   */
  LLAMA3,
  /**
   * {@code [TOOL_CALLS]} and an array of objects with name and arguments, or a name, {@code [ARGS]}
   * and the arguments.
   */
  MISTRAL,
  /**
   * {@code <|tool_call|>} and an array of objects with name and arguments: Granite 3, of which 3.1
   * also writes {@code <tool_call>} there. Phi 4 mini writes the same, closed by {@code
   * <|/tool_call|>}, but its own template does not show it.
   */
  GRANITE,
  /**
   * {@code <tool_call><function=NAME><parameter=KEY>value</parameter></function></tool_call>}:
   * Qwen3-Coder. Values are texts as they are, or JSON where the schema says so.
   */
  QWEN_CODER;

  /**
   * A call.
   *
   * @param name of the tool
   * @param arguments a JSON object as text
   */
  public record Call(String name, String arguments) {}

  /** The text besides the calls, and the calls in their order. */
  public record Parsed(String content, List<Call> calls) {}

  /** Arguments stay as models write them: those that are null, and numbers of any length. */
  static final JSON EXACT =
      JSON.std.with(JSON.Feature.WRITE_NULL_PROPERTIES, JSON.Feature.USE_BIG_DECIMAL_FOR_FLOATS);

  private static final String TAG = "<tool_call>";
  private static final String END_TAG = "</tool_call>";
  private static final String GRANITE_TAG = "<|tool_call|>";
  private static final String PYTHON_TAG = "<|python_tag|>";

  /** The format of a chat template's text; empty if it has none that is known. */
  public static Optional<ToolCallFormat> of(String template) {
    if (template.contains("[TOOL_CALLS]")) {
      return Optional.of(MISTRAL);
    }
    if (template.contains(GRANITE_TAG)) {
      return Optional.of(GRANITE);
    }
    if (template.contains(TAG)) {
      boolean isXml =
          template.contains(XmlToolCalls.FUNCTION) && template.contains(XmlToolCalls.PARAMETER);
      return Optional.of(isXml ? QWEN_CODER : HERMES);
    }
    boolean isLlama = template.contains("<|start_header_id|>") && template.contains("tools");
    return isLlama || template.contains(PYTHON_TAG) ? Optional.of(LLAMA3) : Optional.empty();
  }

  /** As {@link #parse(String, Map)}, of tools whose schemas are not known. */
  public Parsed parse(String text) {
    return parse(text, Map.of());
  }

  /**
   * Splits an answer.
   *
   * @param text the answer with its special tokens written out ({@code tokenizer.decode(ids,
   *     true)})
   * @param tools the JSON schemas of the arguments, as parsed JSON, by the names of the tools; they
   *     say which values are texts where the notation does not ({@link #QWEN_CODER}): what no
   *     schema describes is one
   */
  public Parsed parse(String text, Map<String, ?> tools) {
    return switch (this) {
      case HERMES -> hermes(text);
      case LLAMA3 -> llama3(text);
      case MISTRAL -> mistral(text);
      case GRANITE -> granite(text);
      case QWEN_CODER -> xml(text, tools);
    };
  }

  /**
   * Answers that are a call of one of some tools and nothing else.
   *
   * @param tools the JSON schemas of the arguments, as parsed JSON, by the names of the tools; one
   *     or more
   * @throws io.fletch.sampling.SamplingException for keywords of a schema that cannot be
   *     guaranteed, see {@link Grammar#ofJsonSchema}
   */
  public Grammar grammar(Map<String, ?> tools) {
    if (tools.isEmpty()) {
      throw new IllegalArgumentException("tools: expected=one or more actual=none");
    }
    if (this == QWEN_CODER) {
      return XmlToolCalls.grammar(tools);
    }
    String key = this == LLAMA3 ? "parameters" : "arguments";
    StringBuilder calls = new StringBuilder();
    StringBuilder rules = new StringBuilder();
    int index = 0;
    for (Map.Entry<String, ?> tool : tools.entrySet()) {
      // The schema stays a whole of its own: its references point to its root.
      String prefix = "t" + index++;
      String name = Grammar.ofJsonSchema(Map.of("const", tool.getKey())).part(prefix + "-name");
      if (!(tool.getValue() instanceof Map<?, ?> schema)) {
        throw new IllegalArgumentException(
            "tool " + tool.getKey() + ": expected=a JSON object actual=" + tool.getValue());
      }
      Map<String, Object> copy = new LinkedHashMap<>();
      schema.forEach((k, v) -> copy.put(String.valueOf(k), v));
      calls
          .append(index == 1 ? "" : " | ")
          .append("\"{\\\"name\\\": \" ")
          .append(prefix)
          .append("-name-root \", \\\"")
          .append(key)
          .append("\\\": \" ")
          .append(prefix)
          .append("-root \"}\"");
      rules.append(name).append('\n').append(Grammar.ofJsonSchema(copy).part(prefix)).append('\n');
    }
    String root =
        switch (this) {
          case HERMES -> "\"<tool_call>\\n\" call \"\\n</tool_call>\"";
          case LLAMA3 -> "call";
          case MISTRAL -> "\"[TOOL_CALLS] [\" call \"]\"";
          case GRANITE -> "\"<|tool_call|>[\" call \"]\"";
          case QWEN_CODER -> throw new IllegalStateException("has a grammar of its own");
        };
    return Grammar.parse("root ::= " + root + "\ncall ::= " + calls + "\n" + rules);
  }

  /**
   * How much of the beginning of an unfinished answer is text whatever comes: what may become a
   * call is left out. For streams; {@link #parse} has the last word at the end.
   *
   * @param text the answer so far
   * @return a number of characters, which never falls as the text grows
   */
  public int plainLength(String text) {
    return switch (this) {
      case HERMES -> before(TAG, text);
      case MISTRAL -> before("[TOOL_CALLS]", text);
      case GRANITE -> Math.min(before(GRANITE_TAG, text), before(TAG, text));
      case QWEN_CODER -> Math.min(before(TAG, text), before(XmlToolCalls.FUNCTION, text));
      case LLAMA3 -> {
        int start = skipBlanks(text, 0);
        boolean isOpen =
            start == text.length()
                || text.charAt(start) == '{'
                || text.startsWith(PYTHON_TAG, start)
                || PYTHON_TAG.startsWith(text.substring(start));
        yield isOpen ? 0 : text.length();
      }
    };
  }

  /** The length without the first marker, or without an end that may become one. */
  private static int before(String marker, String text) {
    int found = text.indexOf(marker);
    int end = found;
    if (found < 0) {
      int n = Math.min(marker.length() - 1, text.length());
      while (!text.endsWith(marker.substring(0, n))) {
        n--;
      }
      end = text.length() - n;
    }
    // Blanks before a call are no content.
    while (end > 0 && Character.isWhitespace(text.charAt(end - 1))) {
      end--;
    }
    return end;
  }

  private static Parsed hermes(String text) {
    StringBuilder content = new StringBuilder();
    List<Call> calls = new ArrayList<>();
    int at = 0;
    while (true) {
      int start = text.indexOf(TAG, at);
      if (start < 0) {
        content.append(text, at, text.length());
        return parsed(content, calls);
      }
      int json = skipBlanks(text, start + TAG.length());
      int end = endOfValue(text, json);
      Optional<Call> call = end < 0 ? Optional.empty() : call(text.substring(json, end));
      if (call.isPresent()) {
        content.append(text, at, start);
        calls.add(call.get());
        at = behind(END_TAG, text, end);
      } else {
        content.append(text, at, start + TAG.length());
        at = start + TAG.length();
      }
    }
  }

  /** Where the text goes on behind a mark that may follow at {@code end}. */
  private static int behind(String mark, String text, int end) {
    int at = skipBlanks(text, end);
    return text.startsWith(mark, at) ? at + mark.length() : end;
  }

  private static Parsed xml(String text, Map<String, ?> tools) {
    StringBuilder content = new StringBuilder();
    List<Call> calls = new ArrayList<>();
    int at = 0;
    while (true) {
      int function = text.indexOf(XmlToolCalls.FUNCTION, at);
      if (function < 0) {
        content.append(text, at, text.length());
        return parsed(content, calls);
      }
      Optional<XmlToolCalls.Found> call = XmlToolCalls.read(text, function, tools);
      if (call.isPresent()) {
        // Some models leave the opening tag out.
        int tag = text.substring(at, function).stripTrailing().length() + at - TAG.length();
        boolean isTagged = tag >= at && text.startsWith(TAG, tag);
        content.append(text, at, isTagged ? tag : function);
        calls.add(call.get().call());
        at = behind(END_TAG, text, call.get().end());
      } else {
        int next = function + XmlToolCalls.FUNCTION.length();
        content.append(text, at, next);
        at = next;
      }
    }
  }

  private static Parsed llama3(String text) {
    int start = skipBlanks(text, 0);
    if (text.startsWith(PYTHON_TAG, start)) {
      start += PYTHON_TAG.length();
    }
    List<Call> calls = new ArrayList<>();
    for (int at = skipBlanks(text, start); ; ) {
      int end = endOfValue(text, at);
      Optional<Call> call = end < 0 ? Optional.empty() : call(text.substring(at, end));
      if (call.isEmpty()) {
        return new Parsed(text, List.of());
      }
      calls.add(call.get());
      at = skipBlanks(text, end);
      if (at == text.length()) {
        return new Parsed("", calls);
      }
      at = text.charAt(at) == ';' ? skipBlanks(text, at + 1) : at;
    }
  }

  private static Parsed mistral(String text) {
    String open = "[TOOL_CALLS]";
    String args = "[ARGS]";
    int start = text.indexOf(open);
    if (start < 0) {
      return new Parsed(text, List.of());
    }
    StringBuilder content = new StringBuilder(text.substring(0, start));
    List<Call> calls = new ArrayList<>();
    int at = skipBlanks(text, start + open.length());
    if (at < text.length() && text.charAt(at) == '[' && endOfValue(text, at) >= 0) {
      return array(text, start, at);
    }
    for (int from = start; from >= 0; from = text.indexOf(open, from + 1)) {
      int nameAt = from + open.length();
      int argsAt = text.indexOf(args, nameAt);
      int json = argsAt < 0 ? -1 : skipBlanks(text, argsAt + args.length());
      int stop = json < 0 ? -1 : endOfValue(text, json);
      if (stop < 0) {
        return new Parsed(text, List.of());
      }
      // Newer templates put an identifier between name and arguments.
      String name = text.substring(nameAt, argsAt).split("\\[CALL_ID\\]", 2)[0].strip();
      try {
        calls.add(new Call(name, EXACT.asString(EXACT.mapFrom(text.substring(json, stop)))));
      } catch (IOException _) {
        return new Parsed(text, List.of());
      }
    }
    return parsed(content, calls);
  }

  private static Parsed granite(String text) {
    int start = text.indexOf(GRANITE_TAG);
    int at = start < 0 ? -1 : skipBlanks(text, start + GRANITE_TAG.length());
    int tag = text.indexOf(TAG);
    if (tag >= 0 && (start < 0 || tag == at)) {
      start = start < 0 ? tag : start;
      at = skipBlanks(text, tag + TAG.length());
    }
    return start < 0 ? new Parsed(text, List.of()) : array(text, start, at);
  }

  /** Calls in an array at {@code at}, which a marker at {@code start} announces. */
  private static Parsed array(String text, int start, int at) {
    int end = endOfValue(text, at);
    List<Call> calls = new ArrayList<>();
    try {
      if (end < 0 || text.charAt(at) != '[') {
        return new Parsed(text, List.of());
      }
      for (Object one : EXACT.listFrom(text.substring(at, end))) {
        calls.add(call(one).orElseThrow(() -> new IOException("not a call")));
      }
    } catch (IOException _) {
      return new Parsed(text, List.of());
    }
    int rest = behind("<|/tool_call|>", text, end);
    return parsed(text.substring(0, start) + text.substring(rest), calls);
  }

  private static Parsed parsed(CharSequence content, List<Call> calls) {
    return new Parsed(
        calls.isEmpty() ? content.toString() : content.toString().strip(), List.copyOf(calls));
  }

  private static Optional<Call> call(String json) {
    try {
      return call(EXACT.anyFrom(json));
    } catch (IOException _) {
      return Optional.empty();
    }
  }

  private static Optional<Call> call(Object value) throws IOException {
    if (!(value instanceof Map<?, ?> map) || !(map.get("name") instanceof String name)) {
      return Optional.empty();
    }
    Object arguments = map.containsKey("arguments") ? map.get("arguments") : map.get("parameters");
    if (arguments instanceof String text) {
      // Some models quote them once more.
      arguments = EXACT.anyFrom(text);
    }
    return switch (arguments) {
      case null -> Optional.of(new Call(name, "{}"));
      case Map<?, ?> object -> Optional.of(new Call(name, EXACT.asString(object)));
      default -> Optional.empty();
    };
  }

  static int skipBlanks(String text, int from) {
    int at = from;
    while (at < text.length() && Character.isWhitespace(text.charAt(at))) {
      at++;
    }
    return at;
  }

  /** End of the object or array that begins at {@code from}; -1 if there is none. */
  static int endOfValue(String text, int from) {
    if (from >= text.length() || text.charAt(from) != '{' && text.charAt(from) != '[') {
      return -1;
    }
    int depth = 0;
    boolean isText = false;
    for (int i = from; i < text.length(); i++) {
      char c = text.charAt(i);
      if (isText) {
        if (c == '\\') {
          i++;
        } else if (c == '"') {
          isText = false;
        }
      } else if (c == '"') {
        isText = true;
      } else if (c == '{' || c == '[') {
        depth++;
      } else if ((c == '}' || c == ']') && --depth == 0) {
        return i + 1;
      }
    }
    return -1;
  }
}
