package io.fletch.ffm.device;

import io.fletch.ffm.NativeException;

/** A driver call that failed: which, with what arguments, and the driver's error code. */
public class CudaException extends NativeException {
  private static final long serialVersionUID = 1L;

  private final String call;
  private final int code;
  private final String error;
  private final String arguments;

  CudaException(String call, int code, String error, String arguments, String detail) {
    super(
        call
            + "("
            + arguments
            + ") failed: "
            + error
            + " ("
            + code
            + ")"
            + (detail.isEmpty() ? "" : ": " + detail));
    this.call = call;
    this.code = code;
    this.error = error;
    this.arguments = arguments;
  }

  /** The driver function, such as {@code cuMemAlloc_v2}. */
  public String call() {
    return call;
  }

  /** The driver's status, such as 700. */
  public int code() {
    return code;
  }

  /** The name of the status, such as {@code CUDA_ERROR_ILLEGAL_ADDRESS}. */
  public String error() {
    return error;
  }

  /** What the function was called with, as text. */
  public String arguments() {
    return arguments;
  }
}
