package io.fletch.graph.cuda;

import io.fletch.ffm.device.CudaContext;
import io.fletch.ffm.device.CudaEvent;
import io.fletch.ffm.device.CudaLaunch;
import io.fletch.ffm.device.CudaStream;
import io.fletch.ffm.device.DeviceMemory;
import io.fletch.graph.KernelTime;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Times the kernels of a captured forward outside of it, with an event after each. The stream is
 * kept busy while they are queued: otherwise the device would wait for the host between them, and
 * the host's time would be measured.
 */
final class KernelProfile {
  private static final int REPEATS = 5;

  /** Launches between two waits; the driver's queue holds far more. */
  private static final int WINDOW = 96;

  /** Fills before a window: a millisecond on the fastest device, ten microseconds per launch. */
  private static final int FILLS = 64;

  private static final long FILL = 64L << 20;

  private final CudaLowering.Program program;
  private final List<CudaLaunch> launches;

  KernelProfile(CudaLowering.Program program, List<CudaLaunch> launches) {
    this.program = program;
    this.launches = List.copyOf(launches);
  }

  /** Runs all kernels a few times; what they read is on the device already. */
  List<KernelTime> measure(CudaContext context, CudaStream stream) {
    double[][] samples = new double[launches.size()][REPEATS];
    List<CudaEvent> events = new ArrayList<>();
    long bytes = Math.clamp(context.memory().total() / 256, 1 << 20, FILL);
    try (DeviceMemory filler = context.allocate(bytes)) {
      for (int i = 0; i <= Math.min(WINDOW, launches.size()); i++) {
        events.add(context.newEvent(true));
      }
      for (int repeat = 0; repeat < REPEATS; repeat++) {
        for (int first = 0; first < launches.size(); first += WINDOW) {
          int end = Math.min(first + WINDOW, launches.size());
          window(first, end, repeat, stream, filler, events, samples);
        }
      }
    } finally {
      events.forEach(CudaEvent::close);
    }
    return sums(samples);
  }

  private void window(
      int first,
      int end,
      int repeat,
      CudaStream stream,
      DeviceMemory filler,
      List<CudaEvent> events,
      double[][] samples) {
    for (int i = 0; i < FILLS; i++) {
      stream.fill(filler, 0, filler.bytes(), (byte) i);
    }
    stream.record(events.getFirst());
    for (int i = first; i < end; i++) {
      launches.get(i).launch(stream);
      stream.record(events.get(i - first + 1));
    }
    stream.synchronize();
    for (int i = first; i < end; i++) {
      CudaEvent before = events.get(i - first);
      samples[i][repeat] = 1e3 * events.get(i - first + 1).millisSince(before);
    }
  }

  /** Medians of the launches, added up by kernel. */
  private List<KernelTime> sums(double[][] samples) {
    Map<String, KernelTime> byKernel = new LinkedHashMap<>();
    for (int i = 0; i < samples.length; i++) {
      Arrays.sort(samples[i]);
      CudaLowering.Launch l = program.launches().get(i);
      long weights = program.plan().steps().get(i).weightBytes();
      KernelTime one = new KernelTime(l.kernel(), 1, samples[i][REPEATS / 2], weights);
      byKernel.merge(
          l.kernel(),
          one,
          (a, b) ->
              new KernelTime(
                  a.kernel(),
                  a.launches() + b.launches(),
                  a.micros() + b.micros(),
                  a.weightBytes() + b.weightBytes()));
    }
    return byKernel.values().stream()
        .sorted(Comparator.comparingDouble(KernelTime::micros).reversed())
        .toList();
  }
}
