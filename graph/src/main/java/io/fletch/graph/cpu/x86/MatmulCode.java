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
import java.util.HashMap;
import java.util.Map;

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
  private static final byte[] IQ4 = Dequantizer.iq4Values();
  private static final byte[] E2M1 = Dequantizer.e2m1DoubledValues();

  private static final int LOW4 = 0x0f0f0f0f;
  private static final int ONES = 0x00010001;

  /** {@code d | (a & b)} as a table of bits. */
  private static final int OR_AND = 0xf8;

  // Arguments.
  private static final Gpr W = Gpr.RDI;
  private static final Gpr X = Gpr.RSI;
  private static final Gpr Y = Gpr.RDX;
  private static final Gpr Y_STRIDE = Gpr.RCX;
  private static final Gpr GROUPS = Gpr.R8;
  // Running pointers and counters.
  private static final Gpr[] STREAM = {Gpr.R9, Gpr.R10, Gpr.R14, Gpr.R15};
  private static final Gpr XQ = Gpr.R11;
  private static final Gpr XD = Gpr.RAX;
  private static final Gpr BLOCKS = Gpr.RBX;
  private static final Gpr INNER = Gpr.R12;
  private static final Gpr XS = Gpr.R13;

  /** Where the scales of a block of 256 are from the running pointer to its codes. */
  private static final Gpr META = Gpr.RBP;

  private static final Gpr[] SAVED = {Gpr.RBX, Gpr.RBP, Gpr.R12, Gpr.R13, Gpr.R14, Gpr.R15};

  private final Assembler a = new Assembler();
  private final PackedLayout p;
  private final Isa isa;
  private final Streaming streaming;
  private final int bytes;

  /** Parts that a group of rows is taken in: 2 where registers are half as wide as the group. */
  private final int parts;

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
  private Vec[] high;
  private Vec[] sum;
  private Vec[] sumHigh;
  private Vec[] w;
  private Vec[] q;
  private Vec[] abs;
  private Vec b;
  private Vec t;
  private Vec nothing;

  /** Constants that lie in registers, by their value. */
  private final Map<Integer, Vec> constants = new HashMap<>();

  /** Where the codes and the scales of the block in work are from the running pointers. */
  private int codesAt;

  private int metaAt;
  private int xAt;

  private MatmulCode(
      PackedLayout layout,
      Isa isa,
      Streaming streaming,
      int xStride,
      int scalesOffset,
      int sumsOffset,
      int tokens) {
    this.p = layout;
    this.isa = isa;
    this.streaming = streaming;
    this.bytes = streaming.half() ? isa.bytes() / 2 : isa.bytes();
    this.parts = isa.bytes() / bytes;
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

  /** What is subtracted from unsigned codes of a type; a power of two, or 0. */
  static int zero(TensorType type, Isa isa) {
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

  /** What the 16 codes of a type with a table stand for, plus its zero; null for other types. */
  static byte[] table(TensorType type, Isa isa) {
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
    MatmulCode code = new MatmulCode(layout, isa, Streaming.SEVERAL_ROWS, 0, 0, 0, 2);
    int fixed = 3 + (layout.codes == Codes.BYTES ? 0 : 1) + (code.signTrick ? 1 : 0);
    return (isa.registers() - fixed) / code.registersPerCell();
  }

  /**
   * Emits the code; how it reads weights changes its speed, never its results.
   *
   * @param streaming half registers for one row of activations and AVX-512 alone
   * @param xStride bytes of a row of activations
   * @param scalesOffset offset of the scales in it
   * @param sumsOffset offset of the sums in it
   * @param tokens rows of activations, 1 to {@link #maxTokens}
   */
  public static byte[] emit(
      PackedLayout layout,
      Isa isa,
      Streaming streaming,
      long xStride,
      long scalesOffset,
      long sumsOffset,
      int tokens) {
    int max = maxTokens(layout, isa);
    if (tokens < 1 || tokens > max) {
      throw new IllegalArgumentException("tokens: expected=[1," + max + "] actual=" + tokens);
    }
    if (streaming.half() && (tokens != 1 || isa != Isa.AVX512_VNNI)) {
      throw new IllegalArgumentException("half registers: expected=one row, 512 bits");
    }
    Math.toIntExact(tokens * xStride + layout.groupBytes * 4 + streaming.prefetch());
    return new MatmulCode(
            layout, isa, streaming, (int) xStride, (int) scalesOffset, (int) sumsOffset, tokens)
        .emit();
  }

  private boolean superBlocks() {
    return p.subBlock != 0;
  }

  /**
   * Groups that few rows of activations take at once, as many as there are registers for, so that
   * every broadcast is used as often; a power of two. For a single row each is a stream of its own,
   * a part of the range that is read from its start to its end: more bytes in flight. Several rows
   * take groups that follow each other.
   */
  private int streams() {
    int perGroup = (p.codes == Codes.BYTES ? 1 : 2) + (signTrick ? 1 : 0);
    int streams = Math.min(streaming.streams(), isa.registers() == 32 ? 4 : 2);
    while (streams > 1
        && streams * parts * (tokens * registersPerCell() + perGroup) + 2 > isa.registers()) {
      streams /= 2;
    }
    return streams;
  }

  /** Whether sums of a block need a 32-bit accumulator beside the register products go to. */
  private boolean separateSums() {
    return superBlocks() || (quads16 > 0 && quads16 < 8);
  }

  /**
   * Whether upper halves of bytes are multiplied where they are, as codes that are 16 times as
   * large, and summed apart: no shifts. Takes registers that several rows of activations need.
   */
  private boolean separateHigh() {
    return isa.vnni()
        && tokens == 1
        && isa.registers() == 32
        && table == null
        && (p.codes == Codes.NIBBLES || p.codes == Codes.TWINS);
  }

  /**
   * Float accumulators of super-blocks live on the stack: they are touched once in 256 elements.
   */
  private int registersPerCell() {
    return 1
        + (separateSums() ? 1 : 0)
        + (superBlocks() ? 0 : 1)
        + (separateHigh() ? superBlocks() ? 2 : 1 : 0);
  }

  /** Bytes on the stack of a row of activations: what replaces its sums. */
  private int sumBytes() {
    if (!isa.vnni() || !superBlocks()) {
      return 0;
    }
    return zero != 0 ? 64 : p.hasMin && p.subBlock == 32 ? 32 : 0;
  }

  private byte[] emit() {
    a.pushAll(SAVED);
    int slots = superBlocks() ? slots() * bytes : 0;
    int stack = slots + tokens * sumBytes();
    if (stack > 0) {
      a.sub(Gpr.RSP, stack);
    }
    Label done = a.label();
    Label single = a.label();
    a.mov(STREAM[0], W);
    if (tokens == 1 && streams() > 1) {
      int streams = streams();
      // W counts what is left over, Y_STRIDE is the distance of the streams in the result.
      a.mov(W, GROUPS);
      a.and(W, streams - 1);
      a.shr(GROUPS, Integer.numberOfTrailingZeros(streams));
      a.jcc(Condition.E, single);
      a.mov(Y_STRIDE, GROUPS);
      a.shl(Y_STRIDE, Integer.numberOfTrailingZeros(bytes * parts));
      a.imul(XQ, GROUPS, (int) p.groupBytes);
      for (int g = 1; g < streams; g++) {
        a.mov(STREAM[g], STREAM[g - 1]);
        a.add(STREAM[g], XQ);
      }
      Label several = a.here();
      tile(streams);
      a.dec(GROUPS);
      a.jcc(Condition.NE, several);
      a.mov(STREAM[0], STREAM[streams - 1]);
      a.imul(Y_STRIDE, Y_STRIDE, streams - 1);
      a.add(Y, Y_STRIDE);
      a.bind(single);
      a.mov(GROUPS, W);
      a.test(GROUPS, GROUPS);
      a.jcc(Condition.E, done);
    } else if (streams() > 1) {
      int streams = streams();
      a.cmp(GROUPS, streams);
      a.jcc(Condition.L, single);
      Label several = a.here();
      for (int g = 1; g < streams; g++) {
        a.lea(STREAM[g], Mem.of(STREAM[g - 1], (int) p.groupBytes));
      }
      tile(streams);
      a.mov(STREAM[0], STREAM[streams - 1]);
      a.add(Y, (streams - 1) * bytes * parts);
      a.sub(GROUPS, streams);
      a.cmp(GROUPS, streams);
      a.jcc(Condition.GE, several);
      a.test(GROUPS, GROUPS);
      a.jcc(Condition.E, done);
      a.bind(single);
    }
    Label loop = a.here();
    tile(1);
    a.dec(GROUPS);
    a.jcc(Condition.NE, loop);
    a.bind(done);
    if (stack > 0) {
      a.add(Gpr.RSP, stack);
    }
    a.popAll(SAVED);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private void allocate() {
    int cells = groups * tokens;
    int next = 0;
    f = new Vec[cells];
    s = new Vec[cells];
    high = new Vec[cells];
    sum = new Vec[cells];
    sumHigh = new Vec[cells];
    for (int c = 0; c < cells; c++) {
      s[c] = Vec.of(bytes, next++);
      sum[c] = separateSums() ? Vec.of(bytes, next++) : s[c];
      f[c] = superBlocks() ? null : Vec.of(bytes, next++);
      high[c] = separateHigh() ? Vec.of(bytes, next++) : null;
      sumHigh[c] = separateHigh() && superBlocks() ? Vec.of(bytes, next++) : null;
    }
    w = new Vec[groups];
    q = new Vec[groups];
    abs = new Vec[groups];
    for (int g = 0; g < groups; g++) {
      q[g] = Vec.of(bytes, next++);
      // Bytes are loaded straight into q, and so are codes that need no shift; w then only holds
      // minimums, of which there is none.
      boolean straight = p.codes == Codes.BYTES || separateHigh() && !p.hasMin;
      w[g] = straight ? q[g] : Vec.of(bytes, next++);
      abs[g] = signTrick ? Vec.of(bytes, next++) : null;
    }
    b = Vec.of(bytes, next++);
    t = Vec.of(bytes, next++);
    if (next > isa.registers()) {
      throw new AssertionError("registers: " + next + " tokens=" + tokens + " " + p.type);
    }
    nothing = null;
    constants.clear();
    if (initialized() && next < isa.registers()) {
      nothing = Vec.of(bytes, next++);
      a.vpxor(nothing, nothing, nothing);
    }
    for (int value : values()) {
      if (next < isa.registers()) {
        Vec v = Vec.of(bytes, next++);
        a.vmovdqu(v, a.repeated(value, bytes));
        constants.put(value, v);
      }
    }
  }

  /** What is used in every quad, the most frequent first. */
  private int[] values() {
    return switch (p.codes) {
      case BYTES -> signTrick ? new int[] {ONES} : new int[0];
      case NIBBLES, TWINS ->
          separateHigh()
              ? new int[] {LOW4, ~LOW4}
              : quads16 > 0 && !superBlocks() ? new int[] {LOW4, ONES} : new int[] {LOW4};
      case FIVE -> new int[] {LOW4, 0x10101010};
      case SIX -> new int[] {LOW4, 0x30303030};
      case TWO -> new int[] {0x03030303};
      case THREE -> new int[] {0x03030303, 0x04040404};
    };
  }

  private Operand constant(int value) {
    Vec v = constants.get(value);
    return v == null ? a.repeated(value, bytes) : v;
  }

  /**
   * Whether what unsigned codes add is where the sums of products start, rather than taken off at
   * their end.
   */
  private boolean initialized() {
    return zero != 0 && isa.vnni() && !superBlocks() && tokens == 1;
  }

  /** All blocks of some groups of rows, one per stream, and the store. */
  private void tile(int streams) {
    groups = streams * parts;
    allocate();
    a.mov(XQ, X);
    a.lea(XD, Mem.of(X, scalesOffset));
    if (superBlocks()) {
      a.lea(XS, Mem.of(X, sumsOffset));
    }
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
    int unit = p.pairs ? 2 : 1;
    if (p.blocks >= unit) {
      a.mov(BLOCKS, (long) p.blocks / unit);
      a.align(32);
      Label block = a.here();
      if (superBlocks()) {
        superBlock();
      } else {
        prefetch(0, 2 * p.blockStride);
        smallBlock(0, 0, 2 * p.codesPerBlock);
        smallBlock(1, p.codesPerBlock, 2 * p.codesPerBlock + p.metaPerBlock);
        advance(2 * p.blockStride);
        a.add(XQ, 64);
        a.add(XD, 8);
      }
      a.dec(BLOCKS);
      a.jcc(Condition.NE, block);
    }
    if (p.blocks % unit != 0) {
      smallBlock(0, 0, p.codesPerBlock);
      advance(p.blockStride);
    }
    int padding = (int) (p.groupBytes - (long) p.blocks * p.blockStride);
    if (padding != 0) {
      advance(padding);
    }
    store();
    a.add(Y, bytes * parts);
  }

  private void advance(int step) {
    for (int s = 0; s < groups / parts; s++) {
      a.add(STREAM[s], step);
    }
  }

  /** The running pointer of a group, or of one that it is a part of. */
  private Gpr stream(int g) {
    return STREAM[g / parts];
  }

  /** Where a part of a group begins in what lies side by side in {@code width} bytes per row. */
  private int part(int g, int width) {
    return g % parts * (bytes / 4) * width;
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
        // Streams of a single row are as far apart as several rows otherwise.
        a.vmovups(Mem.of(XQ, tokens == 1 ? part(g, 4) : g * bytes), superBlocks() ? t : f[c]);
        boolean last = g == groups - 1;
        boolean whole = g % parts == parts - 1;
        if (tokens == 1 ? whole && !last : last && token + 1 < tokens) {
          a.add(XQ, Y_STRIDE);
        }
      }
    }
  }

  // ---- 32-element blocks

  /** Block {@code which} of a pair. */
  private void smallBlock(int which, int codes, int meta) {
    codesAt = codes;
    metaAt = meta;
    xAt = which;
    if (nothing != null) {
      a.vpbroadcastd(b, xSum(0));
      a.vpslld(b, b, Integer.numberOfTrailingZeros(zero));
      for (int g = 0; g < groups; g++) {
        a.vpsubd(s[g], nothing, b);
      }
    }
    chunk(0);
    for (int g = 0; g < groups; g++) {
      if (separateHigh()) {
        a.vpsrad(high[g], high[g], 4);
        a.vpaddd(s[g], s[g], high[g]);
      }
      scale(q[g], g);
      if (p.hasMin) {
        a.vcvtph2ps(w[g], meta(g, p.dminOffset));
      }
    }
    for (int token = 0; token < tokens; token++) {
      if (zero != 0 && nothing == null) {
        a.vpbroadcastd(b, xSum(token));
        a.vpslld(b, b, Integer.numberOfTrailingZeros(zero));
      }
      for (int g = 0; g < groups; g++) {
        Vec dot = sum[g * tokens + token];
        if (zero != 0 && nothing == null) {
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
  }

  /** Block scales of a group as float32. */
  private void scale(Vec d, int g) {
    if (p.type != TensorType.MXFP4) {
      a.vcvtph2ps(d, meta(g, p.dOffset));
      return;
    }
    a.vpmovzxbd(d, meta(g, p.dOffset));
    exponentsToFloats(a, d, t, b);
  }

  /**
   * Exponents {@code e} of MXFP4 become 2^(e - 128): bits {@code (e - 1) << 23}, or for the
   * subnormal {@code e < 2} {@code 0x00200000 << e}.
   */
  static void exponentsToFloats(Assembler a, Vec d, Vec t, Vec b) {
    int bytes = d.bytes();
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
    int inner = p.codesPerBlock / 4;
    if (sumBytes() > 0) {
      stackSums();
    }
    for (int c = 0; c < groups * tokens; c++) {
      a.vpxor(sum[c], sum[c], sum[c]);
      if (separateHigh()) {
        a.vpxor(sumHigh[c], sumHigh[c], sumHigh[c]);
      }
    }
    // Counts up to 0 and is, eightfold, where the inner loop is in the sums on the stack.
    a.mov(INNER, -4L * innerStep());
    a.mov(META, 0L);
    a.align(16);
    Label loop = a.here();
    prefetch(0, inner);
    codesAt = p.scaleBytes;
    if (p.codes == Codes.TWINS) {
      twins();
    } else {
      chunk(0);
      chunk(1);
    }
    advance(inner);
    a.add(META, p.scaleBytes / 4 - inner);
    a.add(XQ, 64);
    a.add(INNER, innerStep());
    a.jcc(Condition.NE, loop);
    prefetch(0, p.blockStride - p.codesPerBlock);
    if (zero != 0 && !isa.vnni()) {
      subSums(-p.codesPerBlock - p.scaleBytes, signedScales);
      for (int c = 0; c < groups * tokens; c++) {
        a.vpslld(s[c], s[c], Integer.numberOfTrailingZeros(zero));
        a.vpsubd(sum[c], sum[c], s[c]);
      }
    }
    for (int g = 0; g < groups; g++) {
      a.vcvtph2ps(q[g], block(g, p.dOffset));
    }
    for (int token = 0; token < tokens; token++) {
      a.vbroadcastss(b, xScale(token));
      for (int g = 0; g < groups; g++) {
        int c = g * tokens + token;
        a.vmulps(t, q[g], b);
        if (separateHigh()) {
          a.vpsrad(sumHigh[c], sumHigh[c], 4);
          a.vpaddd(sum[c], sum[c], sumHigh[c]);
        }
        a.vcvtdq2ps(sum[c], sum[c]);
        a.vmovups(s[c], slot(c));
        a.vfmadd231ps(s[c], t, sum[c]);
        a.vmovups(slot(c), s[c]);
      }
    }
    if (p.hasMin) {
      if (isa.vnni()) {
        minSums();
      } else {
        subSums(p.minsOffset, false);
      }
      for (int g = 0; g < groups; g++) {
        a.vcvtph2ps(q[g], block(g, p.dminOffset));
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
    advance(p.blockStride - p.codesPerBlock);
    a.add(XD, 4);
    a.add(XS, 32);
  }

  /** Float accumulators on the stack. */
  private int slots() {
    return tokens * streams() * parts;
  }

  private int innerStep() {
    return 32 / p.subBlock;
  }

  private int stackedSums(int token) {
    return slots() * bytes + token * sumBytes();
  }

  /**
   * Puts sums of the activations of a block on the stack, where they can be broadcast from: with
   * unsigned codes {@code -zero * sum} of each sub-block in 32 bits, with minimums of 32 elements
   * the sums of 32 in 16 bits, in the order 0-3, any four, 4-7.
   */
  private void stackSums() {
    for (int token = 0; token < tokens; token++) {
      Mem to = Mem.of(Gpr.RSP, stackedSums(token));
      Mem sums = Mem.of(XS, token * xStride);
      if (zero == 0) {
        a.vmovdqu(t.ymm(), sums);
        a.vpmaddwd(t.ymm(), t.ymm(), a.repeated(ONES, 32));
        a.vpackssdw(t.ymm(), t.ymm(), t.ymm());
        a.vmovdqu(to, t.ymm());
        continue;
      }
      if (p.subBlock == 32) {
        a.vmovdqu(t.ymm(), sums);
        a.vpmaddwd(t.ymm(), t.ymm(), a.repeated(ONES, 32));
        negative(t.ymm(), b.ymm(), to);
      } else {
        for (int at = 0; at < 64; at += bytes) {
          a.vpmovsxwd(t, Mem.of(XS, token * xStride + at / 2));
          negative(t, b, to.plus(at));
        }
      }
    }
  }

  private void negative(Vec v, Vec temp, Mem to) {
    a.vpslld(v, v, Integer.numberOfTrailingZeros(zero));
    a.vpxor(temp, temp, temp);
    a.vpsubd(temp, temp, v);
    a.vmovdqu(to, temp);
  }

  /** {@code s = sum over sub-blocks of minimum * (sum of its activations)}, in pairs. */
  private void minSums() {
    int pairs = 128 / p.subBlock;
    for (int i = 0; i < pairs; i++) {
      for (int g = 0; g < groups; g++) {
        a.vpmovzxbw(q[g], block(g, p.minsOffset + i * 2 * p.lanes));
      }
      for (int token = 0; token < tokens; token++) {
        Mem x =
            p.subBlock == 16
                ? Mem.of(XS, token * xStride + 4 * i)
                : Mem.of(Gpr.RSP, stackedSums(token) + (i < 2 ? 4 * i : 8 + 4 * i));
        a.vpbroadcastd(b, x);
        for (int g = 0; g < groups; g++) {
          int c = g * tokens + token;
          if (i == 0) {
            a.vpxor(s[c], s[c], s[c]);
          }
          if (isa.evexDots()) {
            a.evex();
          }
          a.vpdpwssd(s[c], q[g], b);
        }
      }
    }
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
          pair(q[g], block(g, offset + i * 2 * p.lanes), signed);
        } else {
          pair(q[g], block(g, offset + (i >> 1) * 2 * p.lanes), signed);
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
  private void pair(Vec d, Mem from, boolean signed) {
    if (signed) {
      a.vpmovsxbw(d, from);
    } else {
      a.vpmovzxbw(d, from);
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

  /** Scales of a block of 32. */
  private Mem meta(int g, int offset) {
    return Mem.of(stream(g), metaAt + offset + part(g, p.type == TensorType.MXFP4 ? 1 : 2));
  }

  /** What follows the codes of a block of 256, when those are done. */
  private Mem block(int g, int offset) {
    return Mem.of(stream(g), p.scaleBytes + offset + part(g, 2));
  }

  /** Scales of a block of 256 from within its codes. */
  private Mem inner(int g, int offset) {
    return Mem.of(stream(g), META, 1, offset + part(g, 1));
  }

  private Mem xScale(int token) {
    return Mem.of(XD, token * xStride + 4 * xScaleAt());
  }

  private int xScaleAt() {
    return superBlocks() ? 0 : xAt;
  }

  /** The sum of a 32-element block: it lies as far from the sums' start as the scale from its. */
  private Mem xSum(int token) {
    return Mem.of(XD, token * xStride + sumsOffset - scalesOffset + 4 * xAt);
  }

  /** Two chunks whose codes share bytes: with separate upper halves at once, else in turn. */
  private void twins() {
    boolean both = separateHigh();
    for (int part = 0; part < (both ? 1 : 2); part++) {
      for (int k = 0; k < 8; k++) {
        for (int g = 0; g < groups; g++) {
          Mem codes = codes(g, k);
          if (both) {
            a.vpand(q[g], (Vec) constant(LOW4), codes);
          } else if (part == 0) {
            a.vmovdqu(q[g], codes);
            a.vpand(q[g], q[g], constant(LOW4));
          } else {
            a.vmovdqu(q[g], codes);
            a.vpsrlw(q[g], q[g], 4);
            a.vpand(q[g], q[g], constant(LOW4));
          }
        }
        multiply(s, 32 * part + 4 * k, k == 0);
        for (int g = 0; both && g < groups; g++) {
          a.vpand(q[g], (Vec) constant(~LOW4), codes(g, k));
        }
        if (both) {
          multiply(high, 32 + 4 * k, k == 0);
        }
      }
      flush32(s, sum, part, 7);
    }
    if (both) {
      flush32(high, sumHigh, 1, 7);
    }
  }

  /** The integer products of chunk 0 or 1 from the running pointers. */
  private void chunk(int chunk) {
    int first = chunk * p.codes.vectors;
    int sinceFlush = 0;
    for (int g = 0; signTrick && superBlocks() && g < groups; g++) {
      subScale(scaleVector(g), g, chunk, 0);
    }
    int x = superBlocks() ? 32 * chunk : 32 * xAt;
    for (int k = 0; k < 8; k++) {
      for (int g = 0; g < groups; g++) {
        quad(g, first, k);
        if (signTrick) {
          a.vpabsb(abs[g], q[g]);
        }
      }
      boolean assign = sinceFlush == 0;
      if (separateHigh()) {
        boolean upper = (k & 1) != 0;
        multiply(upper ? high : s, x + 4 * k, upper ? k == 1 : k == 0 && nothing == null);
        continue;
      }
      if (assign && superBlocks() && zero != 0 && isa.vnni()) {
        start((32 * chunk + 4 * k) / p.subBlock);
        assign = false;
      }
      multiply(s, x + 4 * k, assign && nothing == null);
      sinceFlush++;
      boolean subEnd = superBlocks() && (4 * k + 4) % p.subBlock == 0;
      if (quads16 > 0 && (sinceFlush == quads16 || k == 7 || subEnd)) {
        flush16(chunk, k, k + 1 == sinceFlush && !superBlocks());
        sinceFlush = 0;
      } else if (isa.vnni() && subEnd) {
        flush32(s, sum, chunk, k);
        sinceFlush = 0;
      }
    }
  }

  /** What unsigned codes of a sub-block add, with the opposite sign, from the stack. */
  private void start(int subBlock) {
    for (int token = 0; token < tokens; token++) {
      int at = stackedSums(token) + 8 * 4 * innerStep() + 4 * subBlock;
      for (int g = 0; g < groups; g++) {
        a.vpbroadcastd(s[g * tokens + token], Mem.of(Gpr.RSP, INNER, 8, at));
      }
    }
  }

  /** Multiplies the quad of every group with four activations of every token. */
  private void multiply(Vec[] to, int xOffset, boolean first) {
    for (int token = 0; token < tokens; token++) {
      Mem x = Mem.of(XQ, token * xStride + xOffset);
      boolean embedded = isa.registers() == 32 && groups == 1;
      if (!embedded) {
        a.vpbroadcastd(b, x);
      }
      for (int g = 0; g < groups; g++) {
        int c = g * tokens + token;
        if (isa.vnni()) {
          if (first) {
            a.vpxor(to[c], to[c], to[c]);
          }
          Operand activations = embedded ? x.each() : b;
          if (isa.evexDots()) {
            a.evex();
          }
          a.vpdpbusd(to[c], q[g], activations);
        } else if (signTrick) {
          signedProduct(c, g, first);
        } else if (first) {
          a.vpmaddubsw(to[c], q[g], b);
        } else {
          a.vpmaddubsw(t, q[g], b);
          a.vpaddw(to[c], to[c], t);
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
      a.vpmaddwd(s[c], t, constant(ONES));
    } else {
      a.vpmaddwd(t, t, constant(ONES));
      a.vpaddd(s[c], s[c], t);
    }
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
        Operand factor = superBlocks() ? b : constant(ONES);
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
  private void flush32(Vec[] from, Vec[] to, int chunk, int k) {
    for (int g = 0; g < groups; g++) {
      int sub = (32 * chunk + 4 * k) / p.subBlock;
      if (signedScales) {
        a.vpmovsxbd(b, inner(g, sub * p.lanes));
      } else {
        a.vpmovzxbd(b, inner(g, sub * p.lanes));
      }
      for (int token = 0; token < tokens; token++) {
        int c = g * tokens + token;
        a.vpmulld(from[c], from[c], b);
        a.vpaddd(to[c], to[c], from[c]);
      }
    }
  }

  /** The scale of the sub-block that a quad belongs to, in both 16-bit halves of each lane. */
  private void subScale(Vec d, int g, int chunk, int k) {
    int sub = (32 * chunk + 4 * k) / p.subBlock;
    pair(d, inner(g, (sub >> 1) * 2 * p.lanes), signedScales);
    a.vpshufb(d, d, duplicate(sub & 1));
  }

  /**
   * Brings quad {@code k} of a chunk into q.
   *
   * @param v the first vector of the chunk
   */
  private void quad(int g, int v, int k) {
    Vec d = q[g];
    switch (p.codes) {
      case BYTES -> a.vmovdqu(d, codes(g, v + k));
      case NIBBLES -> nibble(g, v, k);
      case TWINS -> throw new AssertionError("two chunks");
      case FIVE -> {
        nibble(g, v, k);
        merge(g, 4, k, v + 4, 0x10101010);
      }
      case SIX -> {
        nibble(g, v, k);
        merge(g, 4, 2 * (k & 3), v + 4 + (k >> 2), 0x30303030);
      }
      case TWO -> twoBits(g, v, k);
      case THREE -> {
        twoBits(g, v, k);
        merge(g, 2, k, v + 2, 0x04040404);
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

  /** Vector {@code v} of the codes in work. */
  private Mem codes(int g, int v) {
    return Mem.of(stream(g), codesAt + v * bytes * parts + part(g, 4));
  }

  private void nibble(int g, int v, int k) {
    Mem from = codes(g, v + (k >> 1));
    if (separateHigh()) {
      a.vpand(q[g], (Vec) constant((k & 1) == 0 ? LOW4 : ~LOW4), from);
    } else if ((k & 1) == 0) {
      a.vmovdqu(w[g], from);
      a.vpand(q[g], w[g], constant(LOW4));
    } else {
      a.vpsrlw(q[g], w[g], 4);
      a.vpand(q[g], q[g], constant(LOW4));
    }
  }

  /** {@code q |= vector v, shifted so that bit from is bit to, and masked}. */
  private void merge(int g, int to, int from, int v, int mask) {
    Operand bits = constant(mask);
    if (isa.registers() == 32 && bits instanceof Vec m && to == from) {
      a.vpternlogd(q[g], m, codes(g, v), OR_AND);
      return;
    }
    a.vmovdqu(t, codes(g, v));
    if (to > from) {
      a.vpslld(t, t, to - from);
    } else if (from > to) {
      a.vpsrld(t, t, from - to);
    }
    if (isa.registers() == 32) {
      a.vpternlogd(q[g], t, bits, OR_AND);
    } else {
      a.vpand(t, t, bits);
      a.vpor(q[g], q[g], t);
    }
  }

  private void twoBits(int g, int v, int k) {
    a.vmovdqu(q[g], codes(g, v + (k >> 2)));
    if ((k & 3) != 0) {
      a.vpsrld(q[g], q[g], 2 * (k & 3));
    }
    a.vpand(q[g], q[g], constant(0x03030303));
  }

  /**
   * The first tile that takes a group streams it from memory. Out-of-order execution does not look
   * far past a tile of many rows, so these need it as much as a single one; for the tiles that find
   * the group in the cache it is one load among dozens of products.
   */
  private void prefetch(int from, int length) {
    int distance = streaming.prefetch();
    for (int s = 0; distance > 0 && s < groups / parts; s++) {
      for (int i = 0; i < length; i += 64) {
        a.prefetcht0(Mem.of(STREAM[s], distance + from + i));
      }
    }
  }
}
