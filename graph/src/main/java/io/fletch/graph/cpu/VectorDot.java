package io.fletch.graph.cpu;

import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.ByteVector;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.ShortVector;
import jdk.incubator.vector.VectorMask;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;

/**
 * Dot products of one row of quantized weights with one row of activations, for machines with
 * registers of at least 256 bits: weights go from the segment to 16-bit lanes without a detour
 * through memory. One method per type, each small enough for C2's inlining budget.
 *
 * <p>Activations are widened: codes {@code x}, scales per block {@code dx}, sums of codes {@code
 * sums} (per block of 32, or per 16 elements).
 */
final class VectorDot {
  private static final ByteOrder LITTLE = ByteOrder.LITTLE_ENDIAN;
  private static final VectorSpecies<Byte> B = ByteVector.SPECIES_128;
  private static final VectorSpecies<Short> S = ShortVector.SPECIES_256;
  private static final VectorSpecies<Integer> I = IntVector.SPECIES_256;

  private VectorDot() {}

  static float dot(
      TensorType type,
      MemorySegment w,
      long o,
      int in,
      short[] x,
      float[] dx,
      int[] sums,
      WeightBlocks scales) {
    return switch (type) {
      case Q4_0 -> q4x0(w, o, in, x, dx, sums);
      case Q4_1 -> q4x1(w, o, in, x, dx, sums);
      case Q5_0 -> q5x0(w, o, in, x, dx, sums);
      case Q5_1 -> q5x1(w, o, in, x, dx, sums);
      case Q8_0 -> q8x0(w, o, in, x, dx);
      case IQ4_NL -> iq4nl(w, o, in, x, dx);
      case MXFP4 -> mxfp4(w, o, in, x, dx);
      case Q2_K -> q2k(w, o, in, x, dx, sums, scales);
      case Q3_K -> q3k(w, o, in, x, dx, scales);
      case Q4_K -> q4k(w, o, in, x, dx, sums, scales);
      case Q5_K -> q5k(w, o, in, x, dx, sums, scales);
      case Q6_K -> q6k(w, o, in, x, dx, scales);
      case IQ4_XS -> iq4xs(w, o, in, x, dx, scales);
      default -> throw new IllegalArgumentException("not a block type: actual=" + type);
    };
  }

  // ---- steps

  private static ShortVector unsigned(MemorySegment w, long o) {
    ByteVector v = ByteVector.fromMemorySegment(B, w, o, LITTLE);
    return (ShortVector) v.convertShape(VectorOperators.ZERO_EXTEND_B2S, S, 0);
  }

  private static ShortVector unsigned(byte[] w, int o) {
    ByteVector v = ByteVector.fromArray(B, w, o);
    return (ShortVector) v.convertShape(VectorOperators.ZERO_EXTEND_B2S, S, 0);
  }

  private static byte[] row(MemorySegment w, long o, int n) {
    byte[] row = VectorScratch.get().bytes(n);
    MemorySegment.copy(w, Segments.BYTE, o, row, 0, n);
    return row;
  }

  private static ShortVector signed(ByteVector v) {
    return (ShortVector) v.convertShape(VectorOperators.B2S, S, 0);
  }

  private static ShortVector right(ShortVector v, int bits) {
    return v.lanewise(VectorOperators.LSHR, bits);
  }

  /** Sums of neighbours in 32 bits. */
  private static IntVector pairs(ShortVector p) {
    IntVector v = p.reinterpretAsInts();
    IntVector even = v.lanewise(VectorOperators.LSHL, 16).lanewise(VectorOperators.ASHR, 16);
    return even.add(v.lanewise(VectorOperators.ASHR, 16));
  }

  /** Products of 16 codes. */
  private static IntVector products(ShortVector w, short[] x, int i) {
    return pairs(w.mul(ShortVector.fromArray(S, x, i)));
  }

  /** Products of 32 codes; two of at most 128 * 127 fit 16 bits. */
  private static IntVector products(ShortVector w0, ShortVector w1, short[] x, int i) {
    ShortVector low = w0.mul(ShortVector.fromArray(S, x, i));
    return pairs(low.add(w1.mul(ShortVector.fromArray(S, x, i + 16))));
  }

  private static int sum(IntVector v) {
    return v.reduceLanes(VectorOperators.ADD);
  }

  /** Sum over the block of sub-minimum times sum of codes. */
  private static int minimum(WeightBlocks scales, int[] sums, int group) {
    IntVector low =
        IntVector.fromArray(I, scales.subMin, 0).mul(IntVector.fromArray(I, sums, group));
    IntVector high = IntVector.fromArray(I, scales.subMin, 8);
    return sum(low.add(high.mul(IntVector.fromArray(I, sums, group + 8))));
  }

