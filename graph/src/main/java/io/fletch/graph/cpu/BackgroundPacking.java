package io.fletch.graph.cpu;

import io.fletch.ffm.Threads;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.concurrent.CancellationException;

/**
 * Packs matrices on a thread of its own while forwards run with the mapped ones, so that the first
 * start of a model answers as soon as a later one. One thread: it shares the processors with
 * whoever generates.
 *
 * <p>What was begun is finished before the owner closes if that is a matter of seconds; else a
 * program that only ever runs briefly would pack at each of its starts, and never have a file.
 */
final class BackgroundPacking implements AutoCloseable {
  private static final Logger LOG = System.getLogger("io.fletch");

  /** What {@link #close} waits for packing to end by itself. */
  private static final Duration PATIENCE = Duration.ofSeconds(5);

  private final Thread thread;
  private volatile boolean cancelled;
  private volatile boolean done;

  /**
   * Not started yet.
   *
   * @param ready runs on the packing thread when all copies are there
   */
  BackgroundPacking(PackedCopies copies, Runnable ready) {
    thread =
        Thread.ofPlatform().daemon(true).name("fletch-pack").unstarted(() -> pack(copies, ready));
  }

  /** Starts packing; called once. */
  void start() {
    thread.start();
  }

  private void pack(PackedCopies copies, Runnable ready) {
    try (WorkerPool alone = new WorkerPool(1)) {
      copies.pack(alone, job -> stopIfCancelled(), this::stopIfCancelled);
      ready.run();
      done = true;
      LOG.log(Level.DEBUG, () -> "weights are packed now: " + copies.place());
    } catch (CancellationException e) {
      LOG.log(Level.DEBUG, "packing of weights was cancelled");
    } catch (RuntimeException | OutOfMemoryError e) {
      // The mapped weights go on serving; they are only slower.
      LOG.log(Level.WARNING, "weights stay as mapped, packing failed: {0}", e.toString());
    }
  }

  private void stopIfCancelled() {
    if (cancelled) {
      throw new CancellationException();
    }
  }

  /** Whether the packed copies are in use. */
  boolean done() {
    return done;
  }

  /** Waits a little for the end, then cancels; after it nothing of this runs. */
  @Override
  public void close() {
    try {
      // Refused by a thread that was not started.
      if (thread.isAlive()) {
        thread.join(PATIENCE);
      }
    } catch (InterruptedException _) {
      Thread.currentThread().interrupt();
    }
    cancelled = true;
    Threads.join(thread);
  }
}
