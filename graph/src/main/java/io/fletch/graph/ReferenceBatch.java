package io.fletch.graph;

import io.fletch.graph.support.AbstractBatch;

/** Batch of the reference backend: the logits are an array per forward. */
final class ReferenceBatch extends AbstractBatch {
  private final ReferenceExecutable owner;
  private float[] logits = new float[0];

  ReferenceBatch(ReferenceExecutable owner, int maxRows, int maxLogitRows) {
    super(owner.graph(), maxRows, maxLogitRows);
    this.owner = owner;
  }

  boolean isOf(ReferenceExecutable executable) {
    return owner == executable;
  }

  void results(float[] rows) {
    logits = rows;
    ran();
  }

  @Override
  protected void checkCache(KvCache cache) {
    if (!(cache instanceof ReferenceKvCache c) || !c.isOf(owner)) {
      throw new IllegalArgumentException("the cache was made by another executable: " + cache);
    }
    c.checkOpen();
  }

  @Override
  protected void copyLogits(int logitRow, int from, int count, float[] dst, int dstOffset) {
    int width = graph().logits().width();
    System.arraycopy(logits, logitRow * width + from, dst, dstOffset, count);
  }

  @Override
  protected void release() {
    logits = new float[0];
  }
}
