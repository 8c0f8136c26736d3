package io.fletch.graph.cpu;

import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorSpecies;

/**
 * Products of quantized weights with many rows of activations. Lane = row of activations.
 *
 * <p>The Vector API has no 8-bit dot product, but float32 multiply-add is exact on integers below
 * 2^24. So codes are widened to float32 and summed by fma over runs short enough to stay below that
 * ({@link #exactRun}); the integer sums are those of {@link ActivationLayout}, and what follows per
 * block is its order of operations, so the result has the same bits as one row alone.
 *
 * <p>Blocking: {@link #OUT} weight rows are unpacked once per {@link #TOKENS} rows of activations;
 * a panel of {@link #WIDTH} transposed activations times {@link #DEPTH} elements stays in L1 while
 * tiles of four weight rows pass by.
 */
final class VectorTile {
  private static final VectorSpecies<Float> F = VectorMath.FLOATS;
  private static final int L = F.length();

  /** Rows of activations in a panel: two registers. */
  private static final int WIDTH = 2 * L;

  /** Rows of activations that are transposed at a time; bounds the working memory. */
  private static final int TOKENS = 128;

  /** Weight rows that are unpacked at a time, a multiple of a tile's four. */
  private static final int OUT = 32;

  private static final int TILE = 4;

  /** Elements per pass, a multiple of every block size. */
  private static final int DEPTH = 512;

  private final TensorType type;
  private final int in;
  private final int block;
  private final int run;
  private final boolean hasMin;
  private final Kernels.ActivationFormat activation;
  private final long rowBytes;
  private final long xStride;

  VectorTile(TensorType type, int in) {
    this.type = type;
    this.in = in;
    this.block = type.blockSize();
    this.run = exactRun(type);
    this.hasMin = WeightBlocks.hasMin(type);
    this.activation = WeightBlocks.activation(type);
    this.rowBytes = type.bytes(in);
    this.xStride = ActivationLayout.bytes(activation, in);
  }

  /** Rows of activations from which a tile beats one row after the other. */
  static int minimumRows() {
    return L / 2;
  }

  /**
   * Elements whose products sum to less than 2^24 in magnitude, with sub-scales multiplied into the
   * weights: largest sub-scale * largest code * 127 * run.
   */
  private static int exactRun(TensorType type) {
    return switch (type) {
      case Q2_K, Q3_K -> 256; // 15 * 3, 32 * 4
      case Q4_K -> 128; // 63 * 15
      case Q5_K -> 64; // 63 * 31
      default -> 32; // Q6_K: 128 * 32; IQ4_XS: 32 * 127; all types of 32: 128
    };
  }

  void run(
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
    for (int t = 0; t < rows; t += TOKENS) {
      int tokens = Math.min(TOKENS, rows - t);
      transpose(x, xOffset + t * xStride, tokens, s);
      for (long o = from; o < to; o += OUT) {
        int outs = (int) Math.min(OUT, to - o);
        unpack(weight, o, outs, s);
        for (int p = 0; p < tokens; p += WIDTH) {
          multiply(p, outs, tokens - p <= L, s);
          store(
              s.acc,
              outs,
              Math.min(WIDTH, tokens - p),
              y,
              yOffset + (t + p) * yStride + o,
              yStride);
        }
      }
    }
  }

  private static int padded(int tokens) {
    return (tokens + WIDTH - 1) / WIDTH * WIDTH;
  }

  /** Panels of codes, scales and sums with the row of activations as the innermost index. */
  private void transpose(MemorySegment x, long xOffset, int tokens, VectorScratch s) {
    int n = padded(tokens);
    int blocks = in / block;
    int groups = hasMin ? in / sumGroup() : 0;
    float[] codes = s.x(n * in);
    float[] scales = s.scales(n * blocks);
    float[] sums = s.sums(n * groups);
    byte[] row = s.bytes(in);
    for (int t = 0; t < n; t++) {
      int panel = t / WIDTH * WIDTH;
      int lane = t % WIDTH;
      // Lanes without a row repeat the last one: finite, and never stored.
      long base = xOffset + Math.min(t, tokens - 1) * xStride;
      MemorySegment.copy(x, Segments.BYTE, base, row, 0, in);
      scatter(row, codes, panel * in + lane);
      long scale = base + ActivationLayout.scalesOffset(activation, in);
      for (int b = 0; b < blocks; b++) {
        scales[panel * blocks + b * WIDTH + lane] = x.get(Segments.FLOAT, scale + 4L * b);
      }
      long sum = base + ActivationLayout.sumsOffset(activation, in);
      for (int g = 0; g < groups; g++) {
        sums[panel * groups + g * WIDTH + lane] =
            block == 32 ? x.get(Segments.INT, sum + 4L * g) : x.get(Segments.SHORT, sum + 2L * g);
      }
    }
  }

