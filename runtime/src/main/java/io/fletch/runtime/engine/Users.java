package io.fletch.runtime.engine;

/**
 * Counts who uses something that may be closed only while nobody does. Whoever is counted has it
 * until it leaves; whoever comes after the end is refused. Thread-safe; nobody waits.
 */
final class Users {
  private final String what;
  private final String blocked;
  private int count;
  private boolean closed;

  /**
   * Open, and used by nobody.
   *
   * @param what names it in messages
   * @param blocked what to do about users that keep it from closing; their number is written behind
   */
  Users(String what, String blocked) {
    this.what = what;
    this.blocked = blocked;
  }

  /**
   * Counts one more.
   *
   * @throws IllegalStateException if it is closed
   */
  synchronized void enter() {
    if (closed) {
      throw new IllegalStateException(what + " is closed");
    }
    count++;
  }

  /** Ends what an {@link #enter} that returned began. */
  synchronized void leave() {
    count--;
  }

  /**
   * Closes it.
   *
   * @return whether this call did it: the caller is the one to release it
   * @throws IllegalStateException if it is used; it stays open then
   */
  synchronized boolean close() {
    if (closed) {
      return false;
    }
    if (count > 0) {
      throw new IllegalStateException(blocked + "=" + count);
    }
    closed = true;
    return true;
  }

  synchronized boolean isClosed() {
    return closed;
  }

  synchronized int count() {
    return count;
  }
}
