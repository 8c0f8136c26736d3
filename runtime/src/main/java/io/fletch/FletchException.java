package io.fletch;

/**
 * A model cannot be opened or run as asked. The message says what was expected and what was found.
 */
public class FletchException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception. */
  public FletchException(String message) {
    super(message);
  }

  /** Creates the exception with its cause. */
  public FletchException(String message, Throwable cause) {
    super(message, cause);
  }
}
