package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Opmask;
import io.fletch.ffm.x86.Vec;

/**
 * Loads and stores of the first floats of a vector: lanes beyond them touch no memory. Takes the
 * mask register 1 with 512 bits, else one vector register.
 */
final class Tail {
  /** Predicate "greater" of an integer comparison into a mask. */
  private static final int GREATER = 6;

  private final Lanes lanes;
  private final Assembler a;
  private final Vec mask;

  /**
   * Emits nothing.
   *
   * @param mask taken over until the tail is done
   */
  Tail(Lanes lanes, Vec mask) {
    this.lanes = lanes;
    this.a = lanes.a;
    this.mask = mask;
  }

  private boolean masks() {
    return lanes.bytes == 64;
  }

  /** Selects the lanes {@code i} with {@code i + skipped < count}. */
  void select(Gpr count, int skipped) {
    int[] index = new int[lanes.bytes / 4];
    for (int i = 0; i < index.length; i++) {
      index[i] = i + skipped;
    }
    a.vmovd(mask.xmm(), count);
    a.vpbroadcastd(mask, mask.xmm());
    if (masks()) {
      a.vpcmpd(Opmask.K1, mask, a.ints(index), GREATER);
    } else {
      a.vpcmpgtd(mask, mask, a.ints(index));
    }
  }

  /** The other lanes become zero. */
  void load(Vec d, Mem m) {
    if (masks()) {
      a.zeroed(Opmask.K1);
      a.vmovups(d, m);
    } else {
      a.vmaskmovps(d, mask, m);
    }
  }

  /** The other lanes keep what {@code d} holds; {@code temp} is overwritten. */
  void merge(Vec d, Mem m, Vec temp) {
    if (masks()) {
      a.masked(Opmask.K1);
      a.vmovups(d, m);
    } else {
      a.vmaskmovps(temp, mask, m);
      a.vblendvps(d, d, temp, mask);
    }
  }

  void store(Mem m, Vec s) {
    if (masks()) {
      a.masked(Opmask.K1);
      a.vmovups(m, s);
    } else {
      a.vmaskmovps(m, mask, s);
    }
  }
}
