package io.fletch.graph.cuda;

import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Optional;

/**
 * How a matrix lies on the device: its codes and scales are those of the file, in the order in
 * which the lanes of a warp need them as fragments of {@code mma.m16n8k16}. Immutable.
 *
 * <p>Sixteen rows are a tile, 128 columns a chunk of four groups; rows and columns past the matrix
 * are zeros. A tile is one piece of memory: the low bits of its codes, chunk by chunk, then the
 * high bits, the scales and the scales of super-blocks, each chunk by chunk. With {@code g = lane /
 * 4, t = lane % 4} a lane has, of rows g and g + 8, the columns {@code 8p + 2t} and {@code 8p + 2t
 * + 1} of each group, p from 0 to 3: the pairs of the two products of a group.
 *
 * <table>
 * <caption>Places in a chunk; h is 0 for row g and 1 for row g + 8, j the group</caption>
 * <tr><th>codes</th><th>word of a lane</th><th>pair p in it</th></tr>
 * <tr><td>2 bits</td><td>[h][lane][j / 2]</td><td>bits 8 (j % 2) + 2p and 16 more</td></tr>
 * <tr><td>4 bits</td><td>[h][lane][j]</td><td>bits 4p and 4p + 16; of types with a table the byte
 * p</td></tr>
 * <tr><td>8 bits</td><td>[h][j / 2][lane][j % 2][p / 2]</td><td>bytes 2 (p % 2) and the next</td>
 * </tr>
 * <tr><td>16 bits</td><td>[h][j][lane][p]</td><td>both halves</td></tr>
 * <tr><td>third or fifth bit</td><td>[h][lane]</td><td>bits 4j + p and 16 more</td></tr>
 * <tr><td>fifth and sixth</td><td>[h][lane][j / 2]</td><td>bits 8 (j % 2) + 2p and 16 more</td>
 * </tr>
 * <tr><td>scales</td><td>[row][j]</td><td>as {@link Scales} says</td></tr>
 * </table>
 *
 * <p>Of a 2:4 matrix the codes of kept elements lie as fragments of {@code mma.sp.m16n8k32}: a
 * group has 16 of them in each row and one product, the lane has its kept columns {@code 8p + 2t}
 * and the next, p 0 and 1: those of two groups lie as those of one group of a dense matrix whose
 * chunks have two. After the codes come the places: a word of a lane for groups {@code 2i} and
 * {@code 2i + 1}, i 0 and 1, of which lanes with {@code t < 2} have the first one's, the others the
 * second one's; two bits per kept element, those of row g and then of row g + 8, of half a group.
 * Padding has the places 0 and 1.
 *
 * <table>
 * <caption>Places in a chunk of a 2:4 matrix</caption>
 * <tr><th>codes</th><th>word of a lane</th><th>pair p in it</th></tr>
 * <tr><td>4 bits</td><td>[h][lane][j / 2]</td><td>bits 8 (j % 2) + 4p and 16 more</td></tr>
 * <tr><td>8 bits</td><td>[h][lane][j]</td><td>bytes 2p and the next</td></tr>
 * <tr><td>16 bits</td><td>[h][j / 2][lane][j % 2][p]</td><td>both halves</td></tr>
 * <tr><td>places</td><td>[lane][j / 2]</td><td></td></tr>
 * </table>
 */
final class PackedMatrix {
  static final int TILE = 16;
  static final int CHUNK = 128;
  static final int GROUP = 32;

  /** What multiplies the codes of a group. */
  enum Scales {
    /** Nothing: the codes are numbers. */
    NONE(0, false),
    /** A half per group. */
    HALF(8, false),
    /** A half per two groups. */
    HALF_PAIRS(4, false),
    /** A bfloat16 per group. */
    BFLOAT(8, false),
    /** Two halves per group: factor and offset. */
    HALF_OFFSET(16, false),
    /**
     * A byte per group for the factor, four groups, then a byte each for the offset; in the
     * super-block two halves that multiply them, the second one negated.
     */
    BYTE_OFFSET(8, true),
    /** A signed byte per half group; in the super-block a float that multiplies them. */
    HALF_GROUPS(8, true),
    /** A signed byte per group; in the super-block a float that multiplies them. */
    BYTES(4, true),
    /**
     * A byte per half group, four bits for the factor, then four for the offset; in the super-block
     * two halves that multiply them, the second one negated.
     */
    NIBBLE_OFFSET(8, true);

    final int rowBytes;
    final boolean superBlocks;

    Scales(int rowBytes, boolean superBlocks) {
      this.rowBytes = rowBytes;
      this.superBlocks = superBlocks;
    }
  }

