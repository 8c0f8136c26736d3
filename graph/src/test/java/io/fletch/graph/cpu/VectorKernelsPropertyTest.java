package io.fletch.graph.cpu;

final class VectorKernelsPropertyTest extends KernelsContract {
  @Override
  Kernels kernels() {
    return VectorProvider.kernels().orElseThrow();
  }
}
