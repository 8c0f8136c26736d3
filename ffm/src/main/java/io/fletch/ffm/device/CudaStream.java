package io.fletch.ffm.device;

import io.fletch.ffm.cuda.CudaDriver;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Work that the device does in order. Everything is queued and returns at once, so the memory that
 * it names must live until the stream is through; {@link #synchronize()} waits. One thread at a
 * time.
 *
 * <p>Between {@link #beginCapture()} and {@link #endCapture()} work is recorded instead of run.
 */
public final class CudaStream extends CudaResource {
  private final MemorySegment handle;

  CudaStream(CudaContext context, MemorySegment handle) {
    super(context);
    this.handle = handle;
  }

  MemorySegment raw() {
    return handle;
  }

  MemorySegment handle() {
    use();
    return handle;
  }

  /** Waits until all queued work is done; reports what failed in it. */
  public void synchronize() {
    use();
    int status = CudaDriver.cuStreamSynchronize(handle);
    if (status != Driver.SUCCESS) {
      throw Driver.failure(status, "cuStreamSynchronize", toString(), "");
    }
  }

  /** Whether all queued work is done. */
  public boolean isIdle() {
    use();
    int status = CudaDriver.cuStreamQuery(handle);
    if (status == Driver.NOT_READY) {
      return false;
    }
    Driver.check(status, "cuStreamQuery", toString());
    return true;
  }

  /** Records an event after the work queued so far. */
  public void record(CudaEvent event) {
    use();
    int status = CudaDriver.cuEventRecord(event.handle(), handle);
    if (status != Driver.SUCCESS) {
      throw Driver.failure(status, "cuEventRecord", event + ", " + this, "");
    }
  }

  /** Lets later work wait for an event of another stream. */
  public void waitFor(CudaEvent event) {
    use();
    int status = CudaDriver.cuStreamWaitEvent(handle, event.handle(), 0);
    if (status != Driver.SUCCESS) {
      throw Driver.failure(status, "cuStreamWaitEvent", this + ", " + event, "");
    }
  }

  /**
   * Memory that is taken and, by its {@link DeviceMemory#close()}, given back in the order of this
   * stream, from the device's pool. Where the device has no pools it is a plain allocation.
   *
   * @throws CudaMemoryException if the device has too little
   */
  public DeviceMemory allocate(long bytes) {
    use();
    DeviceMemory.checkSize(bytes);
    if (!context().device().pools()) {
      return context().allocate(bytes);
    }
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.JAVA_LONG);
      int status = CudaDriver.cuMemAllocAsync(out, bytes, handle);
      if (status != Driver.SUCCESS) {
        throw Driver.allocationFailure(status, "cuMemAllocAsync", bytes);
      }
      return context()
          .own(new DeviceMemory(context(), out.get(ValueLayout.JAVA_LONG, 0), bytes, this));
    }
  }

  /**
   * Copies host bytes to the device. From pinned memory it is asynchronous, and the source must not
   * change until the stream is through; from other native memory the driver copies first.
   *
   * @throws IndexOutOfBoundsException if the range is not inside
   * @throws IllegalArgumentException if the source is on the Java heap
   */
  public void upload(MemorySegment source, DeviceMemory target, long offset) {
    use();
    checkNative(source);
    long to = target.range(offset, source.byteSize());
    if (source.byteSize() == 0) {
      return;
    }
    int status = CudaDriver.cuMemcpyHtoDAsync_v2(to, source, source.byteSize(), handle);
    if (status != Driver.SUCCESS) {
      throw copyFailure(status, "cuMemcpyHtoDAsync_v2", to, source.address(), source.byteSize());
    }
  }

  /**
   * Copies device bytes to the host. The target holds them after {@link #synchronize()} or an
   * event.
   *
   * @throws IndexOutOfBoundsException if the range is not inside
   * @throws IllegalArgumentException if the target is on the Java heap or read-only
   */
  public void download(DeviceMemory source, long offset, MemorySegment target) {
    use();
    checkNative(target);
    if (target.isReadOnly()) {
      throw new IllegalArgumentException("the target is read-only");
    }
    long from = source.range(offset, target.byteSize());
    if (target.byteSize() == 0) {
      return;
    }
    int status = CudaDriver.cuMemcpyDtoHAsync_v2(target, from, target.byteSize(), handle);
    if (status != Driver.SUCCESS) {
      throw copyFailure(status, "cuMemcpyDtoHAsync_v2", target.address(), from, target.byteSize());
    }
  }

  /**
   * Copies bytes on the device. The ranges must not overlap.
   *
   * @throws IndexOutOfBoundsException if a range is not inside
   */
  public void copy(
      DeviceMemory source, long sourceOffset, DeviceMemory target, long targetOffset, long bytes) {
    use();
    long from = source.range(sourceOffset, bytes);
    long to = target.range(targetOffset, bytes);
    if (bytes == 0) {
      return;
    }
    int status = CudaDriver.cuMemcpyDtoDAsync_v2(to, from, bytes, handle);
    if (status != Driver.SUCCESS) {
      throw copyFailure(status, "cuMemcpyDtoDAsync_v2", to, from, bytes);
    }
  }

  /**
   * Sets bytes on the device.
   *
   * @throws IndexOutOfBoundsException if the range is not inside
   */
  public void fill(DeviceMemory target, long offset, long bytes, byte value) {
    use();
    long to = target.range(offset, bytes);
    if (bytes == 0) {
      return;
    }
    int status = CudaDriver.cuMemsetD8Async(to, value, bytes, handle);
    if (status != Driver.SUCCESS) {
      throw copyFailure(status, "cuMemsetD8Async", to, value, bytes);
    }
  }

  /**
   * Sets 32-bit words on the device.
   *
   * @param offset in bytes, a multiple of 4
   * @throws IndexOutOfBoundsException if the range is not inside
   */
  public void fillInts(DeviceMemory target, long offset, long count, int value) {
    use();
    if (count < 0 || count > Long.MAX_VALUE / 4 || (offset & 3) != 0) {
      throw new IllegalArgumentException("offset=" + offset + " count=" + count);
    }
    long to = target.range(offset, 4 * count);
    if (count == 0) {
      return;
    }
    int status = CudaDriver.cuMemsetD32Async(to, value, count, handle);
    if (status != Driver.SUCCESS) {
      throw copyFailure(status, "cuMemsetD32Async", to, value, 4 * count);
    }
  }

  private static void checkNative(MemorySegment segment) {
    if (!segment.isNative()) {
      throw new IllegalArgumentException("copies need native memory: actual=" + segment);
    }
  }

  private static CudaException copyFailure(
      int status, String call, long to, long from, long bytes) {
    return Driver.failure(
        status,
        call,
        "to=" + Driver.hex(to) + ", from=" + Driver.hex(from) + ", bytes=" + bytes,
        "");
  }

  /**
   * Starts to record work instead of running it. Other threads may go on using the driver; this
   * thread must not make calls that wait.
   *
   * @throws CudaException if it captures already
   */
  public void beginCapture() {
    use();
    Driver.check(
        CudaDriver.cuStreamBeginCapture_v2(
            handle, CudaDriver.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL()),
        "cuStreamBeginCapture_v2",
        toString());
  }

  /** Whether work is recorded instead of run. */
  public boolean isCapturing() {
    use();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.JAVA_INT);
      Driver.check(CudaDriver.cuStreamIsCapturing(handle, out), "cuStreamIsCapturing", toString());
      return out.get(ValueLayout.JAVA_INT, 0) != CudaDriver.CU_STREAM_CAPTURE_STATUS_NONE();
    }
  }

  /**
   * Ends recording.
   *
   * @return what was recorded; the caller closes it
   * @throws CudaException if nothing was begun, or if something in between broke the capture, which
   *     is over in either case
   */
  public CudaGraph endCapture() {
    use();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
      int status = CudaDriver.cuStreamEndCapture(handle, out);
      if (status != Driver.SUCCESS) {
        CudaException failure = Driver.failure(status, "cuStreamEndCapture", toString(), "");
        abandonCapture(out);
        throw failure;
      }
      return context().own(new CudaGraph(context(), out.get(ValueLayout.ADDRESS, 0)));
    }
  }

  /** A stream that went on recording would refuse all that follows, even to free memory. */
  private void abandonCapture(MemorySegment out) {
    int status = CudaDriver.cuStreamIsCapturing(handle, out);
    boolean capturing =
        status == Driver.SUCCESS
            && out.get(ValueLayout.JAVA_INT, 0) != CudaDriver.CU_STREAM_CAPTURE_STATUS_NONE();
    if (capturing && CudaDriver.cuStreamEndCapture(handle, out) == Driver.SUCCESS) {
      int unused = CudaDriver.cuGraphDestroy(out.get(ValueLayout.ADDRESS, 0));
    }
  }

  /**
   * Captures what an action queues on this stream.
   *
   * @return what was recorded; the caller closes it. If the action throws, the capture is ended,
   *     nothing is kept, and the exception goes on
   */
  public CudaGraph capture(Runnable action) {
    beginCapture();
    try {
      action.run();
    } catch (RuntimeException | Error e) {
      try {
        endCapture().close();
      } catch (CudaException broken) {
        e.addSuppressed(broken);
      }
      throw e;
    }
    return endCapture();
  }

  @Override
  void release() {
    Driver.check(CudaDriver.cuStreamDestroy_v2(handle), "cuStreamDestroy_v2", toString());
  }

  @Override
  public String toString() {
    return "stream " + Driver.hex(handle.address());
  }
}
