package io.fletch.graph;

import java.io.EOFException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.ReadableByteChannel;
import java.nio.channels.WritableByteChannel;
import java.util.Objects;

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

  /**
   * Copies keys and values of {@code count} slots of all layers, bit for bit. The lengths of both
   * caches stay as they are.
   *
   * @param source a cache of the same executable and type; may be this one if the ranges do not
   *     overlap
   * @throws IllegalArgumentException for a cache of another executable or type, or ranges that
   *     overlap
   * @throws IndexOutOfBoundsException for a range outside either cache
   */
  void copy(KvCache source, int sourceSlot, int slot, int count);

  /** Checks the arguments of {@link #copy} apart from where the caches come from. */
  static void checkCopy(KvCache source, int sourceSlot, KvCache target, int slot, int count) {
    Objects.checkFromIndexSize(sourceSlot, count, source.capacity());
    Objects.checkFromIndexSize(slot, count, target.capacity());
    if (source.type() != target.type()) {
      throw new IllegalArgumentException(
          "type of the source: expected=" + target.type() + " actual=" + source.type());
    }
    if (source == target && Math.abs((long) slot - sourceSlot) < count) {
      throw new IllegalArgumentException(
          "ranges overlap: sourceSlot=" + sourceSlot + " slot=" + slot + " count=" + count);
    }
  }

  /** Names how {@link #save} lays bytes out: backend and element type. */
  String layout();

  /** Bytes that {@link #save} writes per slot. */
  long slotBytes();

  /**
   * Writes keys and values of slots {@code [0, count)}, all layers.
   *
   * @throws IndexOutOfBoundsException if there are fewer slots
   */
  void save(int count, WritableByteChannel to) throws IOException;

  /**
   * Reads what {@link #save} of a cache of an equal graph and {@link #layout()} has written into
   * slots {@code [0, count)}. The length stays as it is.
   *
   * @throws java.io.EOFException if there are not enough bytes; the slots are undefined then
   */
  void load(int count, ReadableByteChannel from) throws IOException;

  /** Writes all of a buffer. */
  static void write(ByteBuffer from, WritableByteChannel to) throws IOException {
    while (from.hasRemaining()) {
      to.write(from);
    }
  }

  /** Fills a buffer. */
  static void read(ByteBuffer into, ReadableByteChannel from) throws IOException {
    while (into.hasRemaining()) {
      if (from.read(into) < 0) {
        throw new EOFException("keys and values: missing bytes=" + into.remaining());
      }
    }
  }

  /** Bytes held, all layers. */
  long bytes();

  @Override
  void close();
}
