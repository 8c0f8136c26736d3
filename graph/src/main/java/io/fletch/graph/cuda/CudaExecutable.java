package io.fletch.graph.cuda;

import io.fletch.ffm.device.CudaContext;
import io.fletch.ffm.device.CudaDevice;
import io.fletch.ffm.device.CudaEvent;
import io.fletch.ffm.device.CudaException;
import io.fletch.ffm.device.CudaGraph;
import io.fletch.ffm.device.CudaGraphExec;
import io.fletch.ffm.device.CudaLaunch;
import io.fletch.ffm.device.CudaModule;
import io.fletch.ffm.device.CudaStream;
import io.fletch.ffm.device.DeviceMemory;
import io.fletch.ffm.device.LaunchConfig;
import io.fletch.ffm.device.PinnedMemory;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
import io.fletch.graph.GreedySteps;
import io.fletch.graph.KernelTime;
import io.fletch.graph.KvCache;
import io.fletch.graph.LowRankAdapter;
import io.fletch.graph.LowRankDelta;
import io.fletch.graph.Plan;
import io.fletch.graph.Value;
import io.fletch.graph.support.AbstractBatch;
import io.fletch.graph.support.AbstractKvCache;
import io.fletch.graph.support.AdapterPass;
import io.fletch.graph.support.Decomposition;
import io.fletch.graph.support.PreparedAdapter;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Deque;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Consumer;
import java.util.stream.Stream;

/**
 * A graph with its weights on a device. A forward writes the rows' data into pinned memory and
 * launches one captured graph: upload, kernels, statistics of the logits, download of these. It
 * returns at once; the first read of a result waits. Forwards of several threads run in turn.
 */
final class CudaExecutable implements Executable {
  private static final long STAGING = 1 << 20;

  private record Key(int rows, KvCache.Type type, boolean adapted) {}

  /** {@code off} launches each kernel after the one before it. */
  static final String DEPENDENT_LAUNCH = "fletch.gpu.dependent-launch";

  /** A captured forward, and what it was captured from. */
  private record Replay(CudaGraphExec exec, CudaModule module, List<CudaLaunch> launches) {}

  private final Graph graph;
  private final int maxRows;
  private final CudaContext context;
  private final ModuleCache modules;
  private final CudaStream stream;
  private final CudaLowering lowering;
  private final DeviceWeights weights;

  /** Number of each product in the tables of adapters. */
  private final Map<Value, Integer> products = new HashMap<>();

  /** The products that some adapter changes. */
  private final Set<Value> targets = new HashSet<>();

  /** Lowers forwards with low-rank terms; made with the first adapter. */
  private Optional<CudaLowering> adapted = Optional.empty();

  /** What forwards with low-rank terms need beside the others. */
  private Deque<Runnable> ownedByAdapted = new ArrayDeque<>();

  private final List<Integer> windows;
  private final int gates;
  private final int decisions;
  private final int numbers;
  private final long slotRow;
  private final long hiddenRow;
  private final DeviceMemory control;
  private final DeviceMemory logits;
  private final DeviceMemory statistics;

  /** Rows of the graph's hidden value. */
  private final DeviceMemory hidden;

  private final PinnedMemory hostControl;
  private final PinnedMemory hostStatistics;
  private final String description;
  private final Deque<Runnable> owned;
  private final List<Plan> plans = new ArrayList<>();
  private final Map<Key, Replay> replays = new HashMap<>();
  private final Map<Key, KernelProfile> profiles = new HashMap<>();
  private final Arena arena = Arena.ofShared();
  private final MemorySegment chunk;
  private final int[] ranges = new int[8];
  private final int[] firstToken = new int[1];
  private final ReentrantLock turn = new ReentrantLock(true);
  private CudaBatch latest;

  /** Null until it is used. */
  private TopChooser chooser;

  /** Whose next row the control block on the device describes. */
  private CudaGreedySteps steps;

  private boolean busy;
  private boolean closed;

