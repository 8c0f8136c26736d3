package io.fletch.sampling;

/**
 * Dream's schedule (specs/diffusion.md 3.2).
 *
 * <p>The time grid falls from 1 to epsilon in S + 1 points (float32). Step k with times (t, s)
 * commits {@code trunc(masks * (1 - s / t))} of the masks left, the last step all: the best by
 * score (probability, margin, or negative entropy of the proposal's distribution; the evaluator
 * fills it in), or drawn without replacement from softmax(score / algorithm temperature) by Gumbel
 * keys. With {@code ORIGIN} each mask goes by itself with probability {@code 1 - s / t}.
 */
final class DreamPolicy implements TransferPolicy {
  private final Transfer.Dream options;
  private final long seed;
  private final float[] times;

  DreamPolicy(int steps, Transfer.Dream options, long seed) {
    this.options = options;
    this.seed = seed;
    times = times(steps, options.epsilon());
  }

  /** {@code steps + 1} float32 points, computed from both ends as numerical libraries do. */
  static float[] times(int steps, float epsilon) {
    float[] t = new float[steps + 1];
    float step = (epsilon - 1f) / steps;
    for (int i = 0; i <= steps; i++) {
      t[i] = i < (steps + 1) / 2 ? 1f + step * i : epsilon - step * (steps - i);
    }
    return t;
  }

  /** Positions that step {@code k} commits of the masks left. */
  static int count(float[] times, int masks, int k) {
    return k >= times.length - 2 ? masks : (int) (masks * (1 - times[k + 1] / times[k]));
  }

  @Override
  public Selection select(CanvasState state, Evaluation evaluation) {
    int k = state.blockStep;
    if (options.algorithm() == Transfer.DreamAlgorithm.ORIGIN) {
      return origin(state, evaluation, k);
    }
    int n = count(times, state.masksInBlock(), k);
    if (n == 0) {
      return new Selection();
    }
    float[] score = evaluation.score;
    float temperature = options.algorithmTemperature();
    if (temperature > 0) {
      score = score.clone();
      for (int p = state.from; p < state.to; p++) {
        double noise =
            CounterRandom.gumbel(
                CounterRandom.high(seed, CounterRandom.CANVAS_ORDER, state.committed, p, 0));
        score[p] = (float) (score[p] / temperature + noise);
      }
    }
    return Ranking.take(
        Ranking.best(state, evaluation, state.from, state.to, score), n, evaluation);
  }

  private Selection origin(CanvasState state, Evaluation evaluation, int k) {
    boolean last = k >= times.length - 2;
    double p = last ? 1 : 1 - times[k + 1] / times[k];
    Selection s = new Selection();
    for (int i = state.from; i < state.to; i++) {
      if (state.masked(i)
          && evaluation.proposal[i] >= 0
          && CounterRandom.uniform(seed, CounterRandom.CANVAS_ORDER, state.committed, i, k + 1)
              < p) {
        s.add(i, evaluation.proposal[i]);
      }
    }
    return s;
  }
}
