package io.fletch.graph.cpu;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.CpuFeatures.Feature;
import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Ymm;
import io.fletch.graph.cpu.x86.Isa;

/**
 * What {@link X86VexDotsTest} starts: tests of kernels whose dot products have the VEX encoding,
 * which {@link #EXECUTES} precedes where the CPU executes it.
 */
final class VexDots {
  /** Printed when the first instruction was executed. */
  static final String EXECUTES = "executes VEX vpdpbusd";

  /** Printed when all tests have passed. */
  static final String PASSED = "all passed";

  private VexDots() {}

  /** Dies of an illegal instruction, or runs the tests. */
  public static void main(String[] args) {
    if (!CpuFeatures.host().has(Feature.AVX_VNNI) || CpuFeatures.host().has(Feature.AVX512F)) {
      throw new AssertionError(CpuFeatures.host());
    }
    Assembler a = new Assembler();
    a.vpxor(Ymm.YMM0, Ymm.YMM0, Ymm.YMM0);
    a.vpdpbusd(Ymm.YMM0, Ymm.YMM0, Ymm.YMM0);
    a.vzeroupper();
    a.ret();
    X86Code.call(X86Code.function("vex", a::assemble), 0, 0, 0, 0, 0);
    System.out.println(EXECUTES);
    new X86StreamingTest().everyWayGivesTheBitsOfTheScalarProduct(Isa.AVX_VNNI);
    new X86GuardPageTest().products(Isa.AVX_VNNI, true);
    new X86AttentionTest().hasTheBitsOfTheScalarKernel(Isa.AVX_VNNI);
    System.out.println(PASSED);
  }
}
