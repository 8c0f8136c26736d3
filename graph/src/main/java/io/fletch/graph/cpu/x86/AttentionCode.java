package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Opmask;
import io.fletch.ffm.x86.Vec;
import io.fletch.graph.KvCache;

/**
 * Generates online softmax attention of a few query heads over float slots that they share, in
 * chunks of {@link #CHUNK} slots and in the order of operations of the scalar kernel. Keys and
 * values are loaded and widened once for all heads, whose softmax {@link SoftmaxCode} does.
 *
 * <p>The state is float32: scores {@code [CHUNK][MAX_HEADS]}, what {@link #MAXIMUM} to {@link #CAP}
 * name, room to work, and from {@link #VALUES} on the unnormalised results of the heads.
 */
public final class AttentionCode {
  /** Slots of a chunk. */
  public static final int CHUNK = SoftmaxCode.CHUNK;

  /** Most heads of one function. */
  public static final int MAX_HEADS = SoftmaxCode.HEADS;

  /** Index of the heads' maxima in the state; -inf before the first slot. */
  public static final int MAXIMUM = CHUNK * MAX_HEADS;

  /** Index of the heads' sums of weights in the state; 0 before the first slot. */
  public static final int SUM = MAXIMUM + MAX_HEADS;

  /** Index of what scores are multiplied by. */
  public static final int SCALE = SUM + MAX_HEADS;

  /** Index of the soft cap of scores. */
  public static final int CAP = SCALE + 1;

  /**
   * Index of a 64-bit number in the place of two floats: how many positions of its chunk lie in
   * front of the first slot of a call. The call leaves 0.
   */
  public static final int FRONT = CAP + 1;

  private static final int FACTOR = SCALE + 4;

  /** Index of the first head's unnormalised result in a state; 0 before the first slot. */
  public static final int VALUES = FACTOR + MAX_HEADS;

  /** Bytes of the scores of a slot. */
  private static final int SCORE_BYTES = SoftmaxCode.SCORE_BYTES;

  /** Slots that are taken together. */
  private static final int SLOTS = 4;

  private static final Gpr Q = Gpr.RDI;
  private static final Gpr KEYS = Gpr.RSI;
  private static final Gpr VALUES_POINTER = Gpr.RDX;
  private static final Gpr LEFT = Gpr.RCX;
  private static final Gpr STATE = Gpr.R8;

  /** Slots of the chunk at hand. */
  private static final Gpr COUNT = Gpr.R9;

  private static final Gpr COUNTER = Gpr.R10;
  private static final Gpr SCORE = Gpr.R11;

  /** The key or value at hand. */
  private static final Gpr SLOT = Gpr.RAX;

  /** What is to be prefetched next of values, with 256 bits. */
  private static final Gpr NEXT_VALUES = Gpr.RBX;

  /** Elements of keys that are in registers together with 512 bits. */
  private static final int COLUMNS = 32;

  /** Chunks between what is prefetched from memory and what is used. */
  private static final int AHEAD = 2;

  /** Lines of four keys that are prefetched during the softmax. */
  private static final int LATER = 2;

  /** Slots between what is prefetched from the level-2 cache and what is used. */
  private static final int NEXT = 16;

  private static final Opmask UPPER_HALF = Opmask.K3;
  private static final Opmask ODD_QUARTERS = Opmask.K4;
  private static final Opmask UPPER_PAIRS = Opmask.K5;

  private final Assembler a = new Assembler();
  private final Lanes lanes;
  private final SoftmaxCode softmax;
  private final KvCache.Type type;
  private final int keyDim;
  private final int keyStride;
  private final int valueDim;
  private final int valueStride;
  private final int heads;
  private final int bytes;

  private AttentionCode(
      KvCache.Type type,
      int keyDim,
      long keyStride,
      int valueDim,
      long valueStride,
      int heads,
      boolean capped,
      Isa isa) {
    this.type = type;
    this.keyDim = keyDim;
    // What is prefetched is addressed from the slot at hand.
    int reach = (AHEAD + 1) * CHUNK;
    this.keyStride = Math.toIntExact(reach * keyStride) / reach;
    this.valueDim = valueDim;
    this.valueStride = Math.toIntExact(reach * valueStride) / reach;
    this.heads = heads;
    this.bytes = isa.bytes();
    this.lanes = new Lanes(a, isa);
    this.softmax =
        new SoftmaxCode(
            lanes,
            capped,
            STATE,
            Mem.of(STATE, 4 * MAXIMUM),
            Mem.of(STATE, 4 * SUM),
            Mem.of(STATE, 4 * FACTOR),
            Mem.of(STATE, 4 * SCALE),
            Mem.of(STATE, 4 * CAP));
  }

