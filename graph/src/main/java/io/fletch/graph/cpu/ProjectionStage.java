package io.fletch.graph.cpu;

import io.fletch.graph.Value;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;

/**
 * Products of one input with several matrices, a range of outputs per task, each followed by its
 * element-wise ops on the same range while that is in the cache.
 */
final class ProjectionStage extends WorkerPool.Stage<Frame> {
  /** Tasks per worker that are aimed at. */
  private static final int TASKS_PER_WORKER = 6;

  /** Bytes of weights per task below which claiming it would show. */
  private static final long MIN_TASK_BYTES = 32 << 10;

  /**
   * Bytes of weights per task above which the result of many rows would leave the cache before its
   * element-wise ops.
   */
  private static final long MAX_TASK_BYTES = 1 << 20;

  /** Bytes of weights per task of a single row: a step that others can wait for. */
  private static final long MAX_SINGLE_ROW_BYTES = 32 << 20;

  /** What a task of a single row takes of a worker's share of the bytes that are left: half. */
  private static final int SINGLE_ROW_SHARE = 2;

  /** Bytes of weights per task of a single row that shares them: where a run is too short. */
  private static final long MIN_SINGLE_ROW_BYTES = 128 << 10;

  /** Ranges are multiples of this, so that workers never write the same cache line. */
  private static final int LINE_FLOATS = 16;

  /** One product {@code y = W x (+ bias)}. */
  static final class Product {
    private final PreparedWeight weight;
    private final MemorySegment bias;
    private final boolean hasBias;
    private final Place input;
    private final long inputOffset;
    private final long inputRowBytes;
    private final Place y;
    private final int gate;
    private final int runs;
    private final boolean readWhenSkipped;

    /**
     * A product.
     *
     * @param bias {@link MemorySegment#NULL} for none
     * @param input the input where the kernel reads float32, else any place
     * @param inputOffset byte offset in scratch memory of the converted input
     * @param runs index of the runs of rows that the gate lets through
     */
    Product(
        PreparedWeight weight,
        MemorySegment bias,
        Place input,
        long inputOffset,
        long inputRowBytes,
        Place y,
        int gate,
        int runs,
        boolean readWhenSkipped) {
      this.weight = weight;
      this.bias = bias;
      hasBias = bias.byteSize() > 0;
      this.input = input;
      this.inputOffset = inputOffset;
      this.inputRowBytes = inputRowBytes;
      this.y = y;
      this.gate = gate;
      this.runs = runs;
      this.readWhenSkipped = readWhenSkipped;
    }

    void run(Frame f, Value.Rows kind, long from, long to) {
      boolean direct = weight.activation() == ActivationFormat.F32 && inputOffset < 0;
      PreparedWeight.Form form = weight.form();
      MemorySegment x = direct ? input.segment(f) : f.scratch;
      long base = direct ? input.at(0) * Float.BYTES : inputOffset;
      MemorySegment out = y.segment(f);
      int n = (int) (to - from);
      for (int r = 0; r < f.runCount(runs); r++) {
        int first = f.runFrom(runs, r);
        int end = f.runTo(runs, r);
        form.kernel()
            .run(
                form.data(),
                weight.out(),
                from,
                to,
                x,
                base + first * inputRowBytes,
                end - first,
                out,
                y.at(first),
                y.stride());
        for (int row = first; hasBias && row < end; row++) {
          long at = y.at(row) + from;
          f.kernels.add(out, at, bias, from, 1f, n, out, at);
        }
      }
      if (readWhenSkipped) {
        zeroSkipped(f, kind, from, n);
      }
    }

    private void zeroSkipped(Frame f, Value.Rows kind, long from, int n) {
      for (int row = 0; row < f.rows(kind); row++) {
        if (f.skips(gate, f.batchRow(kind, row))) {
          ElementOp.zero(f, y, row, from, n);
        }
      }
    }
  }

  /** Products of equal width and what follows them on each range. */
  record Cluster(List<Product> products, List<ElementOp> epilogue) {
    Cluster {
      products = List.copyOf(products);
      epilogue = List.copyOf(epilogue);
    }

    long out() {
      return products.getFirst().weight.out();
    }

    /** Bytes of weights per output. */
    long bytesPerOutput() {
      return Math.max(1, products.stream().mapToLong(p -> p.weight.bytes()).sum() / out());
    }

