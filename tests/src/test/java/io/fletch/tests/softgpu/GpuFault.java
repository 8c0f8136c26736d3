package io.fletch.tests.softgpu;

/** Something that a kernel must not do; the message says which kernel, line and thread. */
public final class GpuFault extends RuntimeException {
  private static final long serialVersionUID = 1L;

  static final int ILLEGAL_ADDRESS = 700;
  static final int MISALIGNED = 716;
  static final int ILLEGAL_INSTRUCTION = 715;
  static final int LAUNCH_FAILED = 719;

  private final int code;

  GpuFault(int code, String message) {
    super(message);
    this.code = code;
  }

  /** The driver's status for it. */
  public int code() {
    return code;
  }
}
