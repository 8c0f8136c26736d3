package io.fletch.ffm.device;

/** The device has too little memory for an allocation. */
public final class CudaMemoryException extends CudaException {
  private static final long serialVersionUID = 1L;

  private final long wanted;
  private final long free;
  private final long total;

  CudaMemoryException(
      String call, int code, String error, String arguments, long wanted, long free, long total) {
    super(
        call,
        code,
        error,
        arguments,
        free < 0
            ? "device out of memory: wanted=" + wanted + " bytes"
            : "device out of memory: wanted="
                + wanted
                + " bytes, free="
                + free
                + " of total="
                + total
                + " bytes; "
                + (free < wanted
                    ? "at most " + free + " bytes would fit, " + (wanted - free) + " too few"
                    : "the free memory is not in one piece or belongs to a pool"));
    this.wanted = wanted;
    this.free = free;
    this.total = total;
  }

  /** Bytes asked for. */
  public long wanted() {
    return wanted;
  }

  /** Bytes that were free on the device, or -1 if the driver did not say. */
  public long free() {
    return free;
  }

  /** Bytes of the device, or -1 if the driver did not say. */
  public long total() {
    return total;
  }
}
