package io.fletch.ffm.device;

import io.fletch.ffm.cuda.CudaDriver;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * One GPU and what it can do. Immutable; from any thread.
 *
 * @param ordinal its number for the driver
 * @param name such as {@code NVIDIA H200}
 * @param capability compute capability as major * 10 + minor, such as 90
 * @param multiprocessors number of SMs
 * @param memory bytes of device memory
 * @param sharedPerBlock bytes of shared memory that a block may have once its function asks for
 *     more than the default 48 KiB
 * @param l2 bytes of the L2 cache
 * @param cooperative whether cooperative launches run
 * @param pools whether stream-ordered allocation works
 */
public record CudaDevice(
    int ordinal,
    String name,
    int capability,
    int multiprocessors,
    long memory,
    int sharedPerBlock,
    int l2,
    boolean cooperative,
    boolean pools) {

  static CudaDevice read(int ordinal) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(8, 8);
      Driver.check(CudaDriver.cuDeviceGet(out, ordinal), "cuDeviceGet", "ordinal=" + ordinal);
      int device = out.get(ValueLayout.JAVA_INT, 0);
      MemorySegment name = arena.allocate(256);
      Driver.check(
          CudaDriver.cuDeviceGetName(name, 256, device), "cuDeviceGetName", "device=" + device);
      Driver.check(
          CudaDriver.cuDeviceTotalMem_v2(out, device), "cuDeviceTotalMem_v2", "device=" + device);
      long memory = out.get(ValueLayout.JAVA_LONG, 0);
      return new CudaDevice(
          device,
          name.getString(0),
          10 * attribute(out, device, CudaDriver.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR())
              + attribute(out, device, CudaDriver.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR()),
          attribute(out, device, CudaDriver.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT()),
          memory,
          attribute(
              out, device, CudaDriver.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN()),
          attribute(out, device, CudaDriver.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE()),
          attribute(out, device, CudaDriver.CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH()) != 0,
          attribute(out, device, CudaDriver.CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED()) != 0);
    }
  }

  /**
   * Any attribute of the device.
   *
   * @param attribute a {@code CU_DEVICE_ATTRIBUTE_...} number
   * @throws CudaException if the driver does not know it
   */
  public int attribute(int attribute) {
    try (Arena arena = Arena.ofConfined()) {
      return attribute(arena.allocate(8, 8), ordinal, attribute);
    }
  }

  private static int attribute(MemorySegment out, int device, int attribute) {
    int status = CudaDriver.cuDeviceGetAttribute(out, attribute, device);
    if (status != Driver.SUCCESS) {
      throw Driver.failure(
          status, "cuDeviceGetAttribute", "attribute=" + attribute + ", device=" + device, "");
    }
    return out.get(ValueLayout.JAVA_INT, 0);
  }
}
