package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Operand;
import io.fletch.ffm.x86.Vec;
import io.fletch.ffm.x86.Xmm;
import io.fletch.ffm.x86.Ymm;
import io.fletch.quant.TensorType;

/**
 * Generates products of one row of activations with weights as they lie in the file: row after row
 * of blocks. Eight rows of weights are taken at once, block by block: the products of a block are
 * summed in eight lanes per row, then the rows' sums become the lanes of one register, where scales
 * are applied in the order of the scalar kernels, so results have the same bits.
 *
 * <p>Memory is asked for in its order: while eight rows are multiplied, the next eight, which
 * follow them, are prefetched from their first byte to their last.
 *
 * <p>Signature of the code: {@code void (long weights, long x, long y, long unused, long groups)},
 * weights at the first row of eight, {@code groups >= 1} times eight rows. 256-bit registers for
 * every instruction set: memory limits, not arithmetic.
 */
public final class RowMajorCode {
  /** Rows of weights that are taken at once. */
  public static final int ROWS = 8;

  private static final int LOW4 = 0x0f0f0f0f;
  private static final int ONES = 0x00010001;

  /** Bytes of a register, and of the rows' sub-scales of one sub-block. */
  private static final int YMM = 32;

  // All are the callee's to change.
  private static final Gpr W = Gpr.RDI;
  private static final Gpr X = Gpr.RSI;
  private static final Gpr Y = Gpr.RDX;
  private static final Gpr GROUPS = Gpr.R8;
  private static final Gpr XQ = Gpr.R9;
  private static final Gpr XD = Gpr.R10;
  private static final Gpr XS = Gpr.R11;
  private static final Gpr NEXT = Gpr.RAX;
  private static final Gpr BLOCKS = Gpr.RCX;

  /** Sub-scales of eight sub-blocks, each in both halves of a lane per row. */
  private static final int TABLE_BYTES = 8 * YMM;

  /** Where registers are named by number: 0 to 7 sum the products of the rows. */
  private static final Ymm ACC = Ymm.YMM8;

  private static final Ymm Q = Ymm.YMM9;
  private static final Ymm T = Ymm.YMM10;
  private static final Ymm U = Ymm.YMM11;
  private static final Ymm MASK = Ymm.YMM12;
  private static final Ymm V = Ymm.YMM13;
  private static final Ymm D = Ymm.YMM14;
  private static final Ymm DMIN = Ymm.YMM15;

  private final Assembler a = new Assembler();
  private final TensorType type;
  private final Isa isa;
  private final int rowBytes;
  private final int blockBytes;
  private final int blocks;
  private final int scalesOffset;
  private final int sumsOffset;

  private RowMajorCode(TensorType type, int in, Isa isa, int scalesOffset, int sumsOffset) {
    this.type = type;
    this.isa = isa;
    rowBytes = Math.toIntExact(type.bytes(in));
    blockBytes = type.blockBytes();
    blocks = in / type.blockSize();
    this.scalesOffset = scalesOffset;
    this.sumsOffset = sumsOffset;
  }

  /**
   * Emits the code.
   *
   * @param type one that has a packed form
   * @param in elements of a row
   * @param scalesOffset offset of the scales in a row of activations
   * @param sumsOffset offset of the sums in it
   */
  public static byte[] emit(TensorType type, int in, Isa isa, long scalesOffset, long sumsOffset) {
    if (!PackedLayout.supports(type) || in <= 0 || in % type.blockSize() != 0) {
      throw new IllegalArgumentException("no product in place: type=" + type + " in=" + in);
    }
    Math.toIntExact(2 * ROWS * type.bytes(in));
    return new RowMajorCode(
            type, in, isa, Math.toIntExact(scalesOffset), Math.toIntExact(sumsOffset))
        .emit();
  }

  private boolean superBlocks() {
    return type.blockSize() == 256;
  }

