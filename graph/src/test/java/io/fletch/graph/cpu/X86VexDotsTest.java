package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeFalse;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.CpuFeatures.Feature;
import io.fletch.ffm.ExecutableMemory;
import io.fletch.graph.cpu.x86.Isa;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.EnumSet;
import java.util.Optional;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Dot products of AVX-VNNI in the VEX encoding, which CPUs have that lack AVX-512. Hypervisors hide
 * it on some that have both; a process of its own finds out.
 */
class X86VexDotsTest {
  @Test
  void haveTheBitsOfTheScalarKernelsWhereTheCpuExecutesThem(@TempDir Path folder) throws Exception {
    CpuFeatures cpu = CpuFeatures.detected();
    assumeTrue(ExecutableMemory.refusal().isEmpty() && Isa.AVX2.supportedBy(cpu), "no AVX2 code");
    assumeFalse(cpu.has(Feature.AVX_VNNI), "all other tests run that code");
    Process process =
        new ProcessBuilder(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-XX:-CreateCoredumpOnCrash",
                "-Dfletch.cpu=avx-vnni",
                "-Dfletch.cpu.assume=avx_vnni",
                "--enable-native-access=ALL-UNNAMED",
                "-cp",
                System.getProperty(
                    "surefire.test.class.path", System.getProperty("java.class.path")),
                VexDots.class.getName())
            .directory(folder.toFile())
            .redirectErrorStream(true)
            .start();
    String out = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    int status = process.waitFor();
    if (!out.contains(VexDots.EXECUTES)) {
      assertTrue(out.contains("SIGILL") || out.contains("EXCEPTION_ILLEGAL_INSTRUCTION"), out);
    }
    assumeTrue(out.contains(VexDots.EXECUTES), "this CPU does not execute it");
    assertTrue(status == 0 && out.contains(VexDots.PASSED), out);
  }

  @Test
  void cpusWithoutAvx512ButWithAvxVnniGetTheirSet() {
    Set<Feature> desktop =
        EnumSet.of(Feature.AVX2, Feature.FMA, Feature.F16C, Feature.BMI2, Feature.POPCNT);
    CpuFeatures none = CpuFeatures.detected().cap("none");
    CpuFeatures zen3 = none.assume(desktop);
    assertEquals(Optional.of(Isa.AVX2), Isa.of(zen3));
    CpuFeatures alderLake = zen3.assume(EnumSet.of(Feature.AVX_VNNI));
    assertEquals(Optional.of(Isa.AVX_VNNI), Isa.of(alderLake));
    assertEquals(Optional.of(Isa.AVX_VNNI), Isa.of(alderLake.cap("avx-vnni")));
    assertEquals(Optional.of(Isa.AVX2), Isa.of(alderLake.cap("avx2")));
    CpuFeatures zen5 =
        alderLake.assume(
            EnumSet.of(
                Feature.AVX512F,
                Feature.AVX512BW,
                Feature.AVX512DQ,
                Feature.AVX512VL,
                Feature.AVX512_VNNI));
    assertEquals(Optional.of(Isa.AVX512_VNNI), Isa.of(zen5));
    assertEquals(Optional.of(Isa.AVX_VNNI), Isa.of(zen5.cap("avx-vnni")));
    assertEquals(Optional.empty(), Isa.of(none.assume(EnumSet.of(Feature.AVX_VNNI))));
  }
}