  /** The parts of a type: bits of a code, what is subtracted from it, its table, its scales. */
  private record Format(int bits, int zero, byte[] table, Scales scales) {}

  private static final byte[] NO_TABLE = {};

  /** Values of the codes of IQ4_NL and IQ4_XS (specs weights 2.2). */
  private static final byte[] IQ4 = Dequantizer.iq4Values();

  /** Twice the values of the codes of MXFP4. */
  private static final byte[] E2M1 = Dequantizer.e2m1DoubledValues();

  private static final VarHandle INT =
      MethodHandles.byteArrayViewVarHandle(int[].class, ByteOrder.LITTLE_ENDIAN);
  private static final VarHandle SHORT =
      MethodHandles.byteArrayViewVarHandle(short[].class, ByteOrder.LITTLE_ENDIAN);
  private static final VarHandle FLOAT =
      MethodHandles.byteArrayViewVarHandle(float[].class, ByteOrder.LITTLE_ENDIAN);

  private final TensorType type;
  private final Format format;
  private final int rows;
  private final int cols;
  private final boolean sparse;

  private PackedMatrix(TensorType type, Format format, int rows, int cols, boolean sparse) {
    this.sparse = sparse;
    this.type = type;
    this.format = format;
    this.rows = rows;
    this.cols = cols;
  }

  private static Optional<Format> format(TensorType type) {
    Format f =
        switch (type) {
          case F16, BF16 -> new Format(16, 0, NO_TABLE, Scales.NONE);
          case Q8_0 -> new Format(8, 128, NO_TABLE, Scales.HALF);
          case Q4_0 -> new Format(4, 8, NO_TABLE, Scales.HALF);
          case Q4_1 -> new Format(4, 0, NO_TABLE, Scales.HALF_OFFSET);
          case Q5_0 -> new Format(5, 16, NO_TABLE, Scales.HALF);
          case Q5_1 -> new Format(5, 0, NO_TABLE, Scales.HALF_OFFSET);
          case Q2_K -> new Format(2, 0, NO_TABLE, Scales.NIBBLE_OFFSET);
          case Q3_K -> new Format(3, 4, NO_TABLE, Scales.HALF_GROUPS);
          case Q4_K -> new Format(4, 0, NO_TABLE, Scales.BYTE_OFFSET);
          case Q5_K -> new Format(5, 0, NO_TABLE, Scales.BYTE_OFFSET);
          case Q6_K -> new Format(6, 32, NO_TABLE, Scales.HALF_GROUPS);
          case IQ4_NL -> new Format(4, 0, IQ4, Scales.HALF);
          case IQ4_XS -> new Format(4, 0, IQ4, Scales.BYTES);
          case MXFP4 -> new Format(4, 0, E2M1, Scales.BFLOAT);
          default -> null;
        };
    return Optional.ofNullable(f);
  }

  /** Whether matrices of a type have a packed form. */
  static boolean takes(TensorType type) {
    return format(type).isPresent();
  }

  /** The packed form of a matrix. */
  static PackedMatrix of(TensorType type, long rows, long cols) {
    Format f =
        format(type).orElseThrow(() -> new IllegalArgumentException("no packed form of " + type));
    return new PackedMatrix(type, f, Math.toIntExact(rows), Math.toIntExact(cols), false);
  }

  /** The packed form of a sparse matrix, if it has one: 2:4 with F16, BF16, Q8_0 or Q4_0 values. */
  static Optional<PackedMatrix> of(SparseMatrix m) {
    if (!(m instanceof SparseMatrix.TwoOfFour)) {
      return Optional.empty();
    }
    TensorType type = m.values().type();
    Format f =
        switch (type) {
          case F16, BF16 -> format(type).orElseThrow();
          case Q8_0 -> new Format(8, 128, NO_TABLE, Scales.HALF_PAIRS);
          case Q4_0 -> new Format(4, 8, NO_TABLE, Scales.HALF_PAIRS);
          default -> null;
        };
    return Optional.ofNullable(f)
        .map(x ->
            new PackedMatrix(type, x, Math.toIntExact(m.out()), Math.toIntExact(m.in()), true));
  }

  /** The packed form of a product's matrix, if it has one. */
  static Optional<PackedMatrix> of(LinearOp weight) {
    return switch (weight) {
      case LinearOp.Dense d when takes(d.weight().type()) ->
          Optional.of(of(d.weight().type(), d.weight().rows(), d.weight().cols()));
      case LinearOp.Sparse s -> of(s.matrix());
      default -> Optional.empty();
    };
  }

