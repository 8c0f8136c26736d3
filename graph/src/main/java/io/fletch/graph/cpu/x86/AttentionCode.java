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
import io.fletch.graph.KvCache;

/**
 * Generates online softmax attention of a few query heads over a range of slots that they share, in
 * chunks of {@link #CHUNK} slots and in the order of operations of the scalar kernel. With 512 bits
 * keys and values are widened once for all heads.
 *
 * <p>The state of a head is float32: scores {@code [CHUNK]}, what the constants below name, and
 * from {@link #VALUES} on the unnormalised result. States of heads follow each other.
 */
public final class AttentionCode {
  /** Slots of a chunk. */
  public static final int CHUNK = 32;

  /** Index of the maximum in a state; -inf before the first slot. */
  public static final int MAXIMUM = 32;

  /** Index of the sum of weights in a state; 0 before the first slot. */
  public static final int SUM = 33;

  /** Index of what scores are multiplied by, in the state of the first head. */
  public static final int SCALE = 34;

  /** Index of the soft cap of scores, in the state of the first head. */
  public static final int CAP = 35;

  /** Index of the unnormalised result in a state; 0 before the first slot. */
  public static final int VALUES = 48;

  /** Most heads of one function. */
  public static final int MAX_HEADS = 4;

  private static final int FACTOR = 36;

  /** Slots whose scores are computed together. */
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

  private final Assembler a = new Assembler();
  private final Lanes lanes;
  private final KvCache.Type type;
  private final int keyDim;
  private final int keyStride;
  private final int valueDim;
  private final int valueStride;
  private final int heads;
  private final boolean capped;
  private final int bytes;
  private final int stateBytes;