  /** Whether heads of these widths can be taken; {@link CodeAttention} has Q8_0. */
  public static boolean supports(KvCache.Type type, int keyDim, int valueDim) {
    return type != KvCache.Type.Q8_0
        && keyDim % 16 == 0
        && valueDim % 16 == 0
        && keyDim > 0
        && valueDim > 0;
  }

  /**
   * Code of {@code void (long q, long keys, long values, long slots, long state)}, {@code slots >=
   * 1}: takes the slots into the state. Query heads follow each other. Where a call is not the last
   * one for a state, its slots end with a chunk.
   *
   * @param keyStride bytes from the key of one slot to the next
   * @param valueStride bytes from the value of one slot to the next
   * @param heads query heads, up to {@link #MAX_HEADS}
   * @param capped whether scores have a soft cap
   */
  public static byte[] emit(
      KvCache.Type type,
      int keyDim,
      long keyStride,
      int valueDim,
      long valueStride,
      int heads,
      boolean capped,
      Isa isa) {
    return new AttentionCode(type, keyDim, keyStride, valueDim, valueStride, heads, capped, isa)
        .emit();
  }

  private byte[] emit() {
    a.push(NEXT_VALUES);
    constants();
    Label chunk = a.here();
    a.mov(Gpr.RAX, CHUNK);
    a.sub(Gpr.RAX, Mem.of(STATE, 4 * FRONT));
    a.mov(COUNT, LEFT);
    a.cmp(COUNT, Gpr.RAX);
    a.cmov(Condition.G, COUNT, Gpr.RAX);
    scores();
    a.imul(Gpr.RAX, COUNT, keyStride);
    a.add(KEYS, Gpr.RAX);
    a.mov(COUNTER, Mem.of(STATE, 4 * FRONT));
    a.add(COUNT, COUNTER);
    softmax.emit(COUNTER, COUNT, Gpr.RAX, SCORE, this::prefetchLater);
    a.sub(COUNT, COUNTER);
    update();
    a.imul(Gpr.RAX, COUNT, valueStride);
    a.add(VALUES_POINTER, Gpr.RAX);
    a.mov(Gpr.RAX, 0);
    a.mov(Mem.of(STATE, 4 * FRONT), Gpr.RAX);
    a.sub(LEFT, COUNT);
    a.jcc(Condition.NE, chunk);
    a.vzeroupper();
    a.pop(NEXT_VALUES);
    a.ret();
    return a.assemble();
  }

  /** What is done for some consecutive slots. */
  @FunctionalInterface
  private interface Slots {
    void emit(int slots);
  }

  /** Goes through the slots of the chunk, as many at a time as asked, the last ones alone. */
  private void eachSlot(Gpr from, int stride, int together, Slots body) {
    Label single = a.label();
    Label done = a.label();
    a.mov(SLOT, from);
    a.mov(COUNTER, COUNT);
    a.mov(SCORE, Mem.of(STATE, 4 * FRONT));
    a.imul(SCORE, SCORE, SCORE_BYTES);
    a.add(SCORE, STATE);
    if (together > 1) {
      a.sub(COUNTER, together);
      a.jcc(Condition.L, single);
      Label loop = a.here();
      body.emit(together);
      a.add(SLOT, together * stride);
      a.add(SCORE, together * SCORE_BYTES);
      a.sub(COUNTER, together);
      a.jcc(Condition.GE, loop);
      a.bind(single);
      a.add(COUNTER, together);
      a.jcc(Condition.E, done);
    }
    Label one = a.here();
    body.emit(1);
    a.add(SLOT, stride);
    a.add(SCORE, SCORE_BYTES);
    a.dec(COUNTER);
    a.jcc(Condition.NE, one);
    a.bind(done);
  }

  /**
   * Prefetches the share that one of some parts of the work on slots has: what comes some chunks
   * later into the level-2 cache, since the hardware does not look beyond a page and the level-1
   * cache has too few misses at a time for the bandwidth of memory; and what comes next from there.
   * In parts, because misses that come all at once hold up the loads behind them.
   *
   * @param left lines at the end that others prefetch from memory
   */
  private void prefetch(int part, int parts, int slots, int stride, int left) {
    int lines = (slots * stride + 63) / 64;
    for (int n = 0; n < lines; n++) {
      if (n * parts / lines == part) {
        a.prefetcht0(Mem.of(SLOT, NEXT * stride + 64 * n));
      }
    }
    lines -= left;
    for (int n = 0; n < lines; n++) {
      if (n * parts / lines == part) {
        a.prefetcht1(Mem.of(SLOT, AHEAD * CHUNK * stride + 64 * n));
      }
    }
  }

