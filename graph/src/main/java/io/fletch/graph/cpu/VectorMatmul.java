package io.fletch.graph.cpu;

import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Locale;
import jdk.incubator.vector.ByteVector;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.ShortVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;

/**
 * Products with a matrix in its file layout.
 *
 * <p>Quantized, few rows: codes as 16-bit numbers, products of two summed in 16 bits, then 32. One
 * horizontal sum per block of 32 keeps the order of {@link ActivationLayout}; against lane-wise
 * accumulators it cost 25 to 30 % of the speed for Q8_0 and 3 to 14 % for Q4_0. Many rows: {@link
 * VectorTile}. Float types: sixteen partial sums, four dot products at a time.
 */
final class VectorMatmul extends FileLayoutMatmul {
  private static final ByteOrder LITTLE = ByteOrder.LITTLE_ENDIAN;
  private static final boolean WIDE = FloatVector.SPECIES_PREFERRED.length() >= 8;

  /** Codes as they are read; half as wide as {@link #S}. */
  private static final VectorSpecies<Byte> B =
      WIDE ? ByteVector.SPECIES_128 : ByteVector.SPECIES_64;

  private static final VectorSpecies<Short> S =
      WIDE ? ShortVector.SPECIES_256 : ShortVector.SPECIES_128;
  private static final VectorSpecies<Integer> I =
      WIDE ? IntVector.SPECIES_256 : IntVector.SPECIES_128;
  private static final int SL = S.length();
  private static final int IL = I.length();

  private static final VectorSpecies<Float> F = VectorMath.FLOATS;
  private static final int L = F.length();
  private static final int LANES = ActivationLayout.LANES;

  /** Rows of float32 activations that are kept at hand. */
  private static final int FLOAT_TOKENS = 32;

  /** Dot products of float32 taken together. */
  private static final int QUAD = 4;

  private final boolean hasMin;
  private final VectorTile tile;

  VectorMatmul(TensorType type, int in) {
    super(type, in);
    this.hasMin = WeightBlocks.hasMin(type);
    this.tile = type.isQuantized() ? new VectorTile(type, in) : null;
  }

  @Override
  public String name() {
    return type.name().toLowerCase(Locale.ROOT) + " vector-" + F.vectorBitSize();
  }

  @Override
  public void run(
      MemorySegment weight,
      long out,
      long from,
      long to,
      MemorySegment x,
      long xOffset,
      int rows,
      MemorySegment y,
      long yOffset,
      long yStride) {
    assert 0 <= from && from <= to && to <= out : "out=" + out + " from=" + from + " to=" + to;
    if (activation == Kernels.ActivationFormat.F32) {
      runFloat(weight, from, to, x, xOffset, rows, y, yOffset, yStride);
    } else if (rows >= VectorTile.minimumRows()) {
      tile.run(weight, from, to, x, xOffset, rows, y, yOffset, yStride);
    } else {
      runQuantized(weight, from, to, x, xOffset, rows, y, yOffset, yStride);
    }
  }

  // ---- quantized weights, few rows

