package io.fletch.graph;

/** Turns graphs into executables. */
public interface Backend {
  /** Short name: {@code reference}, {@code cpu}, {@code cuda}. */
  String name();

  /**
   * Plans and prepares a graph: chooses kernels, packs weights, plans scratch memory.
   *
   * @param maxRows the most rows of one forward (the prefill chunk)
   */
  Executable compile(Graph graph, int maxRows);
}
