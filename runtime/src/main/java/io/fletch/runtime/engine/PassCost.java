package io.fletch.runtime.engine;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.graph.Plan;
import io.fletch.graph.Value;
import io.fletch.quant.LinearOp;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * What a pass over a model costs, as {@link io.fletch.sampling.WeightUse} counts it. Bytes are
 * those of the backend's plan, which may store a matrix in another form than the file, and belong
 * to units in proportion to their matrices; parameters are those of the graph. Immutable.
 */
final class PassCost {
  /** What a unit, or what stands in for it, adds to a pass. */
  private record Unit(
      Gate gate, long bytes, long parameters, long standInBytes, long standInParameters) {}

  private final long body;
  private final long head;
  private final long parameters;
  private final List<Unit> units;

  private PassCost(long body, long head, long parameters, List<Unit> units) {
    this.body = body;
    this.head = head;
    this.parameters = parameters;
    this.units = List.copyOf(units);
  }

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
    long stored = 0;
    Map<Gate, long[]> gated = new HashMap<>();
    long parameters = 0;
    List<Gate> order = new ArrayList<>();
    for (Op op : graph.ops()) {
      boolean isHead = op instanceof Op.Linear l && l.in().rows() == Value.Rows.LOGITS;
      long bytes = isHead ? 0 : bytes(op);
      stored += bytes;
      parameters += parameters(op);
      Gate.of(op)
          .ifPresent(g -> {
            long[] sums = gated.computeIfAbsent(g, x -> new long[2]);
            sums[0] += bytes;
            sums[1] += parameters(op);
            if (g.branch() == Gate.Branch.UNIT && !order.contains(g)) {
              order.add(g);
            }
          });
    }
    long body = plan.weightBytes() - head;
    double inPlan = stored == 0 ? 1 : (double) body / stored;
    List<Unit> units = new ArrayList<>();
    for (Gate g : order) {
      long[] own = gated.get(g);
      long[] standIn = gated.getOrDefault(g.standIn(), new long[2]);
      long standInBytes = Math.round(standIn[0] * inPlan);
      units.add(new Unit(g, Math.round(own[0] * inPlan), own[1], standInBytes, standIn[1]));
      // A dense pass runs no stand-in.
      body -= standInBytes;
      parameters -= standIn[1];
    }
    return new PassCost(body, head, parameters, units);
  }

  /** A product of several matrices is one step each, named after the result. */
  private static boolean isPart(String name, List<String> heads) {
    return heads.stream().anyMatch(h -> name.equals(h) || name.startsWith(h + "."));
  }

  private static long bytes(Op op) {
    return switch (op) {
      case Op.Linear l -> l.weight().bytes();
      case Op.ExpertLinear e -> e.used() * e.experts().getFirst().bytes();
      case Op.Embedding e -> e.table().rowBytes();
      default -> 0;
    };
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

  /**
   * Elements of all matrices that a row with logits is multiplied by if all units run; what a
   * sparse matrix stores, and the experts that a row uses.
   */
  long parameters() {
    return parameters;
  }

  /** Bytes of weights of a pass in which all units run. */
  long bytes(boolean wantsLogits) {
    return wantsLogits ? body + head : body;
  }

  /**
   * Bytes of weights that a batch which has run did not read, because no row ran their unit or what
   * they would have been multiplied by was zero.
   */
  long bytesSpared(Batch ran) {
    long spared = ran.skippedBytes();
    for (int u = 0; u < units.size(); u++) {
      Unit unit = units.get(u);
      boolean runs = false;
      boolean standsIn = false;
      for (int r = 0; r < ran.rows(); r++) {
        byte decided = ran.decided(unit.gate().layer(), unit.gate().unit(), r);
        runs |= decided == Gate.RUN;
        standsIn |= decided == Gate.SUBSTITUTE;
      }
      spared += (runs ? 0 : unit.bytes()) - (standsIn ? unit.standInBytes() : 0);
    }
    return spared;
  }

  /** What became of the units of rows. Reused; nothing is allocated. */
  static final class Tally {
    /** Units that were asked about, that were skipped, and that were substituted. */
    long units;

    long skipped;
    long approximated;

    /** Parameters that rows which tokens were drawn from were not multiplied by. */
    long sparedParameters;
  }

  /**
   * Counts what became of the units of a row of a batch which has run.
   *
   * @param counts whether its units are counted
   * @param draws whether a token is drawn from it, so that its parameters count
   */
  void tally(Batch ran, int row, boolean counts, boolean draws, Tally into) {
    for (int u = 0; u < units.size(); u++) {
      Unit unit = units.get(u);
      byte decided = ran.decided(unit.gate().layer(), unit.gate().unit(), row);
      if (counts) {
        into.units++;
        into.skipped += decided == Gate.SKIP ? 1 : 0;
        into.approximated += decided == Gate.SUBSTITUTE ? 1 : 0;
      }
      if (draws && decided != Gate.RUN) {
        into.sparedParameters +=
            unit.parameters() - (decided == Gate.SUBSTITUTE ? unit.standInParameters() : 0);
      }
    }
  }
}
