package io.fletch.graph.cpu;

import io.fletch.graph.cpu.x86.Isa;
import net.jqwik.api.lifecycle.AddLifecycleHook;

/** The kernel contract for AVX-512 with VNNI machine code. */
@NeedsIsa(Isa.AVX512_VNNI)
@AddLifecycleHook(NeedsIsa.Hook.class)
class X86Avx512KernelsPropertyTest extends KernelsContract {
  @Override
  Kernels kernels() {
    return X86TestSets.orSkip(Isa.AVX512_VNNI);
  }
}
