package io.fletch.ffm;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.util.EnumSet;
import java.util.Set;
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
  void desktopCpusKeepTheirDotProducts() {
    CpuFeatures none = CpuFeatures.fromProc().cap("none");
    CpuFeatures all = none.assume(EnumSet.allOf(CpuFeatures.Feature.class));
    CpuFeatures desktop = all.cap("avx-vnni");
    assertTrue(desktop.has(CpuFeatures.Feature.AVX_VNNI, CpuFeatures.Feature.AVX2));
    for (CpuFeatures.Feature f : desktop.features()) {
      assertFalse(f.name().startsWith("AVX512") || f.name().startsWith("AMX"), f.name());
    }
    assertFalse(
        none.assume(Set.of(CpuFeatures.Feature.AVX2))
            .cap("avx-vnni")
            .has(CpuFeatures.Feature.AVX_VNNI));
    assertTrue(all.toString().contains("assumed"), all.toString());
  }

  @Test
  void printsOneLine() {
    String line = CpuFeatures.host().toString();
    assertFalse(line.contains("\n"));
    assertTrue(line.contains("cores"), line);
    System.out.println(line);
  }
}
