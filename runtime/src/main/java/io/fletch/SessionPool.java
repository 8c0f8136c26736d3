package io.fletch;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;

/**
 * Sessions of one model for callers that bring the whole conversation with every request, as HTTP
 * and LangChain4j do. Sessions that wait keep their tokens, so that a conversation finds its cache
 * again and only what is new of its prompt is computed.
 *
 * <pre>{@code
 * try (SessionPool.Lease lease = pool.lease(prompt)) {
 *   try (Generation answer = lease.session().generate(prompt, options)) {
 *     ...
 *   }
 *   lease.keep();
 * }
 * }</pre>
 *
 * <p>Thread-safe. The pool never waits: a caller bounds the requests that it runs at once.
 */
public final class SessionPool implements AutoCloseable {
  private record Idle(Session session, int[] tokens) {
    boolean has(List<Adapter.Scaled> adapters) {
      return session.adapters().equals(adapters);
    }
  }

  /**
   * A session of the pool in the hands of one request, which closes the lease when it is done. As
   * with the session itself, one thread at a time uses a lease.
   */
  public static final class Lease implements AutoCloseable {
    private final SessionPool pool;
    private final Session session;
    private boolean isKept;
    private boolean isClosed;

    private Lease(SessionPool pool, Session session) {
      this.pool = pool;
      this.session = session;
    }

    /**
     * The session, with the adapters that were asked for. The pool closes it: nobody else may.
     *
     * @throws IllegalStateException if the lease is closed: the session may be another request's
     */
    public Session session() {
      if (isClosed) {
        throw new IllegalStateException("the lease of the session is closed");
      }
      return session;
    }

    /**
     * Says that the session works, so that it and its cache go back to the pool when the lease is
     * closed, even if an exception closes it that has nothing to do with the session. Without this
     * the session is closed: it is unknown what a failure has left in it.
     */
    public void keep() {
      isKept = true;
    }

    /**
     * Gives the session back if it is to be {@linkplain #keep kept} and the pool is open, else
     * closes it, with its generation if that is open: a session in the middle of an answer is of no
     * use to others, and is closed even if it was to be kept. Closing again does nothing.
     */
    @Override
    public void close() {
      if (isClosed) {
        return;
      }
      isClosed = true;
      if (isKept) {
        pool.give(session);
      } else {
        pool.drop(session);
      }
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
   * Leases the session that saves most of a prompt, or a new one, without adapters.
   *
   * @throws IllegalStateException if the pool is closed, or all its sessions are leased
   */
  public Lease lease(int[] prompt) {
    return lease(prompt, List.of());
  }

  /**
   * Leases the session with these adapters that saves most of a prompt, or another one that gets
   * them and loses its cache, or a new one.
   *
   * @throws IllegalStateException if the pool is closed, all its sessions are leased, or an adapter
   *     is closed
   * @throws IllegalArgumentException if an adapter is of another model, or listed twice
   * @throws FletchException if the model was opened with policies that let units rest: these do not
   *     go with adapters
   */
  public Lease lease(int[] prompt, List<Adapter.Scaled> adapters) {
    Session session = choose(prompt, adapters);
    try {
      session.adapters(adapters);
      return new Lease(this, session);
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
      throw new IllegalStateException("all sessions of the pool are leased: most=" + most);
    }
    Idle chosen = best == null ? idle.getFirst() : best;
    idle.remove(chosen);
    return chosen.session();
  }

  private static int common(int[] a, int[] b) {
    int n = Arrays.mismatch(a, b);
    return n < 0 ? a.length : n;
  }

  /** Takes back a session that works; it waits for the next request. */
  private void give(Session session) {
    boolean isWaiting = false;
    try {
      if (session.isIdle()) {
        int[] tokens = session.tokens().stream().mapToInt(Integer::intValue).toArray();
        synchronized (this) {
          if (!closed) {
            idle.add(new Idle(session, tokens));
            isWaiting = true;
          }
        }
      }
    } finally {
      if (!isWaiting) {
        drop(session);
      }
    }
  }

  private void drop(Session session) {
    try {
      session.close();
    } finally {
      synchronized (this) {
        open--;
      }
    }
  }

  /**
   * Closes the sessions that wait and list an adapter: until then their caches hold it, so that
   * {@link Adapter#close} refuses. A session that is leased with it keeps it until it is given
   * back, and is not touched.
   *
   * @return how many sessions were closed
   */
  public synchronized int evict(Adapter adapter) {
    Objects.requireNonNull(adapter, "adapter");
    int evicted = 0;
    for (Idle i : List.copyOf(idle)) {
      if (i.session().adapters().stream().anyMatch(s -> s.adapter() == adapter)) {
        idle.remove(i);
        drop(i.session());
        evicted++;
      }
    }
    return evicted;
  }

  /** Sessions that are open, leased ones included. */
  public synchronized int open() {
    return open;
  }

  /** Closes the sessions that wait; those that are leased are closed with their lease. */
  @Override
  public synchronized void close() {
    closed = true;
    while (!idle.isEmpty()) {
      drop(idle.removeLast().session());
    }
  }
}
