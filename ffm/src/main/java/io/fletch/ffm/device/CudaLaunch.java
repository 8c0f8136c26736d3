package io.fletch.ffm.device;

import io.fletch.ffm.cuda.CUlaunchAttributeValue_union;
import io.fletch.ffm.cuda.CUlaunchAttribute_st;
import io.fletch.ffm.cuda.CUlaunchConfig_st;
import io.fletch.ffm.cuda.CudaDriver;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.BitSet;

/**
 * A kernel with its launch configuration and parameters, made once and launched many times without
 * allocation. The driver copies the parameters during {@link #launch}, so they may be changed right
 * after it. One thread at a time.
 */
public final class CudaLaunch extends CudaResource {
  private static final int MAX_ATTRIBUTES = 3;

  private final Arena arena = Arena.ofShared();
  private final CudaFunction function;
  private final LaunchConfig config;
  private final int parameters;
  private final MemorySegment launchConfig;
  private final MemorySegment values;
  private final MemorySegment pointers;
  private final BitSet set;

  CudaLaunch(CudaFunction function, LaunchConfig config, int parameters) {
    super(function.module().context());
    if (parameters < 0 || parameters > 512) {
      throw new IllegalArgumentException("parameters out of range: actual=" + parameters);
    }
    this.function = function;
    this.config = config;
    this.parameters = parameters;
    set = new BitSet(parameters);
    values = arena.allocate(Math.max(8L * parameters, 8), 8);
    pointers = arena.allocate(Math.max(8L * parameters, 8), 8);
    for (int i = 0; i < parameters; i++) {
      pointers.setAtIndex(ValueLayout.JAVA_LONG, i, values.address() + 8L * i);
    }
    launchConfig = arena.allocate(CUlaunchConfig_st.layout());
    MemorySegment attributes = CUlaunchAttribute_st.allocateArray(MAX_ATTRIBUTES, arena);
    int count = 0;
    if (config.cooperative()) {
      MemorySegment at =
          attribute(attributes, count++, CudaDriver.CU_LAUNCH_ATTRIBUTE_COOPERATIVE());
      CUlaunchAttributeValue_union.cooperative(at, 1);
    }
    if (config.cluster() > 0) {
      MemorySegment at =
          attribute(attributes, count++, CudaDriver.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION());
      MemorySegment dim = CUlaunchAttributeValue_union.clusterDim(at);
      CUlaunchAttributeValue_union.clusterDim.x(dim, config.cluster());
      CUlaunchAttributeValue_union.clusterDim.y(dim, 1);
      CUlaunchAttributeValue_union.clusterDim.z(dim, 1);
    }
    if (config.programmatic()) {
      MemorySegment at =
          attribute(
              attributes,
              count++,
              CudaDriver.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION());
      CUlaunchAttributeValue_union.programmaticStreamSerializationAllowed(at, 1);
    }
    CUlaunchConfig_st.gridDimX(launchConfig, config.gridX());
    CUlaunchConfig_st.gridDimY(launchConfig, config.gridY());
    CUlaunchConfig_st.gridDimZ(launchConfig, config.gridZ());
    CUlaunchConfig_st.blockDimX(launchConfig, config.blockX());
    CUlaunchConfig_st.blockDimY(launchConfig, config.blockY());
    CUlaunchConfig_st.blockDimZ(launchConfig, config.blockZ());
    CUlaunchConfig_st.sharedMemBytes(launchConfig, config.shared());
    CUlaunchConfig_st.attrs(launchConfig, attributes);
    CUlaunchConfig_st.numAttrs(launchConfig, count);
  }

  private static MemorySegment attribute(MemorySegment attributes, int index, int id) {
    MemorySegment at =
        attributes.asSlice(index * CUlaunchAttribute_st.sizeof(), CUlaunchAttribute_st.sizeof());
    CUlaunchAttribute_st.id(at, id);
    return CUlaunchAttribute_st.value(at);
  }

  /** How it is launched. */
  public LaunchConfig config() {
    return config;
  }

  /** Sets a 64-bit parameter, such as an address. */
  public CudaLaunch setLong(int index, long value) {
    check(index);
    values.setAtIndex(ValueLayout.JAVA_LONG, index, value);
    return this;
  }

  /** Sets a 32-bit parameter. */
  public CudaLaunch setInt(int index, int value) {
    check(index);
    values.set(ValueLayout.JAVA_INT, 8L * index, value);
    return this;
  }

  /** Sets a 32-bit floating-point parameter. */
  public CudaLaunch setFloat(int index, float value) {
    check(index);
    values.set(ValueLayout.JAVA_FLOAT, 8L * index, value);
    return this;
  }

  /** Sets the address of a block of memory. */
  public CudaLaunch setMemory(int index, DeviceMemory memory) {
    return setLong(index, memory.address());
  }

  /**
   * Sets a tensor map, which the driver copies at each launch; it must stay open until the last.
   */
  public CudaLaunch setTensorMap(int index, TensorMap map) {
    check(index);
    pointers.setAtIndex(ValueLayout.JAVA_LONG, index, map.segment().address());
    return this;
  }

  private void check(int index) {
    if (index < 0 || index >= parameters) {
      throw new IndexOutOfBoundsException(
          "parameter of " + function + ": index=" + index + " count=" + parameters);
    }
    set.set(index);
  }

  /**
   * Queues the kernel.
   *
   * @throws IllegalStateException if a parameter was never set
   * @throws CudaException if the driver refuses; failures while it runs show at the stream's next
   *     synchronisation
   */
  public void launch(CudaStream stream) {
    use();
    if (set.cardinality() != parameters) {
      throw new IllegalStateException(
          "parameter " + set.nextClearBit(0) + " of " + function + " was not set");
    }
    CUlaunchConfig_st.hStream(launchConfig, stream.handle());
    int status =
        CudaDriver.cuLaunchKernelEx(launchConfig, function.handle(), pointers, MemorySegment.NULL);
    if (status != Driver.SUCCESS) {
      throw Driver.failure(status, "cuLaunchKernelEx", "function=" + function + ", " + config, "");
    }
  }

  @Override
  void release() {
    if (arena.scope().isAlive()) {
      arena.close();
    }
  }

  @Override
  public String toString() {
    return "launch of " + function;
  }
}
