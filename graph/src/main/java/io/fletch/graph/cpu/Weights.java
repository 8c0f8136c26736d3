package io.fletch.graph.cpu;

import io.fletch.graph.Activation;
import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.graph.Value;
import io.fletch.graph.cpu.x86.ColumnsMatmulCode;
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
import java.util.HashSet;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Stream;

/**
 * The weights of a graph as its kernels want them: matrices as mapped or packed, small tensors as
 * float32. Packed copies are Arrow buffers, of a store or of a mapped file of packed weights, which
 * this object owns. Filled in by the compiling thread, which uses the workers for packing; where a
 * file of packed weights is to be kept and nobody asked to wait for it, a thread of its own packs,
 * and the matrices change their form when it has done.
 */
final class Weights implements AutoCloseable {
  private static final String MAPPED = "weights mapped";
  private static final Path MEMORY_INFO = Path.of("/proc/meminfo");

  private record Product(TensorType type, int in, boolean mayPack) {}

  private final Map<Product, Kernels.Matmul> products = new HashMap<>();
  private final Map<Product, Kernels.Matmul> floatColumns = new HashMap<>();
  private final TensorStore store = TensorStore.create();
  private final Map<Tensor, PreparedWeight> matrices = new IdentityHashMap<>();
  private final Map<Tensor, MemorySegment> floats = new IdentityHashMap<>();
  private final Map<LinearOp, PreparedWeight> sparse = new IdentityHashMap<>();

  /** Kernels that count what they do not read. */
  private SkippingMatmul[] columns = {};

  /** Matrices whose input has zeros and for which there is a kernel that leaves them out. */
  private final Map<Tensor, Kernels.Matmul> behindZeros = new IdentityHashMap<>();

  private Optional<PackedCopies> copies = Optional.empty();
  private Optional<PackedCopies> sparseCopies = Optional.empty();
  private Optional<BackgroundPacking> packing = Optional.empty();
  private Optional<BackgroundVerification> verification = Optional.empty();
  private Optional<HugeCopies> huge = Optional.empty();
  private String description = "";

  /** Prepares all matrices of a graph; called once. */
  void prepare(Graph graph, Kernels kernels, WorkerPool pool, CpuBackend.Options options) {
    List<Tensor> ordered = matricesOf(graph);
    for (Tensor t : behindZeros(graph)) {
      columns(kernels, t).ifPresent(m -> behindZeros.put(t, m));
    }
    List<PackedMatrices.Job> jobs = new ArrayList<>();
    for (Tensor t : ordered) {
      Kernels.Matmul m = kernel(kernels, t, true);
      if (m.packs() && t.bytes() > 0) {
        jobs.add(new PackedMatrices.Job(t, m));
      }
    }
    Steps steps = new Steps(ordered, options.progress());
    if (jobs.isEmpty() || options.layout() == CpuBackend.Layout.MAPPED) {
      ordered.forEach(t -> matrices.put(t, mapped(t, kernels)));
      description = MAPPED;
    } else {
      PackedCopies packed = new PackedCopies(kernels, jobs, options.cache());
      copies = Optional.of(packed);
      prepare(ordered, jobs, packed, kernels, pool, options, steps);
    }
    for (Tensor t : ordered) {
      matrices.computeIfAbsent(t, x -> unpacked(x, kernel(kernels, x, true)));
    }
    prepareSparse(graph, kernels, pool, options);
    columns =
        behindZeros.values().stream()
            .distinct()
            .map(SkippingMatmul.class::cast)
            .toArray(SkippingMatmul[]::new);
    copyToHugePages(options);
    steps.end();
  }

