package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Opmask;
import io.fletch.ffm.x86.Vec;
import io.fletch.ffm.x86.Xmm;
import io.fletch.graph.Activation;

/**
 * Generates kernels over rows of floats of any length: element-wise functions, RMS norm and argmax,
 * in the order of operations of the scalar kernels. Destinations may be one of the sources.
 */
public final class ElementCode {
  // Parameters of an element-wise function.
  private static final Gpr X = Gpr.RDI;
  private static final Gpr Y = Gpr.RSI;
  private static final Gpr N = Gpr.RDX;
  private static final Gpr PARAMETER = Gpr.RCX;
  private static final Gpr OUT = Gpr.R8;

  private static final int EQUAL = 0;
  private static final int SIGN = 0x80000000;

  private final Assembler a = new Assembler();
  private final Lanes lanes;
  private final int bytes;
  private final int floats;
  private final Vec parameter;
  private final Tail tail;

  private ElementCode(Isa isa) {
    lanes = new Lanes(a, isa);
    bytes = isa.bytes();
    floats = bytes / Float.BYTES;
    parameter = lanes.reg(14);
    tail = new Tail(lanes, lanes.reg(15));
  }

  /** Code of {@code void (long x, long up, long n, long, long out)}: {@code act(x) * up}. */
  public static byte[] gated(Activation activation, Isa isa) {
    ElementCode c = new ElementCode(isa);
    return c.elements(
        true,
        () -> {
          c.activate(activation);
          c.a.vmulps(c.lanes.reg(0), c.lanes.reg(0), c.lanes.reg(1));
        });
  }

  /** Code of {@code void (long x, long, long n, long, long out)}: {@code act(x)}. */
  public static byte[] plain(Activation activation, Isa isa) {
    ElementCode c = new ElementCode(isa);
    return c.elements(false, () -> c.activate(activation));
  }

  /** Code of {@code void (long x, long y, long n, long bits, long out)}: {@code x + bits * y}. */
  public static byte[] add(Isa isa) {
    ElementCode c = new ElementCode(isa);
    return c.elements(true, () -> c.a.vfmadd231ps(c.lanes.reg(0), c.parameter, c.lanes.reg(1)));
  }

  /** Code of {@code void (long x, long y, long n, long, long out)}: {@code x * y}. */
  public static byte[] multiply(Isa isa) {
    ElementCode c = new ElementCode(isa);
    return c.elements(true, () -> c.a.vmulps(c.lanes.reg(0), c.lanes.reg(0), c.lanes.reg(1)));
  }

  /** Code of {@code void (long x, long, long n, long bits, long out)}: {@code bits * x}. */
  public static byte[] scale(Isa isa) {
    ElementCode c = new ElementCode(isa);
    return c.elements(false, () -> c.a.vmulps(c.lanes.reg(0), c.parameter, c.lanes.reg(0)));
  }

  /** Code of {@code void (long x, long, long n, long bits, long out)}: bits tanh(x / bits). */
  public static byte[] softCap(Isa isa) {
    ElementCode c = new ElementCode(isa);
    return c.elements(
        false, () -> c.lanes.softCap(c.lanes.reg(0), c.parameter, c.lanes.reg(2), c.lanes.reg(3)));
  }

  /**
   * Code of {@code void (long x, long weight, long n, long epsAndScale, long out)}: RMS norm. The
   * bits of eps are in the lower half of the parameter, those of the scale in the upper.
   */
  public static byte[] rmsNorm(Isa isa) {
    return new ElementCode(isa).rmsNorm();
  }

  /**
   * Code of {@code void (long x, long n, long result)}: stores the index of the largest element as
   * 64 bits, the lowest on ties, -1 where all are NaN.
   */
  public static byte[] argmax(Isa isa) {
    return new ElementCode(isa).argmax();
  }

  // ---- element-wise

  /** The loop around a function of registers 0 and 1 into 0 that keeps 14 and 15. */
  private byte[] elements(boolean two, Runnable function) {
    Label rest = a.label();
    Label done = a.label();
    Vec x = lanes.reg(0);
    Vec y = lanes.reg(1);
    a.vmovd(parameter.xmm(), PARAMETER);
    a.vbroadcastss(parameter, parameter.xmm());
    a.sub(N, floats);
    a.jcc(Condition.L, rest);
    Label loop = a.here();
    a.vmovups(x, Mem.of(X));
    if (two) {
      a.vmovups(y, Mem.of(Y));
    }
    function.run();
    a.vmovups(Mem.of(OUT), x);
    advance(X, two ? Y : null, OUT);
    a.sub(N, floats);
    a.jcc(Condition.GE, loop);
    a.bind(rest);
    a.add(N, floats);
    a.jcc(Condition.E, done);
    tail.select(N, 0);
    tail.load(x, Mem.of(X));
    if (two) {
      tail.load(y, Mem.of(Y));
    }
    function.run();
    tail.store(Mem.of(OUT), x);
    a.bind(done);
    return end();
  }

