/**
 * The static graph: ops, passes, plan, memory planner, KV cache, and the backends with their
 * kernels.
 *
 * <p>It knows neither tokenizers nor model families.
 */
module io.fletch.graph {
  requires io.fletch.ffm;
  requires transitive io.fletch.quant;
  requires static jdk.incubator.vector;

  exports io.fletch.graph to
      io.fletch.runtime,
      io.fletch.tools;
  exports io.fletch.graph.cuda to
      io.fletch.runtime,
      io.fletch.tools;
  exports io.fletch.graph.cpu to
      io.fletch.runtime,
      io.fletch.tools;
}
