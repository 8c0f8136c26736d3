package io.fletch.graph.cpu;

import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Stream;

/**
 * The weights of a graph as its kernels want them: matrices as mapped or packed, small tensors as
 * float32. Packed copies are Arrow buffers, of a store or of a mapped file of packed weights, which
 * this object owns. Filled in by the compiling thread, which uses the workers for packing.
 */
final class Weights implements AutoCloseable {
  private static final Path MEMORY_INFO = Path.of("/proc/meminfo");

  private record Product(TensorType type, int in, boolean mayPack) {}

  private final Map<Product, Kernels.Matmul> products = new HashMap<>();
  private final TensorStore store = TensorStore.create();
  private final Map<Tensor, PreparedWeight> matrices = new IdentityHashMap<>();
  private final Map<Tensor, MemorySegment> floats = new IdentityHashMap<>();
  private final Map<LinearOp, PreparedWeight> sparse = new IdentityHashMap<>();
  private Optional<PackedMatrices> file = Optional.empty();
  private String description = "";

  /** Prepares all matrices of a graph; called once. */
  void prepare(Graph graph, Kernels kernels, WorkerPool pool, CpuBackend.Options options) {
    List<Tensor> ordered = matricesOf(graph);
    List<PackedMatrices.Job> jobs = new ArrayList<>();
    for (Tensor t : ordered) {
      Kernels.Matmul m = kernel(kernels, t, true);
      if (m.packs() && t.bytes() > 0) {
        jobs.add(new PackedMatrices.Job(t, m));
      }
    }
    long packedBytes = jobs.stream().mapToLong(PackedMatrices.Job::bytes).sum();
    String size = (packedBytes >> 20) + " MiB";
    Steps steps = new Steps(ordered, options.progress());
    if (jobs.isEmpty() || options.layout() == CpuBackend.Layout.MAPPED) {
      ordered.forEach(t -> matrices.put(t, mapped(t, kernels)));
      description = "weights mapped";
    } else if (find(kernels, jobs, pool, options, packedBytes)) {
      description = "weights packed (" + size + ", mapped from " + file.orElseThrow().path() + ")";
    } else if (options.layout() == CpuBackend.Layout.AUTO && packedBytes > freeMemory() / 2) {
      ordered.forEach(t -> matrices.put(t, mapped(t, kernels)));
      description = "weights mapped (packing needs " + size + " of free memory)";
    } else if (write(kernels, jobs, pool, options, packedBytes, steps)) {
      description = "weights packed (" + size + ", kept in " + file.orElseThrow().path() + ")";
    } else {
      steps.restart();
      for (PackedMatrices.Job job : jobs) {
        matrices.put(job.tensor(), packed(job, pool));
        steps.next(job.tensor());
      }
      description = "weights packed (" + size + ")";
    }
    for (Tensor t : ordered) {
      matrices.computeIfAbsent(t, x -> unpacked(x, kernel(kernels, x, true)));
    }
    for (Op op : graph.ops()) {
      if (op instanceof Op.Linear l && !(l.weight() instanceof LinearOp.Dense)) {
        sparse.computeIfAbsent(l.weight(), x -> SparseWeights.prepare(x, kernels));
      }
    }
    steps.end();
  }

  private boolean find(
      Kernels kernels,
      List<PackedMatrices.Job> jobs,
      WorkerPool pool,
      CpuBackend.Options options,
      long bytes) {
    file =
        options
            .cache()
            .filter(c -> bytes >= c.minBytes())
            .flatMap(c -> PackedMatrices.find(c, kernels, jobs, pool));
    file.ifPresent(f -> use(f, jobs));
    return file.isPresent();
  }

  private boolean write(
      Kernels kernels,
      List<PackedMatrices.Job> jobs,
      WorkerPool pool,
      CpuBackend.Options options,
      long bytes,
      Steps steps) {
    Iterator<PackedMatrices.Job> next = jobs.iterator();
    file =
        options
            .cache()
            .filter(c -> bytes >= c.minBytes())
            .flatMap(c ->
                PackedMatrices.write(
                    c, kernels, jobs, pool, () -> steps.next(next.next().tensor())));
    file.ifPresent(f -> use(f, jobs));
    return file.isPresent();
  }

  private void use(PackedMatrices packed, List<PackedMatrices.Job> jobs) {
    for (int i = 0; i < jobs.size(); i++) {
      PackedMatrices.Job job = jobs.get(i);
      matrices.put(
          job.tensor(),
          new PreparedWeight(job.kernel(), packed.segment(i), job.tensor().rows(), job.bytes()));
    }
  }

