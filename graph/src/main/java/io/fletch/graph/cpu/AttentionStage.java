package io.fletch.graph.cpu;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;
import io.fletch.graph.Value;

/**
 * Attention. A task is a tile of rows and a key/value head, or, where these are too few, one
 * segment of the positions that they see; see {@link AttentionPlan}.
 */
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
    AttentionPlan plan = memory.plan();
    int floats = f.kernels.attentionState(spec);
    int tasks = plan.make(f, kind, window, gate, spec.kvHeads(), floats);
    if (plan.split()) {
      memory.reserveStates(plan.states(floats));
    }
    return tasks;
  }

  @Override
  void run(Frame f, int task, int worker) {
    AttentionPlan plan = memory.plan();
    int tile = plan.tile(task);
    int head = plan.head(task);
    int from = plan.rowFrom(tile);
    int to = plan.rowTo(tile);
    int first = f.batchRow(kind, from);
    if (f.skips(gate, first)) {
      skip(f, head, from, to);
      return;
    }
    AttentionSlots slots = memory.slots(worker);
    AttentionRows rows = memory.rows(worker);
    rows.begin(f.kernels, spec, query.segment(f), out.segment(f));
    for (int r = from; r < to; r++) {
      int row = f.batchRow(kind, r);
      int position = f.firstVisible(window, row);
      rows.add(
          query.at(r) + (long) head * spec.group() * spec.keyDim(),
          position,
          position + AttentionPlan.visible(f, window, row),
          out.at(r) + (long) head * spec.group() * spec.valueDim());
    }
    if (!plan.split()) {
      int end = rows.endSegment();
      int next;
      for (int s = rows.firstSegment(); s < end; s = next) {
        KvRun kv = slots.find(f, spec, window, first, head, rows.begin(s), rows.end(s));
        next = rows.segments(s, slots.until(), kv);
      }
      rows.finish();
      return;
    }
    int s = plan.segment(task, tile);
    long at = plan.states(tile, head, f.kernels.attentionState(spec));
    KvRun kv = slots.find(f, spec, window, first, head, rows.begin(s), rows.end(s));
    rows.part(s, kv, memory.states(), at);
    if (plan.last(tile, head)) {
      rows.join(memory.states(), at);
    }
  }

  private void skip(Frame f, int head, int from, int to) {
    if (readWhenSkipped) {
      int n = spec.group() * spec.valueDim();
      for (int r = from; r < to; r++) {
        ElementOp.zero(f, out, r, (long) head * n, n);
      }
    }
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
