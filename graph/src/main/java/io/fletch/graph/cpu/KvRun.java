package io.fletch.graph.cpu;

import io.fletch.graph.KvCache;
import java.lang.foreign.MemorySegment;
import java.util.Objects;

/**
 * Keys and values of one key/value head at consecutive positions: keys side by side, values side by
 * side, in one segment. The key of position {@code p} is at byte {@code keys + p * kvBytes(type,
 * keyDim)}, the value at {@code values + p * kvBytes(type, valueDim)}, where {@code kvBytes} is
 * {@link Kernels#kvBytes}. Which positions there are is not said here: {@link AttentionTile} has
 * those that are read.
 *
 * <p>Made once and set again and again by one thread; nothing allocates.
 */
public final class KvRun {
  private KvCache.Type type = KvCache.Type.F32;
  private MemorySegment memory = MemorySegment.NULL;
  private long keys;
  private long values;

  /** Without positions. */
  public KvRun() {}

  /**
   * Says where they lie.
   *
   * @param memory the cache, or a copy of a part of it
   * @param keys byte at which the key of position 0 would be; outside of the segment, also
   *     negative, where it begins with a later position
   * @param values byte at which the value of position 0 would be, likewise
   * @return this
   */
  public KvRun set(KvCache.Type type, MemorySegment memory, long keys, long values) {
    this.type = Objects.requireNonNull(type);
    this.memory = Objects.requireNonNull(memory);
    this.keys = keys;
    this.values = values;
    return this;
  }

  /** How elements are stored. */
  public KvCache.Type type() {
    return type;
  }

  /** What keys and values lie in. */
  public MemorySegment memory() {
    return memory;
  }

  /** Byte at which the key of position 0 would be. */
  public long keys() {
    return keys;
  }

  /** Byte at which the value of position 0 would be. */
  public long values() {
    return values;
  }
}
