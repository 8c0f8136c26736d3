package io.fletch.graph.cuda;

import static io.fletch.ffm.ptx.PtxType.B16;
import static io.fletch.ffm.ptx.PtxType.F32;
import static io.fletch.ffm.ptx.PtxType.U32;
import static io.fletch.ffm.ptx.PtxType.U64;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.ffm.ptx.PtxRegister;
import io.fletch.ffm.ptx.PtxType;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Optional;
import java.util.Set;

/**
 * How a bitmap lies on the device, and the loop of its product: a bit per element and the kept
 * values or codes as the file has them. Parts begin at multiples of 16 bytes: where each row's
 * values begin (32 bits, counted in values, nibbles of 4-bit codes), the bits (words of 32 columns,
 * bit k is column k; bits past the last column are 0), scales of codes, values, 8 bytes more
 * because codes are read in pairs of words.
 *
 * <p>A warp has a row of the matrix and takes 32 words of bits at a time: a lane counts those of
 * one word, a prefix sum over the lanes says where the values of each word begin. Then it goes over
 * the columns, 128 at a time, four a lane, whose values begin after those of the bits below.
 * Elements that are not kept count as zeros, so activations that are not finite have the effect
 * that they have with the dense matrix.
 *
 * @param kind of the values
 * @param out rows
 * @param in columns
 * @param units values, bytes or nibbles of all rows
 */
record BitmapMatrix(Kind kind, int out, int in, long units) implements SparseForm {
  /** What values are. */
  enum Kind {
    F32(32),
    F16(16),
    BF16(16),
    /** Signed bytes, with scales. */
    CODES8(8),
    /** Codes plus 8; those of every 64 columns begin with a byte. */
    CODES4(4);

    final int bits;

    Kind(int bits) {
      this.bits = bits;
    }

    boolean isCode() {
      return bits < 16;
    }
  }

  private static final Set<TensorType> FLOATS =
      Set.of(TensorType.F32, TensorType.F16, TensorType.BF16);

  private static final int WINDOW = SparseMatrix.BitmapCodes.WINDOW;

  /** Columns of a step of a warp. */
  private static final int STEP = 128;

  private static final String SPACE = "global.nc";

  /** The form of a matrix; empty for those that are no bitmaps and for values in blocks. */
  static Optional<BitmapMatrix> of(SparseMatrix m) {
    BitmapMatrix layout =
        switch (m) {
          case SparseMatrix.Bitmap b when FLOATS.contains(b.values().type()) ->
              of(m, Kind.valueOf(b.values().type().name()), b.kept());
          case SparseMatrix.BitmapCodes c -> {
            long bytes = c.codes().elements();
            yield of(m, c.bits() == 8 ? Kind.CODES8 : Kind.CODES4, bytes * 8 / c.bits());
          }
          default -> null;
        };
    return Optional.ofNullable(layout);
  }

  private static BitmapMatrix of(SparseMatrix m, Kind kind, long units) {
    return new BitmapMatrix(
        kind, Math.toIntExact(m.out()), Math.toIntExact(m.in()), SparseForm.checkKept(units));
  }

  /** Words of bits of a row. */
  private int words() {
    return (in + 31) / 32;
  }

  private int windows() {
    return (in + WINDOW - 1) / WINDOW;
  }

  private long bitsAt() {
    return SparseForm.aligned(4L * out);
  }

  private long scalesAt() {
    return SparseForm.aligned(bitsAt() + 4L * out * words());
  }

  private long valuesAt() {
    return kind.isCode() ? SparseForm.aligned(scalesAt() + 2L * out * windows()) : scalesAt();
  }

  @Override
  public long bytes() {
    return valuesAt() + (units * kind.bits + 7) / 8 + 8;
  }

  @Override
  public String name() {
    return switch (kind) {
      case CODES8 -> "sparse_bitmap_Q8";
      case CODES4 -> "sparse_bitmap_Q4";
      default -> "sparse_bitmap_" + kind;
    };
  }

  @Override
  public MemorySegment fill(SparseMatrix m, Arena arena) {
    MemorySegment to = arena.allocate(bytes(), 16);
    Tensor mask = m.tensors().get(0);
    Tensor starts = m.tensors().get(1);
    long width = mask.dim(1);
    int unitsOfStart = kind == Kind.CODES4 ? 2 : 1;
    for (int r = 0; r < out; r++) {
      long start = starts.segment().get(ValueLayout.JAVA_LONG_UNALIGNED, 8L * r) * unitsOfStart;
      to.set(ValueLayout.JAVA_INT, 4L * r, Math.toIntExact(start));
      MemorySegment.copy(mask.segment(), r * width, to, bitsAt() + 4L * r * words(), width);
    }
    if (m instanceof SparseMatrix.BitmapCodes c) {
      MemorySegment.copy(c.scales().segment(), 0, to, scalesAt(), c.scales().bytes());
    }
    MemorySegment.copy(m.values().segment(), 0, to, valuesAt(), m.values().bytes());
    return to;
  }

