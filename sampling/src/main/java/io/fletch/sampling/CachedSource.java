package io.fletch.sampling;

import java.util.List;

/** One forward per state, under a cache policy: the static chain. */
final class CachedSource implements EvaluationSource {
  private final Evaluator evaluator;
  private final CachePolicy policy;
  private final int cache;

  CachedSource(Evaluator evaluator, CachePolicy policy, int cache) {
    this.evaluator = evaluator;
    this.policy = policy;
    this.cache = cache;
  }

  @Override
  public Evaluation evaluate(CanvasState state, Evaluation previous) {
    prepare(state);
    Region region = policy.plan(state);
    Evaluation e =
        evaluator.evaluate(List.of(new Evaluator.Job(state, region, cache, 0))).getFirst();
    policy.evaluated(state, region);
    return e;
  }

  /** Stores clean rows that the plan of the state rests on. */
  void prepare(CanvasState state) {
    Region before = policy.before(state);
    if (before != null) {
      evaluator.store(state, before, cache);
      policy.stored(before);
    }
  }

  @Override
  public void blockDone(int from, int to, Evaluation evaluation) {
    Region frozen = policy.blockDone(from, to, evaluation);
    if (frozen != null) {
      evaluator.settle(frozen, evaluation);
    }
  }
}
