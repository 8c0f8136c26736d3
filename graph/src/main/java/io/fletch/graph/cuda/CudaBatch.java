package io.fletch.graph.cuda;

import io.fletch.ffm.device.CudaStream;
import io.fletch.ffm.device.DeviceMemory;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.KvCache;
import io.fletch.graph.support.AbstractBatch;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Batch of the CUDA backend. Its logits stay where the forward wrote them until another batch runs;
 * then they move to memory of its own. The statistics of all logit rows are computed on the device
 * with each forward.
 */
final class CudaBatch extends AbstractBatch {
  private static final int ROW = Emitter.STATISTICS;

  private final CudaExecutable owner;
  private final byte[] statistics;
  private final MemorySegment view;
  private boolean fetched;
  private Control control;
  private DeviceMemory ownLogits;
  private DeviceMemory ownHidden;

  CudaBatch(CudaExecutable owner, int maxRows, int maxLogitRows) {
    super(owner.graph(), maxRows, maxLogitRows);
    this.owner = owner;
    statistics = new byte[maxLogitRows * ROW];
    view = MemorySegment.ofArray(statistics);
  }

  boolean isOf(CudaExecutable executable) {
    return owner == executable;
  }

  @Override
  protected Executable owner() {
    return owner;
  }

  /** A forward was queued, with its rows' data laid out like this. */
  void queued(Control layout) {
    fetched = false;
    control = layout;
    ran();
  }

  /** Copies statistics and decisions out of the executable's memory; its stream is idle. */
  void fetch(MemorySegment from, MemorySegment rowData) {
    if (!fetched) {
      MemorySegment.copy(from, 0, view, 0, (long) logitRows() * ROW);
      if (decides()) {
        for (int r = 0; r < rows(); r++) {
          for (int g = 0; g < control.gates(); g++) {
            take(g, r, rowData.get(ValueLayout.JAVA_BYTE, control.gate(g) + (long) r));
          }
          for (int d = 0; d < control.decisions(); d++) {
            takeScore(d, r, rowData.get(ValueLayout.JAVA_FLOAT, control.score(d) + 4L * r));
          }
        }
      }
      fetched = true;
    }
  }

  /** Moves the results to memory of its own. */
  void keep(CudaStream stream, DeviceMemory logits, DeviceMemory hidden) {
    if (logitRows() > 0) {
      ownLogits = keep(stream, logits, ownLogits, 4L * graph().logits().width());
      if (graph().hidden().isPresent()) {
        ownHidden = keep(stream, hidden, ownHidden, 4L * graph().hidden().get().width());
      }
    }
  }

  private DeviceMemory keep(CudaStream stream, DeviceMemory from, DeviceMemory to, long row) {
    DeviceMemory own = to == null ? owner.allocate(row * maxLogitRows()) : to;
    stream.copy(from, 0, own, 0, row * logitRows());
    return own;
  }

  DeviceMemory keptLogits() {
    return ownLogits;
  }

  DeviceMemory keptHidden() {
    return ownHidden;
  }

  @Override
  protected void checkCache(KvCache cache) {
    if (!(cache instanceof CudaKvCache c) || !c.isOf(owner)) {
      throw new IllegalArgumentException("the cache was made by another executable: " + cache);
    }
    c.checkOpen();
  }

  @Override
  protected void copyLogits(int logitRow, int from, int count, float[] dst, int dstOffset) {
    owner.readLogits(this, logitRow, from, count, dst, dstOffset);
  }

  /** Waits for the device once per forward, however much is read. */
  private void fetch() {
    if (!fetched) {
      owner.fetch(this);
    }
  }

  @Override
  public byte decided(int layer, Gate.Unit unit, int row) {
    fetch();
    return super.decided(layer, unit, row);
  }

  @Override
  public float score(int decision, int row) {
    fetch();
    return super.score(decision, row);
  }

  @Override
  protected void copyHidden(int logitRow, int width, float[] dst) {
    owner.readHidden(this, logitRow, width, dst);
  }

  @Override
  public int argmax(int logitRow) {
    checkComputed(logitRow);
    fetch();
    return view.get(ValueLayout.JAVA_INT_UNALIGNED, (long) logitRow * ROW);
  }

  @Override
  public boolean top(int logitRow, int defined, int[] ids, float[] logits) {
    checkComputed(logitRow);
    if (defined < 1 || defined > graph().logits().width() || ids.length != logits.length) {
      throw new IllegalArgumentException(
          "largest logits: expected=as many ids as logits, of 1 to "
              + graph().logits().width()
              + " ids, actual ids="
              + ids.length
              + " logits="
              + logits.length
              + " of="
              + defined);
    }
    boolean possible =
        ids.length > 0
            && ids.length <= TopKernel.MOST
            && ids.length < defined
            && defined <= 1 << 24;
    return possible && owner.top(this, logitRow, defined, ids, logits);
  }

  @Override
  public void statistics(int logitRow, RowStatistics into) {
    checkComputed(logitRow);
    fetch();
    long at = (long) logitRow * ROW;
    into.argmax = view.get(ValueLayout.JAVA_INT_UNALIGNED, at);
    into.top1 = view.get(ValueLayout.JAVA_FLOAT_UNALIGNED, at + 4);
    into.top2 = view.get(ValueLayout.JAVA_FLOAT_UNALIGNED, at + 8);
    double sum = view.get(ValueLayout.JAVA_DOUBLE_UNALIGNED, at + 16);
    double weighted = view.get(ValueLayout.JAVA_DOUBLE_UNALIGNED, at + 24);
    into.logSumExp = into.top1 + Math.log(sum);
    into.entropy = Math.log(sum) - weighted / sum;
  }

  @Override
  protected void release() {
    owner.forget(this);
    try {
      if (ownLogits != null) {
        owner.release(ownLogits);
      }
    } finally {
      if (ownHidden != null) {
        owner.release(ownHidden);
      }
      ownLogits = null;
      ownHidden = null;
    }
  }
}
