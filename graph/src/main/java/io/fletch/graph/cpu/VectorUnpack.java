package io.fletch.graph.cpu;

import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.ByteVector;
import jdk.incubator.vector.VectorMask;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;

/** Unpacks codes as {@link WeightBlocks} does, 16 or 32 at a time. */
final class VectorUnpack {
  private static final ByteOrder LITTLE = ByteOrder.LITTLE_ENDIAN;
  private static final VectorSpecies<Byte> B16 = ByteVector.SPECIES_128;

  /** 32 bytes where the machine has such vectors, else 16. */
  private static final VectorSpecies<Byte> WIDE =
      ByteVector.SPECIES_PREFERRED.length() >= 32 ? ByteVector.SPECIES_256 : B16;

  private static final int STEP = WIDE.length();

  private VectorUnpack() {}

  /** Unpacks {@code n} elements (whole blocks) from a byte offset to index 0. */
  static void unpack(TensorType type, MemorySegment w, long offset, int n, WeightBlocks to) {
    int size = type.blockSize();
    int bytes = type.blockBytes();
    for (int i = 0; i < n; i += size, offset += bytes) {
      to.unpackScales(type, w, offset, i);
      codes(type, w, offset, to.codes, i);
    }
  }

  private static void codes(TensorType type, MemorySegment w, long o, byte[] codes, int at) {
    switch (type) {
      case Q4_0 -> nibbles(w, o + 2, codes, at, (byte) 8);
      case Q4_1 -> nibbles(w, o + 4, codes, at, (byte) 0);
      case Q5_0 -> fiveBits(w, o + 2, codes, at, (byte) 16);
      case Q5_1 -> fiveBits(w, o + 4, codes, at, (byte) 0);
      case Q8_0 -> {
        ByteVector.fromMemorySegment(B16, w, o + 2, LITTLE).intoArray(codes, at);
        ByteVector.fromMemorySegment(B16, w, o + 18, LITTLE).intoArray(codes, at + 16);
      }
      case IQ4_NL -> table(WeightBlocks.IQ4, w, o + 2, codes, at);
      case MXFP4 -> table(WeightBlocks.E2M1, w, o + 1, codes, at);
      case Q2_K -> {
        for (int l = 0; l < 32; l += STEP) {
          twoBits(w, o + 16 + l, codes, at + l);
          twoBits(w, o + 48 + l, codes, at + 128 + l);
        }
      }
      case Q3_K -> {
        for (int l = 0; l < 32; l += STEP) {
          twoBits(w, o + 32 + l, codes, at + l);
          twoBits(w, o + 64 + l, codes, at + 128 + l);
          thirdBits(w, o + l, codes, at + l);
        }
      }
      case Q4_K -> {
        for (int l = 0; l < 128; l += STEP) {
          // Byte l holds elements of group l / 32, whose 64 elements follow each other.
          pairsOfNibbles(w, o + 16 + l, codes, at + (l & -32) + l);
        }
      }
      case Q5_K -> {
        for (int l = 0; l < 128; l += STEP) {
          int i = at + (l & -32) + l;
          pairsOfNibbles(w, o + 48 + l, codes, i);
          fifthBits(w, o + 16 + (l & 31), l >> 4 & -2, codes, i);
        }
      }
      case Q6_K -> {
        for (int l = 0; l < 32; l += STEP) {
          sixBits(w, o + l, o + 128 + l, codes, at + l);
          sixBits(w, o + 64 + l, o + 160 + l, codes, at + 128 + l);
        }
      }
      case IQ4_XS -> {
        for (int g = 0; g < 8; g++) {
          table(WeightBlocks.IQ4, w, o + 8 + 16 * g, codes, at + 32 * g);
        }
      }
      default -> throw new IllegalArgumentException("not a block type: actual=" + type);
    }
  }

  /** Each byte shifted right; the bits that come in from the neighbour must be masked off. */
  private static ByteVector shiftRight(ByteVector v, int bits) {
    return v.reinterpretAsShorts().lanewise(VectorOperators.LSHR, bits).reinterpretAsBytes();
  }

  /** Each byte shifted left; no bit may leave its byte. */
  private static ByteVector shiftLeft(ByteVector v, int bits) {
    return v.reinterpretAsShorts().lanewise(VectorOperators.LSHL, bits).reinterpretAsBytes();
  }

