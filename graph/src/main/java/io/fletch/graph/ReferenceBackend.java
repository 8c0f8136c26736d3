package io.fletch.graph;

/**
 * The oracle: every op as a plain loop over float32 values with double accumulation, weights
 * dequantized row by row when they are used. Slow by intent; not a product path.
 */
public final class ReferenceBackend implements Backend {
  /** Creates the backend; it holds nothing. */
  public ReferenceBackend() {}

  @Override
  public String name() {
    return "reference";
  }

  @Override
  public Executable compile(Graph graph, int maxRows) {
    return new ReferenceExecutable(graph, maxRows);
  }
}
