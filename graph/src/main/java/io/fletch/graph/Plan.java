package io.fletch.graph;

import java.util.List;

/**
 * What a backend will do for one row bucket: the steps in order with their kernels, buffers and
 * costs. Immutable; {@link #toString()} is what {@code fletch inspect --plan} prints.
 *
 * @param graph name of the graph
 * @param backend name of the backend and its kernel set
 * @param maxRows rows of the bucket
 * @param scratchBytes planned scratch memory
 * @param weightBytes bytes of weights that one forward of one row reads
 * @param steps in execution order
 */
public record Plan(
    String graph,
    String backend,
    int maxRows,
    long scratchBytes,
    long weightBytes,
    List<Step> steps) {
  /** Copies the steps. */
  public Plan {
    steps = List.copyOf(steps);
  }

  /**
   * One kernel launch, or a group of fused ops run by one parallel section.
   *
   * @param name the value or layer it computes
   * @param kernel the kernel that runs
   * @param ops how many graph ops it covers
   * @param inputs scratch offsets read, in bytes
   * @param outputs scratch offsets written, in bytes
   * @param weightBytes bytes of weights read
   * @param flops floating-point (or integer multiply-add, counted as two) operations per row
   */
  public record Step(
      String name,
      String kernel,
      int ops,
      List<Long> inputs,
      List<Long> outputs,
      long weightBytes,
      long flops) {
    /** Copies the lists. */
    public Step {
      inputs = List.copyOf(inputs);
      outputs = List.copyOf(outputs);
    }
  }
}
