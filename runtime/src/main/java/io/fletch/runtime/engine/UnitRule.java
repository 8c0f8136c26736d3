package io.fletch.runtime.engine;

import io.fletch.FfnSkip;
import io.fletch.UnitDrop;
import io.fletch.UnitForecasts;
import io.fletch.UnitPolicy;
import io.fletch.graph.Batch;
import io.fletch.graph.Gate;
import io.fletch.sampling.CounterRandom;
import java.util.List;

/**
 * What the tokens of a text ask of the gates: the policies, and where the answer begins. Immutable.
 */
final class UnitRule {
  /** Nothing rests. */
  static final UnitRule DENSE = new UnitRule(List.of(), 0);

  private final List<UnitPolicy> policies;
  private final int start;

  /**
   * A rule.
   *
   * @param start position of the first token of the answer; what is before it is prompt
   */
  UnitRule(List<UnitPolicy> policies, int start) {
    this.policies = List.copyOf(policies);
    this.start = start;
  }

  List<UnitPolicy> policies() {
    return policies;
  }

  /** Whether all units run for a token at a position. */
  boolean isDense(int position) {
    for (int i = 0; i < policies.size(); i++) {
      if (concerns(policies.get(i), position)) {
        return false;
      }
    }
    return true;
  }

  private boolean concerns(UnitPolicy policy, int position) {
    return switch (policy) {
      // The token at the start is the first generated one.
      case FfnSkip s -> position >= start && position - start + 1 >= s.warmUp();
      case UnitForecasts f -> position >= start || f.prompts();
      case UnitDrop d -> position >= start || d.prompts();
    };
  }

  /** Whether a token at a position is one that policies look at, be it to let it warm up. */
  boolean counts(int position) {
    for (int i = 0; i < policies.size(); i++) {
      UnitPolicy policy = policies.get(i);
      if (policy instanceof FfnSkip ? position >= start : concerns(policy, position)) {
        return true;
      }
    }
    return false;
  }

  /** Asks for a row of a batch. */
  void ask(Batch batch, int row, int position, int token) {
    for (int i = 0; i < policies.size(); i++) {
      UnitPolicy policy = policies.get(i);
      if (!concerns(policy, position)) {
        continue;
      }
      switch (policy) {
        case FfnSkip s -> {
          int run = s.run() == 0 ? Integer.MAX_VALUE : s.run();
          batch.skipSimilar(row, s.threshold(), run, s.budget());
        }
        case UnitForecasts f -> {
          byte otherwise = f.approximate() ? Gate.SUBSTITUTE : Gate.SKIP;
          batch.routeUnits(row, f.threshold(), otherwise);
        }
        case UnitDrop d -> drop(d, batch, row, position, token);
      }
    }
  }

  private static void drop(UnitDrop d, Batch batch, int row, int position, int token) {
    Gate.Unit unit = Gate.Unit.valueOf(d.unit().name());
    for (int i = 0; i < d.layers().size(); i++) {
      int layer = d.layers().get(i);
      if (d.share() == 1
          || CounterRandom.uniform(d.seed(), position, layer, token, 0) < d.share()) {
        batch.gate(layer, unit, row, Gate.SKIP);
      }
    }
  }
}