    long granule() {
      long granule = LINE_FLOATS;
      for (Product p : products) {
        granule = lcm(granule, p.weight.rowGranule());
      }
      return granule;
    }
  }

  /** Bytes of weights per task where a stage reads {@code total} of them. */
  static long taskBytes(long total, int threads) {
    long wanted = total / ((long) threads * TASKS_PER_WORKER);
    return Math.clamp(wanted, MIN_TASK_BYTES, MAX_TASK_BYTES);
  }

  /**
   * The same for the next task of a single row of activations, where {@code left} bytes have no
   * task yet. Its results are few, and memory is read fastest in long runs: one worker alone takes
   * a matrix as a whole. Several take a share of what is left, so that runs are long at first and
   * nobody has to wait long for the last one: cores do not read equally fast.
   */
  static long singleRowTaskBytes(long left, int threads) {
    return threads == 1
        ? MAX_SINGLE_ROW_BYTES
        : Math.clamp(
            left / ((long) threads * SINGLE_ROW_SHARE), MIN_SINGLE_ROW_BYTES, MAX_SINGLE_ROW_BYTES);
  }

  /** Outputs per task: about that many bytes of weights, in whole granules. */
  static long step(long taskBytes, long bytesPerOutput, long granule) {
    return Math.max(1, taskBytes / bytesPerOutput / granule) * granule;
  }

  /** Outputs that a range of one matrix is a multiple of. */
  static long granule(PreparedWeight weight) {
    return lcm(LINE_FLOATS, weight.rowGranule());
  }

  private static long lcm(long a, long b) {
    long x = a;
    long y = b;
    while (y != 0) {
      long r = x % y;
      x = y;
      y = r;
    }
    return a / x * b;
  }

  private final String name;
  private final Value.Rows kind;
  private final Product[][] products;
  private final ElementOp[][] epilogues;
  private final int[] taskCluster;
  private final long[] taskFrom;
  private final long[] taskTo;

  ProjectionStage(String name, Value.Rows kind, List<Cluster> clusters, int threads, int rows) {
    this.name = name;
    this.kind = kind;
    products =
        clusters.stream().map(c -> c.products().toArray(Product[]::new)).toArray(Product[][]::new);
    epilogues =
        clusters.stream()
            .map(c -> c.epilogue().toArray(ElementOp[]::new))
            .toArray(ElementOp[][]::new);
    long left = clusters.stream().mapToLong(c -> c.bytesPerOutput() * c.out()).sum();
    long fixed = taskBytes(left, threads);
    List<long[]> tasks = new ArrayList<>();
    for (int c = 0; c < clusters.size(); c++) {
      Cluster cluster = clusters.get(c);
      for (long from = 0; from < cluster.out(); ) {
        long wanted = rows == 1 ? singleRowTaskBytes(left, threads) : fixed;
        long step = step(wanted, cluster.bytesPerOutput(), cluster.granule());
        long to = Math.min(cluster.out(), from + step);
        tasks.add(new long[] {c, from, to});
        left -= (to - from) * cluster.bytesPerOutput();
        from = to;
      }
    }
    taskCluster = tasks.stream().mapToInt(t -> (int) t[0]).toArray();
    taskFrom = tasks.stream().mapToLong(t -> t[1]).toArray();
    taskTo = tasks.stream().mapToLong(t -> t[2]).toArray();
  }

  @Override
  int tasks(Frame f) {
    return f.rows(kind) == 0 ? 0 : taskCluster.length;
  }

  @Override
  void run(Frame f, int task, int worker) {
    int c = taskCluster[task];
    long from = taskFrom[task];
    long to = taskTo[task];
    for (Product product : products[c]) {
      product.run(f, kind, from, to);
    }
    ElementOp[] epilogue = epilogues[c];
    if (epilogue.length == 0) {
      return;
    }
    int n = (int) (to - from);
    for (int row = 0; row < f.rows(kind); row++) {
      int batchRow = f.batchRow(kind, row);
      for (ElementOp op : epilogue) {
        if (f.skips(op.gate, batchRow)) {
          op.skip(f, row, from, n);
        } else {
          op.run(f, row, from, n);
        }
      }
    }
  }

  @Override
  public String toString() {
    return name;
  }
}
