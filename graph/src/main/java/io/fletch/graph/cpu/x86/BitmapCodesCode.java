package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Opmask;
import io.fletch.ffm.x86.Vec;
import io.fletch.ffm.x86.Xmm;
import io.fletch.ffm.x86.Ymm;
import io.fletch.ffm.x86.Zmm;

/**
 * Generates products of bitmap matrices of codes with 8-bit activations, in the order of operations
 * of the scalar kernel. Reads the bytes of the file.
 *
 * <p>Once per call activations are laid out by windows of 64 columns, with their scales for each
 * lane of four, and once per row its scales become floats, both in scratch. Then, per window: the
 * mask spreads the next codes over the columns ({@code vpexpandb}; with AVX2 shuffles by a table
 * per eight bits), an 8-bit dot product adds up four columns per lane, and the next codes are as
 * many on as there are bits: no branch depends on the matrix. With AVX-512 codes are unsigned where
 * they are spread, and zeros with them, so that what this adds is a multiple of the sum of four
 * activations, made once per call.
 *
 * <p>Up to {@link #BEHIND} bytes behind the codes of a row are read and ignored: rows at the end of
 * the codes are the caller's business.
 *
 * <p>Signature of the code: {@code void (long parameters)}, which are eight longs: codes, mask and
 * scales at a row; activations; results; rows, at least 1; bytes from one row of results to the
 * next; scratch of {@link #scratchBytes}, aligned to 64. They are changed.
 */
public final class BitmapCodesCode {
  /** Bytes that are read behind the codes of a row. */
  public static final int BEHIND = 32;

  private static final int VALUES = 0;
  private static final int MASK = 8;
  private static final int HALVES = 16;
  private static final int ACTIVATIONS = 24;
  private static final int RESULT = 32;
  private static final int ROWS = 40;
  private static final int RESULT_STRIDE = 48;
  private static final int SCRATCH = 56;

  private static final int PREFETCH = 2048;

  /** {@code (d | a) & b} as a table of bits. */
  private static final int OR_AND = 0xa8;

  private static final Zmm LOW = Zmm.of(17);

  private static final Gpr PARAMS = Gpr.RDI;
  private static final Gpr BITS = Gpr.RAX;
  private static final Gpr COUNT = Gpr.RCX;
  private static final Gpr TEMP = Gpr.RSI;
  private static final Gpr CODES = Gpr.R8;
  private static final Gpr SCALES = Gpr.R9;
  private static final Gpr MASKS = Gpr.R10;
  private static final Gpr XP = Gpr.R11;
  private static final Gpr WINDOWS = Gpr.R12;
  private static final Gpr TABLE = Gpr.R13;
  private static final Gpr REST = Gpr.R14;
  private static final Gpr NEXT = Gpr.R15;
  private static final Gpr[] SAVED = {Gpr.R12, Gpr.R13, Gpr.R14, Gpr.R15};

  private final Assembler a = new Assembler();
  private final boolean four;
  private final int in;
  private final int xStride;
  private final int xScales;
  private final int tokens;
  private final boolean wide;
  private final long table;

  /** Bytes of a window of activations: codes, corrections if wide, scales. */
  private final int window;

  private final int windows;

  /** Bytes of the windows of one row of activations. */
  private final int row;

  private final int scalesAt;
  private final int codesAt;

  private BitmapCodesCode(
      int bits, int in, long xStride, long xScales, int tokens, boolean wide, long table) {
    four = bits == 4;
    this.in = in;
    this.xStride = Math.toIntExact(xStride);
    this.xScales = Math.toIntExact(xScales);
    this.tokens = tokens;
    this.wide = wide;
    this.table = table;
    window = wide ? 192 : 128;
    windows = (in + 63) / 64;
    row = windows * window;
    scalesAt = Math.multiplyExact(tokens, row);
    codesAt = scalesAt + (4 * windows + 63 & -64);
  }

  /** The most rows of activations that one call can take. */
  public static int maxTokens(boolean wide) {
    return wide ? 4 : 2;
  }

