package io.fletch.graph;

import io.fletch.graph.Value.Rows;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;

/**
 * A graph in two: the first layers, whose result is the residual stream of all rows, and the rest,
 * which takes it as numbers of the rows ({@link Op.Input}). Ops of the first part may decide about
 * gates of the second one, whose bytes then have to be carried over.
 *
 * @param first ends with a {@link Op.SelectRows} of the stream: a forward asks for all its rows
 * @param second layers are numbered from 0 again in its cache; gates keep their numbers
 */
record GraphCut(Graph first, Graph second) {
  /**
   * Cuts before a layer.
   *
   * @param layers layers of the first part, in [1, kvLayers - 1]
   * @throws GraphException if more than one value crosses the cut, or the graph takes numbers
   */
  static GraphCut of(Graph graph, int layers) {
    int all = graph.kvLayers().size();
    if (layers < 1 || layers >= all) {
      throw new IllegalArgumentException(
          "layers of the first part: expected in [1, " + (all - 1) + "] actual=" + layers);
    }
    if (graph.inputWidth() > 0) {
      throw new GraphException(graph.name() + " takes numbers: it cannot be cut in two");
    }
    int end = storeOf(graph, layers);
    // The last place before the layer's store where the stream is all that later ops read.
    for (int at = end; at > storeOf(graph, layers - 1); at--) {
      Set<Value> crossing = crossing(graph, at);
      if (crossing.size() == 1) {
        Value stream = crossing.iterator().next();
        if (stream.rows() == Rows.BATCH) {
          return cut(graph, at, stream, layers);
        }
      }
    }
    throw new GraphException(
        graph.name() + " cannot be cut before layer " + layers + ": several values cross");
  }

  private static int storeOf(Graph graph, int layer) {
    for (int i = 0; i < graph.ops().size(); i++) {
      if (graph.ops().get(i) instanceof Op.KvStore s && s.spec().layer() == layer) {
        return i;
      }
    }
    throw new GraphException(graph.name() + " has no keys of layer " + layer);
  }

  /** Values of the ops before {@code at} that ops from there on read. */
  private static Set<Value> crossing(Graph graph, int at) {
    Set<Value> before = new HashSet<>();
    graph.ops().subList(0, at).forEach(op -> op.output().ifPresent(before::add));
    Set<Value> read = new HashSet<>();
    for (Op op : graph.ops().subList(at, graph.ops().size())) {
      op.inputs().stream().filter(before::contains).forEach(read::add);
    }
    return read;
  }

  private static GraphCut cut(Graph graph, int at, Value stream, int layers) {
    int next =
        1
            + graph.ops().stream()
                .flatMap(op -> op.output().stream())
                .mapToInt(Value::id)
                .max()
                .orElseThrow();
    Value out = new Value(next, stream.width(), Rows.LOGITS, stream.name() + ".out");
    List<Op> first = new ArrayList<>(graph.ops().subList(0, at));
    first.add(new Op.SelectRows(stream, out));
    List<Op> second = new ArrayList<>();
    second.add(new Op.Input(0, stream));
    for (Op op : graph.ops().subList(at, graph.ops().size())) {
      second.add(
          switch (op) {
            case Op.KvStore o -> new Op.KvStore(moved(o.spec(), layers), o.key(), o.value());
            case Op.Attention o ->
                new Op.Attention(moved(o.spec(), layers), o.query(), o.gate(), o.out());
            default -> op;
          });
    }
    return new GraphCut(
        new Graph(
            graph.name(),
            first,
            out,
            Optional.empty(),
            graph.vocabulary(),
            graph.kvLayers().subList(0, layers)),
        new Graph(
            graph.name(),
            second,
            graph.logits(),
            graph.hidden(),
            graph.vocabulary(),
            graph.kvLayers().subList(layers, graph.kvLayers().size()).stream()
                .map(s -> moved(s, layers))
                .toList()));
  }

  private static AttentionSpec moved(AttentionSpec s, int layers) {
    return new AttentionSpec(
        s.layer() - layers,
        s.heads(),
        s.kvHeads(),
        s.keyDim(),
        s.valueDim(),
        s.scale(),
        s.softCap(),
        s.window());
  }
}
