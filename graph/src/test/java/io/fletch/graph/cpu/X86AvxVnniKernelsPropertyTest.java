package io.fletch.graph.cpu;

import io.fletch.graph.cpu.x86.Isa;

/** The kernel contract for AVX2 with VNNI machine code. */
class X86AvxVnniKernelsPropertyTest extends KernelsContract {
  @Override
  Kernels kernels() {
    return X86TestSets.orSkip(Isa.AVX_VNNI);
  }
}
