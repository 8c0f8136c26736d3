package io.fletch.graph.cpu;

import io.fletch.ffm.NativeMemory;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import java.lang.foreign.MemorySegment;
import java.util.List;

/**
 * Keys and values in one block of native memory: per layer, per key/value head, {@code [slot][dim]}
 * keys, then the same for values. Memory is reserved at once and taken from the system as slots are
 * written.
 */
final class CpuKvCache implements KvCache {
  private static final long ALIGNMENT = 64;

  private final CpuExecutable owner;
  private final Type type;
  private final int capacity;
  private final NativeMemory memory;
  private final MemorySegment segment;
  private final long[] keyBase;
  private final long[] valueBase;
  private final long[] keyBytes;
  private final long[] valueBytes;
  private final int[] heads;
  private int length;
  private boolean closed;

  CpuKvCache(
      CpuExecutable owner, Kernels kernels, List<AttentionSpec> layers, int capacity, Type type) {
    this.owner = owner;
    this.type = type;
    this.capacity = capacity;
    int n = layers.size();
    keyBase = new long[n];
    valueBase = new long[n];
    keyBytes = new long[n];
    valueBytes = new long[n];
    heads = new int[n];
    long end = 0;
    for (int l = 0; l < n; l++) {
      AttentionSpec spec = layers.get(l);
      AttentionStage.checkType(spec, type);
      heads[l] = spec.kvHeads();
      keyBytes[l] = kernels.kvBytes(type, spec.keyDim());
      valueBytes[l] = kernels.kvBytes(type, spec.valueDim());
      keyBase[l] = end;
      end = Math.addExact(end, Math.multiplyExact(headStride(keyBytes[l]), spec.kvHeads()));
      valueBase[l] = end;
      end = Math.addExact(end, Math.multiplyExact(headStride(valueBytes[l]), spec.kvHeads()));
    }
    memory = NativeMemory.allocateSparse(Math.max(end, ALIGNMENT));
    segment = memory.segment();
  }

  private long headStride(long slotBytes) {
    return Math.addExact(Math.multiplyExact(slotBytes, capacity), ALIGNMENT - 1) & -ALIGNMENT;
  }

  void check(CpuExecutable executable) {
    if (owner != executable) {
      throw new IllegalArgumentException("the cache was made by another executable");
    }
    if (closed) {
      throw new IllegalStateException("the cache is closed");
    }
  }

  MemorySegment segment() {
    return segment;
  }

  /** Bytes of one key of a layer. */
  long keyBytes(int layer) {
    return keyBytes[layer];
  }

  /** Bytes of one value of a layer. */
  long valueBytes(int layer) {
    return valueBytes[layer];
  }

  long keyOffset(int layer, int head, int slot) {
    return keyBase[layer] + head * headStride(keyBytes[layer]) + slot * keyBytes[layer];
  }

  long valueOffset(int layer, int head, int slot) {
    return valueBase[layer] + head * headStride(valueBytes[layer]) + slot * valueBytes[layer];
  }

  @Override
  public Type type() {
    return type;
  }

  @Override
  public int capacity() {
    return capacity;
  }

  @Override
  public int length() {
    return length;
  }

  @Override
  public void length(int newLength) {
    if (closed) {
      throw new IllegalStateException("the cache is closed");
    }
    if (newLength < 0 || newLength > capacity) {
      throw new IndexOutOfBoundsException(
          "length: expected in [0, " + capacity + "] actual=" + newLength);
    }
    length = newLength;
  }

  @Override
  public void copy(KvCache source, int sourceSlot, int slot, int count) {
    check(owner);
    if (!(source instanceof CpuKvCache from)) {
      throw new IllegalArgumentException("the cache was made by another executable");
    }
    from.check(owner);
    KvCache.checkCopy(source, sourceSlot, this, slot, count);
    for (int l = 0; l < heads.length; l++) {
      for (int h = 0; h < heads[l]; h++) {
        MemorySegment.copy(
            from.segment,
            from.keyOffset(l, h, sourceSlot),
            segment,
            keyOffset(l, h, slot),
            count * keyBytes[l]);
        MemorySegment.copy(
            from.segment,
            from.valueOffset(l, h, sourceSlot),
            segment,
            valueOffset(l, h, slot),
            count * valueBytes[l]);
      }
    }
  }

  @Override
  public long bytes() {
    return segment.byteSize();
  }

  @Override
  public void close() {
    if (!closed) {
      closed = true;
      memory.close();
    }
  }
}
