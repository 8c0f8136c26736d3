package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Operand;
import io.fletch.ffm.x86.Vec;
import io.fletch.graph.cpu.x86.PackedLayout.Codes;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.TensorType;

/**
 * Generates products with packed quantized weights: {@code tokens} rows of activations by any
 * number of groups of weight rows. Lanes are weight rows, so no lane is ever added to another and
 * the order of float operations is that of the scalar kernels: per block {@code acc = fma(dW * dX,
 * (float) dot, acc)}, then the minimum.
 *
 * <p>Signature of the code: {@code void (long weights, long x, long y, long yStrideBytes, long
 * groups)}, weights at a group, x at the first row of activations, {@code groups >= 1}. Everything
 * that depends on the row length is a constant in the code.
 *
 * <p>Integer products. With VNNI, codes are unsigned and {@code vpdpbusd} sums four products into
 * 32 bits. With AVX2, unsigned codes go through {@code vpmaddubsw} and are summed in 16 bits as
 * long as those cannot overflow, then {@code vpmaddwd} widens them, multiplying with the sub-scale
 * where there is one; full-range signed codes take their sign to the activation first ({@code
 * vpsignb}). What unsigned codes add is taken off again with the sums of the activations.
 */
public final class MatmulCode {
  /** Bytes that are prefetched ahead in each stream of weights. */
  private static final int PREFETCH = 1024;

  private static final byte[] IQ4 = Dequantizer.iq4Values();
  private static final byte[] E2M1 = Dequantizer.e2m1DoubledValues();

  // Arguments.
  private static final Gpr W = Gpr.RDI;
  private static final Gpr X = Gpr.RSI;
  private static final Gpr Y = Gpr.RDX;
  private static final Gpr Y_STRIDE = Gpr.RCX;
  private static final Gpr GROUPS = Gpr.R8;
  // Running pointers and counters.
  private static final Gpr CODES = Gpr.R9;
  private static final Gpr META = Gpr.R10;
  private static final Gpr XQ = Gpr.R11;
  private static final Gpr XD = Gpr.RAX;
  private static final Gpr BLOCKS = Gpr.RBX;
  private static final Gpr INNER = Gpr.R12;
  private static final Gpr XS = Gpr.R13;

  private final Assembler a = new Assembler();
  private final PackedLayout p;
  private final Isa isa;
  private final int bytes;
  private final int xStride;
  private final int scalesOffset;
  private final int sumsOffset;
  private final int tokens;

  /** What must be subtracted from unsigned codes, a power of two, or 0. */
  private final int zero;

  private final byte[] table;

  /** Signed codes of full range: the sign trick. */
  private final boolean signTrick;

  /** Quads whose products can be summed in 16 bits; 0 where they are summed in 32. */
  private final int quads16;

  private final boolean signedScales;

  // Registers of the tile in work; they depend on how many groups are taken at once.
  private int groups;
  private Vec[] f;
  private Vec[] s;
  private Vec[] sum;
  private Vec[] w;
  private Vec[] q;
  private Vec[] abs;
  private Vec b;
  private Vec t;

  private MatmulCode(
      PackedLayout layout, Isa isa, int xStride, int scalesOffset, int sumsOffset, int tokens) {
    this.p = layout;
    this.isa = isa;
    this.bytes = isa.bytes();
    this.xStride = xStride;
    this.scalesOffset = scalesOffset;
    this.sumsOffset = sumsOffset;
    this.tokens = tokens;
    TensorType type = layout.type;
    boolean fullRange =
        type == TensorType.Q8_0 || type == TensorType.IQ4_NL || type == TensorType.IQ4_XS;
    this.signTrick = fullRange && !isa.vnni();
    this.zero = zero(type, isa);
    this.table = table(type, isa);
    this.signedScales =
        switch (type) {
          case Q3_K, Q6_K, IQ4_XS -> true;
          default -> false;
        };
    this.quads16 = isa.vnni() || signTrick ? 0 : Math.min(8, 32767 / (2 * 127 * largest(type)));
  }

  private static int zero(TensorType type, Isa isa) {
    return switch (type) {
      case Q4_0 -> 8;
      case Q5_0, MXFP4 -> 16;
      case Q6_K -> 32;
      case Q3_K -> 4;
      case Q8_0, IQ4_NL, IQ4_XS -> isa.vnni() ? 128 : 0;
      default -> 0;
    };
  }

