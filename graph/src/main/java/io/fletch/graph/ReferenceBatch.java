package io.fletch.graph;

import io.fletch.graph.support.AbstractBatch;

/** Batch of the reference backend: the results are arrays, made by each forward. */
final class ReferenceBatch extends AbstractBatch {
  private final ReferenceExecutable owner;
  private float[] logits = new float[0];
  private float[] hidden = new float[0];

  ReferenceBatch(ReferenceExecutable owner, int maxRows, int maxLogitRows) {
    super(owner.graph(), maxRows, maxLogitRows);
    this.owner = owner;
  }

  boolean isOf(ReferenceExecutable executable) {
    return owner == executable;
  }

  @Override
  protected Executable owner() {
    return owner;
  }

  void results(float[] logitValues, float[] hiddenValues) {
    logits = logitValues;
    hidden = hiddenValues;
    ran();
  }

  @Override
  protected void copyLogits(int logitRow, int from, int count, float[] dst, int dstOffset) {
    int width = graph().logits().width();
    System.arraycopy(logits, logitRow * width + from, dst, dstOffset, count);
  }

  @Override
  protected void copyHidden(int logitRow, int width, float[] dst) {
    System.arraycopy(hidden, logitRow * width, dst, 0, width);
  }

  @Override
  protected void release() {
    logits = new float[0];
    hidden = new float[0];
  }
}
