package io.fletch.graph.cpu;

import io.fletch.quant.PackedFile;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.Optional;
import java.util.function.Consumer;

/**
 * Packed copies of matrices: in a file of an earlier start, in one that is written for the next, or
 * in memory. Filled by one thread, once; closed by the owner of the weights.
 */
final class PackedCopies implements AutoCloseable {
  private final Kernels kernels;
  private final List<PackedMatrices.Job> jobs;
  private final Optional<PackCache> cache;
  private final long bytes;
  private final List<MemorySegment> segments = new ArrayList<>();
  private Optional<PackedMatrices> file = Optional.empty();
  private Optional<TensorStore> store = Optional.empty();

  /**
   * None yet.
   *
   * @param cache where files are kept, if they are
   */
  PackedCopies(Kernels kernels, List<PackedMatrices.Job> jobs, Optional<PackCache> cache) {
    this.kernels = kernels;
    this.jobs = jobs;
    bytes = jobs.stream().mapToLong(PackedMatrices.Job::bytes).sum();
    this.cache = cache.filter(c -> bytes >= c.minBytes());
  }

  /** Bytes of all copies. */
  long bytes() {
    return bytes;
  }

  /** Whether a file will be written if none is found. */
  boolean keeps() {
    return cache.isPresent();
  }

  /** Takes the file of an earlier start; false if there is none. */
  boolean find(WorkerPool pool) {
    file = cache.flatMap(c -> PackedMatrices.find(c, kernels, jobs, pool));
    return mapFile();
  }

  /**
   * Packs, into a file that is kept if there may be one, else into memory.
   *
   * @param done hears of every matrix when it is packed, on the calling thread; what it throws ends
   *     the packing, and nothing is left
   * @param again hears that packing starts over, in memory
   */
  void pack(WorkerPool pool, Consumer<PackedMatrices.Job> done, Runnable again) {
    Iterator<PackedMatrices.Job> next = jobs.iterator();
    file =
        cache.flatMap(
            c -> PackedMatrices.write(c, kernels, jobs, pool, () -> done.accept(next.next())));
    if (mapFile()) {
      return;
    }
    again.run();
    TensorStore memory = TensorStore.create();
    store = Optional.of(memory);
    for (PackedMatrices.Job job : jobs) {
      String name = job.tensor().name() + ".packed";
      MemorySegment to = memory.allocate(name, TensorType.I8, job.bytes()).segment();
      pool.run(stages(new Pack(job, to)), this);
      segments.add(to);
      done.accept(job);
    }
  }

  private boolean mapFile() {
    for (int i = 0; file.isPresent() && i < jobs.size(); i++) {
      segments.add(file.get().segment(i));
    }
    return file.isPresent();
  }

  @SuppressWarnings({"unchecked", "rawtypes"})
  private static WorkerPool.Stage<PackedCopies>[] stages(Pack pack) {
    return new WorkerPool.Stage[] {pack};
  }

  /** The copy of a job's matrix, once all are there. */
  MemorySegment segment(int job) {
    return segments.get(job);
  }

  /** Whether the copies are in a mapped file. */
  boolean inFile() {
    return file.isPresent();
  }

  /** The file, if all of it is still to be verified. */
  Optional<PackedFile> unverified() {
    return file.flatMap(PackedMatrices::unverified);
  }

  /** Takes the pages of the file out of the memory of this process. */
  void dropPages() {
    file.ifPresent(PackedMatrices::dropPages);
  }

  /** Size and place, for people. */
  String place() {
    String size = (bytes >> 20) + " MiB";
    return file.map(f -> size + (f.found() ? ", mapped from " : ", kept in ") + f.path())
        .orElse(size);
  }

  @Override
  public void close() {
    file.ifPresent(PackedMatrices::close);
    file = Optional.empty();
    store.ifPresent(TensorStore::close);
    store = Optional.empty();
  }

  /** Packs one matrix, a range of rows per task. */
  private static final class Pack extends WorkerPool.Stage<PackedCopies> {
    private final PackedMatrices.Job job;
    private final MemorySegment to;

    Pack(PackedMatrices.Job job, MemorySegment to) {
      this.job = job;
      this.to = to;
    }

    @Override
    int tasks(PackedCopies context) {
      return Math.toIntExact(Math.ceilDiv(job.tensor().rows(), job.step()));
    }

    @Override
    void run(PackedCopies context, int task, int worker) {
      long first = task * job.step();
      long rows = job.tensor().rows();
      long end = Math.min(rows, first + job.step());
      job.kernel().pack(job.tensor().segment(), to, rows, first, end);
    }

    @Override
    public String toString() {
      return "packing of " + job.tensor().name();
    }
  }
}
