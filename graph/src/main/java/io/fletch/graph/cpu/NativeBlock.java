package io.fletch.graph.cpu;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/** A block of native memory with one owner. */
record NativeBlock(Arena arena, MemorySegment segment) implements AutoCloseable {
  static NativeBlock allocate(long bytes) {
    Arena arena = Arena.ofShared();
    try {
      return new NativeBlock(arena, arena.allocate(bytes, 128));
    } catch (RuntimeException | Error e) {
      arena.close();
      throw e;
    }
  }

  @Override
  public void close() {
    arena.close();
  }
}
