package io.fletch.bench;

import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.EnumSet;
import java.util.Set;
import jdk.incubator.vector.ByteVector;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;

/**
 * The way that pure-Java engines publish: codes become floats in registers of the Vector API and
 * are multiplied with float32 activations from a heap array, one row of weights and one row of
 * activations at a time. A rung of {@link KernelLadder}, not a kernel of Fletch.
 *
 * <p>Written for registers of 256 and 512 bits. One method per type, so that no type spoils the
 * profile of another.
 */
final class FloatDot {
  private static final ByteOrder LITTLE = ByteOrder.LITTLE_ENDIAN;
  private static final ValueLayout.OfShort SHORT =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(LITTLE);
  private static final VectorSpecies<Byte> B = ByteVector.SPECIES_128;
  private static final VectorSpecies<Float> F = FloatVector.SPECIES_PREFERRED;
  private static final boolean WIDE = F.length() == 16;

  private static final Set<TensorType> TYPES =
      EnumSet.of(TensorType.Q4_0, TensorType.Q8_0, TensorType.Q4_K);

  private FloatDot() {}

  /** Whether it was written for a type, and for the registers that this machine has. */
  static boolean supports(TensorType type) {
    return TYPES.contains(type) && (F.length() == 8 || F.length() == 16);
  }

  /** {@code y[r * yStride + o]} for the rows {@code [from, to)} of a matrix in its file layout. */
  static void product(
      TensorType type,
      MemorySegment w,
      int in,
      long from,
      long to,
      float[] x,
      int rows,
      MemorySegment y,
      long yStride) {
    long rowBytes = type.bytes(in);
    for (long o = from; o < to; o++) {
      for (int r = 0; r < rows; r++) {
        float dot =
            switch (type) {
              case Q4_0 -> q4x0(w, o * rowBytes, in, x, r * in);
              case Q8_0 -> q8x0(w, o * rowBytes, in, x, r * in);
              case Q4_K -> q4k(w, o * rowBytes, in, x, r * in);
              default -> throw new IllegalArgumentException("type: actual=" + type);
            };
        y.setAtIndex(ValueLayout.JAVA_FLOAT, r * yStride + o, dot);
      }
    }
  }

  private static float half(MemorySegment w, long o) {
    return Float.float16ToFloat(w.get(SHORT, o));
  }

  private static FloatVector part(ByteVector v, int part) {
    return (FloatVector) v.convertShape(VectorOperators.B2F, F, part);
  }

  private static FloatVector load(float[] x, int i) {
    return FloatVector.fromArray(F, x, i);
  }

  /** The products of 16 codes with 16 activations. */
  private static FloatVector sixteen(ByteVector v, float[] x, int i) {
    return WIDE
        ? part(v, 0).mul(load(x, i))
        : part(v, 1).fma(load(x, i + 8), part(v, 0).mul(load(x, i)));
  }

  private static float q4x0(MemorySegment w, long o, int in, float[] x, int at) {
    FloatVector acc = FloatVector.zero(F);
    for (int i = at; i < at + in; i += 32, o += 18) {
      ByteVector codes = ByteVector.fromMemorySegment(B, w, o + 2, LITTLE);
      ByteVector low = codes.and((byte) 15).sub((byte) 8);
      ByteVector high = codes.lanewise(VectorOperators.LSHR, 4).sub((byte) 8);
      acc =
          sixteen(low, x, i)
              .add(sixteen(high, x, i + 16))
              .fma(FloatVector.broadcast(F, half(w, o)), acc);
    }
    return acc.reduceLanes(VectorOperators.ADD);
  }

  private static float q8x0(MemorySegment w, long o, int in, float[] x, int at) {
    FloatVector acc = FloatVector.zero(F);
    for (int i = at; i < at + in; i += 32, o += 34) {
      ByteVector first = ByteVector.fromMemorySegment(B, w, o + 2, LITTLE);
      ByteVector second = ByteVector.fromMemorySegment(B, w, o + 18, LITTLE);
      acc =
          sixteen(first, x, i)
              .add(sixteen(second, x, i + 16))
              .fma(FloatVector.broadcast(F, half(w, o)), acc);
    }
    return acc.reduceLanes(VectorOperators.ADD);
  }

  private static float q4k(MemorySegment w, long o, int in, float[] x, int at) {
    FloatVector acc = FloatVector.zero(F);
    for (int i = at; i < at + in; i += 256, o += 144) {
      float d = half(w, o);
      float min = half(w, o + 2);
      for (int pair = 0; pair < 4; pair++) {
        FloatVector scaleLow = FloatVector.broadcast(F, d * scale(w, o + 4, 2 * pair));
        FloatVector scaleHigh = FloatVector.broadcast(F, d * scale(w, o + 4, 2 * pair + 1));
        FloatVector minLow = FloatVector.broadcast(F, -min * min(w, o + 4, 2 * pair));
        FloatVector minHigh = FloatVector.broadcast(F, -min * min(w, o + 4, 2 * pair + 1));
        for (int k = 0; k < 32; k += 16) {
          ByteVector codes = ByteVector.fromMemorySegment(B, w, o + 16 + 32 * pair + k, LITTLE);
          int low = i + 64 * pair + k;
          acc = affine(codes.and((byte) 15), scaleLow, minLow, x, low, acc);
          acc =
              affine(codes.lanewise(VectorOperators.LSHR, 4), scaleHigh, minHigh, x, low + 32, acc);
        }
      }
    }
    return acc.reduceLanes(VectorOperators.ADD);
  }

  /** {@code acc + (scale * codes + min) * x} for 16 elements. */
  private static FloatVector affine(
      ByteVector v, FloatVector scale, FloatVector min, float[] x, int i, FloatVector acc) {
    FloatVector sum = part(v, 0).fma(scale, min).fma(load(x, i), acc);
    return WIDE ? sum : part(v, 1).fma(scale, min).fma(load(x, i + 8), sum);
  }

  private static int scale(MemorySegment w, long o, int j) {
    return j < 4 ? at(w, o + j) & 63 : at(w, o + j + 4) & 15 | at(w, o + j - 4) >> 6 << 4;
  }

  private static int min(MemorySegment w, long o, int j) {
    return j < 4 ? at(w, o + j + 4) & 63 : at(w, o + j + 4) >> 4 | at(w, o + j) >> 6 << 4;
  }

  private static int at(MemorySegment w, long o) {
    return w.get(ValueLayout.JAVA_BYTE, o) & 255;
  }
}
