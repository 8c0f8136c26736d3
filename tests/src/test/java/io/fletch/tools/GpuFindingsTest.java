package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.tests.softgpu.SoftGpu;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

/** What the doctor says about a GPU; here, where the software GPU is. */
class GpuFindingsTest {
  private final Map<String, Object> findings = new LinkedHashMap<>();
  private final List<String> advice = new ArrayList<>();

  @Test
  void aDeviceIsDescribedAndMeasured() {
    SoftGpu gpu = SoftGpu.reset();
    new GpuFindings(findings, advice, 1 << 20).add();
    assertEquals("CUDA 13.0", findings.get("gpu_driver"));
    assertTrue(findings.get("gpu").toString().startsWith("Software GPU, sm_90, 4 multiproc"));
    assertTrue(findings.get("gpu_copy").toString().endsWith(" GB/s"), findings.toString());
    assertEquals(List.of(), advice);
    assertEquals(0, gpu.liveBytes());
  }

  @Test
  void aFullDeviceIsNoError() {
    SoftGpu.reset(90, 1 << 20);
    new GpuFindings(findings, advice, 1 << 20).add();
    assertTrue(findings.get("gpu_memory_free").toString().contains("MiB"), findings.toString());
    assertEquals(1, advice.size());
    assertTrue(advice.getFirst().contains("device out of memory"), advice.toString());
  }

  @Test
  void aBrokenDeviceIsAFinding() {
    SoftGpu gpu = SoftGpu.reset();
    new GpuFindings(new LinkedHashMap<>(), new ArrayList<>(), 1 << 20).add();
    long calls = gpu.calls();
    for (int n = 1; n <= calls; n++) {
      gpu = SoftGpu.reset();
      gpu.failCall(n, 999);
      findings.clear();
      advice.clear();
      new GpuFindings(findings, advice, 1 << 20).add();
      boolean said =
          findings.getOrDefault("gpu", "").toString().startsWith("none: ") || !advice.isEmpty();
      assertTrue(said || gpu.failedCall().equals("cuCtxSetCurrent"), gpu.failedCall());
    }
  }

  @Test
  void noDeviceHasAReason() {
    SoftGpu.reset().pretend(13_000, 0);
    new GpuFindings(findings, advice, 1 << 20).add();
    assertEquals("none: the NVIDIA driver 13.0 finds no device", findings.get("gpu"));
  }
}
