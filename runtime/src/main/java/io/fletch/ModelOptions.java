package io.fletch;

import io.fletch.sampling.support.Ranges;
import java.nio.file.Path;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.concurrent.ThreadFactory;
import java.util.function.Consumer;

/**
 * How a model is opened. Immutable; start from {@link #defaults()} and change with the {@code with}
 * methods.
 *
 * @param contextLength most tokens of a session, prompt and answer together; 0 for the model's own
 *     limit or 4096, whichever is less; more than the model's own limit is cut to it, with a
 *     warning
 * @param threads worker threads; 0 for one per physical core available to the process
 * @param backend which backend runs the model
 * @param kernels which CPU kernels; {@code AUTO} takes the fastest that the machine and the flags
 *     allow and logs why
 * @param weights how CPU weights are laid out
 * @param kvType element type of the KV cache
 * @param prefillChunk most rows of one forward pass
 * @param packCache where packed weights are kept for the next start
 * @param progress hears how far loading is
 * @param prefixCacheBytes most bytes of copied keys and values of prompts that sessions share; 0
 *     for no sharing
 * @param adapters low-rank adapters, added to the matrices of the layers
 * @param gpuLayers most layers, the last ones, that run on a GPU while the others run on the CPU;
 *     {@link #AS_MANY_AS_FIT} for all of them, or as many as the device has memory for
 * @param units what decides which units run for a token; at most one policy of each kind
 * @param cpu threads and memory of the CPU backend
 */
