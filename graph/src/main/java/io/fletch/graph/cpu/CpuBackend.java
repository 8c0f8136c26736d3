package io.fletch.graph.cpu;

import io.fletch.graph.Backend;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import java.util.Objects;
import java.util.Optional;
import java.util.concurrent.ThreadFactory;

/** Runs graphs on the CPU with a {@link Kernels} set and a pool of workers per executable. */
public final class CpuBackend implements Backend {
  /** How the weights of products are laid out. */
  public enum Layout {
    /**
     * Packed where the kernels have a faster layout and there is memory for it, else as mapped. The
     * first time, a large model whose packed weights are kept starts with the mapped ones and
     * changes over when a thread beside it has packed them.
     */
    AUTO,
    /** The bytes of the file as they are: instant start, no memory beyond the file. */
    MAPPED,
    /** Packed at compile time, for speed. */
    PACKED
  }

  /** Hears how far the preparation of weights is; called on the compiling thread. */
  @FunctionalInterface
  public interface Progress {
    /** {@code done} of {@code total} bytes are prepared. */
    void prepared(long done, long total);
  }

  /**
   * The threads of the pool besides the caller.
   *
   * @param factory makes them: name, priority, daemon or not; never virtual threads, which would
   *     block their carriers. They end when the executable is closed.
   * @param pinned whether each is bound to a physical core of its own, the first core being left to
   *     the caller, who is never bound; ignored where cores are fewer than threads
   */
  public record Workers(ThreadFactory factory, boolean pinned) {
    /** Refuses nulls. */
    public Workers {
      Objects.requireNonNull(factory, "factory");
    }

    /** Daemon threads of normal priority that the system places. */
    public static Workers defaults() {
      return new Workers(
          Thread.ofPlatform().daemon(true).name("fletch-worker-", 1).factory(), false);
    }
  }

  /**
   * Options. Immutable; start from {@link #defaults()}.
   *
   * @param threads workers, the calling thread included; 0 for one per processor
   * @param kernels the kernel set; empty for the fastest available
   * @param layout layout of weights
   * @param progress hears of the preparation of weights
   * @param cache where packed weights are kept; empty to pack at every start
   * @param packed runs when packed weights have taken the place of mapped ones in a running
   *     executable, on a thread of that executable and before its {@code close} returns
   * @param hugePages whether weights of mapped files are copied to huge pages, beside forwards,
   *     where the system has them and memory is plenty, never with {@link Layout#MAPPED}; and
   *     whether long caches grow into huge pages
   * @param workers makes the threads of the pool, and whether they are bound to cores
   */
  public record Options(
      int threads,
      Optional<Kernels> kernels,
      Layout layout,
      Progress progress,
      Optional<PackCache> cache,
      Runnable packed,
      boolean hugePages,
      Workers workers) {
    /** Checks ranges. */
    public Options {
      Objects.requireNonNull(kernels, "kernels");
      Objects.requireNonNull(layout, "layout");
      Objects.requireNonNull(progress, "progress");
      Objects.requireNonNull(cache, "cache");
      Objects.requireNonNull(packed, "packed");
      Objects.requireNonNull(workers, "workers");
      if (threads < 0 || threads > 1024) {
        throw new IllegalArgumentException("threads: expected in [0, 1024] actual=" + threads);
      }
    }

    /** Everything automatic. */
    public static Options defaults() {
      return new Options(
          0,
          Optional.empty(),
          Layout.AUTO,
          (done, total) -> {},
          Optional.empty(),
          () -> {},
          true,
          Workers.defaults());
    }

    /** With another number of threads. */
    public Options withThreads(int value) {
      return new Options(value, kernels, layout, progress, cache, packed, hugePages, workers);
    }

    /** With a certain kernel set. */
    public Options withKernels(Kernels value) {
      return new Options(
          threads, Optional.of(value), layout, progress, cache, packed, hugePages, workers);
    }

    /** With another layout. */
    public Options withLayout(Layout value) {
      return new Options(threads, kernels, value, progress, cache, packed, hugePages, workers);
    }

    /** With a listener. */
    public Options withProgress(Progress value) {
      return new Options(threads, kernels, layout, value, cache, packed, hugePages, workers);
    }

    /** With something to do when mapped weights are no longer read. */
    public Options withPacked(Runnable value) {
      return new Options(threads, kernels, layout, progress, cache, value, hugePages, workers);
    }

    /** With or without copies in huge pages. */
    public Options withHugePages(boolean value) {
      return new Options(threads, kernels, layout, progress, cache, packed, value, workers);
    }

    /** With other threads. */
    public Options withWorkers(Workers value) {
      return new Options(threads, kernels, layout, progress, cache, packed, hugePages, value);
    }

    /** With a place for packed weights. */
    public Options withCache(PackCache value) {
      return new Options(
          threads, kernels, layout, progress, Optional.of(value), packed, hugePages, workers);
    }
  }

  private final Options options;

  /** A backend with default options. */
  public CpuBackend() {
    this(Options.defaults());
  }

  /** A backend with these options. */
  public CpuBackend(Options options) {
    this.options = Objects.requireNonNull(options, "options");
  }

  @Override
  public String name() {
    return "cpu";
  }

  @Override
  public Executable compile(Graph graph, int maxRows) {
    return CpuExecutable.compile(graph, maxRows, options);
  }
}