  /** Lines of every four keys that are prefetched during the softmax, when memory would idle. */
  private int later() {
    return Math.min(LATER, SLOTS * keyStride / 64);
  }

  /** What {@link #prefetch} left of keys; those of the chunk at hand are behind the pointer. */
  private void prefetchLater(int pause) {
    // A pause for every four slots with 512 bits, two with 256.
    int end = ((AHEAD - 1) * CHUNK + (pause / lanes.parts + 1) * SLOTS) * keyStride;
    for (int i = 1; i <= later(); i++) {
      if (i % lanes.parts == pause % lanes.parts) {
        a.prefetcht1(Mem.of(KEYS, end - 64 * i));
      }
    }
  }

  // ---- scores

  private void scores() {
    if (lanes.parts == 1) {
      eachSlot(KEYS, keyStride, SLOTS, this::scoresOfTile);
    } else {
      eachSlot(KEYS, keyStride, SLOTS, this::scoresOfSlots);
    }
  }

  // 512 bits: sixteen partial sums are a register, of which there are one for each head and slot.

  private Vec sum(int head, int slot) {
    return lanes.reg(SLOTS * head + slot);
  }

  private void scoresOfTile(int slots) {
    for (int h = 0; h < heads; h++) {
      for (int s = 0; s < slots; s++) {
        a.vpxor(sum(h, s).xmm(), sum(h, s).xmm(), sum(h, s).xmm());
      }
    }
    for (int i = 0; i < keyDim; i += COLUMNS) {
      int vectors = Math.min(COLUMNS, keyDim - i) / 16;
      for (int v = 0; v < vectors; v++) {
        for (int s = 0; s < slots; s++) {
          load(key(v, s), s * keyStride, i + 16 * v);
        }
      }
      for (int h = 0; h < heads; h++) {
        for (int v = 0; v < vectors; v++) {
          Vec query = lanes.reg(24 + v);
          a.vmovups(query, Mem.of(Q, 4 * (h * keyDim + i + 16 * v)));
          for (int s = 0; s < slots; s++) {
            a.vfmadd231ps(sum(h, s), query, key(v, s));
          }
        }
        if (slots == SLOTS) {
          int parts = (keyDim + COLUMNS - 1) / COLUMNS * heads;
          prefetch(i / COLUMNS * heads + h, parts, SLOTS, keyStride, later());
        }
        if (i + COLUMNS >= keyDim) {
          // Among the products of the next head, which do not wait for it.
          reduceHead(h, slots);
        }
      }
    }
    reduceHeads();
    if (slots == SLOTS) {
      a.vmovups(Mem.of(SCORE), sum(0, 0));
    } else {
      a.vmovups(Mem.of(SCORE), sum(0, 0).xmm());
    }
  }

  private Vec key(int vector, int slot) {
    return lanes.reg(16 + SLOTS * vector + slot);
  }

  // Of two registers that are to be halved together, one operand of the sum is a blend, which any
  // vector unit does, the other a shuffle, for which there is one unit.

  /**
   * Halves the partial sums of a head twice: quarter s of its first register holds four of slot s.
   */
  private void reduceHead(int head, int slots) {
    Vec t = lanes.reg(26);
    Vec even = lanes.reg(27);
    Vec odd = lanes.reg(28);
    int end = slots - 1;
    addHalves(even, sum(head, 0), sum(head, Math.min(2, end)), t);
    addHalves(odd, sum(head, Math.min(1, end)), sum(head, end), t);
    a.masked(ODD_QUARTERS);
    a.vblendmps(t, even, odd);
    a.vpermt2d(even, lanes.reg(31), odd);
    a.vaddps(sum(head, 0), t, even);
  }

  /** Eight partial sums of x and of y. */
  private void addHalves(Vec d, Vec x, Vec y, Vec temp) {
    a.masked(UPPER_HALF);
    a.vblendmps(temp, x, y);
    a.vshufi32x4(d, x, y, 0x4e);
    a.vaddps(d, temp, d);
  }

  /** Element h of quarter s of the first register becomes the sum of head h and slot s. */
  private void reduceHeads() {
    int last = heads - 1;
    Vec t = lanes.reg(26);
    Vec low = lanes.reg(27);
    Vec high = lanes.reg(28);
    twoOfFour(low, sum(0, 0), sum(Math.min(1, last), 0), t);
    twoOfFour(high, sum(Math.min(2, last), 0), sum(last, 0), t);
    addPairs(sum(0, 0), low, high, 0x88, 0xdd, t);
  }