  static CudaExecutable compile(
      Graph graph,
      int maxRows,
      CudaDevice device,
      CudaBackend.Progress progress,
      ModuleCache modules) {
    if (maxRows < 1 || maxRows > 65_535) {
      throw new IllegalArgumentException("maxRows: expected in [1, 65535] actual=" + maxRows);
    }
    Graph stored = Decomposition.of(graph);
    DeviceWeights weights = new DeviceWeights(stored);
    Deque<Runnable> owned = new ArrayDeque<>();
    try {
      CudaContext context = CudaContext.open(device);
      owned.push(() -> CudaBackend.close(context));
      return new CudaExecutable(graph, stored, maxRows, context, weights, progress, modules, owned);
    } catch (CudaException e) {
      free(owned);
      throw new GraphException("preparing " + graph.name() + ": " + e.getMessage(), e);
    } catch (RuntimeException | Error e) {
      free(owned);
      throw e;
    }
  }

  private CudaExecutable(
      Graph graph,
      Graph stored,
      int maxRows,
      CudaContext context,
      DeviceWeights weights,
      CudaBackend.Progress progress,
      ModuleCache modules,
      Deque<Runnable> owned) {
    this.graph = graph;
    this.maxRows = maxRows;
    this.context = context;
    this.modules = modules;
    this.owned = owned;
    windows = graph.kvLayers().stream().map(AttentionSpec::window).distinct().toList();
    gates =
        stored.ops().stream()
            .flatMap(op -> Stream.concat(Gate.of(op).stream(), Gate.decidedBy(op).stream()))
            .mapToInt(g -> AbstractBatch.gateIndex(g.layer(), g.unit()) + 1)
            .max()
            .orElse(0);
    decisions = stored.decisions().size();
    numbers = graph.inputWidth();
    slotRow = 4L * graph.logits().width();
    hiddenRow = graph.hidden().map(h -> 4L * h.width()).orElse(0L);
    Control largest = control(maxRows, true);
    List<Fusion.Node> nodes = Fusion.of(stored);
    CudaLowering.Memory scratch = CudaLowering.plan(stored, nodes, maxRows);
    long wanted = weights.bytes() + workingBytes(graph, maxRows, scratch) + largest.bytes();
    CudaContext.MemoryInfo memory = context.memory();
    if (wanted > memory.free()) {
      throw new GraphException(
          graph.name()
              + " does not fit on "
              + context.device().name()
              + ": needed bytes="
              + wanted
              + " (weights "
              + weights.bytes()
              + ", activations and logits of "
              + maxRows
              + " rows "
              + (wanted - weights.bytes())
              + ") without keys and values, free="
              + memory.free()
              + " of "
              + memory.total()
              + "; fewer rows per forward or a smaller model would fit");
    }
    stream = context.newStream();
    owned.push(stream::close);
    DeviceMemory block = weights.load(context, stream, progress);
    owned.push(block::close);
    DeviceMemory activations = context.allocate(Math.max(1, scratch.bytes()));
    owned.push(activations::close);
    logits = context.allocate(slotRow * maxRows);
    owned.push(logits::close);
    hidden = context.allocate(Math.max(1, hiddenRow * maxRows));
    owned.push(hidden::close);
    control = context.allocate(largest.bytes());
    owned.push(control::close);
    statistics = context.allocate((long) Emitter.STATISTICS * maxRows);
    owned.push(statistics::close);
    hostControl = context.allocatePinned(largest.bytes());
    owned.push(hostControl::close);
    hostStatistics = context.allocatePinned((long) Emitter.STATISTICS * maxRows);
    owned.push(hostStatistics::close);
    chunk = arena.allocate(Math.max(slotRow, hiddenRow));
    owned.push(arena::close);
    owned.push(() -> free(ownedByAdapted));
    this.weights = weights;
    lowering = lowering(stored, nodes, scratch, activations, CudaLowering.Adapters.NONE);
    int n = 0;
    for (Value v : PreparedAdapter.products(graph).keySet()) {
      products.put(v, n++);
    }
    for (int rows : buckets()) {
      CudaLowering.Program p = lowering.lower(control(rows, false), KvCache.Type.F16);
      plans.add(p.plan());
    }
    CudaDevice device = context.device();
    description =
        "cuda: "
            + device.name()
            + " (compute capability "
            + device.capability() / 10
            + "."
            + device.capability() % 10
            + "), "
            + weights.bytes()
            + " bytes of weights, one graph launch per forward";
  }

