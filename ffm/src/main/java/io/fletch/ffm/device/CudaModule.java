package io.fletch.ffm.device;

import io.fletch.ffm.cuda.CudaDriver;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** Loaded kernels. Its functions are valid until it is closed. From any thread. */
public final class CudaModule extends CudaResource {
  private final String name;
  private final MemorySegment handle;

  CudaModule(CudaContext context, String name, MemorySegment handle) {
    super(context);
    this.name = name;
    this.handle = handle;
  }

  /** The name it was loaded with. */
  public String name() {
    return name;
  }

  /**
   * A kernel of the module.
   *
   * @throws CudaException if there is none of that name
   */
  public CudaFunction function(String function) {
    use();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
      Driver.check(
          CudaDriver.cuModuleGetFunction(out, handle, arena.allocateFrom(function)),
          "cuModuleGetFunction",
          "module=" + name + ", function=" + function);
      return new CudaFunction(this, function, out.get(ValueLayout.ADDRESS, 0));
    }
  }

  @Override
  void release() {
    Driver.check(CudaDriver.cuModuleUnload(handle), "cuModuleUnload", toString());
  }

  @Override
  public String toString() {
    return "module " + name;
  }
}