  /** Heads whose scores, or results, are in registers at a time. */
  private final int tile;

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
    // A chunk is addressed from one base.
    this.keyStride = Math.toIntExact(2 * CHUNK * keyStride) / (2 * CHUNK);
    this.valueDim = valueDim;
    this.valueStride = Math.toIntExact(2 * CHUNK * valueStride) / (2 * CHUNK);
    this.heads = heads;
    this.capped = capped;
    this.bytes = isa.bytes();
    this.lanes = new Lanes(a, isa);
    this.stateBytes = 4 * (VALUES + valueDim);
    this.tile = lanes.parts == 1 ? heads : 1;
  }

  /** Whether heads of these widths can be taken. */
  public static boolean supports(KvCache.Type type, int keyDim, int valueDim) {
    int unit = type == KvCache.Type.Q8_0 ? 32 : 16;
    return keyDim % unit == 0 && valueDim % unit == 0 && keyDim > 0 && valueDim > 0;
  }

  /**
   * Code of {@code void (long q, long keys, long values, long slots, long state)}, {@code slots >=
   * 1}: takes the slots into the states. Query heads follow each other.
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
    Label chunk = a.here();
    a.mov(Gpr.RAX, CHUNK);
    a.mov(COUNT, LEFT);
    a.cmp(COUNT, Gpr.RAX);
    a.cmov(Condition.G, COUNT, Gpr.RAX);
    for (int first = 0; first < heads; first += tile) {
      scores(first);
    }
    a.imul(Gpr.RAX, COUNT, keyStride);
    a.add(KEYS, Gpr.RAX);
    for (int h = 0; h < heads; h++) {
      weights(h * stateBytes);
    }
    for (int first = 0; first < heads; first += tile) {
      update(first);
    }
    a.imul(Gpr.RAX, COUNT, valueStride);
    a.add(VALUES_POINTER, Gpr.RAX);
    a.sub(LEFT, COUNT);
    a.jcc(Condition.NE, chunk);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  // ---- scores

  /** Scores of all slots of the chunk for the heads of a tile. */
  private void scores(int first) {
    Gpr key = Gpr.RAX;
    Label single = a.label();
    Label done = a.label();
    a.mov(key, KEYS);
    a.mov(COUNTER, COUNT);
    a.mov(SCORE, STATE);
    a.sub(COUNTER, SLOTS);
    a.jcc(Condition.L, single);
    Label loop = a.here();
    scores(first, SLOTS);
    if (first == 0) {
      prefetch(key, SLOTS * keyStride, CHUNK * keyStride);
    }
    a.add(key, SLOTS * keyStride);
    a.add(SCORE, 4 * SLOTS);
    a.sub(COUNTER, SLOTS);
    a.jcc(Condition.GE, loop);
    a.bind(single);
    a.add(COUNTER, SLOTS);
    a.jcc(Condition.E, done);
    Label one = a.here();
    scores(first, 1);
    a.add(key, keyStride);
    a.add(SCORE, 4);
    a.dec(COUNTER);
    a.jcc(Condition.NE, one);
    a.bind(done);
  }

  /** What comes a chunk later: the hardware does not look beyond a page. */
  private void prefetch(Gpr base, int length, int distance) {
    for (int i = 0; i < length; i += 64) {
      a.prefetcht0(Mem.of(base, distance + i));
    }
  }

  private void scores(int first, int slots) {
    if (lanes.parts == 1) {
      dotsOfTile(slots);
      reduceTile(slots);
    } else {
      dotsOfHead(first, slots);
      if (slots == 1) {
        Vec temp = lanes.reg(12);
        lanes.toEight(sums(0), temp);
        lanes.toFour(sums(0)[0], temp);
        lanes.toOne(Xmm.XMM0, temp.xmm());
        a.vmulss(Xmm.XMM0, Xmm.XMM0, Mem.of(STATE, 4 * SCALE));
        a.vmovss(Mem.of(SCORE, first * stateBytes), Xmm.XMM0);
      } else {
        fourToScores(first);
      }
    }
  }

  // 512 bits: sixteen partial sums are a register, of which there are one for each head and slot.

  private Vec sum(int head, int slot) {
    return lanes.reg(SLOTS * head + slot);
  }

  private void dotsOfTile(int slots) {
    Gpr key = Gpr.RAX;
    for (int h = 0; h < heads; h++) {
      for (int s = 0; s < slots; s++) {
        a.vpxor(sum(h, s).xmm(), sum(h, s).xmm(), sum(h, s).xmm());
      }
    }
    Vec query = lanes.reg(28);
    Vec t = lanes.reg(29);
    boolean codes = type == KvCache.Type.Q8_0;
    int step = codes ? 32 : 16;
    for (int i = 0; i < keyDim; i += step) {
      for (int s = 0; s < slots; s++) {
        int at = s * keyStride;
        if (codes) {
          half(lanes.reg(24 + s), Mem.of(key, at + keyDim + i / 16));
          codes(lanes.reg(16 + s), Mem.of(key, at + i));
          codes(lanes.reg(20 + s), Mem.of(key, at + i + 16));
        } else {
          load(lanes.reg(16 + s), key, at, i);
        }
      }
      for (int h = 0; h < heads; h++) {
        int q = 4 * (h * keyDim + i);
        a.vmovups(query, Mem.of(Q, q));
        if (codes) {
          a.vmovups(lanes.reg(30), Mem.of(Q, q + 64));
        }
        for (int s = 0; s < slots; s++) {
          if (codes) {
            a.vmulps(t, query, lanes.reg(16 + s));
            a.vfmadd231ps(t, lanes.reg(30), lanes.reg(20 + s));
            a.vfmadd231ps(sum(h, s), lanes.reg(24 + s), t);
          } else {
            a.vfmadd231ps(sum(h, s), query, lanes.reg(16 + s));
          }
        }
      }
    }
  }

  /**
   * Halves the partial sums of all heads and slots together until element s of quarter h of a
   * register is the sum of head h and slot s. Heads and slots that are missing are filled up.
   */
  private void reduceTile(int slots) {
    Vec t = lanes.reg(16);
    Vec low = lanes.reg(17);
    Vec high = lanes.reg(18);
    int last = heads - 1;
    for (int s = 0; s < slots; s++) {
      addHalves(low, sum(0, s), sum(Math.min(1, last), s), t);
      addHalves(high, sum(Math.min(2, last), s), sum(last, s), t);
      a.vshufi32x4(t, low, high, 0x88);
      a.vshufi32x4(low, low, high, 0xdd);
      a.vaddps(sum(0, s), t, low);
    }
    Vec first = sum(0, 0);
    addPairs(low, first, sum(0, Math.min(1, slots - 1)), 0x44, 0xee, t);
    addPairs(high, sum(0, Math.min(2, slots - 1)), sum(0, slots - 1), 0x44, 0xee, t);
    addPairs(first, low, high, 0x88, 0xdd, t);
    a.vbroadcastss(t, Mem.of(STATE, 4 * SCALE));
    a.vmulps(first, first, t);
    for (int h = 0; h < heads; h++) {
      Mem to = Mem.of(SCORE, h * stateBytes);
      if (slots == SLOTS) {
        if (h == 0) {
          a.vmovups(to, first.xmm());
        } else {
          a.vextracti32x4(to, first, h);
        }
      } else {
        if (h > 0) {
          a.vextracti32x4(Xmm.XMM1, first, h);
        }
        a.vmovss(to, h == 0 ? first.xmm() : Xmm.XMM1);
      }
    }
  }

  /** Eight partial sums of x and of y. */
  private void addHalves(Vec d, Vec x, Vec y, Vec temp) {
    a.vshufi32x4(temp, x, y, 0x44);
    a.vshufi32x4(d, x, y, 0xee);
    a.vaddps(d, temp, d);
  }

  private void addPairs(Vec d, Vec x, Vec y, int even, int odd, Vec temp) {
    a.vshufps(temp, x, y, even);
    a.vshufps(d, x, y, odd);
    a.vaddps(d, temp, d);
  }

  // 256 bits: one head at a time, with two registers for each slot.

  private Vec[] sums(int slot) {
    return new Vec[] {lanes.reg(2 * slot), lanes.reg(2 * slot + 1)};
  }

  private void dotsOfHead(int head, int slots) {
    Gpr key = Gpr.RAX;
    for (int s = 0; s < slots; s++) {
      for (Vec v : sums(s)) {
        a.vxorps(v, v, v);
      }
    }
    Vec k = lanes.reg(8);
    Vec t = lanes.reg(9);
    Vec d = lanes.reg(10);
    int q = 4 * head * keyDim;
    boolean codes = type == KvCache.Type.Q8_0;
    int step = codes ? 32 : 16;
    for (int i = 0; i < keyDim; i += step) {
      for (int s = 0; s < slots; s++) {
        int slot = s * keyStride;
        if (codes) {
          half(d, Mem.of(key, slot + keyDim + i / 16));
        }
        for (int part = 0; part < lanes.parts; part++) {
          int at = i + part * bytes / 4;
          Vec sum = sums(s)[part];
          if (codes) {
            codes(k, Mem.of(key, slot + at));
            a.vmulps(t, k, Mem.of(Q, q + 4 * at));
            codes(k, Mem.of(key, slot + at + 16));
            a.vfmadd231ps(t, k, Mem.of(Q, q + 4 * (at + 16)));
            a.vfmadd231ps(sum, d, t);
          } else {
            load(k, key, slot, at);
            a.vfmadd231ps(sum, k, Mem.of(Q, q + 4 * at));
          }
        }
      }
    }
  }

  /** The last steps of four sums at once: lanes of the result are slots. */
  private void fourToScores(int head) {
    Vec temp = lanes.reg(12);
    for (int s = 0; s < SLOTS; s++) {
      lanes.toEight(sums(s), temp);
      lanes.toFour(sums(s)[0], temp);
    }
    Xmm x = Xmm.XMM8;
    Xmm y = Xmm.XMM9;
    a.vmovlhps(x, Xmm.XMM0, Xmm.XMM2);
    a.vmovhlps(y, Xmm.XMM2, Xmm.XMM0);
    a.vaddps(x, x, y);
    a.vmovlhps(Xmm.XMM0, Xmm.XMM4, Xmm.XMM6);
    a.vmovhlps(y, Xmm.XMM6, Xmm.XMM4);
    a.vaddps(Xmm.XMM0, Xmm.XMM0, y);
    a.vshufps(y, x, Xmm.XMM0, 0x88);
    a.vshufps(x, x, Xmm.XMM0, 0xdd);
    a.vaddps(x, y, x);
    a.vbroadcastss(y, Mem.of(STATE, 4 * SCALE));
    a.vmulps(x, x, y);
    a.vmovups(Mem.of(SCORE, head * stateBytes), x);
  }

  /** Elements of a float head as float32. */
  private void load(Vec d, Gpr base, int slotOffset, int at) {
    if (type == KvCache.Type.F32) {
      a.vmovups(d, Mem.of(base, slotOffset + 4 * at));
    } else {
      a.vcvtph2ps(d, Mem.of(base, slotOffset + 2 * at));
    }
  }

  private void codes(Vec d, Mem m) {
    a.vpmovsxbd(d, m);
    a.vcvtdq2ps(d, d);
  }

  /** One half-precision number in all lanes as float32. */
  private void half(Vec d, Mem m) {
    if (bytes == 64) {
      a.vpbroadcastw(d.ymm(), m);
      a.vcvtph2ps(d, d.ymm());
    } else {
      a.vpbroadcastw(d.xmm(), m);
      a.vcvtph2ps(d, d.xmm());
    }
  }

  // ---- results

  /** Adds the weighted values of the chunk to the results of the heads of a tile. */
  private void update(int first) {
    int vectors = valueDim * 4 / bytes;
    int perPass = lanes.parts == 1 ? 4 : 8;
    for (int from = 0; from < vectors; from += perPass) {
      pass(first, from, Math.min(perPass, vectors - from));
    }
  }

  /** As many columns of the results as registers hold. */
  private void pass(int first, int from, int count) {
    int perHead = lanes.parts == 1 ? 4 : 8;
    // Above them 256 bits leave: value, weight, scale. 512 bits: value, scale, weights.
    int base = perHead * tile > 8 ? 16 : 8;
    Vec v = lanes.reg(base);
    Vec d = lanes.reg(base + 1);
    for (int h = 0; h < tile; h++) {
      int state = (first + h) * stateBytes;
      a.vbroadcastss(v, Mem.of(STATE, state + 4 * FACTOR));
      for (int i = 0; i < count; i++) {
        a.vmulps(
            lanes.reg(perHead * h + i), v, Mem.of(STATE, state + 4 * VALUES + (from + i) * bytes));
      }
    }
    Gpr value = Gpr.RAX;
    a.mov(value, VALUES_POINTER);
    a.mov(SCORE, STATE);
    a.mov(COUNTER, COUNT);
    Label loop = a.here();
    boolean codes = type == KvCache.Type.Q8_0;
    for (int h = 0; h < tile && !codes; h++) {
      a.vbroadcastss(lanes.reg(base + 2 + h), Mem.of(SCORE, (first + h) * stateBytes));
    }
    for (int i = 0; i < count; i++) {
      int at = (from + i) * bytes / 4;
      if (codes) {
        if (i == 0 || at % 32 == 0) {
          half(d, Mem.of(value, valueDim + at / 32 * 2));
          for (int h = 0; h < tile; h++) {
            Vec w = lanes.reg(base + 2 + h);
            a.vbroadcastss(w, Mem.of(SCORE, (first + h) * stateBytes));
            a.vmulps(w, d, w);
          }
        }
        codes(v, Mem.of(value, at));
      } else {
        load(v, value, 0, at);
      }
      for (int h = 0; h < tile; h++) {
        a.vfmadd231ps(lanes.reg(perHead * h + i), lanes.reg(base + 2 + h), v);
      }
    }
    if (first == 0 && from == 0) {
      prefetch(value, valueStride, CHUNK * valueStride);
    }
    a.add(value, valueStride);
    a.add(SCORE, 4);
    a.dec(COUNTER);
    a.jcc(Condition.NE, loop);
    for (int h = 0; h < tile; h++) {
      int state = (first + h) * stateBytes;
      for (int i = 0; i < count; i++) {
        a.vmovups(
            Mem.of(STATE, state + 4 * VALUES + (from + i) * bytes), lanes.reg(perHead * h + i));
      }
    }
  }

  /** Scores to weights; maximum and sum; stores the factor for what was there before. */
  private void weights(int at) {
    int vectors = CHUNK * 4 / bytes;
    Vec minusInfinity = lanes.reg(14);
    a.vmovups(minusInfinity, lanes.all(Float.NEGATIVE_INFINITY));
    if (capped) {
      a.vbroadcastss(lanes.reg(15), Mem.of(STATE, 4 * CAP));
      for (int i = 0; i < vectors; i++) {
        Vec x = lanes.reg(0);
        a.vmovups(x, Mem.of(STATE, at + i * bytes));
        lanes.softCap(x, lanes.reg(15), lanes.reg(2), lanes.reg(3));
        a.vmovups(Mem.of(STATE, at + i * bytes), x);
      }
    }
    // Scores behind the last slot become -inf, whose weight is 0.
    Label filled = a.label();
    a.mov(Gpr.RAX, COUNT);
    Label fill = a.here();
    a.cmp(Gpr.RAX, CHUNK);
    a.jcc(Condition.GE, filled);
    a.vmovss(Mem.of(STATE, Gpr.RAX, 4, at), minusInfinity.xmm());
    a.inc(Gpr.RAX);
    a.jmp(fill);
    a.bind(filled);
    Vec max = lanes.reg(4);
    Vec nan = lanes.reg(5);
    Vec t = lanes.reg(6);
    Vec before = lanes.reg(13);
    a.vbroadcastss(before, Mem.of(STATE, at + 4 * MAXIMUM));
    a.vmovups(max, before);
    unordered(nan, before, before);
    for (int i = 0; i < vectors; i++) {
      a.vmovups(lanes.reg(i), Mem.of(STATE, at + i * bytes));
      a.vmaxps(max, max, lanes.reg(i));
      unordered(t, lanes.reg(i), lanes.reg(i));
      a.vorps(nan, nan, t);
    }
    // A NaN must win: all ones is a NaN, and stays one through an or with anything.
    if (bytes == 64) {
      a.vextractf64x4(t.ymm(), (Zmm) max, 1);
      a.vmaxps(max.ymm(), max.ymm(), t.ymm());
      a.vextractf64x4(t.ymm(), (Zmm) nan, 1);
      a.vorps(nan.ymm(), nan.ymm(), t.ymm());
    }
    a.vextractf128(t.xmm(), max.ymm(), 1);
    a.vmaxps(max.xmm(), max.xmm(), t.xmm());
    a.vextractf128(t.xmm(), nan.ymm(), 1);
    a.vorps(nan.xmm(), nan.xmm(), t.xmm());
    for (int order : new int[] {0x4e, 0xb1}) {
      a.vpshufd(t.xmm(), max.xmm(), order);
      a.vmaxps(max.xmm(), max.xmm(), t.xmm());
      a.vpshufd(t.xmm(), nan.xmm(), order);
      a.vorps(nan.xmm(), nan.xmm(), t.xmm());
    }
    a.vorps(max.xmm(), max.xmm(), nan.xmm());
    a.vmovss(Mem.of(STATE, at + 4 * MAXIMUM), max.xmm());
    // All scores -inf: nothing to subtract from.
    a.vcmpps(t.xmm(), max.xmm(), minusInfinity.xmm(), 0);
    a.vandnps(max.xmm(), t.xmm(), max.xmm());
    Vec base = lanes.reg(12);
    a.vbroadcastss(base, max.xmm());
    Vec n = lanes.reg(7);
    Vec p = lanes.reg(8);
    Vec temp = lanes.reg(9);
    for (int i = 0; i < vectors; i++) {
      a.vsubps(lanes.reg(i), lanes.reg(i), base);
      lanes.exp(lanes.reg(i), temp, n, p);
      a.vmovups(Mem.of(STATE, at + i * bytes), lanes.reg(i));
    }
    a.vsubps(before, before, base);
    Vec factor = lanes.reg(15);
    a.vmovups(factor, before);
    lanes.exp(factor, temp, n, p);
    a.vmovss(Mem.of(STATE, at + 4 * FACTOR), factor.xmm());
    Vec[] sums;
    if (bytes == 64) {
      a.vaddps(lanes.reg(0), lanes.reg(0), lanes.reg(1));
      sums = new Vec[] {lanes.reg(0)};
    } else {
      a.vaddps(lanes.reg(0), lanes.reg(0), lanes.reg(2));
      a.vaddps(lanes.reg(1), lanes.reg(1), lanes.reg(3));
      sums = new Vec[] {lanes.reg(0), lanes.reg(1)};
    }
    lanes.toEight(sums, temp);
    lanes.toFour(sums[0], temp);
    lanes.toOne(Xmm.XMM0, temp.xmm());
    a.vmovss(temp.xmm(), Mem.of(STATE, at + 4 * SUM));
    a.vfmadd231ss(Xmm.XMM0, temp.xmm(), factor.xmm());
    a.vmovss(Mem.of(STATE, at + 4 * SUM), Xmm.XMM0);
  }

  /** All ones in every lane where an operand is NaN. */
  private void unordered(Vec d, Vec x, Vec y) {
    if (bytes == 64) {
      a.vcmpps(Opmask.K1, x, y, 3);
      a.zeroed(Opmask.K1);
      a.vpternlogd(d, d, d, 0xff);
    } else {
      a.vcmpps(d, x, y, 3);
    }
  }
}
