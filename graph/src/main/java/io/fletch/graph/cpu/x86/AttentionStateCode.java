package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Vec;
import io.fletch.ffm.x86.Xmm;

/**
 * Generates what is done with the states that attention leaves for the segments of a row: merging
 * two of them, and dividing by the sums at the end. A state is float32, {@code [group]} maxima,
 * {@code [group]} sums and {@code [group][valueDim]} values.
 */
public final class AttentionStateCode {
  // Maximum, and behind it the sum, of the head at hand; its values.
  private static final Gpr MERGED = Gpr.RDI;
  private static final Gpr NEXT = Gpr.RSI;
  private static final Gpr MERGED_VALUES = Gpr.RDX;
  private static final Gpr NEXT_VALUES = Gpr.RCX;
  private static final Gpr HEADS = Gpr.RAX;

  private final Assembler a = new Assembler();
  private final Lanes lanes;
  private final int group;
  private final int valueDim;
  private final int bytes;

  private AttentionStateCode(int group, int valueDim, Isa isa) {
    this.group = group;
    this.valueDim = valueDim;
    this.bytes = isa.bytes();
    this.lanes = new Lanes(a, isa);
  }

  /** Whether values of this width can be taken: whole vectors. */
  public static boolean supports(int valueDim) {
    return valueDim % 16 == 0 && valueDim > 0;
  }

  /** Code of {@code void (long merged, long next)}: merges one state into another. */
  public static byte[] merge(int group, int valueDim, Isa isa) {
    return new AttentionStateCode(group, valueDim, isa).merge();
  }

  /**
   * Code of {@code void (long state, long out)}: results of all heads, {@code [group][valueDim]}.
   */
  public static byte[] finish(int group, int valueDim, Isa isa) {
    return new AttentionStateCode(group, valueDim, isa).finish();
  }

  private byte[] merge() {
    final Xmm before = Xmm.XMM0;
    final Xmm here = Xmm.XMM1;
    final Xmm max = Xmm.XMM2;
    final Xmm t = Xmm.XMM3;
    a.lea(MERGED_VALUES, Mem.of(MERGED, 8 * group));
    a.lea(NEXT_VALUES, Mem.of(NEXT, 8 * group));
    a.mov(HEADS, group);
    Label head = a.here();
    a.vmovss(before, Mem.of(MERGED));
    a.vmovss(here, Mem.of(NEXT));
    // A NaN may get lost here: the sum that comes with it is one, too.
    a.vmaxps(max, before, here);
    a.vmovss(Mem.of(MERGED), max);
    a.vbroadcastss(t, a.floating(Float.NEGATIVE_INFINITY));
    a.vcmpps(t, max, t, 0);
    a.vandnps(max, t, max);
    a.vunpcklps(before, before, here);
    a.vbroadcastss(max, max);
    a.vsubps(before, before, max);
    lanes.weight(before, Xmm.XMM3, Xmm.XMM4, Xmm.XMM5);
    a.vmovshdup(here, before);
    // Now what the merged state and the next one are worth.
    a.vmovss(max, Mem.of(NEXT, 4 * group));
    a.vmulss(max, max, here);
    a.vmovss(t, Mem.of(MERGED, 4 * group));
    a.vfmadd231ss(max, t, before);
    a.vmovss(Mem.of(MERGED, 4 * group), max);
    Vec factor = lanes.reg(6);
    Vec worth = lanes.reg(7);
    a.vbroadcastss(factor, before);
    a.vbroadcastss(worth, here);
    for (int i = 0; i < 4 * valueDim; i += bytes) {
      Vec v = lanes.reg(i / bytes % 4);
      a.vmulps(v, worth, Mem.of(NEXT_VALUES, i));
      a.vfmadd231ps(v, factor, Mem.of(MERGED_VALUES, i));
      a.vmovups(Mem.of(MERGED_VALUES, i), v);
    }
    a.add(MERGED, 4);
    a.add(NEXT, 4);
    a.add(MERGED_VALUES, 4 * valueDim);
    a.add(NEXT_VALUES, 4 * valueDim);
    a.dec(HEADS);
    a.jcc(Condition.NE, head);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }

  private byte[] finish() {
    final Xmm sum = Xmm.XMM0;
    final Xmm inverse = Xmm.XMM1;
    final Xmm zero = Xmm.XMM2;
    a.lea(MERGED_VALUES, Mem.of(MERGED, 8 * group));
    a.mov(HEADS, group);
    Label head = a.here();
    a.vmovss(sum, Mem.of(MERGED, 4 * group));
    a.vbroadcastss(inverse, a.floating(1f));
    a.vdivps(inverse, inverse, sum);
    a.vxorps(zero, zero, zero);
    a.vcmpps(zero, sum, zero, 0);
    a.vandnps(inverse, zero, inverse);
    Vec factor = lanes.reg(6);
    a.vbroadcastss(factor, inverse);
    for (int i = 0; i < 4 * valueDim; i += bytes) {
      Vec v = lanes.reg(i / bytes % 4);
      a.vmulps(v, factor, Mem.of(MERGED_VALUES, i));
      a.vmovups(Mem.of(NEXT, i), v);
    }
    a.add(MERGED, 4);
    a.add(MERGED_VALUES, 4 * valueDim);
    a.add(NEXT, 4 * valueDim);
    a.dec(HEADS);
    a.jcc(Condition.NE, head);
    a.vzeroupper();
    a.ret();
    return a.assemble();
  }
}
