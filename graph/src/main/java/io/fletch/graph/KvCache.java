package io.fletch.graph;

/**
 * Keys and values of one sequence for every layer: {@link #capacity()} slots of which the first
 * {@link #length()} are committed.
 *
 * <p>Owned by one session; used by one thread at a time. Created by {@link Executable#newKvCache}.
 */
public interface KvCache extends AutoCloseable {
  /** Element types a cache can have. */
  enum Type {
    F32,
    F16,
    Q8_0
  }

  /** How keys and values are stored. */
  Type type();

  /** Slots there are. */
  int capacity();

  /** Committed slots. */
  int length();

  /**
   * Sets the number of committed slots: larger commits rows that a forward has written, smaller
   * truncates in O(1).
   *
   * @throws IndexOutOfBoundsException if outside {@code [0, capacity]}
   */
  void length(int length);

  /** Bytes held, all layers. */
  long bytes();

  @Override
  void close();
}
