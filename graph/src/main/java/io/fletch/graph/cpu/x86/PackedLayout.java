package io.fletch.graph.cpu.x86;

import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;

/**
 * Weights of a quantized type repacked for lanes that are rows: groups of {@code lanes} rows (8 or
 * 16), the last one padded with zeros, in nearly the bytes of the file.
 *
 * <p>A group starts at a multiple of 64 bytes and is one stream that is read from its start to its
 * end. Blocks of 256 elements follow each other, filled up to whole vectors: scales, codes, meta.
 * Blocks of 32 elements come in pairs, the codes of two, then the meta of two, so that vectors of
 * codes are aligned; of an odd number the last is alone.
 *
 * <pre>
 *   scales  256-element types: i8[pair][lane][2], or i8[sub-block][lane] where products go into 32 bits
 *   codes   [chunk of 32 elements][vector][lane] u32
 *   meta    32-element types:  d f16[lane] (MXFP4: u8[lane]), then m f16[lane] where there is one
 *           256-element types: mins u8[pair][lane][2] where there are any,
 *                              d f16[lane], dmin f16[lane] where there is one
 * </pre>
 *
 * A pair is two consecutive sub-blocks. A <em>quad</em> is four consecutive elements of a row, one
 * byte each, in a 32-bit lane; quad {@code k} of a chunk is elements {@code 4k .. 4k+3}. With
 * {@code u} the unsigned code of the file format, vectors of a chunk are
 *
 * <pre>
 *   BYTES    8 vectors: quad k                       (XOR 0x80 where the product wants unsigned bytes)
 *   NIBBLES  4 vectors: quad 2j | quad 2j+1 &lt;&lt; 4
 *   TWINS    8 vectors for two chunks: quad k of the first | quad k of the second &lt;&lt; 4
 *   FIVE     NIBBLES of the low 4 bits, then 1 vector: bit k of a byte = bit 4 of quad k
 *   SIX      NIBBLES of the low 4 bits, then 2 vectors: bits 2i, 2i+1 of vector h = bits 4, 5 of quad 4h+i
 *   TWO      2 vectors: bits 2i, 2i+1 of vector h = quad 4h+i
 *   THREE    TWO of the low 2 bits, then 1 vector: bit k of a byte = bit 2 of quad k
 * </pre>
 *
 * <p>Immutable; any thread may pack disjoint groups of one matrix.
 */
public final class PackedLayout {
  /** Part of every cache key: changes when the bytes of a packed matrix change. */
  public static final int VERSION = 2;

  private static final ValueLayout.OfInt INT =
      ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfShort SHORT =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfByte BYTE = ValueLayout.JAVA_BYTE;

  private static final int LOW4 = 0x0f0f0f0f;
  private static final int LOW2 = 0x03030303;
  private static final int LOW1 = 0x01010101;

  /** How the codes of a chunk of 32 elements are stored; see above. */
  enum Codes {
    BYTES(8),
    NIBBLES(4),
    TWINS(4),
    FIVE(5),
    SIX(6),
    TWO(2),
    THREE(3);

    final int vectors;

    Codes(int vectors) {
      this.vectors = vectors;
    }
  }

  final TensorType type;
  final int in;
  final int lanes;
  final boolean unsignedBytes;
  final Codes codes;

  /** Elements of a block: 32 or 256. */
  final int blockSize;

  /** Elements that share a sub-scale, 16 or 32; 0 for types without. */
  final int subBlock;

  final boolean hasMin;
  final int blocks;
  final int codesPerBlock;
  final int metaPerBlock;

  /** Bytes of the sub-scales of a block, which lie before its codes; 0 without. */
  final int scaleBytes;

  /** Offsets in the meta of a block; -1 for what it has not. */
  final int minsOffset;

  final int dOffset;
  final int dminOffset;

  /** Whether blocks lie in pairs: the codes of two, then their scales. */
  final boolean pairs;

  /** Bytes from a block to the next, on average over a pair. */
  final int blockStride;

  final long groupBytes;