  // ---- blocks of 32

  private static int nibbles(MemorySegment w, long o, short[] x, int i) {
    ShortVector v = unsigned(w, o);
    return sum(products(v.and((short) 15), right(v, 4), x, i));
  }

  private static float q4x0(MemorySegment w, long o, int in, short[] x, float[] dx, int[] sums) {
    float acc = 0f;
    for (int b = 0; b < in >> 5; b++, o += 18) {
      int dot = nibbles(w, o + 2, x, 32 * b) - 8 * sums[b];
      acc = Math.fma(Segments.f16(w, o) * dx[b], (float) dot, acc);
    }
    return acc;
  }

  private static float q4x1(MemorySegment w, long o, int in, short[] x, float[] dx, int[] sums) {
    float acc = 0f;
    for (int b = 0; b < in >> 5; b++, o += 20) {
      int dot = nibbles(w, o + 4, x, 32 * b);
      acc = Math.fma(Segments.f16(w, o) * dx[b], (float) dot, acc);
      acc = Math.fma(Segments.f16(w, o + 2) * dx[b], (float) sums[b], acc);
    }
    return acc;
  }

  private static int fiveBits(MemorySegment w, long o, short[] x, int i) {
    int high = w.get(Segments.INT, o);
    ShortVector v = unsigned(w, o + 4);
    ShortVector w0 = v.and((short) 15).add((short) 16, VectorMask.fromLong(S, high & 0xffff));
    ShortVector w1 = right(v, 4).add((short) 16, VectorMask.fromLong(S, high >>> 16));
    return sum(products(w0, w1, x, i));
  }

  private static float q5x0(MemorySegment w, long o, int in, short[] x, float[] dx, int[] sums) {
    float acc = 0f;
    for (int b = 0; b < in >> 5; b++, o += 22) {
      int dot = fiveBits(w, o + 2, x, 32 * b) - 16 * sums[b];
      acc = Math.fma(Segments.f16(w, o) * dx[b], (float) dot, acc);
    }
    return acc;
  }

  private static float q5x1(MemorySegment w, long o, int in, short[] x, float[] dx, int[] sums) {
    float acc = 0f;
    for (int b = 0; b < in >> 5; b++, o += 24) {
      int dot = fiveBits(w, o + 4, x, 32 * b);
      acc = Math.fma(Segments.f16(w, o) * dx[b], (float) dot, acc);
      acc = Math.fma(Segments.f16(w, o + 2) * dx[b], (float) sums[b], acc);
    }
    return acc;
  }

  private static float q8x0(MemorySegment w, long o, int in, short[] x, float[] dx) {
    float acc = 0f;
    for (int b = 0; b < in >> 5; b++, o += 34) {
      ShortVector w0 = signed(ByteVector.fromMemorySegment(B, w, o + 2, LITTLE));
      ShortVector w1 = signed(ByteVector.fromMemorySegment(B, w, o + 18, LITTLE));
      int dot = sum(products(w0, w1, x, 32 * b));
      acc = Math.fma(Segments.f16(w, o) * dx[b], (float) dot, acc);
    }
    return acc;
  }

  private static IntVector table(ByteVector t, MemorySegment w, long o, short[] x, int i) {
    return table(t, ByteVector.fromMemorySegment(B, w, o, LITTLE), x, i);
  }

  private static IntVector table(ByteVector t, ByteVector v, short[] x, int i) {
    ByteVector low = v.and((byte) 15).selectFrom(t);
    ByteVector shifted =
        v.reinterpretAsShorts().lanewise(VectorOperators.LSHR, 4).reinterpretAsBytes();
    ByteVector high = shifted.and((byte) 15).selectFrom(t);
    return products(signed(low), signed(high), x, i);
  }

  private static float iq4nl(MemorySegment w, long o, int in, short[] x, float[] dx) {
    ByteVector t = ByteVector.fromArray(B, WeightBlocks.IQ4, 0);
    float acc = 0f;
    for (int b = 0; b < in >> 5; b++, o += 18) {
      int dot = sum(table(t, w, o + 2, x, 32 * b));
      acc = Math.fma(Segments.f16(w, o) * dx[b], (float) dot, acc);
    }
    return acc;
  }

