package io.fletch.graph;

import io.fletch.graph.Gate.Branch;
import io.fletch.graph.Gate.Unit;
import java.util.ArrayList;
import java.util.List;

/**
 * Pass: adds the decisions of FFN-SkipLLM (specs autoregressive 2) to a graph. After each
 * feed-forward unit of a region, a {@link Op.SkipSimilar} may let those that follow within the
 * region rest; after the last one it only records its score.
 */
public final class SkipPass {
  private SkipPass() {}

  /**
   * Runs the pass.
   *
   * @param from first layer of the region
   * @param to its end, exclusive
   * @throws IllegalArgumentException if the region is not within the layers, or fewer than two of
   *     its layers have a feed-forward unit that a decision can be about
   */
  public static Graph apply(Graph graph, int from, int to) {
    List<Gate> gates = gates(graph);
    int layers = gates.stream().mapToInt(g -> g.layer() + 1).max().orElse(0);
    if (from < 0 || to > layers) {
      throw new IllegalArgumentException(
          "region: expected within [0, " + layers + ") actual=[" + from + ", " + to + ")");
    }
    List<Gate> region = gates.stream().filter(g -> from <= g.layer() && g.layer() < to).toList();
    if (region.size() < 2) {
      throw new IllegalArgumentException(
          "region: expected at least two feed-forward units actual=" + region.size());
    }
    List<Op> ops = new ArrayList<>();
    for (Op op : graph.ops()) {
      ops.add(op);
      if (op instanceof Op.Add add && add.gate().isPresent()) {
        int at = region.indexOf(add.gate().get());
        if (at >= 0) {
          ops.add(
              new Op.SkipSimilar(
                  add.residual(),
                  add.out(),
                  region.get(at),
                  region.subList(at + 1, region.size())));
        }
      }
    }
    return new Graph(
        graph.name(), ops, graph.logits(), graph.hidden(), graph.vocabulary(), graph.kvLayers());
  }

  /** Gates of the feed-forward units that are added to a residual stream, in order. */
  private static List<Gate> gates(Graph graph) {
    List<Gate> all = new ArrayList<>();
    for (Op op : graph.ops()) {
      if (op instanceof Op.Add add
          && add.gate().isPresent()
          && add.gate().get().unit() == Unit.FFN
          && add.gate().get().branch() == Branch.UNIT
          && !all.contains(add.gate().get())) {
        all.add(add.gate().get());
      }
    }
    return all;
  }
}