public record ModelOptions(
    int contextLength,
    int threads,
    Backend backend,
    Kernels kernels,
    Weights weights,
    KvType kvType,
    int prefillChunk,
    PackCache packCache,
    LoadProgress progress,
    long prefixCacheBytes,
    List<Adapter> adapters,
    int gpuLayers,
    List<UnitPolicy> units,
    Cpu cpu) {
  /**
   * All layers on the GPU if its memory suffices, else as many as fit, with one line in the log.
   */
  public static final int AS_MANY_AS_FIT = -1;

  /** Backends. */
  public enum Backend {
    /** Fast CPU kernels. */
    CPU,
    /** An NVIDIA GPU; an error where that is not possible. */
    GPU,
    /**
     * The GPU if the model can run on one, else the CPU, with one line in the log that says why.
     */
    AUTO,
    /** Plain float32 Java; the oracle of the tests, very slow. */
    REFERENCE
  }

  /** CPU kernel sets. */
  public enum Kernels {
    /** The fastest that works here; the log says which, and why. */
    AUTO,
    /** Plain Java. */
    SCALAR,
    /** The Vector API; needs {@code --add-modules jdk.incubator.vector}. */
    VECTOR,
    /** Emitted machine code; needs native access. */
    NATIVE
  }

  /** Weight layouts. */
  public enum Weights {
    /**
     * Packed where that is faster: from the pack cache, else where there is memory for it. The
     * first time, a large model with a pack cache starts with mapped weights at once, and changes
     * over, with the same results, when a thread beside it has packed them; closing it sooner waits
     * a few seconds for that thread.
     */
    AUTO,
    /** As in the file, mapped: instant start. */
    MAPPED,
    /** Repacked for speed at load. */
    PACKED
  }

  /** KV cache element types. */
  public enum KvType {
    /** As computed. */
    F32,
    /** Half the memory. */
    F16,
    /** Blocks of 32 bytes with a scale: a little more than a quarter. */
    Q8_0
  }

  /**
   * The file of packed weights that a later start maps instead of packing anew, and on a GPU the
   * files of compiled kernels. They may be deleted at any time.
   *
   * @param enabled whether such files are read and written; models below 64 MB never need one
   * @param folder the folder for them; empty for that of the model, else (where that cannot be
   *     written) {@code $XDG_CACHE_HOME/fletch} or {@code ~/.cache/fletch}, where compiled kernels
   *     always go
   * @param verify whether every byte of a file is verified before use rather than its header and
   *     samples of its matrices; takes the time of reading the file once
   */
  public record PackCache(boolean enabled, Optional<Path> folder, boolean verify) {
    /** Refuses nulls. */
    public PackCache {
      Objects.requireNonNull(folder, "folder");
    }

    /** On, beside the model or in the user's cache folder. */
    public static PackCache on() {
      return new PackCache(true, Optional.empty(), false);
    }

    /** Off. */
    public static PackCache off() {
      return new PackCache(false, Optional.empty(), false);
    }

    /** On, in this folder. */
    public static PackCache in(Path folder) {
      return new PackCache(true, Optional.of(folder), false);
    }

    /** With full verification. */
    public PackCache verified() {
      return new PackCache(enabled, folder, true);
    }
  }

  /** Hears how far loading is; called by the thread that opens the model. */
  @FunctionalInterface
  public interface LoadProgress {
    /** Hears nothing. */
    LoadProgress NONE = (done, total) -> {};

    /** {@code done} of {@code total} bytes of matrices are ready for use. */
    void prepared(long done, long total);
  }

  /**
   * A low-rank adapter that is attached when the model is opened; the weights stay as they are.
   *
   * @param path a PEFT folder (for a safetensors model) or a GGUF file (for a GGUF model)
   * @param scale multiplies the adapter's own scale; 0 is the model without it
   */
  public record Adapter(Path path, float scale) {
    /** Refuses what is not a number. */
    public Adapter {
      Objects.requireNonNull(path, "path");
      if (!Float.isFinite(scale)) {
        throw new IllegalArgumentException("scale: expected=finite actual=" + scale);
      }
    }
  }

  /**
   * Threads and memory of the CPU backend.
   *
   * @param pinned whether worker threads are bound to a physical core each, the first core being
   *     left to the thread that generates, which is never bound. For programs that have the machine
   *     to themselves: a bound worker waits when something else runs on its core.
   * @param hugePages whether weights that are read from a file are copied to huge pages beside the
   *     first tokens, where the system has them and memory is plenty (three times the weights): a
   *     quarter more tokens per second, for memory beside the page cache that other processes
   *     cannot share. Also whether long caches of keys and values grow into huge pages
   * @param workers makes the worker threads, {@link ModelOptions#threads} less one: their name,
   *     priority, group; never virtual ones. Empty for daemon threads of normal priority.
   */
  public record Cpu(boolean pinned, boolean hugePages, Optional<ThreadFactory> workers) {
    /** Refuses nulls. */
    public Cpu {
      Objects.requireNonNull(workers, "workers");
    }

    /** Not pinned, huge pages, threads of the library's own making. */
    public static Cpu defaults() {
      return new Cpu(false, true, Optional.empty());
    }

    /** With or without binding to cores. */
    public Cpu withPinned(boolean value) {
      return new Cpu(value, hugePages, workers);
    }

    /** With or without copies in huge pages. */
    public Cpu withHugePages(boolean value) {
      return new Cpu(pinned, value, workers);
    }

    /** With threads made by this factory. */
    public Cpu withWorkers(ThreadFactory value) {
      return new Cpu(pinned, hugePages, Optional.of(value));
    }
  }

  /** Checks ranges. */
  public ModelOptions {
    adapters = List.copyOf(adapters);
    units = List.copyOf(units);
    Objects.requireNonNull(backend, "backend");
    Objects.requireNonNull(kernels, "kernels");
    Objects.requireNonNull(weights, "weights");
    Objects.requireNonNull(kvType, "kvType");
    Objects.requireNonNull(packCache, "packCache");
    Objects.requireNonNull(progress, "progress");
    Objects.requireNonNull(cpu, "cpu");
    Ranges.check("contextLength", contextLength, contextLength >= 0, ">= 0 (0 for the model's)");
    Ranges.check(
        "threads", threads, threads >= 0 && threads <= 1024, "in [0, 1024] (0 for the default)");
    Ranges.check("prefillChunk", prefillChunk, prefillChunk >= 1, ">= 1");
    Ranges.check("prefixCacheBytes", prefixCacheBytes, prefixCacheBytes >= 0, ">= 0 (0 for none)");
    Ranges.check(
        "gpuLayers",
        gpuLayers,
        gpuLayers >= 1 || gpuLayers == AS_MANY_AS_FIT,
        ">= 1 or AS_MANY_AS_FIT");
  }

  /** The defaults: CPU, everything automatic, F16 cache. */
  public static ModelOptions defaults() {
    return new ModelOptions(
        0,
        0,
        Backend.CPU,
        Kernels.AUTO,
        Weights.AUTO,
        KvType.F16,
        256,
        PackCache.on(),
        LoadProgress.NONE,
        0,
        List.of(),
        AS_MANY_AS_FIT,
        List.of(),
        Cpu.defaults());
  }

  /** With other threads and memory of the CPU backend. */
  public ModelOptions withCpu(Cpu value) {
    return edit(with -> with.cpu = value);
  }

  /**
   * With that many layers at most on the GPU; an error where these do not fit.
   *
   * @param value at least 1, or {@link #AS_MANY_AS_FIT}
   */
  public ModelOptions withGpuLayers(int value) {
    return edit(with -> with.gpuLayers = value);
  }

  /** With policies that let units rest. */
  public ModelOptions withUnits(List<UnitPolicy> value) {
    return edit(with -> with.units = value);
  }

  /** With another context length. */
  public ModelOptions withContextLength(int value) {
    return edit(with -> with.contextLength = value);
  }

  /** With another number of threads. */
  public ModelOptions withThreads(int value) {
    return edit(with -> with.threads = value);
  }

  /** With another backend. */
  public ModelOptions withBackend(Backend value) {
    return edit(with -> with.backend = value);
  }

  /** With other kernels. */
  public ModelOptions withKernels(Kernels value) {
    return edit(with -> with.kernels = value);
  }

  /** With another weight layout. */
  public ModelOptions withWeights(Weights value) {
    return edit(with -> with.weights = value);
  }

  /** With another cache type. */
  public ModelOptions withKvType(KvType value) {
    return edit(with -> with.kvType = value);
  }

  /** With another prefill chunk. */
  public ModelOptions withPrefillChunk(int value) {
    return edit(with -> with.prefillChunk = value);
  }

  /** With another place for packed weights. */
  public ModelOptions withPackCache(PackCache value) {
    return edit(with -> with.packCache = value);
  }

  /** With a listener. */
  public ModelOptions withProgress(LoadProgress value) {
    return edit(with -> with.progress = value);
  }

  /**
   * With that many bytes for keys and values of prompts: a session whose prompt begins like one
   * that another session has run copies that part rather than running it.
   */
  public ModelOptions withPrefixCache(long bytes) {
    return edit(with -> with.prefixCacheBytes = bytes);
  }

  /** With adapters, which are added up. */
  public ModelOptions withAdapters(List<Adapter> value) {
    return edit(with -> with.adapters = value);
  }

  /** The components as variables, so that a {@code with} method names only what it changes. */
  private static final class Edit {
    private int contextLength;
    private int threads;
    private Backend backend;
    private Kernels kernels;
    private Weights weights;
    private KvType kvType;
    private int prefillChunk;
    private PackCache packCache;
    private LoadProgress progress;
    private long prefixCacheBytes;
    private List<Adapter> adapters;
    private int gpuLayers;
    private List<UnitPolicy> units;
    private Cpu cpu;

    Edit(ModelOptions from) {
      contextLength = from.contextLength;
      threads = from.threads;
      backend = from.backend;
      kernels = from.kernels;
      weights = from.weights;
      kvType = from.kvType;
      prefillChunk = from.prefillChunk;
      packCache = from.packCache;
      progress = from.progress;
      prefixCacheBytes = from.prefixCacheBytes;
      adapters = from.adapters;
      gpuLayers = from.gpuLayers;
      units = from.units;
      cpu = from.cpu;
    }

    ModelOptions build() {
      return new ModelOptions(
          contextLength,
          threads,
          backend,
          kernels,
          weights,
          kvType,
          prefillChunk,
          packCache,
          progress,
          prefixCacheBytes,
          adapters,
          gpuLayers,
          units,
          cpu);
    }
  }

  private ModelOptions edit(Consumer<Edit> change) {
    Edit with = new Edit(this);
    change.accept(with);
    return with.build();
  }
}
