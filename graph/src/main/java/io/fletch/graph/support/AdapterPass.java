package io.fletch.graph.support;

import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.graph.Value;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;

/**
 * Pass: puts an {@link Op.Adapt} behind products, so that rows may have low-rank terms there. The
 * values that there were keep their names and mean the same, with what the terms add; rows without
 * terms are computed as before, bit for bit.
 */
public final class AdapterPass {
  private AdapterPass() {}

  /**
   * Runs the pass.
   *
   * @param targets values that products of the graph define
   */
  public static Graph of(Graph graph, Set<Value> targets) {
    int next = 0;
    for (Op op : graph.ops()) {
      next = Math.max(next, op.output().map(v -> v.id() + 1).orElse(0));
    }
    List<Op> ops = new ArrayList<>();
    for (Op op : graph.ops()) {
      if (op instanceof Op.Linear l && targets.contains(l.out())) {
        Value out = l.out();
        Value base = new Value(next++, out.width(), out.rows(), out.name() + ".base");
        ops.add(new Op.Linear(l.in(), l.weight(), l.bias(), l.gate(), base));
        ops.add(new Op.Adapt(l.in(), base, l.bias(), l.gate(), out));
      } else {
        ops.add(op);
      }
    }
    return new Graph(
        graph.name(), ops, graph.logits(), graph.hidden(), graph.vocabulary(), graph.kvLayers());
  }
}
