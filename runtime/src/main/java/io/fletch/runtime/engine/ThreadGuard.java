package io.fletch.runtime.engine;

import java.util.ConcurrentModificationException;
import java.util.concurrent.atomic.AtomicReference;

/**
 * Detects concurrent use of something that belongs to one thread at a time. Re-entrant; not a lock:
 * the second thread is refused, not made to wait.
 */
final class ThreadGuard {
  private final String what;
  private final AtomicReference<Thread> owner = new AtomicReference<>();
  private int depth;

  ThreadGuard(String what) {
    this.what = what;
  }

  /** Claims it for the current thread until {@link #exit()}. */
  void enter() {
    Thread current = Thread.currentThread();
    Thread holder = owner.compareAndExchange(null, current);
    if (holder != null && holder != current) {
      throw new ConcurrentModificationException(
          what
              + " is used by two threads at once: in use by="
              + name(holder)
              + " refused="
              + name(current));
    }
    depth++;
  }

  /** Virtual threads have no name unless somebody gave them one. */
  private static String name(Thread thread) {
    String kind = thread.isVirtual() ? "virtual thread" : "thread";
    return thread.getName().isEmpty() ? kind + " #" + thread.threadId() : thread.getName();
  }

  /** Gives it back. */
  void exit() {
    if (--depth == 0) {
      owner.set(null);
    }
  }
}