  /** Bytes besides the weights, without the rows' data. */
  private static long workingBytes(Graph graph, int maxRows, CudaLowering.Memory scratch) {
    long row = 4L * graph.logits().width() + graph.hidden().map(h -> 4L * h.width()).orElse(0L);
    return scratch.bytes() + Math.multiplyExact(row + Emitter.STATISTICS, (long) maxRows);
  }

  /** Bytes that a graph takes on a device, without keys and values and a row's few numbers. */
  static long bytes(Graph graph, int maxRows) {
    Graph stored = Decomposition.of(graph);
    return new DeviceWeights(stored).bytes()
        + workingBytes(graph, maxRows, CudaLowering.plan(stored, Fusion.of(stored), maxRows));
  }

  private Control control(int rows, boolean withTerms) {
    return new Control(rows, windows.size(), gates, decisions, numbers, withTerms);
  }

  private List<Integer> buckets() {
    List<Integer> sizes = new ArrayList<>();
    for (int size : new int[] {1, 8, 64}) {
      if (size < maxRows) {
        sizes.add(size);
      }
    }
    sizes.add(maxRows);
    return sizes;
  }

  /**
   * Whether a kernel of few rows may be launched before the one before it ends: from compute
   * capability 9.0 and, as launches are recorded, CUDA 12.3 on.
   */
  private boolean dependentLaunch() {
    return context.device().capability() >= 90
        && context.driverVersion() >= 12_030
        && !System.getProperty(DEPENDENT_LAUNCH, "on").equals("off");
  }

  /** Lowers a form of the graph over the buffers that all forms share. */
  private CudaLowering lowering(
      Graph stored,
      List<Fusion.Node> nodes,
      CudaLowering.Memory scratch,
      DeviceMemory activations,
      CudaLowering.Adapters adapters) {
    return new CudaLowering(
        stored,
        nodes,
        context.device().multiprocessors(),
        dependentLaunch(),
        weights,
        scratch,
        windows,
        activations.address(),
        control.address(),
        logits.address(),
        hidden.address(),
        statistics.address(),
        adapters);
  }

  @Override
  public Graph graph() {
    return graph;
  }

  @Override
  public List<Plan> plans() {
    return List.copyOf(plans);
  }

  @Override
  public String description() {
    return description;
  }

  /** Kernels and copies of a forward of that many rows. */
  int nodes(int rows, KvCache.Type type) {
    turn.lock();
    try {
      return replay(new Key(bucket(rows), type, false)).exec().nodes();
    } finally {
      turn.unlock();
    }
  }

  @Override
  public List<KernelTime> kernelTimes(int slots, KvCache.Type type) {
    try (KvCache kv = newKvCache(slots, type);
        Batch batch = newBatch(1, 1)) {
      kv.length(slots - 1);
      batch.wantLogits(batch.append(kv, new int[1], 0, 1));
      // Uploads the row's data, which the kernels then read again and again.
      forward(batch);
      List<KernelTime> times = new ArrayList<>();
      locked(s -> {
        finish();
        times.addAll(profiles.get(new Key(bucket(1), type, false)).measure(context, s));
      });
      return List.copyOf(times);
    }
  }

  private int bucket(int rows) {
    for (int size : buckets()) {
      if (rows <= size) {
        return size;
      }
    }
    throw new IllegalStateException("no plan for rows=" + rows);
  }

