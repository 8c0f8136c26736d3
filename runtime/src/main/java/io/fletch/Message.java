package io.fletch;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Objects;

/**
 * One turn of a chat.
 *
 * @param role {@code system}, {@code user}, {@code assistant} or {@code tool}
 * @param content the text
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
}
