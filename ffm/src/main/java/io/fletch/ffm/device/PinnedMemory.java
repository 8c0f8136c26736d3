package io.fletch.ffm.device;

import io.fletch.ffm.cuda.CudaDriver;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/**
 * Page-locked host memory with one owner. The device reads and writes it too; who does so when is
 * for the owner to order with events.
 */
public final class PinnedMemory extends CudaResource {
  private final Arena arena = Arena.ofShared();
  private final MemorySegment handle;
  private final MemorySegment segment;

  PinnedMemory(CudaContext context, MemorySegment handle, long bytes) {
    super(context);
    this.handle = handle;
    this.segment = handle.reinterpret(bytes, arena, null);
  }

  /** The bytes; not accessible after {@link #close()}. */
  public MemorySegment segment() {
    return segment;
  }

  /** Its address for kernels: with unified addressing that of the host. */
  public long address() {
    use();
    return handle.address();
  }

  /** Its size. */
  public long bytes() {
    return segment.byteSize();
  }

  @Override
  void release() {
    // A view must be dead before the memory is.
    if (arena.scope().isAlive()) {
      arena.close();
    }
    Driver.check(CudaDriver.cuMemFreeHost(handle), "cuMemFreeHost", toString());
  }

  @Override
  public String toString() {
    return "pinned memory " + Driver.hex(handle.address()) + " (" + bytes() + " bytes)";
  }
}
