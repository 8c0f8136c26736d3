package io.fletch.graph.cuda;

import io.fletch.ffm.device.CudaStream;
import io.fletch.ffm.device.DeviceMemory;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.GraphException;
import io.fletch.graph.support.AbstractBatch;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;

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

  /** What was chosen along with the forward, and where each row's result begins. */
  private MemorySegment pairs = MemorySegment.NULL;

  private final int[] pairsAt;
  private int pairBytes;
  private final long[] order;
  private DeviceMemory ownLogits;
  private DeviceMemory ownHidden;

  CudaBatch(CudaExecutable owner, int maxRows, int maxLogitRows) {
    super(owner.graph(), maxRows, maxLogitRows);
    this.owner = owner;
    statistics = new byte[maxLogitRows * ROW];
    view = MemorySegment.ofArray(statistics);
    pairsAt = new int[maxLogitRows];
    order = new long[TopKernel.MOST];
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

  /** Whether the device can choose so many. */
  private static boolean possible(int count, int defined) {
    return count > 0 && count <= TopKernel.MOST && count < defined && defined <= 1 << 24;
  }

  /** Lays out the results that were asked for before the forward; their bytes, 0 for none. */
  int layOutPairs() {
    int bytes = 0;
    pairBytes = 0;
    for (int r = 0; r < logitRows(); r++) {
      pairsAt[r] = -1;
      if (possible(topCount(r), topDefined(r))) {
        pairsAt[r] = bytes;
        bytes = Math.addExact(bytes, TopKernel.bytes(topCount(r)));
      }
    }
    if (pairs.byteSize() < bytes) {
      pairs = MemorySegment.ofArray(new int[bytes / 4]);
    }
    pairBytes = bytes;
    return bytes;
  }

  /** Writes what is asked of each row, as {@link #layOutPairs} found it. */
  void requests(MemorySegment to) {
    for (int r = 0; r < logitRows(); r++) {
      request(to, r, topDefined(r), pairsAt[r] < 0 ? 0 : topCount(r), Math.max(0, pairsAt[r]));
    }
  }

  /** Writes what is asked of a row. */
  static void request(MemorySegment to, int row, int defined, int count, int at) {
    long of = (long) TopKernel.REQUEST * row;
    to.set(ValueLayout.JAVA_INT, of, defined);
    to.set(ValueLayout.JAVA_INT, of + 4, count);
    to.set(ValueLayout.JAVA_INT, of + 8, at);
    to.set(ValueLayout.JAVA_INT, of + 12, 0);
  }

  /**
   * Takes pairs out of a result, by ascending ids.
   *
   * @return false if a logit is no number or infinite
   */
  boolean take(MemorySegment from, long at, int[] ids, float[] logits) {
    int found = from.get(ValueLayout.JAVA_INT, at);
    if (from.get(ValueLayout.JAVA_INT, at + 4) != 0) {
      return false;
    }
    int n = ids.length;
    if (found != n) {
      throw new GraphException("largest logits: expected=" + n + " actual=" + found);
    }
    for (int i = 0; i < n; i++) {
      long bits = from.get(ValueLayout.JAVA_INT, at + 12 + 8L * i) & 0xffffffffL;
      order[i] = (long) from.get(ValueLayout.JAVA_INT, at + 8 + 8L * i) << 32 | bits;
    }
    Arrays.sort(order, 0, n);
    for (int i = 0; i < n; i++) {
      ids[i] = (int) (order[i] >>> 32);
      logits[i] = Float.intBitsToFloat((int) order[i]);
    }
    return true;
  }

  /** Copies statistics and decisions out of the executable's memory; its stream is idle. */
  void fetch(MemorySegment from, MemorySegment rowData, TopChooser chooser) {
    if (!fetched) {
      if (pairBytes > 0) {
        MemorySegment.copy(chooser.results(), 0, pairs, 0, pairBytes);
      }
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
    if (!possible(ids.length, defined)) {
      return false;
    }
    if (topCount(logitRow) == ids.length && topDefined(logitRow) == defined) {
      fetch();
      return take(pairs, pairsAt[logitRow], ids, logits);
    }
    return owner.top(this, logitRow, defined, ids, logits);
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
