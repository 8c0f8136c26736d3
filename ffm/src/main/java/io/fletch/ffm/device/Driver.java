package io.fletch.ffm.device;

import io.fletch.ffm.cuda.CudaDriver;
import io.fletch.ffm.cuda.CudaLookup;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** What the classes of this package share: statuses into exceptions. */
final class Driver {
  static final int SUCCESS = 0;
  static final int INVALID_VALUE = 1;
  static final int OUT_OF_MEMORY = 2;
  static final int NO_DEVICE = 100;
  static final int NOT_READY = 600;
  static final int GRAPH_EXEC_UPDATE_FAILURE = 910;

  private Driver() {}

  /** Throws if the call failed. */
  static void check(int status, String call, String arguments) {
    if (status != SUCCESS) {
      throw failure(status, call, arguments, "");
    }
  }

  /** An exception; without a detail it takes the driver's description. */
  static CudaException failure(int status, String call, String arguments, String detail) {
    return new CudaException(
        call, status, name(status), arguments, detail.isEmpty() ? description(status) : detail);
  }

  /** An allocation's failure, with the state of the memory if that was the reason. */
  static CudaException allocationFailure(int status, String call, long bytes) {
    String arguments = "bytes=" + bytes;
    if (status != OUT_OF_MEMORY) {
      return failure(status, call, arguments, "");
    }
    long free = -1;
    long total = -1;
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(16, 8);
      if (CudaDriver.cuMemGetInfo_v2(out, out.asSlice(8)) == SUCCESS) {
        free = out.get(ValueLayout.JAVA_LONG, 0);
        total = out.get(ValueLayout.JAVA_LONG, 8);
      }
    }
    return new CudaMemoryException(call, status, name(status), arguments, bytes, free, total);
  }

  /** The driver's name of a status. */
  static String name(int status) {
    String name = text(status, true);
    return name.isEmpty() ? "unknown CUDA error" : name;
  }

  private static String description(int status) {
    return text(status, false);
  }

  private static String text(int status, boolean name) {
    if (!CudaLookup.has(name ? "cuGetErrorName" : "cuGetErrorString")) {
      return "";
    }
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
      int found =
          name ? CudaDriver.cuGetErrorName(status, out) : CudaDriver.cuGetErrorString(status, out);
      MemorySegment text = out.get(ValueLayout.ADDRESS, 0);
      return found != SUCCESS || text.address() == 0
          ? ""
          : text.reinterpret(Long.MAX_VALUE - text.address()).getString(0);
    }
  }

  static String hex(long address) {
    return "0x" + Long.toHexString(address);
  }
}