  /** Whether this is a 2:4 matrix, {@link #type} that of its kept elements. */
  boolean isSparse() {
    return sparse;
  }

  /** What kernels are called by. */
  String name() {
    return sparse ? "2of4_" + type : type.toString();
  }

  TensorType type() {
    return type;
  }

  int rows() {
    return rows;
  }

  int cols() {
    return cols;
  }

  int tiles() {
    return (rows + TILE - 1) / TILE;
  }

  int chunks() {
    return (cols + CHUNK - 1) / CHUNK;
  }

  /** Bits of a code: 2 to 6, 8 or 16. */
  int bits() {
    return format.bits;
  }

  /** Bits of a code that lie in the first part. */
  int lowBits() {
    return format.bits < 4 ? 2 : format.bits < 8 ? 4 : format.bits;
  }

  /** Codes of a row. */
  private int rowCodes() {
    return sparse ? cols / 2 : cols;
  }

  /** Groups of 32 codes in a chunk. */
  private int chunkGroups() {
    return sparse ? 2 : 4;
  }

  /** Bits of codes per column. */
  int columnBits() {
    return sparse ? format.bits / 2 : format.bits;
  }

  /** Bits per column that lie in the first part. */
  int lowColumnBits() {
    return sparse ? lowBits() / 2 : lowBits();
  }

  /** What codes count from. */
  int zero() {
    return format.zero;
  }

  Scales scales() {
    return format.scales;
  }

  /** Values of the codes, or empty. */
  byte[] table() {
    return format.table.clone();
  }

  boolean hasTable() {
    return format.table.length > 0;
  }

  /** Bits of a code that lie in the second part. */
  int highBits() {
    return format.bits - lowBits();
  }

  /** Whether groups have an offset, which the sums of their activations are multiplied by. */
  boolean hasOffsets() {
    return format.scales == Scales.HALF_OFFSET || format.scales == Scales.BYTE_OFFSET;
  }

  /** Bytes of the low bits of a chunk. */
  int lowBytes() {
    return TILE * CHUNK / 8 * lowColumnBits();
  }

  /** Bytes of the high bits of a chunk, or of the places of kept elements. */
  int highBytes() {
    return TILE * CHUNK / 8 * (sparse ? 1 : highBits());
  }

  int highAt() {
    return chunks() * lowBytes();
  }

  int scaleBytes() {
    return TILE * format.scales.rowBytes;
  }

  int scalesAt() {
    return highAt() + chunks() * highBytes();
  }

  int supersAt() {
    return scalesAt() + chunks() * scaleBytes();
  }

  /** Bytes of a tile, a multiple of 16. */
  int tileBytes() {
    return supersAt() + (format.scales.superBlocks ? (chunks() + 1) / 2 * TILE * 4 : 0);
  }

  /** Bytes on the device. */
  long bytes() {
    return (long) tiles() * tileBytes();
  }

  /**
   * Writes a tile of the matrix; any thread, as many as there are buffers.
   *
   * @param source the matrix, a tensor or {@link SparseMatrix.TwoOfFour}
   */
  void pack(Object source, int tile, byte[] to) {
    Arrays.fill(to, 0, tileBytes(), (byte) 0);
    Tensor values = source instanceof SparseMatrix m ? m.values() : (Tensor) source;
    byte[] row = new byte[Math.toIntExact(values.rowBytes())];
    int[] codes = new int[GROUP];
    for (int r = 0; r < Math.min(TILE, rows - TILE * tile); r++) {
      read(values, tile, r, row);
      for (int group = 0; GROUP * group < rowCodes(); group++) {
        codes(row, group, codes);
        put(codes, r, group, to);
        if (format.scales != Scales.NONE) {
          scale(row, group, r, to);
        }
      }
    }
    if (source instanceof SparseMatrix.TwoOfFour m) {
      packPlaces(m.index(), tile, to);
    }
  }

  private static void read(Tensor from, int tile, int r, byte[] row) {
    long at = ((long) TILE * tile + r) * row.length;
    MemorySegment.copy(from.segment(), ValueLayout.JAVA_BYTE, at, row, 0, row.length);
  }

  private void packPlaces(Tensor index, int tile, byte[] to) {
    // Equal places are not allowed, so rows and columns past the last ones need some, too.
    Arrays.fill(to, highAt(), scalesAt(), (byte) 0x44);
    byte[] places = new byte[Math.toIntExact(index.dim(1))];
    for (int r = 0; r < Math.min(TILE, rows - TILE * tile); r++) {
      read(index, tile, r, places);
      for (int four = 0; 4 * four < cols; four++) {
        put(places[four / 2] >> four % 2 * 4 & 15, r, four, to);
      }
    }
  }

