package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Opmask;
import io.fletch.ffm.x86.Vec;
import io.fletch.ffm.x86.Xmm;
import io.fletch.ffm.x86.Zmm;
import io.fletch.quant.TensorType;

/**
 * Generates products of F32, F16 and BF16 weights in their file layout with F32 activations. Lanes
 * are elements: sixteen partial sums per output, added by halving, in the order of the scalar
 * kernels.
 *
 * <p>Signature of the code: {@code void (long weights, long x, long y, long yStrideBytes, long
 * rows)}, weights at a row, {@code rows >= 1} rows of weights. Row length and number of activation
 * rows are constants in the code. Rows whose length is not a multiple of 16 are read to their last
 * element and not beyond.
 */
public final class FloatMatmulCode {
  private static final int LANES = 16;
  private static final int PREFETCH = 1024;
  private static final int LINE = 64;

  private static final Gpr W = Gpr.RDI;
  private static final Gpr X = Gpr.RSI;
  private static final Gpr Y = Gpr.RDX;
  private static final Gpr Y_STRIDE = Gpr.RCX;
  private static final Gpr ROWS = Gpr.R8;
  private static final Gpr WP = Gpr.R9;
  private static final Gpr XP = Gpr.R10;
  private static final Gpr COUNT = Gpr.R11;
  private static final Gpr TEMP = Gpr.RAX;

  /** Space on the stack for the end of a 16-bit row. */
  private static final int STACK = 64;

  private final Assembler a = new Assembler();
  private final TensorType type;
  private final int in;
  private final int elementBytes;
  private final int rowBytes;
  private final int xStride;
  private final int tokens;
  private final boolean wide;

  /** Vectors that hold sixteen floats: 1 or 2. */
  private final int parts;

  private final int bytes;

  // Registers of the tile in work.
  private int rows;
  private Vec[][][] sums;
  private Vec[] w;
  private Vec x;
  private Vec[] masks;

  private FloatMatmulCode(TensorType type, int in, Isa isa, long xStride, int tokens) {
    this.type = type;
    this.in = in;
    this.elementBytes = type.blockBytes();
    this.rowBytes = Math.toIntExact(type.bytes(in));
    this.xStride = Math.toIntExact(xStride);
    this.tokens = tokens;
    this.bytes = isa.bytes();
    this.wide = bytes == 64;
    this.parts = wide ? 1 : 2;
    Math.toIntExact(16L * rowBytes + PREFETCH + tokens * xStride);
  }

  /** The most rows of activations that one call can take. */
  public static int maxTokens() {
    return 6;
  }

  /** Rows of weights taken at once for a number of activation rows: what the registers hold. */
  private static int rowsAtOnce(int tokens, boolean wide) {
    if (wide) {
      return tokens == 1 ? 8 : 4;
    }
    return switch (tokens) {
      case 1 -> 4;
      case 2, 3 -> 2;
      default -> 1;
    };
  }

  /**
   * Emits the code.
   *
   * @param xStride bytes from one row of activations to the next
   * @param tokens rows of activations, 1 to {@link #maxTokens}
   */
  public static byte[] emit(TensorType type, int in, Isa isa, long xStride, int tokens) {
    if (type != TensorType.F32 && type != TensorType.F16 && type != TensorType.BF16) {
      throw new IllegalArgumentException("not a float type: actual=" + type);
    }
    if (tokens < 1 || tokens > maxTokens()) {
      throw new IllegalArgumentException(
          "tokens: expected=[1," + maxTokens() + "] actual=" + tokens);
    }
    return new FloatMatmulCode(type, in, isa, xStride, tokens).emit();
  }

  private int tail() {
    return in % LANES;
  }

