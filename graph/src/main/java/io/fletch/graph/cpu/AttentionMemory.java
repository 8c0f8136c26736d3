package io.fletch.graph.cpu;

import io.fletch.ffm.NativeMemory;
import java.lang.foreign.MemorySegment;

/**
 * Working memory of attention. Apart for each worker: rows, with what kernels ask for, and room for
 * gathered keys and values. Shared: how the stage at hand is divided, and states of segments that
 * several workers take. What grows does so when first needed. Owned by an executable, one stage of
 * which runs at a time.
 */
final class AttentionMemory implements AutoCloseable {
  private static final int LINE_FLOATS = 32;

  private final NativeMemory scratch;
  private final AttentionRows[] rows;
  private final AttentionSlots[] slots;
  private final AttentionPlan plan;
  private NativeMemory states = NativeMemory.allocate(1);

  /**
   * Memory of an executable.
   *
   * @param floats of working memory of a worker
   * @param maxRows most rows of a forward
   */
  AttentionMemory(int workers, int floats, int maxRows) {
    long stride = (floats + LINE_FLOATS - 1L) / LINE_FLOATS * LINE_FLOATS * Float.BYTES;
    scratch = NativeMemory.allocate(Math.max(1, workers * stride));
    slots = new AttentionSlots[workers];
    rows = new AttentionRows[workers];
    for (int w = 0; w < workers; w++) {
      rows[w] = new AttentionRows(scratch.segment().asSlice(w * stride, stride));
      slots[w] = new AttentionSlots();
    }
    plan = new AttentionPlan(workers, maxRows);
  }

  /** How the stage at hand is divided. */
  AttentionPlan plan() {
    return plan;
  }

  /** For a worker to fill. */
  AttentionRows rows(int worker) {
    return rows[worker];
  }

  /** For a worker to find keys and values with. */
  AttentionSlots slots(int worker) {
    return slots[worker];
  }

  /** Makes room for states, in no parallel stage; what there were is lost. */
  void reserveStates(long floats) {
    if (states.segment().byteSize() < floats * Float.BYTES) {
      NativeMemory larger = NativeMemory.allocate(2 * floats * Float.BYTES);
      states.close();
      states = larger;
    }
  }

  /** What {@link #reserveStates} made room for. */
  MemorySegment states() {
    return states.segment();
  }

  @Override
  public void close() {
    scratch.close();
    states.close();
    for (AttentionSlots s : slots) {
      s.close();
    }
  }
}
