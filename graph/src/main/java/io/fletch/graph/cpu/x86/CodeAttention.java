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
import io.fletch.ffm.x86.Zmm;

/**
 * Generates attention over a cache of 8-bit codes (Q8_0) by integer products, in the order of
 * operations of the scalar kernel: queries and weights are quantized to 16 bits, products of two
 * 16-bit numbers are added in pairs to 32-bit sums ({@code vpdpwssd}, {@code vpmaddwd}), and only
 * sums of a block meet scales.
 *
 * <p>A chunk of positions is <em>packed</em> once for all rows and heads: codes widened to 16 bits,
 * of keys two elements side by side with a position per lane, of values two positions side by side
 * with an element per lane, scales widened to float32. Then each <em>entry</em> (up to four heads
 * of a row) <em>attends</em> to the packed chunk. Where not all positions of a chunk are visible,
 * those that are are copied first, so that nothing else is read; what the copy holds in their place
 * is left of earlier chunks and gets no weight.
 *
 * <p>Codes of four elements (keys) or positions (values) lie in a 32-bit lane after a transposition
 * of bytes. Shifts of 16-bit halves make words of them: of the second and fourth, and, shifted left
 * before, of the first and third. So elements 0 and 2, 1 and 3 of four are pairs, in queries, too.
 * The position of lane {@code 4 p + i} of a vector of keys is {@code (lanes / 4) i + p}: a
 * transposition of scores within 128-bit lanes, heads against positions, puts positions in order.
 */
public final class CodeAttention {
  /** Most heads of an entry. */
  public static final int MAX_HEADS = SoftmaxCode.HEADS;

  private static final int CHUNK = SoftmaxCode.CHUNK;

  /** Bytes of the codes of a head's query of one block. */
  private static final int BLOCK_QUERY = 64;

  /** Positions whose values are packed and used together: four pairs. */
  private static final int TOGETHER = 8;

  /** Chunks between what is prefetched from memory and what is used. */
  private static final int AHEAD = 2;

  /** Positions of the words of four elements of a query. */
  private static final int[] QUERY_ORDER = {0x05040100, 0x07060302, 0x0d0c0908, 0x0f0e0b0a};

  /** Lower words of four lanes, then the upper ones. */
  private static final int[] HALVES = {0x05040100, 0x0d0c0908, 0x07060302, 0x0f0e0b0a};

  private static final Gpr WORK = Gpr.RDI;

  /** Position of the chunk. */
  private static final Gpr POSITION = Gpr.RBX;

  private static final Gpr KEYS = Gpr.RSI;
  private static final Gpr VALUES = Gpr.RDX;

  /** Visible positions of the chunk. */
  private static final Gpr FROM = Gpr.R12;

  private static final Gpr TO = Gpr.R13;
  private static final Gpr NEXT_KEYS = Gpr.R14;
  private static final Gpr NEXT_VALUES = Gpr.R15;

  private static final Gpr ENTRY = Gpr.R10;
  private static final Gpr COUNT = Gpr.R11;

  // Temporaries of whatever is at work.

  private static final Gpr X = Gpr.RAX;
  private static final Gpr Y = Gpr.RCX;
  private static final Gpr A = Gpr.R8;
  private static final Gpr B = Gpr.R9;
  private static final Gpr C = Gpr.RBP;

  private static final Gpr[] SAVED = {Gpr.RBX, Gpr.RBP, Gpr.R12, Gpr.R13, Gpr.R14, Gpr.R15};

  private final Assembler a = new Assembler();
  private final Lanes lanes;
  private final Isa isa;
  private final Layout layout;
  private final boolean capped;
  private final int limit;
  private final int minAmaxBits;
  private final int bytes;
  private final int perVector;

  /**
   * Bytes from a pair of elements of packed keys to the next. With 256 bits a group of eight
   * positions is apart from the others, since two stores in a cycle have to be to one line.
   */
  private final int pairBytes;

  /** Bytes from the pairs of a vector of positions to those of the next. */
  private final int groupBytes;

  private final int heads;
  private final int keyDim;
  private final int valueDim;
  private final int keyStride;
  private final int valueStride;
  private final int keyBlocks;
  private final int valueBlocks;

  /** Whether what is emitted prefetches: what runs once for a chunk that is visible as a whole. */
  private boolean paced = true;

  /** Where packed values are. */
  private int valuesAt;

  /** Lines that are prefetched from where the cursors are, of keys and of values. */
  private final int[] ahead = new int[2];

  /** Whose turn it is: 0 for keys, 1 for values. */
  private int turn;

  private CodeAttention(Layout layout, boolean capped, Isa isa, int limit, int minAmaxBits) {
    this.limit = limit;
    this.minAmaxBits = minAmaxBits;
    this.layout = layout;
    this.capped = capped;
    this.isa = isa;
    this.lanes = new Lanes(a, isa);
    this.bytes = isa.bytes();
    this.perVector = isa.lanes();
    this.pairBytes = lanes.parts == 1 ? 4 * CHUNK : bytes;
    this.groupBytes = lanes.parts == 1 ? bytes : layout.keyDim / 2 * bytes;
    this.heads = layout.heads;
    this.keyDim = layout.keyDim;
    this.valueDim = layout.valueDim;
    this.keyStride = layout.keyStride;
    this.valueStride = layout.valueStride;
    this.keyBlocks = keyDim / 32;
    this.valueBlocks = valueDim / 32;
  }

  /** Whether heads of these widths can be taken. */
  public static boolean supports(int keyDim, int valueDim) {
    return keyDim > 0 && valueDim > 0 && keyDim % 32 == 0 && valueDim % 32 == 0;
  }

  /**
   * Byte offsets in the memory that a call works in, which is aligned to 64 bytes and laid out for
   * {@code heads} heads an entry.
   */
  public static final class Layout {
    /** Heads of an entry. */
    public final int heads;

    /** 64-bit integers: the visible positions of all entries. */
    public final int from = CHUNK * SoftmaxCode.SCORE_BYTES + 64;

    /** See {@link #from}. */
    public final int to = from + 8;

    /** 64-bit: addresses of the key and the value of position 0; only visible ones are read. */
    public final int keys = to + 8;

    /** See {@link #keys}. */
    public final int values = keys + 8;

    /** 64-bit: address of the first entry, and their number, 1 or more. */
    public final int entries = values + 8;

    /** See {@link #entries}. */
    public final int entryCount = entries + 8;

    /** float32: the soft cap of scores. */
    public final int cap = entryCount + 8;

    /** float32: what products of queries and keys are multiplied by. */
    public final int scale = cap + 4;

    /** Bytes from one entry to the next. */
    public static final int ENTRY_BYTES = 64;

    /**
     * 64-bit integers of an entry: visible positions, addresses of the first head's codes of
     * queries, of its factor, and of the state. Heads follow each other.
     */
    public static final int ENTRY_FROM = 0;

    /** See {@link #ENTRY_FROM}. */
    public static final int ENTRY_TO = 8;

