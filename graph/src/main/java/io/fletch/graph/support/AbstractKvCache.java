package io.fletch.graph.support;

import io.fletch.graph.Executable;
import io.fletch.graph.KvCache;
import java.util.Objects;

/**
 * What the caches of all backends share: who made them, their size, and whether they are open. A
 * backend extends it with keys and values in its memory.
 */
public abstract class AbstractKvCache implements KvCache {
  private final Executable owner;
  private final int capacity;
  private final Type type;
  private int length;
  private boolean closed;

  /**
   * An open cache without slots.
   *
   * @param owner what makes it, the only one that can use it
   */
  protected AbstractKvCache(Executable owner, int capacity, Type type) {
    this.owner = owner;
    this.capacity = capacity;
    this.type = Objects.requireNonNull(type, "type");
  }

  /**
   * Refuses a cache that an executable cannot use now.
   *
   * @throws IllegalArgumentException if another one made it
   * @throws IllegalStateException if it is closed
   */
  public static void check(KvCache cache, Executable user) {
    if (!(cache instanceof AbstractKvCache c) || c.owner != user) {
      throw new IllegalArgumentException("the cache was made by another executable: " + cache);
    }
    c.checkOpen();
  }

  /** Refuses to go on when it is closed. */
  public final void checkOpen() {
    if (closed) {
      throw new IllegalStateException("the cache is closed");
    }
  }

  /** Checks the arguments of {@link #copy}; then the source is a cache of the same class. */
  protected final void checkCopy(KvCache source, int sourceSlot, int slot, int count) {
    checkOpen();
    check(source, owner);
    KvCache.checkCopy(source, sourceSlot, this, slot, count);
  }

  /** Checks the slots of {@link #save} and {@link #load}. */
  protected final void checkCount(int count) {
    checkOpen();
    Objects.checkFromIndexSize(0, count, capacity);
  }

  @Override
  public final Type type() {
    return type;
  }

  @Override
  public final int capacity() {
    return capacity;
  }

  @Override
  public int length() {
    return length;
  }

  @Override
  public void length(int newLength) {
    checkOpen();
    if (newLength < 0 || newLength > capacity) {
      throw new IndexOutOfBoundsException(
          "length: expected in [0, " + capacity + "] actual=" + newLength);
    }
    length = newLength;
  }

  /** Marks it as closed; whether it was open. */
  protected final boolean end() {
    boolean first = !closed;
    closed = true;
    return first;
  }

  /** Whether {@link #end} was called. */
  protected final boolean closed() {
    return closed;
  }
}
