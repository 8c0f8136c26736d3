package io.fletch.sampling;

/**
 * The factor rule of Fast-dLLM (specs/diffusion.md 3.3): with confidences c_1 >= c_2 >= ..., the
 * largest n with {@code (n + 1)(1 - c_n) < f}, at least 1.
 */
final class FactorPolicy implements TransferPolicy {
  private final float factor;

  FactorPolicy(float factor) {
    this.factor = factor;
  }

  @Override
  public Selection select(CanvasState state, Evaluation evaluation) {
    int[] ranking = Ranking.best(state, evaluation);
    int n = 1;
    for (int i = 1; i <= ranking.length; i++) {
      if ((i + 1) * (1.0 - evaluation.confidence[ranking[i - 1]]) < factor) {
        n = i;
      }
    }
    return Ranking.take(ranking, n, evaluation);
  }
}
