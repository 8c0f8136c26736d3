package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.NativeException;
import io.fletch.ffm.device.CudaContext;
import io.fletch.ffm.device.CudaDevices;
import io.fletch.ffm.device.CudaEvent;
import io.fletch.ffm.device.CudaException;
import io.fletch.ffm.device.CudaGraph;
import io.fletch.ffm.device.CudaGraphExec;
import io.fletch.ffm.device.CudaLaunch;
import io.fletch.ffm.device.CudaMemoryException;
import io.fletch.ffm.device.CudaModule;
import io.fletch.ffm.device.CudaStream;
import io.fletch.ffm.device.DeviceMemory;
import io.fletch.ffm.device.LaunchConfig;
import io.fletch.ffm.device.PinnedMemory;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Test;

/** The safe layer over the driver, on the software GPU. */
class DriverLayerTest {
  private static void contains(Throwable e, String... parts) {
    for (String part : parts) {
      assertTrue(e.getMessage().contains(part), "missing " + part + " in " + e.getMessage());
    }
  }

  private static CudaContext open() {
    return CudaContext.open(CudaDevices.find().first());
  }

  @Test
  void scenarioLeavesNothing() {
    SoftGpu gpu = SoftGpu.reset();
    DriverScenario.run(gpu);
    assertEquals(List.of(), DriverScenario.open);
    assertEquals(0, gpu.liveBytes());
    assertEquals(0, gpu.liveObjects());
    assertEquals(1, gpu.kernelLaunches());
    assertEquals(3, gpu.graphLaunches());
    assertEquals(4, gpu.kernelRuns().get("add"));
  }

  /** Each call of the scenario fails once, with each of these codes. */
  @Test
  void everyDriverCallMayFail() {
    SoftGpu counting = SoftGpu.reset();
    DriverScenario.run(counting);
    long calls = counting.calls();
    assertTrue(calls > 60, "calls=" + calls);
    for (int code : new int[] {2, 999}) {
      for (long n = 1; n <= calls; n++) {
        SoftGpu gpu = SoftGpu.reset();
        gpu.failCall(n, code);
        String failed;
        try {
          DriverScenario.run(gpu);
          failed = gpu.failedCall();
          // These fail without a reason to give up.
          assertTrue(
              List.of("cuLinkDestroy", "cuCtxSetCurrent").contains(failed),
              "no exception for call " + n + ": " + failed);
        } catch (NativeException e) {
          failed = gpu.failedCall();
          contains(e, failed.replace("_v2", ""));
        } catch (IllegalStateException | AssertionError e) {
          throw new AssertionError("call " + n + ": " + gpu.failedCall() + " code=" + code, e);
        }
        boolean release = failed.matches("cu(Mem)?.*(Free|Destroy|Unload).*");
        if (!release) {
          assertEquals(List.of(), DriverScenario.open, failed);
          assertEquals(0, DriverScenario.openBytes, failed);
        }
        assertEquals(0, gpu.liveBytes(), failed);
        assertEquals(0, gpu.liveObjects(), failed);
        DriverScenario.run(gpu);
      }
    }
  }

  @Test
  void reasonsForNoDevice() {
    SoftGpu.reset().pretend(11_080, 1);
    CudaDevices old = CudaDevices.find();
    assertTrue(old.devices().isEmpty());
    assertTrue(old.reason().orElseThrow().contains("too old: expected=12.0"));
    assertTrue(old.reason().orElseThrow().contains("actual=11.8"));
    contains(assertThrows(NativeException.class, old::first), "no GPU: ", "too old");
    SoftGpu.reset().pretend(13_000, 0);
    assertTrue(CudaDevices.find().reason().orElseThrow().contains("finds no device"));
    SoftGpu.reset(75, 1 << 20);
    assertTrue(CudaDevices.find().reason().orElseThrow().contains("expected=sm_80"));
    SoftGpu.reset();
    CudaDevices found = CudaDevices.find();
    assertEquals("13.0", found.driver());
    assertEquals(90, found.first().capability());
    assertEquals(1L << 30, found.first().memory());
  }

