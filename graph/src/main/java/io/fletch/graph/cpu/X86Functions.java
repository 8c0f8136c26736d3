package io.fletch.graph.cpu;

import java.lang.foreign.MemorySegment;
import java.util.concurrent.atomic.AtomicReferenceArray;
import java.util.function.IntFunction;

/**
 * Functions that a small number tells apart, such as how many rows of activations they take, each
 * emitted when first asked for. Looking one up takes no lock and allocates nothing. Usable from any
 * thread.
 */
final class X86Functions {
  private final IntFunction<MemorySegment> emit;
  private final AtomicReferenceArray<MemorySegment> entries;

  /**
   * Emits nothing yet.
   *
   * @param count one more than the largest number
   * @param emit asks {@link X86Code#function} for one, which gives threads that meet the same one
   */
  X86Functions(int count, IntFunction<MemorySegment> emit) {
    this.emit = emit;
    entries = new AtomicReferenceArray<>(count);
  }

  /** Where a function begins. */
  MemorySegment get(int number) {
    MemorySegment entry = entries.getAcquire(number);
    if (entry == null) {
      entry = emit.apply(number);
      entries.setRelease(number, entry);
    }
    return entry;
  }
}
