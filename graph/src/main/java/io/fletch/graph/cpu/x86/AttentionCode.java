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
 * Generates the two halves of a step of online softmax attention, each for one query head and a
 * chunk of at most {@link #CHUNK} slots, in the order of operations of the scalar kernel.
 *
 * <p>The state of a head is float32: scores {@code [CHUNK]}, maximum, sum, padding, and from {@link
 * #VALUES} on the unnormalised result.
 */
public final class AttentionCode {
  /** Slots of a chunk. */
  public static final int CHUNK = 32;

  /** Index of the maximum in a state. */
  public static final int MAXIMUM = 32;

  /** Index of the sum of weights in a state. */
  public static final int SUM = 33;

  /** Index of the unnormalised result in a state. */
  public static final int VALUES = 48;

  private static final Gpr[] ARGUMENTS = {Gpr.RDI, Gpr.RSI, Gpr.RDX, Gpr.RCX, Gpr.R8};

  private final Assembler a = new Assembler();
  private final Lanes lanes;
  private final KvCache.Type type;
  private final int n;
  private final int stride;
  private final int bytes;

  private AttentionCode(KvCache.Type type, int n, long stride, Isa isa) {
    this.type = type;
    this.n = n;
    // Four slots are addressed from one base.
    this.stride = Math.toIntExact(4 * stride) / 4;
    this.bytes = isa.bytes();
    this.lanes = new Lanes(a, isa);
  }

  /** Whether heads of these widths can be taken. */
  public static boolean supports(KvCache.Type type, int keyDim, int valueDim) {
    int unit = type == KvCache.Type.Q8_0 ? 32 : 16;
    return keyDim % unit == 0 && valueDim % unit == 0 && keyDim > 0 && valueDim > 0;
  }

  /**
   * Code of {@code void (long q, long keys, long slots, long scores, long scaleBits)}: {@code
   * scores[j] = scale * dot(q, key_j)}, {@code slots >= 1}.
   *
   * @param keyDim elements of a head
   * @param stride bytes from one slot to the next
   */
  public static byte[] scores(KvCache.Type type, int keyDim, long stride, Isa isa) {
    return new AttentionCode(type, keyDim, stride, isa).scores();
  }

  /**
   * Code of {@code void (long values, long slots, long state)}: turns scores into weights, updates
   * maximum and sum, rescales the result and adds the weighted values.
   *
   * @param valueDim elements of a head
   * @param stride bytes from one slot to the next
   */
  public static byte[] update(KvCache.Type type, int valueDim, long stride, Isa isa) {
    return new AttentionCode(type, valueDim, stride, isa).update();
  }

  // ---- scores

  private byte[] scores() {
    Gpr keys = ARGUMENTS[1];
    Gpr slots = ARGUMENTS[2];
    Gpr out = ARGUMENTS[3];
    Label single = a.label();
    Label done = a.label();
    // The scale waits in the last register of the lower sixteen.
    a.vmovd(Xmm.XMM15, ARGUMENTS[4]);
    a.vbroadcastss(Xmm.XMM15, Xmm.XMM15);
    a.cmp(slots, 4);
    a.jcc(Condition.L, single);
    Label loop = a.here();
    dots(4);
    fourToScores(out);
    a.add(keys, 4 * stride);
    a.add(out, 16);
    a.sub(slots, 4);
    a.cmp(slots, 4);
    a.jcc(Condition.GE, loop);
    a.bind(single);
    a.test(slots, slots);
    a.jcc(Condition.E, done);
    Label one = a.here();
    dots(1);
    Vec temp = lanes.reg(12);
    lanes.toEight(sums(0), temp);
    lanes.toFour(sums(0)[0], temp);
    lanes.toOne(Xmm.XMM0, temp.xmm());
    a.vmulss(Xmm.XMM0, Xmm.XMM0, Xmm.XMM15);
    a.vmovss(Mem.of(out), Xmm.XMM0);
    a.add(keys, stride);
    a.add(out, 4);
    a.dec(slots);
    a.jcc(Condition.NE, one);
    a.bind(done);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /** The partial sums of a slot: registers 2 slot and 2 slot + 1, or the first alone. */
  private Vec[] sums(int slot) {
    return lanes.parts == 1
        ? new Vec[] {lanes.reg(2 * slot)}
        : new Vec[] {lanes.reg(2 * slot), lanes.reg(2 * slot + 1)};
  }

  private void dots(int count) {
    for (int s = 0; s < count; s++) {
      for (Vec v : sums(s)) {
        a.vxorps(v, v, v);
      }
    }
    Vec k = lanes.reg(8);
    Vec t = lanes.reg(9);
    Vec d = lanes.reg(10);
    int step = type == KvCache.Type.Q8_0 ? 32 : 16;
    for (int i = 0; i < n; i += step) {
      for (int s = 0; s < count; s++) {
        if (type == KvCache.Type.Q8_0) {
          half(d, Mem.of(ARGUMENTS[1], s * stride + n + i / 16));
        }
        for (int part = 0; part < lanes.parts; part++) {
          int at = i + part * bytes / 4;
          Vec sum = sums(s)[part];
          if (type == KvCache.Type.Q8_0) {
            codes(k, s * stride + at);
            a.vmulps(t, k, Mem.of(ARGUMENTS[0], 4 * at));
            codes(k, s * stride + at + 16);
            a.vfmadd231ps(t, k, Mem.of(ARGUMENTS[0], 4 * (at + 16)));
            a.vfmadd231ps(sum, d, t);
          } else {
            load(k, ARGUMENTS[1], s * stride, at);
            a.vfmadd231ps(sum, k, Mem.of(ARGUMENTS[0], 4 * at));
          }
        }
      }
    }
  }

  /** The last steps of four sums at once: lanes of the result are slots. */
  private void fourToScores(Gpr out) {
    Vec temp = lanes.reg(12);
    for (int s = 0; s < 4; s++) {
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
    a.vmulps(x, x, Xmm.XMM15);
    a.vmovups(Mem.of(out), x);
  }

  /** Elements of a float head as float32. */
  private void load(Vec d, Gpr base, int slotOffset, int at) {
    if (type == KvCache.Type.F32) {
      a.vmovups(d, Mem.of(base, slotOffset + 4 * at));
    } else {
      a.vcvtph2ps(d, Mem.of(base, slotOffset + 2 * at));
    }
  }

  private void codes(Vec d, int offset) {
    a.vpmovsxbd(d, Mem.of(ARGUMENTS[1], offset));
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

  // ---- update

  private byte[] update() {
    Gpr values = ARGUMENTS[0];
    Gpr slots = ARGUMENTS[1];
    Gpr state = ARGUMENTS[2];
    weights(slots, state);
    // Register 15 holds the factor, repeated. Columns are taken as many as registers allow.
    Vec factor = lanes.reg(15);
    int perPass = 8;
    int vectors = n * 4 / bytes;
    for (int first = 0; first < vectors; first += perPass) {
      int count = Math.min(perPass, vectors - first);
      for (int i = 0; i < count; i++) {
        a.vmulps(lanes.reg(i), factor, Mem.of(state, 4 * VALUES + (first + i) * bytes));
      }
      a.mov(Gpr.R9, values);
      a.mov(Gpr.R10, state);
      a.mov(Gpr.R11, slots);
      Label loop = a.here();
      Vec p = lanes.reg(8);
      Vec v = lanes.reg(9);
      Vec pd = lanes.reg(10);
      a.vbroadcastss(p, Mem.of(Gpr.R10));
      for (int i = 0; i < count; i++) {
        int at = (first + i) * bytes / 4;
        if (type == KvCache.Type.Q8_0) {
          if (i == 0 || at % 32 == 0) {
            half(pd, Mem.of(Gpr.R9, n + at / 32 * 2));
            a.vmulps(pd, pd, p);
          }
          a.vpmovsxbd(v, Mem.of(Gpr.R9, at));
          a.vcvtdq2ps(v, v);
          a.vfmadd231ps(lanes.reg(i), pd, v);
        } else {
          load(v, Gpr.R9, 0, at);
          a.vfmadd231ps(lanes.reg(i), p, v);
        }
      }
      a.add(Gpr.R9, stride);
      a.add(Gpr.R10, 4);
      a.dec(Gpr.R11);
      a.jcc(Condition.NE, loop);
      for (int i = 0; i < count; i++) {
        a.vmovups(Mem.of(state, 4 * VALUES + (first + i) * bytes), lanes.reg(i));
      }
    }
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /** Scores to weights; maximum and sum; leaves the factor for what was there before in 15. */
  private void weights(Gpr slots, Gpr state) {
    int vectors = CHUNK * 4 / bytes;
    Vec minusInfinity = lanes.reg(14);
    a.vmovups(minusInfinity, lanes.all(Float.NEGATIVE_INFINITY));
    // Scores behind the last slot become -inf, whose weight is 0.
    Label filled = a.label();
    a.mov(Gpr.RAX, slots);
    Label fill = a.here();
    a.cmp(Gpr.RAX, CHUNK);
    a.jcc(Condition.GE, filled);
    a.vmovss(Mem.of(state, Gpr.RAX, 4, 0), minusInfinity.xmm());
    a.inc(Gpr.RAX);
    a.jmp(fill);
    a.bind(filled);
    Vec max = lanes.reg(4);
    Vec nan = lanes.reg(5);
    Vec t = lanes.reg(6);
    Vec before = lanes.reg(13);
    a.vbroadcastss(before, Mem.of(state, 4 * MAXIMUM));
    a.vmovups(max, before);
    unordered(nan, before, before);
    for (int i = 0; i < vectors; i++) {
      a.vmovups(lanes.reg(i), Mem.of(state, i * bytes));
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
    a.vmovss(Mem.of(state, 4 * MAXIMUM), max.xmm());
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
      a.vmovups(Mem.of(state, i * bytes), lanes.reg(i));
    }
    a.vsubps(before, before, base);
    Vec factor = lanes.reg(15);
    a.vmovups(factor, before);
    lanes.exp(factor, temp, n, p);
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
    a.vmovss(temp.xmm(), Mem.of(state, 4 * SUM));
    a.vfmadd231ss(Xmm.XMM0, temp.xmm(), factor.xmm());
    a.vmovss(Mem.of(state, 4 * SUM), Xmm.XMM0);
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