  @Test
  void outOfMemorySaysWhatWouldFit() {
    SoftGpu gpu = SoftGpu.reset(90, 1000);
    try (CudaContext context = open();
        CudaStream stream = context.newStream();
        DeviceMemory _ = context.allocate(600)) {
      CudaMemoryException e = assertThrows(CudaMemoryException.class, () -> context.allocate(500));
      contains(e, "wanted=500", "free=400 of total=1000", "at most 400 bytes would fit");
      assertEquals(500, e.wanted());
      assertEquals(400, e.free());
      assertThrows(CudaMemoryException.class, () -> stream.allocate(401));
      context.allocate(400).close();
    }
    assertEquals(0, gpu.liveBytes());
  }

  @Test
  void useAfterCloseAndSecondClose() {
    SoftGpu.reset();
    CudaContext context = open();
    CudaStream stream = context.newStream();
    CudaEvent event = context.newEvent(false);
    DeviceMemory memory = context.allocate(16);
    PinnedMemory pinned = context.allocatePinned(16);
    CudaModule module = context.loadPtx("add", DriverScenario.PTX);
    CudaLaunch launch = module.function("add").prepare(LaunchConfig.of(1, 32), 3);
    CudaGraph graph = stream.capture(() -> {});
    CudaGraphExec exec = graph.instantiate();
    MemorySegment view = pinned.segment();
    launch.setMemory(0, memory).setInt(1, 4).setInt(2, 1);
    for (AutoCloseable c : List.of(exec, graph, launch, module, pinned, memory, event, stream)) {
      try {
        c.close();
      } catch (Exception e) {
        throw new AssertionError(e);
      }
      contains(assertThrows(IllegalStateException.class, c::close), "already closed");
    }
    contains(assertThrows(IllegalStateException.class, stream::synchronize), "used after close");
    contains(assertThrows(IllegalStateException.class, memory::address), "used after close");
    assertThrows(IllegalStateException.class, () -> view.get(ValueLayout.JAVA_BYTE, 0));
    assertThrows(IllegalStateException.class, () -> launch.launch(stream));
    assertThrows(IllegalStateException.class, () -> exec.launch(stream));
    assertThrows(IllegalStateException.class, () -> module.function("add"));
    context.close();
    assertThrows(IllegalStateException.class, context::close);
    assertThrows(IllegalStateException.class, () -> context.allocate(1));
  }

  @Test
  void aContextNamesWhatLeaked() {
    SoftGpu gpu = SoftGpu.reset();
    CudaContext context = open();
    DeviceMemory leaked = context.allocate(48);
    assertEquals(1, context.live().size());
    IllegalStateException e = assertThrows(IllegalStateException.class, context::close);
    contains(e, "leaked 1", "48 bytes");
    assertTrue(leaked.isClosed());
    assertEquals(0, gpu.liveBytes());
  }

  @Test
  void boundsOfCopies() {
    SoftGpu.reset();
    try (CudaContext context = open();
        CudaStream stream = context.newStream();
        DeviceMemory memory = context.allocate(16);
        Arena arena = Arena.ofConfined()) {
      MemorySegment host = arena.allocate(16);
      assertThrows(IndexOutOfBoundsException.class, () -> stream.upload(host, memory, 1));
      assertThrows(IndexOutOfBoundsException.class, () -> stream.download(memory, -1, host));
      assertThrows(IndexOutOfBoundsException.class, () -> stream.fill(memory, 8, 9, (byte) 0));
      assertThrows(
          IllegalArgumentException.class,
          () -> stream.upload(MemorySegment.ofArray(new byte[4]), memory, 0));
      assertThrows(
          IllegalArgumentException.class, () -> stream.download(memory, 0, host.asReadOnly()));
    }
  }

  @Test
  void compilerMessagesAreInTheException() {
    SoftGpu.reset();
    try (CudaContext context = open()) {
      String wrong = DriverScenario.PTX.replace("add.u32", "adder.u32");
      contains(
          assertThrows(CudaException.class, () -> context.loadPtx("wrong", wrong)),
          "module=wrong",
          "CUDA_ERROR_INVALID_PTX",
          "line 20",
          "adder");
      assertThrows(CudaException.class, () -> context.compile("wrong", wrong));
      byte[] cubin = context.compile("add", DriverScenario.PTX);
      contains(
          assertThrows(
              NativeException.class,
              () -> context.loadCubin("cut", Arrays.copyOf(cubin, cubin.length - 1))),
          "cut off");
      contains(
          assertThrows(NativeException.class, () -> context.loadCubin("text", new byte[100])),
          "ELF");
      try (CudaModule module = context.loadPtx("add", DriverScenario.PTX)) {
        contains(
            assertThrows(CudaException.class, () -> module.function("sub")),
            "function=sub",
            "CUDA_ERROR_NOT_FOUND");
      }
    }
  }

