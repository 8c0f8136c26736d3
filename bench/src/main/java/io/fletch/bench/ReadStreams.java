package io.fletch.bench;

import io.fletch.ffm.ExecutableMemory;
import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Ymm;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;

/**
 * Reads memory in four streams of 32-byte loads, in machine code: the yardstick of kernels that
 * read every weight once. Needs AVX2. One thread.
 */
final class ReadStreams {
  /** Segments must be a multiple of this. */
  static final int GRANULE = 256;

  private static final MethodHandle CALL =
      ExecutableMemory.caller(
          FunctionDescriptor.ofVoid(ValueLayout.JAVA_LONG, ValueLayout.JAVA_LONG));

  private final ExecutableMemory.Function function =
      ExecutableMemory.shared().emit("read streams", code());

  /** {@code void read(char *start, long bytesOfAStream)}. */
  private static byte[] code() {
    Gpr[] streams = {Gpr.RDI, Gpr.RDX, Gpr.RCX, Gpr.R9};
    Assembler a = new Assembler();
    for (int s = 0; s < streams.length; s++) {
      if (s > 0) {
        a.mov(streams[s], streams[s - 1]);
        a.add(streams[s], Gpr.RSI);
      }
      a.vpxor(Ymm.of(s), Ymm.of(s), Ymm.of(s));
    }
    a.xor32(Gpr.R8, Gpr.R8);
    Label loop = a.here();
    for (int offset = 0; offset < GRANULE / streams.length; offset += 32) {
      for (int s = 0; s < streams.length; s++) {
        a.vpaddq(Ymm.of(s), Ymm.of(s), Mem.of(streams[s], Gpr.R8, 1, offset));
      }
    }
    a.add(Gpr.R8, GRANULE / streams.length);
    a.cmp(Gpr.R8, Gpr.RSI);
    a.jcc(Condition.B, loop);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /** Loads every byte; the size is a positive multiple of {@link #GRANULE}. */
  void read(MemorySegment memory) {
    if (memory.byteSize() == 0 || memory.byteSize() % GRANULE != 0) {
      throw new IllegalArgumentException(
          "bytes: expected=multiple of " + GRANULE + " actual=" + memory.byteSize());
    }
    try {
      CALL.invokeExact(function.entry(), memory.address(), memory.byteSize() / 4);
    } catch (Throwable e) {
      throw new AssertionError("a downcall does not throw", e);
    }
  }
}
