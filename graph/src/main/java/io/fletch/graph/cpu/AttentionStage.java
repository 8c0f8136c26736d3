package io.fletch.graph.cpu;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.Value;
import java.lang.foreign.MemorySegment;

/** Attention, one row and key/value head per task. */
final class AttentionStage extends WorkerPool.Stage<Frame> {
  private final String name;
  private final AttentionSpec spec;
  private final Value.Rows kind;
  private final int window;
  private final int gate;
  private final boolean readWhenSkipped;
  private final Place query;
  private final Place out;
  private final AttentionMemory memory;

  /**
   * Attention of one layer.
   *
   * @param window index of the layer's window in the frame
   */
  AttentionStage(
      String name,
      AttentionSpec spec,
      Value.Rows kind,
      int window,
      int gate,
      boolean readWhenSkipped,
      Place query,
      Place out,
      AttentionMemory memory) {
    this.name = name;
    this.spec = spec;
    this.kind = kind;
    this.window = window;
    this.gate = gate;
    this.readWhenSkipped = readWhenSkipped;
    this.query = query;
    this.out = out;
    this.memory = memory;
  }

  @Override
  int tasks(Frame f) {
    return f.rows(kind) * spec.kvHeads();
  }

  @Override
  void run(Frame f, int task, int worker) {
    int row = task / spec.kvHeads();
    int head = task % spec.kvHeads();
    int batchRow = f.batchRow(kind, row);
    int group = spec.group();
    if (f.skips(gate, batchRow)) {
      if (readWhenSkipped) {
        int n = group * spec.valueDim();
        ElementOp.zero(f, out, row, (long) head * n, n);
      }
      return;
    }
    CpuKvCache kv = (CpuKvCache) f.batch.cache(batchRow);
    MemorySegment from = kv.segment();
    int ranges = f.rangeCount(window, batchRow);
    int first = ranges > 0 ? f.rangeFrom(window, batchRow, 0) : 0;
    int slots = ranges > 0 ? f.rangeTo(window, batchRow, 0) - first : 0;
    long key = kv.keyOffset(spec.layer(), head, first);
    long value = kv.valueOffset(spec.layer(), head, first);
    if (ranges > 1) {
      // Side by side they give the bits that the same slots in place give.
      slots = gather(f, kv, head, batchRow, ranges, worker);
      from = memory.gathered(worker);
      key = 0;
      value = slots * kv.keyBytes(spec.layer());
    }
    f.kernels.attention(
        spec,
        kv.type(),
        query.segment(f),
        query.at(row) + (long) head * group * spec.keyDim(),
        from,
        key,
        value,
        slots,
        memory.scratch(),
        memory.scratchOffset(worker),
        out.segment(f),
        out.at(row) + (long) head * group * spec.valueDim());
  }

  /** Copies all visible keys, then all visible values, next to each other; returns their number. */
  private int gather(Frame f, CpuKvCache kv, int head, int batchRow, int ranges, int worker) {
    int n = 0;
    for (int r = 0; r < ranges; r++) {
      n += f.rangeTo(window, batchRow, r) - f.rangeFrom(window, batchRow, r);
    }
    long keyBytes = kv.keyBytes(spec.layer());
    long valueBytes = kv.valueBytes(spec.layer());
    MemorySegment to = memory.gather(worker, n * (keyBytes + valueBytes));
    long key = 0;
    long value = n * keyBytes;
    for (int r = 0; r < ranges; r++) {
      int first = f.rangeFrom(window, batchRow, r);
      int count = f.rangeTo(window, batchRow, r) - first;
      long from = kv.keyOffset(spec.layer(), head, first);
      MemorySegment.copy(kv.segment(), from, to, key, count * keyBytes);
      from = kv.valueOffset(spec.layer(), head, first);
      MemorySegment.copy(kv.segment(), from, to, value, count * valueBytes);
      key += count * keyBytes;
      value += count * valueBytes;
    }
    return n;
  }

  @Override
  public String toString() {
    return name;
  }

  /** Refuses a cache type that a layer's heads do not fit. */
  static void checkType(AttentionSpec spec, KvCache.Type type) {
    if (type == KvCache.Type.Q8_0 && (spec.keyDim() % 32 != 0 || spec.valueDim() % 32 != 0)) {
      throw new IllegalArgumentException(
          "a Q8_0 cache needs head dimensions that are multiples of 32: " + spec);
    }
  }
}