  /** The layout of rows of {@code in} elements for an instruction set. */
  public PackedLayout(TensorType type, int in, Isa isa) {
    if (in <= 0 || in % type.blockSize() != 0 || !supports(type)) {
      throw new IllegalArgumentException("no packed form: type=" + type + " in=" + in);
    }
    this.type = type;
    this.in = in;
    this.lanes = isa.lanes();
    this.unsignedBytes = isa.vnni();
    this.blockSize = type.blockSize();
    this.codes =
        switch (type) {
          case Q8_0 -> Codes.BYTES;
          case Q5_0, Q5_1, Q5_K -> Codes.FIVE;
          case Q6_K -> Codes.SIX;
          case Q2_K -> Codes.TWO;
          case Q3_K -> Codes.THREE;
          case Q4_K -> isa.vnni() ? Codes.TWINS : Codes.NIBBLES;
          default -> Codes.NIBBLES;
        };
    this.subBlock =
        switch (type) {
          case Q2_K, Q3_K, Q6_K -> 16;
          case Q4_K, Q5_K, IQ4_XS -> 32;
          default -> 0;
        };
    this.hasMin =
        switch (type) {
          case Q4_1, Q5_1, Q2_K, Q4_K, Q5_K -> true;
          default -> false;
        };
    this.blocks = in / blockSize;
    this.codesPerBlock = blockSize / 32 * codes.vectors * 4 * lanes;
    this.scaleBytes = subBlock == 0 ? 0 : blockSize / subBlock * lanes;
    int d = type == TensorType.MXFP4 ? lanes : 2 * lanes;
    this.minsOffset = hasMin && subBlock != 0 ? 0 : -1;
    this.dOffset = minsOffset >= 0 ? scaleBytes : 0;
    this.dminOffset = hasMin ? dOffset + d : -1;
    this.metaPerBlock = dOffset + (hasMin ? 2 * d : d);
    this.pairs = subBlock == 0;
    int vector = 4 * lanes;
    int blockBytes = scaleBytes + codesPerBlock + metaPerBlock;
    this.blockStride = pairs ? blockBytes : blockBytes + vector - 1 & -vector;
    this.groupBytes = (long) blocks * blockStride + 63 & -64;
  }

  /** Whether a type has a packed form. */
  public static boolean supports(TensorType type) {
    return switch (type) {
      case Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS ->
          true;
      case F32, F16, BF16, I8, I16, I32, I64, F64 -> false;
    };
  }

  /** Rows of a group. */
  public int lanes() {
    return lanes;
  }

  /** Bytes of one group of rows. */
  public long groupBytes() {
    return groupBytes;
  }

  /** Bytes of a matrix of {@code out} rows. */
  public long bytes(long out) {
    return Math.multiplyExact((out + lanes - 1) / lanes, groupBytes);
  }

  /** Offset of the codes of a block from the start of a group. */
  private long codesAt(int block) {
    return pairs
        ? (long) (block & -2) * blockStride + (long) (block & 1) * codesPerBlock
        : (long) block * blockStride + scaleBytes;
  }

  /** Offset of the meta of a block from the start of a group. */
  private long metaAt(int block) {
    return pairs && (block | 1) < blocks
        ? (long) (block & -2) * blockStride + 2L * codesPerBlock + (long) (block & 1) * metaPerBlock
        : codesAt(block) + codesPerBlock;
  }

  /**
   * Packs rows {@code [from, to)} of a row-major matrix, row by row in plain Java; the reference of
   * {@link PackCode}, and what packs an incomplete last group.
   *
   * @param source the matrix in its file format, from its row 0 on
   * @param from first row of a group
   * @param target the group of row {@code from} goes to byte {@code targetOffset}
   */
  public void pack(
      MemorySegment source, long from, long to, MemorySegment target, long targetOffset) {
    long rowBytes = type.bytes(in);
    int[] quads = new int[8];
    for (long row = from; row < to; row += lanes) {
      long group = targetOffset + (row - from) / lanes * groupBytes;
      for (int lane = 0; lane < lanes; lane++) {
        if (row + lane < to) {
          long offset = (row + lane) * rowBytes;
          for (int b = 0; b < blocks; b++) {
            packBlock(source, offset + (long) b * type.blockBytes(), target, group, b, lane, quads);
          }
        } else {
          clear(target, group, lane);
        }
      }
    }
  }

  private void clear(MemorySegment target, long group, int lane) {
    for (int b = 0; b < blocks; b++) {
      long codeBase = group + codesAt(b);
      for (int v = 0; v < blockSize / 32 * codes.vectors; v++) {
        target.set(INT, codeBase + (long) (v * lanes + lane) * 4, 0);
      }
      long meta = group + metaAt(b);
      for (int i = 0; subBlock != 0 && i < blockSize / subBlock; i++) {
        scale(target, meta, i, lane, 0);
        if (minsOffset >= 0) {
          min(target, meta + minsOffset, i, lane, 0);
        }
      }
      if (type == TensorType.MXFP4) {
        target.set(BYTE, meta + lane, (byte) 0);
      } else {
        target.set(SHORT, meta + dOffset + 2L * lane, (short) 0);
        if (hasMin) {
          target.set(SHORT, meta + dminOffset + 2L * lane, (short) 0);
        }
      }
    }
  }

