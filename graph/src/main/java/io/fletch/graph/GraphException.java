package io.fletch.graph;

/**
 * A forward, or the preparation of one, failed below the graph. Wrong arguments are {@link
 * IllegalArgumentException} and use after close is {@link IllegalStateException} instead.
 */
public final class GraphException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception; the message names the step. */
  public GraphException(String message) {
    super(message);
  }

  /** Creates the exception with the failure below it, which may come from another thread. */
  public GraphException(String message, Throwable cause) {
    super(message, cause);
  }
}
