package io.fletch.runtime.engine;

import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.graph.Plan;
import io.fletch.graph.Value;
import io.fletch.quant.LinearOp;
import java.util.Arrays;
import java.util.List;

/**
 * What a pass over a model costs, as {@link io.fletch.sampling.WeightUse} counts it. Bytes are
 * those of the backend's plan, which may store a matrix in another form than the file; parameters
 * are those of the graph.
 *
 * @param body bytes of weights that a pass reads before the output matrix
 * @param head bytes of the output matrix, read if a row wants logits
 * @param parameters elements of all matrices that a row with logits is multiplied by; what a sparse
 *     matrix stores, and the experts that a row uses
 */
record PassCost(long body, long head, long parameters) {
  /** Of a compiled graph. */
  static PassCost of(Executable executable) {
    Graph graph = executable.graph();
    List<String> heads =
        graph.ops().stream()
            .filter(op -> op instanceof Op.Linear l && l.in().rows() == Value.Rows.LOGITS)
            .map(op -> op.output().orElseThrow().name())
            .toList();
    Plan plan = executable.plans().getFirst();
    long head = 0;
    for (Plan.Step step : plan.steps()) {
      if (Arrays.stream(step.name().split(" ")).anyMatch(n -> isPart(n, heads))) {
        head += step.weightBytes();
      }
    }
    long parameters = graph.ops().stream().mapToLong(PassCost::parameters).sum();
    return new PassCost(plan.weightBytes() - head, head, parameters);
  }

  /** A product of several matrices is one step each, named after the result. */
  private static boolean isPart(String name, List<String> heads) {
    return heads.stream().anyMatch(h -> name.equals(h) || name.startsWith(h + "."));
  }

  private static long parameters(Op op) {
    return switch (op) {
      case Op.Linear l -> parameters(l.weight());
      case Op.ExpertLinear e -> e.used() * e.experts().getFirst().elements();
      default -> 0;
    };
  }

  private static long parameters(LinearOp op) {
    return switch (op) {
      case LinearOp.Dense d -> d.weight().elements();
      case LinearOp.Sparse s -> s.matrix().values().elements();
      case LinearOp.BlockDiagonal b -> b.blocks().elements();
      case LinearOp.LowRank l -> parameters(l.u()) + parameters(l.v());
      case LinearOp.Sum s -> s.terms().stream().mapToLong(t -> parameters(t.op())).sum();
      case LinearOp.Chain c -> c.ops().stream().mapToLong(PassCost::parameters).sum();
      case LinearOp.Columns c -> parameters(c.weight());
    };
  }

  /** Bytes of weights of a pass. */
  long bytes(boolean wantsLogits) {
    return wantsLogits ? body + head : body;
  }
}
