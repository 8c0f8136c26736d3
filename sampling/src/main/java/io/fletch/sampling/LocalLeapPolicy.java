package io.fletch.sampling;

/**
 * LocalLeap (specs/diffusion.md 9): masks of the block with at least the anchor confidence are
 * anchors; the threshold is relaxed within a radius of an anchor. The best one is always committed.
 */
final class LocalLeapPolicy implements TransferPolicy {
  private final Transfer.LocalLeap options;

  LocalLeapPolicy(Transfer.LocalLeap options) {
    this.options = options;
  }

  @Override
  public Selection select(CanvasState state, Evaluation evaluation) {
    int[] ranking = Ranking.best(state, evaluation);
    boolean[] near = new boolean[state.length()];
    for (int p : ranking) {
      if (evaluation.confidence[p] >= options.anchor()) {
        int from = (int) Math.max(state.from, (long) p - options.radius());
        int to = (int) Math.min(state.to, (long) p + options.radius() + 1);
        for (int i = from; i < to; i++) {
          near[i] = true;
        }
      }
    }
    Selection s = new Selection();
    for (int i = 0; i < ranking.length; i++) {
      int p = ranking[i];
      if (i == 0 || evaluation.confidence[p] >= (near[p] ? options.relaxed() : options.anchor())) {
        s.add(p, evaluation.proposal[p]);
      }
    }
    return s;
  }
}