  private void packBlock(
      MemorySegment s, long o, MemorySegment t, long group, int b, int lane, int[] q) {
    long codeBase = group + codesAt(b) + 4L * lane;
    int chunkBytes = codes.vectors * 4 * lanes;
    for (int c = 0; c < blockSize / 32; c++) {
      quads(s, o, c, q);
      if (codes == Codes.TWINS) {
        twins(t, codeBase + (long) (c & -2) * chunkBytes, c & 1, q);
      } else {
        store(t, codeBase + (long) c * chunkBytes, q);
      }
    }
    packMeta(s, o, t, group + metaAt(b), lane);
  }

  /** The eight quads of chunk {@code c} of the block at byte {@code o}. */
  private void quads(MemorySegment s, long o, int c, int[] q) {
    switch (type) {
      case Q8_0 -> {
        int flip = unsignedBytes ? 0x80808080 : 0;
        for (int k = 0; k < 8; k++) {
          q[k] = s.get(INT, o + 2 + 4 * k) ^ flip;
        }
      }
      case Q4_0, IQ4_NL -> halves(s, o + 2, q);
      case Q4_1 -> halves(s, o + 4, q);
      case MXFP4 -> halves(s, o + 1, q);
      case IQ4_XS -> halves(s, o + 8 + 16 * c, q);
      case Q5_0 -> fives(s, o + 2, q);
      case Q5_1 -> fives(s, o + 4, q);
      case Q4_K -> {
        for (int k = 0; k < 8; k++) {
          q[k] = s.get(INT, o + 16 + 32 * (c >> 1) + 4 * k) >>> 4 * (c & 1) & LOW4;
        }
      }
      case Q5_K -> {
        for (int k = 0; k < 8; k++) {
          int low = s.get(INT, o + 48 + 32 * (c >> 1) + 4 * k) >>> 4 * (c & 1) & LOW4;
          q[k] = low | (s.get(INT, o + 16 + 4 * k) >>> c & LOW1) << 4;
        }
      }
      case Q6_K -> {
        long low = o + 64 * (c >> 2) + 32 * (c & 1);
        long high = o + 128 + 32 * (c >> 2);
        for (int k = 0; k < 8; k++) {
          int bits = s.get(INT, low + 4 * k) >>> 4 * (c >> 1 & 1) & LOW4;
          q[k] = bits | (s.get(INT, high + 4 * k) >>> 2 * (c & 3) & LOW2) << 4;
        }
      }
      case Q2_K -> {
        for (int k = 0; k < 8; k++) {
          q[k] = s.get(INT, o + 16 + 32 * (c >> 2) + 4 * k) >>> 2 * (c & 3) & LOW2;
        }
      }
      case Q3_K -> {
        for (int k = 0; k < 8; k++) {
          int low = s.get(INT, o + 32 + 32 * (c >> 2) + 4 * k) >>> 2 * (c & 3) & LOW2;
          q[k] = low | (s.get(INT, o + 4 * k) >>> c & LOW1) << 2;
        }
      }
      default -> throw new AssertionError(type);
    }
  }

  /** 16 bytes: low nibbles are the first 16 elements, high nibbles the rest. */
  private static void halves(MemorySegment s, long o, int[] q) {
    for (int k = 0; k < 4; k++) {
      int v = s.get(INT, o + 4 * k);
      q[k] = v & LOW4;
      q[k + 4] = v >>> 4 & LOW4;
    }
  }

  private static void fives(MemorySegment s, long o, int[] q) {
    int high = s.get(INT, o);
    halves(s, o + 4, q);
    for (int k = 0; k < 8; k++) {
      // Spreads four bits over four bytes.
      q[k] |= ((high >>> 4 * k & 15) * 0x00204081 & LOW1) << 4;
    }
  }

  private void twins(MemorySegment t, long o, int which, int[] q) {
    for (int k = 0; k < 8; k++) {
      long at = o + 4L * k * lanes;
      t.set(INT, at, which == 0 ? q[k] : t.get(INT, at) | q[k] << 4);
    }
  }

