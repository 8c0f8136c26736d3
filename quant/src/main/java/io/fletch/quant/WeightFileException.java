package io.fletch.quant;

/**
 * A weight file is damaged, hostile or of a kind that is not supported. The message names the field
 * with its expected and actual value.
 */
public final class WeightFileException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  /** Creates the exception; the message names file and field. */
  public WeightFileException(String message) {
    super(message);
  }

  /** Creates the exception with the failure below it. */
  public WeightFileException(String message, Throwable cause) {
    super(message, cause);
  }
}