  private void runQuantized(
      MemorySegment weight,
      long from,
      long to,
      MemorySegment x,
      long xOffset,
      int rows,
      MemorySegment y,
      long yOffset,
      long yStride) {
    VectorScratch s = VectorScratch.get();
    s.blocks.reserve(in);
    int blocks = in / type.blockSize();
    int groups = type.blockSize() == 32 ? blocks : in / ActivationLayout.SUM_GROUP;
    short[] codes = s.shorts(rows * in);
    float[] scales = s.scales(rows * blocks);
    int[] sums = s.ints(rows * groups);
    for (int r = 0; r < rows; r++) {
      long row = xOffset + r * xStride;
      widen(x, row, s.bytes(in), codes, r * in);
      long scale = row + ActivationLayout.scalesOffset(activation, in);
      MemorySegment.copy(x, Segments.FLOAT, scale, scales, r * blocks, blocks);
      long sum = row + ActivationLayout.sumsOffset(activation, in);
      for (int g = 0; g < groups; g++) {
        sums[r * groups + g] =
            type.blockSize() == 32
                ? x.get(Segments.INT, sum + 4L * g)
                : x.get(Segments.SHORT, sum + 2L * g);
      }
    }
    if (WIDE && rows == 1) {
      for (long o = from; o < to; o++) {
        float dot = VectorDot.dot(type, weight, o * rowBytes, in, codes, scales, sums, s.blocks);
        Segments.f32(y, yOffset + o, dot);
      }
      return;
    }
    for (long o = from; o < to; o++) {
      VectorUnpack.unpack(type, weight, o * rowBytes, in, s.blocks);
      for (int r = 0; r < rows; r++) {
        float dot =
            type.blockSize() == 32
                ? dot32(s.blocks, codes, r * in, scales, sums, r * blocks)
                : dot256(s.blocks, codes, r * in, scales, r * blocks, sums, r * groups);
        Segments.f32(y, yOffset + r * yStride + o, dot);
      }
    }
  }

  private void widen(MemorySegment x, long row, byte[] bytes, short[] codes, int at) {
    MemorySegment.copy(x, Segments.BYTE, row, bytes, 0, in);
    for (int i = 0; i < in; i++) {
      codes[at + i] = bytes[i];
    }
  }

  private float dot32(WeightBlocks w, short[] x, int xo, float[] scales, int[] sums, int so) {
    float acc = 0f;
    for (int b = 0; b < in >> 5; b++) {
      float dx = scales[so + b];
      int dot = products32(w.codes, 32 * b, x, xo + 32 * b).reduceLanes(VectorOperators.ADD);
      acc = Math.fma(w.d[b] * dx, (float) dot, acc);
      if (hasMin) {
        acc = Math.fma(w.min[b] * dx, (float) sums[so + b], acc);
      }
    }
    return acc;
  }

  private float dot256(
      WeightBlocks w, short[] x, int xo, float[] scales, int so, int[] sums, int go) {
    float acc = 0f;
    for (int b = 0; b < in >> 8; b++) {
      float dx = scales[so + b];
      int dot = pairsShareScale() ? scaled32(w, x, xo, b) : scaled16(w, x, xo, b);
      acc = Math.fma(w.d[b] * dx, (float) dot, acc);
      if (hasMin) {
        IntVector m = IntVector.zero(I);
        for (int g = 16 * b; g < 16 * b + 16; g += IL) {
          IntVector sum = IntVector.fromArray(I, sums, go + g);
          m = m.add(IntVector.fromArray(I, w.subMin, g).mul(sum));
        }
        acc = Math.fma(w.min[b] * dx, (float) m.reduceLanes(VectorOperators.ADD), acc);
      }
    }
    return acc;
  }

  /** Whether sub-scales are per 32 elements, so that two groups of 16 have the same one. */
  private boolean pairsShareScale() {
    return type == TensorType.Q4_K || type == TensorType.Q5_K || type == TensorType.IQ4_XS;
  }

  private static int scaled32(WeightBlocks w, short[] x, int xo, int b) {
    IntVector sum = IntVector.zero(I);
    for (int g = 8 * b; g < 8 * b + 8; g++) {
      sum = products32(w.codes, 32 * g, x, xo + 32 * g).mul(w.subScale[2 * g]).add(sum);
    }
    return sum.reduceLanes(VectorOperators.ADD);
  }

  private static int scaled16(WeightBlocks w, short[] x, int xo, int b) {
    IntVector sum = IntVector.zero(I);
    for (int g = 16 * b; g < 16 * b + 16; g++) {
      sum = products16(w.codes, 16 * g, x, xo + 16 * g).mul(w.subScale[g]).add(sum);
    }
    return sum.reduceLanes(VectorOperators.ADD);
  }