  /** Tells the listener how many bytes are prepared. */
  private static final class Steps {
    private final long total;
    private final CpuBackend.Progress listener;
    private long done;

    Steps(List<Tensor> all, CpuBackend.Progress listener) {
      total = all.stream().mapToLong(Tensor::bytes).sum();
      this.listener = listener;
    }

    void next(Tensor t) {
      done += t.bytes();
      if (done < total) {
        listener.prepared(done, total);
      }
    }

    void restart() {
      done = 0;
    }

    void end() {
      listener.prepared(total, total);
    }
  }

  /** One kernel per type and width, since a set may emit code for each. */
  private Kernels.Matmul kernel(Kernels kernels, Tensor t, boolean mayPack) {
    int in = Math.toIntExact(t.cols());
    return products.computeIfAbsent(
        new Product(t.type(), in, mayPack),
        p -> mayPack ? kernels.matmul(t.type(), in) : kernels.matmulMapped(t.type(), in));
  }

  /** Each matrix once, in the order of use. */
  private static List<Tensor> matricesOf(Graph graph) {
    Set<Tensor> seen = Collections.newSetFromMap(new IdentityHashMap<>());
    return graph.ops().stream()
        .flatMap(op ->
            switch (op) {
              case Op.Linear o when o.weight() instanceof LinearOp.Dense d -> Stream.of(d.weight());
              case Op.ExpertLinear o -> o.experts().stream();
              default -> Stream.empty();
            })
        .filter(seen::add)
        .toList();
  }

  private PreparedWeight mapped(Tensor t, Kernels kernels) {
    Kernels.Matmul m = kernel(kernels, t, false);
    if (m.packs()) {
      throw new IllegalStateException("no kernel for mapped weights: " + m.name());
    }
    return new PreparedWeight(m, t.segment(), t.rows(), t.bytes());
  }

  private static PreparedWeight unpacked(Tensor t, Kernels.Matmul m) {
    return new PreparedWeight(m, t.segment(), t.rows(), t.bytes());
  }

  private PreparedWeight packed(PackedMatrices.Job job, WorkerPool pool) {
    Tensor t = job.tensor();
    MemorySegment to = store.allocate(t.name() + ".packed", TensorType.I8, job.bytes()).segment();
    pool.run(stages(new Pack(job, to)), this);
    return new PreparedWeight(job.kernel(), to, t.rows(), job.bytes());
  }

  @SuppressWarnings({"unchecked", "rawtypes"})
  private static WorkerPool.Stage<Weights>[] stages(Pack pack) {
    return new WorkerPool.Stage[] {pack};
  }

  /** Packs one matrix, a range of rows per task. */
  private static final class Pack extends WorkerPool.Stage<Weights> {
    private final Kernels.Matmul kernel;
    private final Tensor from;
    private final MemorySegment to;
    private final long step;

    Pack(PackedMatrices.Job job, MemorySegment to) {
      this.kernel = job.kernel();
      this.from = job.tensor();
      this.to = to;
      step = job.step();
    }

    @Override
    int tasks(Weights context) {
      return Math.toIntExact((from.rows() + step - 1) / step);
    }

    @Override
    void run(Weights context, int task, int worker) {
      long first = task * step;
      kernel.pack(from.segment(), to, from.rows(), first, Math.min(from.rows(), first + step));
    }

    @Override
    public String toString() {
      return "packing of " + from.name();
    }
  }

  /** Memory the system could give, or a great deal where that is unknown. */
  private static long freeMemory() {
    try {
      for (String line : Files.readAllLines(MEMORY_INFO)) {
        if (line.startsWith("MemAvailable:")) {
          return Long.parseLong(line.replaceAll("\\D", "")) << 10;
        }
      }
    } catch (IOException | NumberFormatException e) {
      return Long.MAX_VALUE;
    }
    return Long.MAX_VALUE;
  }

  /** A matrix. */
  PreparedWeight matrix(Op.Linear op) {
    return op.weight() instanceof LinearOp.Dense d
        ? matrices.get(d.weight())
        : sparse.get(op.weight());
  }

  /** The matrix of an expert. */
  PreparedWeight expert(Tensor tensor) {
    return matrices.get(tensor);
  }

  /** A small tensor as float32. */
  MemorySegment floats(Tensor tensor) {
    return floats.computeIfAbsent(
        tensor,
        t ->
            t.type() == TensorType.F32
                ? t.segment()
                : store.floats(t.name() + ".f32", Dequantizer.toFloats(t), t.shape()).segment());
  }

  /** One clause for the startup line. */
  String description() {
    return description;
  }

  @Override
  public void close() {
    file.ifPresent(PackedMatrices::close);
    file = Optional.empty();
    store.close();
  }
}
