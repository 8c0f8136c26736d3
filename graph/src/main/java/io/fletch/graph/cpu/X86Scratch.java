package io.fletch.graph.cpu;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/**
 * Native working memory of the machine-code kernels, one per thread: grows to the largest size a
 * thread has asked for, then nothing is allocated. Freed after its thread ends.
 */
final class X86Scratch {
  private static final ThreadLocal<X86Scratch> CURRENT = ThreadLocal.withInitial(X86Scratch::new);

  private MemorySegment floats = MemorySegment.NULL;

  private MemorySegment piece = MemorySegment.NULL;

  private X86Scratch() {}

  static X86Scratch get() {
    return CURRENT.get();
  }

  /** At least {@code n} floats at a multiple of 64 bytes, content unspecified. */
  MemorySegment floats(int n) {
    if (floats.byteSize() < 4L * n) {
      floats = Arena.ofAuto().allocate(4L * n, 64);
    }
    return floats;
  }

  /** Memory for packed weights in work, at a multiple of 64 bytes. */
  MemorySegment piece(long bytes) {
    if (piece.byteSize() < bytes) {
      piece = Arena.ofAuto().allocate(bytes, 64);
    }
    return piece;
  }
}
