package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.tests.softgpu.SoftGpu;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** What {@code bench} and {@code doctor} say of a GPU; here, where the software GPU is. */
class GpuBenchTest {
  private SoftGpu gpu;

  @BeforeEach
  void reset() {
    gpu = SoftGpu.reset().workers(2);
  }

  private static String run(String... args) {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    ByteArrayOutputStream err = new ByteArrayOutputStream();
    Io io = new Io(new ByteArrayInputStream(new byte[0]), out, err, Set.of());
    int status = Cli.run(io, args);
    assertEquals(0, status, err.toString(StandardCharsets.UTF_8));
    return out.toString(StandardCharsets.UTF_8);
  }

  @Test
  void benchNamesEveryKernelOfAToken() throws Exception {
    String text =
        run(
            "bench",
            "--device",
            "gpu",
            "--model",
            "demo-small",
            "-p",
            "2",
            "-n",
            "2",
            "-r",
            "1",
            "--json");
    Map<String, Object> report = Json.object(text.getBytes(StandardCharsets.UTF_8));
    assertEquals(1, report.get("graph_launches_per_token"));
    assertTrue(((Number) report.get("device_copy_gbps")).doubleValue() > 0, text);
    assertTrue(report.get("bandwidth_share") instanceof Number, text);
    assertTrue(report.get("backend").toString().startsWith("cuda: Software GPU"), text);
    List<?> kernels = (List<?>) report.get("kernels");
    int launches = 0;
    long bytes = 0;
    for (Object k : kernels) {
      Map<?, ?> kernel = (Map<?, ?>) k;
      launches += ((Number) kernel.get("launches")).intValue();
      bytes += ((Number) kernel.get("weight_bytes")).longValue();
      assertTrue(((Number) kernel.get("micros")).doubleValue() > 0, kernel.toString());
    }
    assertEquals(report.get("kernels_per_token"), launches);
    // Outside of graphs only these were launched, each several times.
    assertTrue(gpu.kernelLaunches() >= launches);
    assertEquals(0, gpu.kernelLaunches() % launches);
    assertEquals(((Number) report.get("model_bytes_per_token")).longValue(), bytes);
    assertEquals(0, gpu.liveBytes(), "memory left");
    assertEquals(0, gpu.liveObjects(), "objects left");
  }

  @Test
  void aProcessorHasNoKernelTimes() {
    ModelOptions options =
        ModelOptions.defaults().withBackend(ModelOptions.Backend.REFERENCE).withContextLength(16);
    try (Model model = Model.demo("demo-small", options)) {
      assertEquals(List.of(), model.kernelTimes(1));
      assertThrows(IllegalArgumentException.class, () -> model.kernelTimes(0));
      assertThrows(IllegalArgumentException.class, () -> model.kernelTimes(17));
    }
  }

  @Test
  void doctorAnswersOnTheGpu() {
    String text = run("doctor", "--device", "gpu", "--model", "demo-small", "--json");
    assertTrue(text.contains("\"healthy\":true"), text);
    assertTrue(text.contains("\"backend\":\"cuda: Software GPU"), text);
  }
}
