package io.fletch.sampling;

/**
 * SDAR's {@code low_confidence_dynamic} (specs/diffusion.md 3.4): all masks of the block above the
 * threshold if they are at least the schedule's count, else the schedule's count of the best.
 */
final class DynamicPolicy implements TransferPolicy {
  private final int steps;
  private final float tau;

  DynamicPolicy(int steps, float tau) {
    this.steps = steps;
    this.tau = tau;
  }

  @Override
  public Selection select(CanvasState state, Evaluation evaluation) {
    int[] ranking = Ranking.best(state, evaluation);
    int above = 0;
    while (above < ranking.length && evaluation.confidence[ranking[above]] > tau) {
      above++;
    }
    int quota = SchedulePolicy.count(state.blockMasks, steps, state.blockStep);
    return Ranking.take(ranking, Math.max(1, Math.max(above, quota)), evaluation);
  }
}
