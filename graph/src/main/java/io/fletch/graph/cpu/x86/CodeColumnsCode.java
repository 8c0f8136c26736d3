package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Opmask;
import io.fletch.ffm.x86.Vec;
import io.fletch.quant.TensorType;

/**
 * Generates products of one row of 8-bit activations with a panel of {@link #PANEL} outputs of Q4_0
 * or Q8_0 weights, whose columns are contiguous, and of which only those columns are read whose
 * activation is not zero. Integer sums are exact, so results have the bits of other products.
 * AVX-512 with VNNI.
 *
 * <p>A panel is one piece after the other for each block of 32 columns: {@link #PANEL} scales, then
 * 32 columns, each of lines of 64 bytes. Byte {@code 16 l + 4 k + m} of a line of Q8_0, {@code l,
 * k, m} below 4, has output {@code 16 k + 4 l + m} of 64, plus 128; of Q4_0 this one of 128 in its
 * lower half and the one 64 behind it in the upper one, each plus 8.
 *
 * <p>A list ({@link #listBytes}) says how many blocks it has, how many columns, and how many codes
 * with those that fill up fours; from byte {@link #HEADERS} on it has four 32-bit words for every
 * block with activations: the offset of its scales in the panel, the end of its codes, what is
 * added to integer sums, and the scale of the activations. Then come offsets of columns in the
 * panel, 32 bits each, and last the codes of their activations, a byte each. A block has a multiple
 * of four of both; those that fill up have the code zero and the offset of the scales.
 */
public final class CodeColumnsCode {
  /** Outputs of a panel. */
  public static final int PANEL = 256;

  /** Where the words of blocks begin. */
  public static final int HEADERS = 64;

  /** Codes ahead whose columns are fetched. */
  private static final int AHEAD = 40;

  /** What may be written or fetched behind a part of a list. */
  private static final int SLACK = 256;

  private static final Gpr Y = Gpr.RDI;
  private static final Gpr PANEL_AT = Gpr.RSI;
  private static final Gpr LIST = Gpr.RDX;
  private static final Gpr BLOCKS = Gpr.RCX;
  private static final Gpr AT = Gpr.R8;
  private static final Gpr END = Gpr.R9;
  private static final Gpr SCALES = Gpr.R12;
  private static final Gpr BEGIN = Gpr.R13;
  private static final Gpr OFFSETS = Gpr.R14;
  private static final Gpr CODES = Gpr.R15;
  private static final Gpr[] COLUMNS = {Gpr.RAX, Gpr.R10, Gpr.R11, Gpr.RBX};
  private static final Gpr[] SAVED = {Gpr.RBX, Gpr.R12, Gpr.R13, Gpr.R14, Gpr.R15};

  private final Assembler a = new Assembler();
  private final boolean nibbles;
  private final int lines;
  private final int in;
  private final int blockBytes;

  private CodeColumnsCode(TensorType type, int in) {
    nibbles = type == TensorType.Q4_0;
    lines = columnBytes(type) / 64;
    this.in = in;
    blockBytes = blockBytes(type);
  }

  /** Whether there is code for a type. */
  public static boolean supports(TensorType type) {
    return type == TensorType.Q4_0 || type == TensorType.Q8_0;
  }

  /** Bytes of a column of a panel. */
  public static int columnBytes(TensorType type) {
    return type == TensorType.Q4_0 ? PANEL / 2 : PANEL;
  }

  /** Bytes of a block of 32 columns of a panel. */
  public static int blockBytes(TensorType type) {
    return 2 * PANEL + 32 * columnBytes(type);
  }

  private static int offsetsAt(int in) {
    return HEADERS + 16 * (in / 32);
  }

  private static int codesAt(int in) {
    return offsetsAt(in) + 4 * in + SLACK;
  }

  /** Bytes of a list of a row of {@code in} activations, a multiple of 64. */
  public static int listBytes(int in) {
    return (codesAt(in) + in + SLACK + 63) & -64;
  }

  /**
   * Code of {@code void (long y, long panel, long list)}: {@link #PANEL} floats are written to
   * {@code y}.
   */
  public static byte[] emit(TensorType type, int in) {
    return new CodeColumnsCode(type, in).emit();
  }

  /**
   * Code of {@code void (long x, long list)}: writes the list of a row of activations in blocks of
   * 32. Blocks whose scale is zero are not in it; the others are, for their scale may be NaN.
   *
   * @param scales offset of the scales of the row
   * @param sums offset of the sums of codes
   */
  public static byte[] list(TensorType type, int in, long scales, long sums) {
    return new CodeColumnsCode(type, in)
        .list(Math.toIntExact(scales), Math.toIntExact(sums), columnBytes(type));
  }

