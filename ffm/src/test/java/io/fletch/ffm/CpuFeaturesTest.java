package io.fletch.ffm;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import org.junit.jupiter.api.Test;

class CpuFeaturesTest {
  @Test
  void cpuidAgreesWithTheKernel() {
    assumeTrue(ExecutableMemory.refusal().isEmpty(), "no machine code here");
    CpuFeatures cpuid = CpuFeatures.fromCpuid();
    CpuFeatures proc = CpuFeatures.fromProc();
    assertEquals(proc.features(), cpuid.features());
    assertEquals(proc.model(), cpuid.model());
  }

  @Test
  void capsRemoveNewerFeatures() {
    CpuFeatures host = CpuFeatures.fromProc();
    assertTrue(host.cap("none").features().isEmpty());
    CpuFeatures avx2 = host.cap("avx2");
    for (CpuFeatures.Feature f : avx2.features()) {
      assertFalse(f.name().startsWith("AVX512") || f.name().startsWith("AMX"), f.name());
    }
    assertFalse(avx2.has(CpuFeatures.Feature.AVX_VNNI));
    assertEquals(host.has(CpuFeatures.Feature.AVX2), avx2.has(CpuFeatures.Feature.AVX2), "kept");
    assertThrows(IllegalArgumentException.class, () -> host.cap("avx3"));
  }

  @Test
  void printsOneLine() {
    String line = CpuFeatures.host().toString();
    assertFalse(line.contains("\n"));
    assertTrue(line.contains("cores"), line);
    System.out.println(line);
  }
}
