package io.fletch.graph;

import java.util.ArrayList;
import java.util.List;
import java.util.Set;

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
  /** Columns of the table that are aligned to the right. */
  private static final Set<Integer> NUMERIC = Set.of(0, 2, 6, 7);

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

  /** Flops of a row, without attention, whose cost depends on the context. */
  public long flops() {
    return steps.stream().mapToLong(Step::flops).sum();
  }

  /** A table: one line per step, then the totals. Offsets and sizes are in bytes. */
  @Override
  public String toString() {
    List<String[]> table = new ArrayList<>();
    table.add(
        new String[] {"#", "step", "ops", "kernel", "reads at", "writes at", "weights", "flops"});
    for (int i = 0; i < steps.size(); i++) {
      Step s = steps.get(i);
      table.add(
          new String[] {
            Integer.toString(i),
            s.name(),
            Integer.toString(s.ops()),
            s.kernel(),
            offsets(s.inputs()),
            offsets(s.outputs()),
            Long.toString(s.weightBytes()),
            Long.toString(s.flops())
          });
    }
    int[] widths = new int[table.getFirst().length];
    for (String[] row : table) {
      for (int c = 0; c < row.length; c++) {
        widths[c] = Math.max(widths[c], row[c].length());
      }
    }
    StringBuilder text = new StringBuilder();
    text.append("plan of ").append(graph).append(", ").append(backend);
    text.append(", up to ").append(maxRows).append(maxRows == 1 ? " row\n" : " rows\n");
    for (String[] row : table) {
      line(row, widths, text);
    }
    text.append("scratch ").append(scratchBytes).append(" bytes, weights ").append(weightBytes);
    text.append(" bytes per token, ").append(flops()).append(" flops per row and attention\n");
    return text.toString();
  }

  private static String offsets(List<Long> all) {
    return String.join(" ", all.stream().distinct().map(Object::toString).toList());
  }

  private static void line(String[] row, int[] widths, StringBuilder text) {
    for (int c = 0; c < row.length; c++) {
      boolean number = NUMERIC.contains(c);
      String pad = " ".repeat(widths[c] - row[c].length());
      text.append(c == 0 ? "" : "  ").append(number ? pad : "").append(row[c]);
      text.append(number || c == row.length - 1 ? "" : pad);
    }
    text.append('\n');
  }
}
