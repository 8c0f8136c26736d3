package io.fletch.tests.softgpu;

import io.fletch.ffm.device.CudaContext;
import io.fletch.ffm.device.CudaDevices;
import io.fletch.ffm.device.CudaException;
import io.fletch.ffm.device.CudaLaunch;
import io.fletch.ffm.device.CudaModule;
import io.fletch.ffm.device.CudaStream;
import io.fletch.ffm.device.DeviceMemory;
import io.fletch.ffm.device.LaunchConfig;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** Runs small kernels on the software GPU through the driver layer: words in, words out. */
final class Bench {
  static final String HEADER = ".version 8.5\n.target sm_90\n.address_size 64\n";

  private Bench() {}

  /** A kernel {@code k(in, out)} whose body has both addresses in %in and %out, %t is tid.x. */
  static String kernel(String declarations, String body) {
    return HEADER
        + ".visible .entry k(.param .u64 pin, .param .u64 pout)\n{\n"
        + ".reg .b64 %in, %out, %o4, %o8;\n.reg .b32 %t;\n"
        + declarations
        + "\nld.param.u64 %in, [pin];\nld.param.u64 %out, [pout];\nmov.u32 %t, %tid.x;\n"
        + "mul.wide.u32 %o4, %t, 4;\nmul.wide.u32 %o8, %t, 8;\n"
        + body
        + "\nret;\n}\n";
  }

  static int[] run(String ptx, LaunchConfig config, int[] input, int outputs) {
    return run(ptx, config, input, outputs, 1);
  }

  /** The same, launched several times in a row. */
  static int[] run(String ptx, LaunchConfig config, int[] input, int outputs, int launches) {
    if (Boolean.getBoolean("fletch.tests.ptxas")) {
      Ptxas.findOrSay("a test kernel")
          .ifPresent(p -> {
            Ptxas.Result result = p.assemble(ptx, 90);
            if (!result.accepted()) {
              throw new AssertionError(result.log() + ptx);
            }
          });
    }
    SoftGpu gpu = SoftGpu.reset().workers(2);
    try (CudaContext context = CudaContext.open(CudaDevices.find().first());
        CudaStream stream = context.newStream();
        CudaModule module = context.loadPtx("test", ptx);
        DeviceMemory in = context.allocate(Math.max(4L, 4L * input.length));
        DeviceMemory out = context.allocate(4L * outputs);
        Arena arena = Arena.ofConfined()) {
      MemorySegment host = arena.allocate(Math.max(4L * outputs, 4L * input.length), 8);
      MemorySegment.copy(input, 0, host, ValueLayout.JAVA_INT, 0, input.length);
      stream.upload(host.asSlice(0, 4L * input.length), in, 0);
      stream.fill(out, 0, 4L * outputs, (byte) 0);
      try (CudaLaunch launch = module.function("k").prepare(config, 2)) {
        launch.setMemory(0, in).setMemory(1, out);
        for (int i = 0; i < launches; i++) {
          launch.launch(stream);
        }
        stream.download(out, 0, host.asSlice(0, 4L * outputs));
        stream.synchronize();
      }
      return host.asSlice(0, 4L * outputs).toArray(ValueLayout.JAVA_INT);
    } catch (CudaException e) {
      // A fault makes every later call of the context fail: the first message is the one.
      throw gpu.faultText().isEmpty() ? e : new GpuFault(e.code(), gpu.faultText());
    }
  }

  /** One block of threads. */
  static int[] run(String ptx, int threads, int[] input, int outputs) {
    return run(ptx, LaunchConfig.of(1, threads), input, outputs);
  }
}
