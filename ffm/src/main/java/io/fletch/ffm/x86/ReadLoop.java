package io.fletch.ffm.x86;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.ExecutableMemory;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;

/**
 * Reads memory as fast as one core can: the yardstick of kernels that read every weight once.
 * Thread-safe.
 *
 * <p>Machine code where it can run: four streams of 32-byte loads, which one core needs to reach
 * its limit. A plain loop in Java comes close to it only where memory is slow.
 */
public abstract sealed class ReadLoop {
  /** Segments must be a multiple of this. */
  public static final int GRANULE = 4096;

  private static final int STREAMS = 4;

  private ReadLoop() {}

  /** The fastest one that this process can run. */
  public static ReadLoop best() {
    return CpuFeatures.host().has(CpuFeatures.Feature.AVX2) && ExecutableMemory.refusal().isEmpty()
        ? new Emitted()
        : new Plain();
  }

  /** The plain loop. */
  public static ReadLoop plain() {
    return new Plain();
  }

  /**
   * The sum of the 64-bit words: it cannot be had without reading all of them.
   *
   * @param memory native; a positive multiple of {@link #GRANULE}
   */
  public abstract long sum(MemorySegment memory);

  private static final class Emitted extends ReadLoop {
    /** Start and bytes of a stream to a sum of 64-bit words. */
    private static final MethodHandle CALL =
        ExecutableMemory.caller(
            FunctionDescriptor.of(
                ValueLayout.JAVA_LONG, ValueLayout.JAVA_LONG, ValueLayout.JAVA_LONG));

    private final ExecutableMemory.Function function =
        ExecutableMemory.shared().emit("read", code());

    /**
     * {@code long read(char *start, long stream)}: one pointer per stream, R8 counts the bytes of
     * each.
     */
    private static byte[] code() {
      Gpr[] pointers = {Gpr.RDI, Gpr.RDX, Gpr.RCX, Gpr.R9};
      Assembler a = new Assembler();
      for (int s = 1; s < STREAMS; s++) {
        a.mov(pointers[s], pointers[s - 1]);
        a.add(pointers[s], Gpr.RSI);
      }
      for (int s = 0; s < STREAMS; s++) {
        a.vpxor(Ymm.of(s), Ymm.of(s), Ymm.of(s));
      }
      a.xor32(Gpr.R8, Gpr.R8);
      Label loop = a.here();
      for (int offset = 0; offset < 64; offset += 32) {
        for (int s = 0; s < STREAMS; s++) {
          a.vpaddq(Ymm.of(s), Ymm.of(s), Mem.of(pointers[s], Gpr.R8, 1, offset));
        }
      }
      a.add(Gpr.R8, 64);
      a.cmp(Gpr.R8, Gpr.RSI);
      a.jcc(Condition.B, loop);
      for (int s = 1; s < STREAMS; s++) {
        a.vpaddq(Ymm.of(0), Ymm.of(0), Ymm.of(s));
      }
      a.vextracti128(Xmm.of(1), Ymm.of(0), 1);
      a.vpaddq(Xmm.of(0), Xmm.of(0), Xmm.of(1));
      a.vpunpckhqdq(Xmm.of(1), Xmm.of(0), Xmm.of(0));
      a.vpaddq(Xmm.of(0), Xmm.of(0), Xmm.of(1));
      a.vmovq(Gpr.RAX, Xmm.of(0));
      a.vzeroupper();
      a.ret();
      return a.assemble();
    }

    @Override
    public long sum(MemorySegment memory) {
      try {
        return (long)
            CALL.invokeExact(function.entry(), memory.address(), memory.byteSize() / STREAMS);
      } catch (Throwable e) {
        throw new AssertionError("a downcall does not throw", e);
      }
    }
  }

  private static final class Plain extends ReadLoop {
    @Override
    public long sum(MemorySegment memory) {
      long a = 0;
      long b = 0;
      long c = 0;
      long d = 0;
      for (long i = 0; i < memory.byteSize(); i += 32) {
        a += memory.get(ValueLayout.JAVA_LONG, i);
        b += memory.get(ValueLayout.JAVA_LONG, i + 8);
        c += memory.get(ValueLayout.JAVA_LONG, i + 16);
        d += memory.get(ValueLayout.JAVA_LONG, i + 24);
      }
      return a + b + c + d;
    }
  }
}
