package io.fletch.tests.softgpu;

/** PTX text that is wrong or that the interpreter does not know. */
public final class PtxException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  PtxException(int line, String message) {
    super("line " + line + ": " + message);
  }
}
