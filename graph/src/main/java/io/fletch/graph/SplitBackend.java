package io.fletch.graph;

import java.util.Objects;

/**
 * Runs the first layers of a graph on one backend and the rest, with the output, on another: a
 * model that is larger than the memory of a device. The residual stream of each row goes from one
 * to the other through the host, {@code 4 * width} bytes per row and forward.
 */
public final class SplitBackend implements Backend {
  private final Backend first;
  private final Backend second;
  private final int layers;

  /**
   * @param first runs the layers below {@code layers}
   * @param second runs the others and the output
   * @param layers at least 1 and less than the graph has
   */
  public SplitBackend(Backend first, Backend second, int layers) {
    this.first = Objects.requireNonNull(first, "first");
    this.second = Objects.requireNonNull(second, "second");
    this.layers = layers;
  }

  /**
   * The part that the second backend would compile.
   *
   * @param layers layers of the first part, 0 for the whole graph
   * @throws GraphException if the graph cannot be cut there
   */
  public static Graph second(Graph graph, int layers) {
    return layers == 0 ? graph : GraphCut.of(graph, layers).second();
  }

  @Override
  public String name() {
    return first.name() + "+" + second.name();
  }

  /**
   * {@inheritDoc}
   *
   * @throws GraphException if the graph cannot be cut there
   */
  @Override
  public Executable compile(Graph graph, int maxRows) {
    GraphCut cut = GraphCut.of(graph, layers);
    // The scarce memory first: what does not fit should not have to wait for the other part.
    Executable back = second.compile(cut.second(), maxRows);
    try {
      return new SplitExecutable(graph, layers, first.compile(cut.first(), maxRows), back);
    } catch (RuntimeException | Error e) {
      back.close();
      throw e;
    }
  }
}