  /** Products of 32 codes, several per lane. */
  private static IntVector products32(byte[] w, int wo, short[] x, int xo) {
    if (SL == 16) {
      return pairs(product(w, wo, x, xo).add(product(w, wo + 16, x, xo + 16)));
    }
    return products16(w, wo, x, xo).add(products16(w, wo + 16, x, xo + 16));
  }

  private static IntVector products16(byte[] w, int wo, short[] x, int xo) {
    if (SL == 16) {
      return pairs(product(w, wo, x, xo));
    }
    return pairs(product(w, wo, x, xo).add(product(w, wo + 8, x, xo + 8)));
  }

  /** |code| &lt;= 128 times 127: two of them still fit 16 bits. */
  private static ShortVector product(byte[] w, int wo, short[] x, int xo) {
    ShortVector codes =
        (ShortVector) ByteVector.fromArray(B, w, wo).convertShape(VectorOperators.B2S, S, 0);
    return codes.mul(ShortVector.fromArray(S, x, xo));
  }

  /** Sums of neighbours in 32 bits. */
  private static IntVector pairs(ShortVector p) {
    IntVector v = p.reinterpretAsInts();
    IntVector even = v.lanewise(VectorOperators.LSHL, 16).lanewise(VectorOperators.ASHR, 16);
    return even.add(v.lanewise(VectorOperators.ASHR, 16));
  }

  // ---- float weights

  private void runFloat(
      MemorySegment weight,
      long from,
      long to,
      MemorySegment x,
      long xOffset,
      int rows,
      MemorySegment y,
      long yOffset,
      long yStride) {
    VectorScratch s = VectorScratch.get();
    int padded = (in + LANES - 1) & -LANES;
    float[] w = s.w(QUAD * padded);
    float[] xs = s.x(QUAD * padded);
    float[] dots = s.acc(QUAD);
    // The wider side goes four at a time: weights when there is one row, else activations.
    if (rows == 1) {
      read(TensorType.F32, x, xOffset, xs, 0, padded, s);
      for (long o = from; o < to; o += QUAD) {
        int n = (int) Math.min(QUAD, to - o);
        for (int j = 0; j < n; j++) {
          read(type, weight, (o + j) * rowBytes, w, j * padded, padded, s);
        }
        dots(w, padded, padded, xs, 0, s.lanes, dots);
        for (int j = 0; j < n; j++) {
          Segments.f32(y, yOffset + o + j, dots[j]);
        }
      }
      return;
    }
    int step = Math.max(QUAD, Math.min((rows + QUAD - 1) & -QUAD, FLOAT_TOKENS));
    xs = s.x(step * padded);
    for (int t = 0; t < rows; t += step) {
      int tokens = Math.min(step, rows - t);
      for (int r = 0; r < tokens; r++) {
        read(TensorType.F32, x, xOffset + (t + r) * xStride, xs, r * padded, padded, s);
      }
      for (long o = from; o < to; o++) {
        read(type, weight, o * rowBytes, w, 0, padded, s);
        for (int r = 0; r < tokens; r += QUAD) {
          dots(xs, padded, padded, w, r * padded, s.lanes, dots);
          for (int j = 0; j < Math.min(QUAD, tokens - r); j++) {
            Segments.f32(y, yOffset + (t + r + j) * yStride + o, dots[j]);
          }
        }
      }
    }
  }

  /** {@code n} elements of a float type as float32, zeros up to {@code padded}. */
  private void read(
      TensorType from,
      MemorySegment m,
      long offset,
      float[] to,
      int at,
      int padded,
      VectorScratch s) {
    floats(from, m, offset, to, at, in, s);
    Arrays.fill(to, at + in, at + padded, 0f);
  }

