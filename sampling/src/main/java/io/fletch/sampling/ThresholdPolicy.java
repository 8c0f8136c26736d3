package io.fletch.sampling;

/**
 * Threshold decoding of Fast-dLLM (specs/diffusion.md 3.3): every mask of the block whose proposal
 * has at least probability tau, and always the best one.
 */
final class ThresholdPolicy implements TransferPolicy {
  private final float tau;

  ThresholdPolicy(float tau) {
    this.tau = tau;
  }

  @Override
  public Selection select(CanvasState state, Evaluation evaluation) {
    int[] ranking = Ranking.best(state, evaluation);
    Selection s = new Selection();
    for (int i = 0; i < ranking.length; i++) {
      if (i == 0 || evaluation.confidence[ranking[i]] >= tau) {
        s.add(ranking[i], evaluation.proposal[ranking[i]]);
      }
    }
    return s;
  }
}
