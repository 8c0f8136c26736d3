package io.fletch.graph.cpu.x86;

import io.fletch.ffm.x86.Assembler;
import io.fletch.ffm.x86.Condition;
import io.fletch.ffm.x86.Gpr;
import io.fletch.ffm.x86.Label;
import io.fletch.ffm.x86.Mem;
import io.fletch.ffm.x86.Vec;
import io.fletch.ffm.x86.Xmm;
import io.fletch.ffm.x86.Zmm;
import java.util.function.IntConsumer;

/**
 * The step of online softmax over a chunk of positions for up to four query heads, in the order of
 * operations of the scalar kernel. A lane is a head: the scores of four heads of a position lie
 * side by side, {@code [CHUNK][HEADS]}, so that maximum and sum go down the positions and what is
 * sequential in them, a third of the time when heads took turns, is paid once. Lanes of heads that
 * there are not hold what the caller left there, and nothing of theirs gets into others.
 */
final class SoftmaxCode {
  /** Positions of a chunk. */
  static final int CHUNK = 64;

  /** Heads whose scores lie side by side. */
  static final int HEADS = 4;

  /** Bytes of the scores of a position. */
  static final int SCORE_BYTES = 4 * HEADS;

  /** Vectors of maxima in work, so that they do not wait for each other. */
  private static final int MAXIMA = 4;

  private final Lanes lanes;
  private final Assembler a;
  private final int bytes;
  private final boolean capped;
  private final Gpr scores;
  private final Mem maximum;
  private final Mem sum;
  private final Mem factor;
  private final Mem scale;
  private final Mem cap;
  private int pauses;

  /**
   * Emits nothing. The places may share a base register, none of those {@link #emit} overwrites.
   *
   * @param capped whether scores have a soft cap
   * @param scores address of the scores, which become weights
   * @param maximum the heads' maxima, updated; -inf before the first chunk
   * @param sum the heads' sums of weights, updated; 0 before the first chunk
   * @param factor where to put what results and sums of earlier chunks are worth, for each head
   * @param scale one number that scores are multiplied by; null where they were already
   * @param cap the soft cap, one number; not read without one
   */
  SoftmaxCode(
      Lanes lanes,
      boolean capped,
      Gpr scores,
      Mem maximum,
      Mem sum,
      Mem factor,
      Mem scale,
      Mem cap) {
    this.lanes = lanes;
    this.a = lanes.a;
    this.bytes = lanes.bytes;
    this.capped = capped;
    this.scores = scores;
    this.maximum = maximum;
    this.sum = sum;
    this.factor = factor;
    this.scale = scale;
    this.cap = cap;
  }

  /**
   * Scores to weights; maxima and sums; stores the factors for what was there before. Overwrites
   * vector registers 0 to 15, the mask register 2 where scores are capped, and both temporaries.
   *
   * @param from first visible position of the chunk, 0 to {@link #CHUNK}; kept
   * @param to end of the visible positions, {@code from} to {@link #CHUNK}; kept. Scores outside
   *     are ignored, weights there become 0
   */
  void emit(Gpr from, Gpr to, Gpr temp, Gpr pointer) {
    emit(from, to, temp, pointer, i -> {});
  }

