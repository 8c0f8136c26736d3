package io.fletch.tools;

import io.fletch.ffm.device.CudaContext;
import io.fletch.ffm.device.CudaDevice;
import io.fletch.ffm.device.CudaEvent;
import io.fletch.ffm.device.CudaStream;
import io.fletch.ffm.device.DeviceMemory;

/**
 * How fast a GPU copies within its memory: the yardstick of decoding on it.
 *
 * @param gigabytesPerSecond bytes read and bytes written, the best pass
 * @param bytes of one copy
 */
record DeviceCopy(double gigabytesPerSecond, long bytes) {
  private static final int PASSES = 4;
  private static final int COPIES = 8;

  /** Measures copies of that many bytes, or of fewer where not twice as many are free. */
  static DeviceCopy measure(CudaContext context, long bytes) {
    long size = bytes;
    while (2 * size > context.memory().free() && size > 1 << 20) {
      size /= 2;
    }
    try (CudaStream stream = context.newStream();
        CudaEvent start = context.newEvent(true);
        CudaEvent end = context.newEvent(true);
        DeviceMemory from = context.allocate(size);
        DeviceMemory to = context.allocate(size)) {
      stream.fill(from, 0, size, (byte) 1);
      stream.copy(from, 0, to, 0, size);
      double best = 0;
      for (int pass = 0; pass < PASSES; pass++) {
        stream.record(start);
        for (int i = 0; i < COPIES; i++) {
          stream.copy(from, 0, to, 0, size);
        }
        stream.record(end);
        end.synchronize();
        best = Math.max(best, 2.0 * size * COPIES / 1e9 / (end.millisSince(start) / 1e3));
      }
      return new DeviceCopy(best, size);
    }
  }

  /** The same in a context of its own. */
  static DeviceCopy measure(CudaDevice device, long bytes) {
    try (CudaContext context = CudaContext.open(device)) {
      return measure(context, bytes);
    }
  }
}
