package io.fletch.graph.cpu;

import io.fletch.ffm.Threads;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.io.IOException;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;

/**
 * Copies matrices out of mapped files into huge pages, on a thread of its own while forwards run
 * with the files' pages. Files are mapped in pages of 4 KiB, at whose borders the prefetching of a
 * core ends: a core reads a quarter to a third faster from huge pages. The copy is made of memory
 * beside the page cache, so it is only for machines that have plenty.
 *
 * <p>One matrix after another changes over when it has been copied. Closing ends the copying; the
 * copies live until then.
 */
final class HugeCopies implements AutoCloseable {
  private static final Logger LOG = System.getLogger("io.fletch");
  private static final Path ENABLED = Path.of("/sys/kernel/mm/transparent_hugepage/enabled");

  /** From this size on a matrix is worth it: it gets huge pages, and several of them. */
  private static final long MIN_BYTES = 2L << 20;

  /** Bytes between two looks at whether to go on. */
  private static final long PIECE = 8L << 20;

  private final List<PreparedWeight> weights;
  private final Runnable ready;
  private final TensorStore store = TensorStore.create();
  private final Thread thread;
  private volatile boolean cancelled;
  private volatile boolean done;
  private boolean started;

  /**
   * Not started yet.
   *
   * @param weights which lie in mapped files; others of them are left where they are
   * @param ready runs on the copying thread when the files' pages are no longer read
   */
  HugeCopies(List<PreparedWeight> weights, Runnable ready) {
    this.weights = weights.stream().filter(w -> w.bytes() >= MIN_BYTES).toList();
    this.ready = ready;
    thread = Thread.ofPlatform().daemon(true).name("fletch-huge-pages").unstarted(this::run);
  }

  /** Whether the system gives huge pages to those who ask. */
  static boolean available() {
    try {
      return !Files.readString(ENABLED).contains("[never]");
    } catch (IOException e) {
      return false;
    }
  }

  /** Bytes that will be copied. */
  long bytes() {
    return weights.stream().mapToLong(w -> w.form().data().byteSize()).sum();
  }

  /** Starts copying; later calls, and calls after {@link #close}, do nothing. */
  synchronized void start() {
    if (!started && !cancelled) {
      started = true;
      thread.start();
    }
  }

  private void run() {
    try {
      for (int i = 0; i < weights.size(); i++) {
        PreparedWeight weight = weights.get(i);
        PreparedWeight.Form form = weight.form();
        MemorySegment to =
            store.allocate("huge." + i, TensorType.I8, form.data().byteSize()).segment();
        for (long at = 0; at < to.byteSize(); at += PIECE) {
          if (cancelled) {
            return;
          }
          MemorySegment.copy(form.data(), at, to, at, Math.min(PIECE, to.byteSize() - at));
        }
        weight.become(form.kernel(), to);
      }
      done = true;
      ready.run();
      LOG.log(Level.DEBUG, () -> "weights are in huge pages now: " + weights.size() + " matrices");
    } catch (RuntimeException | OutOfMemoryError e) {
      // The mapped pages go on serving; they are only slower.
      LOG.log(Level.WARNING, "weights stay in pages of a file: {0}", e.toString());
    }
  }

  /** Whether all copies are in use. */
  boolean done() {
    return done;
  }

  /** Ends the copying and releases the copies. No forward may run any more. */
  @Override
  public void close() {
    synchronized (this) {
      cancelled = true;
    }
    Threads.join(thread);
    store.close();
  }
}