  @Override
  public void products(
      PtxKernel k,
      PtxRegister matrix,
      PtxRegister row,
      PtxRegister lane,
      PtxRegister[] at,
      PtxRegister[] sums) {
    PtxRegister bits = k.address(k.add(matrix, k.constant(U64, bitsAt())), row, 4 * words());
    PtxRegister scales = k.address(k.add(matrix, k.constant(U64, scalesAt())), row, 2 * windows());
    // Addresses count from the row's first word, what comes next from its first unit: one
    // instruction an address, as the base differs from warp to warp.
    PtxRegister start = k.load(SPACE, U32, k.address(matrix, row, 4), 0);
    int inWord = kind.isCode() ? 32 / kind.bits : 1;
    int shift = Integer.numberOfTrailingZeros(inWord);
    PtxRegister all = k.add(matrix, k.constant(U64, valuesAt()));
    PtxRegister values = k.address(all, k.shr(start, shift), inWord * kind.bits / 8);
    PtxRegister next = k.and(start, inWord - 1);
    // Of a lane's step: its word, the place of its four bits in it, and the bits below these.
    PtxRegister ofStep = k.shr(lane, 3);
    PtxRegister place = k.shl(k.and(lane, 7), 2);
    PtxRegister below = k.sub(k.shl(k.constant(U32, 1), place), 1);
    PtxRegister first = k.constant(U32, 0);
    k.loop(
        first,
        words(),
        32,
        () -> {
          PtxRegister mine = k.add(first, lane);
          PtxRegister there = k.compare("lt", mine, words());
          PtxRegister own = k.constant(U32, 0);
          k.loadInto(there, SPACE, U32, own, k.address(bits, mine, 4), 0);
          PtxRegister scale = k.constant(F32, 0);
          if (kind.isCode()) {
            PtxRegister half = k.constant(B16, 0);
            k.loadInto(there, SPACE, B16, half, k.address(scales, k.shr(mine, 1), 2), 0);
            k.assign(scale, Emitter.half(k, half));
          }
          PtxRegister size = size(k, own, lane);
          PtxRegister begin = k.add(next, prefix(k, size, lane));
          int steps = steps(at.length);
          PtxRegister step = k.constant(U32, 0);
          Runnable body =
              () -> {
                PtxRegister column = k.shl(k.add(k.shl(k.add(first, step), 3), lane), 2);
                for (int i = 0; i < steps; i++) {
                  PtxRegister from = k.add(k.add(ofStep, i * STEP / 32), step);
                  PtxRegister word = k.shuffleFrom(own, from);
                  PtxRegister before = k.shuffleFrom(begin, from);
                  PtxRegister value = k.add(before, k.ones(k.and(word, below)));
                  PtxRegister four = k.shr(word, place);
                  PtxRegister[] w =
                      kind.isCode()
                          ? codes(k, values, value, four, k.shuffleFrom(scale, from))
                          : floats(k, values, value, four);
                  multiply(k, w, column, i * STEP, at, sums);
                }
              };
          if (steps == 8) {
            body.run();
          } else {
            PtxRegister left = k.sub(k.constant(U32, words()), first);
            k.loop(step, k.min(left, 32), steps * STEP / 32, body);
          }
          k.assign(next, k.shuffleFrom(k.add(begin, size), k.constant(U32, 31)));
        });
  }

  /** How many steps are written one after the other; a divisor of those of a row, or 1. */
  private int steps(int rows) {
    int steps = rows == 1 ? 8 : 4;
    while (steps > 1 && in % (steps * STEP) != 0) {
      steps /= 2;
    }
    return steps;
  }

  /** How many units the values of a word take, padding to the whole byte of a window with them. */
  private PtxRegister size(PtxKernel k, PtxRegister word, PtxRegister lane) {
    PtxRegister n = k.ones(word);
    if (kind != Kind.CODES4) {
      return n;
    }
    PtxRegister odd = k.and(k.add(n, k.shuffleXor(n, 1)), lane);
    return k.add(n, k.and(odd, 1));
  }

