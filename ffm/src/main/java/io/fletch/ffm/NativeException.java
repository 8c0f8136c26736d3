package io.fletch.ffm;

/**
 * A native call that failed, or native access that is missing. The root of this module's
 * exceptions.
 */
public class NativeException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  /** An error that is described by its message alone. */
  public NativeException(String message) {
    super(message);
  }

  /** An error with its cause. */
  public NativeException(String message, Throwable cause) {
    super(message, cause);
  }
}
