package io.fletch.graph.cpu.x86;

import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;

/**
 * The packed form of 2:4 matrices with Q8_0 or Q4_0 values: as many rows as a vector has 32-bit
 * lanes are interleaved, a lane per row, so that the four stored values of eight columns are one
 * 32-bit number. No lane is ever added to another, and a row's choice of activations is a shuffle
 * within its lane.
 *
 * <p>A block of 32 stored values (64 columns) of such a group of rows is eight <em>planes</em> of
 * four values. Its bytes:
 *
 * <ol>
 *   <li>codes: Q8_0 a vector per plane; Q4_0 a vector per two planes, the even one in the lower
 *       halves of bytes;
 *   <li>indices: two vectors, each of four planes; bits {@code 2 q} and {@code 2 q + 1} of byte
 *       {@code k} are the column, within its group of four, of value {@code k} of plane {@code q};
 *   <li>scales: a half per row.
 * </ol>
 *
 * Codes and indices of two blocks come first, then the scales of both, so that vectors are aligned;
 * a last odd block is alone. The bits per weight are those of the file.
 */
public final class TwoOfFourLayout {
  private static final ValueLayout.OfInt INT =
      ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfShort SHORT =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private static final int LOW4 = 0x0f0f0f0f;

  final TensorType type;
  final int in;
  final int lanes;

  /** Blocks of a row. */
  final int blocks;

  /** Bytes of codes of a block. */
  final int codeBytes;

  /** Bytes of codes and indices of a block. */
  final int blockBytes;

  /** Bytes of scales of a block. */
  final int scaleBytes;

  private final int flip;
  private final long groupBytes;

  /**
   * The layout for rows of {@code in} columns.
   *
   * @param type Q8_0 or Q4_0
   * @param in a multiple of 64
   */
  public TwoOfFourLayout(TensorType type, int in, Isa isa) {
    if (!supports(type) || in <= 0 || in % 64 != 0) {
      throw new IllegalArgumentException("no packed form: type=" + type + " in=" + in);
    }
    this.type = type;
    this.in = in;
    lanes = isa.lanes();
    blocks = in / 64;
    codeBytes = (type == TensorType.Q8_0 ? 8 : 4) * 4 * lanes;
    blockBytes = codeBytes + 2 * 4 * lanes;
    scaleBytes = 2 * lanes;
    flip = type == TensorType.Q8_0 && isa.vnni() ? 0x80808080 : 0;
    groupBytes = (long) blocks * (blockBytes + scaleBytes) + 63 & -64;
  }

  /** Whether a type of values has a packed form. */
  public static boolean supports(TensorType type) {
    return type == TensorType.Q8_0 || type == TensorType.Q4_0;
  }

  /** Rows of a group. */
  public int lanes() {
    return lanes;
  }

  /** Bytes of a group of rows, a multiple of 64. */
  public long groupBytes() {
    return groupBytes;
  }

  /** Bytes of a matrix of {@code out} rows. */
  public long bytes(long out) {
    return Math.multiplyExact((out + lanes - 1) / lanes, groupBytes);
  }

  private boolean paired(int block) {
    return (block | 1) < blocks;
  }

  /** Offset of the codes of a block within a group. */
  private long codesAt(int block) {
    return (long) (block & -2) * (blockBytes + scaleBytes) + (long) (block & 1) * blockBytes;
  }

  /** Offset of the scales of a block within a group. */
  private long scalesAt(int block) {
    long pair = (long) (block & -2) * (blockBytes + scaleBytes);
    return paired(block)
        ? pair + 2L * blockBytes + (long) (block & 1) * scaleBytes
        : pair + blockBytes;
  }

  /**
   * Packs rows {@code [from, to)}; lanes without a row keep what is there.
   *
   * @param values the matrix's values, from row 0 on
   * @param index its index, from row 0 on, {@code in / 8} bytes per row
   * @param from first row of a group, which goes to byte {@code offset} of the target
   */
  public void pack(
      MemorySegment values,
      MemorySegment index,
      long from,
      long to,
      MemorySegment target,
      long offset) {
    long rowBytes = type.bytes(in / 2);
    for (long row = from; row < to; row++) {
      int lane = (int) (row - from) % lanes;
      long group = offset + (row - from) / lanes * groupBytes;
      long at = row * rowBytes;
      long idx = row * (in / 8);
      for (int b = 0; b < blocks; b++) {
        long codes = group + codesAt(b) + 4L * lane;
        packCodes(values, at + 2, target, codes);
        for (int i = 0; i < 2; i++) {
          int bits = transposed(index.get(INT, idx + 4 * i));
          target.set(INT, codes + codeBytes + (long) i * 4 * lanes, bits);
        }
        target.set(SHORT, group + scalesAt(b) + 2L * lane, values.get(SHORT, at));
        at += type.blockBytes();
        idx += 8;
      }
    }
  }

  private void packCodes(MemorySegment s, long at, MemorySegment t, long to) {
    int stride = 4 * lanes;
    if (type == TensorType.Q8_0) {
      for (int p = 0; p < 8; p++) {
        t.set(INT, to + (long) p * stride, s.get(INT, at + 4 * p) ^ flip);
      }
      return;
    }
    // Sixteen bytes: lower halves are values 0 to 15, upper ones the rest.
    for (int i = 0; i < 2; i++) {
      int even = s.get(INT, at + 8 * i);
      int odd = s.get(INT, at + 8 * i + 4);
      t.set(INT, to + (long) i * stride, even & LOW4 | (odd & LOW4) << 4);
      t.set(INT, to + (long) (i + 2) * stride, even >>> 4 & LOW4 | odd & ~LOW4);
    }
  }

  /** A four by four matrix of two-bit numbers, a row per byte, transposed. */
  private static int transposed(int x) {
    int t = (x ^ x >>> 6) & 0x00cc00cc;
    x ^= t ^ t << 6;
    t = (x ^ x >>> 12) & 0x0000f0f0;
    return x ^ t ^ t << 12;
  }
}
