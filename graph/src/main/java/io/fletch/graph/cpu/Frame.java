package io.fletch.graph.cpu;

import io.fletch.ffm.NativeMemory;
import io.fletch.graph.Gate;
import io.fletch.graph.Value;
import io.fletch.graph.support.AbstractBatch;
import io.fletch.graph.support.Visibility;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.List;

/**
 * What the stages of one forward share: the batch, memory, and what is derived from the batch once
 * (visible slots, runs of rows that a gate lets through). Owned by an executable, filled in by the
 * thread that calls forward, read by the workers.
 */
final class Frame {
  /** A gate and the kind of rows it is applied to. */
  private record RunKey(int gate, Value.Rows rows) {}

  /** Gate index of what is never skipped. */
  static final int UNGATED = -1;

  final Kernels kernels;
  final int maxRows;
  MemorySegment scratch = MemorySegment.NULL;
  MemorySegment logits = MemorySegment.NULL;

  /** What the first factors of low-rank terms give; only the products of the next stage read it. */
  MemorySegment inner = MemorySegment.NULL;

  CpuBatch batch;
  int rows;
  int logitRows;

  /** Index of the gates of stand-ins; those of units are even. */
  private static final int STAND_IN = 1;

  private final List<RunKey> runKeys = new ArrayList<>();
  private final List<Integer> windows = new ArrayList<>();

  // [key][2 * run], [key]: runs of rows as (from, to) pairs.
  private int[][] runs = new int[0][];
  private int[] runCounts = new int[0];

  // [window][row * Visibility.INTS], [window][row].
  private int[][] ranges = new int[0][];
  private byte[][] rangeCounts = new byte[0][];
  private int[][] firsts = new int[0][];

  private final Adaptation ofRows = new Adaptation(Value.Rows.BATCH);
  private final Adaptation ofLogits = new Adaptation(Value.Rows.LOGITS);
  private NativeMemory innerMemory;

  /** Most products of one stage that rows may have low-rank terms for. */
  private int adaptedProducts;

  Frame(Kernels kernels, int maxRows) {
    this.kernels = kernels;
    this.maxRows = maxRows;
  }

  /** At compile time: the index under which {@link #runs} knows a gate. */
  int runsOf(int gate, Value.Rows kind) {
    return intern(runKeys, new RunKey(gate, kind));
  }

  /** At compile time: the index under which {@link #rangeCount} knows a window. */
  int windowOf(int window) {
    return intern(windows, window);
  }

  /** At compile time: a stage has that many products that rows may have low-rank terms for. */
  void adapts(int products) {
    adaptedProducts = Math.max(adaptedProducts, products);
  }

  /** The low-rank terms of rows of a kind. */
  Adaptation adaptation(Value.Rows kind) {
    return kind == Value.Rows.BATCH ? ofRows : ofLogits;
  }

  /** Floats of {@link #inner} from row to row. */
  long innerStride(Value.Rows kind) {
    return (long) adaptation(kind).width() * adaptedProducts;
  }

  /** Where the numbers of a row for a product of a stage begin in {@link #inner}, in floats. */
  long innerAt(Value.Rows kind, int row, int product) {
    return row * innerStride(kind) + (long) product * adaptation(kind).width();
  }

  private static <T> int intern(List<T> list, T item) {
    if (!list.contains(item)) {
      list.add(item);
    }
    return list.indexOf(item);
  }

  /** Ends compile time: makes room for all keys. */
  void allocate() {
    runs = new int[runKeys.size()][maxRows + 1];
    runCounts = new int[runKeys.size()];
    ranges = new int[windows.size()][maxRows * Visibility.INTS];
    rangeCounts = new byte[windows.size()][maxRows];
    firsts = new int[windows.size()][maxRows];
  }

