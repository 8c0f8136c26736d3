package io.fletch.graph.cpu;

import java.lang.foreign.MemorySegment;
import java.util.function.Supplier;

/**
 * A function that is emitted when first used. Using it takes no lock and allocates nothing. Usable
 * from any thread.
 */
final class X86Function {
  private final String name;
  private final Supplier<byte[]> code;
  private volatile MemorySegment entry;

  /** Not emitted yet; name and code as {@link X86Code#function} wants them. */
  X86Function(String name, Supplier<byte[]> code) {
    this.name = name;
    this.code = code;
  }

  /** Where it begins. */
  MemorySegment entry() {
    MemorySegment found = entry;
    if (found == null) {
      // Threads that meet here get the same one.
      found = X86Code.function(name, code);
      entry = found;
    }
    return found;
  }

  /** See {@link X86Code#call}. */
  void call(long a, long b, long c, long d, long e) {
    X86Code.call(entry(), a, b, c, d, e);
  }
}