  private static float mxfp4(MemorySegment w, long o, int in, short[] x, float[] dx) {
    ByteVector t = ByteVector.fromArray(B, WeightBlocks.E2M1, 0);
    float acc = 0f;
    for (int b = 0; b < in >> 5; b++, o += 17) {
      int dot = sum(table(t, w, o + 1, x, 32 * b));
      float d = WeightBlocks.halvedE8m0(Segments.u8(w, o));
      acc = Math.fma(d * dx[b], (float) dot, acc);
    }
    return acc;
  }

  // ---- blocks of 256: a method per block that returns an integer, so that no vector is alive
  // across the unpacking of scales, which C2 leaves as a call. Codes come from a heap copy of the
  // row: with vector loads from the segment the larger of these methods exceed C2's node budget.

  private static float q2k(
      MemorySegment w, long o, int in, short[] x, float[] dx, int[] sums, WeightBlocks scales) {
    byte[] row = row(w, o, 84 * (in >> 8));
    float acc = 0f;
    for (int b = 0; b < in >> 8; b++, o += 84) {
      scales.unpackScales(TensorType.Q2_K, w, o, 0);
      int dot = q2k(row, 84 * b + 16, x, 256 * b, scales.subScale);
      acc = Math.fma(scales.d[0] * dx[b], (float) dot, acc);
      acc = Math.fma(scales.min[0] * dx[b], (float) minimum(scales, sums, 16 * b), acc);
    }
    return acc;
  }

  private static int q2k(byte[] w, int o, short[] x, int at, int[] scale) {
    IntVector dot = IntVector.zero(I);
    for (int c = 0; c < 4; c++) {
      // Chunks of 16 bytes: the first and second of each half.
      int group = (c >> 1) * 8 + (c & 1);
      int i = at + 16 * group;
      ShortVector v = unsigned(w, o + 16 * c);
      for (int r = 0; r < 4; r++) {
        dot = dot.add(products(v.and((short) 3), x, i + 32 * r).mul(scale[group + 2 * r]));
        v = right(v, 2);
      }
    }
    return sum(dot);
  }

  private static float q3k(
      MemorySegment w, long o, int in, short[] x, float[] dx, WeightBlocks scales) {
    byte[] row = row(w, o, 110 * (in >> 8));
    float acc = 0f;
    for (int b = 0; b < in >> 8; b++, o += 110) {
      scales.unpackScales(TensorType.Q3_K, w, o, 0);
      int dot = q3k(row, 110 * b, x, 256 * b, scales.subScale);
      acc = Math.fma(scales.d[0] * dx[b], (float) dot, acc);
    }
    return acc;
  }

  private static int q3k(byte[] w, int o, short[] x, int at, int[] scale) {
    IntVector dot = IntVector.zero(I);
    for (int c = 0; c < 4; c++) {
      int group = (c >> 1) * 8 + (c & 1);
      int i = at + 16 * group;
      ShortVector v = unsigned(w, o + 32 + 16 * c);
      // Bit 2 of the code; a clear bit means minus four.
      ShortVector high = right(unsigned(w, o + 16 * (c & 1)), 4 * (c >> 1));
      high = high.lanewise(VectorOperators.LSHL, 2);
      for (int r = 0; r < 4; r++) {
        ShortVector q = v.and((short) 3).or(high.and((short) 4)).sub((short) 4);
        dot = dot.add(products(q, x, i + 32 * r).mul(scale[group + 2 * r]));
        v = right(v, 2);
        high = right(high, 1);
      }
    }
    return sum(dot);
  }

  private static float q4k(
      MemorySegment w, long o, int in, short[] x, float[] dx, int[] sums, WeightBlocks scales) {
    byte[] row = row(w, o, 144 * (in >> 8));
    float acc = 0f;
    for (int b = 0; b < in >> 8; b++, o += 144) {
      scales.unpackScales(TensorType.Q4_K, w, o, 0);
      int dot = q4k(row, 144 * b + 16, x, 256 * b, scales.subScale);
      acc = Math.fma(scales.d[0] * dx[b], (float) dot, acc);
      acc = Math.fma(scales.min[0] * dx[b], (float) minimum(scales, sums, 16 * b), acc);
    }
    return acc;
  }

  // A sum per group, not per block: carried through this loop and the next one, vectors are boxed.
  private static int q4k(byte[] w, int o, short[] x, int at, int[] scale) {
    int dot = 0;
    for (int g = 0; g < 4; g++) {
      int i = at + 64 * g;
      ShortVector v0 = unsigned(w, o + 32 * g);
      ShortVector v1 = unsigned(w, o + 32 * g + 16);
      dot += scale[4 * g] * sum(products(v0.and((short) 15), v1.and((short) 15), x, i));
      dot += scale[4 * g + 2] * sum(products(right(v0, 4), right(v1, 4), x, i + 32));
    }
    return dot;
  }