  private byte[] emit() {
    if (superBlocks()) {
      a.sub(Gpr.RSP, TABLE_BYTES);
    }
    a.vmovdqu(MASK, a.repeated(LOW4, YMM));
    Label group = a.here();
    a.mov(XQ, X);
    a.lea(XD, Mem.of(X, scalesOffset));
    a.lea(XS, Mem.of(X, sumsOffset));
    a.lea(NEXT, Mem.of(W, ROWS * rowBytes));
    a.vxorps(ACC, ACC, ACC);
    a.mov(BLOCKS, (long) blocks);
    a.align(32);
    Label block = a.here();
    for (int i = 0; i < ROWS * blockBytes; i += 64) {
      a.prefetcht0(Mem.of(NEXT, i));
    }
    switch (type) {
      case Q4_K, Q5_K -> withMinimums();
      case Q2_K, Q3_K, Q6_K -> sixteens();
      case IQ4_XS -> table256();
      default -> smallBlock();
    }
    a.add(NEXT, ROWS * blockBytes);
    a.add(W, blockBytes);
    a.add(XQ, type.blockSize());
    a.add(XD, 4);
    a.add(XS, superBlocks() ? 32 : 4);
    a.dec(BLOCKS);
    a.jcc(Condition.NE, block);
    a.vmovups(Mem.of(Y), ACC);
    a.add(Y, YMM);
    // W is at the end of the first row now.
    a.add(W, (ROWS - 1) * rowBytes);
    a.dec(GROUPS);
    a.jcc(Condition.NE, group);
    if (superBlocks()) {
      a.add(Gpr.RSP, TABLE_BYTES);
    }
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /** A byte of the block in work of a row. */
  private Mem row(int r, int offset) {
    return Mem.of(W, r * rowBytes + offset);
  }

  private static Ymm sum(int r) {
    return Ymm.of(r);
  }

  // ---- blocks of 32

  private void smallBlock() {
    boolean signed = !isa.vnni() && (type == TensorType.Q8_0 || type == TensorType.IQ4_NL);
    boolean hasMin = type == TensorType.Q4_1 || type == TensorType.Q5_1;
    a.vmovdqu(U, Mem.of(XQ));
    for (int r = 0; r < ROWS; r++) {
      Ymm s = sum(r);
      codes(r);
      if (isa.vnni()) {
        a.vpxor(s, s, s);
        evex();
        a.vpdpbusd(s, Q, U);
        continue;
      }
      if (signed) {
        a.vpsignb(T, U, Q);
        a.vpabsb(Q, Q);
        a.vpmaddubsw(T, Q, T);
      } else {
        a.vpmaddubsw(T, Q, U);
      }
      a.vpmaddwd(s, T, a.repeated(ONES, YMM));
    }
    Ymm dot = rowsToLanes();
    int zero = MatmulCode.zero(type, isa);
    if (zero != 0) {
      a.vpbroadcastd(T, Mem.of(XS));
      a.vpslld(T, T, Integer.numberOfTrailingZeros(zero));
      a.vpsubd(dot, dot, T);
    }
    a.vcvtdq2ps(dot, dot);
    if (hasMin) {
      doubleWords(0);
      scalesAndMinimums();
    } else if (type == TensorType.MXFP4) {
      exponents();
    } else {
      words(0);
      a.vcvtph2ps(D, D.xmm());
    }
    accumulate(dot);
    if (hasMin) {
      a.vbroadcastss(T, Mem.of(XD));
      a.vmulps(T, DMIN, T);
      a.vpbroadcastd(Q, Mem.of(XS));
      a.vcvtdq2ps(Q, Q);
      a.vfmadd231ps(ACC, T, Q);
    }
  }

  /** The codes of a row's block, as unsigned ones where products want them so, in Q. */
  private void codes(int r) {
    if (type == TensorType.Q8_0) {
      a.vmovdqu(Q, row(r, 2));
      if (isa.vnni()) {
        a.vpxor(Q, Q, a.repeated(0x80808080, YMM));
      }
      return;
    }
    // The lower halves of the last 16 bytes are the first elements, the upper halves the others.
    a.vbroadcasti128(Q, row(r, blockBytes - 16));
    a.vpsrlvd(Q, Q, upperHalf4());
    a.vpand(Q, Q, MASK);
    if (type == TensorType.Q5_0 || type == TensorType.Q5_1) {
      // Bit i of the word before them belongs to element i.
      a.vpbroadcastd(T, row(r, blockBytes - 20));
      a.vpshufb(T, T, spread());
      a.vpand(T, T, bits());
      a.vpcmpeqb(T, T, bits());
      a.vpand(T, T, a.repeated(0x10101010, YMM));
      a.vpor(Q, Q, T);
    }
    lookUp(MatmulCode.table(type, isa));
  }

  /** The codes in Q become what they stand for, where there is a table. */
  private void lookUp(byte[] table) {
    if (table == null) {
      return;
    }
    byte[] twice = new byte[YMM];
    for (int i = 0; i < YMM; i++) {
      twice[i] = table[i & 15];
    }
    a.vmovdqu(T, a.constant(twice));
    a.vpshufb(Q, T, Q);
  }

  /** A shuffle that copies byte {@code i / 8} of a word to byte {@code i}. */
  private Mem spread() {
    byte[] order = new byte[YMM];
    for (int i = 0; i < YMM; i++) {
      order[i] = (byte) (i / 8);
    }
    return a.constant(order);
  }

  private Mem bits() {
    byte[] bits = new byte[YMM];
    for (int i = 0; i < YMM; i++) {
      bits[i] = (byte) (1 << (i & 7));
    }
    return a.constant(bits);
  }

  /** {@code acc = fma(dW * dX, dot, acc)}. */
  private void accumulate(Ymm dot) {
    a.vbroadcastss(T, Mem.of(XD));
    a.vmulps(T, D, T);
    a.vfmadd231ps(ACC, T, dot);
  }

  private Mem upperHalf4() {
    byte[] counts = new byte[YMM];
    for (int i = 16; i < YMM; i += 4) {
      counts[i] = 4;
    }
    return a.constant(counts);
  }

  private void evex() {
    if (isa.evexDots()) {
      a.evex();
    }
  }

  /** Adds the eight lanes of every row's sums; row {@code r} becomes lane {@code r}. */
  private Ymm rowsToLanes() {
    for (int step = 1; step < 4; step *= 2) {
      for (int r = 0; r < ROWS; r += 2 * step) {
        a.vphaddd(sum(r), sum(r), sum(r + step));
      }
    }
    a.vperm2i128(T, sum(0), sum(4), 0x20);
    a.vperm2i128(Q, sum(0), sum(4), 0x31);
    a.vpaddd(sum(0), T, Q);
    return sum(0);
  }

  /** The half-precision numbers at an offset of the rows' blocks, row by row, in D. */
  private void words(int offset) {
    Xmm d = D.xmm();
    a.vpxor(d, d, d);
    for (int r = 0; r < ROWS; r++) {
      a.vpinsrw(d, d, row(r, offset), r);
    }
  }

  /** The 32-bit words at an offset of the rows' blocks, row by row, in D. */
  private void doubleWords(int offset) {
    Xmm low = D.xmm();
    Xmm high = V.xmm();
    a.vmovd(low, row(0, offset));
    a.vmovd(high, row(4, offset));
    for (int r = 1; r < 4; r++) {
      a.vpinsrd(low, low, row(r, offset), r);
      a.vpinsrd(high, high, row(4 + r, offset), r);
    }
    a.vinserti128(D, D, high, 1);
  }

  /** The scales of MXFP4, 2^(e - 128), in D. */
  private void exponents() {
    Xmm d = D.xmm();
    a.vpxor(d, d, d);
    for (int r = 0; r < ROWS; r++) {
      a.vpinsrb(d, d, row(r, 0), r);
    }
    a.vpmovzxbd(D, d);
    MatmulCode.exponentsToFloats(a, D, T, Q);
  }

  /** Two half-precision numbers per lane of D become floats in D and DMIN. */
  private void scalesAndMinimums() {
    a.vpsrld(V, D, 16);
    a.vpslld(D, D, 16);
    a.vpsrld(D, D, 16);
    // Per 128 bits: four scales, four minimums; then all scales, all minimums.
    a.vpackusdw(D, D, V);
    a.vpermq(D, D, 0xd8);
    a.vextracti128(V.xmm(), D, 1);
    a.vcvtph2ps(DMIN, V.xmm());
    a.vcvtph2ps(D, D.xmm());
  }

  // ---- blocks of 256

  /** Q4_K and Q5_K: 6-bit sub-scales and minimums of 32 elements. */
  private void withMinimums() {
    boolean five = type == TensorType.Q5_K;
    subScales();
    minimums();
    for (int r = 0; r < ROWS; r++) {
      a.vpxor(sum(r), sum(r), sum(r));
      for (int j = 0; j < 8; j++) {
        boolean upper = (j & 1) != 0;
        a.vmovdqu(Q, row(r, (five ? 48 : 16) + 32 * (j >> 1)));
        if (upper) {
          a.vpsrlw(Q, Q, 4);
        }
        a.vpand(Q, Q, MASK);
        if (five) {
          merge(row(r, 16), 4 - j, 0x10101010);
        }
        a.vpmaddubsw(Q, Q, Mem.of(XQ, 32 * j));
        a.vpbroadcastd(U, Mem.of(Gpr.RSP, YMM * j + 4 * r));
        addProducts(sum(r), Q, U);
      }
    }
    Ymm dot = rowsToLanes();
    a.vcvtdq2ps(dot, dot);
    accumulate(dot);
    subtractMinimums();
  }

  /** {@code acc = fma(-(dmin * dX), V, acc)}, V as integers. */
  private void subtractMinimums() {
    a.vbroadcastss(T, Mem.of(XD));
    a.vmulps(T, DMIN, T);
    a.vcvtdq2ps(V, V);
    a.vfnmadd231ps(ACC, T, V);
  }

  /** Bits of every byte to the left, or with a negative count to the right; a mask must follow. */
  private void shift(Vec v, int left) {
    if (left > 0) {
      a.vpsllw(v, v, left);
    } else if (left < 0) {
      a.vpsrlw(v, v, -left);
    }
  }

  /** {@code sum += q * u} in pairs of 16 bits. */
  private void addProducts(Ymm sum, Ymm q, Operand u) {
    if (isa.vnni()) {
      evex();
      a.vpdpwssd(sum, q, u);
    } else {
      a.vpmaddwd(q, q, u);
      a.vpaddd(sum, sum, q);
    }
  }

  /**
   * The first 16 bytes of the rows' blocks, a row per lane: scales to D and DMIN, sub-scales to the
   * table, minimums of sub-blocks 0 to 3 and 4 to 7 to registers 2 and 3.
   */
  private void subScales() {
    for (int r = 0; r < 4; r++) {
      a.vmovdqu(sum(r).xmm(), row(r, 0));
      a.vinserti128(sum(r), sum(r), row(r + 4, 0), 1);
    }
    a.vpunpckldq(sum(4), sum(0), sum(1));
    a.vpunpckhdq(sum(5), sum(0), sum(1));
    a.vpunpckldq(sum(6), sum(2), sum(3));
    a.vpunpckhdq(sum(7), sum(2), sum(3));
    a.vpunpcklqdq(D, sum(4), sum(6));
    // The three words of sub-scales and minimums.
    Ymm first = sum(0);
    Ymm second = sum(1);
    Ymm third = sum(7);
    a.vpunpckhqdq(first, sum(4), sum(6));
    a.vpunpcklqdq(second, sum(5), sum(7));
    a.vpunpckhqdq(third, sum(5), sum(7));
    scalesAndMinimums();
    Ymm scales = sum(4);
    Ymm upperScales = sum(5);
    sixBitFields(scales, upperScales, first, third);
    a.vpsrlw(third, third, 4);
    sixBitFields(sum(2), sum(3), second, third);
    for (int j = 0; j < 8; j++) {
      a.vpshufb(T, j < 4 ? scales : upperScales, twice(j & 3));
      a.vmovdqu(Mem.of(Gpr.RSP, YMM * j), T);
    }
  }

  /** Fields 0 to 3 are the lower six bits of a word's bytes; of 4 to 7 two bits are there, too. */
  private void sixBitFields(Ymm low, Ymm high, Ymm word, Ymm nibbles) {
    a.vpand(low, word, a.repeated(0x3f3f3f3f, YMM));
    a.vpsrlw(T, word, 2);
    a.vpand(T, T, a.repeated(0x30303030, YMM));
    a.vpand(high, nibbles, MASK);
    a.vpor(high, high, T);
  }

  /** {@code V = sum over sub-blocks of minimum * (sum of its activations)}. */
  private void minimums() {
    a.vpxor(V, V, V);
    for (int j = 0; j < 8; j++) {
      a.vpshufb(T, sum(j < 4 ? 2 : 3), twice(j & 3));
      // The sums of its two halves.
      a.vpbroadcastd(U, Mem.of(XS, 4 * j));
      addProducts(V, T, U);
    }
  }

  /** A shuffle that copies byte {@code i} of each lane to both of its 16-bit halves. */
  private Mem twice(int i) {
    byte[] order = new byte[YMM];
    for (int lane = 0; lane < YMM; lane += 4) {
      order[lane] = (byte) (lane % 16 + i);
      order[lane + 1] = (byte) 0x80;
      order[lane + 2] = order[lane];
      order[lane + 3] = (byte) 0x80;
    }
    return a.constant(order);
  }

  /** Q2_K, Q3_K, Q6_K: sub-scales of 16 elements. */
  private void sixteens() {
    boolean two = type == TensorType.Q2_K;
    if (two) {
      for (int r = 0; r < ROWS; r++) {
        // Minimums are the upper halves of the bytes with the sub-scales.
        a.vmovdqu(T.xmm(), row(r, 0));
        a.vpsrlw(T.xmm(), T.xmm(), 4);
        a.vpand(T.xmm(), T.xmm(), MASK.xmm());
        a.vpmovzxbw(T, T.xmm());
        a.vpmaddwd(sum(r), T, Mem.of(XS));
      }
      a.vmovdqu(Mem.of(Gpr.RSP), rowsToLanes());
    }
    int zero = MatmulCode.zero(type, isa);
    for (int r = 0; r < ROWS; r++) {
      Ymm s = sum(r);
      wideSubScales(r);
      a.vpxor(s, s, s);
      if (zero != 0) {
        a.vpmaddwd(T, V, Mem.of(XS));
        a.vpslld(T, T, Integer.numberOfTrailingZeros(zero));
        a.vpsubd(s, s, T);
      }
      for (int half = 0; half < 2; half++) {
        // The eight sub-scales of the half in both parts of the register.
        a.vpermq(D, V, half == 0 ? 0x44 : 0xee);
        for (int c = 0; c < 4; c++) {
          codesOf16(r, half, c);
          a.vpmaddubsw(Q, Q, Mem.of(XQ, 128 * half + 32 * c));
          a.vpshufb(U, D, pairOfWords(c));
          addProducts(s, Q, U);
        }
      }
    }
    Ymm dot = rowsToLanes();
    a.vcvtdq2ps(dot, dot);
    if (two) {
      doubleWords(80);
      scalesAndMinimums();
      accumulate(dot);
      a.vmovdqu(V, Mem.of(Gpr.RSP));
      subtractMinimums();
    } else {
      words(type == TensorType.Q3_K ? 108 : 208);
      a.vcvtph2ps(D, D.xmm());
      accumulate(dot);
    }
  }

  /** The 16 sub-scales of a row's block in 16 bits each, in V. */
  private void wideSubScales(int r) {
    Xmm t = T.xmm();
    Xmm u = U.xmm();
    switch (type) {
      case Q2_K -> {
        a.vmovdqu(t, row(r, 0));
        a.vpand(t, t, MASK.xmm());
        a.vpmovzxbw(V, t);
      }
      case Q3_K -> {
        // Four bits from the halves of eight bytes, two from the quarters of four bytes.
        a.vmovq(t, row(r, 96));
        a.vpsrlw(u, t, 4);
        a.vpunpcklqdq(t, t, u);
        a.vpand(t, t, MASK.xmm());
        a.vpbroadcastd(u, row(r, 104));
        a.vpsrlvd(u, u, quarters());
        a.vpand(u, u, a.repeated(0x03030303, 16));
        a.vpsllw(u, u, 4);
        a.vpor(t, t, u);
        a.vpsubb(t, t, a.repeated(0x20202020, 16));
        a.vpmovsxbw(V, t);
      }
      default -> a.vpmovsxbw(V, row(r, 192));
    }
  }

  /** Chunk {@code c} of 32 of a half block's codes, in Q. */
  private void codesOf16(int r, int half, int c) {
    if (type == TensorType.Q6_K) {
      a.vmovdqu(Q, row(r, 64 * half + 32 * (c & 1)));
      if (c >= 2) {
        a.vpsrlw(Q, Q, 4);
      }
      a.vpand(Q, Q, MASK);
      merge(row(r, 128 + 32 * half), 4 - 2 * c, 0x30303030);
      return;
    }
    boolean two = type == TensorType.Q2_K;
    a.vmovdqu(Q, row(r, (two ? 16 : 32) + 32 * half));
    shift(Q, -2 * c);
    a.vpand(Q, Q, a.repeated(0x03030303, YMM));
    if (!two) {
      merge(row(r, 0), 2 - 4 * half - c, 0x04040404);
    }
  }

  /** {@code q |= (from << left) & mask}, in bytes. */
  private void merge(Mem from, int left, int mask) {
    a.vmovdqu(T, from);
    shift(T, left);
    a.vpand(T, T, a.repeated(mask, YMM));
    a.vpor(Q, Q, T);
  }

  private Mem quarters() {
    byte[] counts = new byte[16];
    for (int i = 0; i < 4; i++) {
      counts[4 * i] = (byte) (2 * i);
    }
    return a.constant(counts);
  }

  /** IQ4_XS: values from a table, 6-bit sub-scales of 32 elements, 32 too large. */
  private void table256() {
    Ymm high = sum(0);
    Ymm low = sum(1);
    doubleWords(4);
    a.vmovdqa(low, D);
    doubleWords(0);
    a.vpsrld(high, D, 16);
    for (int j = 0; j < 8; j++) {
      a.vpsrld(T, low, 4 * j);
      a.vpand(T, T, a.repeated(15, YMM));
      a.vpsrld(U, high, 2 * j);
      a.vpand(U, U, a.repeated(3, YMM));
      a.vpslld(U, U, 4);
      a.vpor(T, T, U);
      a.vpsubd(T, T, a.repeated(32, YMM));
      // Into both halves of the lane.
      a.vpslld(U, T, 16);
      a.vpblendw(T, T, U, 0xaa);
      a.vmovdqu(Mem.of(Gpr.RSP, YMM * j), T);
    }
    scalesAndMinimums();
    byte[] signed = MatmulCode.table(type, Isa.AVX2);
    for (int r = 0; r < ROWS; r++) {
      a.vpxor(sum(r), sum(r), sum(r));
      for (int j = 0; j < 8; j++) {
        a.vbroadcasti128(Q, row(r, 8 + 16 * j));
        a.vpsrlvd(Q, Q, upperHalf4());
        a.vpand(Q, Q, MASK);
        lookUp(signed);
        // Signs go to the activations; sums of two products then fit 16 bits.
        a.vmovdqu(T, Mem.of(XQ, 32 * j));
        a.vpsignb(T, T, Q);
        a.vpabsb(Q, Q);
        a.vpmaddubsw(Q, Q, T);
        a.vpbroadcastd(U, Mem.of(Gpr.RSP, YMM * j + 4 * r));
        addProducts(sum(r), Q, U);
      }
    }
    Ymm dot = rowsToLanes();
    a.vcvtdq2ps(dot, dot);
    accumulate(dot);
  }

  /** A shuffle that fills the lower half with word {@code 2c} and the upper with the next one. */
  private Mem pairOfWords(int c) {
    byte[] order = new byte[YMM];
    for (int i = 0; i < YMM; i++) {
      order[i] = (byte) (4 * c + (i < 16 ? 0 : 2) + (i & 1));
    }
    return a.constant(order);
  }
}
