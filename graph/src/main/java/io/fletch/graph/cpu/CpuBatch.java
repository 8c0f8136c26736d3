package io.fletch.graph.cpu;

import io.fletch.ffm.NativeMemory;
import io.fletch.graph.Executable;
import io.fletch.graph.support.AbstractBatch;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** Batch of the CPU backend: it owns the memory of its logits. */
final class CpuBatch extends AbstractBatch {
  private final CpuExecutable owner;
  private final Kernels kernels;
  private final NativeMemory memory;
  private final MemorySegment segment;
  private final long stride;
  private long skipped;

  /** Rows of the graph's hidden value, one behind the other. */
  private final float[] hidden;

  CpuBatch(CpuExecutable owner, Kernels kernels, int maxRows, int maxLogitRows) {
    super(owner.graph(), maxRows, maxLogitRows);
    this.owner = owner;
    this.kernels = kernels;
    stride = Placement.stride(owner.graph().logits().width());
    hidden = new float[owner.graph().hidden().map(h -> h.width() * maxLogitRows).orElse(0)];
    memory = NativeMemory.allocate(Math.max(1, maxLogitRows * stride * Float.BYTES));
    segment = memory.segment();
  }

  /** What the forward that has just run did not read. */
  void skipped(long bytes) {
    skipped = bytes;
  }

  @Override
  public long skippedBytes() {
    return skipped;
  }

  boolean isOf(CpuExecutable executable) {
    return owner == executable;
  }

  @Override
  protected Executable owner() {
    return owner;
  }

  MemorySegment logitSegment() {
    return segment;
  }

  @Override
  public int argmax(int logitRow) {
    checkComputed(logitRow);
    return kernels.argmax(segment, logitRow * stride, graph().logits().width());
  }

  @Override
  public void statistics(int logitRow, RowStatistics into) {
    checkComputed(logitRow);
    if (!kernels.statistics(segment, logitRow * stride, graph().logits().width(), into)) {
      super.statistics(logitRow, into);
    }
  }

  @Override
  protected void copyLogits(int logitRow, int from, int count, float[] dst, int dstOffset) {
    MemorySegment.copy(
        segment,
        ValueLayout.JAVA_FLOAT,
        (logitRow * stride + from) * Float.BYTES,
        dst,
        dstOffset,
        count);
  }

  /** Where a forward leaves the hidden rows; tasks write different ones. */
  float[] hidden() {
    return hidden;
  }

  @Override
  protected void copyHidden(int logitRow, int width, float[] dst) {
    System.arraycopy(hidden, logitRow * width, dst, 0, width);
  }

  @Override
  protected void release() {
    memory.close();
  }
}