    /** See {@link #ENTRY_FROM}. */
    public static final int ENTRY_CODES = 16;

    /** See {@link #ENTRY_FROM}. */
    public static final int ENTRY_FACTORS = 24;

    /** See {@link #ENTRY_FROM}. */
    public static final int ENTRY_STATE = 32;

    /** Floats of a state: maxima of four heads, their sums, the heads' values. */
    public static final int STATE_SUMS = MAX_HEADS;

    /** See {@link #STATE_SUMS}. */
    public static final int STATE_VALUES = 2 * MAX_HEADS;

    private final int keyDim;
    private final int valueDim;
    private final int keyStride;
    private final int valueStride;
    private final int factor = CHUNK * SoftmaxCode.SCORE_BYTES;
    private final int sums;
    private final int keyHalves;
    private final int valueHalves;
    private final int keyScales;
    private final int valueScales;
    private final int visibleScales;
    private final int weightCodes;
    private final int weightScales;
    private final int packedKeys;
    private final int packedValues;
    private final int keyCopy;
    private final int valueCopy;
    private final int end;

    /**
     * @param keyDim elements of a key, a multiple of 32
     * @param valueDim elements of a value, a multiple of 32
     * @param heads heads of an entry, up to {@link #MAX_HEADS}
     */
    public Layout(int keyDim, int valueDim, int heads) {
      if (!supports(keyDim, valueDim) || heads < 1 || heads > MAX_HEADS) {
        throw new IllegalArgumentException(
            "expected=multiples of 32, 1 to 4 heads actual="
                + keyDim
                + " "
                + valueDim
                + " "
                + heads);
      }
      this.keyDim = keyDim;
      this.valueDim = valueDim;
      this.heads = heads;
      this.keyStride = keyDim + keyDim / 16;
      this.valueStride = valueDim + valueDim / 16;
      int keyBlocks = keyDim / 32;
      int valueBlocks = valueDim / 32;
      int at = from + 64;
      sums = at;
      at += MAX_HEADS * CHUNK * 4;
      keyHalves = at;
      at += (keyBlocks + 1) / 2 * CHUNK * 4;
      valueHalves = at;
      at += (valueBlocks + 1) / 2 * CHUNK * 4;
      keyScales = at;
      at += keyBlocks * CHUNK * 4;
      valueScales = at;
      at += valueBlocks * CHUNK * 16;
      visibleScales = at;
      at += valueBlocks * CHUNK * 16;
      weightCodes = at;
      at += valueBlocks * CHUNK / 2 * 16;
      weightScales = at;
      at = aligned(at + 2 * valueBlocks * 16);
      packedKeys = at;
      at += keyDim / 2 * 4 * CHUNK;
      packedValues = at;
      at += CHUNK / 2 * 4 * valueDim;
      keyCopy = at;
      at = aligned(at + CHUNK * keyStride);
      valueCopy = at;
      end = aligned(at + CHUNK * valueStride);
    }

    private static int aligned(int at) {
      return (at + 63) & -64;
    }

    /** Bytes of all, a multiple of 64. */
    public int bytes() {
      return end;
    }

    /** Bytes of the codes of the query of one head. */
    public int queryBytes() {
      return 2 * keyDim;
    }

    /** Bytes of the state of an entry, a multiple of 64. */
    public int stateBytes() {
      return aligned(4 * (STATE_VALUES + heads * valueDim));
    }
  }

  // ---- queries

