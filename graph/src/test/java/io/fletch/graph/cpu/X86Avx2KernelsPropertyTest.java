package io.fletch.graph.cpu;

import io.fletch.graph.cpu.x86.Isa;
import net.jqwik.api.lifecycle.AddLifecycleHook;

/** The kernel contract for AVX2 machine code. */
@NeedsIsa(Isa.AVX2)
@AddLifecycleHook(NeedsIsa.Hook.class)
class X86Avx2KernelsPropertyTest extends KernelsContract {
  @Override
  Kernels kernels() {
    return X86TestSets.orSkip(Isa.AVX2);
  }
}
