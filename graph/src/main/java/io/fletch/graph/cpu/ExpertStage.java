package io.fletch.graph.cpu;

import io.fletch.graph.Op;
import io.fletch.graph.Value;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.List;

/**
 * Products with the matrices of the experts that rows are routed to. Rows are grouped by expert, so
 * that a range of a matrix is read from memory once for all rows that want it; an expert that no
 * row chose is not read at all.
 *
 * <p>Grouping is done when the stage starts, by the one thread that asks for the number of tasks.
 */
final class ExpertStage extends WorkerPool.Stage<Frame> {
  /**
   * One op.
   *
   * @param experts of one shape and kernel
   * @param inputOffset byte offset in scratch memory of the converted input; -1 if the kernel reads
   *     float32 where the input lies
   * @param rowBytes of the converted input
   * @param partBytes from part to part of a row; 0 if every expert reads the whole row
   * @param y takes the results of a row side by side
   */
  record Product(
      PreparedWeight[] experts,
      Place input,
      long inputOffset,
      long rowBytes,
      long partBytes,
      Place y) {}

  private final String name;
  private final Value.Rows kind;
  private final Place routing;
  private final int used;
  private final int gate;
  private final Product[] products;
  private final long[] steps;
  private final int[] ranges;
  private final int rangesOfAll;

  // Of the forward at hand: (row * used + k) sorted by expert.
  private final int[] pairs;
  private final int[] firstPair;
  private final int[] active;
  private int activeCount;
  private int pairCount;

  ExpertStage(
      Op.ExpertLinear shape,
      List<Product> products,
      Place routing,
      int gate,
      int maxRows,
      int threads) {
    name = shape.out().name();
    kind = shape.in().rows();
    this.routing = routing;
    used = shape.used();
    this.gate = gate;
    this.products = products.toArray(Product[]::new);
    steps = new long[this.products.length];
    ranges = new int[this.products.length];
    int sum = 0;
    for (int p = 0; p < this.products.length; p++) {
      PreparedWeight first = this.products[p].experts()[0];
      long bytesPerOutput = Math.max(1, first.bytes() / first.out());
      long taskBytes = ProjectionStage.taskBytes(used * first.bytes(), threads);
      steps[p] = ProjectionStage.step(taskBytes, bytesPerOutput, ProjectionStage.granule(first));
      ranges[p] = Math.toIntExact((first.out() + steps[p] - 1) / steps[p]);
      sum += ranges[p];
    }
    rangesOfAll = sum;
    int experts = shape.experts().size();
    pairs = new int[Math.multiplyExact(maxRows, used)];
    firstPair = new int[experts + 1];
    active = new int[experts];
  }

  @Override
  int tasks(Frame f) {
    int rows = f.rows(kind);
    Arrays.fill(firstPair, 0);
    for (int row = 0; row < rows; row++) {
      if (!f.skips(gate, f.batchRow(kind, row))) {
        for (int k = 0; k < used; k++) {
          firstPair[expert(f, row, k) + 1]++;
        }
      }
    }
    activeCount = 0;
    for (int e = 0; e < active.length; e++) {
      if (firstPair[e + 1] > 0) {
        active[activeCount++] = e;
      }
      firstPair[e + 1] += firstPair[e];
    }
    pairCount = firstPair[active.length];
    // Filled in from the back, so that firstPair ends up at the first pair of each expert.
    for (int row = rows - 1; row >= 0; row--) {
      if (!f.skips(gate, f.batchRow(kind, row))) {
        for (int k = used - 1; k >= 0; k--) {
          pairs[--firstPair[expert(f, row, k) + 1]] = row * used + k;
        }
      }
    }
    return activeCount * rangesOfAll;
  }

  private int expert(Frame f, int row, int k) {
    long at = (routing.at(row) + used + k) * Float.BYTES;
    return (int) routing.segment(f).get(ValueLayout.JAVA_FLOAT, at);
  }

  @Override
  void run(Frame f, int task, int worker) {
    int expert = active[task / rangesOfAll];
    int range = task % rangesOfAll;
    int p = 0;
    while (range >= ranges[p]) {
      range -= ranges[p++];
    }
    Product product = products[p];
    PreparedWeight weight = product.experts()[expert];
    long from = range * steps[p];
    long to = Math.min(weight.out(), from + steps[p]);
    boolean direct = weight.activation() == ActivationFormat.F32 && product.inputOffset() < 0;
    PreparedWeight.Form form = weight.form();
    MemorySegment x = direct ? product.input().segment(f) : f.scratch;
    MemorySegment y = product.y().segment(f);
    int end = expert + 2 < firstPair.length ? firstPair[expert + 2] : pairCount;
    for (int i = firstPair[expert + 1]; i < end; i++) {
      int row = pairs[i] / used;
      int k = pairs[i] % used;
      long base =
          direct
              ? product.input().at(row) * Float.BYTES
              : product.inputOffset() + row * product.rowBytes();
      form.kernel()
          .run(
              form.data(),
              weight.out(),
              from,
              to,
              x,
              base + k * product.partBytes(),
              1,
              y,
              product.y().at(row) + k * weight.out(),
              product.y().stride());
    }
  }

  @Override
  public String toString() {
    return name;
  }
}
