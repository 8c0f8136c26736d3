package io.fletch.graph.cpu;

import io.fletch.graph.Activation;
import io.fletch.graph.KvCache;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.graph.cpu.x86.AccumulateCode;
import io.fletch.graph.cpu.x86.ElementCode;
import io.fletch.graph.cpu.x86.Isa;
import io.fletch.graph.cpu.x86.QuantizeCode;
import io.fletch.graph.cpu.x86.RopeCode;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.EnumMap;
import java.util.Map;
import java.util.Objects;
import java.util.function.Function;

/**
 * The kernels in machine code that work on one row: checks of ranges, and calls. Each function is
 * emitted when first used. Parameters are those of {@link Kernels}.
 */
final class X86Elements {
  private static final int MIN_AMAX_BITS = Float.floatToRawIntBits(ActivationLayout.MIN_AMAX);

  private final Map<Activation, X86Function> gated;
  private final Map<Activation, X86Function> plain;
  private final Map<RopeSpec.Style, X86Function> rope;
  private final Map<TensorType, X86Function> accumulate = new EnumMap<>(TensorType.class);
  private final X86Function add;
  private final X86Function multiply;
  private final X86Function scale;
  private final X86Function softCap;
  private final X86Function rmsNorm;
  private final X86Function argmax;
  private final X86Function quantize32;
  private final X86Function quantize256;
  private final X86Function halves;
  private final X86Function halfScales;

  X86Elements(Isa isa) {
    String set = " " + isa.label();
    gated =
        each(
            Activation.class,
            x -> new X86Function(x + " gated" + set, () -> ElementCode.gated(x, isa)));
    plain = each(Activation.class, x -> new X86Function(x + set, () -> ElementCode.plain(x, isa)));
    rope = each(RopeSpec.Style.class, x -> new X86Function("rope " + x, () -> RopeCode.emit(x)));
    for (TensorType t : new TensorType[] {TensorType.F32, TensorType.F16, TensorType.BF16}) {
      accumulate.put(
          t, new X86Function("accumulate " + t + set, () -> AccumulateCode.emit(t, isa)));
    }
    add = new X86Function("add" + set, () -> ElementCode.add(isa));
    multiply = new X86Function("multiply" + set, () -> ElementCode.multiply(isa));
    scale = new X86Function("scale" + set, () -> ElementCode.scale(isa));
    softCap = new X86Function("soft cap" + set, () -> ElementCode.softCap(isa));
    rmsNorm = new X86Function("rms norm" + set, () -> ElementCode.rmsNorm(isa));
    argmax = new X86Function("argmax" + set, () -> ElementCode.argmax(isa));
    quantize32 = new X86Function("quantize 32", () -> QuantizeCode.blocks32(MIN_AMAX_BITS));
    quantize256 = new X86Function("quantize 256", () -> QuantizeCode.blocks256(MIN_AMAX_BITS));
    halves = new X86Function("halves", QuantizeCode::halves);
    halfScales =
        new X86Function("quantize kv", () -> QuantizeCode.blocks32HalfScales(MIN_AMAX_BITS));
  }

  private static <K extends Enum<K>> Map<K, X86Function> each(
      Class<K> type, Function<K, X86Function> function) {
    Map<K, X86Function> map = new EnumMap<>(type);
    for (K key : type.getEnumConstants()) {
      map.put(key, function.apply(key));
    }
    return map;
  }

  /** The address of a range of a segment; offset and length in bytes. */
  private static long address(MemorySegment s, long offset, long bytes) {
    Objects.checkFromIndexSize(offset, bytes, s.byteSize());
    return s.address() + offset;
  }

  /** The address of a range of a segment of floats; offset and length in floats. */
  private static long floats(MemorySegment s, long offset, long n) {
    return address(s, 4 * offset, 4 * n);
  }

  private static long bits(float value) {
    return Integer.toUnsignedLong(Float.floatToRawIntBits(value));
  }