  @Override
  public KvCache newKvCache(int capacity, KvCache.Type type) {
    if (capacity < 1) {
      throw new IllegalArgumentException("capacity: expected>=1 actual=" + capacity);
    }
    long slot = 0;
    for (AttentionSpec spec : graph.kvLayers()) {
      if (type == KvCache.Type.Q8_0 && (spec.keyDim() % 32 != 0 || spec.valueDim() % 32 != 0)) {
        throw new IllegalArgumentException(
            "a Q8_0 cache needs head dimensions that are multiples of 32: " + spec);
      }
      slot += Emitter.kvBytes(type, spec.kvHeads() * spec.keyDim());
      slot += Emitter.kvBytes(type, spec.kvHeads() * spec.valueDim());
    }
    long slotBytes = slot;
    DeviceMemory memory = allocate(Math.max(1, Math.multiplyExact(slotBytes, capacity)));
    try {
      locked(s -> s.fill(memory, 0, memory.bytes(), (byte) 0));
    } catch (RuntimeException e) {
      memory.close();
      throw e;
    }
    return new CudaKvCache(this, capacity, type, memory, slotBytes);
  }

  @Override
  public Batch newBatch(int rows, int maxLogitRows) {
    if (rows > maxRows) {
      throw new IllegalArgumentException("rows: expected<=" + maxRows + " actual=" + rows);
    }
    return new CudaBatch(this, rows, maxLogitRows);
  }

  @Override
  public void forward(Batch batch) {
    if (!(batch instanceof CudaBatch b) || !b.isOf(this)) {
      throw new IllegalArgumentException("the batch was made by another executable: " + batch);
    }
    locked(s -> {
      b.checkRunnable();
      KvCache.Type type = b.cache(0).type();
      for (int r = 1; r < b.rows(); r++) {
        if (b.cache(r).type() != type) {
          throw new IllegalArgumentException(
              "caches of one batch: expected type=" + type + " actual=" + b.cache(r).type());
        }
      }
      makeWay(s, b);
      int pairs = b.layOutPairs();
      if (pairs > 0) {
        b.requests(chooser().reserve(b.logitRows(), pairs));
      }
      int rows = bucket(b.rows());
      Control c = control(rows, b.adapted());
      CudaGraphExec replay = replay(new Key(rows, type, b.adapted())).exec();
      fill(b, c);
      steps = null;
      busy = true;
      replay.launch(s);
      if (pairs > 0) {
        chooser.queue(s, logits.address());
      }
      latest = b;
      b.queued(c);
    });
  }

  /** Waits for what was queued; the pinned memory is the host's afterwards. */
  private void finish() {
    if (busy) {
      stream.synchronize();
      busy = false;
    }
  }

  /** Waits for what was queued and lets the latest batch take what came of it. */
  private void settle() {
    finish();
    if (latest != null) {
      latest.fetch(hostStatistics.segment(), hostControl.segment(), chooser);
    }
  }

  /** Before a forward of a batch: that of the latest keeps its results, if it is another. */
  private void makeWay(CudaStream s, CudaBatch next) {
    if (latest == next) {
      // It has other rows already.
      latest = null;
    }
    settle();
    if (latest != null) {
      latest.keep(s, logits, hidden);
    }
    latest = null;
  }

  private void fill(CudaBatch b, Control c) {
    MemorySegment to = hostControl.segment();
    to.set(ValueLayout.JAVA_INT, Control.ROWS, b.rows());
    to.set(ValueLayout.JAVA_INT, Control.LOGIT_ROWS, b.logitRows());
    for (int r = 0; r < b.rows(); r++) {
      CudaKvCache cache = (CudaKvCache) b.cache(r);
      to.set(ValueLayout.JAVA_LONG, c.cache() + 8L * r, cache.address());
      to.set(ValueLayout.JAVA_INT, c.capacity() + 4L * r, cache.capacity());
      to.set(ValueLayout.JAVA_INT, c.token() + 4L * r, b.token(r));
      to.set(ValueLayout.JAVA_INT, c.position() + 4L * r, b.position(r));
      to.set(ValueLayout.JAVA_INT, c.slot() + 4L * r, b.slot(r));
      for (int w = 0; w < windows.size(); w++) {
        Arrays.fill(ranges, 0);
        ranges[0] = b.visible(r, windows.get(w), ranges, 1);
        ranges[7] = distance(b.slot(r), b.position(r));
        long at = c.ranges(w) + (long) Control.RANGE_BYTES * r;
        MemorySegment.copy(ranges, 0, to, ValueLayout.JAVA_INT, at, ranges.length);
      }
      for (int g = 0; g < gates; g++) {
        to.set(ValueLayout.JAVA_BYTE, c.gate(g) + (long) r, b.gate(g, r));
      }
      if (decisions > 0) {
        fillDecisions(b, c, r);
      }
    }
    MemorySegment.copy(b.inputs(), 0, to, ValueLayout.JAVA_FLOAT, c.input(), b.rows() * numbers);
    for (int k = 0; k < b.logitRows(); k++) {
      to.set(ValueLayout.JAVA_INT, c.logitSource() + 4L * k, b.logitSource(k));
    }
    if (c.adapted()) {
      fillTerms(b, c);
    }
  }