  /** The largest unsigned code. */
  private static int largest(TensorType type) {
    return switch (type) {
      case Q4_0, Q4_1, Q4_K -> 15;
      case Q5_0, Q5_1, Q5_K -> 31;
      case MXFP4 -> 28;
      case Q6_K -> 63;
      case Q2_K -> 3;
      case Q3_K -> 7;
      default -> 255;
    };
  }

  private static byte[] table(TensorType type, Isa isa) {
    byte[] values =
        switch (type) {
          case IQ4_NL, IQ4_XS -> IQ4.clone();
          case MXFP4 -> E2M1.clone();
          default -> null;
        };
    for (int i = 0; values != null && i < 16; i++) {
      values[i] += (byte) zero(type, isa);
    }
    return values;
  }

  /** The most rows of activations that one call can take. */
  public static int maxTokens(PackedLayout layout, Isa isa) {
    MatmulCode code = new MatmulCode(layout, isa, 0, 0, 0, 1);
    int fixed = 3 + (layout.codes == Codes.BYTES ? 0 : 1) + (code.signTrick ? 1 : 0);
    return (isa.registers() - fixed) / code.registersPerCell();
  }

  /**
   * Emits the code.
   *
   * @param xStride bytes of a row of activations
   * @param scalesOffset offset of the scales in it
   * @param sumsOffset offset of the sums in it
   * @param tokens rows of activations, 1 to {@link #maxTokens}
   */
  public static byte[] emit(
      PackedLayout layout, Isa isa, long xStride, long scalesOffset, long sumsOffset, int tokens) {
    int max = maxTokens(layout, isa);
    if (tokens < 1 || tokens > max) {
      throw new IllegalArgumentException("tokens: expected=[1," + max + "] actual=" + tokens);
    }
    Math.toIntExact(tokens * xStride + layout.groupBytes * 4 + PREFETCH);
    return new MatmulCode(layout, isa, (int) xStride, (int) scalesOffset, (int) sumsOffset, tokens)
        .emit();
  }

  private boolean superBlocks() {
    return p.subBlock != 0;
  }

  /**
   * Groups that few rows of activations take at once, as many as there are registers for, each a
   * stream of its own: more bytes in flight, and every broadcast is used as often.
   */
  private int streams() {
    int perGroup = (p.codes == Codes.BYTES ? 1 : 2) + (signTrick ? 1 : 0);
    int streams = isa.registers() == 32 ? 4 : 2;
    while (streams > 1
        && streams * (tokens * registersPerCell() + perGroup) + 2 > isa.registers()) {
      streams /= 2;
    }
    return streams;
  }

  /** Whether sums of a block need a 32-bit accumulator beside the register products go to. */
  private boolean separateSums() {
    return superBlocks() || (quads16 > 0 && quads16 < 8);
  }

  /**
   * Float accumulators of super-blocks live on the stack: they are touched once in 256 elements.
   */
  private int registersPerCell() {
    return 1 + (separateSums() ? 1 : 0) + (superBlocks() ? 0 : 1);
  }

