package io.fletch.ffm.device;

import io.fletch.ffm.cuda.CudaDriver;
import io.fletch.ffm.cuda.CudaLookup;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;

/** A point in a stream's work. Recorded by {@link CudaStream#record}. From any thread. */
public final class CudaEvent extends CudaResource {
  private final MemorySegment handle;
  private final boolean timing;

  CudaEvent(CudaContext context, MemorySegment handle, boolean timing) {
    super(context);
    this.handle = handle;
    this.timing = timing;
  }

  /** Drivers before 12.8 lack the second version, whose signature is the same. */
  private static final class OldElapsed {
    static final MethodHandle HANDLE =
        Linker.nativeLinker()
            .downcallHandle(
                CudaLookup.find("cuEventElapsedTime").orElseThrow(),
                FunctionDescriptor.of(
                    ValueLayout.JAVA_INT,
                    ValueLayout.ADDRESS,
                    ValueLayout.ADDRESS,
                    ValueLayout.ADDRESS));
  }

  MemorySegment handle() {
    use();
    return handle;
  }

  /** Waits until the work before the last recording is done. */
  public void synchronize() {
    use();
    Driver.check(CudaDriver.cuEventSynchronize(handle), "cuEventSynchronize", toString());
  }

  /** Whether the work before the last recording is done. */
  public boolean isDone() {
    use();
    int status = CudaDriver.cuEventQuery(handle);
    if (status == Driver.NOT_READY) {
      return false;
    }
    Driver.check(status, "cuEventQuery", toString());
    return true;
  }

  /**
   * Milliseconds from another event to this one; both are done.
   *
   * @throws IllegalStateException if one of them does not record the time
   */
  public float millisSince(CudaEvent start) {
    if (!timing || !start.timing) {
      throw new IllegalStateException("events without timing: " + start + ", " + this);
    }
    use();
    MemorySegment from = start.handle();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.JAVA_FLOAT);
      int status;
      if (CudaLookup.has("cuEventElapsedTime_v2")) {
        status = CudaDriver.cuEventElapsedTime_v2(out, from, handle);
      } else {
        status = elapsed(out, from);
      }
      Driver.check(status, "cuEventElapsedTime", start + ", " + this);
      return out.get(ValueLayout.JAVA_FLOAT, 0);
    }
  }

  private int elapsed(MemorySegment out, MemorySegment from) {
    try {
      return (int) OldElapsed.HANDLE.invokeExact(out, from, handle);
    } catch (RuntimeException | Error e) {
      throw e;
    } catch (Throwable e) {
      throw new AssertionError("a native call threw a checked exception", e);
    }
  }

  @Override
  void release() {
    Driver.check(CudaDriver.cuEventDestroy_v2(handle), "cuEventDestroy_v2", toString());
  }

  @Override
  public String toString() {
    return "event " + Driver.hex(handle.address());
  }
}