  /** The places of the two elements kept of four columns. */
  private void put(int nibble, int r, int four, byte[] to) {
    int group = four / 8;
    int j = group % 4;
    int lane = r % 8 * 4 + j % 2 * 2 + four % 8 / 4;
    int bit = r / 8 * 16 + four % 4 * 4;
    int at = highAt() + group / 4 * highBytes() + lane * 8 + j / 2 * 4 + bit / 8;
    int shift = bit % 8;
    to[at] = (byte) (to[at] & ~(15 << shift) | nibble << shift);
  }

  /** A group of codes; of a 2:4 matrix those kept of two groups of columns. */
  private void put(int[] c, int r, int group, byte[] to) {
    int groups = chunkGroups();
    int chunk = group / groups;
    int j = group % groups;
    int half = r / 8;
    int low = chunk * lowBytes();
    for (int t = 0; t < 4; t++) {
      int lane = r % 8 * 4 + t;
      if (format.bits == 16) {
        for (int p = 0; p < 4; p++) {
          int word = c[8 * p + 2 * t] | c[8 * p + 2 * t + 1] << 16;
          INT.set(to, low + (half * groups + j) * 512 + lane * 16 + 4 * p, word);
        }
      } else if (format.bits == 8) {
        int at = low + (half * groups / 2 + j / 2) * 512 + lane * 16 + j % 2 * 8;
        for (int p = 0; p < 4; p++) {
          SHORT.set(to, at + 2 * p, (short) (c[8 * p + 2 * t] | c[8 * p + 2 * t + 1] << 8));
        }
      } else {
        int word = 0;
        int high = 0;
        for (int p = 0; p < 4; p++) {
          int first = c[8 * p + 2 * t];
          int second = c[8 * p + 2 * t + 1];
          int two = j % 2 * 8 + 2 * p;
          if (hasTable()) {
            word |= (first | second << 4) << 8 * p;
          } else if (lowBits() == 4) {
            word |= (first & 15) << 4 * p | (second & 15) << 4 * p + 16;
          } else {
            word |= (first & 3) << two | (second & 3) << two + 16;
          }
          int place = highBits() == 1 ? 4 * j + p : two;
          high |= first >> lowBits() << place | second >> lowBits() << place + 16;
        }
        if (lowBits() == 4) {
          INT.set(to, low + ((half * 32 + lane) * groups + j) * 4, word);
        } else {
          add(to, low + half * 256 + lane * 8 + j / 2 * 4, word);
        }
        if (highBits() > 0) {
          int at = highAt() + chunk * highBytes() + (half * 32 + lane) * 4 * highBits();
          add(to, at + (highBits() == 2 ? j / 2 * 4 : 0), high);
        }
      }
    }
  }

  private static void add(byte[] to, int at, int bits) {
    INT.set(to, at, (int) INT.get(to, at) | bits);
  }

  private static int u8(byte[] b, int at) {
    return Byte.toUnsignedInt(b[at]);
  }

  private static int nibble(byte[] b, int at, int j) {
    return j < 16 ? b[at + j] & 15 : b[at + j - 16] >> 4 & 15;
  }

  /** A group of codes, without sign (specs weights 2.2). */
  private void codes(byte[] row, int group, int[] c) {
    int n = Math.min(GROUP, rowCodes() - GROUP * group);
    int blocks = type.blockSize() / GROUP;
    int block = blocks == 0 ? 0 : group / blocks * type.blockBytes();
    int s = blocks == 0 ? 0 : group % blocks;
    for (int j = 0; j < n; j++) {
      c[j] =
          switch (type) {
            case F16, BF16 -> (short) SHORT.get(row, 2 * (GROUP * group + j)) & 0xffff;
            case Q8_0 -> row[block + 2 + j] + 128;
            case Q4_0, IQ4_NL -> nibble(row, block + 2, j);
            case Q4_1 -> nibble(row, block + 4, j);
            case Q5_0 -> nibble(row, block + 6, j) | fifth((int) INT.get(row, block + 2), j);
            case Q5_1 -> nibble(row, block + 8, j) | fifth((int) INT.get(row, block + 4), j);
            case MXFP4 -> nibble(row, block + 1, j);
            case IQ4_XS -> nibble(row, block + 8 + 16 * s, j);
            case Q2_K -> twoBits(row, block + 16, s, j);
            case Q3_K -> twoBits(row, block + 32, s, j) | (u8(row, block + j) >> s & 1) << 2;
            case Q4_K -> u8(row, block + 16 + s / 2 * 32 + j) >> s % 2 * 4 & 15;
            case Q5_K ->
                u8(row, block + 48 + s / 2 * 32 + j) >> s % 2 * 4 & 15
                    | (u8(row, block + 16 + j) >> s & 1) << 4;
            case Q6_K ->
                u8(row, block + s / 4 * 64 + s % 2 * 32 + j) >> s % 4 / 2 * 4 & 15
                    | (u8(row, block + 128 + s / 4 * 32 + j) >> s % 4 * 2 & 3) << 4;
            default -> throw new IllegalStateException("no codes of " + type);
          };
    }
    Arrays.fill(c, n, GROUP, 0);
  }