  /**
   * The same.
   *
   * @param pause emits what is to be done between two vectors of exponentials, told how many came
   *     before: what does not need the units that they need, and changes no register; before the
   *     first one, which waits for the maxima, it may change the temporaries and all vector
   *     registers but 8 and 10
   */
  void emit(Gpr from, Gpr to, Gpr temp, Gpr pointer, IntConsumer pause) {
    final int vectors = CHUNK * SCORE_BYTES / bytes;
    pauses = 0;
    final Xmm minusInfinity = Xmm.XMM15;
    final Label some = a.label();
    final Label maxima = a.label();
    a.vbroadcastss(minusInfinity, a.floating(Float.NEGATIVE_INFINITY));
    if (scale != null) {
      a.vbroadcastss(lanes.reg(14), scale);
    }
    if (capped) {
      a.vbroadcastss(lanes.reg(13), cap);
    }
    if (!capped) {
      // What most chunks are: no pass over scores that were just stored.
      a.mov(temp, to);
      a.sub(temp, from);
      a.cmp(temp, CHUNK);
      a.jcc(Condition.NE, some);
      for (int i = 0; i < vectors; i++) {
        Vec x = i < MAXIMA ? maximum(i) : lanes.reg(0);
        scaled(x, i);
        if (i >= MAXIMA) {
          a.vmaxps(maximum(i), maximum(i), x);
        }
      }
      a.jmp(maxima);
    }
    a.bind(some);
    if (scale != null || capped) {
      for (int i = 0; i < vectors; i++) {
        scaled(lanes.reg(0), i);
      }
    }
    hide(from, to, temp, pointer);
    for (int i = 0; i < vectors; i++) {
      if (i < MAXIMA) {
        a.vmovups(maximum(i), Mem.of(scores, i * bytes));
      } else {
        a.vmaxps(maximum(i), maximum(i), Mem.of(scores, i * bytes));
      }
    }
    a.bind(maxima);
    // A NaN may get lost here: its weight is one, and through the sum the result.
    final Vec max = maximum(0);
    final Vec t = lanes.reg(12);
    a.vmaxps(max, max, maximum(1));
    a.vmaxps(maximum(2), maximum(2), maximum(3));
    a.vmaxps(max, max, maximum(2));
    if (bytes == 64) {
      a.vextractf64x4(t.ymm(), (Zmm) max, 1);
      a.vmaxps(max.ymm(), max.ymm(), t.ymm());
    }
    a.vextractf128(t.xmm(), max.ymm(), 1);
    a.vmaxps(max.xmm(), max.xmm(), t.xmm());
    Xmm f = Xmm.XMM10;
    a.vmovups(f, maximum);
    a.vmaxps(max.xmm(), max.xmm(), f);
    a.vmovups(maximum, max.xmm());
    // All scores -inf: nothing to subtract from.
    a.vcmpps(t.xmm(), max.xmm(), minusInfinity, 0);
    a.vandnps(max.xmm(), t.xmm(), max.xmm());
    a.vsubps(f, f, max.xmm());
    lanes.weight(f, Xmm.XMM12, Xmm.XMM13, Xmm.XMM14);
    a.vmovups(factor, f);
    // Negated, so that a score is loaded by the instruction that takes it off.
    a.vxorps(max.xmm(), max.xmm(), a.repeated(0x80000000, 16));
    if (bytes == 64) {
      a.vshufi32x4(max, max, max, 0);
    } else {
      a.vinsertf128(max.ymm(), max.ymm(), max.xmm(), 1);
    }
    sumOfWeights(0, 1, vectors, max, 0, pause);
    Vec total = lanes.reg(0);
    if (bytes == 64) {
      lanes.toEight(new Vec[] {total}, t);
    }
    lanes.toFour(total, t);
    a.vmovups(t.xmm(), sum);
    a.vfmadd231ps(total.xmm(), t.xmm(), f);
    a.vmovups(sum, total.xmm());
  }

  private Vec maximum(int vector) {
    return lanes.reg(8 + vector % MAXIMA);
  }

  /** Scales and caps a vector of scores, in memory as well. */
  private void scaled(Vec x, int vector) {
    Mem score = Mem.of(scores, vector * bytes);
    if (scale != null) {
      a.vmulps(x, lanes.reg(14), score);
    } else {
      a.vmovups(x, score);
    }
    if (capped) {
      lanes.softCap(x, lanes.reg(13), lanes.reg(2), lanes.reg(3));
    }
    if (scale != null || capped) {
      a.vmovups(score, x);
    }
  }

  /** Scores outside the range become -inf, of which register 15 is full. */
  private void hide(Gpr from, Gpr to, Gpr temp, Gpr pointer) {
    a.mov(pointer, scores);
    a.mov(temp, 0);
    Label front = a.here();
    Label visible = a.label();
    a.cmp(temp, from);
    a.jcc(Condition.GE, visible);
    hideOne(temp, pointer);
    a.jmp(front);
    a.bind(visible);
    a.imul(pointer, to, SCORE_BYTES);
    a.add(pointer, scores);
    a.mov(temp, to);
    Label back = a.here();
    Label done = a.label();
    a.cmp(temp, CHUNK);
    a.jcc(Condition.GE, done);
    hideOne(temp, pointer);
    a.jmp(back);
    a.bind(done);
  }

  private void hideOne(Gpr temp, Gpr pointer) {
    a.vmovups(Mem.of(pointer), Xmm.XMM15);
    a.add(pointer, SCORE_BYTES);
    a.inc(temp);
  }

  /**
   * Turns the vectors {@code first, first + step, ...} of scores into weights, and sums them into
   * the register {@code to}: positions that are 16 apart first, then 8, 4 and so on.
   */
  private void sumOfWeights(int first, int step, int vectors, Vec base, int to, IntConsumer pause) {
    Vec x = lanes.reg(to);
    if (step < vectors) {
      sumOfWeights(first, 2 * step, vectors, base, to, pause);
      sumOfWeights(first + step, 2 * step, vectors, base, to + 1, pause);
      a.vaddps(x, x, lanes.reg(to + 1));
      return;
    }
    pause.accept(pauses++);
    if (first == 0) {
      a.vmovups(lanes.reg(15), lanes.all(Lanes.LEAST_SCORE));
    }
    a.vaddps(x, base, Mem.of(scores, first * bytes));
    lanes.weight(x, lanes.reg(15), lanes.reg(12), lanes.reg(13), lanes.reg(14));
    a.vmovups(Mem.of(scores, first * bytes), x);
  }
}