  private int sumGroup() {
    return block == 32 ? 32 : ActivationLayout.SUM_GROUP;
  }

  private void scatter(byte[] row, float[] codes, int at) {
    for (int i = 0; i < in; i++) {
      codes[at + i * WIDTH] = row[i];
    }
  }

  /** Codes times sub-scales of weight rows as float32, with scales and minimums per block. */
  private void unpack(MemorySegment weight, long o, int outs, VectorScratch s) {
    WeightBlocks b = s.blocks;
    b.reserve(in);
    int blocks = in / block;
    int groups = hasMin ? in / sumGroup() : 0;
    float[] w = s.w(OUT * in);
    float[] mins = s.mins(OUT * (2 * blocks + groups));
    for (int r = 0; r < outs; r++) {
      VectorUnpack.unpack(type, weight, (o + r) * rowBytes, in, b);
      if (block == 32) {
        widen(b.codes, w, r * in);
      } else {
        widenScaled(b.codes, b.subScale, w, r * in);
      }
      int at = r * (2 * blocks + groups);
      System.arraycopy(b.d, 0, mins, at, blocks);
      if (hasMin) {
        System.arraycopy(b.min, 0, mins, at + blocks, blocks);
        for (int g = 0; g < groups; g++) {
          mins[at + 2 * blocks + g] = block == 32 ? 1f : b.subMin[g];
        }
      }
    }
  }

  private void widen(byte[] codes, float[] w, int at) {
    for (int i = 0; i < in; i++) {
      w[at + i] = codes[i];
    }
  }

  private void widenScaled(byte[] codes, int[] subScale, float[] w, int at) {
    for (int g = 0; g < in >> 4; g++) {
      int scale = subScale[g];
      for (int i = 16 * g; i < 16 * g + 16; i++) {
        w[at + i] = scale * codes[i];
      }
    }
  }

  /** One panel times the unpacked rows, into {@code acc[out][WIDTH]}. */
  private void multiply(int panel, int outs, boolean narrow, VectorScratch s) {
    float[] acc = s.acc((OUT + 2 * TILE) * WIDTH);
    int sums = OUT * WIDTH;
    int[] whole = s.ints(TILE * WIDTH);
    Arrays.fill(acc, 0, sums, 0f);
    int blocks = in / block;
    for (int k = 0; k < in; k += DEPTH) {
      int end = Math.min(in, k + DEPTH);
      for (int o = 0; o < outs; o += TILE) {
        for (int b = k / block; b * block < end; b++) {
          for (int i = b * block; i < (b + 1) * block; i += run) {
            if (narrow) {
              dots1(s.w, o * in + i, in, s.x, panel * in + i * WIDTH, run, acc, sums);
            } else {
              dots2(s.w, o * in + i, in, s.x, panel * in + i * WIDTH, run, acc, sums);
            }
            if (run < block) {
              addWhole(acc, sums, whole, i == b * block);
            }
          }
          if (run < block) {
            wholeToFloat(whole, acc, sums);
          }
          for (int r = 0; r < TILE; r++) {
            accumulate(o + r, b, panel, blocks, s, sums + r * WIDTH);
          }
        }
      }
    }
  }