  /** The sum over the lanes below. */
  private static PtxRegister prefix(PtxKernel k, PtxRegister n, PtxRegister lane) {
    PtxRegister sum = n;
    for (int by = 1; by < 32; by <<= 1) {
      PtxRegister there = k.compare("ge", lane, by);
      sum = k.add(sum, k.select(there, k.shuffleUp(sum, by), 0));
    }
    return k.sub(sum, n);
  }

  /** The elements of four columns, of which the lowest bits say whether they are there. */
  private PtxRegister[] floats(
      PtxKernel k, PtxRegister values, PtxRegister first, PtxRegister four) {
    PtxType type = kind == Kind.F32 ? F32 : B16;
    PtxRegister[] w = new PtxRegister[4];
    // Counting addresses up takes fewer instructions than computing each.
    PtxRegister at = k.address(values, first, kind.bits / 8);
    for (int i = 0; i < 4; i++) {
      PtxRegister there = k.compare("ne", k.and(four, 1 << i), 0);
      w[i] = k.constant(kind == Kind.F32 ? F32 : U32, 0);
      k.loadInto(there, SPACE, type, w[i], at, 0);
      if (i < 3) {
        k.addInto(there, at, kind.bits / 8);
      }
    }
    for (int i = 0; i < 4 && kind != Kind.F32; i++) {
      w[i] = kind == Kind.F16 ? Emitter.half(k, k.halves(w[i])[0]) : k.bits(F32, k.shl(w[i], 16));
    }
    return w;
  }

  /**
   * The same of codes. Two words have the next codes, a shift brings them to the front, and a
   * permutation of bytes whose selectors are computed from the four bits puts each into its column:
   * the selector of a column is the number of bits below, and 4 more, the byte of a zero, where
   * there is none.
   */
  private PtxRegister[] codes(
      PtxKernel k, PtxRegister values, PtxRegister first, PtxRegister four, PtxRegister scale) {
    boolean bytes = kind == Kind.CODES8;
    PtxRegister at = k.address(values, k.shr(first, bytes ? 2 : 3), 4);
    PtxRegister low = k.load(SPACE, U32, at, 0);
    PtxRegister high = k.load(SPACE, U32, at, 4);
    PtxRegister front = k.funnel(low, high, k.shl(first, bytes ? 3 : 2));
    // Codes count from 128, those of 4 bits from 8.
    int zero = bytes ? 128 : 8;
    PtxRegister codes;
    if (bytes) {
      codes = k.logic(front, 0x80808080L, 0, 0x3c);
    } else {
      PtxRegister even = k.and(front, 0x0f0f0f0f);
      PtxRegister odd = k.and(k.shr(front, 4), 0x0f0f0f0f);
      codes = k.permute(even, odd, 0x5140);
    }
    PtxRegister two = k.and(k.mul(k.and(four, 15), 0x41), 0x303);
    PtxRegister one = k.and(k.mul(two, 9), 0x1111);
    PtxRegister selectors = k.fma(one, 0x110c, 0x4444);
    PtxRegister zeros = k.constant(U32, zero * 0x01010101L);
    PtxRegister spread = k.permute(codes, zeros, selectors);
    // The bytes below the exponent of 2^23 are integers above it.
    PtxRegister exponent = k.constant(U32, 0x4b000000);
    PtxRegister[] w = new PtxRegister[4];
    for (int i = 0; i < 4; i++) {
      PtxRegister integer = k.bits(F32, k.permute(spread, exponent, 0x7440 | i));
      w[i] = k.mul(k.add(integer, -(float) ((1 << 23) + zero)), scale);
    }
    return w;
  }

  private void multiply(
      PtxKernel k,
      PtxRegister[] w,
      PtxRegister column,
      int more,
      PtxRegister[] at,
      PtxRegister[] sums) {
    PtxRegister[] there = new PtxRegister[4];
    for (int i = 0; i < 4 && in % STEP != 0; i++) {
      there[i] = k.compare("lt", k.add(column, i), in);
    }
    for (int r = 0; r < at.length; r++) {
      PtxRegister x = k.address(at[r], column, 4);
      PtxRegister[] v = k.registers(F32, 4);
      if (in % STEP == 0) {
        v = k.loadVector("global", F32, 4, x, 4L * more);
      } else {
        for (int i = 0; i < 4; i++) {
          // Past the last column the product is zero times zero.
          k.assign(v[i], 0);
          k.loadInto(there[i], "global", F32, v[i], x, 4L * i);
        }
      }
      for (int i = 0; i < 4; i++) {
        k.fmaInto(sums[r], w[i], v[i], sums[r]);
      }
    }
  }
}
