package io.fletch;

import io.fletch.sampling.support.Ranges;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/**
 * One turn of a chat.
 *
 * @param role {@code system}, {@code user}, {@code assistant}, {@code tool}, or another one that
 *     the model's chat template knows
 * @param content the text. Special tokens of the model that are written in it count as such; text
 *     that is not trusted may not contain them
 * @param more further fields that chat templates read, for example {@code tool_calls}, {@code
 *     tool_call_id} or {@code name}; a null is {@code none} to the template
 */
public record Message(String role, String content, Map<String, Object> more) {
  /** Checks for nulls, copies. */
  public Message {
    Objects.requireNonNull(role, "role");
    Objects.requireNonNull(content, "content");
    Map<String, Object> copy = new LinkedHashMap<>(Objects.requireNonNull(more, "more"));
    copy.keySet().forEach(key -> Objects.requireNonNull(key, "more: a key"));
    more = Collections.unmodifiableMap(copy);
  }

  /** A turn of text. */
  public Message(String role, String content) {
    this(role, content, Map.of());
  }

  /** A system turn. */
  public static Message system(String content) {
    return new Message("system", content);
  }

  /** A user turn. */
  public static Message user(String content) {
    return new Message("user", content);
  }

  /** An assistant turn. */
  public static Message assistant(String content) {
    return new Message("assistant", content);
  }

  /**
   * An assistant turn that calls tools, as {@link ToolCallFormat#parse} finds them in an answer.
   *
   * @param content what it says besides; often empty
   */
  public static Message assistant(String content, List<ToolCallFormat.Call> calls) {
    List<Map<String, Object>> made = new ArrayList<>();
    for (ToolCallFormat.Call call : calls) {
      Map<String, Object> function = new LinkedHashMap<>();
      function.put("name", call.name());
      function.put("arguments", call.value());
      made.add(Map.of("id", id(made.size()), "type", "function", "function", function));
    }
    return new Message("assistant", content, Map.of("tool_calls", List.copyOf(made)));
  }

  /**
   * What a tool gave, in a turn behind that of {@link #assistant(String, List)}.
   *
   * @param index of the call in the list of calls, from 0
   * @param call the call
   * @param content what it gave, as text; often JSON
   */
  public static Message tool(int index, ToolCallFormat.Call call, String content) {
    Ranges.check("index", index, index >= 0, ">= 0");
    return new Message("tool", content, Map.of("tool_call_id", id(index), "name", call.name()));
  }

  /** Nine letters and digits: Mistral's templates take no others. */
  private static String id(int index) {
    return "call%05d".formatted(index);
  }
}
