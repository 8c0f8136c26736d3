package io.fletch.graph.cpu;

/** Products that do not read weights whose activation is zero, and count what that spares. */
interface SkippingMatmul extends Kernels.Matmul {
  /** Bytes of weights that products with one row have not read. */
  long skippedBytes();
}