  /**
   * How far behind its own slots a row's window comes in the order of the sequence: a window that
   * lies elsewhere in the cache comes where its positions say, if nothing that it sees is there.
   */
  private int distance(int slot, int position) {
    int distance = position - slot;
    for (int own = 1; own < 7 && distance != 0; own += 2) {
      if (slot < ranges[own] || slot >= ranges[own + 1]) {
        continue;
      }
      int from = ranges[own] + distance;
      int to = ranges[own + 1] + distance;
      boolean free = from >= 0;
      for (int other = 1; other < 7; other += 2) {
        free &= other == own || to <= ranges[other] || ranges[other + 1] <= from;
      }
      return free ? distance : 0;
    }
    return 0;
  }

  private void fillDecisions(CudaBatch b, Control c, int r) {
    MemorySegment to = hostControl.segment();
    long at = 4L * r;
    to.set(ValueLayout.JAVA_INT, c.skips() + at, b.skips(r) ? 1 : 0);
    to.set(ValueLayout.JAVA_FLOAT, c.skipThreshold() + at, b.skipThreshold(r));
    to.set(ValueLayout.JAVA_INT, c.skipRun() + at, b.skipRun(r));
    to.set(ValueLayout.JAVA_INT, c.skipLeft() + at, b.skipBudget(r));
    to.set(ValueLayout.JAVA_INT, c.routeOtherwise() + at, b.routes(r) ? b.routeOtherwise(r) : 0);
    to.set(ValueLayout.JAVA_FLOAT, c.routeThreshold() + at, b.routeThreshold(r));
    for (int d = 0; d < decisions; d++) {
      to.set(ValueLayout.JAVA_FLOAT, c.score(d) + at, Float.NaN);
    }
  }

  @Override
  public void checkTerms(List<LowRankAdapter.Term> terms) {
    int rank = 0;
    for (LowRankAdapter.Term t : terms) {
      rank += t.adapter() instanceof CudaAdapter a ? a.rank() : 0;
    }
    if (terms.size() > AdapterKernels.MOST_TERMS || rank > AdapterKernels.MOST_INNER) {
      throw new IllegalArgumentException(
          "adapters of a row on a GPU: expected=at most "
              + AdapterKernels.MOST_TERMS
              + " with ranks of "
              + AdapterKernels.MOST_INNER
              + " together actual="
              + terms.size()
              + " with "
              + rank);
    }
  }

  private void fillTerms(CudaBatch b, Control c) {
    MemorySegment to = hostControl.segment();
    for (int r = 0; r < b.rows(); r++) {
      List<LowRankAdapter.Term> terms = b.terms(r);
      int n = 0;
      for (int i = 0; i < terms.size(); i++) {
        LowRankAdapter.Term t = terms.get(i);
        if (t.scale() != 0) {
          long slot = AdapterKernels.MOST_TERMS * (long) r + n++;
          long at = c.terms() + AdapterKernels.TERM_BYTES * slot;
          to.set(ValueLayout.JAVA_LONG, at, ((CudaAdapter) t.adapter()).address());
          to.set(ValueLayout.JAVA_FLOAT, at + 8, t.scale());
        }
      }
      to.set(ValueLayout.JAVA_INT, c.termCount() + 4L * r, n);
    }
  }