  /**
   * Matrices that are not dense, packed in memory where their kernel wants that; files of packed
   * weights are of dense ones only.
   */
  private void prepareSparse(
      Graph graph, Kernels kernels, WorkerPool pool, CpuBackend.Options options) {
    Map<LinearOp, PackedMatrices.Job> jobs = new IdentityHashMap<>();
    for (Op op : graph.ops()) {
      if (op instanceof Op.Linear l && !(l.weight() instanceof LinearOp.Dense)) {
        SparseWeights.job(l.weight(), kernels).ifPresent(job -> jobs.put(l.weight(), job));
        sparse.computeIfAbsent(l.weight(), x -> SparseWeights.prepare(x, kernels));
      }
    }
    long bytes = jobs.values().stream().mapToLong(PackedMatrices.Job::bytes).sum();
    boolean fits = options.layout() != CpuBackend.Layout.AUTO || bytes <= freeMemory() / 2;
    if (jobs.isEmpty() || options.layout() == CpuBackend.Layout.MAPPED || !fits) {
      return;
    }
    List<Map.Entry<LinearOp, PackedMatrices.Job>> ordered = List.copyOf(jobs.entrySet());
    PackedCopies packed =
        new PackedCopies(
            kernels, ordered.stream().map(Map.Entry::getValue).toList(), Optional.empty());
    sparseCopies = Optional.of(packed);
    packed.pack(pool, job -> {}, () -> {});
    for (int i = 0; i < ordered.size(); i++) {
      PreparedWeight weight = sparse.get(ordered.get(i).getKey());
      weight.become(ordered.get(i).getValue().kernel(), packed.segment(i));
    }
  }

  /** Copies to huge pages what is read from a file, unless that is what was asked for. */
  private void copyToHugePages(CpuBackend.Options options) {
    boolean staysMapped = description.startsWith(MAPPED) && packing.isEmpty();
    if (!options.hugePages() || staysMapped || !HugeCopies.available()) {
      return;
    }
    boolean inMemory = copies.isPresent() && !copies.get().inFile() && packing.isEmpty();
    HugeCopies wanted =
        new HugeCopies(
            Stream.concat(
                    matrices.entrySet().stream()
                        .filter(e ->
                            !inMemory || e.getValue().form().data().equals(e.getKey().segment()))
                        .map(Map.Entry::getValue),
                    // Their values; masks and indices stay in the file.
                    sparse.values().stream().filter(w -> !w.form().kernel().packs()))
                .toList(),
            () -> {
              options.packed().run();
              copies.ifPresent(PackedCopies::dropPages);
            });
    if (wanted.bytes() > 0 && wanted.bytes() <= freeMemory() / 3) {
      huge = Optional.of(wanted);
    } else {
      wanted.close();
    }
  }

  private void prepare(
      List<Tensor> ordered,
      List<PackedMatrices.Job> jobs,
      PackedCopies packed,
      Kernels kernels,
      WorkerPool pool,
      CpuBackend.Options options,
      Steps steps) {
    boolean auto = options.layout() == CpuBackend.Layout.AUTO;
    if (packed.find(pool)) {
      use(packed, jobs);
    } else if (auto && packed.bytes() > freeMemory() / 2) {
      ordered.forEach(t -> matrices.put(t, mapped(t, kernels)));
      description = "weights mapped (packing needs " + (packed.bytes() >> 20) + " MiB of memory)";
    } else if (auto && packed.keeps() && mapBeforePacking(jobs, kernels)) {
      description = "weights mapped until packed (" + packed.place() + ")";
      packing =
          Optional.of(
              new BackgroundPacking(
                  packed,
                  () -> {
                    for (int i = 0; i < jobs.size(); i++) {
                      PackedMatrices.Job job = jobs.get(i);
                      matrices.get(job.tensor()).become(job.kernel(), packed.segment(i));
                    }
                    options.packed().run();
                    huge.ifPresent(HugeCopies::start);
                  }));
    } else {
      packed.pack(pool, job -> steps.next(job.tensor()), steps::restart);
      use(packed, jobs);
    }
  }

  /** Maps what will be packed, if its mapped form can be replaced by the packed one. */
  private boolean mapBeforePacking(List<PackedMatrices.Job> jobs, Kernels kernels) {
    for (PackedMatrices.Job job : jobs) {
      matrices.put(job.tensor(), mapped(job.tensor(), kernels));
    }
    boolean replaceable = jobs.stream().allMatch(j -> matrices.get(j.tensor()).accepts(j.kernel()));
    if (!replaceable) {
      matrices.clear();
    }
    return replaceable;
  }