  @Test
  void waitingInsideACaptureBreaksIt() {
    SoftGpu.reset();
    try (CudaContext context = open();
        CudaStream stream = context.newStream()) {
      CudaException e =
          assertThrows(CudaException.class, () -> stream.capture(stream::synchronize));
      assertEquals("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", e.error());
      assertFalse(stream.isCapturing());
      stream.synchronize();
      RuntimeException own = new RuntimeException("own");
      assertSame(
          own,
          assertThrows(
              RuntimeException.class,
              () ->
                  stream.capture(() -> {
                    throw own;
                  })));
      assertEquals(List.of(stream.toString()), context.live());
    }
  }

  @Test
  void anUpdateOfAnotherShapeIsRefused() {
    SoftGpu.reset();
    try (CudaContext context = open();
        CudaStream stream = context.newStream();
        DeviceMemory memory = context.allocate(16);
        CudaGraph one = stream.capture(() -> stream.fill(memory, 0, 16, (byte) 1));
        CudaGraphExec exec = one.instantiate();
        CudaGraph two =
            stream.capture(() -> {
              stream.fill(memory, 0, 16, (byte) 1);
              stream.copy(memory, 0, memory, 8, 8);
            })) {
      assertEquals(2, two.nodes());
      assertFalse(exec.update(two));
      exec.launch(stream);
      stream.synchronize();
    }
  }

  @Test
  void aFaultShowsAtTheNextWaitAndEndsWithTheContext() {
    SoftGpu.reset();
    CudaContext context = open();
    try (CudaStream stream = context.newStream();
        CudaModule module = context.loadPtx("add", DriverScenario.PTX);
        CudaLaunch launch = module.function("add").prepare(LaunchConfig.of(1, 32), 3)) {
      assertThrows(IllegalStateException.class, () -> launch.launch(stream));
      launch.setLong(0, 16).setInt(2, 1);
      contains(
          assertThrows(IllegalStateException.class, () -> launch.launch(stream)),
          "parameter 1 of add.add was not set");
      launch.setInt(1, 4).launch(stream);
      CudaException e = assertThrows(CudaException.class, stream::synchronize);
      contains(e, "CUDA_ERROR_ILLEGAL_ADDRESS", "kernel add", "ld.global.u32 %v, [%x]");
      assertThrows(CudaException.class, () -> context.allocate(16));
    } catch (CudaException closing) {
      // A broken context cannot free what it owns piece by piece.
      assertEquals(700, closing.code());
    }
    context.close();
    DriverScenario.run(SoftGpu.reset());
  }

  @Test
  void launchesThatCannotBe() {
    SoftGpu.reset();
    assertThrows(IllegalArgumentException.class, () -> LaunchConfig.of(1, 1025));
    assertThrows(IllegalArgumentException.class, () -> LaunchConfig.of(0, 32));
    assertThrows(IllegalArgumentException.class, () -> LaunchConfig.of(3, 32).withCluster(2));
    try (CudaContext context = open();
        CudaStream stream = context.newStream();
        DeviceMemory memory = context.allocate(400);
        CudaModule module = context.loadPtx("add", DriverScenario.PTX);
        CudaLaunch shared =
            module.function("add").prepare(LaunchConfig.of(1, 32).withShared(50_000), 3);
        CudaLaunch many =
            module.function("add").prepare(LaunchConfig.of(1000, 32).withCooperative(true), 3)) {
      for (CudaLaunch l : List.of(shared, many)) {
        l.setMemory(0, memory).setInt(1, 4).setInt(2, 1);
      }
      contains(
          assertThrows(CudaException.class, () -> shared.launch(stream)),
          "shared=50000",
          "function=add.add");
      module.function("add").allowDynamicShared(50_000);
      shared.launch(stream);
      assertThrows(CudaException.class, () -> many.launch(stream));
      assertThrows(IndexOutOfBoundsException.class, () -> many.setInt(3, 0));
      stream.synchronize();
    }
  }
}