  void quantize(
      ActivationFormat format,
      MemorySegment x,
      long offset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    int block = ActivationLayout.blockSize(format);
    long scales = ActivationLayout.scalesOffset(format, n);
    long sums = ActivationLayout.sumsOffset(format, n);
    int sumBytes =
        format == ActivationFormat.Q8_BLOCK32 ? n / 8 : n / ActivationLayout.SUM_GROUP * 2;
    long to = address(dst, dstOffset, n == 0 ? 0 : sums + sumBytes);
    X86Function code = format == ActivationFormat.Q8_BLOCK32 ? quantize32 : quantize256;
    code.call(floats(x, offset, n), n / block, to, to + scales, to + sums);
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
    rmsNorm.call(
        floats(x, offset, n),
        floats(weight, 0, n),
        n,
        bits(eps) | bits(scale) << 32,
        floats(dst, dstOffset, n));
  }

  void rope(
      RopeSpec.Style style,
      MemorySegment x,
      long offset,
      int headDim,
      MemorySegment table,
      long tableOffset,
      int pairs,
      MemorySegment dst,
      long dstOffset) {
    if (pairs < 0 || 2L * pairs > headDim) {
      throw new IllegalArgumentException(
          "pairs: expected=at most half of " + headDim + " actual=" + pairs);
    }
    rope.get(style)
        .call(
            floats(x, offset, headDim),
            floats(table, tableOffset, 2L * pairs),
            pairs,
            headDim - 2 * pairs,
            floats(dst, dstOffset, headDim));
  }

  void activate(
      Activation activation,
      MemorySegment gate,
      long gateOffset,
      MemorySegment up,
      long upOffset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    gated
        .get(activation)
        .call(
            floats(gate, gateOffset, n), floats(up, upOffset, n), n, 0, floats(dst, dstOffset, n));
  }

  void activate(
      Activation activation,
      MemorySegment x,
      long offset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    plain.get(activation).call(floats(x, offset, n), 0, n, 0, floats(dst, dstOffset, n));
  }

  void add(
      MemorySegment a,
      long aOffset,
      MemorySegment b,
      long bOffset,
      float factor,
      int n,
      MemorySegment dst,
      long dstOffset) {
    add.call(
        floats(a, aOffset, n), floats(b, bOffset, n), n, bits(factor), floats(dst, dstOffset, n));
  }

  void accumulate(
      LowRankFactor b,
      long from,
      int n,
      MemorySegment h,
      long hOffset,
      MemorySegment y,
      long yOffset) {
    long bytes = (b.rank() - 1) * b.stride() + b.type().bytes((n + 15L) & -16);
    accumulate
        .get(b.type())
        .call(
            floats(y, yOffset, n),
            address(b.rows(), b.type().bytes(from), bytes),
            n,
            floats(h, hOffset, b.rank()),
            b.rank() | b.stride() << 32);
  }

  void scale(MemorySegment x, long offset, float factor, int n, MemorySegment dst, long dstOffset) {
    scale.call(floats(x, offset, n), 0, n, bits(factor), floats(dst, dstOffset, n));
  }

  void multiply(
      MemorySegment a,
      long aOffset,
      MemorySegment b,
      long bOffset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    multiply.call(floats(a, aOffset, n), floats(b, bOffset, n), n, 0, floats(dst, dstOffset, n));
  }

  void softCap(MemorySegment x, long offset, float cap, int n, MemorySegment dst, long dstOffset) {
    softCap.call(floats(x, offset, n), 0, n, bits(cap), floats(dst, dstOffset, n));
  }

  void kvStore(
      KvCache.Type type, MemorySegment x, long offset, int n, MemorySegment kv, long kvOffset) {
    long to = address(kv, kvOffset, KvLayout.bytes(type, n));
    switch (type) {
      case F32 -> MemorySegment.copy(x, 4 * offset, kv, kvOffset, 4L * n);
      case F16 -> halves.call(floats(x, offset, n), n, to, 0, 0);
      case Q8_0 -> halfScales.call(floats(x, offset, n), n / 32, to, to + n, 0);
    }
  }

  int argmax(MemorySegment x, long offset, int n) {
    MemorySegment result = X86Scratch.get().floats(ActivationLayout.LANES);
    argmax.call(floats(x, offset, n), n, result.address(), 0, 0);
    return result.get(Segments.INT, 0);
  }
}
