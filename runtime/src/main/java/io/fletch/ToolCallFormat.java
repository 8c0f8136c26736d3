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
  public record Call(String name, String arguments) {
    /**
     * The arguments as chat templates take them: a map, or the text where that is no JSON object.
     */
    public Object value() {
      try {
        return arguments.isBlank() ? Map.of() : JSON.std.mapFrom(arguments);
      } catch (IOException _) {
        return arguments;
      }
    }
  }

  /** The text besides the calls, and the calls in their order. */
  public record Parsed(String content, List<Call> calls) {}

  /** Arguments stay as models write them: those that are null, and numbers of any length. */
  static final JSON EXACT =
      JSON.std.with(JSON.Feature.WRITE_NULL_PROPERTIES, JSON.Feature.USE_BIG_DECIMAL_FOR_FLOATS);

  private static final String TAG = "<tool_call>";
  private static final String END_TAG = "</tool_call>";
  private static final String GRANITE_TAG = "<|tool_call|>";
  private static final String PYTHON_TAG = "<|python_tag|>";
  private static final String CALLS = "[TOOL_CALLS]";
  private static final String ARGUMENTS = "[ARGS]";

  /** The format of a chat template's text; empty if it has none that is known. */
  public static Optional<ToolCallFormat> of(String template) {
    if (template.contains(CALLS)) {
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
    return parse(new AnswerText(text), tools);
  }

  /** In time proportional to the length, whatever the answer looks like. */
  Parsed parse(AnswerText text, Map<String, ?> tools) {
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
    return plainText().append(text);
  }

  /** As {@link #plainLength}, of an answer that grows. */
  PlainText plainText() {
    return switch (this) {
      case HERMES -> new PlainText(List.of(TAG));
      case MISTRAL -> new PlainText(List.of(CALLS));
      case GRANITE -> new PlainText(List.of(GRANITE_TAG, TAG));
      case QWEN_CODER -> new PlainText(List.of(TAG, XmlToolCalls.FUNCTION));
      case LLAMA3 -> new PlainText(PYTHON_TAG);
    };
  }

  private static Parsed hermes(AnswerText text) {
    String all = text.text();
    StringBuilder content = new StringBuilder();
    List<Call> calls = new ArrayList<>();
    int at = 0;
    while (true) {
      int start = text.find(TAG, at);
      if (start < 0) {
        content.append(all, at, all.length());
        return parsed(content, calls);
      }
      int behind = start + TAG.length();
      Optional<AnswerText.Value> value = text.value(text.skipBlanks(behind));
      Optional<Call> call = value.flatMap(v -> call(v.value()));
      content.append(all, at, call.isPresent() ? start : behind);
      call.ifPresent(calls::add);
      at = call.isPresent() ? text.behind(END_TAG, value.get().end()) : behind;
    }
  }

  private static Parsed xml(AnswerText text, Map<String, ?> tools) {
    String all = text.text();
    XmlToolCalls reader = new XmlToolCalls(text, tools);
    StringBuilder content = new StringBuilder();
    List<Call> calls = new ArrayList<>();
    int at = 0;
    while (true) {
      int function = text.find(XmlToolCalls.FUNCTION, at);
      if (function < 0) {
        content.append(all, at, all.length());
        return parsed(content, calls);
      }
      Optional<XmlToolCalls.Found> call = reader.read(function);
      if (call.isPresent()) {
        // Some models leave the opening tag out.
        int tag = all.substring(at, function).stripTrailing().length() + at - TAG.length();
        boolean isTagged = tag >= at && all.startsWith(TAG, tag);
        content.append(all, at, isTagged ? tag : function);
        calls.add(call.get().call());
        at = text.behind(END_TAG, call.get().end());
      } else {
        int next = function + XmlToolCalls.FUNCTION.length();
        content.append(all, at, next);
        at = next;
      }
    }
  }

  private static Parsed llama3(AnswerText text) {
    int start = text.skipBlanks(0);
    if (text.startsWith(PYTHON_TAG, start)) {
      start += PYTHON_TAG.length();
    }
    List<Call> calls = new ArrayList<>();
    for (int at = text.skipBlanks(start); ; ) {
      Optional<AnswerText.Value> value = text.value(at);
      Optional<Call> call = value.flatMap(v -> call(v.value()));
      if (call.isEmpty()) {
        return new Parsed(text.text(), List.of());
      }
      calls.add(call.get());
      at = text.skipBlanks(value.get().end());
      if (at == text.length()) {
        return new Parsed("", calls);
      }
      at = text.startsWith(";", at) ? text.skipBlanks(at + 1) : at;
    }
  }

  private static Parsed mistral(AnswerText text) {
    String all = text.text();
    Parsed none = new Parsed(all, List.of());
    int start = text.find(CALLS, 0);
    if (start < 0) {
      return none;
    }
    int array = text.skipBlanks(start + CALLS.length());
    if (text.startsWith("[", array) && !text.startsWith(ARGUMENTS, array)) {
      return array(text, start, array);
    }
    StringBuilder content = new StringBuilder(all.substring(0, start));
    List<Call> calls = new ArrayList<>();
    for (int from = start; from >= 0; ) {
      int nameAt = from + CALLS.length();
      int argumentsAt = text.find(ARGUMENTS, nameAt);
      if (argumentsAt < 0) {
        return none;
      }
      // Newer templates put an identifier between name and arguments.
      String name = all.substring(nameAt, argumentsAt).split("\\[CALL_ID\\]", 2)[0].strip();
      Optional<AnswerText.Value> value =
          text.value(text.skipBlanks(argumentsAt + ARGUMENTS.length()));
      if (value.isEmpty()
          || !(value.get().value() instanceof Map<?, ?> arguments)
          || name.isEmpty()
          || name.contains(CALLS)) {
        return none;
      }
      calls.add(new Call(name, written(arguments)));
      from = text.find(CALLS, value.get().end());
      content.append(all, value.get().end(), from < 0 ? all.length() : from);
    }
    return parsed(content, calls);
  }

  private static Parsed granite(AnswerText text) {
    int start = text.find(GRANITE_TAG, 0);
    int at = start < 0 ? -1 : text.skipBlanks(start + GRANITE_TAG.length());
    int tag = text.find(TAG, 0);
    if (tag >= 0 && (start < 0 || tag == at)) {
      start = start < 0 ? tag : start;
      at = text.skipBlanks(tag + TAG.length());
    }
    return start < 0 ? new Parsed(text.text(), List.of()) : array(text, start, at);
  }

  /** Calls in an array at {@code at}, which a marker at {@code start} announces. */
  private static Parsed array(AnswerText text, int start, int at) {
    Parsed none = new Parsed(text.text(), List.of());
    Optional<AnswerText.Value> value = text.value(at);
    if (value.isEmpty() || !(value.get().value() instanceof List<?> list)) {
      return none;
    }
    List<Call> calls = new ArrayList<>();
    for (Object one : list) {
      Optional<Call> call = call(one);
      if (call.isEmpty()) {
        return none;
      }
      calls.add(call.get());
    }
    int rest = text.behind("<|/tool_call|>", value.get().end());
    return parsed(text.text().substring(0, start) + text.text().substring(rest), calls);
  }

  private static Parsed parsed(CharSequence content, List<Call> calls) {
    return new Parsed(
        calls.isEmpty() ? content.toString() : content.toString().strip(), List.copyOf(calls));
  }

  private static Optional<Call> call(Object value) {
    if (!(value instanceof Map<?, ?> map) || !(map.get("name") instanceof String name)) {
      return Optional.empty();
    }
    Object arguments = map.containsKey("arguments") ? map.get("arguments") : map.get("parameters");
    if (arguments instanceof String text) {
      // Some models quote them once more.
      try {
        arguments = EXACT.anyFrom(text);
      } catch (IOException _) {
        return Optional.empty();
      }
    }
    return switch (arguments) {
      case null -> Optional.of(new Call(name, "{}"));
      case Map<?, ?> object -> Optional.of(new Call(name, written(object)));
      default -> Optional.empty();
    };
  }

  /** An object as JSON. */
  static String written(Map<?, ?> object) {
    try {
      return EXACT.asString(object);
    } catch (IOException e) {
      throw new IllegalStateException(e);
    }
  }
}
