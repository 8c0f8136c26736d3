package io.fletch.graph.cpu;

import io.fletch.ffm.Affinity;
import io.fletch.ffm.NativeMemory;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.LowRankAdapter;
import io.fletch.graph.LowRankDelta;
import io.fletch.graph.Plan;
import io.fletch.graph.Value;
import io.fletch.graph.support.AdapterPass;
import io.fletch.graph.support.Decomposition;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.locks.ReentrantLock;

/**
 * A graph with its prepared weights, stages per row bucket, scratch memory and workers. Forwards of
 * several threads run one after the other, in the order in which they came.
 */
final class CpuExecutable implements Executable {
  /** Rows up to which small batches (drafts, candidates) have a plan of their own. */
  private static final int SMALL_BATCH = 16;

  private final Graph graph;
  private final int maxRows;
  private final Kernels kernels;
  private final String description;
  private final WorkerPool pool;
  private final Weights weights;
  private final boolean hugePages;
  private final AttentionMemory attentionMemory;
  private final Variant plain;

  /** The products that rows may have low-rank terms for; the index of one never changes. */
  private final List<Value> targets = new ArrayList<>();

  /** Runs batches with low-rank terms; made with the first adapter. */
  private Optional<Variant> adapted = Optional.empty();

  private final ReentrantLock turn = new ReentrantLock(true);
  private boolean closed;

  static CpuExecutable compile(Graph graph, int maxRows, CpuBackend.Options options) {
    if (maxRows < 1) {
      throw new IllegalArgumentException("maxRows: expected>=1 actual=" + maxRows);
    }
    KernelSets.Choice choice =
        options
            .kernels()
            .map(k -> new KernelSets.Choice(k, "asked for"))
            .orElseGet(KernelSets::best);
    int threads = options.threads() > 0 ? options.threads() : Affinity.physicalCores();
    WorkerPool pool = new WorkerPool(threads, options.workers());
    Weights weights = new Weights();
    try {
      Graph stored = Decomposition.of(graph);
      weights.prepare(stored, choice.kernels(), pool, options);
      CpuExecutable executable =
          new CpuExecutable(
              graph,
              stored,
              maxRows,
              choice,
              pool,
              weights,
              options.hugePages() && HugeCopies.available());
      weights.ready();
      return executable;
    } catch (RuntimeException | Error e) {
      pool.close();
      weights.close();
      throw e;
    }
  }

  private CpuExecutable(
      Graph graph,
      Graph stored,
      int maxRows,
      KernelSets.Choice choice,
      WorkerPool pool,
      Weights weights,
      boolean hugePages) {
    this.graph = graph;
    this.hugePages = hugePages;
    this.maxRows = maxRows;
    this.pool = pool;
    this.weights = weights;
    kernels = choice.kernels();
    description =
        "cpu: kernels "
            + kernels.name()
            + " ("
            + choice.reason()
            + "), "
            + pool.threads()
            + (pool.threads() == 1
                ? " thread, "
                : pool.pinned() ? " pinned threads, " : " threads, ");
    int floats = 0;
    for (AttentionSpec spec : graph.kvLayers()) {
      floats = Math.max(floats, AttentionRows.floats(kernels, spec));
    }
    attentionMemory = new AttentionMemory(pool.threads(), floats, maxRows);
    plain = variant(stored, targets);
  }

  /** Stages for all buckets, and the memory that they work in. */
  private record Variant(Frame frame, List<Lowering.Program> programs, NativeMemory scratch) {
    WorkerPool.Stage<Frame>[] stages(int rows) {
      for (int i = 0; i < programs.size(); i++) {
        Lowering.Program program = programs.get(i);
        if (rows <= program.plan().maxRows()) {
          return program.stages();
        }
      }
      throw new IllegalStateException("no plan for rows=" + rows);
    }

    void close() {
      frame.close();
      scratch.close();
    }
  }

