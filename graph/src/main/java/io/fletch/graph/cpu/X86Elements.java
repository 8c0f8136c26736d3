package io.fletch.graph.cpu;

import io.fletch.graph.Activation;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.graph.cpu.x86.ElementCode;
import io.fletch.graph.cpu.x86.Isa;
import java.lang.foreign.MemorySegment;
import java.util.Objects;

/**
 * Element-wise kernels and quantization in machine code ({@link ElementCode}). Each takes the whole
 * vectors of a range and says how many elements that was; the rest is left to the caller.
 */
final class X86Elements {
  private final int lanes;
  private final MemorySegment scale;
  private final MemorySegment add;
  private final MemorySegment scaleByWeight;
  private final MemorySegment sumOfSquares;
  private final MemorySegment quantize32;
  private final MemorySegment quantize256;
  private final MemorySegment[] gated = new MemorySegment[Activation.values().length];
  private final MemorySegment[] plain = new MemorySegment[Activation.values().length];

  X86Elements(Isa isa) {
    lanes = isa.lanes();
    String suffix = " " + isa.label();
    scale = X86Code.function("scale" + suffix, () -> ElementCode.scale(isa));
    add = X86Code.function("add" + suffix, () -> ElementCode.add(isa));
    scaleByWeight = X86Code.function("weight" + suffix, () -> ElementCode.scaleByWeight(isa));
    sumOfSquares = X86Code.function("squares" + suffix, () -> ElementCode.sumOfSquares(isa));
    float min = ActivationLayout.MIN_AMAX;
    quantize32 = X86Code.function("quantize 32", () -> ElementCode.quantize(32, min));
    quantize256 = X86Code.function("quantize 256", () -> ElementCode.quantize(256, min));
    for (Activation f : Activation.values()) {
      gated[f.ordinal()] =
          X86Code.function(f + " gated" + suffix, () -> ElementCode.activate(f, true, isa));
      plain[f.ordinal()] = X86Code.function(f + suffix, () -> ElementCode.activate(f, false, isa));
    }
  }

  /** The address of elements of a float32 segment, checked. */
  private static long floats(MemorySegment s, long offset, int n) {
    Objects.checkFromIndexSize(4 * offset, 4L * n, s.byteSize());
    return s.address() + 4 * offset;
  }

  private static long bits(float value) {
    return Float.floatToRawIntBits(value) & 0xffffffffL;
  }

  int scale(MemorySegment x, long offset, float factor, int n, MemorySegment dst, long dstOffset) {
    int whole = n / lanes * lanes;
    if (whole > 0) {
      long to = floats(dst, dstOffset, whole);
      X86Code.call(scale, floats(x, offset, whole), to, whole / lanes, bits(factor), 0);
    }
    return whole;
  }

  int add(
      MemorySegment a,
      long aOffset,
      MemorySegment b,
      long bOffset,
      float factor,
      int n,
      MemorySegment dst,
      long dstOffset) {
    int whole = n / lanes * lanes;
    if (whole > 0) {
      long to = floats(dst, dstOffset, whole);
      long from = floats(a, aOffset, whole);
      X86Code.call(add, from, floats(b, bOffset, whole), to, whole / lanes, bits(factor));
    }
    return whole;
  }

  int activate(
      Activation activation,
      MemorySegment gate,
      long gateOffset,
      MemorySegment up,
      long upOffset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    int whole = n / lanes * lanes;
    if (whole > 0) {
      MemorySegment code = (up == null ? plain : gated)[activation.ordinal()];
      long x = floats(gate, gateOffset, whole);
      long factor = up == null ? x : floats(up, upOffset, whole);
      X86Code.call(code, x, factor, floats(dst, dstOffset, whole), whole / lanes, 0);
    }
    return whole;
  }

  /** Whether {@link #rmsNorm} takes rows of that width. */
  static boolean normalizes(int n) {
    return n > 0 && n % ActivationLayout.LANES == 0;
  }

  void rmsNorm(
      MemorySegment x,
      long offset,
      MemorySegment weight,
      int n,
      float eps,
      float scale,
      MemorySegment dst,
      long dstOffset) {
    long from = floats(x, offset, n);
    MemorySegment sum = X86Scratch.get().floats(ActivationLayout.LANES);
    X86Code.call(sumOfSquares, from, sum.address(), n / ActivationLayout.LANES, 0, 0);
    float factor = ScalarKernels.rmsFactor(Segments.f32(sum, 0), n, eps, scale);
    long to = floats(dst, dstOffset, n);
    X86Code.call(scaleByWeight, from, floats(weight, 0, n), to, n / lanes, bits(factor));
  }

  void quantize(
      ActivationFormat format,
      MemorySegment x,
      long offset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    long scales = ActivationLayout.scalesOffset(format, n);
    long sums = ActivationLayout.sumsOffset(format, n);
    if (n == 0) {
      return;
    }
    int block = ActivationLayout.blockSize(format);
    // One i32 of 32 elements or one i16 of 16: an eighth of a byte per element.
    Objects.checkFromIndexSize(dstOffset, sums + n / 8, dst.byteSize());
    long to = dst.address() + dstOffset;
    MemorySegment code = format == ActivationFormat.Q8_BLOCK32 ? quantize32 : quantize256;
    X86Code.call(code, floats(x, offset, n), to, to + scales, to + sums, n / block);
  }
}
