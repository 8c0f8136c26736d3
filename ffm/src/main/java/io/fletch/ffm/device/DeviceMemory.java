package io.fletch.ffm.device;

import io.fletch.ffm.cuda.CudaDriver;

/**
 * A block of device memory with one owner. Its address is a number for kernels; host code cannot
 * read it. Copies go through {@link CudaStream}, which checks their bounds.
 */
public final class DeviceMemory extends CudaResource {
  private final long address;
  private final long bytes;
  private final CudaStream stream;

  /**
   * @param stream in whose order it is freed, or null for a plain allocation
   */
  DeviceMemory(CudaContext context, long address, long bytes, CudaStream stream) {
    super(context);
    this.address = address;
    this.bytes = bytes;
    this.stream = stream;
  }

  static void checkSize(long bytes) {
    if (bytes <= 0) {
      throw new IllegalArgumentException("size out of range: expected>=1 actual=" + bytes);
    }
  }

  /** Where it starts, for kernels. */
  public long address() {
    if (isClosed()) {
      throw new IllegalStateException("used after close: " + this);
    }
    return address;
  }

  /** Its size. */
  public long bytes() {
    return bytes;
  }

  /** The address of a range after a check that the range is inside. */
  long range(long offset, long length) {
    if (offset < 0 || length < 0 || offset > bytes - length) {
      throw new IndexOutOfBoundsException(
          "range outside of " + this + ": offset=" + offset + " length=" + length);
    }
    return address() + offset;
  }

  @Override
  void release() {
    if (stream == null || stream.isClosed()) {
      Driver.check(CudaDriver.cuMemFree_v2(address), "cuMemFree_v2", toString());
    } else {
      Driver.check(CudaDriver.cuMemFreeAsync(address, stream.raw()), "cuMemFreeAsync", toString());
    }
  }

  @Override
  public String toString() {
    return "device memory " + Driver.hex(address) + " (" + bytes + " bytes)";
  }
}
