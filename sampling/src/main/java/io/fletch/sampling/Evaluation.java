package io.fletch.sampling;

import java.util.Arrays;

/**
 * What a forward says about a canvas: per position the proposal and its statistics, where they were
 * computed. Immutable after the evaluator has filled it.
 */
final class Evaluation {
  /** Token to commit; -1 where nothing was computed or the position must wait. */
  final int[] proposal;

  /** Most likely token, without noise; -1 where nothing was computed. */
  final int[] argmax;

  /** Probability of the proposal. */
  final float[] confidence;

  /** What positions are ranked by. */
  final float[] score;

  /** Difference of the two largest logits. */
  final float[] gap;

  /** Which cache the rows were written to, and how far behind their positions. */
  final int cache;

  final int slotOffset;

  Evaluation(int length, int cache, int slotOffset) {
    proposal = new int[length];
    argmax = new int[length];
    Arrays.fill(proposal, -1);
    Arrays.fill(argmax, -1);
    confidence = new float[length];
    score = new float[length];
    gap = new float[length];
    this.cache = cache;
    this.slotOffset = slotOffset;
  }

  boolean has(int position) {
    return argmax[position] >= 0;
  }

  /** Whether every masked position in [from, to) was computed. */
  boolean coversMasks(CanvasState state, int from, int to) {
    for (int p = from; p < to; p++) {
      if (state.masked(p) && !has(p)) {
        return false;
      }
    }
    return true;
  }
}