  private Replay replay(Key key) {
    Replay there = replays.get(key);
    if (there != null) {
      return there;
    }
    Control c = control(key.rows(), key.adapted());
    CudaLowering by = key.adapted() ? adapted.orElseThrow() : lowering;
    Deque<Runnable> own = key.adapted() ? ownedByAdapted : owned;
    CudaLowering.Program program = by.lower(c, key.type());
    CudaModule module = modules.load(context, graph.name() + "." + key.rows(), program.ptx());
    own.push(module::close);
    List<CudaLaunch> launches = new ArrayList<>();
    for (CudaLowering.Launch l : program.launches()) {
      LaunchConfig config =
          LaunchConfig.of(l.gridX(), l.threads())
              .withGrid(l.gridX(), l.gridY(), 1)
              .withProgrammatic(l.overlaps());
      CudaLaunch launch = module.function(l.kernel()).prepare(config, l.parameters().size());
      own.push(launch::close);
      for (int i = 0; i < l.parameters().size(); i++) {
        launch.setLong(i, l.parameters().get(i));
      }
      launches.add(launch);
    }
    MemorySegment up = hostControl.segment().asSlice(0, c.bytes());
    MemorySegment down =
        hostStatistics.segment().asSlice(0, (long) Emitter.STATISTICS * key.rows());
    try (CudaGraph captured =
        stream.capture(() -> {
          stream.upload(up, control, 0);
          launches.forEach(l -> l.launch(stream));
          stream.download(statistics, 0, down);
          if (decisions > 0) {
            stream.download(control, c.score(0), up.asSlice(c.score(0)));
          }
        })) {
      CudaGraphExec made = captured.instantiate();
      own.push(made::close);
      Replay replay = new Replay(made, module, List.copyOf(launches));
      replays.put(key, replay);
      profiles.put(key, new KernelProfile(program, launches));
      return replay;
    }
  }

  @Override
  public Optional<GreedySteps> newGreedySteps(KvCache cache, Batch batch) {
    AbstractKvCache.check(cache, this);
    CudaKvCache kv = (CudaKvCache) cache;
    if (!(batch instanceof CudaBatch b) || !b.isOf(this)) {
      throw new IllegalArgumentException("the batch was made by another executable: " + batch);
    }
    if (numbers > 0) {
      return Optional.empty();
    }
    CudaGreedySteps[] made = new CudaGreedySteps[1];
    locked(s -> {
      Deque<Runnable> own = new ArrayDeque<>();
      try {
        made[0] = new CudaGreedySteps(this, kv, b, steps(s, kv.type(), own));
      } catch (RuntimeException | Error e) {
        try {
          free(own);
        } catch (RuntimeException suppressed) {
          e.addSuppressed(suppressed);
        }
        throw e;
      }
    });
    return Optional.of(made[0]);
  }

  private CudaGreedySteps.Parts steps(CudaStream s, KvCache.Type type, Deque<Runnable> own) {
    Replay replay = replay(new Key(bucket(1), type, false));
    DeviceMemory ring = context.allocate(CudaGreedySteps.BYTES);
    own.push(ring::close);
    s.fill(ring, 0, CudaGreedySteps.BYTES, (byte) 0);
    PinnedMemory host = context.allocatePinned(CudaGreedySteps.COUNT);
    own.push(host::close);
    List<CudaEvent> events = new ArrayList<>();
    for (int i = 0; i < CudaGreedySteps.RING; i++) {
      CudaEvent event = context.newEvent(false);
      own.push(event::close);
      events.add(event);
    }
    CudaLaunch follow =
        replay
            .module()
            .function(CudaLowering.FOLLOW)
            .prepare(
                LaunchConfig.of(1, 32)
                    .withProgrammatic(replay.launches().getLast().config().programmatic()),
                3);
    own.push(follow::close);
    follow.setLong(0, control.address());
    follow.setLong(1, statistics.address());
    follow.setLong(2, ring.address());
    try (CudaGraph captured =
        s.capture(() -> {
          replay.launches().forEach(l -> l.launch(s));
          follow.launch(s);
          s.download(ring, 0, host.segment());
        })) {
      CudaGraphExec step = captured.instantiate();
      own.push(step::close);
      return new CudaGreedySteps.Parts(host, List.copyOf(events), step, own);
    }
  }

