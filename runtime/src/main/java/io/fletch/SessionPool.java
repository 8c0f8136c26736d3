package io.fletch;

import java.util.ArrayList;
import java.util.List;
import java.util.Objects;

/**
 * Sessions of one model for callers that bring the whole conversation with every request, as HTTP
 * and LangChain4j do. Sessions that wait keep their tokens, so that a conversation finds its cache
 * again and only what is new of its prompt is computed.
 *
 * <p>Thread-safe. A session that is taken belongs to its taker until it is given back. The pool
 * never waits: a caller bounds the requests that it runs at once.
 */
public final class SessionPool implements AutoCloseable {
  private record Idle(Session session, int[] tokens) {
    boolean has(List<Adapter.Scaled> adapters) {
      return session.adapters().equals(adapters);
    }
  }

  private final Model model;
  private final int most;

  /** Least recently used first. */
  private final List<Idle> idle = new ArrayList<>();

  private int open;
  private boolean closed;

  /**
   * Makes an empty pool; sessions are opened when they are needed.
   *
   * @param model stays its opener's; it can be closed after the pool
   * @param most sessions at once, 1 or more; each reserves a cache, see {@link Session}
   */
  public SessionPool(Model model, int most) {
    this.model = Objects.requireNonNull(model, "model");
    this.most = most;
    if (most < 1) {
      throw new IllegalArgumentException("most sessions: expected>=1 actual=" + most);
    }
  }

  /**
   * The session that saves most of a prompt, or a new one.
   *
   * @throws IllegalStateException if the pool is closed, or all its sessions are taken
   */
  public Session take(int[] prompt) {
    return take(prompt, List.of());
  }

  /**
   * The session with these adapters that saves most of a prompt, or another one that gets them and
   * loses its cache, or a new one.
   *
   * @throws IllegalStateException if the pool is closed, all its sessions are taken, or an adapter
   *     is closed
   * @throws IllegalArgumentException if an adapter is of another model, or listed twice
   */
  public Session take(int[] prompt, List<Adapter.Scaled> adapters) {
    Session session = choose(prompt, adapters);
    try {
      session.adapters(adapters);
      return session;
    } catch (RuntimeException | Error e) {
      give(session);
      throw e;
    }
  }

  private synchronized Session choose(int[] prompt, List<Adapter.Scaled> adapters) {
    if (closed) {
      throw new IllegalStateException("the session pool is closed");
    }
    Idle best = null;
    int length = 0;
    for (Idle i : idle) {
      int n = i.has(adapters) ? common(i.tokens(), prompt) : 0;
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
    if (idle.isEmpty()) {
      throw new IllegalStateException("all sessions of the pool are taken: most=" + most);
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

  /**
   * Gives a session back that {@link #take} gave.
   *
   * @param session without an open generation
   */
  public void give(Session session) {
    int[] tokens = session.tokens().stream().mapToInt(Integer::intValue).toArray();
    synchronized (this) {
      if (!closed) {
        idle.add(new Idle(session, tokens));
        return;
      }
    }
    drop(session);
  }

  /** Closes a session that {@link #take} gave, for example because it failed. */
  public void drop(Session session) {
    try {
      session.close();
    } finally {
      synchronized (this) {
        open--;
      }
    }
  }

  /** Sessions that are open, taken ones included. */
  public synchronized int open() {
    return open;
  }

  /** Closes the sessions that wait; those that are taken are closed when they are given back. */
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
