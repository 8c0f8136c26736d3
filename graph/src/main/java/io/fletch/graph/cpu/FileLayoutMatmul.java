package io.fletch.graph.cpu;

import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;

/**
 * Base of products with matrices of one type in their file layout, row after row: nothing is
 * packed, and any range of outputs is allowed.
 */
abstract class FileLayoutMatmul implements Kernels.Matmul {
  /** Type of the weights. */
  final TensorType type;

  /** Elements of a row. */
  final int in;

  /** Bytes of a row of weights. */
  final long rowBytes;

  final Kernels.ActivationFormat activation;

  /** Bytes of a row of activations. */
  final long xStride;

  FileLayoutMatmul(TensorType type, int in) {
    this.activation = WeightBlocks.activation(type);
    if (in <= 0) {
      throw new IllegalArgumentException("empty row: expected=positive actual=" + in);
    }
    this.type = type;
    this.in = in;
    this.rowBytes = type.bytes(in);
    this.xStride = ActivationLayout.bytes(activation, in);
  }

  @Override
  public final Kernels.ActivationFormat activation() {
    return activation;
  }

  @Override
  public final boolean packs() {
    return false;
  }

  @Override
  public final long packedBytes(long out) {
    return Math.multiplyExact(out, rowBytes);
  }

  @Override
  public final int rowGranule() {
    return 1;
  }

  @Override
  public final void pack(
      MemorySegment rowMajor, MemorySegment packed, long out, long from, long to) {
    MemorySegment.copy(rowMajor, from * rowBytes, packed, from * rowBytes, (to - from) * rowBytes);
  }
}
