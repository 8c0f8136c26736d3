package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Vec;
import io.fletch.ffm.x86.Xmm;
import io.fletch.ffm.x86.Ymm;
import io.fletch.graph.Activation;

/**
 * Generates element-wise kernels and the quantization of activations, in the order of operations of
 * the scalar kernels. Counts are whole vectors or blocks, at least one; remainders are the
 * caller's.
 */
public final class ElementCode {
  private static final Gpr[] ARGUMENTS = {Gpr.RDI, Gpr.RSI, Gpr.RDX, Gpr.RCX, Gpr.R8};

  private final Assembler a = new Assembler();
  private final Lanes lanes;

  private ElementCode(Isa isa) {
    lanes = new Lanes(a, isa);
  }

  /** The body of a loop over vectors. */
  private interface Body {
    void emit();
  }

  private byte[] loop(int counter, int[] pointers, Body body) {
    Label top = a.here();
    body.emit();
    for (int p : pointers) {
      a.add(ARGUMENTS[p], lanes.bytes);
    }
    a.dec(ARGUMENTS[counter]);
    a.jcc(Condition.NE, top);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private Mem at(int argument) {
    return Mem.of(ARGUMENTS[argument]);
  }

  /** {@code void (x, dst, vectors, factorBits)}: {@code dst = factor * x}. */
  public static byte[] scale(Isa isa) {
    ElementCode c = new ElementCode(isa);
    Vec factor = c.broadcast(3, 15);
    return c.loop(
        2,
        new int[] {0, 1},
        () -> {
          c.a.vmulps(c.lanes.reg(0), factor, c.at(0));
          c.a.vmovups(c.at(1), c.lanes.reg(0));
        });
  }

  /** {@code void (a, b, dst, vectors, scaleBits)}: {@code dst = fma(scale, b, a)}. */
  public static byte[] add(Isa isa) {
    ElementCode c = new ElementCode(isa);
    Vec scale = c.broadcast(4, 15);
    return c.loop(
        3,
        new int[] {0, 1, 2},
        () -> {
          c.a.vmovups(c.lanes.reg(0), c.at(0));
          c.a.vfmadd231ps(c.lanes.reg(0), scale, c.at(1));
          c.a.vmovups(c.at(2), c.lanes.reg(0));
        });
  }

  /** {@code void (x, weight, dst, vectors, factorBits)}: {@code dst = x * factor * weight}. */
  public static byte[] scaleByWeight(Isa isa) {
    ElementCode c = new ElementCode(isa);
    Vec factor = c.broadcast(4, 15);
    return c.loop(
        3,
        new int[] {0, 1, 2},
        () -> {
          c.a.vmulps(c.lanes.reg(0), factor, c.at(0));
          c.a.vmulps(c.lanes.reg(0), c.lanes.reg(0), c.at(1));
          c.a.vmovups(c.at(2), c.lanes.reg(0));
        });
  }

  /** {@code void (x, dst, sixteens)}: {@code dst[0] = sum of x^2} by sixteen partial sums. */
  public static byte[] sumOfSquares(Isa isa) {
    ElementCode c = new ElementCode(isa);
    Assembler a = c.a;
    Vec[] sums = new Vec[c.lanes.parts];
    for (int i = 0; i < sums.length; i++) {
      sums[i] = c.lanes.reg(i);
      a.vxorps(sums[i], sums[i], sums[i]);
    }
    Label top = a.here();
    for (int i = 0; i < sums.length; i++) {
      a.vmovups(c.lanes.reg(4), Mem.of(ARGUMENTS[0], i * c.lanes.bytes));
      a.vfmadd231ps(sums[i], c.lanes.reg(4), c.lanes.reg(4));
    }
    a.add(ARGUMENTS[0], 64);
    a.dec(ARGUMENTS[2]);
    a.jcc(Condition.NE, top);
    c.lanes.toEight(sums, c.lanes.reg(5));
    c.lanes.toFour(sums[0], c.lanes.reg(5));
    c.lanes.toOne(Xmm.XMM0, Xmm.XMM5);
    a.vmovss(c.at(1), Xmm.XMM0);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /**
   * {@code void (gate, up, dst, vectors)}: {@code dst = act(gate) * up}; without a gate {@code void
   * (x, x, dst, vectors)}: {@code dst = act(x)}.
   */
  public static byte[] activate(Activation activation, boolean gated, Isa isa) {
    ElementCode c = new ElementCode(isa);
    return c.loop(
        3,
        new int[] {0, 1, 2},
        () -> {
          Vec x = c.lanes.reg(0);
          c.a.vmovups(x, c.at(0));
          c.activation(activation, x);
          if (gated) {
            c.a.vmulps(x, x, c.at(1));
          }
          c.a.vmovups(c.at(2), x);
        });
  }

  private void activation(Activation activation, Vec x) {
    Vec e = lanes.reg(1);
    Vec t = lanes.reg(2);
    switch (activation) {
      case SILU -> {
        a.vxorps(e, x, a.repeated(0x80000000, lanes.bytes));
        lanes.exp(e, t, lanes.reg(3), lanes.reg(4));
        a.vaddps(e, e, lanes.all(1f));
        a.vdivps(x, x, e);
      }
      case GELU_TANH -> {
        a.vmulps(t, x, lanes.all(0.044715f));
        a.vfmadd213ps(t, x, lanes.all(1f));
        a.vmulps(e, x, lanes.all(0.7978846f));
        a.vmulps(e, e, t);
        a.vmulps(e, e, lanes.all(-2f));
        lanes.exp(e, t, lanes.reg(3), lanes.reg(4));
        a.vaddps(e, e, lanes.all(1f));
        a.vdivps(x, x, e);
      }
      // The second operand is the result for NaN and for equal zeros.
      case RELU -> {
        a.vxorps(t, t, t);
        a.vmaxps(x, t, x);
      }
      case RELU_SQUARED -> {
        a.vxorps(t, t, t);
        a.vmaxps(x, t, x);
        a.vmulps(x, x, x);
      }
    }
  }

  private Vec broadcast(int argument, int register) {
    Vec v = lanes.reg(register);
    a.vmovd(v.xmm(), ARGUMENTS[argument]);
    a.vbroadcastss(v, v.xmm());
    return v;
  }

  /**
   * {@code void (x, codes, scales, sums, blocks)}: 8-bit blocks of 32 with i32 sums, or of 256 with
   * i16 sums of 16, by the rules of the activation layout. 256-bit code for every instruction set:
   * it is bound by the reductions, not by width.
   *
   * @param minAmax blocks below this magnitude become zero
   */
  public static byte[] quantize(int blockSize, float minAmax) {
    return new ElementCode(Isa.AVX2).quantization(blockSize, minAmax);
  }

  private byte[] quantization(int blockSize, float minAmax) {
    Ymm amax = Ymm.YMM0;
    Ymm scale = Ymm.YMM1;
    Ymm inverse = Ymm.YMM2;
    Ymm finite = Ymm.YMM3;
    Ymm t = Ymm.YMM4;
    Label top = a.here();
    a.vpxor(amax, amax, amax);
    Ymm noSign = Ymm.YMM5;
    a.vmovdqu(noSign, a.repeated(0x7fffffff, 32));
    for (int i = 0; i < blockSize; i += 8) {
      a.vpand(t, noSign, Mem.of(ARGUMENTS[0], 4 * i));
      a.vpmaxsd(amax, amax, t);
    }
    a.vperm2i128(t, amax, amax, 1);
    a.vpmaxsd(amax, amax, t);
    for (int order : new int[] {0x4e, 0xb1}) {
      a.vpshufd(t, amax, order);
      a.vpmaxsd(amax, amax, t);
    }
    Ymm constant = Ymm.YMM5;
    a.vmovdqu(constant, lanes.all(127f));
    a.vdivps(scale, amax, constant);
    a.vdivps(inverse, constant, amax);
    // Too small: both zero.
    a.vmovdqu(t, a.repeated(Float.floatToRawIntBits(minAmax), 32));
    a.vpcmpgtd(t, t, amax);
    a.vpandn(scale, t, scale);
    a.vpandn(inverse, t, inverse);
    // Infinite or NaN: the scale is NaN and codes are zero.
    a.vmovdqu(finite, a.repeated(0x7f800000, 32));
    a.vpcmpgtd(finite, finite, amax);
    a.vmovdqu(t, a.repeated(0x7fc00000, 32));
    a.vblendvps(scale, t, scale, finite);
    a.vmovss(Mem.of(ARGUMENTS[2]), scale.xmm());
    for (int i = 0; i < blockSize; i += 32) {
      codes(i, inverse, finite);
      sums(blockSize, i);
    }
    a.add(ARGUMENTS[0], 4 * blockSize);
    a.add(ARGUMENTS[1], blockSize);
    a.add(ARGUMENTS[2], 4);
    a.add(ARGUMENTS[3], blockSize == 32 ? 4 : 32);
    a.dec(ARGUMENTS[4]);
    a.jcc(Condition.NE, top);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  /** 32 codes, left in register 6. */
  private void codes(int i, Ymm inverse, Ymm finite) {
    for (int j = 0; j < 4; j++) {
      Ymm v = Ymm.of(6 + j);
      a.vmulps(v, inverse, Mem.of(ARGUMENTS[0], 4 * (i + 8 * j)));
      a.vandps(v, v, finite);
      a.vcvtps2dq(v, v);
    }
    a.vpackssdw(Ymm.YMM6, Ymm.YMM6, Ymm.YMM7);
    a.vpackssdw(Ymm.YMM8, Ymm.YMM8, Ymm.YMM9);
    a.vpacksswb(Ymm.YMM6, Ymm.YMM6, Ymm.YMM8);
    // Packing works within 128-bit halves.
    a.vmovdqu(Ymm.YMM7, a.ints(0, 4, 1, 5, 2, 6, 3, 7));
    a.vpermd(Ymm.YMM6, Ymm.YMM7, Ymm.YMM6);
    a.vmovdqu(Mem.of(ARGUMENTS[1], i), Ymm.YMM6);
  }

  /** Sums of the codes in register 6. */
  private void sums(int blockSize, int i) {
    a.vmovdqu(Ymm.YMM7, a.repeated(0x01010101, 32));
    a.vpmaddubsw(Ymm.YMM7, Ymm.YMM7, Ymm.YMM6);
    a.vpmaddwd(Ymm.YMM7, Ymm.YMM7, a.repeated(0x00010001, 32));
    a.vphaddd(Ymm.YMM7, Ymm.YMM7, Ymm.YMM7);
    a.vphaddd(Ymm.YMM7, Ymm.YMM7, Ymm.YMM7);
    a.vextracti128(Xmm.XMM8, Ymm.YMM7, 1);
    if (blockSize == 32) {
      a.vpaddd(Xmm.XMM7, Xmm.XMM7, Xmm.XMM8);
      a.vmovd(Mem.of(ARGUMENTS[3]), Xmm.XMM7);
    } else {
      a.vpextrw(Mem.of(ARGUMENTS[3], i / 8), Xmm.XMM7, 0);
      a.vpextrw(Mem.of(ARGUMENTS[3], i / 8 + 2), Xmm.XMM8, 0);
    }
  }
}