  /** Starts a forward. */
  void begin(CpuBatch next) {
    batch = next;
    logits = next.logitSegment();
    rows = next.rows();
    logitRows = next.logitRows();
    for (int w = 0; w < ranges.length; w++) {
      int window = windows.get(w);
      for (int r = 0; r < rows; r++) {
        rangeCounts[w][r] = (byte) next.visible(r, window, ranges[w], r * Visibility.INTS);
        firsts[w][r] = next.firstVisible(r, window);
      }
    }
    for (int k = 0; k < runs.length; k++) {
      fillRuns(k);
    }
    if (adaptedProducts > 0) {
      ofRows.begin(this);
      ofLogits.begin(this);
      long floats =
          Math.max(
              rows * innerStride(Value.Rows.BATCH), logitRows * innerStride(Value.Rows.LOGITS));
      if (floats * Float.BYTES > inner.byteSize()) {
        closeInner();
        innerMemory = NativeMemory.allocate(floats * Float.BYTES);
        inner = innerMemory.segment();
      }
    }
  }

  private void closeInner() {
    if (innerMemory != null) {
      innerMemory.close();
      innerMemory = null;
      inner = MemorySegment.NULL;
    }
  }

  /** Releases what forwards have taken; none runs any more. */
  void close() {
    closeInner();
  }

  /** Derives the runs of some gates again, after something was decided; in no parallel stage. */
  void refresh(BitSet gateBytes) {
    for (int k = 0; k < runs.length; k++) {
      int gate = runKeys.get(k).gate();
      if (gate != UNGATED && gateBytes.get(gate >> 1)) {
        fillRuns(k);
      }
    }
  }

  private void fillRuns(int k) {
    RunKey key = runKeys.get(k);
    int n = rows(key.rows());
    int[] into = runs[k];
    int count = 0;
    boolean open = false;
    boolean gated = key.gate() != UNGATED && batch.anyGate();
    for (int r = 0; r < n; r++) {
      boolean run = !gated || !skips(key.gate(), batchRow(key.rows(), r));
      if (run && !open) {
        into[2 * count] = r;
      } else if (!run && open) {
        into[2 * count++ + 1] = r;
      }
      open = run;
    }
    if (open) {
      into[2 * count++ + 1] = n;
    }
    runCounts[k] = count;
  }

  /** Ends a forward. */
  void end() {
    batch = null;
    logits = MemorySegment.NULL;
    if (adaptedProducts > 0) {
      ofRows.end();
      ofLogits.end();
    }
  }

  /** Rows of a kind. */
  int rows(Value.Rows kind) {
    return kind == Value.Rows.BATCH ? rows : logitRows;
  }

  /** The batch row behind a row. */
  int batchRow(Value.Rows kind, int row) {
    return kind == Value.Rows.BATCH ? row : batch.logitSource(row);
  }

  /** Whether a gate skips a batch row. */
  boolean skips(int gate, int batchRow) {
    return gate != UNGATED
        && batch.gate(gate >> 1, batchRow) != ((gate & STAND_IN) == 0 ? Gate.RUN : Gate.SUBSTITUTE);
  }

  int runCount(int key) {
    return runCounts[key];
  }

  int runFrom(int key, int run) {
    return runs[key][2 * run];
  }

  int runTo(int key, int run) {
    return runs[key][2 * run + 1];
  }

  int rangeCount(int window, int row) {
    return rangeCounts[window][row];
  }

  /** The place of the first slot that a row sees in the order of its sequence. */
  int firstVisible(int window, int row) {
    return firsts[window][row];
  }

  int rangeFrom(int window, int row, int range) {
    return ranges[window][row * Visibility.INTS + 2 * range];
  }

  int rangeTo(int window, int row, int range) {
    return ranges[window][row * Visibility.INTS + 2 * range + 1];
  }

  /** The index of a gate. */
  static int gateIndex(Gate gate) {
    int bytes = AbstractBatch.gateIndex(gate.layer(), gate.unit());
    return 2 * bytes + (gate.branch() == Gate.Branch.STAND_IN ? STAND_IN : 0);
  }
}