  /** Two partial sums of x and of y in each quarter. */
  private void twoOfFour(Vec d, Vec x, Vec y, Vec temp) {
    a.masked(UPPER_PAIRS);
    a.vblendmps(temp, x, y);
    a.vshufps(d, x, y, 0x4e);
    a.vaddps(d, temp, d);
  }

  private void addPairs(Vec d, Vec x, Vec y, int even, int odd, Vec temp) {
    a.vshufps(temp, x, y, even);
    a.vshufps(d, x, y, odd);
    a.vaddps(d, temp, d);
  }

  /** Constants that stay in registers with 512 bits. */
  private void constants() {
    if (lanes.parts == 1) {
      mask(UPPER_HALF, 0xff00);
      mask(ODD_QUARTERS, 0xf0f0);
      mask(UPPER_PAIRS, 0xcccc);
      a.vmovups(lanes.reg(31), a.ints(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27));
    }
  }

  private void mask(Opmask k, int lanes) {
    a.mov(Gpr.RAX, lanes);
    a.kmovw(k, Gpr.RAX);
  }

  // 256 bits: one slot at a time, with two registers for each head. Four slots share the end.

  private void scoresOfSlots(int slots) {
    for (int s = 0; s < slots; s++) {
      scoresOfSlot(s, slots);
    }
    Vec t = lanes.reg(8);
    if (slots == 1) {
      // Heads 0 and 2 are in the lower half, 1 and 3 in the upper one.
      Vec x = pairs(0);
      addPairs(x, x, x, 0x88, 0xdd, t);
      a.vextractf128(t.xmm(), x.ymm(), 1);
      a.vunpcklps(x.xmm(), x.xmm(), t.xmm());
      a.vmovups(Mem.of(SCORE), x.xmm());
      return;
    }
    Vec order = lanes.reg(9);
    a.vmovups(order, a.ints(0, 4, 1, 5, 2, 6, 3, 7));
    for (int s = 0; s < slots; s += 2) {
      // Heads 0 and 2 of one slot, then of the other, and so in the upper half 1 and 3.
      addPairs(pairs(s), pairs(s), pairs(s + 1), 0x88, 0xdd, t);
      a.vpermps(pairs(s), order, pairs(s));
      a.vmovups(Mem.of(SCORE, s * SCORE_BYTES), pairs(s));
    }
  }

  /** Two partial sums of each head of a slot: of heads 0, 2, 1 and 3. */
  private Vec pairs(int slot) {
    return lanes.reg(12 + slot);
  }

  private void scoresOfSlot(int slot, int slots) {
    for (int i = 0; i < 2 * heads; i++) {
      a.vxorps(lanes.reg(i), lanes.reg(i), lanes.reg(i));
    }
    Vec k = lanes.reg(8);
    for (int i = 0; i < keyDim; i += 8) {
      load(k, slot * keyStride, i);
      for (int h = 0; h < heads; h++) {
        a.vfmadd231ps(lanes.reg(2 * h + i / 8 % 2), k, Mem.of(Q, 4 * (h * keyDim + i)));
      }
      if (slots == SLOTS) {
        prefetch((slot * keyDim + i) / 8, SLOTS * keyDim / 8, SLOTS, keyStride, later());
      }
    }
    for (int h = 0; h < heads; h++) {
      a.vaddps(lanes.reg(2 * h), lanes.reg(2 * h), lanes.reg(2 * h + 1));
    }
    int last = 2 * (heads - 1);
    Vec t = lanes.reg(8);
    Vec low = lanes.reg(9);
    Vec high = lanes.reg(10);
    addQuarters(low, lanes.reg(0), lanes.reg(Math.min(2, last)), t);
    addQuarters(high, lanes.reg(Math.min(4, last)), lanes.reg(last), t);
    addPairs(pairs(slot), low, high, 0x44, 0xee, t);
  }

  /** Four partial sums of x and of y. */
  private void addQuarters(Vec d, Vec x, Vec y, Vec temp) {
    a.vperm2f128(temp, x, y, 0x20);
    a.vperm2f128(d, x, y, 0x31);
    a.vaddps(d, temp, d);
  }

  // ---- keys and values

  /** Elements of a head as float32. */
  private void load(Vec d, int slotOffset, int at) {
    if (type == KvCache.Type.F16) {
      a.vcvtph2ps(d, Mem.of(SLOT, slotOffset + 2 * at));
    } else {
      a.vmovups(d, Mem.of(SLOT, slotOffset + 4 * at));
    }
  }

