package io.fletch.sampling;

/** Masked positions ordered by a score, largest first, lowest position on ties. */
final class Ranking {
  private Ranking() {}

  /** Positions in [from, to) that are masked and have a proposal, best score first. */
  static int[] best(CanvasState state, Evaluation evaluation, int from, int to, float[] score) {
    int[] order = new int[to - from];
    int n = 0;
    for (int p = from; p < to; p++) {
      if (state.masked(p) && evaluation.proposal[p] >= 0) {
        order[n++] = p;
      }
    }
    // Merge sort on boxed keys would allocate more than the sort moves: n is a block's length.
    int[] result = new int[n];
    System.arraycopy(order, 0, result, 0, n);
    sort(result, new int[n], 0, n, score);
    return result;
  }

  /** The active block's masks by the evaluation's own score. */
  static int[] best(CanvasState state, Evaluation evaluation) {
    return best(state, evaluation, state.from, state.to, evaluation.score);
  }

  /** The first n of a ranking. */
  static Selection take(int[] ranking, int n, Evaluation evaluation) {
    Selection s = new Selection();
    for (int i = 0; i < Math.min(n, ranking.length); i++) {
      s.add(ranking[i], evaluation.proposal[ranking[i]]);
    }
    return s;
  }

  /** Stable merge sort: the input ascends, so ties stay in order of position. */
  private static void sort(int[] a, int[] work, int from, int to, float[] score) {
    if (to - from < 2) {
      return;
    }
    int mid = (from + to) >>> 1;
    sort(a, work, from, mid, score);
    sort(a, work, mid, to, score);
    System.arraycopy(a, from, work, from, to - from);
    int i = from;
    int j = mid;
    for (int k = from; k < to; k++) {
      boolean left = j >= to || (i < mid && score[work[i]] >= score[work[j]]);
      a[k] = left ? work[i++] : work[j++];
    }
  }
}