  /** {@code n} elements of a float type as float32. */
  static void floats(
      TensorType from, MemorySegment m, long offset, float[] to, int at, int n, VectorScratch s) {
    switch (from) {
      case F32 -> MemorySegment.copy(m, Segments.FLOAT, offset, to, at, n);
      case F16 -> {
        short[] halves = s.shorts(n);
        MemorySegment.copy(m, Segments.SHORT, offset, halves, 0, n);
        VectorMath.halvesToFloats(halves, 0, to, at, n);
      }
      default -> {
        short[] halves = s.shorts(n);
        MemorySegment.copy(m, Segments.SHORT, offset, halves, 0, n);
        VectorMath.bfloatsToFloats(halves, to, at, n);
      }
    }
  }

  /** Four dot products of {@code n} (a multiple of sixteen) elements with one vector. */
  private static void dots(
      float[] a, int stride, int n, float[] b, int from, float[] lanes, float[] dots) {
    if (4 * L == LANES) {
      for (int j = 0; j < QUAD; j++) {
        dots[j] = dotNarrow(a, from + j * stride, n, b, lanes);
      }
      return;
    }
    int p = from;
    int q = p + stride;
    int r = q + stride;
    int t = r + stride;
    FloatVector p0 = FloatVector.zero(F);
    FloatVector q0 = p0;
    FloatVector r0 = p0;
    FloatVector t0 = p0;
    FloatVector p1 = p0;
    FloatVector q1 = p0;
    FloatVector r1 = p0;
    FloatVector t1 = p0;
    for (int i = 0; i < n; i += LANES) {
      FloatVector b0 = FloatVector.fromArray(F, b, i);
      p0 = FloatVector.fromArray(F, a, p + i).fma(b0, p0);
      q0 = FloatVector.fromArray(F, a, q + i).fma(b0, q0);
      r0 = FloatVector.fromArray(F, a, r + i).fma(b0, r0);
      t0 = FloatVector.fromArray(F, a, t + i).fma(b0, t0);
      if (L == LANES) {
        continue;
      }
      FloatVector b1 = FloatVector.fromArray(F, b, i + L);
      p1 = FloatVector.fromArray(F, a, p + i + L).fma(b1, p1);
      q1 = FloatVector.fromArray(F, a, q + i + L).fma(b1, q1);
      r1 = FloatVector.fromArray(F, a, r + i + L).fma(b1, r1);
      t1 = FloatVector.fromArray(F, a, t + i + L).fma(b1, t1);
    }
    dots[0] = sum(p0, p1, lanes);
    dots[1] = sum(q0, q1, lanes);
    dots[2] = sum(r0, r1, lanes);
    dots[3] = sum(t0, t1, lanes);
  }

  /** One dot product with registers of four lanes. */
  private static float dotNarrow(float[] a, int from, int n, float[] b, float[] lanes) {
    FloatVector s0 = FloatVector.zero(F);
    FloatVector s1 = s0;
    FloatVector s2 = s0;
    FloatVector s3 = s0;
    for (int i = 0; i < n; i += LANES) {
      s0 = FloatVector.fromArray(F, a, from + i).fma(FloatVector.fromArray(F, b, i), s0);
      s1 = FloatVector.fromArray(F, a, from + i + L).fma(FloatVector.fromArray(F, b, i + L), s1);
      int j = i + 2 * L;
      s2 = FloatVector.fromArray(F, a, from + j).fma(FloatVector.fromArray(F, b, j), s2);
      j += L;
      s3 = FloatVector.fromArray(F, a, from + j).fma(FloatVector.fromArray(F, b, j), s3);
    }
    s0.intoArray(lanes, 0);
    s1.intoArray(lanes, L);
    s2.intoArray(lanes, 2 * L);
    s3.intoArray(lanes, 3 * L);
    return ScalarScratch.reduce(lanes);
  }

  private static float sum(FloatVector low, FloatVector high, float[] lanes) {
    low.intoArray(lanes, 0);
    if (L < LANES) {
      high.intoArray(lanes, L);
    }
    return ScalarScratch.reduce(lanes);
  }
}