  private byte[] emit() {
    boolean stackTail = tail() != 0 && !wide && elementBytes == 2;
    if (stackTail) {
      a.sub(Gpr.RSP, STACK);
      a.xor32(TEMP, TEMP);
      for (int i = 0; i < 32; i += 8) {
        a.mov(Mem.of(Gpr.RSP, i), TEMP);
      }
    }
    if (tail() != 0 && wide) {
      a.mov(TEMP, (1L << tail()) - 1);
      a.kmovw(Opmask.K1, TEMP);
    }
    Label one = a.label();
    Label done = a.label();
    int atOnce = rowsAtOnce(tokens, wide);
    if (atOnce > 1) {
      a.cmp(ROWS, atOnce);
      a.jcc(Condition.L, one);
      Label many = a.here();
      tile(atOnce);
      a.sub(ROWS, atOnce);
      a.cmp(ROWS, atOnce);
      a.jcc(Condition.GE, many);
      a.test(ROWS, ROWS);
      a.jcc(Condition.E, done);
    }
    a.bind(one);
    Label loop = a.here();
    tile(1);
    a.dec(ROWS);
    a.jcc(Condition.NE, loop);
    a.bind(done);
    if (stackTail) {
      a.add(Gpr.RSP, STACK);
    }
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private void allocate() {
    int next = 0;
    sums = new Vec[rows][tokens][parts];
    for (int r = 0; r < rows; r++) {
      for (int t = 0; t < tokens; t++) {
        for (int i = 0; i < parts; i++) {
          sums[r][t][i] = Vec.of(bytes, next++);
        }
      }
    }
    w = new Vec[parts];
    for (int i = 0; i < parts; i++) {
      w[i] = Vec.of(bytes, next++);
    }
    x = Vec.of(bytes, next++);
    masks = new Vec[] {Vec.of(bytes, next++)};
    if (next > (wide ? 32 : 16)) {
      throw new AssertionError("registers: " + next + " rows=" + rows + " tokens=" + tokens);
    }
  }

  private void tile(int rows) {
    this.rows = rows;
    allocate();
    for (Vec[][] row : sums) {
      for (Vec[] cell : row) {
        for (Vec v : cell) {
          a.vxorps(v, v, v);
        }
      }
    }
    a.mov(WP, W);
    a.mov(XP, X);
    int steps = in / LANES;
    // What is ahead of the end of a row is the next tile's, so many rows further on.
    int last = Math.min(steps, PREFETCH / (LANES * elementBytes));
    steps(steps - last, PREFETCH);
    steps(last, PREFETCH + (rows - 1) * rowBytes);
    if (tail() != 0) {
      tailStep();
    }
    for (int t = 0; t < tokens; t++) {
      for (int r = 0; r < rows; r++) {
        store(sums[r][t], Mem.of(Y, 4 * r));
      }
      if (t + 1 < tokens) {
        a.add(Y, Y_STRIDE);
      }
    }
    // Back to the first token, on to the next rows.
    for (int t = 0; t + 1 < tokens; t++) {
      a.sub(Y, Y_STRIDE);
    }
    a.add(Y, 4 * rows);
    a.add(W, rows * rowBytes);
  }

  /**
   * So many times sixteen elements of every row and token.
   *
   * @param ahead bytes from what is read to what is prefetched
   */
  private void steps(int count, int ahead) {
    int stepBytes = LANES * elementBytes;
    // Each row is prefetched once per line.
    int unroll = LINE / stepBytes;
    if (count >= unroll) {
      a.mov(COUNT, (long) (count / unroll));
      a.align(32);
      Label loop = a.here();
      for (int i = 0; i < unroll; i++) {
        step(i, unroll, ahead);
      }
      a.add(WP, unroll * stepBytes);
      a.add(XP, unroll * LANES * 4);
      a.dec(COUNT);
      a.jcc(Condition.NE, loop);
    }
    for (int i = 0; i < count % unroll; i++) {
      step(0, 1, ahead);
      a.add(WP, stepBytes);
      a.add(XP, LANES * 4);
    }
  }

  /**
   * Sixteen elements of every row and token.
   *
   * @param index which of {@code unroll} steps: each prefetches its share of the rows
   */
  private void step(int index, int unroll, int ahead) {
    int wAt = index * LANES * elementBytes;
    int xAt = index * LANES * 4;
    for (int r = 0; r < rows; r++) {
      int offset = r * rowBytes;
      if (r % unroll == index) {
        a.prefetcht0(Mem.of(WP, offset + ahead));
      }
      for (int i = 0; i < parts; i++) {
        Lanes.load(a, type, w[i], Mem.of(WP, wAt + offset + i * bytes / 4 * elementBytes));
      }
      for (int t = 0; t < tokens; t++) {
        for (int i = 0; i < parts; i++) {
          a.vfmadd231ps(sums[r][t][i], w[i], Mem.of(XP, xAt + t * xStride + i * bytes));
        }
      }
    }
  }

  /** The last elements; what is beyond them counts as zero and is not touched. */
  private void tailStep() {
    for (int r = 0; r < rows; r++) {
      int offset = r * rowBytes;
      if (wide) {
        a.zeroed(Opmask.K1);
        Lanes.load(a, type, w[0], Mem.of(WP, offset));
      } else {
        narrowTail(offset);
      }
      for (int t = 0; t < tokens; t++) {
        for (int i = 0; i < parts; i++) {
          if (i * 8 >= tail()) {
            continue;
          }
          Mem from = Mem.of(XP, t * xStride + i * bytes);
          if (wide) {
            a.zeroed(Opmask.K1);
            a.vmovups(x, from);
          } else {
            a.vmovdqu(masks[0], mask(i));
            a.vmaskmovps(x, masks[0], from);
          }
          a.vfmadd231ps(sums[r][t][i], w[i], x);
        }
      }
    }
  }

  private void narrowTail(int offset) {
    if (elementBytes == 4) {
      for (int i = 0; i < parts && i * 8 < tail(); i++) {
        a.vmovdqu(masks[0], mask(i));
        a.vmaskmovps(w[i], masks[0], Mem.of(WP, offset + i * bytes));
      }
      return;
    }
    // AVX2 has no masked load of 16-bit elements.
    for (int i = 0; i < tail(); i++) {
      a.movzx16(TEMP, Mem.of(WP, offset + 2 * i));
      a.mov16(Mem.of(Gpr.RSP, 2 * i), TEMP);
    }
    for (int i = 0; i < parts; i++) {
      Lanes.load(a, type, w[i], Mem.of(Gpr.RSP, 16 * i));
    }
  }

  /** Which of the elements {@code 8 part .. 8 part + 7} belong to the tail. */
  private Mem mask(int part) {
    int[] lanes = new int[8];
    for (int l = 0; l < 8; l++) {
      lanes[l] = 8 * part + l < tail() ? -1 : 0;
    }
    return a.ints(lanes);
  }

  /** Adds the partial sums by halving and stores the result. */
  private void store(Vec[] cell, Mem y) {
    Vec sum = cell[0];
    if (wide) {
      a.vextractf64x4(x.ymm(), (Zmm) sum, 1);
      a.vaddps(sum.ymm(), sum.ymm(), x.ymm());
    } else {
      a.vaddps(sum, sum, cell[1]);
    }
    Xmm low = sum.xmm();
    Xmm other = x.xmm();
    if (wide) {
      a.vextracti32x4(other, sum.ymm(), 1);
    } else {
      a.vextractf128(other, sum.ymm(), 1);
    }
    a.vaddps(low, low, other);
    a.vmovhlps(other, low, low);
    a.vaddps(low, low, other);
    a.vmovshdup(other, low);
    a.vaddss(low, low, other);
    a.vmovss(y, low);
  }
}