  private void advance(Gpr... pointers) {
    for (Gpr p : pointers) {
      if (p != null) {
        a.add(p, bytes);
      }
    }
  }

  private byte[] end() {
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private Mem bits(int value) {
    return a.repeated(value, bytes);
  }

  /** Register 0 to its activation; overwrites 2 to 6. */
  private void activate(Activation activation) {
    Vec x = lanes.reg(0);
    Vec u = lanes.reg(2);
    switch (activation) {
      case SILU -> {
        a.vxorps(u, x, bits(SIGN));
        overOnePlusExp(x, u);
      }
      case GELU_TANH -> {
        Vec t = lanes.reg(3);
        a.vmulps(t, x, lanes.all(0.044715f));
        a.vmovups(u, lanes.all(1f));
        a.vfmadd231ps(u, t, x);
        a.vmulps(t, x, lanes.all(0.7978846f));
        a.vmulps(u, t, u);
        a.vmulps(u, u, lanes.all(-2f));
        overOnePlusExp(x, u);
      }
      case GELU_ERF -> {
        Vec z = lanes.reg(3);
        a.vmulps(z, x, x);
        // The operand that comes second is the result when one of them is NaN.
        a.vmovups(u, lanes.all(30f));
        a.vminps(z, u, z);
        a.vmovups(u, lanes.all(-2.7793236e-11f));
        a.vfmadd213ps(u, z, lanes.all(5.270821e-9f));
        a.vfmadd213ps(u, z, lanes.all(-3.0449104e-7f));
        a.vfmadd213ps(u, z, lanes.all(8.350775e-6f));
        a.vfmadd213ps(u, z, lanes.all(-1.1280115e-4f));
        a.vfmadd213ps(u, z, lanes.all(-5.9748036e-5f));
        a.vfmadd213ps(u, z, lanes.all(0.07266046f));
        a.vfmadd213ps(u, z, lanes.all(1.5957717f));
        a.vmulps(u, x, u);
        a.vxorps(u, u, bits(SIGN));
        overOnePlusExp(x, u);
      }
      case RELU -> relu(x, u);
      case RELU_SQUARED -> {
        relu(x, u);
        a.vmulps(x, x, x);
      }
    }
  }

  /** {@code x = x / (1 + exp(u))}. */
  private void overOnePlusExp(Vec x, Vec u) {
    lanes.exp(u, lanes.reg(3), lanes.reg(4), lanes.reg(5));
    a.vaddps(u, u, lanes.all(1f));
    a.vdivps(x, x, u);
  }

  private void relu(Vec x, Vec zero) {
    a.vxorps(zero, zero, zero);
    // The operand that comes second is the result when it is NaN or both are zero.
    a.vmaxps(x, zero, x);
  }

  // ---- RMS norm

  private byte[] rmsNorm() {
    Vec[] sums = new Vec[lanes.parts];
    for (int p = 0; p < lanes.parts; p++) {
      sums[p] = lanes.reg(p);
      a.vxorps(sums[p], sums[p], sums[p]);
    }
    Vec v = lanes.reg(4);
    Label squared = a.label();
    Label whole = a.label();
    a.mov(Gpr.R9, X);
    a.mov(Gpr.R10, N);
    a.sub(Gpr.R10, 16);
    a.jcc(Condition.L, whole);
    Label squares = a.here();
    for (int p = 0; p < lanes.parts; p++) {
      a.vmovups(v, Mem.of(Gpr.R9, p * bytes));
      a.vfmadd231ps(sums[p], v, v);
    }
    a.add(Gpr.R9, 64);
    a.sub(Gpr.R10, 16);
    a.jcc(Condition.GE, squares);
    a.bind(whole);
    a.add(Gpr.R10, 16);
    a.jcc(Condition.E, squared);
    for (int p = 0; p < lanes.parts; p++) {
      tail.select(Gpr.R10, p * floats);
      tail.load(v, Mem.of(Gpr.R9, p * bytes));
      a.vfmadd231ps(sums[p], v, v);
    }
    a.bind(squared);
    lanes.toEight(sums, v);
    lanes.toFour(sums[0], v);
    lanes.toOne(Xmm.XMM0, v.xmm());
    a.vmovd(Xmm.XMM1, N);
    a.vcvtdq2ps(Xmm.XMM1, Xmm.XMM1);
    a.vdivss(Xmm.XMM0, Xmm.XMM0, Xmm.XMM1);
    a.vmovd(Xmm.XMM1, PARAMETER);
    a.vaddss(Xmm.XMM0, Xmm.XMM0, Xmm.XMM1);
    a.vsqrtss(Xmm.XMM0, Xmm.XMM0, Xmm.XMM0);
    a.shr(PARAMETER, 32);
    a.vmovd(Xmm.XMM1, PARAMETER);
    a.vdivss(Xmm.XMM0, Xmm.XMM1, Xmm.XMM0);
    // The common loop moves the parameter register into all lanes.
    a.vmovd(PARAMETER, Xmm.XMM0);
    return elements(
        true,
        () -> {
          a.vmulps(lanes.reg(0), lanes.reg(0), parameter);
          a.vmulps(lanes.reg(0), lanes.reg(0), lanes.reg(1));
        });
  }

  // ---- argmax

  private static final int STREAMS = 4;

  private byte[] argmax() {
    Gpr n = Gpr.RSI;
    Gpr result = Gpr.RDX;
    Gpr at = Gpr.RCX;
    Gpr left = Gpr.R9;
    Vec v = lanes.reg(5);
    Vec[] max = new Vec[STREAMS];
    for (int i = 0; i < STREAMS; i++) {
      max[i] = lanes.reg(i);
      a.vmovups(max[i], lanes.all(Float.NEGATIVE_INFINITY));
    }
    Label few = a.label();
    Label rest = a.label();
    Label searched = a.label();
    a.mov(at, X);
    a.mov(left, n);
    a.sub(left, STREAMS * floats);
    a.jcc(Condition.L, few);
    Label loop = a.here();
    for (int i = 0; i < STREAMS; i++) {
      largest(max[i], Mem.of(at, i * bytes), v);
    }
    a.add(at, STREAMS * bytes);
    a.sub(left, STREAMS * floats);
    a.jcc(Condition.GE, loop);
    a.bind(few);
    a.add(left, (STREAMS - 1) * floats);
    a.jcc(Condition.L, rest);
    Label single = a.here();
    largest(max[0], Mem.of(at), v);
    a.add(at, bytes);
    a.sub(left, floats);
    a.jcc(Condition.GE, single);
    a.bind(rest);
    a.add(left, floats);
    a.jcc(Condition.E, searched);
    tail.select(left, 0);
    a.vmovups(v, max[0]);
    tail.merge(v, Mem.of(at), lanes.reg(6));
    a.vmaxps(max[0], v, max[0]);
    a.bind(searched);
    a.vmaxps(max[0], max[0], max[1]);
    a.vmaxps(max[2], max[2], max[3]);
    a.vmaxps(max[0], max[0], max[2]);
    lanes.spreadMax(max[0], v);
    find(n, result, max[0]);
    return end();
  }

  /** {@code max = max(max, m)}, of which NaN is no part: it would be the second operand's. */
  private void largest(Vec max, Mem m, Vec temp) {
    a.vmovups(temp, m);
    a.vmaxps(max, temp, max);
  }

  /** The index of the first element that equals {@code value}. */
  private void find(Gpr n, Gpr result, Vec value) {
    Gpr at = Gpr.RCX;
    Gpr left = Gpr.R9;
    Gpr found = Gpr.RAX;
    Vec t = lanes.reg(5);
    Label rest = a.label();
    Label hit = a.label();
    Label none = a.label();
    Label done = a.label();
    a.mov(at, X);
    a.mov(left, n);
    a.sub(left, floats);
    a.jcc(Condition.L, rest);
    Label loop = a.here();
    if (bytes == 64) {
      a.vcmpps(Opmask.K2, value, Mem.of(at), EQUAL);
      a.kmovw(found, Opmask.K2);
    } else {
      a.vcmpps(t, value, Mem.of(at), EQUAL);
      a.vmovmskps(found, t);
    }
    a.test(found, found);
    a.jcc(Condition.NE, hit);
    a.add(at, bytes);
    a.sub(left, floats);
    a.jcc(Condition.GE, loop);
    a.bind(rest);
    a.add(left, floats);
    a.jcc(Condition.E, none);
    // The other lanes must not equal it: all ones is a NaN.
    a.vpcmpeqd(t.ymm(), t.ymm(), t.ymm());
    if (bytes == 64) {
      a.vbroadcastss(t, t.xmm());
    }
    tail.select(left, 0);
    tail.merge(t, Mem.of(at), lanes.reg(6));
    if (bytes == 64) {
      a.vcmpps(Opmask.K2, value, t, EQUAL);
      a.kmovw(found, Opmask.K2);
    } else {
      a.vcmpps(t, value, t, EQUAL);
      a.vmovmskps(found, t);
    }
    a.test(found, found);
    a.jcc(Condition.E, none);
    a.bind(hit);
    // The number of zeros below the lowest one.
    a.mov(Gpr.R10, found);
    a.neg(Gpr.R10);
    a.and(found, Gpr.R10);
    a.dec(found);
    a.popcnt(found, found);
    a.sub(at, X);
    a.shr(at, 2);
    a.add(found, at);
    a.jmp(done);
    a.bind(none);
    a.mov(found, -1);
    a.bind(done);
    a.mov(Mem.of(result), found);
  }
}