  // ---- results

  /** Adds the weighted values of the chunk to the results. */
  private void update() {
    int vectors = valueDim * 4 / bytes;
    int perPass = sums() / heads;
    int passes = (vectors + perPass - 1) / perPass;
    if (lanes.parts > 1) {
      a.lea(NEXT_VALUES, Mem.of(VALUES_POINTER, AHEAD * CHUNK * valueStride));
    }
    // No pass with much fewer columns than others: few sums in work wait for each other.
    for (int pass = 0; pass < passes; pass++) {
      int from = pass * vectors / passes;
      pass(from, (pass + 1) * vectors / passes - from, passes);
    }
  }

  /** Most vectors of results in registers. */
  private int sums() {
    return lanes.parts == 1 ? 16 : 12;
  }

  private Mem result(int head, int vector) {
    return Mem.of(STATE, 4 * VALUES + 4 * head * valueDim + vector * bytes);
  }

  /** As many columns of the results as registers hold. */
  private void pass(int from, int count, int passes) {
    Vec factor = lanes.reg(sums());
    for (int h = 0; h < heads; h++) {
      a.vbroadcastss(factor, Mem.of(STATE, 4 * (FACTOR + h)));
      for (int i = 0; i < count; i++) {
        a.vmulps(lanes.reg(count * h + i), factor, result(h, from + i));
      }
    }
    // Passes of 256 bits are many: each prefetches a part from memory, the first one for all from
    // the level-2 cache.
    boolean apart = lanes.parts > 1;
    int together = apart ? SLOTS : 1;
    int lines = (together * valueStride + 64 * passes - 1) / (64 * passes);
    eachSlot(
        VALUES_POINTER,
        valueStride,
        together,
        slots -> {
          for (int s = 0; s < slots; s++) {
            int slot = s;
            take(
                slot,
                from,
                count,
                (part, parts) -> {
                  if (!apart) {
                    prefetch(from + part, valueDim * 4 / bytes, 1, valueStride, 0);
                  } else if (slots == together) {
                    prefetchApart(slot * parts + part, together * parts, lines, from == 0);
                  }
                });
          }
          if (apart && slots == together) {
            a.add(NEXT_VALUES, 64 * lines);
          }
        });
    for (int h = 0; h < heads; h++) {
      for (int i = 0; i < count; i++) {
        a.vmovups(result(h, from + i), lanes.reg(count * h + i));
      }
    }
  }

  /** What is done beside one of some parts of work. */
  @FunctionalInterface
  private interface Beside {
    void emit(int part, int parts);
  }

  /** Adds the weighted value of a slot to the sums of some columns. */
  private void take(int slot, int from, int count, Beside beside) {
    int base = sums();
    int at = slot * valueStride;
    Mem weights = Mem.of(SCORE, slot * SCORE_BYTES);
    if (lanes.parts > 1 && count < heads) {
      // All columns and one weight are fewer registers than one column and all weights.
      Vec weight = lanes.reg(base + count);
      for (int i = 0; i < count; i++) {
        load(lanes.reg(base + i), at, (from + i) * bytes / 4);
      }
      for (int h = 0; h < heads; h++) {
        a.vbroadcastss(weight, weights.plus(4 * h));
        for (int i = 0; i < count; i++) {
          a.vfmadd231ps(lanes.reg(count * h + i), weight, lanes.reg(base + i));
        }
        beside.emit(h, heads);
      }
      return;
    }
    Vec v = lanes.reg(base);
    for (int h = 0; h < heads; h++) {
      a.vbroadcastss(lanes.reg(base + 1 + h), weights.plus(4 * h));
    }
    for (int i = 0; i < count; i++) {
      load(v, at, (from + i) * bytes / 4);
      for (int h = 0; h < heads; h++) {
        a.vfmadd231ps(lanes.reg(count * h + i), lanes.reg(base + 1 + h), v);
      }
      beside.emit(i, count);
    }
  }

  /** The share that one of some parts of the work on four values has of their lines. */
  private void prefetchApart(int part, int parts, int lines, boolean first) {
    if (first) {
      int near = (SLOTS * valueStride + 63) / 64;
      for (int n = 0; n < near; n++) {
        if (n * parts / near == part) {
          a.prefetcht0(Mem.of(SLOT, NEXT * valueStride + 64 * n));
        }
      }
    }
    for (int n = 0; n < lines; n++) {
      if (n * parts / lines == part) {
        a.prefetcht1(Mem.of(NEXT_VALUES, 64 * n));
      }
    }
  }
}
