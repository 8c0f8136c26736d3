package io.fletch.graph.cpu;

import io.fletch.ffm.NativeMemory;
import io.fletch.graph.AttentionSpec;
import java.lang.foreign.MemorySegment;

/**
 * Where a worker finds the keys and values of one segment of the positions of a tile's rows: in the
 * cache if they lie side by side there, else in memory into which they are gathered. Gathered ones
 * give the bits that the same slots in place give.
 */
final class AttentionSlots implements AutoCloseable {
  private NativeMemory gathered = NativeMemory.allocate(1);
  private final KvRun run = new KvRun();
  private int until;

  /**
   * Finds positions for one key/value head.
   *
   * @param row one of the rows that have them in the same slots
   * @param begin first position that any of these sees, of one segment
   * @param end end of the positions that any of these sees
   * @return where they are, until the next call
   */
  KvRun find(Frame f, AttentionSpec spec, int window, int row, int head, int begin, int end) {
    CpuKvCache kv = (CpuKvCache) f.batch.cache(row);
    int ranges = f.rangeCount(window, row);
    int at = f.firstVisible(window, row);
    // What the row does not see at the ends of its ranges lies on in the same way.
    for (int r = 0; r < ranges; r++) {
      int slot = f.rangeFrom(window, row, r) - at;
      int next = f.rangeTo(window, row, r) - slot;
      if ((r == 0 || at <= begin)
          && (r == ranges - 1 || end <= next)
          && end - begin <= kv.run(slot + begin)) {
        long first = begin;
        until = r < ranges - 1 ? next : Integer.MAX_VALUE;
        until = (int) Math.min(until, first + kv.run(slot + begin));
        return run.set(
            kv.type(),
            kv.segment(),
            kv.keyOffset(spec.layer(), head, slot + begin) - first * kv.keyBytes(spec.layer()),
            kv.valueOffset(spec.layer(), head, slot + begin) - first * kv.valueBytes(spec.layer()));
      }
      at = next;
    }
    return gather(f, kv, spec, window, row, head, begin, end);
  }

  /** Copies keys, then values of positions next to each other. */
  private KvRun gather(
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
    MemorySegment memory = gathered.segment();
    long keys = -begin * keyBytes;
    long values = (end - begin) * keyBytes - begin * valueBytes;
    int ranges = f.rangeCount(window, row);
    int at = f.firstVisible(window, row);
    for (int r = 0; r < ranges; r++) {
      int slot = f.rangeFrom(window, row, r) - at;
      int next = f.rangeTo(window, row, r) - slot;
      int from = r == 0 ? begin : Math.max(at, begin);
      int until = r == ranges - 1 ? end : Math.min(next, end);
      while (from < until) {
        long count = Math.min(until - from, kv.run(slot + from));
        long source = kv.keyOffset(spec.layer(), head, slot + from);
        MemorySegment.copy(kv.segment(), source, memory, keys + from * keyBytes, count * keyBytes);
        source = kv.valueOffset(spec.layer(), head, slot + from);
        MemorySegment.copy(
            kv.segment(), source, memory, values + from * valueBytes, count * valueBytes);
        from += (int) count;
      }
      at = next;
    }
    until = end;
    return run.set(kv.type(), memory, keys, values);
  }

  /** End of the positions whose keys and values are where {@link #find} found the last ones. */
  int until() {
    return until;
  }

  private void reserve(long bytes) {
    if (gathered.segment().byteSize() < bytes) {
      NativeMemory larger = NativeMemory.allocate(bytes);
      gathered.close();
      gathered = larger;
    }
  }

  @Override
  public void close() {
    gathered.close();
  }
}