  /** Most slots of a sequence in a cache. */
  int slots(CudaKvCache cache) {
    return Math.min(cache.capacity(), graph.positions());
  }

  /** Uploads the first row of greedy steps and queues it. */
  void start(CudaGreedySteps of, int token) {
    if (token < 0 || token >= graph.vocabulary()) {
      throw new IllegalArgumentException(
          "token: expected=in [0, " + graph.vocabulary() + ") actual=" + token);
    }
    locked(s -> {
      makeWay(s, of.batch());
      steps = null;
      CudaBatch b = of.batch();
      firstToken[0] = token;
      b.clear();
      b.wantLogits(b.append(of.cache(), firstToken, 0, 1));
      Control c = control(bucket(1), false);
      fill(b, c);
      b.clear();
      busy = true;
      s.upload(hostControl.segment().asSlice(0, c.bytes()), control, 0);
      of.queue(s);
      steps = of;
    });
  }

  /** Queues another step, if the control block still is of these. */
  boolean follow(CudaGreedySteps of) {
    boolean[] done = new boolean[1];
    locked(s -> {
      if (steps == of) {
        busy = true;
        of.queue(s);
        done[0] = true;
      }
    });
    return done[0];
  }

  /** Ends steps once nothing queued uses them. */
  void end(CudaGreedySteps of, Deque<Runnable> own) {
    turn.lock();
    try {
      if (steps == of) {
        steps = null;
      }
      if (!closed) {
        try {
          stream.synchronize();
          busy = false;
        } finally {
          free(own);
        }
      }
    } catch (CudaException e) {
      throw new GraphException("freeing steps of " + graph.name() + ": " + e.getMessage(), e);
    } finally {
      turn.unlock();
    }
  }

  @Override
  public LowRankAdapter newAdapter(String name, Map<Value, LowRankDelta> deltas) {
    CudaAdapter adapter = new CudaAdapter(this, name, deltas, products);
    try {
      locked(s -> adapt(deltas.keySet()));
    } catch (RuntimeException | Error e) {
      adapter.close();
      throw e;
    }
    return adapter;
  }

  /** Makes room for terms of more products, in place of what was made without them. */
  private void adapt(Set<Value> more) {
    if (targets.containsAll(more)) {
      return;
    }
    finish();
    Set<Value> all = new HashSet<>(targets);
    all.addAll(more);
    Graph stored = Decomposition.of(AdapterPass.of(graph, all));
    List<Fusion.Node> nodes = Fusion.of(stored);
    CudaLowering.Memory scratch = CudaLowering.plan(stored, nodes, maxRows);
    Deque<Runnable> own = new ArrayDeque<>();
    DeviceMemory activations;
    DeviceMemory inner;
    try {
      activations = context.allocate(Math.max(1, scratch.bytes()));
      own.push(activations::close);
      inner = context.allocate(4L * AdapterKernels.MOST_INNER * maxRows);
      own.push(inner::close);
    } catch (RuntimeException | Error e) {
      free(own);
      throw e;
    }
    Deque<Runnable> old = ownedByAdapted;
    ownedByAdapted = own;
    adapted =
        Optional.of(
            lowering(
                stored,
                nodes,
                scratch,
                activations,
                new CudaLowering.Adapters(products, inner.address())));
    targets.addAll(all);
    replays.keySet().removeIf(Key::adapted);
    profiles.keySet().removeIf(Key::adapted);
    free(old);
  }

  /** Copies to the device and waits. */
  void upload(MemorySegment from, DeviceMemory to) {
    locked(s -> {
      try (PinnedMemory staging = context.allocatePinned(Math.min(STAGING, from.byteSize()))) {
        for (long done = 0; done < from.byteSize(); done += STAGING) {
          long n = Math.min(STAGING, from.byteSize() - done);
          MemorySegment.copy(from, done, staging.segment(), 0, n);
          s.upload(staging.segment().asSlice(0, n), to, done);
          // The staging memory is written again.
          s.synchronize();
        }
        busy = false;
      }
    });
  }

