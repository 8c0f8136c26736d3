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
 * <p>Machine code where it can run: four streams, which one core needs to reach its limit; with
 * AVX-512 on Intel in 64-byte loads and prefetched, which gives 5 % there and takes some on AMD. A
 * plain loop in Java comes close to the limit only where memory is slow.
 */
public abstract sealed class ReadLoop {
  /** Segments must be a multiple of this. */
  public static final int GRANULE = 4096;

  private static final int STREAMS = 4;
  private static final int PREFETCH = 1024;

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
      CpuFeatures cpu = CpuFeatures.host();
      boolean wide = cpu.has(CpuFeatures.Feature.AVX512F) && !cpu.model().contains("AMD");
      int bytes = wide ? 64 : 32;
      Gpr[] pointers = {Gpr.RDI, Gpr.RDX, Gpr.RCX, Gpr.R9};
      Assembler a = new Assembler();
      for (int s = 1; s < STREAMS; s++) {
        a.mov(pointers[s], pointers[s - 1]);
        a.add(pointers[s], Gpr.RSI);
      }
      for (int s = 0; s < STREAMS; s++) {
        a.vpxor(Vec.of(bytes, s), Vec.of(bytes, s), Vec.of(bytes, s));
      }
      a.xor32(Gpr.R8, Gpr.R8);
      Label loop = a.here();
      for (int s = 0; wide && s < STREAMS; s++) {
        a.prefetcht0(Mem.of(pointers[s], Gpr.R8, 1, PREFETCH));
      }
      for (int offset = 0; offset < 64; offset += bytes) {
        for (int s = 0; s < STREAMS; s++) {
          Vec v = Vec.of(bytes, s);
          a.vpaddq(v, v, Mem.of(pointers[s], Gpr.R8, 1, offset));
        }
      }
      a.add(Gpr.R8, 64);
      a.cmp(Gpr.R8, Gpr.RSI);
      a.jcc(Condition.B, loop);
      for (int s = 1; s < STREAMS; s++) {
        a.vpaddq(Vec.of(bytes, 0), Vec.of(bytes, 0), Vec.of(bytes, s));
      }
      if (wide) {
        a.vextracti64x4(Ymm.of(1), Zmm.of(0), 1);
        a.vpaddq(Ymm.of(0), Ymm.of(0), Ymm.of(1));
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
