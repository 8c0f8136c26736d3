package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.fletch.graph.cpu.x86.Isa;
import java.util.Optional;

/** Machine-code kernel sets for tests; a test is skipped where the CPU lacks the instructions. */
final class X86TestSets {
  private X86TestSets() {}

  static Kernels orSkip(Isa isa) {
    Optional<Kernels> kernels = X86Kernels.of(isa, ScalarKernels.INSTANCE);
    assumeTrue(kernels.isPresent(), () -> "this machine cannot run " + isa.label() + " code");
    return kernels.get();
  }
}
