package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Xmm;
import io.fletch.ffm.x86.Ymm;
import io.fletch.graph.RopeSpec;

/**
 * Generates rotations of one head, with the bits of the scalar kernel. AVX2 and FMA: a head is only
 * a few vectors long.
 */
public final class RopeCode {
  private static final Gpr X = Gpr.RDI;
  private static final Gpr COS = Gpr.RSI;
  private static final Gpr PAIRS = Gpr.RDX;
  private static final Gpr REST = Gpr.RCX;
  private static final Gpr OUT = Gpr.R8;
  private static final Gpr SIN = Gpr.R9;

  /** The second halves of the source and of the destination, for pairs that lie apart. */
  private static final Gpr X2 = Gpr.R10;

  private static final Gpr OUT2 = Gpr.R11;

  private final Assembler a = new Assembler();

  private RopeCode() {}

  /**
   * Code of {@code void (long x, long table, long pairs, long rest, long out)}; {@code rest}
   * elements behind the pairs are copied.
   */
  public static byte[] emit(RopeSpec.Style style) {
    return new RopeCode().rotate(style == RopeSpec.Style.NORM);
  }

  private byte[] rotate(boolean adjacent) {
    Label few = a.label();
    Label rotated = a.label();
    a.lea(SIN, Mem.of(COS, PAIRS, 4, 0));
    if (!adjacent) {
      a.lea(X2, Mem.of(X, PAIRS, 4, 0));
      a.lea(OUT2, Mem.of(OUT, PAIRS, 4, 0));
    }
    int step = adjacent ? 4 : 8;
    a.sub(PAIRS, step);
    a.jcc(Condition.L, few);
    Label loop = a.here();
    if (adjacent) {
      fourAdjacent();
    } else {
      eightApart();
    }
    advance(adjacent, step);
    a.sub(PAIRS, step);
    a.jcc(Condition.GE, loop);
    a.bind(few);
    a.add(PAIRS, step);
    a.jcc(Condition.E, rotated);
    Label single = a.here();
    one(adjacent);
    advance(adjacent, 1);
    a.dec(PAIRS);
    a.jcc(Condition.NE, single);
    a.bind(rotated);
    copyRest(adjacent ? X : X2, adjacent ? OUT : OUT2);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private void advance(boolean adjacent, int pairs) {
    a.add(COS, 4 * pairs);
    a.add(SIN, 4 * pairs);
    if (adjacent) {
      a.add(X, 8 * pairs);
      a.add(OUT, 8 * pairs);
    } else {
      for (Gpr p : new Gpr[] {X, X2, OUT, OUT2}) {
        a.add(p, 4 * pairs);
      }
    }
  }

  private void eightApart() {
    Ymm cos = Ymm.YMM0;
    Ymm sin = Ymm.YMM1;
    Ymm first = Ymm.YMM2;
    Ymm second = Ymm.YMM3;
    a.vmovups(cos, Mem.of(COS));
    a.vmovups(sin, Mem.of(SIN));
    a.vmovups(first, Mem.of(X));
    a.vmovups(second, Mem.of(X2));
    a.vmulps(Ymm.YMM4, first, cos);
    a.vfnmadd231ps(Ymm.YMM4, second, sin);
    a.vmulps(Ymm.YMM5, first, sin);
    a.vfmadd231ps(Ymm.YMM5, second, cos);
    a.vmovups(Mem.of(OUT), Ymm.YMM4);
    a.vmovups(Mem.of(OUT2), Ymm.YMM5);
  }

  private void fourAdjacent() {
    Ymm x = Ymm.YMM4;
    Ymm factors = Ymm.YMM2;
    a.vmovups(Xmm.XMM0, Mem.of(COS));
    a.vmovups(Xmm.XMM1, Mem.of(SIN));
    a.vunpcklps(Xmm.XMM2, Xmm.XMM0, Xmm.XMM1);
    a.vunpckhps(Xmm.XMM3, Xmm.XMM0, Xmm.XMM1);
    a.vinsertf128(factors, factors, Xmm.XMM3, 1);
    a.vmovups(x, Mem.of(X));
    a.vmovsldup(Ymm.YMM5, x);
    a.vmovshdup(x, x);
    a.vmulps(Ymm.YMM5, Ymm.YMM5, factors);
    // (cos, sin) to (-sin, cos).
    a.vpermilps(factors, factors, 0xb1);
    int minus = 0x80000000;
    a.vxorps(factors, factors, a.ints(minus, 0, minus, 0, minus, 0, minus, 0));
    a.vfmadd231ps(Ymm.YMM5, x, factors);
    a.vmovups(Mem.of(OUT), Ymm.YMM5);
  }

  private void one(boolean adjacent) {
    Mem source2 = adjacent ? Mem.of(X, 4) : Mem.of(X2);
    Mem target2 = adjacent ? Mem.of(OUT, 4) : Mem.of(OUT2);
    a.vmovss(Xmm.XMM0, Mem.of(COS));
    a.vmovss(Xmm.XMM1, Mem.of(SIN));
    a.vmovss(Xmm.XMM2, Mem.of(X));
    a.vmovss(Xmm.XMM3, source2);
    a.vmulss(Xmm.XMM4, Xmm.XMM2, Xmm.XMM0);
    a.vfnmadd231ss(Xmm.XMM4, Xmm.XMM3, Xmm.XMM1);
    a.vmulss(Xmm.XMM5, Xmm.XMM2, Xmm.XMM1);
    a.vfmadd231ss(Xmm.XMM5, Xmm.XMM3, Xmm.XMM0);
    a.vmovss(Mem.of(OUT), Xmm.XMM4);
    a.vmovss(target2, Xmm.XMM5);
  }

  private void copyRest(Gpr from, Gpr to) {
    Label few = a.label();
    Label done = a.label();
    a.sub(REST, 8);
    a.jcc(Condition.L, few);
    Label loop = a.here();
    a.vmovups(Ymm.YMM0, Mem.of(from));
    a.vmovups(Mem.of(to), Ymm.YMM0);
    a.add(from, 32);
    a.add(to, 32);
    a.sub(REST, 8);
    a.jcc(Condition.GE, loop);
    a.bind(few);
    a.add(REST, 8);
    a.jcc(Condition.E, done);
    Label single = a.here();
    a.vmovss(Xmm.XMM0, Mem.of(from));
    a.vmovss(Mem.of(to), Xmm.XMM0);
    a.add(from, 4);
    a.add(to, 4);
    a.dec(REST);
    a.jcc(Condition.NE, single);
    a.bind(done);
  }
}
