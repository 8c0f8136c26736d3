package io.fletch.graph.cpu;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.util.ArrayList;
import java.util.List;

/**
 * Segments with an inaccessible page directly behind their last byte, or directly before their
 * first: machine code that reads or writes outside ends the process, which no test can miss.
 */
final class GuardedMemory implements AutoCloseable {
  private static final long PAGE = 4096;
  private static final Linker LINKER = Linker.nativeLinker();
  private static final MethodHandle MMAP =
      handle(
          "mmap",
          FunctionDescriptor.of(
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_INT,
              ValueLayout.JAVA_INT,
              ValueLayout.JAVA_INT,
              ValueLayout.JAVA_LONG));
  private static final MethodHandle MPROTECT =
      handle(
          "mprotect",
          FunctionDescriptor.of(
              ValueLayout.JAVA_INT,
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_INT));
  private static final MethodHandle MUNMAP =
      handle(
          "munmap",
          FunctionDescriptor.of(
              ValueLayout.JAVA_INT, ValueLayout.JAVA_LONG, ValueLayout.JAVA_LONG));

  private record Mapping(long base, long bytes) {}

  private final boolean guardBehind;
  private final List<Mapping> mappings = new ArrayList<>();

  /**
   * @param guardBehind whether the guard is behind the last byte, else before the first
   */
  GuardedMemory(boolean guardBehind) {
    this.guardBehind = guardBehind;
  }

  private static MethodHandle handle(String name, FunctionDescriptor descriptor) {
    return LINKER.downcallHandle(LINKER.defaultLookup().find(name).orElseThrow(), descriptor);
  }

  /** Zeroed memory of exactly that size next to a guard. */
  MemorySegment allocate(long bytes) {
    long inner = (bytes + PAGE - 1) & -PAGE;
    try {
      long base = (long) MMAP.invokeExact(0L, inner + 2 * PAGE, 0, 0x22, -1, 0L);
      int result = (int) MPROTECT.invokeExact(base + PAGE, inner, 3);
      if (base < 0 || result != 0) {
        throw new AssertionError("mmap or mprotect failed");
      }
      mappings.add(new Mapping(base, inner + 2 * PAGE));
      long start = base + PAGE + (guardBehind ? inner - bytes : 0);
      return MemorySegment.ofAddress(start).reinterpret(bytes, Arena.global(), null);
    } catch (Error e) {
      throw e;
    } catch (Throwable e) {
      throw new AssertionError(e);
    }
  }

  @Override
  public void close() {
    for (Mapping m : mappings) {
      try {
        int result = (int) MUNMAP.invokeExact(m.base, m.bytes);
        assert result == 0;
      } catch (Throwable e) {
        throw new AssertionError(e);
      }
    }
  }
}
