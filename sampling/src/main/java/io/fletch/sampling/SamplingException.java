package io.fletch.sampling;

/**
 * A decode step that cannot be carried out: the model gave logits that are not numbers, every token
 * is forbidden, or a model does not fit the schedule. Illegal options are {@link
 * IllegalArgumentException}s when they are built, not this.
 */
public class SamplingException extends RuntimeException {
  private static final long serialVersionUID = 1;

  /** With a message that names the field with its expected and actual value. */
  public SamplingException(String message) {
    super(message);
  }

  static SamplingException nan(int id) {
    return new SamplingException(
        "logit is not a number: token=" + id + " expected=a number actual=NaN");
  }
}