  /** Sums of {@code n} products for four weight rows and two registers of activations. */
  private static void dots2(
      float[] w, int wo, int stride, float[] x, int xo, int n, float[] sums, int to) {
    FloatVector a0 = FloatVector.zero(F);
    FloatVector a1 = a0;
    FloatVector b0 = a0;
    FloatVector b1 = a0;
    FloatVector c0 = a0;
    FloatVector c1 = a0;
    FloatVector d0 = a0;
    FloatVector d1 = a0;
    for (int i = 0; i < n; i++) {
      FloatVector x0 = FloatVector.fromArray(F, x, xo + i * WIDTH);
      FloatVector x1 = FloatVector.fromArray(F, x, xo + i * WIDTH + L);
      FloatVector wa = FloatVector.broadcast(F, w[wo + i]);
      a0 = x0.fma(wa, a0);
      a1 = x1.fma(wa, a1);
      FloatVector wb = FloatVector.broadcast(F, w[wo + stride + i]);
      b0 = x0.fma(wb, b0);
      b1 = x1.fma(wb, b1);
      FloatVector wc = FloatVector.broadcast(F, w[wo + 2 * stride + i]);
      c0 = x0.fma(wc, c0);
      c1 = x1.fma(wc, c1);
      FloatVector wd = FloatVector.broadcast(F, w[wo + 3 * stride + i]);
      d0 = x0.fma(wd, d0);
      d1 = x1.fma(wd, d1);
    }
    a0.intoArray(sums, to);
    a1.intoArray(sums, to + L);
    b0.intoArray(sums, to + 2 * L);
    b1.intoArray(sums, to + 3 * L);
    c0.intoArray(sums, to + 4 * L);
    c1.intoArray(sums, to + 5 * L);
    d0.intoArray(sums, to + 6 * L);
    d1.intoArray(sums, to + 7 * L);
  }

  /** As {@link #dots2} for the first register only. */
  private static void dots1(
      float[] w, int wo, int stride, float[] x, int xo, int n, float[] sums, int to) {
    FloatVector a = FloatVector.zero(F);
    FloatVector b = a;
    FloatVector c = a;
    FloatVector d = a;
    for (int i = 0; i < n; i++) {
      FloatVector x0 = FloatVector.fromArray(F, x, xo + i * WIDTH);
      a = x0.fma(FloatVector.broadcast(F, w[wo + i]), a);
      b = x0.fma(FloatVector.broadcast(F, w[wo + stride + i]), b);
      c = x0.fma(FloatVector.broadcast(F, w[wo + 2 * stride + i]), c);
      d = x0.fma(FloatVector.broadcast(F, w[wo + 3 * stride + i]), d);
    }
    a.intoArray(sums, to);
    b.intoArray(sums, to + 2 * L);
    c.intoArray(sums, to + 4 * L);
    d.intoArray(sums, to + 6 * L);
  }

  /** Adds exact partial sums as integers: their total may exceed 2^24. */
  private static void addWhole(float[] sums, int at, int[] whole, boolean first) {
    for (int i = 0; i < TILE * WIDTH; i++) {
      whole[i] = (first ? 0 : whole[i]) + (int) sums[at + i];
    }
  }

  private static void wholeToFloat(int[] whole, float[] sums, int at) {
    for (int i = 0; i < TILE * WIDTH; i++) {
      sums[at + i] = whole[i];
    }
  }

  /** Takes block {@code b} of one weight row into its accumulators. */
  private void accumulate(int r, int b, int panel, int blocks, VectorScratch s, int sum) {
    int groups = hasMin ? in / sumGroup() : 0;
    int perBlock = hasMin ? block / sumGroup() : 0;
    int row = r * (2 * blocks + groups);
    float d = s.mins[row + b];
    float[] acc = s.acc;
    for (int l = 0; l < WIDTH; l += L) {
      FloatVector dx = FloatVector.fromArray(F, s.scales, panel * blocks + b * WIDTH + l);
      FloatVector a = FloatVector.fromArray(F, acc, r * WIDTH + l);
      a = dx.mul(d).fma(FloatVector.fromArray(F, acc, sum + l), a);
      if (hasMin) {
        FloatVector m = FloatVector.zero(F);
        for (int g = b * perBlock; g < (b + 1) * perBlock; g++) {
          // Exact: at most 16 * 63 * 2032 < 2^24.
          FloatVector sums = FloatVector.fromArray(F, s.sums, panel * groups + g * WIDTH + l);
          m = sums.fma(FloatVector.broadcast(F, s.mins[row + 2 * blocks + g]), m);
        }
        a = dx.mul(s.mins[row + blocks + b]).fma(m, a);
      }
      a.intoArray(acc, r * WIDTH + l);
    }
  }

  private static void store(
      float[] acc, int outs, int tokens, MemorySegment y, long yOffset, long yStride) {
    for (int t = 0; t < tokens; t++) {
      for (int o = 0; o < outs; o++) {
        Segments.f32(y, yOffset + t * yStride + o, acc[o * WIDTH + t]);
      }
    }
  }
}
