package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import io.fletch.ffm.device.CudaContext;
import io.fletch.ffm.device.CudaDevices;
import io.fletch.ffm.device.CudaEvent;
import io.fletch.ffm.device.CudaException;
import io.fletch.ffm.device.CudaFunction;
import io.fletch.ffm.device.CudaGraph;
import io.fletch.ffm.device.CudaGraphExec;
import io.fletch.ffm.device.CudaLaunch;
import io.fletch.ffm.device.CudaModule;
import io.fletch.ffm.device.CudaStream;
import io.fletch.ffm.device.DeviceMemory;
import io.fletch.ffm.device.LaunchConfig;
import io.fletch.ffm.device.PinnedMemory;
import java.lang.foreign.ValueLayout;
import java.util.List;

/**
 * Uses everything of the driver layer once: adds to numbers on the device, plainly and replayed.
 */
final class DriverScenario {
  static final int N = 100;

  static final String PTX =
      Bench.HEADER
          + """
          .visible .entry add(.param .u64 pdata, .param .u32 pn, .param .u32 pby)
          {
            .reg .b64 %x, %o;
            .reg .b32 %i, %b, %n, %by, %v;
            .reg .pred %p;
            ld.param.u64 %x, [pdata];
            ld.param.u32 %n, [pn];
            ld.param.u32 %by, [pby];
            mov.u32 %i, %tid.x;
            mov.u32 %b, %ctaid.x;
            mad.lo.u32 %i, %b, 32, %i;
            setp.ge.u32 %p, %i, %n;
            @%p bra END;
            mul.wide.u32 %o, %i, 4;
            add.u64 %x, %x, %o;
            ld.global.u32 %v, [%x];
            add.u32 %v, %v, %by;
            st.global.u32 [%x], %v;
          END:
            ret;
          }
          """;

  private DriverScenario() {}

  /** What was open when the context was about to be closed. */
  static List<String> open = List.of();

  static long openBytes;

  /** Runs it; any failure of the driver comes out as its exception. */
  static void run(SoftGpu gpu) {
    open = List.of();
    openBytes = 0;
    CudaContext context = CudaContext.open(CudaDevices.find().first());
    try {
      inside(context);
    } finally {
      open = context.live();
      openBytes = gpu.liveBytes();
      close(context);
    }
  }

  /** The driver may refuse to release a context once. */
  private static void close(CudaContext context) {
    try {
      context.close();
    } catch (CudaException e) {
      context.close();
      throw e;
    }
  }

  private static void inside(CudaContext context) {
    assertFalse(context.memory().free() <= 0);
    try (CudaStream stream = context.newStream();
        CudaEvent start = context.newEvent(true);
        CudaEvent end = context.newEvent(true);
        DeviceMemory data = context.allocate(4 * N);
        DeviceMemory copy = stream.allocate(4 * N);
        PinnedMemory host = context.allocatePinned(4 * N)) {
      byte[] cubin = context.compile("add", PTX);
      try (CudaModule checked = context.loadPtx("add", PTX);
          CudaModule module = context.loadCubin("add", cubin)) {
        assertEquals(1024, checked.function("add").maxThreads());
        CudaFunction function = module.function("add");
        function.allowDynamicShared(1000);
        assertFalse(function.blocksPerMultiprocessor(32, 0) < 1);
        try (CudaLaunch launch = function.prepare(LaunchConfig.of(4, 32), 3)) {
          launch.setMemory(0, data).setInt(1, N).setInt(2, 5);
          for (int i = 0; i < N; i++) {
            host.segment().setAtIndex(ValueLayout.JAVA_INT, i, i);
          }
          stream.upload(host.segment(), data, 0);
          stream.fill(copy, 0, 4 * N, (byte) 0);
          stream.fillInts(copy, 0, N, 9);
          stream.record(start);
          launch.launch(stream);
          try (CudaGraph graph = stream.capture(() -> launch.launch(stream));
              CudaGraphExec exec = graph.instantiate()) {
            assertEquals(1, exec.nodes());
            exec.upload(stream);
            exec.launch(stream);
            exec.launch(stream);
            launch.setInt(2, 1000);
            try (CudaGraph other = stream.capture(() -> launch.launch(stream))) {
              assertEquals(true, exec.update(other));
            }
            exec.launch(stream);
            stream.record(end);
            stream.copy(data, 0, copy, 0, 4 * N);
            stream.download(copy, 0, host.segment());
            stream.waitFor(end);
            end.synchronize();
            assertFalse(end.millisSince(start) < 0);
            stream.synchronize();
          }
          for (int i = 0; i < N; i++) {
            assertEquals(i + 1015, host.segment().getAtIndex(ValueLayout.JAVA_INT, i));
          }
          assertEquals(true, stream.isIdle());
          assertEquals(true, end.isDone());
          assertEquals(false, stream.isCapturing());
          context.synchronize();
        }
      }
    }
  }
}