  private void store(MemorySegment t, long o, int[] q) {
    int stride = 4 * lanes;
    switch (codes) {
      case BYTES -> {
        for (int k = 0; k < 8; k++) {
          t.set(INT, o + (long) k * stride, q[k]);
        }
      }
      case NIBBLES, FIVE, SIX -> {
        for (int j = 0; j < 4; j++) {
          t.set(INT, o + (long) j * stride, q[2 * j] & LOW4 | (q[2 * j + 1] & LOW4) << 4);
        }
        if (codes == Codes.FIVE) {
          int high = 0;
          for (int k = 0; k < 8; k++) {
            high |= (q[k] >>> 4 & LOW1) << k;
          }
          t.set(INT, o + 4L * stride, high);
        } else if (codes == Codes.SIX) {
          t.set(INT, o + 4L * stride, twoBits(q, 0, 4));
          t.set(INT, o + 5L * stride, twoBits(q, 4, 4));
        }
      }
      case TWINS -> throw new AssertionError("two chunks");
      case TWO, THREE -> {
        t.set(INT, o, twoBits(q, 0, 0));
        t.set(INT, o + stride, twoBits(q, 4, 0));
        if (codes == Codes.THREE) {
          int high = 0;
          for (int k = 0; k < 8; k++) {
            high |= (q[k] >>> 2 & LOW1) << k;
          }
          t.set(INT, o + 2L * stride, high);
        }
      }
    }
  }

  /** Two bits of each of four quads in one word. */
  private static int twoBits(int[] q, int from, int shift) {
    int v = 0;
    for (int i = 0; i < 4; i++) {
      v |= (q[from + i] >>> shift & LOW2) << 2 * i;
    }
    return v;
  }

  private void packMeta(MemorySegment s, long o, MemorySegment t, long meta, int lane) {
    long d = meta + dOffset + 2L * lane;
    switch (type) {
      case MXFP4 -> t.set(BYTE, meta + lane, s.get(BYTE, o));
      case Q2_K -> {
        for (int i = 0; i < 16; i++) {
          int v = s.get(BYTE, o + i);
          scale(t, meta, i, lane, v & 15);
          min(t, meta + minsOffset, i, lane, v >> 4 & 15);
        }
        t.set(SHORT, d, s.get(SHORT, o + 80));
        t.set(SHORT, meta + dminOffset + 2L * lane, s.get(SHORT, o + 82));
      }
      case Q3_K -> {
        for (int i = 0; i < 16; i++) {
          int low = s.get(BYTE, o + 96 + (i & 7)) >> (i < 8 ? 0 : 4) & 15;
          int high = s.get(BYTE, o + 104 + (i & 3)) >> 2 * (i >> 2) & 3;
          scale(t, meta, i, lane, (low | high << 4) - 32);
        }
        t.set(SHORT, d, s.get(SHORT, o + 108));
      }
      case Q4_K, Q5_K -> {
        for (int j = 0; j < 8; j++) {
          int scale;
          int min;
          if (j < 4) {
            scale = s.get(BYTE, o + 4 + j) & 63;
            min = s.get(BYTE, o + 8 + j) & 63;
          } else {
            int b = s.get(BYTE, o + 8 + j) & 255;
            scale = b & 15 | (s.get(BYTE, o + j) & 255) >> 6 << 4;
            min = b >> 4 | (s.get(BYTE, o + 4 + j) & 255) >> 6 << 4;
          }
          scale(t, meta, j, lane, scale);
          min(t, meta + minsOffset, j, lane, min);
        }
        t.set(SHORT, d, s.get(SHORT, o));
        t.set(SHORT, meta + dminOffset + 2L * lane, s.get(SHORT, o + 2));
      }
      case Q6_K -> {
        for (int i = 0; i < 16; i++) {
          scale(t, meta, i, lane, s.get(BYTE, o + 192 + i));
        }
        t.set(SHORT, d, s.get(SHORT, o + 208));
      }
      case IQ4_XS -> {
        int high = s.get(SHORT, o + 2);
        for (int i = 0; i < 8; i++) {
          int low = s.get(BYTE, o + 4 + (i >> 1)) >> 4 * (i & 1) & 15;
          scale(t, meta, i, lane, (low | (high >> 2 * i & 3) << 4) - 32);
        }
        t.set(SHORT, d, s.get(SHORT, o));
      }
      default -> {
        t.set(SHORT, d, s.get(SHORT, o));
        if (hasMin) {
          t.set(SHORT, meta + dminOffset + 2L * lane, s.get(SHORT, o + 2));
        }
      }
    }
  }

  private void scale(MemorySegment t, long meta, int i, int lane, int value) {
    long scales = meta - codesPerBlock - scaleBytes;
    if (unsignedBytes) {
      t.set(BYTE, scales + (long) i * lanes + lane, (byte) value);
    } else {
      min(t, scales, i, lane, value);
    }
  }

  private void min(MemorySegment t, long base, int i, int lane, int value) {
    t.set(BYTE, base + (long) ((i >> 1) * lanes + lane) * 2 + (i & 1), (byte) value);
  }
}
