package io.fletch.graph.cpu;

import io.fletch.ffm.NativeMemory;
import io.fletch.graph.AttentionSpec;
import java.lang.foreign.MemorySegment;

/**
 * Where a worker finds the keys and values of one segment of a row's positions: in the cache if
 * they lie side by side there, else in memory into which they are gathered. Gathered ones give the
 * bits that the same slots in place give.
 */
final class AttentionSlots implements AutoCloseable {
  private NativeMemory gathered = NativeMemory.allocate(1);
  private MemorySegment memory = MemorySegment.NULL;
  private long keys;
  private long values;

  /** Finds what a row sees of a segment for one key/value head. */
  void find(Frame f, AttentionSpec spec, int window, int row, int head, int segment) {
    CpuKvCache kv = (CpuKvCache) f.batch.cache(row);
    int position = f.firstVisible(window, row);
    int begin = Math.max(position, segment * Kernels.ATTENTION_SEGMENT);
    int end = position + AttentionPlan.visible(f, window, row);
    end =
        begin
            + Math.min(end - begin, Kernels.ATTENTION_SEGMENT - begin % Kernels.ATTENTION_SEGMENT);
    int ranges = f.rangeCount(window, row);
    int at = position;
    for (int r = 0; r < ranges; r++) {
      int from = f.rangeFrom(window, row, r);
      int next = at + f.rangeTo(window, row, r) - from;
      if (ranges == 1 || at <= begin && end <= next) {
        memory = kv.segment();
        keys = kv.keyOffset(spec.layer(), head, 0) + (from - at) * kv.keyBytes(spec.layer());
        values = kv.valueOffset(spec.layer(), head, 0) + (from - at) * kv.valueBytes(spec.layer());
        return;
      }
      at = next;
    }
    gather(f, kv, spec, window, row, head, begin, end);
  }

  /** Copies keys, then values of positions next to each other. */
  private void gather(
      Frame f,
      CpuKvCache kv,
      AttentionSpec spec,
      int window,
      int row,
      int head,
      int begin,
      int end) {
    long keyBytes = kv.keyBytes(spec.layer());
    long valueBytes = kv.valueBytes(spec.layer());
    reserve(Kernels.ATTENTION_SEGMENT * (keyBytes + valueBytes));
    memory = gathered.segment();
    keys = -begin * keyBytes;
    values = (end - begin) * keyBytes - begin * valueBytes;
    int at = f.firstVisible(window, row);
    for (int r = 0; r < f.rangeCount(window, row); r++) {
      int slot = f.rangeFrom(window, row, r) - at;
      int next = f.rangeTo(window, row, r) - slot;
      int from = Math.max(at, begin);
      int count = Math.min(next, end) - from;
      if (count > 0) {
        long source = kv.keyOffset(spec.layer(), head, slot + from);
        MemorySegment.copy(kv.segment(), source, memory, keys + from * keyBytes, count * keyBytes);
        source = kv.valueOffset(spec.layer(), head, slot + from);
        MemorySegment.copy(
            kv.segment(), source, memory, values + from * valueBytes, count * valueBytes);
      }
      at = next;
    }
  }

  private void reserve(long bytes) {
    if (gathered.segment().byteSize() < bytes) {
      NativeMemory larger = NativeMemory.allocate(bytes);
      gathered.close();
      gathered = larger;
    }
  }

  MemorySegment memory() {
    return memory;
  }

  /** Byte at which the key of position 0 would be. */
  long keys() {
    return keys;
  }

  /** Byte at which the value of position 0 would be. */
  long values() {
    return values;
  }

  @Override
  public void close() {
    gathered.close();
  }
}