  private void use(PackedCopies packed, List<PackedMatrices.Job> jobs) {
    for (int i = 0; i < jobs.size(); i++) {
      PackedMatrices.Job job = jobs.get(i);
      matrices.put(
          job.tensor(),
          new PreparedWeight(job.kernel(), packed.segment(i), job.tensor().rows(), job.bytes()));
    }
    description = "weights packed (" + packed.place() + ")";
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
    if (mayPack && behindZeros.containsKey(t)) {
      return behindZeros.get(t);
    }
    return products.computeIfAbsent(
        new Product(t.type(), in, mayPack),
        p -> mayPack ? kernels.matmul(t.type(), in) : kernels.matmulMapped(t.type(), in));
  }

  /** The kernel that leaves out zeros, of floats one per type and width; empty if there is none. */
  private Optional<Kernels.Matmul> columns(Kernels kernels, Tensor t) {
    if (!ColumnsMatmulCode.supports(t.type())) {
      return kernels.codeColumnsMatmul(t);
    }
    Product product = new Product(t.type(), Math.toIntExact(t.cols()), true);
    return Optional.of(
        floatColumns.computeIfAbsent(product, p -> kernels.columnsMatmul(p.type(), p.in())));
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

  /**
   * Matrices that only read what a ReLU, or a choice of the largest, has given: there columns can
   * be left out.
   */
  private static Set<Tensor> behindZeros(Graph graph) {
    Set<Value> zeros = new HashSet<>();
    Set<Tensor> all = Collections.newSetFromMap(new IdentityHashMap<>());
    Set<Tensor> others = Collections.newSetFromMap(new IdentityHashMap<>());
    for (Op op : graph.ops()) {
      switch (op) {
        case Op.Activate o
            when o.activation() == Activation.RELU || o.activation() == Activation.RELU_SQUARED ->
            zeros.add(o.out());
        case Op.KeepLargest o -> zeros.add(o.out());
        case Op.Linear o when o.weight() instanceof LinearOp.Dense d ->
            (zeros.contains(o.in()) ? all : others).add(d.weight());
        case Op.ExpertLinear o -> others.addAll(o.experts());
        default -> {}
      }
    }
    all.removeAll(others);
    return all;
  }

  /** Bytes of weights that zeros of activations have spared products with one row. */
  long skippedBytes() {
    long sum = 0;
    for (SkippingMatmul m : columns) {
      sum += m.skippedBytes();
    }
    return sum;
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

  /** Begins what may be done beside forwards; called once, when all else is ready for them. */
  void ready() {
    verification =
        copies
            .flatMap(PackedCopies::unverified)
            .map(file -> new BackgroundVerification(file, () -> huge.ifPresent(HugeCopies::start)));
    if (verification.isPresent()) {
      verification.get().start();
    } else if (packing.isPresent()) {
      packing.get().start();
    } else {
      huge.ifPresent(HugeCopies::start);
    }
  }

  /**
   * Refuses if packed weights were found to be damaged.
   *
   * @throws io.fletch.graph.GraphException naming the file and the place
   */
  void check() {
    if (verification.isPresent()) {
      verification.get().check();
    }
  }

  /** Waits until a packed file of an earlier start is verified. */
  void awaitVerification() {
    verification.ifPresent(BackgroundVerification::await);
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
    String form =
        packing.isPresent() && packing.get().done()
            ? "weights packed (" + copies.orElseThrow().place() + ")"
            : description;
    return huge.isPresent() && huge.get().done() ? form + ", copied to huge pages" : form;
  }

  @Override
  public void close() {
    verification.ifPresent(BackgroundVerification::close);
    packing.ifPresent(BackgroundPacking::close);
    packing = Optional.empty();
    huge.ifPresent(HugeCopies::close);
    huge = Optional.empty();
    copies.ifPresent(PackedCopies::close);
    copies = Optional.empty();
    sparseCopies.ifPresent(PackedCopies::close);
    sparseCopies = Optional.empty();
    store.close();
  }
}
