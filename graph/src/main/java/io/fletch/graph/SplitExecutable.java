package io.fletch.graph;

import io.fletch.graph.support.AbstractBatch;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;
import java.util.concurrent.locks.ReentrantLock;

/** A graph whose parts run on two executables, one after the other. */
final class SplitExecutable implements Executable {
  private final Graph graph;
  private final int layers;
  private final Executable front;
  private final Executable back;
  private final List<Plan> plans;

  /** Forwards run in turn: the second part of one would wait for that of the other anyway. */
  private final ReentrantLock turn = new ReentrantLock(true);

  SplitExecutable(Graph graph, int layers, Executable front, Executable back) {
    this.graph = graph;
    this.layers = layers;
    this.front = front;
    this.back = back;
    plans = joined();
  }

  /** For each number of rows that either part plans for, the steps of both. */
  private List<Plan> joined() {
    TreeSet<Integer> sizes = new TreeSet<>();
    front.plans().forEach(p -> sizes.add(p.maxRows()));
    back.plans().forEach(p -> sizes.add(p.maxRows()));
    List<Plan> all = new ArrayList<>();
    for (int size : sizes) {
      Plan a = fitting(front, size);
      Plan b = fitting(back, size);
      List<Plan.Step> steps = new ArrayList<>(a.steps());
      steps.addAll(b.steps());
      all.add(
          new Plan(
              graph.name(),
              a.backend() + ", then " + b.backend(),
              size,
              a.scratchBytes() + b.scratchBytes(),
              a.weightBytes() + b.weightBytes(),
              steps));
    }
    return List.copyOf(all);
  }

  private static Plan fitting(Executable part, int rows) {
    return part.plans().stream()
        .filter(p -> p.maxRows() >= rows)
        .findFirst()
        .orElse(part.plans().getLast());
  }

  Executable front() {
    return front;
  }

  Executable back() {
    return back;
  }

  @Override
  public Graph graph() {
    return graph;
  }

  @Override
  public List<Plan> plans() {
    return plans;
  }

  @Override
  public String description() {
    return "the first "
        + layers
        + " of "
        + graph.kvLayers().size()
        + " layers on "
        + front.description()
        + "; the others on "
        + back.description();
  }

  @Override
  public KvCache newKvCache(int capacity, KvCache.Type type) {
    KvCache first = front.newKvCache(capacity, type);
    try {
      return new SplitKvCache(this, first, back.newKvCache(capacity, type));
    } catch (RuntimeException | Error e) {
      first.close();
      throw e;
    }
  }

  @Override
  public Batch newBatch(int maxRows, int maxLogitRows) {
    Batch first = front.newBatch(maxRows, maxRows);
    try {
      Batch second = back.newBatch(maxRows, maxLogitRows);
      try {
        return new SplitBatch(this, maxRows, maxLogitRows, first, second);
      } catch (RuntimeException | Error e) {
        second.close();
        throw e;
      }
    } catch (RuntimeException | Error e) {
      first.close();
      throw e;
    }
  }

  @Override
  public LowRankAdapter newAdapter(String name, Map<Value, LowRankDelta> deltas) {
    throw new GraphException("adapters of rows need a model that is whole on the CPU: " + name);
  }

  @Override
  public void forward(Batch batch) {
    if (!(batch instanceof SplitBatch b) || !b.isOf(this)) {
      throw new IllegalArgumentException("the batch was made by another executable: " + batch);
    }
    turn.lock();
    try {
      b.run();
    } finally {
      turn.unlock();
    }
  }

  @Override
  public void close() {
    try {
      front.close();
    } finally {
      back.close();
    }
  }

  /** Rows for the two parts, and the stream between them. */
  private static final class SplitBatch extends AbstractBatch {
    private final SplitExecutable owner;
    private final Batch front;
    private final Batch back;
    private final List<Gate> frontGates;
    private final List<Gate> backGates;
    private final float[] stream;
    private final int[] one = new int[1];

    SplitBatch(SplitExecutable owner, int maxRows, int maxLogitRows, Batch front, Batch back) {
      super(owner.graph, maxRows, maxLogitRows);
      this.owner = owner;
      this.front = front;
      this.back = back;
      frontGates = gates(owner.front.graph());
      backGates = gates(owner.back.graph());
      stream = new float[owner.front.graph().logits().width()];
    }

    private static List<Gate> gates(Graph graph) {
      return graph.ops().stream()
          .flatMap(op -> Gate.of(op).stream())
          .filter(g -> g.branch() == Gate.Branch.UNIT)
          .distinct()
          .toList();
    }

    boolean isOf(SplitExecutable executable) {
      return owner == executable;
    }

    void run() {
      checkRunnable();
      fill(front, frontGates, true);
      for (int r = 0; r < rows(); r++) {
        front.wantLogits(r);
      }
      owner.front.forward(front);
      fill(back, backGates, false);
      for (int r = 0; r < rows(); r++) {
        front.logits(r, stream);
        back.input(r, stream);
      }
      for (int k = 0; k < logitRows(); k++) {
        back.wantLogits(logitSource(k));
      }
      owner.back.forward(back);
      ran();
    }

    private void fill(Batch part, List<Gate> gates, boolean first) {
      part.clear();
      int at = 0;
      for (Span s : spans()) {
        SplitKvCache kv = (SplitKvCache) s.kv();
        int[] tokens = s.rows() == 1 ? one : new int[s.rows()];
        for (int i = 0; i < s.rows(); i++) {
          tokens[i] = token(at + i);
        }
        part.add(
            new Span(
                first ? kv.front() : kv.back(),
                s.rows(),
                s.position(),
                s.slot(),
                s.prefix(),
                s.suffixFrom(),
                s.suffixTo(),
                s.own(),
                s.block()),
            tokens,
            0);
        at += s.rows();
      }
      if (anyGate()) {
        for (Gate g : gates) {
          for (int r = 0; r < rows(); r++) {
            part.gate(g.layer(), g.unit(), r, gate(gateIndex(g.layer(), g.unit()), r));
          }
        }
      }
    }

    @Override
    protected Executable owner() {
      return owner;
    }

    @Override
    protected void checkCache(KvCache cache) {
      if (!(cache instanceof SplitKvCache c) || !c.isOf(owner)) {
        throw new IllegalArgumentException("the cache was made by another executable: " + cache);
      }
      c.checkOpen();
    }

    @Override
    protected void copyLogits(int logitRow, int from, int count, float[] dst, int at) {
      if (from == 0 && at == 0 && count == graph().logits().width() && dst.length >= count) {
        back.logits(logitRow, dst);
        return;
      }
      float[] all = new float[graph().logits().width()];
      back.logits(logitRow, all);
      System.arraycopy(all, from, dst, at, count);
    }

    @Override
    protected void copyHidden(int logitRow, int width, float[] dst) {
      back.hidden(logitRow, dst);
    }

    @Override
    public int argmax(int logitRow) {
      checkComputed(logitRow);
      return back.argmax(logitRow);
    }

    @Override
    public boolean top(int logitRow, int defined, int[] ids, float[] logits) {
      checkComputed(logitRow);
      return back.top(logitRow, defined, ids, logits);
    }

    @Override
    public void statistics(int logitRow, RowStatistics into) {
      checkComputed(logitRow);
      back.statistics(logitRow, into);
    }

    @Override
    protected void release() {
      try {
        front.close();
      } finally {
        back.close();
      }
    }
  }
}
