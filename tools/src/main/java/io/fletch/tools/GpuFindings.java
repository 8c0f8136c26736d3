package io.fletch.tools;

import io.fletch.ffm.NativeException;
import io.fletch.ffm.device.CudaContext;
import io.fletch.ffm.device.CudaDevice;
import io.fletch.ffm.device.CudaDevices;
import io.fletch.ffm.device.CudaMemoryException;
import java.util.List;
import java.util.Map;

/**
 * What {@code fletch doctor} says about the GPU: the devices, the driver, free memory and the
 * bandwidth of a copy on the device, or why there is none.
 */
final class GpuFindings {
  /** Bytes of the copy that is measured: far more than the caches hold. */
  static final long COPY = 256L << 20;

  private final Map<String, Object> findings;
  private final List<String> advice;
  private final long bytes;

  /**
   * @param bytes size of the copy that is measured
   */
  GpuFindings(Map<String, Object> findings, List<String> advice, long bytes) {
    this.findings = findings;
    this.advice = advice;
    this.bytes = bytes;
  }

  /** Asks the driver; a device that fails is a finding, not the end. */
  void add() {
    CudaDevices found = CudaDevices.find();
    if (found.driverVersion() > 0) {
      findings.put("gpu_driver", "CUDA " + found.driver());
    }
    if (found.reason().isPresent()) {
      findings.put("gpu", "none: " + found.reason().get());
      return;
    }
    for (CudaDevice device : found.devices()) {
      String key = found.devices().size() == 1 ? "gpu" : "gpu_" + device.ordinal();
      findings.put(
          key,
          device.name()
              + ", sm_"
              + device.capability()
              + ", "
              + device.multiprocessors()
              + " multiprocessors, "
              + Texts.bytes(device.memory()));
      try {
        measure(key, device);
      } catch (NativeException | IllegalStateException e) {
        findings.put(key + "_error", e.getMessage());
        advice.add("the GPU does not work: " + e.getMessage());
      }
    }
  }

  private void measure(String key, CudaDevice device) {
    try (CudaContext context = CudaContext.open(device)) {
      CudaContext.MemoryInfo memory = context.memory();
      findings.put(
          key + "_memory_free", Texts.bytes(memory.free()) + " of " + Texts.bytes(memory.total()));
      try {
        DeviceCopy copy = DeviceCopy.measure(context, bytes);
        findings.put(key + "_copy", Texts.format("%.0f GB/s", copy.gigabytesPerSecond()));
      } catch (CudaMemoryException e) {
        advice.add("the GPU has no " + Texts.bytes(2 * bytes) + " free: " + e.getMessage());
      }
    }
  }
}
