package io.fletch.ffm.device;

import io.fletch.ffm.NativeAccess;
import io.fletch.ffm.NativeException;
import io.fletch.ffm.cuda.CudaDriver;
import io.fletch.ffm.cuda.CudaLookup;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * Whether there is a usable NVIDIA driver with devices, found without starting anything on them.
 * Immutable; from any thread.
 *
 * @param driverVersion the CUDA version that the driver offers, such as 13000 for 13.0; 0 without a
 *     driver
 * @param devices the devices that can be used, in the driver's order; empty if there is a reason
 * @param reason why there is no usable device, in one sentence; empty if there is one
 */
public record CudaDevices(int driverVersion, List<CudaDevice> devices, Optional<String> reason) {
  /** The oldest driver whose functions suffice: 12.0 (release 525). */
  public static final int OLDEST_DRIVER = 12_000;

  /** The lowest compute capability that the kernels are written for, as major * 10 + minor. */
  public static final int LOWEST_CAPABILITY = 80;

  /** Checks the lists and copies them. */
  public CudaDevices {
    devices = List.copyOf(devices);
    if (devices.isEmpty() == reason.isEmpty()) {
      throw new IllegalArgumentException(
          "either devices or a reason: devices=" + devices.size() + " reason=" + reason);
    }
  }

  /** Asks the driver. Never throws for a missing driver or device: that is the {@link #reason}. */
  public static CudaDevices find() {
    if (!NativeAccess.granted()) {
      return none(0, "native access is not granted; start java with " + NativeAccess.flag());
    }
    Optional<String> failure = CudaLookup.failure();
    if (failure.isPresent()) {
      return none(0, failure.get());
    }
    if (!CudaLookup.has("cuInit") || !CudaLookup.has("cuDriverGetVersion")) {
      return none(0, "the NVIDIA driver library lacks cuInit: it is not a usable driver");
    }
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(8, 8);
      Driver.check(CudaDriver.cuDriverGetVersion(out), "cuDriverGetVersion", "");
      int version = out.get(ValueLayout.JAVA_INT, 0);
      if (version < OLDEST_DRIVER) {
        return none(
            version,
            "the NVIDIA driver is too old: expected="
                + text(OLDEST_DRIVER)
                + " or newer, actual="
                + text(version)
                + "; update the driver (release 525 or newer)");
      }
      int status = CudaDriver.cuInit(0);
      if (status == Driver.NO_DEVICE) {
        return none(version, "the NVIDIA driver " + text(version) + " finds no device");
      }
      Driver.check(status, "cuInit", "flags=0");
      Driver.check(CudaDriver.cuDeviceGetCount(out), "cuDeviceGetCount", "");
      int count = out.get(ValueLayout.JAVA_INT, 0);
      List<CudaDevice> usable = new ArrayList<>();
      List<String> refused = new ArrayList<>();
      for (int i = 0; i < count; i++) {
        CudaDevice device = CudaDevice.read(i);
        if (device.capability() >= LOWEST_CAPABILITY) {
          usable.add(device);
        } else {
          refused.add(device.name() + " (sm_" + device.capability() + ")");
        }
      }
      if (!usable.isEmpty()) {
        return new CudaDevices(version, usable, Optional.empty());
      }
      return none(
          version,
          refused.isEmpty()
              ? "the NVIDIA driver " + text(version) + " finds no device"
              : "no device is new enough: expected=sm_"
                  + LOWEST_CAPABILITY
                  + " or newer, actual="
                  + String.join(", ", refused));
    } catch (NativeException e) {
      return none(0, "the NVIDIA driver does not start: " + e.getMessage());
    }
  }

  /**
   * The first device.
   *
   * @throws NativeException with the reason if there is none
   */
  public CudaDevice first() {
    if (devices.isEmpty()) {
      throw new NativeException("no GPU: " + reason.orElseThrow());
    }
    return devices.getFirst();
  }

  /** The driver's CUDA version as a person reads it, such as {@code 13.0}. */
  public String driver() {
    return text(driverVersion);
  }

  private static CudaDevices none(int version, String reason) {
    return new CudaDevices(version, List.of(), Optional.of(reason));
  }

  private static String text(int version) {
    return version / 1000 + "." + version % 1000 / 10;
  }
}
