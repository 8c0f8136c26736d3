package io.fletch.tools;

/** The command line is wrong: one line on standard error and status 2. */
final class UsageException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  UsageException(String message) {
    super(message);
  }
}
