package io.fletch.sampling;

/**
 * The static schedule of LLaDA and SDAR (specs/diffusion.md 3.1, 3.4).
 *
 * <p>A block with m masks at its start and S steps commits, in step i, {@code m div S} positions
 * and one more while {@code i < m mod S}: those of largest confidence, of largest keyed random
 * number, or the leftmost. Confidence is the proposal's probability from logits without noise.
 */
final class SchedulePolicy implements TransferPolicy {
  private final int steps;
  private final Transfer.Order order;
  private final long seed;

  SchedulePolicy(int steps, Transfer.Order order, long seed) {
    this.steps = steps;
    this.order = order;
    this.seed = seed;
  }

  /** Positions that step {@code i} of {@code steps} commits of {@code masks}. */
  static int count(int masks, int steps, int i) {
    return i < steps ? masks / steps + (i < masks % steps ? 1 : 0) : 1;
  }

  @Override
  public Selection select(CanvasState state, Evaluation evaluation) {
    float[] score =
        switch (order) {
          case LOW_CONFIDENCE -> evaluation.score;
          case RANDOM -> random(state);
          case SEQUENTIAL -> new float[state.length()];
        };
    int[] ranking = Ranking.best(state, evaluation, state.from, state.to, score);
    return Ranking.take(ranking, count(state.blockMasks, steps, state.blockStep), evaluation);
  }

  private float[] random(CanvasState state) {
    float[] score = new float[state.length()];
    for (int p = state.from; p < state.to; p++) {
      score[p] =
          (float) CounterRandom.uniform(seed, CounterRandom.CANVAS_ORDER, state.committed, p, 0);
    }
    return score;
  }
}
