package io.fletch.graph.cpu;

import java.lang.foreign.MemorySegment;

/**
 * Base of products with matrices that are no plain rows of one type: they take float32 activations
 * unless they say otherwise, pack nothing, and allow any range of outputs. What they read besides
 * their values they hold themselves, so one object serves one matrix.
 */
abstract class RowsMatmul implements Kernels.Matmul {
  @Override
  public Kernels.ActivationFormat activation() {
    return Kernels.ActivationFormat.F32;
  }

  @Override
  public final boolean packs() {
    return false;
  }

  @Override
  public final long packedBytes(long out) {
    throw new UnsupportedOperationException("not packed: " + name());
  }

  @Override
  public final int rowGranule() {
    return 1;
  }

  @Override
  public final void pack(MemorySegment rowMajor, MemorySegment packed, long out, long a, long b) {
    throw new UnsupportedOperationException("not packed: " + name());
  }

  /** Floats from row to row of activations of {@code in} elements. */
  static long stride(int in) {
    return ActivationLayout.bytes(Kernels.ActivationFormat.F32, in) / Float.BYTES;
  }
}