  private static float q5k(
      MemorySegment w, long o, int in, short[] x, float[] dx, int[] sums, WeightBlocks scales) {
    byte[] row = row(w, o, 176 * (in >> 8));
    float acc = 0f;
    for (int b = 0; b < in >> 8; b++, o += 176) {
      scales.unpackScales(TensorType.Q5_K, w, o, 0);
      int dot = q5k(row, 176 * b + 16, x, 256 * b, scales.subScale);
      acc = Math.fma(scales.d[0] * dx[b], (float) dot, acc);
      acc = Math.fma(scales.min[0] * dx[b], (float) minimum(scales, sums, 16 * b), acc);
    }
    return acc;
  }

  private static int q5k(byte[] w, int o, short[] x, int at, int[] scale) {
    int dot = 0;
    for (int c = 0; c < 8; c++) {
      // Chunks of 16 bytes, elements i.. in low nibbles and 32 further in high nibbles.
      int group = (c >> 1) * 4 + (c & 1);
      int i = at + 16 * group;
      ShortVector v = unsigned(w, o + 32 + 16 * c);
      ShortVector high = right(unsigned(w, o + 16 * (c & 1)), c & -2);
      ShortVector bit = high.and((short) 1).lanewise(VectorOperators.LSHL, 4);
      dot += scale[group] * sum(products(v.and((short) 15).or(bit), x, i));
      bit = high.and((short) 2).lanewise(VectorOperators.LSHL, 3);
      dot += scale[group + 2] * sum(products(right(v, 4).or(bit), x, i + 32));
    }
    return dot;
  }

  private static float q6k(
      MemorySegment w, long o, int in, short[] x, float[] dx, WeightBlocks scales) {
    byte[] row = row(w, o, 210 * (in >> 8));
    float acc = 0f;
    for (int b = 0; b < in >> 8; b++, o += 210) {
      scales.unpackScales(TensorType.Q6_K, w, o, 0);
      int dot = q6k(row, 210 * b, x, 256 * b, scales.subScale);
      acc = Math.fma(scales.d[0] * dx[b], (float) dot, acc);
    }
    return acc;
  }

  private static int q6k(byte[] w, int o, short[] x, int at, int[] scale) {
    IntVector dot = IntVector.zero(I);
    for (int c = 0; c < 8; c++) {
      // Chunks of 16 bytes of ql: elements i.. in low nibbles and 64 further in high nibbles.
      int half = c >> 2;
      int group = half * 8 + (c & 3);
      int i = at + 16 * group;
      ShortVector v = unsigned(w, o + 16 * c);
      // Bits 0-1 of qh belong to elements 0..31 of a half, 2-3 to 32..63, 4-5 to 64..95.
      ShortVector high = right(unsigned(w, o + 128 + 32 * half + 16 * (c & 1)), c & 2);
      ShortVector two = high.and((short) 3).lanewise(VectorOperators.LSHL, 4);
      ShortVector q = v.and((short) 15).or(two).sub((short) 32);
      dot = dot.add(products(q, x, i).mul(scale[group]));
      q = right(v, 4).or(high.and((short) 48)).sub((short) 32);
      dot = dot.add(products(q, x, i + 64).mul(scale[group + 4]));
    }
    return sum(dot);
  }

  private static float iq4xs(
      MemorySegment w, long o, int in, short[] x, float[] dx, WeightBlocks scales) {
    byte[] row = row(w, o, 136 * (in >> 8));
    float acc = 0f;
    for (int b = 0; b < in >> 8; b++, o += 136) {
      scales.unpackScales(TensorType.IQ4_XS, w, o, 0);
      int dot = iq4xs(row, 136 * b + 8, x, 256 * b, scales.subScale);
      acc = Math.fma(scales.d[0] * dx[b], (float) dot, acc);
    }
    return acc;
  }

  private static int iq4xs(byte[] w, int o, short[] x, int at, int[] scale) {
    ByteVector t = ByteVector.fromArray(B, WeightBlocks.IQ4, 0);
    IntVector dot = IntVector.zero(I);
    for (int g = 0; g < 8; g++) {
      dot =
          dot.add(
              table(t, ByteVector.fromArray(B, w, o + 16 * g), x, at + 32 * g).mul(scale[2 * g]));
    }
    return sum(dot);
  }
}
