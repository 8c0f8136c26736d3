package io.fletch.graph.cpu;

import io.fletch.ffm.Threads;
import io.fletch.graph.GraphException;
import io.fletch.quant.PackedFile;
import io.fletch.quant.WeightFileException;
import java.io.IOException;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.nio.file.Files;

/**
 * Compares the checksums of all chunks of a packed file, on a thread of its own while forwards run
 * with them: a core takes less than a tenth of a second for a GB from the page cache. Where a chunk
 * is not what was written, there is one warning, the file is deleted, and {@link #check} refuses
 * from then on; what was computed before may be wrong, which nobody can take back.
 */
final class BackgroundVerification implements AutoCloseable {
  private static final Logger LOG = System.getLogger("io.fletch");

  private final PackedFile file;
  private final Runnable sound;
  private final Thread thread;
  private volatile boolean cancelled;
  private volatile String damage;

  /**
   * Not started yet.
   *
   * @param file is not closed before this is
   * @param sound runs on the thread when all chunks are as they were written
   */
  BackgroundVerification(PackedFile file, Runnable sound) {
    this.file = file;
    this.sound = sound;
    thread = Thread.ofPlatform().daemon(true).name("fletch-verify").unstarted(this::run);
  }

  /** Starts; called once. */
  void start() {
    thread.start();
  }

  private void run() {
    try {
      for (int i = 0; i < file.entries().size(); i++) {
        for (int chunk = 0; chunk < file.entries().get(i).chunks(); chunk++) {
          if (cancelled) {
            return;
          }
          verify(file, i, chunk);
        }
      }
      LOG.log(Level.DEBUG, () -> "packed weights are verified: " + file.path());
      sound.run();
    } catch (WeightFileException e) {
      damaged(e.getMessage());
    }
  }

  /**
   * Compares one chunk.
   *
   * @throws WeightFileException naming matrix and chunk if it is not what was written
   */
  static void verify(PackedFile file, int index, int chunk) {
    if (!file.verify(index, chunk)) {
      throw new WeightFileException(
          file.entries().get(index).name() + ": checksum of chunk " + chunk + " is wrong");
    }
  }

  private void damaged(String where) {
    String gone = "was deleted";
    try {
      Files.deleteIfExists(file.path());
    } catch (IOException | SecurityException e) {
      gone = "cannot be deleted (" + e + ")";
    }
    damage =
        "packed weights are damaged, answers so far may be wrong: "
            + file.path()
            + ": "
            + where
            + "; the file "
            + gone
            + ", open the model again";
    LOG.log(Level.WARNING, damage);
  }

  /**
   * Refuses if damage was found so far.
   *
   * @throws GraphException naming file, matrix and chunk
   */
  void check() {
    if (damage != null) {
      throw new GraphException(damage);
    }
  }

  /** Waits for the end of what was started. */
  void await() {
    Threads.join(thread);
  }

  /** Ends the verification; after it nothing of this runs. */
  @Override
  public void close() {
    cancelled = true;
    await();
  }
}
