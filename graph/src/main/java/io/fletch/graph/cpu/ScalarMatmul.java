package io.fletch.graph.cpu;

import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.Locale;

/**
 * Products with a matrix in its file layout. A row of weights is unpacked once, then multiplied
 * with every row of activations.
 */
final class ScalarMatmul extends FileLayoutMatmul {

  ScalarMatmul(TensorType type, int in) {
    super(type, in);
  }

  @Override
  public String name() {
    return type.name().toLowerCase(Locale.ROOT) + " scalar";
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
    ScalarScratch scratch = ScalarScratch.get();
    switch (activation) {
      case F32 -> {
        float[] w = scratch.row(in);
        for (long o = from; o < to; o++) {
          unpackFloats(weight, o * rowBytes, w);
          for (int r = 0; r < rows; r++) {
            float dot = dot(w, x, xOffset + r * xStride, scratch.clearedLanes());
            Segments.f32(y, yOffset + r * yStride + o, dot);
          }
        }
      }
      case Q8_BLOCK32, Q8_BLOCK256 -> {
        WeightBlocks w = scratch.blocks;
        w.reserve(in);
        for (long o = from; o < to; o++) {
          w.unpack(type, weight, o * rowBytes, in, 0);
          for (int r = 0; r < rows; r++) {
            long row = xOffset + r * xStride;
            float dot =
                activation == Kernels.ActivationFormat.Q8_BLOCK32
                    ? dot32(w, x, row)
                    : dot256(w, x, row);
            Segments.f32(y, yOffset + r * yStride + o, dot);
          }
        }
      }
    }
  }

  private void unpackFloats(MemorySegment w, long offset, float[] row) {
    switch (type) {
      case F32 -> {
        for (int i = 0; i < in; i++) {
          row[i] = w.get(Segments.FLOAT, offset + 4L * i);
        }
      }
      case F16 -> {
        for (int i = 0; i < in; i++) {
          row[i] = Segments.f16(w, offset + 2L * i);
        }
      }
      default -> {
        for (int i = 0; i < in; i++) {
          row[i] = Segments.bf16(w, offset + 2L * i);
        }
      }
    }
  }

  private float dot(float[] w, MemorySegment x, long xOffset, float[] lanes) {
    int whole = in & -ActivationLayout.LANES;
    for (int i = 0; i < whole; i += ActivationLayout.LANES) {
      for (int l = 0; l < ActivationLayout.LANES; l++) {
        lanes[l] = Math.fma(w[i + l], x.get(Segments.FLOAT, xOffset + 4L * (i + l)), lanes[l]);
      }
    }
    for (int i = whole; i < in; i++) {
      int l = i - whole;
      lanes[l] = Math.fma(w[i], x.get(Segments.FLOAT, xOffset + 4L * i), lanes[l]);
    }
    return ScalarScratch.reduce(lanes);
  }

  private float dot32(WeightBlocks w, MemorySegment x, long row) {
    long scales = row + ActivationLayout.scalesOffset(activation, in);
    long sums = row + ActivationLayout.sumsOffset(activation, in);
    boolean hasMin = WeightBlocks.hasMin(type);
    float acc = 0f;
    for (int b = 0; b < in >> 5; b++) {
      float dx = x.get(Segments.FLOAT, scales + 4L * b);
      acc = Math.fma(w.d[b] * dx, (float) dot(w.codes, 32 * b, x, row, 32), acc);
      if (hasMin) {
        acc = Math.fma(w.min[b] * dx, (float) x.get(Segments.INT, sums + 4L * b), acc);
      }
    }
    return acc;
  }

  private float dot256(WeightBlocks w, MemorySegment x, long row) {
    long scales = row + ActivationLayout.scalesOffset(activation, in);
    long sums = row + ActivationLayout.sumsOffset(activation, in);
    boolean hasMin = WeightBlocks.hasMin(type);
    float acc = 0f;
    for (int b = 0; b < in >> 8; b++) {
      float dx = x.get(Segments.FLOAT, scales + 4L * b);
      int dot = 0;
      for (int g = 16 * b; g < 16 * b + 16; g++) {
        dot += w.subScale[g] * dot(w.codes, 16 * g, x, row, 16);
      }
      acc = Math.fma(w.d[b] * dx, (float) dot, acc);
      if (hasMin) {
        int min = 0;
        for (int g = 16 * b; g < 16 * b + 16; g++) {
          min += w.subMin[g] * x.get(Segments.SHORT, sums + 2L * g);
        }
        acc = Math.fma(w.min[b] * dx, (float) min, acc);
      }
    }
    return acc;
  }

  /** Sum of products of {@code n} codes from {@code at} on. */
  private static int dot(byte[] w, int at, MemorySegment x, long row, int n) {
    int sum = 0;
    for (int i = at; i < at + n; i++) {
      sum += w[i] * x.get(Segments.BYTE, row + i);
    }
    return sum;
  }
}
