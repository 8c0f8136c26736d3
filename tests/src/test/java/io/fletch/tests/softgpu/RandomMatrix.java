package io.fletch.tests.softgpu;

import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.SplittableRandom;

/** Weights of every type that a matrix may have, and places of 2:4 matrices. */
final class RandomMatrix {
  private RandomMatrix() {}

  private static float number(SplittableRandom random, double size) {
    return (float) (size * (2 * random.nextDouble() - 1));
  }

  private static void half(MemorySegment s, long at, float v) {
    s.set(ValueLayout.JAVA_SHORT_UNALIGNED, at, Float.floatToFloat16(v));
  }

  /** The index of a 2:4 matrix, with every legal pair of places. */
  static Tensor places(TensorStore store, String name, int out, int in, SplittableRandom random) {
    int[] legal = {0b0100, 0b1000, 0b1001, 0b1100, 0b1101, 0b1110};
    int width = (in + 7) / 8;
    Tensor index = store.allocate(name, TensorType.I8, out, width);
    for (int i = 0; i < out * width; i++) {
      int low = legal[random.nextInt(6)];
      boolean half = in % 8 != 0 && i % width == width - 1;
      int high = half ? 0 : legal[random.nextInt(6)];
      index.segment().set(ValueLayout.JAVA_BYTE, i, (byte) (low | high << 4));
    }
    return index;
  }

  /** Random codes in all bits, scales of a sensible size and of both signs; returns the tensor. */
  static Tensor fill(Tensor t, SplittableRandom random) {
    TensorType type = t.type();
    MemorySegment s = t.segment();
    if (!type.isQuantized()) {
      for (long i = 0; i < t.elements(); i++) {
        float v = number(random, 1);
        switch (type) {
          case F32 -> s.set(ValueLayout.JAVA_FLOAT_UNALIGNED, 4 * i, v);
          case F16 -> half(s, 2 * i, v);
          default -> {
            short bits = (short) (Float.floatToRawIntBits(v) >>> 16);
            s.set(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * i, bits);
          }
        }
      }
      return t;
    }
    for (long at = 0; at < t.bytes(); at++) {
      s.set(ValueLayout.JAVA_BYTE, at, (byte) random.nextInt());
    }
    for (long at = 0; at < t.bytes(); at += type.blockBytes()) {
      switch (type) {
        case Q4_1, Q5_1 -> {
          half(s, at, number(random, 0.1));
          half(s, at + 2, number(random, 1));
        }
        case Q4_K, Q5_K -> {
          half(s, at, number(random, 0.002));
          half(s, at + 2, number(random, 0.02));
        }
        case Q2_K -> {
          half(s, at + 80, number(random, 0.02));
          half(s, at + 82, number(random, 0.05));
        }
        case Q3_K -> half(s, at + 108, number(random, 0.002));
        case Q6_K -> half(s, at + 208, number(random, 0.0003));
        case IQ4_XS -> half(s, at, number(random, 0.0003));
        case MXFP4 -> s.set(ValueLayout.JAVA_BYTE, at, (byte) random.nextInt(120, 128));
        default -> half(s, at, number(random, type == TensorType.Q8_0 ? 0.01 : 0.1));
      }
    }
    return t;
  }
}
