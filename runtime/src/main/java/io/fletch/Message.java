package io.fletch;

import java.util.Objects;

/**
 * One turn of a chat.
 *
 * @param role {@code system}, {@code user}, {@code assistant} or {@code tool}
 * @param content the text
 */
public record Message(String role, String content) {
  /** Checks for nulls. */
  public Message {
    Objects.requireNonNull(role, "role");
    Objects.requireNonNull(content, "content");
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