  private byte[] emit() {
    a.push(Gpr.RBX);
    a.push(Gpr.R12);
    a.push(Gpr.R13);
    int streams = streams();
    int stack = superBlocks() ? tokens * streams * bytes : 0;
    if (stack > 0) {
      a.sub(Gpr.RSP, stack);
    }
    Label done = a.label();
    Label single = a.label();
    if (streams > 1) {
      a.cmp(GROUPS, streams);
      a.jcc(Condition.L, single);
      Label several = a.here();
      tile(streams);
      a.sub(GROUPS, streams);
      a.cmp(GROUPS, streams);
      a.jcc(Condition.GE, several);
      a.test(GROUPS, GROUPS);
      a.jcc(Condition.E, done);
    }
    a.bind(single);
    Label loop = a.here();
    tile(1);
    a.dec(GROUPS);
    a.jcc(Condition.NE, loop);
    a.bind(done);
    if (stack > 0) {
      a.add(Gpr.RSP, stack);
    }
    a.pop(Gpr.R13);
    a.pop(Gpr.R12);
    a.pop(Gpr.RBX);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private void allocate() {
    int cells = groups * tokens;
    int next = 0;
    f = new Vec[cells];
    s = new Vec[cells];
    sum = new Vec[cells];
    for (int c = 0; c < cells; c++) {
      s[c] = Vec.of(bytes, next++);
      sum[c] = separateSums() ? Vec.of(bytes, next++) : s[c];
      f[c] = superBlocks() ? null : Vec.of(bytes, next++);
    }
    w = new Vec[groups];
    q = new Vec[groups];
    abs = new Vec[groups];
    for (int g = 0; g < groups; g++) {
      q[g] = Vec.of(bytes, next++);
      // Bytes are loaded straight into q; w then only holds minimums, which bytes do not have.
      w[g] = p.codes == Codes.BYTES ? q[g] : Vec.of(bytes, next++);
      abs[g] = signTrick ? Vec.of(bytes, next++) : null;
    }
    b = Vec.of(bytes, next++);
    t = Vec.of(bytes, next++);
    if (next > isa.registers()) {
      throw new AssertionError("registers: " + next + " tokens=" + tokens + " " + p.type);
    }
  }

  /** All blocks of some groups of rows, and the store. */
  private void tile(int groups) {
    this.groups = groups;
    allocate();
    a.mov(CODES, W);
    a.lea(META, Mem.of(W, (int) p.metaOffset));
    a.mov(XQ, X);
    a.lea(XD, Mem.of(X, scalesOffset));
    if (superBlocks()) {
      a.lea(XS, Mem.of(X, sumsOffset));
    }
    a.mov(BLOCKS, (long) p.blocks);
    for (int c = 0; c < groups * tokens; c++) {
      if (superBlocks()) {
        if (c == 0) {
          a.vxorps(t, t, t);
        }
        a.vmovups(slot(c), t);
      } else {
        a.vxorps(f[c], f[c], f[c]);
      }
    }
    a.align(32);
    Label block = a.here();
    if (superBlocks()) {
      superBlock();
    } else {
      smallBlock();
    }
    a.dec(BLOCKS);
    a.jcc(Condition.NE, block);
    store();
    a.add(W, (int) (groups * p.groupBytes));
    a.add(Y, groups * bytes);
  }

  private Mem slot(int cell) {
    return Mem.of(Gpr.RSP, cell * bytes);
  }

  private void store() {
    a.mov(XQ, Y);
    for (int token = 0; token < tokens; token++) {
      for (int g = 0; g < groups; g++) {
        int c = g * tokens + token;
        if (superBlocks()) {
          a.vmovups(t, slot(c));
        }
        a.vmovups(Mem.of(XQ, g * bytes), superBlocks() ? t : f[c]);
      }
      if (token + 1 < tokens) {
        a.add(XQ, Y_STRIDE);
      }
    }
  }

  // ---- 32-element blocks

  private void smallBlock() {
    prefetch(p.codesPerBlock, p.metaPerBlock);
    chunk(0);
    for (int g = 0; g < groups; g++) {
      scale(q[g], g);
      if (p.hasMin) {
        a.vcvtph2ps(w[g], meta(g, p.dminOffset));
      }
    }
    for (int token = 0; token < tokens; token++) {
      if (zero != 0) {
        a.vpbroadcastd(b, xSum(token));
        a.vpslld(b, b, Integer.numberOfTrailingZeros(zero));
      }
      for (int g = 0; g < groups; g++) {
        Vec dot = sum[g * tokens + token];
        if (zero != 0) {
          a.vpsubd(dot, dot, b);
        }
        a.vcvtdq2ps(dot, dot);
      }
      a.vbroadcastss(b, xScale(token));
      for (int g = 0; g < groups; g++) {
        int c = g * tokens + token;
        a.vmulps(t, q[g], b);
        a.vfmadd231ps(f[c], t, sum[c]);
      }
      for (int g = 0; p.hasMin && g < groups; g++) {
        a.vbroadcastss(b, xScale(token));
        a.vmulps(t, w[g], b);
        a.vpbroadcastd(b, xSum(token));
        a.vcvtdq2ps(b, b);
        a.vfmadd231ps(f[g * tokens + token], t, b);
      }
    }
    a.add(CODES, p.codesPerBlock);
    a.add(META, p.metaPerBlock);
    a.add(XQ, 32);
    a.add(XD, 4);
  }

  /** Block scales of a group as float32. */
  private void scale(Vec d, int g) {
    if (p.type != TensorType.MXFP4) {
      a.vcvtph2ps(d, meta(g, p.dOffset));
      return;
    }
    // 2^(e - 128): bits (e - 1) << 23, or for the subnormal e < 2 0x00200000 << e.
    a.vpmovzxbd(d, meta(g, p.dOffset));
    a.vpminsd(t, d, a.repeated(2, bytes));
    a.vmovdqu(b, a.repeated(0x00200000, bytes));
    a.vpsllvd(t, b, t);
    a.vpsubd(d, d, a.repeated(1, bytes));
    // As integers, (e - 1) << 23 of e = 0 and 1 is below the subnormal, of all others not.
    a.vpslld(d, d, 23);
    a.vpmaxsd(d, d, t);
  }

  // ---- 256-element blocks

  private void superBlock() {
    int scaleBytes = 256 / p.subBlock * p.lanes;
    for (int c = 0; c < groups * tokens; c++) {
      a.vpxor(sum[c], sum[c], sum[c]);
    }
    a.mov(INNER, 4L);
    a.align(16);
    Label inner = a.here();
    prefetch(p.codesPerBlock / 4, p.metaPerBlock / 4);
    chunk(0);
    chunk(1);
    a.add(CODES, p.codesPerBlock / 4);
    a.add(META, scaleBytes / 4);
    a.add(XQ, 64);
    a.dec(INNER);
    a.jcc(Condition.NE, inner);
    int back = -scaleBytes;
    if (zero != 0) {
      subSums(back, signedScales);
      for (int c = 0; c < groups * tokens; c++) {
        a.vpslld(s[c], s[c], Integer.numberOfTrailingZeros(zero));
        a.vpsubd(sum[c], sum[c], s[c]);
      }
    }
    for (int g = 0; g < groups; g++) {
      a.vcvtph2ps(q[g], meta(g, back + p.dOffset));
    }
    for (int token = 0; token < tokens; token++) {
      a.vbroadcastss(b, xScale(token));
      for (int g = 0; g < groups; g++) {
        int c = g * tokens + token;
        a.vmulps(t, q[g], b);
        a.vcvtdq2ps(sum[c], sum[c]);
        a.vmovups(s[c], slot(c));
        a.vfmadd231ps(s[c], t, sum[c]);
        a.vmovups(slot(c), s[c]);
      }
    }
    if (p.hasMin) {
      subSums(back + p.minsOffset, false);
      for (int g = 0; g < groups; g++) {
        a.vcvtph2ps(q[g], meta(g, back + p.dminOffset));
      }
      for (int token = 0; token < tokens; token++) {
        a.vbroadcastss(b, xScale(token));
        for (int g = 0; g < groups; g++) {
          int c = g * tokens + token;
          a.vmulps(t, q[g], b);
          a.vcvtdq2ps(s[c], s[c]);
          a.vmovups(sum[c], slot(c));
          a.vfnmadd231ps(sum[c], t, s[c]);
          a.vmovups(slot(c), sum[c]);
        }
      }
    }
    a.add(META, p.metaPerBlock - scaleBytes);
    a.add(XD, 4);
    a.add(XS, 32);
  }

  /**
   * {@code s = sum over sub-blocks of (8-bit value of the sub-block) * (sum of its activations)}.
   */
  private void subSums(int offset, boolean signed) {
    for (int i = 0; i < 8; i++) {
      // Sums come in eight pairs of 16 elements; a pair meets one pair of 16-element sub-blocks or
      // twice the same 32-element sub-block.
      for (int g = 0; g < groups; g++) {
        if (p.subBlock == 16) {
          pair(q[g], g, offset + i * 2 * p.lanes, signed);
        } else {
          pair(q[g], g, offset + (i >> 1) * 2 * p.lanes, signed);
          a.vpshufb(q[g], q[g], duplicate(i & 1));
        }
      }
      for (int token = 0; token < tokens; token++) {
        a.vpbroadcastd(b, Mem.of(XS, token * xStride + 4 * i));
        for (int g = 0; g < groups; g++) {
          int c = g * tokens + token;
          if (i == 0) {
            a.vpmaddwd(s[c], q[g], b);
          } else {
            a.vpmaddwd(t, q[g], b);
            a.vpaddd(s[c], s[c], t);
          }
        }
      }
    }
  }

  /** Two bytes per lane, widened to 16 bits. */
  private void pair(Vec d, int g, int offset, boolean signed) {
    if (signed) {
      a.vpmovsxbw(d, meta(g, offset));
    } else {
      a.vpmovzxbw(d, meta(g, offset));
    }
  }

  /** A shuffle that copies one of the two 16-bit halves of each lane to the other. */
  private Mem duplicate(int half) {
    byte[] order = new byte[bytes];
    for (int i = 0; i < bytes; i++) {
      order[i] = (byte) ((i & 12) | half << 1 | i & 1);
    }
    return a.constant(order);
  }

  // ---- 32 elements

  private Mem meta(int g, int offset) {
    return Mem.of(META, (int) (g * p.groupBytes) + offset);
  }

  private Mem xScale(int token) {
    return Mem.of(XD, token * xStride);
  }

  /** The sum of a 32-element block: it lies as far from the sums' start as the scale from its. */
  private Mem xSum(int token) {
    return Mem.of(XD, token * xStride + sumsOffset - scalesOffset);
  }

  /** The integer products of chunk 0 or 1 from the running pointers. */
  private void chunk(int chunk) {
    int perChunk = p.codes.vectors * bytes;
    int sinceFlush = 0;
    for (int g = 0; signTrick && superBlocks() && g < groups; g++) {
      subScale(scaleVector(g), g, chunk, 0);
    }
    for (int k = 0; k < 8; k++) {
      for (int g = 0; g < groups; g++) {
        quad(g, (int) (g * p.groupBytes) + chunk * perChunk, k);
        if (signTrick) {
          a.vpabsb(abs[g], q[g]);
        }
      }
      boolean first = sinceFlush == 0;
      multiply(32 * chunk + 4 * k, first);
      sinceFlush++;
      boolean subEnd = superBlocks() && (4 * k + 4) % p.subBlock == 0;
      if (quads16 > 0 && (sinceFlush == quads16 || k == 7 || subEnd)) {
        flush16(chunk, k, k + 1 == sinceFlush && !superBlocks());
        sinceFlush = 0;
      } else if (isa.vnni() && subEnd) {
        flush32(chunk, k);
        sinceFlush = 0;
      }
    }
  }

  /** Multiplies the quad of every group with four activations of every token. */
  private void multiply(int xOffset, boolean first) {
    for (int token = 0; token < tokens; token++) {
      Mem x = Mem.of(XQ, token * xStride + xOffset);
      boolean embedded = isa.vnni() && groups == 1 && bytes == 64;
      if (!embedded) {
        a.vpbroadcastd(b, x);
      }
      for (int g = 0; g < groups; g++) {
        int c = g * tokens + token;
        if (isa.vnni()) {
          if (first) {
            a.vpxor(s[c], s[c], s[c]);
          }
          Operand activations = embedded ? x.each() : b;
          a.vpdpbusd(s[c], q[g], activations);
        } else if (signTrick) {
          signedProduct(c, g, first);
        } else if (first) {
          a.vpmaddubsw(s[c], q[g], b);
        } else {
          a.vpmaddubsw(t, q[g], b);
          a.vpaddw(s[c], s[c], t);
        }
      }
    }
  }

  /** Products of full-range codes: too large to be summed in 16 bits. */
  private void signedProduct(int c, int g, boolean first) {
    a.vpsignb(t, b, q[g]);
    a.vpmaddubsw(t, abs[g], t);
    if (superBlocks()) {
      a.vpmaddwd(t, t, scaleVector(g));
      a.vpaddd(sum[c], sum[c], t);
    } else if (first) {
      a.vpmaddwd(s[c], t, ones());
    } else {
      a.vpmaddwd(t, t, ones());
      a.vpaddd(s[c], s[c], t);
    }
  }

  private Mem ones() {
    return a.repeated(0x00010001, bytes);
  }

  /** Where the sign trick keeps the sub-scale of a chunk: in an s, which it does not sum in. */
  private Vec scaleVector(int g) {
    return s[g * tokens];
  }

  /** Widens 16-bit sums, with the sub-scale where there is one. */
  private void flush16(int chunk, int k, boolean assign) {
    for (int g = 0; g < groups; g++) {
      if (superBlocks()) {
        subScale(b, g, chunk, k);
      }
      for (int token = 0; token < tokens; token++) {
        int c = g * tokens + token;
        Operand factor = superBlocks() ? b : ones();
        if (assign) {
          a.vpmaddwd(sum[c], s[c], factor);
        } else {
          a.vpmaddwd(s[c], s[c], factor);
          a.vpaddd(sum[c], sum[c], s[c]);
        }
      }
    }
  }

  /** Multiplies 32-bit sums of a sub-block with its scale. */
  private void flush32(int chunk, int k) {
    for (int g = 0; g < groups; g++) {
      int sub = (32 * chunk + 4 * k) / p.subBlock;
      pair(b, g, (sub >> 1) * 2 * p.lanes, signedScales);
      if ((sub & 1) == 0) {
        a.vpslld(b, b, 16);
      }
      a.vpsrad(b, b, 16);
      for (int token = 0; token < tokens; token++) {
        int c = g * tokens + token;
        a.vpmulld(s[c], s[c], b);
        a.vpaddd(sum[c], sum[c], s[c]);
      }
    }
  }

  /** The scale of the sub-block that a quad belongs to, in both 16-bit halves of each lane. */
  private void subScale(Vec d, int g, int chunk, int k) {
    int sub = (32 * chunk + 4 * k) / p.subBlock;
    pair(d, g, (sub >> 1) * 2 * p.lanes, signedScales);
    a.vpshufb(d, d, duplicate(sub & 1));
  }

  /** Brings quad {@code k} of a chunk of a group into q. */
  private void quad(int g, int offset, int k) {
    Vec d = q[g];
    switch (p.codes) {
      case BYTES -> a.vmovdqu(d, Mem.of(CODES, offset + k * bytes));
      case NIBBLES -> nibble(g, offset, k);
      case FIVE -> {
        nibble(g, offset, k);
        bitTo(4, k, offset + 4 * bytes, 0x10101010);
        a.vpor(d, d, t);
      }
      case SIX -> {
        nibble(g, offset, k);
        bitTo(4, 2 * (k & 3), offset + (4 + (k >> 2)) * bytes, 0x30303030);
        a.vpor(d, d, t);
      }
      case TWO -> twoBits(d, offset, k);
      case THREE -> {
        twoBits(d, offset, k);
        bitTo(2, k, offset + 2 * bytes, 0x04040404);
        a.vpor(d, d, t);
      }
    }
    if (table != null) {
      byte[] wide = new byte[bytes];
      for (int i = 0; i < bytes; i++) {
        wide[i] = table[i & 15];
      }
      a.vmovdqu(t, a.constant(wide));
      a.vpshufb(d, t, d);
    }
  }

  private void nibble(int g, int offset, int k) {
    if ((k & 1) == 0) {
      a.vmovdqu(w[g], Mem.of(CODES, offset + (k >> 1) * bytes));
      a.vpand(q[g], w[g], a.repeated(0x0f0f0f0f, bytes));
    } else {
      a.vpsrlw(q[g], w[g], 4);
      a.vpand(q[g], q[g], a.repeated(0x0f0f0f0f, bytes));
    }
  }

  /** {@code t} = the vector at an offset, shifted so that bit {@code from} is bit {@code to}. */
  private void bitTo(int to, int from, int offset, int mask) {
    a.vmovdqu(t, Mem.of(CODES, offset));
    if (to > from) {
      a.vpslld(t, t, to - from);
    } else if (from > to) {
      a.vpsrld(t, t, from - to);
    }
    a.vpand(t, t, a.repeated(mask, bytes));
  }

  private void twoBits(Vec d, int offset, int k) {
    a.vmovdqu(d, Mem.of(CODES, offset + (k >> 2) * bytes));
    if ((k & 3) != 0) {
      a.vpsrld(d, d, 2 * (k & 3));
    }
    a.vpand(d, d, a.repeated(0x03030303, bytes));
  }

  /**
   * The first tile that takes a group streams it from memory. Out-of-order execution does not look
   * far past a tile of many rows, so these need it as much as a single one; for the tiles that find
   * the group in the cache it is one load among dozens of products.
   */
  private void prefetch(int codes, int meta) {
    for (int g = 0; g < groups; g++) {
      int base = (int) (g * p.groupBytes) + PREFETCH;
      for (int i = 0; i < codes; i += 64) {
        a.prefetcht0(Mem.of(CODES, base + i));
      }
      a.prefetcht0(Mem.of(META, (int) (g * p.groupBytes) + PREFETCH * meta / codes));
    }
  }
}
