package io.fletch.tools.server;

import io.fletch.Model;
import io.fletch.Session;
import java.util.ArrayList;
import java.util.List;

/**
 * Sessions that wait for their next request, each with the tokens that it still holds, so that a
 * conversation finds its cache again. Thread-safe; a session that is taken belongs to its taker.
 */
final class SessionPool implements AutoCloseable {
  private record Idle(Session session, int[] tokens) {}

  private final Model model;
  private final int most;

  /** Least recently used first. */
  private final List<Idle> idle = new ArrayList<>();

  private int open;
  private boolean closed;

  SessionPool(Model model, int most) {
    this.model = model;
    this.most = most;
  }

  /** The session that saves most of a prompt. The caller has a slot, so there is always one. */
  synchronized Session take(int[] prompt) {
    if (closed) {
      throw ApiException.of(503, "shutting_down", "the server is shutting down");
    }
    Idle best = null;
    int length = 0;
    for (Idle i : idle) {
      int n = common(i.tokens(), prompt);
      if (n > length) {
        best = i;
        length = n;
      }
    }
    // A cache that would mostly be thrown away may still serve its own conversation.
    boolean isWaste = best == null || length < best.tokens().length / 2;
    if (isWaste && open < most) {
      Session fresh = model.newSession();
      open++;
      return fresh;
    }
    Idle chosen = best == null ? idle.getFirst() : best;
    idle.remove(chosen);
    return chosen.session();
  }

  private static int common(int[] a, int[] b) {
    int most = Math.min(a.length, b.length);
    int n = 0;
    while (n < most && a[n] == b[n]) {
      n++;
    }
    return n;
  }

  /** Gives a session back whose generation is closed. */
  void give(Session session) {
    int[] tokens = session.tokens().stream().mapToInt(Integer::intValue).toArray();
    synchronized (this) {
      if (!closed) {
        idle.add(new Idle(session, tokens));
        return;
      }
    }
    drop(session);
  }

  /** Closes a session that failed. */
  void drop(Session session) {
    try {
      session.close();
    } finally {
      synchronized (this) {
        open--;
      }
    }
  }

  synchronized int open() {
    return open;
  }

  @Override
  public synchronized void close() {
    closed = true;
    for (Idle i : idle) {
      i.session().close();
      open--;
    }
    idle.clear();
  }
}
