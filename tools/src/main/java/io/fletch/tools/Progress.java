package io.fletch.tools;

import io.fletch.ffm.Threads;
import java.util.function.Supplier;

/**
 * A line on standard error that says what takes so long, with the seconds gone by. Shown only on a
 * terminal that can wipe it and only after a moment, and wiped when it is done, so that fast work
 * stays silent.
 */
final class Progress implements AutoCloseable {
  private static final long FIRST_MILLIS = 400;
  private static final long STEP_MILLIS = 250;

  private final Thread thread;

  private Progress(Thread thread) {
    this.thread = thread;
  }

  /** Shows nothing: for commands that write lines to standard error meanwhile. */
  static Progress silent() {
    return new Progress(null);
  }

  /** Shows a text that stays the same. */
  static Progress show(Io io, String text) {
    return show(io, () -> text);
  }

  /** Shows a text that is asked for again and again, by another thread. */
  static Progress show(Io io, Supplier<String> text) {
    if (!io.isScreen(Io.Stream.ERR)) {
      return silent();
    }
    Thread thread = new Thread(() -> run(io, text), "fletch-progress");
    thread.setDaemon(true);
    thread.start();
    return new Progress(thread);
  }

  private static void run(Io io, Supplier<String> text) {
    long start = System.nanoTime();
    boolean shown = false;
    try {
      Thread.sleep(FIRST_MILLIS);
      while (true) {
        long seconds = (System.nanoTime() - start) / 1_000_000_000L;
        io.status("\r\033[K" + text.get() + " ... " + seconds + " s");
        shown = true;
        Thread.sleep(STEP_MILLIS);
      }
    } catch (InterruptedException _) {
      if (shown) {
        io.status("\r\033[K");
      }
    }
  }

  @Override
  public void close() {
    if (thread == null) {
      return;
    }
    thread.interrupt();
    Threads.join(thread);
  }
}