  /**
   * Code of {@code void (long q, long heads, long codes, long factors, long scale)}: quantizes the
   * queries of {@code heads >= 1} heads. A head's factor is the 32-bit float at {@code scale} times
   * the scale of its codes; not a number where the query is not finite.
   *
   * @param limit largest magnitude of a code
   * @param minAmaxBits bits of the magnitude below which a query is zero
   */
  public static byte[] queries(int keyDim, int limit, int minAmaxBits) {
    Assembler a = new Assembler();
    final Gpr q = Gpr.RDI;
    final Gpr count = Gpr.RSI;
    final Gpr codes = Gpr.RDX;
    final Gpr factors = Gpr.RCX;
    final Gpr scale = Gpr.R8;
    final Gpr at = Gpr.RAX;
    final Ymm magnitude = Ymm.YMM15;
    final Ymm used = Ymm.YMM6;
    final Xmm amax = Xmm.XMM4;
    final Xmm notFinite = Xmm.XMM5;
    final Ymm inverse = Ymm.YMM8;
    final Xmm d = Xmm.XMM7;
    a.vmovdqu(magnitude, a.repeated(0x7fffffff, 32));
    Label head = a.here();
    a.vpxor(Ymm.YMM4, Ymm.YMM4, Ymm.YMM4);
    a.vmovdqa(Ymm.YMM5, Ymm.YMM4);
    a.xor(at, at);
    Label largest = a.here();
    for (int i = 0; i < 4; i++) {
      a.vpand(Ymm.of(i), magnitude, Mem.of(q, at, 4, 32 * i));
      a.vpmaxsd(Ymm.of(4 + i % 2), Ymm.of(4 + i % 2), Ymm.of(i));
    }
    a.add(at, 32);
    a.cmp(at, keyDim);
    a.jcc(Condition.L, largest);
    a.vpmaxsd(Ymm.YMM4, Ymm.YMM4, Ymm.YMM5);
    a.vextracti128(Xmm.XMM5, Ymm.YMM4, 1);
    a.vpmaxsd(amax, amax, Xmm.XMM5);
    for (int order : new int[] {0x4e, 0xb1}) {
      a.vpshufd(Xmm.XMM5, amax, order);
      a.vpmaxsd(amax, amax, Xmm.XMM5);
    }
    scales(a, limit, minAmaxBits, amax, d, inverse.xmm(), used.xmm(), notFinite);
    a.vmulss(d, d, Mem.of(scale));
    a.vmovss(Mem.of(factors), d);
    a.vpbroadcastd(inverse, inverse.xmm());
    a.vpbroadcastd(used, used.xmm());
    a.xor(at, at);
    Label quantize = a.here();
    for (int i = 0; i < 4; i++) {
      Ymm c = Ymm.of(i);
      a.vmulps(c, inverse, Mem.of(q, at, 4, 32 * i));
      a.vcvtps2dq(c, c);
      // Infinity times 0 is no number, and its integer not 0.
      a.vpand(c, c, used);
    }
    for (int i = 0; i < 4; i += 2) {
      Ymm c = Ymm.of(i);
      a.vpackssdw(c, c, Ymm.of(i + 1));
      a.vpermq(c, c, 0xd8);
      a.vpshufb(c, c, a.ints(twice(QUERY_ORDER)));
      a.vmovdqu(Mem.of(codes, at, 2, 16 * i), c);
    }
    a.add(at, 32);
    a.cmp(at, keyDim);
    a.jcc(Condition.L, quantize);
    a.add(q, 4 * keyDim);
    a.add(codes, 2 * keyDim);
    a.add(factors, 4);
    a.dec(count);
    a.jcc(Condition.NE, head);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private static int[] twice(int[] x) {
    return new int[] {x[0], x[1], x[2], x[3], x[0], x[1], x[2], x[3]};
  }

  /**
   * What codes of numbers up to {@code amax} are worth, and its inverse: NaN and 0 where it is not
   * finite, 0 and 0 where it is too small.
   */
  private static void scales(
      Assembler a,
      int limit,
      int minAmaxBits,
      Xmm amax,
      Xmm scale,
      Xmm inverse,
      Xmm used,
      Xmm notFinite) {
    Mem most = a.repeated(Float.floatToRawIntBits(limit), 16);
    a.vpcmpgtd(notFinite, amax, a.repeated(0x7f7fffff, 16));
    a.vpcmpgtd(used, amax, a.repeated(minAmaxBits - 1, 16));
    a.vpandn(used, notFinite, used);
    a.vdivps(scale, amax, most);
    a.vpand(scale, scale, used);
    a.vpand(notFinite, notFinite, a.repeated(0x7fc00000, 16));
    a.vpor(scale, scale, notFinite);
    a.vmovups(inverse, most);
    a.vdivps(inverse, inverse, amax);
    a.vpand(inverse, inverse, used);
  }

  // ---- a call

  /**
   * Code of {@code void (long work)}: takes the visible positions into the states of the entries.
   * The memory is laid out by {@link Layout}.
   *
   * @param capped whether scores have a soft cap
   * @param limit largest magnitude of a weight's code
   * @param minAmaxBits bits of the magnitude below which the weights of a chunk are zero
   */
  public static byte[] emit(Layout layout, boolean capped, Isa isa, int limit, int minAmaxBits) {
    return new CodeAttention(layout, capped, isa, limit, minAmaxBits).emit();
  }

  private byte[] emit() {
    a.pushAll(SAVED);
    a.mov(POSITION, Mem.of(WORK, layout.from));
    a.and(POSITION, -CHUNK);
    Label chunk = a.here();
    visible(Mem.of(WORK, layout.from), Mem.of(WORK, layout.to));
    a.imul(KEYS, POSITION, keyStride);
    a.add(KEYS, Mem.of(WORK, layout.keys));
    a.imul(VALUES, POSITION, valueStride);
    a.add(VALUES, Mem.of(WORK, layout.values));
    a.lea(NEXT_KEYS, Mem.of(KEYS, AHEAD * CHUNK * keyStride));
    a.lea(NEXT_VALUES, Mem.of(VALUES, AHEAD * CHUNK * valueStride));
    copyVisible();
    if (lanes.parts > 1) {
      scalesOfKeys();
    }
    packKeys();
    if (lanes.parts == 1) {
      scalesOfKeys();
    }
    Label apart = a.label();
    Label entry = a.label();
    Label next = a.label();
    a.mov(ENTRY, Mem.of(WORK, layout.entries));
    a.mov(COUNT, Mem.of(WORK, layout.entryCount));
    // Usually values are packed where the first entry waits for something.
    visible(Mem.of(WORK, layout.from), Mem.of(WORK, layout.to));
    ifAllVisible(apart, Condition.NE);
    visible(Mem.of(ENTRY, Layout.ENTRY_FROM), Mem.of(ENTRY, Layout.ENTRY_TO));
    a.cmp(FROM, TO);
    a.jcc(Condition.GE, apart);
    Label several = a.label();
    a.cmp(COUNT, 1);
    a.jcc(Condition.NE, several);
    // The keys have been used then: one place for both halves what the level-1 cache has to hold.
    valuesAt = layout.packedKeys;
    attend(true);
    a.jmp(next);
    a.bind(several);
    valuesAt = layout.packedValues;
    attend(true);
    a.jmp(next);
    paced = false;
    a.bind(apart);
    visible(Mem.of(WORK, layout.from), Mem.of(WORK, layout.to));
    scalesOfValues();
    packValues();
    a.mov(ENTRY, Mem.of(WORK, layout.entries));
    a.mov(COUNT, Mem.of(WORK, layout.entryCount));
    a.bind(entry);
    visible(Mem.of(ENTRY, Layout.ENTRY_FROM), Mem.of(ENTRY, Layout.ENTRY_TO));
    a.cmp(FROM, TO);
    a.jcc(Condition.GE, next);
    attend(false);
    a.bind(next);
    a.add(ENTRY, Layout.ENTRY_BYTES);
    a.dec(COUNT);
    a.jcc(Condition.NE, entry);
    a.add(POSITION, CHUNK);
    a.cmp(POSITION, Mem.of(WORK, layout.to));
    a.jcc(Condition.L, chunk);
    if (lanes.parts > 1) {
      orderResults();
    }
    a.popAll(SAVED);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /** Puts results of blocks, whose quarters {@link #packQuad} interleaved, in order. */
  private void orderResults() {
    a.mov(ENTRY, Mem.of(WORK, layout.entries));
    a.mov(COUNT, Mem.of(WORK, layout.entryCount));
    Label entry = a.here();
    a.mov(A, Mem.of(ENTRY, Layout.ENTRY_STATE));
    a.mov(X, heads * valueBlocks);
    Label block = a.here();
    for (int i = 0; i < 4; i++) {
      a.vmovups(lanes.reg(i), Mem.of(A, 4 * Layout.STATE_VALUES + i * bytes));
    }
    for (int i = 0; i < 4; i++) {
      int pair = i % 2 * 2;
      a.vperm2f128(lanes.reg(4), lanes.reg(pair), lanes.reg(pair + 1), i < 2 ? 0x20 : 0x31);
      a.vmovups(Mem.of(A, 4 * Layout.STATE_VALUES + i * bytes), lanes.reg(4));
    }
    a.add(A, 4 * bytes);
    a.dec(X);
    a.jcc(Condition.NE, block);
    a.add(ENTRY, Layout.ENTRY_BYTES);
    a.dec(COUNT);
    a.jcc(Condition.NE, entry);
  }

  /** The part of a range of positions that is in the chunk. */
  private void visible(Mem from, Mem to) {
    a.xor(X, X);
    a.mov(FROM, from);
    a.sub(FROM, POSITION);
    a.cmov(Condition.L, FROM, X);
    a.mov(X, CHUNK);
    a.mov(TO, to);
    a.sub(TO, POSITION);
    a.cmp(TO, X);
    a.cmov(Condition.G, TO, X);
  }

  /** Jumps where the whole chunk is visible (equal), or where it is not. */
  private void ifAllVisible(Label label, Condition condition) {
    // 0 and 64 give 64, all else less.
    a.mov(X, TO);
    a.sub(X, FROM);
    a.cmp(X, CHUNK);
    a.jcc(condition, label);
  }

  private void copyVisible() {
    Label whole = a.label();
    ifAllVisible(whole, Condition.E);
    copyVisible(KEYS, keyStride, layout.keyCopy);
    copyVisible(VALUES, valueStride, layout.valueCopy);
    a.bind(whole);
  }

  /** Copies the visible positions to their places in the copy of a chunk, and points there. */
  private void copyVisible(Gpr from, int stride, int copy) {
    Label wide = a.label();
    Label narrow = a.label();
    Label done = a.label();
    a.lea(B, Mem.of(WORK, copy));
    a.imul(Y, FROM, stride);
    a.imul(A, TO, stride);
    a.sub(A, 32);
    a.bind(wide);
    a.cmp(Y, A);
    a.jcc(Condition.G, narrow);
    a.vmovdqu(Ymm.YMM0, Mem.of(from, Y, 1, 0));
    a.vmovdqu(Mem.of(B, Y, 1, 0), Ymm.YMM0);
    a.add(Y, 32);
    a.jmp(wide);
    a.bind(narrow);
    a.add(A, 32);
    Label two = a.here();
    a.cmp(Y, A);
    a.jcc(Condition.GE, done);
    a.movzx16(X, Mem.of(from, Y, 1, 0));
    a.mov16(Mem.of(B, Y, 1, 0), X);
    a.add(Y, 2);
    a.jmp(two);
    a.bind(done);
    a.mov(from, B);
  }

  // What is some chunks ahead is prefetched evenly over the time of a chunk, line by line: the
  // processor drops what comes in bursts.

  /** Prefetches lines, of keys and values by turns, where {@link #paced} says so. */
  private void line(int lines) {
    for (int i = 0; paced && i < lines; i++) {
      a.prefetcht1(Mem.of(turn == 0 ? NEXT_KEYS : NEXT_VALUES, 64 * ahead[turn]++));
      turn ^= 1;
    }
  }

  /** Moves the cursors on by what was prefetched: wherever a loop ends. */
  private void advance() {
    for (int i = 0; i < 2; i++) {
      if (ahead[i] > 0) {
        a.add(i == 0 ? NEXT_KEYS : NEXT_VALUES, 64 * ahead[i]);
        ahead[i] = 0;
      }
    }
    turn = 0;
  }

  /** Lines of a chunk that are left for the softmax with 256 bits. */
  private int rest() {
    return keyStride + valueStride - 24 * keyBlocks - 32 * valueBlocks;
  }

  /**
   * Prefetches what is left for a pause of the softmax with 512 bits: all that there is, since a
   * line of a chunk that is not prefetched costs as much time as some positions.
   */
  private void rest(int pause, int pauses) {
    int passes = (valueDim / perVector + vectorsPerPass() - 1) / vectorsPerPass();
    int packing = 8 * keyBlocks + TOGETHER * ((valueDim + bytes - 1) / bytes);
    int others = packing + 8 * keyBlocks + 3 * valueBlocks + 16 * passes;
    for (int i = 0; i < 2; i++) {
      int left = Math.max(0, (i == 0 ? keyStride : valueStride) - others);
      for (int n = pause * left / pauses; n < (pause + 1) * left / pauses; n++) {
        turn = i;
        line(1);
      }
    }
  }

  // ---- packing

  private void scalesOfKeys() {
    for (int g = 0; g < CHUNK / perVector; g++) {
      if (lanes.parts == 1) {
        scalesOfCopies(keyBlocks, g, layout.keyHalves, layout.keyScales, false);
      } else {
        scalesOfGroup(KEYS, keyStride, keyBlocks, g, layout.keyScales, false);
      }
    }
  }

  private void scalesOfValues() {
    for (int g = 0; g < CHUNK / perVector; g++) {
      if (lanes.parts == 1) {
        scalesOfCopies(valueBlocks, g, layout.valueHalves, layout.valueScales, true);
      } else {
        scalesOfGroup(VALUES, valueStride, valueBlocks, g, layout.valueScales, true);
      }
    }
  }

  // With 512 bits general registers, which have little else to do, copy scales while keys are
  // packed: two of a position side by side, in the order that gives that of lanes when what comes
  // of the first eight and of the second eight positions is divided into even and odd ones.

  private void copyScales(Gpr from, int stride, int blocks, Gpr to, int offset) {
    for (int k = 0; k < blocks; k += 2) {
      for (int slot = 0; slot < 16; slot++) {
        Gpr t = slot % 2 == 0 ? X : Y;
        Mem scale = Mem.of(from, slot * stride + 32 * blocks + 2 * k);
        if (k + 1 < blocks) {
          a.mov32(t, scale);
        } else {
          a.movzx16(t, scale);
        }
        int column = slot / 4;
        int at = column / 2 * 8 + slot % 4 * 2 + column % 2;
        a.mov32(Mem.of(to, offset + k / 2 * CHUNK * 4 + 4 * at), t);
      }
    }
  }

  /** Copied scales of sixteen positions as {@link #scalesOfGroup} leaves them. */
  private void scalesOfCopies(int blocks, int group, int from, int to, boolean four) {
    for (int k = 0; k < blocks; k += 2) {
      int at = from + (k / 2 * CHUNK + 16 * group) * 4;
      a.vcvtph2ps(reg(0), Mem.of(WORK, at));
      a.vcvtph2ps(reg(1), Mem.of(WORK, at + 32));
      a.vshufps(reg(2), reg(0), reg(1), 0x88);
      storeScales(reg(2), to, k, group, four);
      if (k + 1 < blocks) {
        a.vshufps(reg(3), reg(0), reg(1), 0xdd);
        storeScales(reg(3), to, k + 1, group, four);
      }
    }
  }

  /**
   * Scales of as many positions as there are lanes, as float32: of each block in the lanes of
   * packed keys, or of each position four times, positions in order. They come with the sixteen
   * bytes at the end of a position, transposed, two in a lane; the first of an odd number with two
   * codes.
   */
  private void scalesOfGroup(Gpr from, int stride, int blocks, int group, int to, boolean four) {
    final int apart = perVector / 4;
    for (int k = 0; 2 * k < blocks; k++) {
      if (k % 4 == 0) {
        for (int i = 0; i < 4; i++) {
          int slot = perVector * group + apart * i;
          gather(reg(i), from, slot * stride + stride - 4 * k - 16, stride);
        }
        a.vpunpckhdq(reg(4), reg(0), reg(1));
        a.vpunpckhdq(reg(5), reg(2), reg(3));
        if (2 * (k + 2) < blocks) {
          a.vpunpckldq(reg(6), reg(0), reg(1));
          a.vpunpckldq(reg(7), reg(2), reg(3));
        }
      }
      Vec low = reg(k % 4 < 2 ? 4 : 6);
      Vec high = reg(k % 4 < 2 ? 5 : 7);
      if (k % 2 == 0) {
        a.vpunpckhqdq(reg(8), low, high);
      } else {
        a.vpunpcklqdq(reg(8), low, high);
      }
      int block = blocks - 1 - 2 * k;
      // Lower words of lanes to the lower half, upper ones to the upper half.
      a.vpshufb(reg(8), reg(8), a.ints(twice(HALVES)));
      a.vpermq(reg(8), reg(8), 0xd8);
      a.vextracti128(reg(9).xmm(), reg(8).ymm(), 1);
      a.vcvtph2ps(reg(9), reg(9).xmm());
      a.vcvtph2ps(reg(8), reg(8).xmm());
      storeScales(reg(9), to, block, group, four);
      if (block > 0) {
        storeScales(reg(8), to, block - 1, group, four);
      }
    }
  }

  private void storeScales(Vec x, int to, int block, int group, boolean four) {
    int position = block * CHUNK + perVector * group;
    if (!four) {
      a.vmovups(Mem.of(WORK, to + 4 * position), x);
      return;
    }
    for (int i = 0; i < 4; i++) {
      // Lane i of each quarter: as many positions in order as there are quarters.
      a.vpermilps(reg(10), x, 0x55 * i);
      a.vmovups(Mem.of(WORK, to + 16 * (position + perVector / 4 * i)), reg(10));
    }
  }

  /** Sixteen bytes each of as many positions as a vector has room for, side by side. */
  private void gather(Vec d, Gpr from, int offset, int stride) {
    a.vmovdqu(d.xmm(), Mem.of(from, offset));
    if (lanes.parts > 1) {
      a.vinserti128(d.ymm(), d.ymm(), Mem.of(from, offset + stride), 1);
      return;
    }
    for (int p = 1; p < 4; p++) {
      a.vinserti32x4(d, d, Mem.of(from, offset + p * stride), p);
    }
  }

  /** Registers for packing: not those that {@link SoftmaxCode} needs meanwhile. */
  private Vec reg(int i) {
    return lanes.reg(lanes.parts == 1 ? 16 + i : i < 8 ? i : i == 8 ? 9 : i + 2);
  }

  private void packKeys() {
    final int shift = Integer.numberOfTrailingZeros(perVector);
    // Groups of as many positions as there are lanes: first, and how many.
    a.mov(COUNT, TO);
    a.add(COUNT, perVector - 1);
    a.shr(COUNT, shift);
    a.mov(X, FROM);
    a.shr(X, shift);
    a.sub(COUNT, X);
    a.imul(Y, X, perVector * keyStride);
    a.add(KEYS, Y);
    a.imul(C, X, perVector * valueStride);
    a.add(C, VALUES);
    a.imul(X, X, groupBytes);
    a.lea(A, Mem.of(WORK, X, 1, layout.packedKeys));
    ones();
    if (lanes.parts == 1) {
      a.lea(B, Mem.of(WORK, X, 1, 0));
    }
    Label group = a.here();
    if (lanes.parts == 1) {
      copyScales(KEYS, keyStride, keyBlocks, B, layout.keyHalves);
      copyScales(C, valueStride, valueBlocks, B, layout.valueHalves);
      a.add(B, 64);
      a.add(C, perVector * valueStride);
    }
    a.mov(X, KEYS);
    a.mov(Y, A);
    a.mov(ENTRY, keyBlocks);
    Label block = a.here();
    if (lanes.parts == 1) {
      packColumns();
    } else {
      packColumn(0);
      packColumn(16);
    }
    advance();
    a.add(X, 32);
    a.add(Y, 16 * pairBytes);
    a.dec(ENTRY);
    a.jcc(Condition.NE, block);
    a.add(KEYS, perVector * keyStride);
    a.add(A, groupBytes);
    a.dec(COUNT);
    a.jcc(Condition.NE, group);
  }

  /** Sixteen elements of the keys of a group. */
  private void packColumn(int column) {
    for (int i = 0; i < 4; i++) {
      gather(lanes.reg(i), X, perVector / 4 * i * keyStride + column, keyStride);
    }
    line(1);
    transpose(0, 4);
    for (int e = 0; e < 4; e++) {
      int pair = column / 2 + 2 * e;
      words(
          lanes.reg(e),
          lanes.reg(8 + e % 4),
          Mem.of(Y, pair * pairBytes),
          Mem.of(Y, (pair + 1) * pairBytes));
    }
  }

  /** Thirty-two elements of the keys of a group of sixteen: what two columns would be. */
  private void packColumns() {
    for (int i = 0; i < 4; i++) {
      for (int set = 0; set < 2; set++) {
        Vec d = lanes.reg(8 * set + i);
        int slot = 4 * i + 2 * set;
        a.vmovdqu(d.ymm(), Mem.of(X, slot * keyStride));
        a.vinserti64x4((Zmm) d, (Zmm) d, Mem.of(X, (slot + 1) * keyStride), 1);
      }
    }
    line(1);
    transpose(0, 4);
    transpose(8, 12);
    for (int e = 0; e < 4; e++) {
      for (int column = 0; column < 2; column++) {
        int pair = 8 * column + 2 * e;
        Vec x = lanes.reg(16 + 2 * column);
        a.vshufi32x4(x, lanes.reg(e), lanes.reg(8 + e), column == 0 ? 0x88 : 0xdd);
        words(
            x,
            lanes.reg(17 + 2 * column),
            Mem.of(Y, pair * pairBytes),
            Mem.of(Y, (pair + 1) * pairBytes));
      }
      line(e < 3 ? 1 : 0);
    }
  }

  /** Transposes four registers from {@code x} on within their quarters; four from t on are lost. */
  private void transpose(int x, int t) {
    a.vpunpckldq(lanes.reg(t), lanes.reg(x), lanes.reg(x + 1));
    a.vpunpckhdq(lanes.reg(t + 1), lanes.reg(x), lanes.reg(x + 1));
    a.vpunpckldq(lanes.reg(t + 2), lanes.reg(x + 2), lanes.reg(x + 3));
    a.vpunpckhdq(lanes.reg(t + 3), lanes.reg(x + 2), lanes.reg(x + 3));
    a.vpunpcklqdq(lanes.reg(x), lanes.reg(t), lanes.reg(t + 2));
    a.vpunpckhqdq(lanes.reg(x + 1), lanes.reg(t), lanes.reg(t + 2));
    a.vpunpcklqdq(lanes.reg(x + 2), lanes.reg(t + 1), lanes.reg(t + 3));
    a.vpunpckhqdq(lanes.reg(x + 3), lanes.reg(t + 1), lanes.reg(t + 3));
  }

  /** Stores bytes 0 and 2, and 1 and 3, of every lane as words. */
  private void words(Vec x, Vec temp, Mem even, Mem odd) {
    words(x, temp);
    a.vmovdqu(even, temp);
    a.vmovdqu(odd, x);
  }

  /** Bytes 0 and 2 of every lane become words of the second register, 1 and 3 of the first. */
  private void words(Vec x, Vec temp) {
    if (lanes.parts > 1) {
      // Even bytes times one and odd ones times zero.
      a.vpmaddubsw(temp, lanes.reg(14), x);
      a.vpsraw(x, x, 8);
    } else {
      a.vpsllw(temp, x, 8);
      a.vpsraw(x, x, 8);
      a.vpsraw(temp, temp, 8);
    }
  }

  /** What {@link #words} multiplies with in 256 bits. */
  private void ones() {
    if (lanes.parts > 1) {
      a.vmovdqu(lanes.reg(14), a.repeated(0x00010001, bytes));
    }
  }

  private void packValues() {
    // Groups of eight positions.
    a.mov(COUNT, TO);
    a.add(COUNT, TOGETHER - 1);
    a.shr(COUNT, 3);
    a.mov(X, FROM);
    a.shr(X, 3);
    a.sub(COUNT, X);
    a.imul(Y, X, TOGETHER * valueStride);
    a.add(VALUES, Y);
    a.imul(A, X, TOGETHER * 2 * valueDim);
    a.add(A, WORK);
    Label group = a.here();
    packGroup(0, A);
    a.add(VALUES, TOGETHER * valueStride);
    a.add(A, TOGETHER * 2 * valueDim);
    a.dec(COUNT);
    a.jcc(Condition.NE, group);
  }

  /** Packs the values of eight positions. */
  private void packGroup(int group, Gpr to) {
    if (lanes.parts == 1) {
      a.vmovdqu(reg(12), a.ints(elementOrder()));
    } else {
      ones();
    }
    // Pairs are those of positions whose weights lie in the same lane of two vectors.
    int apart = perVector / 4;
    for (int at = 0; at < valueDim; at += bytes) {
      for (int i = 0; i < TOGETHER / 4; i++) {
        int slot = TOGETHER * group + (apart == 4 ? 2 * i : 4 * i);
        int pair = TOGETHER / 2 * group + 2 * i;
        packQuad(slot, apart, at, Mem.of(to, valuesAt + (pair * valueDim + at) * 4));
        line(lanes.parts == 1 || i == 0 ? 1 : 0);
      }
    }
  }

  /** Lane {@code 4 q + i} gets the elements that are to be in lane {@code q} of vector i. */
  private int[] elementOrder() {
    int[] order = new int[perVector];
    for (int l = 0; l < perVector; l++) {
      order[l] = l % 4 * (perVector / 4) + l / 4;
    }
    return order;
  }

  /**
   * Positions slot, slot + 1, and those {@code apart} from them: two pairs. With 256 bits, vector i
   * of a block gets elements {@code 4 i} to {@code 4 i + 3} and those 16 later; {@link
   * #orderResults} makes up for it.
   */
  private void packQuad(int slot, int apart, int at, Mem to) {
    boolean half = bytes > valueDim - at;
    int[] slots = {slot, slot + 1, slot + apart, slot + apart + 1};
    for (int i = 0; i < 4; i++) {
      Mem m = Mem.of(VALUES, slots[i] * valueStride + at);
      if (lanes.parts > 1) {
        a.vmovdqu(reg(i), m);
      } else if (half) {
        a.vmovdqu(reg(i).ymm(), m);
        a.vpermd(reg(i), reg(12), reg(i));
      } else {
        a.vpermd(reg(i), reg(12), m);
      }
    }
    a.vpunpcklbw(reg(4), reg(0), reg(1));
    a.vpunpckhbw(reg(5), reg(0), reg(1));
    a.vpunpcklbw(reg(6), reg(2), reg(3));
    a.vpunpckhbw(reg(7), reg(2), reg(3));
    a.vpunpcklwd(reg(0), reg(4), reg(6));
    a.vpunpckhwd(reg(1), reg(4), reg(6));
    if (!half) {
      a.vpunpcklwd(reg(2), reg(5), reg(7));
      a.vpunpckhwd(reg(3), reg(5), reg(7));
    }
    for (int i = 0; i < (half ? 2 : 4); i++) {
      words(reg(i), reg(8 + i));
    }
    for (int i = 0; i < (half ? 2 : 4); i += 2) {
      for (int odd = 0; odd < 2; odd++) {
        Mem m = to.plus(4 * i * perVector + 4 * valueDim * odd);
        a.vmovdqu(m, reg(odd == 0 ? 8 + i : i));
        a.vmovdqu(m.plus(bytes), reg(odd == 0 ? 9 + i : i + 1));
      }
    }
  }

  // ---- an entry

  /**
   * @param pack whether values are still to be packed, all of the chunk
   */
  private void attend(boolean pack) {
    final int pauses = CHUNK * SoftmaxCode.SCORE_BYTES / bytes;
    scores();
    a.mov(B, Mem.of(ENTRY, Layout.ENTRY_STATE));
    new SoftmaxCode(
            lanes,
            capped,
            WORK,
            Mem.of(B),
            Mem.of(B, 4 * Layout.STATE_SUMS),
            Mem.of(WORK, layout.factor),
            null,
            Mem.of(WORK, layout.cap))
        .emit(
            FROM,
            TO,
            X,
            Y,
            i -> {
              packSome(pack && i == 0, true, 0, 3);
              if (lanes.parts == 1) {
                rest(i, pauses);
              } else {
                line((i + 1) * rest() / pauses - i * rest() / pauses);
              }
            });
    advance();
    largestWeights();
    packSome(pack, false, 3, 7);
    quantizeWeights();
    packSome(pack, false, 7, 8);
    results();
  }

  private void packSome(boolean pack, boolean scales, int from, int to) {
    if (pack && scales) {
      scalesOfValues();
    }
    for (int g = from; pack && g < to; g++) {
      packGroup(g, WORK);
    }
    if (pack) {
      advance();
    }
  }

  /**
   * Adds products to sums. With 256 bits every fourth pair is added apart: eight sums at a time,
   * each of which waits five cycles for the one before, leave multipliers idle.
   */
  private void product(int pair, Vec sum, Vec x, Operand y, Vec temp) {
    if (isa.vnni() && (lanes.parts == 1 || pair % 4 < 3)) {
      if (isa.evexDots()) {
        a.evex();
      }
      a.vpdpwssd(sum, x, y);
    } else {
      a.vpmaddwd(temp, x, y);
      a.vpaddd(sum, sum, temp);
    }
  }

  private void scores() {
    // As many positions as registers take.
    final int vectors = lanes.parts == 1 ? 4 : 2;
    final int passes = CHUNK / (vectors * perVector);
    final int sumBytes = CHUNK * 4;
    Vec zero = lanes.reg(0);
    a.vpxor(zero.xmm(), zero.xmm(), zero.xmm());
    for (int i = 0; i < heads * sumBytes; i += bytes) {
      a.vmovups(Mem.of(WORK, layout.sums + i), zero);
    }
    Gpr pass = KEYS;
    Gpr codes = C;
    a.xor(pass, pass);
    Label positions = a.here();
    a.mov(codes, Mem.of(ENTRY, Layout.ENTRY_CODES));
    if (groupBytes == bytes) {
      a.lea(A, Mem.of(WORK, pass, 1, layout.packedKeys));
    } else {
      a.imul(A, pass, groupBytes / bytes);
      a.lea(A, Mem.of(WORK, A, 1, layout.packedKeys));
    }
    a.lea(B, Mem.of(WORK, pass, 1, layout.keyScales));
    a.lea(Y, Mem.of(WORK, pass, 1, layout.sums));
    a.mov(X, keyBlocks);
    Label block = a.here();
    for (int i = 0; isa.vnni() && i < heads * vectors; i++) {
      a.vpxor(lanes.reg(i).xmm(), lanes.reg(i).xmm(), lanes.reg(i).xmm());
    }
    int keyBase = lanes.parts == 1 ? 16 : 8;
    for (int pair = 0; pair < 16; pair++) {
      for (int v = 0; v < vectors; v++) {
        a.vmovdqu(lanes.reg(keyBase + v), Mem.of(A, pair * pairBytes + v * groupBytes));
      }
      for (int h = 0; h < heads; h++) {
        Vec query = lanes.reg(keyBase + vectors + h % 2);
        a.vpbroadcastd(query, Mem.of(codes, h * layout.queryBytes() + 4 * pair));
        for (int v = 0; v < vectors; v++) {
          Vec temp = lanes.reg(keyBase + vectors + 2 + v);
          Vec sum = lanes.reg(h * vectors + v);
          if (pair == 0 && !isa.vnni()) {
            a.vpmaddwd(sum, query, lanes.reg(keyBase + v));
          } else {
            product(pair, sum, query, lanes.reg(keyBase + v), temp);
          }
        }
      }
      if (passes == 1 || pair % 8 == 0) {
        line(1);
      }
    }
    for (int v = 0; v < vectors; v++) {
      Vec scale = lanes.reg(keyBase + v);
      a.vmovups(scale, Mem.of(B, v * bytes));
      for (int h = 0; h < heads; h++) {
        Vec sum = lanes.reg(h * vectors + v);
        Mem m = Mem.of(Y, h * sumBytes + v * bytes);
        a.vcvtdq2ps(sum, sum);
        a.vfmadd213ps(sum, scale, m);
        a.vmovups(m, sum);
      }
    }
    advance();
    a.add(codes, BLOCK_QUERY);
    a.add(A, 16 * pairBytes);
    a.add(B, 4 * CHUNK);
    a.dec(X);
    a.jcc(Condition.NE, block);
    if (passes > 1) {
      a.add(pass, vectors * bytes);
      a.cmp(pass, sumBytes);
      a.jcc(Condition.L, positions);
    }
    transposeScores();
  }

  /** Sums, heads against positions, to scores, positions against heads. */
  private void transposeScores() {
    a.mov(X, Mem.of(ENTRY, Layout.ENTRY_FACTORS));
    for (int h = 0; h < heads; h++) {
      a.vbroadcastss(lanes.reg(12 + h), Mem.of(X, 4 * h));
    }
    for (int g = 0; g < CHUNK / perVector; g++) {
      for (int h = 0; h < heads; h++) {
        a.vmulps(
            lanes.reg(h),
            lanes.reg(12 + h),
            Mem.of(WORK, layout.sums + (h * CHUNK * 4) + g * bytes));
      }
      Vec[] x = new Vec[MAX_HEADS];
      for (int h = 0; h < MAX_HEADS; h++) {
        x[h] = lanes.reg(Math.min(h, heads - 1));
      }
      a.vunpcklps(lanes.reg(4), x[0], x[1]);
      a.vunpckhps(lanes.reg(5), x[0], x[1]);
      a.vunpcklps(lanes.reg(6), x[2], x[3]);
      a.vunpckhps(lanes.reg(7), x[2], x[3]);
      for (int i = 0; i < 4; i++) {
        Vec d = lanes.reg(8 + i);
        if (i % 2 == 0) {
          a.vpunpcklqdq(d, lanes.reg(4 + i / 2), lanes.reg(6 + i / 2));
        } else {
          a.vpunpckhqdq(d, lanes.reg(4 + i / 2), lanes.reg(6 + i / 2));
        }
        a.vmovups(Mem.of(WORK, (4 * g + i) * bytes), d);
      }
    }
  }

  /** Scales of the codes of weights, and their inverses, for all blocks. */
  private void largestWeights() {
    Gpr scales = C;
    Label whole = a.label();
    a.lea(scales, Mem.of(WORK, layout.valueScales));
    ifAllVisible(whole, Condition.E);
    hideScales();
    a.lea(scales, Mem.of(WORK, layout.visibleScales));
    a.bind(whole);
    a.mov(A, scales);
    a.lea(Y, Mem.of(WORK, layout.weightScales));
    a.mov(X, valueBlocks);
    a.vmovdqu(lanes.reg(15), a.repeated(0x7fffffff, bytes));
    Label block = a.here();
    for (int j = 0; j < CHUNK * 16 / bytes; j++) {
      Vec t = lanes.reg(j % 4);
      Vec max = lanes.reg(4 + j % 4);
      a.vmovups(t, Mem.of(WORK, j * bytes));
      a.vmulps(t, t, Mem.of(A, j * bytes));
      if (j < 4) {
        a.vpand(max, t, lanes.reg(15));
      } else {
        a.vpand(t, t, lanes.reg(15));
        a.vpmaxsd(max, max, t);
      }
      line(j % 8 == 0 ? 1 : 0);
    }
    a.vpmaxsd(lanes.reg(4), lanes.reg(4), lanes.reg(5));
    a.vpmaxsd(lanes.reg(6), lanes.reg(6), lanes.reg(7));
    a.vpmaxsd(lanes.reg(4), lanes.reg(4), lanes.reg(6));
    if (lanes.parts == 1) {
      a.vextracti64x4(Ymm.YMM5, Zmm.ZMM4, 1);
      a.vpmaxsd(Ymm.YMM4, Ymm.YMM4, Ymm.YMM5);
    }
    a.vextracti128(Xmm.XMM5, Ymm.YMM4, 1);
    a.vpmaxsd(Xmm.XMM4, Xmm.XMM4, Xmm.XMM5);
    scales(a, limit, minAmaxBits, Xmm.XMM4, Xmm.XMM7, Xmm.XMM8, Xmm.XMM6, Xmm.XMM5);
    a.vmovups(Mem.of(Y), Xmm.XMM7);
    a.vmovups(Mem.of(Y, 16 * valueBlocks), Xmm.XMM8);
    advance();
    a.add(A, CHUNK * 16);
    a.add(Y, 16);
    a.dec(X);
    a.jcc(Condition.NE, block);
  }

  /** Weights times the scales of values, quantized: pairs of codes for every block. */
  private void quantizeWeights() {
    Gpr scales = C;
    a.lea(A, Mem.of(WORK, layout.weightCodes));
    a.lea(Y, Mem.of(WORK, layout.weightScales + 16 * valueBlocks));
    a.mov(X, valueBlocks);
    a.vmovdqu(lanes.reg(14), a.repeated(0xffff, bytes));
    Label block = a.here();
    Vec inverse = lanes.reg(8);
    if (lanes.parts == 1) {
      a.vbroadcasti32x4(inverse, Mem.of(Y));
    } else {
      a.vbroadcasti128(inverse.ymm(), Mem.of(Y));
    }
    for (int j = 0; j < CHUNK * 16 / bytes; j += 2) {
      Vec low = lanes.reg(j % 8);
      Vec high = lanes.reg(j % 8 + 1);
      for (int i = 0; i < 2; i++) {
        Vec w = i == 0 ? low : high;
        a.vmovups(w, Mem.of(WORK, (j + i) * bytes));
        a.vmulps(w, w, Mem.of(scales, (j + i) * bytes));
        a.vmulps(w, w, inverse);
        // The low word of what is no integer is 0.
        a.vcvtps2dq(w, w);
      }
      a.vpslld(high, high, 16);
      if (lanes.parts == 1) {
        // Bits of the first where the mask has ones, of the second elsewhere.
        a.vpternlogd(low, high, lanes.reg(14), 0xe4);
      } else {
        a.vpblendw(low, low, high, 0xaa);
      }
      a.vmovdqu(Mem.of(A, j / 2 * bytes), low);
      line(j % (CHUNK * 4 / bytes) == 0 ? 1 : 0);
    }
    advance();
    a.add(scales, CHUNK * 16);
    a.add(A, CHUNK / 2 * 16);
    a.add(Y, 16);
    a.dec(X);
    a.jcc(Condition.NE, block);
  }

  /** Copies the scales of values, with 0 for positions that are not visible. */
  private void hideScales() {
    Vec x = lanes.reg(0);
    Vec zero = lanes.reg(1);
    a.vpxor(zero.xmm(), zero.xmm(), zero.xmm());
    a.mov(X, 0);
    Label copy = a.here();
    for (int i = 0; i < 256; i += bytes) {
      a.vmovups(x, Mem.of(WORK, X, 1, layout.valueScales + i));
      a.vmovups(Mem.of(WORK, X, 1, layout.visibleScales + i), x);
    }
    a.add(X, 256);
    a.cmp(X, valueBlocks * CHUNK * 16);
    a.jcc(Condition.L, copy);
    Label front = a.label();
    Label frontDone = a.label();
    a.lea(Y, Mem.of(WORK, layout.visibleScales));
    a.mov(X, 0);
    a.bind(front);
    a.cmp(X, FROM);
    a.jcc(Condition.GE, frontDone);
    hidePosition(zero.xmm());
    a.jmp(front);
    a.bind(frontDone);
    Label back = a.label();
    Label backDone = a.label();
    a.mov(X, TO);
    a.mov(Y, TO);
    a.shl(Y, 4);
    a.add(Y, WORK);
    a.add(Y, layout.visibleScales);
    a.bind(back);
    a.cmp(X, CHUNK);
    a.jcc(Condition.GE, backDone);
    hidePosition(zero.xmm());
    a.jmp(back);
    a.bind(backDone);
  }

  private void hidePosition(Xmm zero) {
    for (int b = 0; b < valueBlocks; b++) {
      a.vmovups(Mem.of(Y, b * CHUNK * 16), zero);
    }
    a.add(Y, 16);
    a.inc(X);
  }

  /** Vectors of results of a head that are in registers together. */
  private int vectorsPerPass() {
    int most = (lanes.parts == 1 ? 16 : 8) / heads;
    int blockVectors = 32 / perVector;
    // Whole blocks, or, where these do not fit, parts of one.
    most = most >= blockVectors ? most / blockVectors * blockVectors : Integer.highestOneBit(most);
    return Math.min(most, valueDim / perVector);
  }

  private void results() {
    int vectors = valueDim / perVector;
    int perPass = vectorsPerPass();
    for (int from = 0; from < vectors; from += perPass) {
      pass(from, Math.min(perPass, vectors - from));
    }
  }

  private void pass(int from, int count) {
    final int blockVectors = 32 / perVector;
    for (int i = 0; i < heads * count; i++) {
      a.vpxor(lanes.reg(i).xmm(), lanes.reg(i).xmm(), lanes.reg(i).xmm());
    }
    // Groups of eight positions: two or four vectors of weights, four pairs.
    a.mov(X, FROM);
    a.shr(X, 3);
    a.mov(Y, TO);
    a.add(Y, TOGETHER - 1);
    a.shr(Y, 3);
    a.sub(Y, X);
    a.imul(A, X, TOGETHER * 2 * valueDim);
    a.shl(X, 6);
    a.lea(B, Mem.of(WORK, X, 1, layout.weightCodes));
    a.add(A, WORK);
    a.add(A, valuesAt + from * bytes);
    int base = lanes.parts == 1 ? 16 : 8;
    int temps = lanes.parts == 1 ? 28 : 12;
    Label loop = a.here();
    turn = from / count % 2;
    for (int pair = 0; pair < TOGETHER / 2; pair++) {
      for (int v = 0; v < count; v += blockVectors) {
        int together = Math.min(blockVectors, count - v);
        int block = (from + v) / blockVectors;
        // With one head a value is used once.
        boolean load = heads > 1 && together <= 2;
        for (int i = 0; load && i < together; i++) {
          a.vmovdqu(lanes.reg(base + i), value(pair, v + i));
        }
        for (int h = 0; h < heads; h++) {
          Vec weight = lanes.reg(base + 2 + h % 2);
          a.vpbroadcastd(weight, Mem.of(B, block * CHUNK / 2 * 16 + pair * 16 + 4 * h));
          for (int i = 0; i < together; i++) {
            product(
                pair,
                lanes.reg(h * count + v + i),
                weight,
                load ? lanes.reg(base + i) : value(pair, v + i),
                lanes.reg(temps + i));
          }
        }
      }
      // Passes of 256 bits are many: four lines for a block and group.
      line(lanes.parts == 1 ? 1 : (pair + 1) * count / 8 - pair * count / 8);
    }
    advance();
    a.add(A, TOGETHER * 2 * valueDim);
    a.add(B, TOGETHER / 2 * 16);
    a.dec(Y);
    a.jcc(Condition.NE, loop);
    a.mov(X, Mem.of(ENTRY, Layout.ENTRY_STATE));
    Vec factor = lanes.reg(base);
    Vec scale = lanes.reg(base + 1);
    for (int h = 0; h < heads; h++) {
      a.vbroadcastss(factor, Mem.of(WORK, layout.factor + 4 * h));
      for (int v = 0; v < count; v++) {
        if (v % blockVectors == 0) {
          int block = (from + v) / blockVectors;
          a.vbroadcastss(scale, Mem.of(WORK, layout.weightScales + 16 * block + 4 * h));
        }
        Vec sum = lanes.reg(h * count + v);
        Vec result = lanes.reg(temps + v % 4);
        Mem m = Mem.of(X, 4 * (Layout.STATE_VALUES + h * valueDim + (from + v) * perVector));
        a.vcvtdq2ps(sum, sum);
        a.vmulps(result, factor, m);
        a.vfmadd231ps(result, sum, scale);
        a.vmovups(m, result);
      }
    }
  }

  private Mem value(int pair, int vector) {
    return Mem.of(A, pair * 4 * valueDim + vector * bytes);
  }
}
