package io.fletch.graph.cpu;

import io.fletch.ffm.ExecutableMemory;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Supplier;

/**
 * The emitted functions of the process, each emitted once, and the call that all of them share.
 * Usable from any thread. Initialised only where {@link ExecutableMemory#refusal()} is empty.
 */
final class X86Code {
  private static final ConcurrentHashMap<String, MemorySegment> FUNCTIONS =
      new ConcurrentHashMap<>();

  /**
   * {@code void (long, long, long, long, long)}; functions with fewer parameters ignore the rest.
   */
  private static final MethodHandle CALL =
      ExecutableMemory.caller(
          FunctionDescriptor.ofVoid(
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_LONG,
              ValueLayout.JAVA_LONG));

  private X86Code() {}

  /** The entry of a function, emitted on first use. The name identifies the code. */
  static MemorySegment function(String name, Supplier<byte[]> code) {
    return FUNCTIONS.computeIfAbsent(
        name, n -> ExecutableMemory.shared().emit(n, code.get()).entry());
  }

  /** Names of the functions emitted so far. */
  static Set<String> names() {
    return Set.copyOf(FUNCTIONS.keySet());
  }

  /**
   * Calls a function. The thread is in native code meanwhile, so it does not hold up the garbage
   * collector. Addresses must be valid: the caller has checked ranges and holds the segments.
   */
  static void call(MemorySegment entry, long a, long b, long c, long d, long e) {
    try {
      CALL.invokeExact(entry, a, b, c, d, e);
    } catch (RuntimeException | Error x) {
      throw x;
    } catch (Throwable x) {
      throw new AssertionError("machine code cannot throw", x);
    }
  }
}
