package io.fletch.graph.cpu;

import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * The weights of a graph as its kernels want them: matrices as mapped or packed, small tensors as
 * float32. Packed copies are Arrow buffers of a store that this object owns. Filled in by the
 * compiling thread, which uses the workers for packing.
 */
final class Weights implements AutoCloseable {
  private static final Path MEMORY_INFO = Path.of("/proc/meminfo");

  private record Product(TensorType type, int in, boolean mayPack) {}

  private final Map<Product, Kernels.Matmul> products = new HashMap<>();
  private final TensorStore store = TensorStore.create();
  private final Map<Tensor, PreparedWeight> matrices = new IdentityHashMap<>();
  private final Map<Tensor, MemorySegment> floats = new IdentityHashMap<>();
  private String description = "";

  /** Prepares all matrices of a graph; called once. */
  void prepare(Graph graph, Kernels kernels, WorkerPool pool, CpuBackend.Options options) {
    List<Tensor> ordered = matricesOf(graph);
    long packedBytes = 0;
    for (Tensor t : ordered) {
      Kernels.Matmul m = kernel(kernels, t, true);
      packedBytes += m.packs() ? m.packedBytes(t.rows()) : 0;
    }
    boolean pack = packedBytes > 0 && options.layout() != CpuBackend.Layout.MAPPED;
    if (pack && options.layout() == CpuBackend.Layout.AUTO) {
      pack = packedBytes <= freeMemory() / 2;
    }
    long total = ordered.stream().mapToLong(Tensor::bytes).sum();
    long done = 0;
    for (Tensor t : ordered) {
      matrices.put(t, pack ? packed(t, kernels, pool) : mapped(t, kernels));
      done += t.bytes();
      options.progress().prepared(done, total);
    }
    if (pack) {
      description = "weights packed (" + (packedBytes >> 20) + " MiB)";
    } else if (packedBytes > 0 && options.layout() == CpuBackend.Layout.AUTO) {
      description = "weights mapped (packing needs " + (packedBytes >> 20) + " MiB of free memory)";
    } else {
      description = "weights mapped";
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
        .filter(op -> op instanceof Op.Linear)
        .map(op -> Lowering.matrix(((Op.Linear) op).weight()))
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

  private PreparedWeight packed(Tensor t, Kernels kernels, WorkerPool pool) {
    Kernels.Matmul m = kernel(kernels, t, true);
    if (!m.packs()) {
      return new PreparedWeight(m, t.segment(), t.rows(), t.bytes());
    }
    long bytes = m.packedBytes(t.rows());
    MemorySegment to = store.allocate(t.name() + ".packed", TensorType.I8, bytes).segment();
    pool.run(stages(new Pack(m, t, to)), this);
    return new PreparedWeight(m, to, t.rows(), bytes);
  }

  @SuppressWarnings({"unchecked", "rawtypes"})
  private static WorkerPool.Stage<Weights>[] stages(Pack pack) {
    return new WorkerPool.Stage[] {pack};
  }

  /** Packs one matrix, a range of rows per task. */
  private static final class Pack extends WorkerPool.Stage<Weights> {
    private static final long TASK_BYTES = 1 << 20;

    private final Kernels.Matmul kernel;
    private final Tensor from;
    private final MemorySegment to;
    private final long step;

    Pack(Kernels.Matmul kernel, Tensor from, MemorySegment to) {
      this.kernel = kernel;
      this.from = from;
      this.to = to;
      long granule = kernel.rowGranule();
      step = Math.max(1, TASK_BYTES / from.rowBytes() / granule) * granule;
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
    return matrices.get(Lowering.matrix(op.weight()));
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
    store.close();
  }
}
