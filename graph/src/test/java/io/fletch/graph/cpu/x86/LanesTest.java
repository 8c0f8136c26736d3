package io.fletch.graph.cpu.x86;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.ExecutableMemory;
import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.stream.IntStream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class LanesTest {
  @ParameterizedTest
  @EnumSource(Isa.class)
  void weightsHaveTheBitsOfTheExponentialOrAreZero(Isa isa) throws Throwable {
    assumeTrue(isa.supportedBy(CpuFeatures.host()) && ExecutableMemory.refusal().isEmpty());
    // All negative numbers and what is none, and more of those where weights become zero.
    int[] bits =
        IntStream.concat(
                IntStream.concat(
                    IntStream.iterate(0x80000000, b -> b < -4099, b -> b + 4099),
                    IntStream.iterate(
                        Float.floatToRawIntBits(-68f),
                        b -> b < Float.floatToRawIntBits(-72f),
                        b -> b + 31)),
                IntStream.of(0, 0xff800000, 0x7fc00000, 0xff800001, 0x7fffffff))
            .toArray();
    int n = (bits.length + 15) / 16 * 16;
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment x = arena.allocate(4L * n, 64);
      MemorySegment expected = arena.allocate(4L * n, 64);
      MemorySegment actual = arena.allocate(4L * n, 64);
      MemorySegment.copy(bits, 0, x, ValueLayout.JAVA_INT, 0, bits.length);
      apply(isa, false, x, expected, n);
      apply(isa, true, x, actual, n);
      for (int i = 0; i < bits.length; i++) {
        float of = Float.intBitsToFloat(bits[i]);
        boolean zero = Math.fma(of, 1.442695f, 12582912f) - 12582912f < -100f;
        float e = zero ? 0f : expected.getAtIndex(ValueLayout.JAVA_FLOAT, i);
        float a = actual.getAtIndex(ValueLayout.JAVA_FLOAT, i);
        assertEquals(Float.floatToIntBits(e), Float.floatToIntBits(a), () -> "x=" + of);
      }
    }
  }

  private static void apply(Isa isa, boolean weight, MemorySegment x, MemorySegment y, int n)
      throws Throwable {
    Assembler a = new Assembler();
    Lanes lanes = new Lanes(a, isa);
    Label loop = a.here();
    a.vmovups(lanes.reg(0), Mem.of(Gpr.RDI));
    if (weight) {
      lanes.weight(lanes.reg(0), lanes.reg(1), lanes.reg(2), lanes.reg(3));
    } else {
      lanes.exp(lanes.reg(0), lanes.reg(1), lanes.reg(2), lanes.reg(3));
    }
    a.vmovups(Mem.of(Gpr.RSI), lanes.reg(0));
    a.add(Gpr.RDI, isa.bytes());
    a.add(Gpr.RSI, isa.bytes());
    a.sub(Gpr.RDX, isa.lanes());
    a.jcc(Condition.G, loop);
    a.vzeroupper();
    a.ret();
    MemorySegment code =
        ExecutableMemory.shared().emit("exp " + weight + " " + isa.label(), a.assemble()).entry();
    FunctionDescriptor descriptor =
        FunctionDescriptor.ofVoid(
            ValueLayout.JAVA_LONG, ValueLayout.JAVA_LONG, ValueLayout.JAVA_LONG);
    ExecutableMemory.caller(descriptor).invokeExact(code, x.address(), y.address(), (long) n);
  }
}
