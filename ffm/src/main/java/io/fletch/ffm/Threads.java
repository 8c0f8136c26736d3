package io.fletch.ffm;

/** Waiting for threads that use memory which is released next. */
public final class Threads {
  private Threads() {}

  /**
   * Waits until a thread has ended, also when the caller is interrupted meanwhile: it stays
   * interrupted, and waits on. For a thread that is about to end, or that was told to. A thread
   * that was not started has nothing to wait for.
   */
  public static void join(Thread thread) {
    boolean interrupted = false;
    while (thread.isAlive()) {
      try {
        thread.join();
      } catch (InterruptedException _) {
        interrupted = true;
      }
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
  }
}
