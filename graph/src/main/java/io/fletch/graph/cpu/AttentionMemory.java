package io.fletch.graph.cpu;

import io.fletch.ffm.NativeMemory;
import java.lang.foreign.MemorySegment;

/**
 * Working memory of attention, apart for each worker: what kernels ask for, and room for gathered
 * keys and values, which grows when first needed. Owned by an executable.
 */
final class AttentionMemory implements AutoCloseable {
  private static final int LINE_FLOATS = 32;

  private final NativeMemory scratch;
  private final long stride;
  private final NativeMemory[] gathered;

  AttentionMemory(int workers, int floats) {
    stride = (floats + LINE_FLOATS - 1L) / LINE_FLOATS * LINE_FLOATS;
    scratch = NativeMemory.allocate(Math.max(1, workers * stride * Float.BYTES));
    gathered = new NativeMemory[workers];
  }

  MemorySegment scratch() {
    return scratch.segment();
  }

  /** In floats. */
  long scratchOffset(int worker) {
    return worker * stride;
  }

  /** At least that many bytes, for a worker to fill. */
  MemorySegment gather(int worker, long bytes) {
    NativeMemory block = gathered[worker];
    if (block == null || block.segment().byteSize() < bytes) {
      NativeMemory larger = NativeMemory.allocate(2 * bytes);
      if (block != null) {
        block.close();
      }
      gathered[worker] = larger;
    }
    return gathered[worker].segment();
  }

  /** What {@link #gather} gave a worker last. */
  MemorySegment gathered(int worker) {
    return gathered[worker].segment();
  }

  @Override
  public void close() {
    scratch.close();
    for (NativeMemory block : gathered) {
      if (block != null) {
        block.close();
      }
    }
  }
}
