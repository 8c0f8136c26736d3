package io.fletch.graph.cpu;

import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;

/**
 * The second factor of a low-rank term, transposed, as kernels read it.
 *
 * @param type F32, F16 or BF16
 * @param rows row {@code k} begins at byte {@code k * stride}; elements are rounded up to 16, which
 *     can be read
 * @param stride bytes from one row to the next, below 2^31
 * @param rank rows, at least 1
 */
public record LowRankFactor(TensorType type, MemorySegment rows, long stride, int rank) {
  /** Checks type and sizes. */
  public LowRankFactor {
    boolean typed = type == TensorType.F32 || type == TensorType.F16 || type == TensorType.BF16;
    if (!typed || rank < 1 || stride < 0 || stride > Integer.MAX_VALUE) {
      throw new IllegalArgumentException(
          "low-rank factor: expected=F32, F16 or BF16, rank>=1, a stride of 31 bits actual="
              + type
              + " rank="
              + rank
              + " stride="
              + stride);
    }
  }
}