  private Variant variant(Graph stored, List<Value> adaptable) {
    Frame frame = new Frame(kernels, maxRows);
    Lowering lowering =
        new Lowering(
            stored,
            frame,
            pool.threads(),
            weights::matrix,
            weights::expert,
            weights::floats,
            attentionMemory,
            adaptable);
    List<Lowering.Program> all = new ArrayList<>();
    for (int rows : buckets(maxRows)) {
      all.add(lowering.lower(rows));
    }
    frame.allocate();
    NativeMemory scratch = NativeMemory.allocate(Math.max(1, all.getLast().plan().scratchBytes()));
    frame.scratch = scratch.segment();
    return new Variant(frame, List.copyOf(all), scratch);
  }

  private static List<Integer> buckets(int maxRows) {
    List<Integer> sizes = new ArrayList<>();
    for (int size : new int[] {1, SMALL_BATCH}) {
      if (size < maxRows) {
        sizes.add(size);
      }
    }
    sizes.add(maxRows);
    return sizes;
  }

  @Override
  public Graph graph() {
    return graph;
  }

  @Override
  public List<Plan> plans() {
    return plain.programs().stream().map(Lowering.Program::plan).toList();
  }

  @Override
  public String description() {
    return description + weights.description();
  }

  /** Waits until what is verified beside forwards is verified. */
  void awaitVerification() {
    weights.awaitVerification();
  }

  /** The threads that run stages besides the caller. */
  Thread[] workers() {
    return pool.workers();
  }

  @Override
  public KvCache newKvCache(int capacity, KvCache.Type type) {
    if (capacity < 1) {
      throw new IllegalArgumentException("capacity: expected>=1 actual=" + capacity);
    }
    return new CpuKvCache(this, kernels, graph.kvLayers(), capacity, type, hugePages);
  }

  @Override
  public Batch newBatch(int rows, int maxLogitRows) {
    if (rows > maxRows) {
      throw new IllegalArgumentException("rows: expected<=" + maxRows + " actual=" + rows);
    }
    return new CpuBatch(this, kernels, rows, maxLogitRows);
  }

  @Override
  public void forward(Batch batch) {
    if (!(batch instanceof CpuBatch b) || !b.isOf(this)) {
      throw new IllegalArgumentException("the batch was made by another executable: " + batch);
    }
    turn.lock();
    try {
      if (closed) {
        throw new IllegalStateException("the executable is closed");
      }
      weights.check();
      b.checkRunnable();
      Variant variant = b.adapted() ? adapted.orElseThrow() : plain;
      Frame frame = variant.frame();
      frame.begin(b);
      long before = weights.skippedBytes();
      try {
        pool.run(variant.stages(b.rows()), frame);
      } finally {
        frame.end();
      }
      b.ran();
      b.skipped(weights.skippedBytes() - before);
    } finally {
      turn.unlock();
    }
  }

  @Override
  public LowRankAdapter newAdapter(String name, Map<Value, LowRankDelta> deltas) {
    turn.lock();
    try {
      if (closed) {
        throw new IllegalStateException("the executable is closed");
      }
      List<Value> fresh = deltas.keySet().stream().filter(v -> !targets.contains(v)).toList();
      List<Value> all = new ArrayList<>(targets);
      all.addAll(fresh);
      CpuAdapter adapter = new CpuAdapter(this, name, deltas, all, kernels);
      try {
        if (!fresh.isEmpty()) {
          Graph withTerms = AdapterPass.of(graph, Set.copyOf(all));
          Variant next = variant(Decomposition.of(withTerms), all);
          adapted.ifPresent(Variant::close);
          adapted = Optional.of(next);
          targets.addAll(fresh);
        }
      } catch (RuntimeException | Error e) {
        adapter.close();
        throw e;
      }
      return adapter;
    } finally {
      turn.unlock();
    }
  }

  /** Runs something while no forward runs. */
  void afterForward(Runnable action) {
    turn.lock();
    try {
      action.run();
    } finally {
      turn.unlock();
    }
  }

  @Override
  public void close() {
    turn.lock();
    try {
      if (!closed) {
        closed = true;
        pool.close();
        weights.close();
        attentionMemory.close();
        plain.close();
        adapted.ifPresent(Variant::close);
      }
    } finally {
      turn.unlock();
    }
  }
}
