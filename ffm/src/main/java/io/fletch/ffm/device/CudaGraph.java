package io.fletch.ffm.device;

import io.fletch.ffm.cuda.CudaDriver;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** Recorded work. One thread at a time. */
public final class CudaGraph extends CudaResource {
  private final MemorySegment handle;

  CudaGraph(CudaContext context, MemorySegment handle) {
    super(context);
    this.handle = handle;
  }

  MemorySegment handle() {
    use();
    return handle;
  }

  /** Number of recorded operations. */
  public int nodes() {
    use();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.JAVA_LONG);
      Driver.check(
          CudaDriver.cuGraphGetNodes(handle, MemorySegment.NULL, out),
          "cuGraphGetNodes",
          toString());
      return Math.toIntExact(out.get(ValueLayout.JAVA_LONG, 0));
    }
  }

  /** Makes it ready to run; the graph itself may be closed afterwards. */
  public CudaGraphExec instantiate() {
    use();
    int nodes = nodes();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
      Driver.check(
          CudaDriver.cuGraphInstantiateWithFlags(out, handle, 0),
          "cuGraphInstantiateWithFlags",
          toString());
      return context().own(new CudaGraphExec(context(), out.get(ValueLayout.ADDRESS, 0), nodes));
    }
  }

  @Override
  void release() {
    Driver.check(CudaDriver.cuGraphDestroy(handle), "cuGraphDestroy", toString());
  }

  @Override
  public String toString() {
    return "graph " + Driver.hex(handle.address());
  }
}
