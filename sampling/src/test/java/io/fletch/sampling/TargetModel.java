package io.fletch.sampling;

import java.util.List;

/**
 * A model made of a table: row i is sure of the token of position i + shift of a fixed text, a
 * little surer the further to the left, and knows no context.
 */
final class TargetModel implements CanvasForward {
  private final int[] target;
  private final int shift;
  private List<CanvasWindow> windows = List.of();
  private LogitEdits edits = LogitEdits.none();

  TargetModel(int[] target, int shift) {
    this.target = target.clone();
    this.shift = shift;
  }

  @Override
  public int vocabulary() {
    return Decodes.VOCABULARY;
  }

  @Override
  public int context() {
    return Decodes.CONTEXT;
  }

  @Override
  public void begin(int caches, int slots, int rows, int headRows, LogitEdits logitEdits) {
    edits = logitEdits;
  }

  @Override
  public void run(List<CanvasWindow> list) {
    windows = list;
  }

  @Override
  public void logits(int window, int head, float[] out) {
    CanvasWindow w = windows.get(window);
    int position = w.position() + w.heads()[head];
    for (int id = 0; id < Decodes.VOCABULARY; id++) {
      out[id] = (float) CounterRandom.uniform(position, 4, id, 0, 0);
    }
    if (position + shift < target.length) {
      out[target[position + shift]] = 12 - 0.1f * position;
    }
  }

  @Override
  public void statistics(int window, int head, RowStatistics into) {
    float[] row = new float[Decodes.VOCABULARY];
    logits(window, head, row);
    edits.apply(row, 0, row.length);
    into.set(row, 0, row.length);
  }

  @Override
  public void copy(int fromCache, int fromSlot, int toCache, int toSlot, int count) {}
}