  /** Bytes of scratch that the code for these arguments needs. */
  public static long scratchBytes(int in, int tokens, boolean wide) {
    return new BitmapCodesCode(8, in, 0, 0, tokens, wide, 0).codesAt + 128L;
  }

  /**
   * Emits the code.
   *
   * @param bits of a code, 8 or 4
   * @param in a multiple of 32
   * @param xStride bytes from one row of activations to the next
   * @param xScales bytes from the codes of a row of activations to their scales, one per 32
   * @param tokens rows of activations, 1 to {@link #maxTokens}
   * @param wide as {@link SparseMatmulCode#isWide} says; else AVX2
   * @param table address of the bytes of {@link #table}, which outlive the code
   */
  public static byte[] emit(
      int bits, int in, long xStride, long xScales, int tokens, boolean wide, long table) {
    if (bits != 8 && bits != 4 || in % 32 != 0 || tokens < 1 || tokens > maxTokens(wide)) {
      throw new IllegalArgumentException(
          "no code: bits=" + bits + " in=" + in + " tokens=" + tokens);
    }
    return new BitmapCodesCode(bits, in, xStride, xScales, tokens, wide, table).emit();
  }

  private byte[] emit() {
    a.pushAll(SAVED);
    if (wide) {
      a.vmovdqu(zero(), a.repeated(four ? 0x08080808 : 0x80808080, 64));
      a.vmovdqu(LOW, a.repeated(0x0f0f0f0f, 64));
    }
    layOut();
    Label each = a.here();
    scales();
    products();
    a.mov(Mem.of(PARAMS, MASK), MASKS);
    a.mov(Mem.of(PARAMS, VALUES), CODES);
    store();
    a.mov(TEMP, Mem.of(PARAMS, ROWS));
    a.dec(TEMP);
    a.mov(Mem.of(PARAMS, ROWS), TEMP);
    a.jcc(Condition.NE, each);
    a.popAll(SAVED);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /** What unsigned codes are larger by. */
  private static Zmm zero() {
    return Zmm.of(16);
  }

  private Vec[] sums(int token) {
    return wide ? new Vec[] {Zmm.of(token)} : new Vec[] {Ymm.of(2 * token), Ymm.of(2 * token + 1)};
  }

  // ---- activations, once per call

  private void layOut() {
    a.mov(NEXT, Mem.of(PARAMS, SCRATCH));
    for (int token = 0; token < tokens; token++) {
      a.mov(XP, Mem.of(PARAMS, ACTIVATIONS));
      if (token > 0) {
        a.add(XP, token * xStride);
      }
      a.lea(SCALES, Mem.of(XP, xScales));
      if (in >= 64) {
        a.mov(WINDOWS, (long) (in / 64));
        Label loop = a.here();
        layOutWindow(true);
        a.add(XP, 64);
        a.add(SCALES, 8);
        a.add(NEXT, window);
        a.dec(WINDOWS);
        a.jcc(Condition.NE, loop);
      }
      if (in % 64 != 0) {
        layOutWindow(false);
        a.add(NEXT, window);
      }
    }
  }

  /** A window, or its first half. */
  private void layOutWindow(boolean whole) {
    Ymm low = Ymm.of(0);
    Ymm high = Ymm.of(1);
    a.vmovdqu(low, Mem.of(XP));
    if (whole) {
      a.vmovdqu(high, Mem.of(XP, 32));
    } else {
      a.vpxor(high, high, high);
    }
    a.vmovdqu(Mem.of(NEXT), low);
    a.vmovdqu(Mem.of(NEXT, 32), high);
    if (wide) {
      Zmm both = Zmm.of(0);
      a.vinserti64x4(both, both, high, 1);
      Zmm sum = Zmm.of(2);
      a.vpxor(sum, sum, sum);
      a.vpdpbusd(sum, zero(), both);
      a.vpxor(both, both, both);
      a.vpsubd(sum, both, sum);
      a.vmovdqu(Mem.of(NEXT, 64), sum);
    }
    a.vbroadcastss(low, Mem.of(SCALES));
    if (whole) {
      a.vbroadcastss(high, Mem.of(SCALES, 4));
    } else {
      a.vpxor(high, high, high);
    }
    a.vmovups(Mem.of(NEXT, window - 64), low);
    a.vmovups(Mem.of(NEXT, window - 32), high);
  }

  // ---- scales of a row

  private void scales() {
    a.mov(TEMP, Mem.of(PARAMS, HALVES));
    a.mov(NEXT, Mem.of(PARAMS, SCRATCH));
    a.add(NEXT, scalesAt);
    if (windows >= 8) {
      a.mov(WINDOWS, (long) (windows / 8));
      Label loop = a.here();
      a.vcvtph2ps(Ymm.of(0), Mem.of(TEMP));
      a.vmovups(Mem.of(NEXT), Ymm.of(0));
      a.add(TEMP, 16);
      a.add(NEXT, 32);
      a.dec(WINDOWS);
      a.jcc(Condition.NE, loop);
    }
    for (int i = 0; i < windows % 8; i++) {
      a.movzx16(COUNT, Mem.of(TEMP, 2 * i));
      a.vmovd(Xmm.of(0), COUNT);
      a.vcvtph2ps(Xmm.of(0), Xmm.of(0));
      a.vmovss(Mem.of(NEXT, 4 * i), Xmm.of(0));
    }
    a.add(TEMP, windows % 8 * 2);
    a.mov(Mem.of(PARAMS, HALVES), TEMP);
  }

  // ---- products of a row

  private void products() {
    for (int token = 0; token < tokens; token++) {
      for (Vec sum : sums(token)) {
        a.vpxor(sum, sum, sum);
      }
    }
    a.mov(XP, Mem.of(PARAMS, SCRATCH));
    a.lea(SCALES, Mem.of(XP, scalesAt));
    a.mov(CODES, Mem.of(PARAMS, VALUES));
    a.mov(MASKS, Mem.of(PARAMS, MASK));
    if (!wide) {
      a.mov(TABLE, table);
    }
    if (in >= 64) {
      a.mov(WINDOWS, (long) (in / 64));
      a.align(32);
      Label loop = a.here();
      a.mov(BITS, Mem.of(MASKS));
      a.add(MASKS, 8);
      windowProducts();
      a.dec(WINDOWS);
      a.jcc(Condition.NE, loop);
    }
    if (in % 64 != 0) {
      a.mov32(BITS, Mem.of(MASKS));
      a.add(MASKS, 4);
      windowProducts();
    }
  }

  private Mem x(int token, int at) {
    return Mem.of(XP, token * row + at);
  }

  /** The window whose mask is in {@link #BITS}. */
  private void windowProducts() {
    a.prefetcht0(Mem.of(CODES, PREFETCH));
    a.prefetcht0(Mem.of(MASKS, PREFETCH));
    if (wide) {
      Zmm w = Zmm.of(8);
      spread(w);
      for (int token = 0; token < tokens; token++) {
        Zmm dot = Zmm.of(10);
        a.vmovdqu(dot, x(token, 64));
        a.vpdpbusd(dot, w, x(token, 0));
        a.vcvtdq2ps(dot, dot);
        a.vmulps(dot, dot, Mem.of(SCALES).each());
        a.vfmadd231ps(sums(token)[0], dot, x(token, 128));
      }
    } else {
      Ymm[] w = {Ymm.of(4), Ymm.of(5)};
      spread(w);
      Ymm size = Ymm.of(8);
      Ymm t = Ymm.of(9);
      Ymm d = Ymm.of(10);
      a.vbroadcastss(d, Mem.of(SCALES));
      for (int half = 0; half < 2; half++) {
        a.vpabsb(size, w[half]);
        for (int token = 0; token < tokens; token++) {
          a.vmovdqu(t, x(token, 32 * half));
          a.vpsignb(t, t, w[half]);
          a.vpmaddubsw(t, size, t);
          a.vpmaddwd(t, t, a.repeated(0x00010001, 32));
          a.vcvtdq2ps(t, t);
          a.vmulps(t, t, d);
          a.vfmadd231ps(sums(token)[half], t, x(token, 64 + 32 * half));
        }
      }
    }
    // Some processors make popcnt wait for the old value of its destination.
    a.xor32(COUNT, COUNT);
    a.popcnt(COUNT, BITS);
    if (four) {
      a.add(COUNT, 1);
      a.shr(COUNT, 1);
    }
    a.add(CODES, COUNT);
    a.add(SCALES, 4);
    a.add(XP, window);
  }

  /** The codes of the window at their columns, unsigned. */
  private void spread(Zmm w) {
    a.kmovq(Opmask.K1, BITS);
    if (four) {
      Zmm t = Zmm.of(9);
      Zmm u = Zmm.of(11);
      a.vpmovzxbw(t, Mem.of(CODES));
      a.vpsllw(u, t, 4);
      a.vpternlogd(u, t, LOW, OR_AND);
      a.vmovdqa(w, zero());
      a.masked(Opmask.K1);
      a.vpexpandb(w, u);
    } else {
      a.zeroed(Opmask.K1);
      a.vpexpandb(w, Mem.of(CODES));
      a.vpxor(w, w, zero());
    }
  }

  /** The same with shuffles, signed. */
  private void spread(Ymm[] w) {
    a.mov(REST, BITS);
    a.mov(NEXT, CODES);
    if (four) {
      a.mov(NEXT, Mem.of(PARAMS, SCRATCH));
      a.add(NEXT, codesAt);
      for (int half = 0; half < 2; half++) {
        Ymm t = Ymm.of(8);
        Ymm u = Ymm.of(9);
        a.vpmovzxbw(t, Mem.of(CODES, 16 * half));
        a.vpsllw(u, t, 4);
        a.vpor(t, t, u);
        a.vpand(t, t, a.repeated(0x0f0f0f0f, 32));
        a.vpsubb(t, t, a.repeated(0x08080808, 32));
        a.vmovdqu(Mem.of(NEXT, 32 * half), t);
      }
    }
    for (int half = 0; half < 2; half++) {
      for (int quarter = 0; quarter < 2; quarter++) {
        Xmm low = quarter == 0 ? w[half].xmm() : Xmm.of(8);
        eight(low);
        eight(Xmm.of(9));
        a.vpunpcklqdq(low, low, Xmm.of(9));
      }
      a.vinserti128(w[half], w[half], Xmm.of(8), 1);
    }
  }

  private void eight(Xmm to) {
    a.vmovq(to, Mem.of(NEXT));
    a.mov32(TEMP, REST);
    a.and32(TEMP, 255);
    a.vpshufb(to, to, Mem.of(TABLE, TEMP, 8, 0));
    a.popcnt(TEMP, TEMP);
    a.add(NEXT, TEMP);
    a.shr(REST, 8);
  }

  /** Per byte of a mask: from which byte each of eight comes, negative for none. */
  public static byte[] table() {
    byte[] all = new byte[256 * 8 + 32];
    for (int mask = 0; mask < 256; mask++) {
      byte next = 0;
      for (int i = 0; i < 8; i++) {
        all[8 * mask + i] = (mask >> i & 1) != 0 ? next++ : (byte) 0x80;
      }
    }
    return all;
  }

  // ---- results of a row

  private void store() {
    Lanes lanes = new Lanes(a, wide ? Isa.AVX512_VNNI : Isa.AVX2);
    a.mov(TEMP, Mem.of(PARAMS, RESULT));
    a.mov(NEXT, Mem.of(PARAMS, RESULT_STRIDE));
    a.lea(REST, Mem.of(TEMP, 4));
    a.mov(Mem.of(PARAMS, RESULT), REST);
    Xmm t = Xmm.of(8);
    for (int token = 0; token < tokens; token++) {
      Vec[] all = sums(token);
      lanes.toEight(all, Vec.of(all[0].bytes(), t.code()));
      lanes.toFour(all[0], t);
      lanes.toOne(all[0].xmm(), t);
      a.vmovss(Mem.of(TEMP), all[0].xmm());
      a.add(TEMP, NEXT);
    }
  }
}
