package io.fletch.ffm.device;

import io.fletch.ffm.cuda.CudaDriver;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** A kernel; lives as long as its module. From any thread. */
public final class CudaFunction {
  private final CudaModule module;
  private final String name;
  private final MemorySegment handle;

  CudaFunction(CudaModule module, String name, MemorySegment handle) {
    this.module = module;
    this.name = name;
    this.handle = handle;
  }

  /** Its module. */
  public CudaModule module() {
    return module;
  }

  /** Its name in the module. */
  public String name() {
    return name;
  }

  MemorySegment handle() {
    module.use();
    return handle;
  }

  /** Registers of a thread. */
  public int registers() {
    return attribute(CudaDriver.CU_FUNC_ATTRIBUTE_NUM_REGS());
  }

  /** Bytes of local memory of a thread: what the compiler spilled, and arrays. */
  public int localBytes() {
    return attribute(CudaDriver.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES());
  }

  /** Bytes of shared memory that the kernel declares with a size. */
  public int staticShared() {
    return attribute(CudaDriver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES());
  }

  /** The largest block that can run. */
  public int maxThreads() {
    return attribute(CudaDriver.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK());
  }

  private int attribute(int attribute) {
    module.use();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.JAVA_INT);
      Driver.check(
          CudaDriver.cuFuncGetAttribute(out, attribute, handle),
          "cuFuncGetAttribute",
          "attribute=" + attribute + ", function=" + name);
      return out.get(ValueLayout.JAVA_INT, 0);
    }
  }

  /**
   * Allows launches with more dynamic shared memory than 48 KiB less {@link #staticShared()}.
   *
   * @param bytes at most {@link CudaDevice#sharedPerBlock()} less the static shared memory
   */
  public void allowDynamicShared(int bytes) {
    module.use();
    Driver.check(
        CudaDriver.cuFuncSetAttribute(
            handle, CudaDriver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES(), bytes),
        "cuFuncSetAttribute",
        "function=" + name + ", dynamicShared=" + bytes);
  }

  /** How many blocks of a size run on one multiprocessor at once. */
  public int blocksPerMultiprocessor(int threads, int dynamicShared) {
    module.use();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.JAVA_INT);
      Driver.check(
          CudaDriver.cuOccupancyMaxActiveBlocksPerMultiprocessor(
              out, handle, threads, dynamicShared),
          "cuOccupancyMaxActiveBlocksPerMultiprocessor",
          "function=" + name + ", threads=" + threads + ", shared=" + dynamicShared);
      return out.get(ValueLayout.JAVA_INT, 0);
    }
  }

  /**
   * A launch that can be made many times.
   *
   * @param parameters number of the kernel's parameters
   */
  public CudaLaunch prepare(LaunchConfig config, int parameters) {
    module.use();
    return module.context().own(new CudaLaunch(this, config, parameters));
  }

  @Override
  public String toString() {
    return module.name() + "." + name;
  }
}
