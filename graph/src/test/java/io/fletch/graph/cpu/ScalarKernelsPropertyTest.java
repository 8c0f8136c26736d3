package io.fletch.graph.cpu;

final class ScalarKernelsPropertyTest extends KernelsContract {
  @Override
  Kernels kernels() {
    return ScalarKernels.INSTANCE;
  }
}
