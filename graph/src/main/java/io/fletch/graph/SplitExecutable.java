package io.fletch.graph;

import io.fletch.graph.support.AbstractBatch;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.Comparator;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
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
    return new SplitAdapter(this, name, deltas);
  }

  @Override
  public void checkTerms(List<LowRankAdapter.Term> terms) {
    front.checkTerms(SplitAdapter.front(terms));
    back.checkTerms(SplitAdapter.back(terms));
  }

  /** The kernels of both parts, as far as they can tell. */
  @Override
  public List<KernelTime> kernelTimes(int context, KvCache.Type type) {
    List<KernelTime> times = new ArrayList<>(front.kernelTimes(context, type));
    times.addAll(back.kernelTimes(context, type));
    times.sort(Comparator.comparingDouble(KernelTime::micros).reversed());
    return List.copyOf(times);
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

    /** Gates that both parts know: the first one may decide about units of the second. */
    private final Set<Gate> carried;

    /** Indices of the gates that the second part knows. */
    private final BitSet ofBack = new BitSet();

    private final List<Op> frontDecisions;
    private final List<Op> backDecisions;
    private List<LowRankAdapter.Term> mapped = List.of();
    private List<LowRankAdapter.Term> frontTerms = List.of();
    private List<LowRankAdapter.Term> backTerms = List.of();
    private final float[] stream;
    private final int[] one = new int[1];

    SplitBatch(SplitExecutable owner, int maxRows, int maxLogitRows, Batch front, Batch back) {
      super(owner.graph, maxRows, maxLogitRows);
      this.owner = owner;
      this.front = front;
      this.back = back;
      frontGates = Gate.ofUnits(owner.front.graph());
      backGates = Gate.ofUnits(owner.back.graph());
      backGates.forEach(g -> ofBack.set(gateIndex(g.layer(), g.unit())));
      carried = new HashSet<>(frontGates);
      carried.retainAll(Set.copyOf(backGates));
      frontDecisions = owner.front.graph().decisions();
      backDecisions = owner.back.graph().decisions();
      stream = new float[owner.front.graph().logits().width()];
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
        int row = back.wantLogits(logitSource(k));
        if (topCount(k) > 0) {
          back.wantTop(row, topDefined(k), topCount(k));
        }
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
      for (int i = 0; anyGate() && i < gates.size(); i++) {
        Gate g = gates.get(i);
        int index = gateIndex(g.layer(), g.unit());
        boolean isDecided = !first && carried.contains(g);
        for (int r = 0; r < rows(); r++) {
          byte value = isDecided ? front.decided(g.layer(), g.unit(), r) : gate(index, r);
          part.gate(g.layer(), g.unit(), r, value);
        }
      }
      List<Op> decisions = first ? frontDecisions : backDecisions;
      boolean canSkip = has(decisions, Op.SkipSimilar.class);
      boolean canRoute = has(decisions, Op.RouteUnit.class);
      for (int r = 0; r < rows(); r++) {
        if (canSkip && skips(r)) {
          int budget = first ? skipBudget(r) : left(r);
          part.skipSimilar(r, skipThreshold(r), skipRun(r), budget);
        }
        if (canRoute && routes(r)) {
          part.routeUnits(r, routeThreshold(r), routeOtherwise(r));
        }
        if (adapted() && !terms(r).isEmpty()) {
          map(terms(r));
          part.adapt(r, first ? frontTerms : backTerms);
        }
      }
    }

    private static boolean has(List<Op> decisions, Class<? extends Op> kind) {
      for (int d = 0; d < decisions.size(); d++) {
        if (kind.isInstance(decisions.get(d))) {
          return true;
        }
      }
      return false;
    }

    /** What the first part has left of a row's budget: as its decisions have spent it. */
    private int left(int row) {
      int left = skipBudget(row);
      for (int d = 0; d < frontDecisions.size(); d++) {
        // A decision that was not made has a score that is no number.
        if (frontDecisions.get(d) instanceof Op.SkipSimilar op
            && front.score(d, row) >= skipThreshold(row)) {
          left -= Math.min(op.targets().size(), Math.min(skipRun(row), left));
        }
      }
      return left;
    }

    /** Rows of a sequence share a list, from step to step. */
    private void map(List<LowRankAdapter.Term> terms) {
      if (terms != mapped) {
        mapped = terms;
        frontTerms = SplitAdapter.front(terms);
        backTerms = SplitAdapter.back(terms);
      }
    }

    @Override
    public byte decided(int layer, Gate.Unit unit, int row) {
      byte asked = super.decided(layer, unit, row);
      if (!decides()) {
        return asked;
      }
      return (ofBack.get(gateIndex(layer, unit)) ? back : front).decided(layer, unit, row);
    }

    @Override
    public long skippedBytes() {
      return front.skippedBytes() + back.skippedBytes();
    }

    @Override
    public float score(int decision, int row) {
      // Checks the numbers.
      float unused = super.score(decision, row);
      int before = frontDecisions.size();
      return decision < before ? front.score(decision, row) : back.score(decision - before, row);
    }

    @Override
    protected Executable owner() {
      return owner;
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