  private static void nibbles(MemorySegment w, long o, byte[] codes, int at, byte zero) {
    ByteVector v = ByteVector.fromMemorySegment(B16, w, o, LITTLE);
    v.and((byte) 15).sub(zero).intoArray(codes, at);
    shiftRight(v, 4).and((byte) 15).sub(zero).intoArray(codes, at + 16);
  }

  private static void table(byte[] values, MemorySegment w, long o, byte[] codes, int at) {
    ByteVector t = ByteVector.fromArray(B16, values, 0);
    ByteVector v = ByteVector.fromMemorySegment(B16, w, o, LITTLE);
    v.and((byte) 15).selectFrom(t).intoArray(codes, at);
    shiftRight(v, 4).and((byte) 15).selectFrom(t).intoArray(codes, at + 16);
  }

  private static void fiveBits(MemorySegment w, long o, byte[] codes, int at, byte zero) {
    int high = w.get(Segments.INT, o);
    ByteVector v = ByteVector.fromMemorySegment(B16, w, o + 4, LITTLE);
    VectorMask<Byte> low = VectorMask.fromLong(B16, high & 0xffff);
    v.and((byte) 15).sub(zero).add((byte) 16, low).intoArray(codes, at);
    VectorMask<Byte> upper = VectorMask.fromLong(B16, high >>> 16);
    shiftRight(v, 4).and((byte) 15).sub(zero).add((byte) 16, upper).intoArray(codes, at + 16);
  }

  private static void twoBits(MemorySegment w, long o, byte[] codes, int at) {
    ByteVector v = ByteVector.fromMemorySegment(WIDE, w, o, LITTLE);
    v.and((byte) 3).intoArray(codes, at);
    shiftRight(v, 2).and((byte) 3).intoArray(codes, at + 32);
    shiftRight(v, 4).and((byte) 3).intoArray(codes, at + 64);
    shiftRight(v, 6).and((byte) 3).intoArray(codes, at + 96);
  }

  private static void thirdBits(MemorySegment w, long o, byte[] codes, int at) {
    ByteVector v = ByteVector.fromMemorySegment(WIDE, w, o, LITTLE);
    for (int r = 0; r < 8; r++) {
      ByteVector four = shiftLeft(shiftRight(v, r).and((byte) 1), 2);
      ByteVector.fromArray(WIDE, codes, at + 32 * r)
          .add(four)
          .sub((byte) 4)
          .intoArray(codes, at + 32 * r);
    }
  }

  private static void pairsOfNibbles(MemorySegment w, long o, byte[] codes, int at) {
    ByteVector v = ByteVector.fromMemorySegment(WIDE, w, o, LITTLE);
    v.and((byte) 15).intoArray(codes, at);
    shiftRight(v, 4).and((byte) 15).intoArray(codes, at + 32);
  }

  private static void fifthBits(MemorySegment w, long o, int bit, byte[] codes, int at) {
    ByteVector v = shiftRight(ByteVector.fromMemorySegment(WIDE, w, o, LITTLE), bit);
    ByteVector.fromArray(WIDE, codes, at).or(shiftLeft(v.and((byte) 1), 4)).intoArray(codes, at);
    ByteVector.fromArray(WIDE, codes, at + 32)
        .or(shiftLeft(v.and((byte) 2), 3))
        .intoArray(codes, at + 32);
  }

  private static void sixBits(MemorySegment w, long low, long high, byte[] codes, int at) {
    ByteVector l = ByteVector.fromMemorySegment(WIDE, w, low, LITTLE);
    ByteVector l32 = ByteVector.fromMemorySegment(WIDE, w, low + 32, LITTLE);
    ByteVector h = ByteVector.fromMemorySegment(WIDE, w, high, LITTLE);
    sixBits(l.and((byte) 15), shiftLeft(h.and((byte) 3), 4)).intoArray(codes, at);
    sixBits(l32.and((byte) 15), shiftLeft(h.and((byte) 12), 2)).intoArray(codes, at + 32);
    sixBits(shiftRight(l, 4).and((byte) 15), h.and((byte) 48)).intoArray(codes, at + 64);
    sixBits(shiftRight(l32, 4).and((byte) 15), shiftRight(h, 2).and((byte) 48))
        .intoArray(codes, at + 96);
  }

  private static ByteVector sixBits(ByteVector low, ByteVector high) {
    return low.or(high).sub((byte) 32);
  }
}