  private static Vec reg(int code) {
    return Vec.of(64, code);
  }

  private byte[] emit() {
    save();
    Vec zero = reg(0);
    a.vpxor(zero, zero, zero);
    for (int o = 0; o < PANEL; o += 16) {
      a.vmovups(Mem.of(Y, 4 * o), zero);
    }
    a.lea(OFFSETS, Mem.of(LIST, offsetsAt(in)));
    a.lea(CODES, Mem.of(LIST, codesAt(in)));
    a.mov(BLOCKS, Mem.of(LIST));
    a.add(LIST, HEADERS);
    a.mov(BEGIN, 0L);
    var end = a.label();
    a.test(BLOCKS, BLOCKS);
    a.jcc(Condition.E, end);
    Vec factor = reg(29);
    Vec offset = reg(30);
    Vec upper = reg(31);
    a.vmovups(upper, a.repeated(0xf0f0f0f0, 64));
    var block = a.here();
    a.mov32(SCALES, Mem.of(LIST));
    a.add(SCALES, PANEL_AT);
    a.mov32(END, Mem.of(LIST, 4));
    a.vpbroadcastd(offset, Mem.of(LIST, 8));
    a.vbroadcastss(factor, Mem.of(LIST, 12));
    // Most likely the next block is read, too.
    for (int i = 0; i < 2 * PANEL; i += 64) {
      a.prefetcht0(Mem.of(SCALES, blockBytes + i));
    }
    for (int line = 0; line < lines; line++) {
      line(line, factor, offset, upper);
    }
    a.mov(BEGIN, END);
    a.add(LIST, 16);
    a.dec(BLOCKS);
    a.jcc(Condition.NE, block);
    a.bind(end);
    restore();
    return a.assemble();
  }

  private void save() {
    a.pushAll(SAVED);
  }

  private void restore() {
    a.popAll(SAVED);
    a.vzeroupper();
    a.ret();
  }

  /** A line of all columns of a block. */
  private void line(int line, Vec factor, Vec offset, Vec upper) {
    Vec[] sums = new Vec[nibbles ? 8 : 4];
    for (int i = 0; i < sums.length; i++) {
      sums[i] = reg(i);
      a.vpxor(sums[i], sums[i], sums[i]);
    }
    var done = a.label();
    a.mov(AT, BEGIN);
    a.cmp(AT, END);
    a.jcc(Condition.E, done);
    var loop = a.here();
    Vec[] c = {reg(8), reg(9), reg(10), reg(11)};
    Vec[] t = {reg(12), reg(13), reg(14), reg(15)};
    Vec x = reg(16);
    for (int i = 0; line == 0 && i < 4; i++) {
      a.mov32(COLUMNS[i], Mem.of(OFFSETS, AT, 4, 4 * (AHEAD + i)));
      for (int l = 0; l < lines; l++) {
        a.prefetcht0(Mem.of(PANEL_AT, COLUMNS[i], 1, 64 * l));
      }
    }
    for (int i = 0; i < 4; i++) {
      a.mov32(COLUMNS[i], Mem.of(OFFSETS, AT, 4, 4 * i));
    }
    a.vpbroadcastd(x, Mem.of(CODES, AT, 1, 0));
    for (int i = 0; i < 4; i++) {
      a.vmovups(c[i], Mem.of(PANEL_AT, COLUMNS[i], 1, 64 * line));
    }
    a.vpunpcklbw(t[0], c[0], c[1]);
    a.vpunpckhbw(t[1], c[0], c[1]);
    a.vpunpcklbw(t[2], c[2], c[3]);
    a.vpunpckhbw(t[3], c[2], c[3]);
    a.vpunpcklwd(c[0], t[0], t[2]);
    a.vpunpckhwd(c[1], t[0], t[2]);
    a.vpunpcklwd(c[2], t[1], t[3]);
    a.vpunpckhwd(c[3], t[1], t[3]);
    for (int k = 0; k < 4; k++) {
      a.vpdpbusd(sums[k], c[k], x);
      if (nibbles) {
        a.vpand(t[k], c[k], upper);
        a.vpdpbusd(sums[4 + k], t[k], x);
      }
    }
    a.add(AT, 4);
    a.cmp(AT, END);
    a.jcc(Condition.NE, loop);
    a.bind(done);
    for (int k = 0; k < sums.length; k++) {
      // Sums of whole bytes are those of lower halves plus those of upper ones, 16 times.
      if (nibbles && k < 4) {
        a.vpsubd(sums[k], sums[k], sums[4 + k]);
      } else if (nibbles) {
        a.vpsrad(sums[k], sums[k], 4);
      }
      a.vpaddd(sums[k], sums[k], offset);
      a.vcvtdq2ps(sums[k], sums[k]);
      int output = line * 16 * sums.length + 16 * k;
      Vec d = reg(17 + k % 2);
      Vec y = reg(19 + k % 2);
      a.vcvtph2ps(d, Mem.of(SCALES, 2 * output));
      a.vmulps(d, d, factor);
      a.vmovups(y, Mem.of(Y, 4 * output));
      a.vfmadd231ps(y, d, sums[k]);
      a.vmovups(Mem.of(Y, 4 * output), y);
    }
  }