  /** Code j of group s of eight in 64 bytes: each 32 bytes have four groups. */
  private static int twoBits(byte[] b, int at, int s, int j) {
    return u8(b, at + s / 4 * 32 + j) >> s % 4 * 2 & 3;
  }

  private static int fifth(int bits, int j) {
    return (bits >>> j & 1) << 4;
  }

  private void scale(byte[] row, int group, int r, byte[] to) {
    int blocks = type.blockSize() / GROUP;
    int block = group / blocks * type.blockBytes();
    int s = group % blocks;
    int j = group % chunkGroups();
    int at = scalesAt() + group / chunkGroups() * scaleBytes() + r * format.scales.rowBytes;
    int sup = supersAt() + (group / 8 * TILE + r) * 4;
    switch (type) {
      case Q8_0, Q4_0, Q5_0, IQ4_NL -> SHORT.set(to, at + 2 * j, SHORT.get(row, block));
      case Q4_1, Q5_1 -> INT.set(to, at + 4 * j, INT.get(row, block));
      case MXFP4 -> {
        // Half of 2^(e - 127), since the table has the doubles: subnormal for the least two.
        int e = u8(row, block);
        SHORT.set(to, at + 2 * j, (short) (e < 2 ? 0x20 << e : e - 1 << 7));
      }
      case Q2_K -> {
        SHORT.set(to, at + 2 * j, SHORT.get(row, block + 2 * s));
        INT.set(to, sup, (int) INT.get(row, block + 80) ^ 0x8000_0000);
      }
      case Q3_K -> {
        for (int half = 0; half < 2; half++) {
          to[at + 2 * j + half] = (byte) (sixteenScale(row, block + 96, 2 * s + half) - 32);
        }
        FLOAT.set(to, sup, Float.float16ToFloat((short) SHORT.get(row, block + 108)));
      }
      case Q4_K, Q5_K -> {
        to[at + j] = (byte) sixBits(row, block + 4, s);
        to[at + 4 + j] = (byte) sixBitsOffset(row, block + 4, s);
        INT.set(to, sup, (int) INT.get(row, block) ^ 0x8000_0000);
      }
      case Q6_K -> {
        to[at + 2 * j] = row[block + 192 + 2 * s];
        to[at + 2 * j + 1] = row[block + 192 + 2 * s + 1];
        FLOAT.set(to, sup, Float.float16ToFloat((short) SHORT.get(row, block + 208)));
      }
      case IQ4_XS -> {
        int low = u8(row, block + 4 + s / 2) >> s % 2 * 4 & 15;
        int high = (short) SHORT.get(row, block + 2) >> 2 * s & 3;
        to[at + j] = (byte) ((low | high << 4) - 32);
        FLOAT.set(to, sup, Float.float16ToFloat((short) SHORT.get(row, block)));
      }
      default -> throw new IllegalStateException("no scales of " + type);
    }
  }

  /** Scale {@code s} of 16 in the 12 bytes of Q3_K. */
  private static int sixteenScale(byte[] b, int at, int s) {
    int low = s < 8 ? b[at + s] & 15 : u8(b, at + s - 8) >> 4;
    return low | (u8(b, at + 8 + s % 4) >> s / 4 * 2 & 3) << 4;
  }

  /** Scale {@code s} of 8 in the 12 bytes that Q4_K and Q5_K share. */
  private static int sixBits(byte[] b, int at, int s) {
    return s < 4 ? b[at + s] & 63 : b[at + s + 4] & 15 | (u8(b, at + s - 4) >> 6) << 4;
  }

  private static int sixBitsOffset(byte[] b, int at, int s) {
    return s < 4 ? b[at + s + 4] & 63 : u8(b, at + s + 4) >> 4 | (u8(b, at + s) >> 6) << 4;
  }
}
