package io.fletch.graph.cpu;

import java.util.BitSet;

/**
 * Derives again which rows run, after a stage has decided about gates. One task, which the worker
 * that ended that stage runs on the spot.
 */
final class RefreshStage extends WorkerPool.Stage<Frame> {
  private final BitSet gateBytes;

  /** Refreshes what depends on these gate bytes. */
  RefreshStage(BitSet gateBytes) {
    this.gateBytes = gateBytes;
  }

  @Override
  int tasks(Frame f) {
    return 1;
  }

  @Override
  void run(Frame f, int task, int worker) {
    f.refresh(gateBytes);
  }

  @Override
  public String toString() {
    return "refresh gates " + gateBytes;
  }
}