  private byte[] list(int scales, int sums, int columnBytes) {
    Gpr xAt = Gpr.RDI;
    Gpr list = Gpr.RSI;
    Gpr header = Gpr.RDX;
    Gpr rest = Gpr.RCX;
    Gpr kept = Gpr.RAX;
    Gpr word = Gpr.R10;
    Gpr columns = Gpr.R11;
    Gpr scale = Gpr.RBX;
    Vec base = reg(0);
    Vec[] numbers = {reg(1), reg(2)};
    Vec step = reg(3);
    Vec x = reg(4);
    Vec zero = reg(6);
    save();
    for (int half = 0; half < 2; half++) {
      int[] all = new int[16];
      for (int i = 0; i < 16; i++) {
        all[i] = 2 * PANEL + (16 * half + i) * columnBytes;
      }
      a.vmovups(numbers[half], a.ints(all));
    }
    a.vmovups(step, a.repeated(blockBytes, 64));
    a.vpxor(base, base, base);
    a.vpxor(zero, zero, zero);
    a.lea(header, Mem.of(list, HEADERS));
    a.lea(OFFSETS, Mem.of(list, offsetsAt(in)));
    a.lea(CODES, Mem.of(list, codesAt(in)));
    a.mov(AT, 0L);
    a.mov(columns, 0L);
    a.mov(BEGIN, 0L);
    a.lea(SCALES, Mem.of(xAt, scales));
    a.lea(END, Mem.of(xAt, sums));
    a.mov(rest, in / 32);
    var loop = a.here();
    var next = a.label();
    a.mov32(scale, Mem.of(SCALES));
    a.test(scale, scale);
    a.jcc(Condition.E, next);
    for (int half = 0; half < 2; half++) {
      Vec at = reg(5);
      a.vpmovzxbd(x, Mem.of(xAt, 16 * half));
      a.vptestmd(Opmask.K1, x, x);
      a.kmovw(kept, Opmask.K1);
      a.popcnt(kept, kept);
      a.zeroed(Opmask.K1);
      a.vpcompressd(x, x);
      a.vpmovdb(Mem.of(CODES, AT, 1, 0), x);
      a.vpaddd(at, numbers[half], base);
      a.zeroed(Opmask.K1);
      a.vpcompressd(at, at);
      a.vmovups(Mem.of(OFFSETS, AT, 4, 0), at);
      a.add(AT, kept);
      a.add(columns, kept);
    }
    a.vmovups(Mem.of(CODES, AT, 1, 0), zero.xmm());
    a.vmovups(Mem.of(OFFSETS, AT, 4, 0), base.xmm());
    a.add(AT, 3);
    a.and(AT, -4);
    a.mov32(Mem.of(header), BEGIN);
    a.mov32(Mem.of(header, 4), AT);
    a.mov32(word, Mem.of(END));
    a.imul(word, word, nibbles ? -8 : -128);
    a.mov32(Mem.of(header, 8), word);
    a.mov32(Mem.of(header, 12), scale);
    a.add(header, 16);
    a.bind(next);
    a.vpaddd(base, base, step);
    a.add(BEGIN, blockBytes);
    a.add(xAt, 32);
    a.add(SCALES, 4);
    a.add(END, 4);
    a.dec(rest);
    a.jcc(Condition.NE, loop);
    a.sub(header, list);
    a.sub(header, HEADERS);
    a.shr(header, 4);
    a.mov(Mem.of(list), header);
    a.mov(Mem.of(list, 8), columns);
    a.mov(Mem.of(list, 16), AT);
    restore();
    return a.assemble();
  }
}