  /** Runs device work in turn; a driver's failure becomes that of the forward. */
  void locked(Consumer<CudaStream> work) {
    turn.lock();
    try {
      if (closed) {
        throw new IllegalStateException("the executable is closed");
      }
      work.accept(stream);
    } catch (CudaException e) {
      throw new GraphException("forward of " + graph.name() + ": " + e.getMessage(), e);
    } finally {
      turn.unlock();
    }
  }

  DeviceMemory allocate(long bytes) {
    turn.lock();
    try {
      if (closed) {
        throw new IllegalStateException("the executable is closed");
      }
      return context.allocate(bytes);
    } catch (CudaException e) {
      throw new GraphException("memory for " + graph.name() + ": " + e.getMessage(), e);
    } finally {
      turn.unlock();
    }
  }

  /** Frees memory of a batch or cache once nothing queued uses it. */
  void release(DeviceMemory memory) {
    turn.lock();
    try {
      if (!closed) {
        try {
          stream.synchronize();
          busy = false;
        } finally {
          memory.close();
        }
      }
    } catch (CudaException e) {
      throw new GraphException("freeing memory of " + graph.name() + ": " + e.getMessage(), e);
    } finally {
      turn.unlock();
    }
  }

  /** Makes a batch's statistics readable. */
  void fetch(CudaBatch b) {
    locked(s -> {
      if (latest == b) {
        settle();
      }
    });
  }

  void readLogits(CudaBatch b, int row, int from, int count, float[] dst, int at) {
    locked(s ->
        read(s, latest == b ? logits : b.keptLogits(), row * slotRow + 4L * from, count, dst, at));
  }

  void readHidden(CudaBatch b, int row, int count, float[] dst) {
    locked(s -> read(s, latest == b ? hidden : b.keptHidden(), row * hiddenRow, count, dst, 0));
  }

  private void read(
      CudaStream s, DeviceMemory source, long offset, int count, float[] dst, int at) {
    MemorySegment host = chunk.asSlice(0, 4L * count);
    s.download(source, offset, host);
    s.synchronize();
    busy = false;
    MemorySegment.copy(host, ValueLayout.JAVA_FLOAT, 0, dst, at, count);
  }

  /** What chooses the largest logits, made when it is first asked for. */
  private TopChooser chooser() {
    if (chooser == null) {
      chooser = new TopChooser(context, modules, graph.name(), slotRow);
      owned.push(chooser::close);
    }
    return chooser;
  }

  /** The largest logits of a row, by ascending ids; false if one is no number or infinite. */
  boolean top(CudaBatch b, int row, int defined, int[] ids, float[] values) {
    boolean[] chosen = new boolean[1];
    locked(s -> {
      // What a forward has chosen lies where this writes.
      settle();
      TopChooser c = chooser();
      int n = ids.length;
      CudaBatch.request(c.reserve(1, TopKernel.bytes(n)), 0, defined, n, 0);
      busy = true;
      c.queue(s, (latest == b ? logits : b.keptLogits()).address() + row * slotRow);
      finish();
      chosen[0] = b.take(c.results(), 0, ids, values);
    });
    return chosen[0];
  }

  void forget(CudaBatch b) {
    turn.lock();
    try {
      if (latest == b) {
        latest = null;
      }
    } finally {
      turn.unlock();
    }
  }

  /** Runs all, the last one first; the first failure is thrown when all have run. */
  static void free(Deque<Runnable> owned) {
    RuntimeException first = null;
    while (!owned.isEmpty()) {
      try {
        owned.pop().run();
      } catch (RuntimeException e) {
        if (first == null) {
          first = e;
        } else {
          first.addSuppressed(e);
        }
      }
    }
    if (first != null) {
      throw first;
    }
  }

  @Override
  public void close() {
    turn.lock();
    try {
      if (!closed) {
        try {
          finish();
        } finally {
          closed = true;
          free(owned);
        }
      }
    } catch (CudaException e) {
      throw new GraphException("closing " + graph.name() + ": " + e.getMessage(), e);
    } finally {
      turn.unlock();
    }
  }
}
