package io.fletch.ffm;

/** The host refuses executable memory; the message says which call failed and why. */
public final class ExecutableMemoryException extends NativeException {
  private static final long serialVersionUID = 1L;

  ExecutableMemoryException(String message) {
    super(message);
  }

  ExecutableMemoryException(String message, Throwable cause) {
    super(message, cause);
  }
}
