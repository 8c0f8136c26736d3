package io.fletch.graph.cuda;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Op;
import io.fletch.graph.Plan;
import io.fletch.graph.Value;
import io.fletch.graph.support.AbstractBatch;
import io.fletch.graph.support.MemoryPlanner;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** Turns the ops of a graph into kernel launches for a row bucket and a type of cache. */
final class CudaLowering {
  /**
   * Offsets in the scratch memory: of the values, of the parts of activations that are multiplied,
   * of the lists of experts' rows, and of the pieces of attention; logits and hidden states have
   * blocks of their own.
   */
  record Memory(
      Map<Value, Long> offsets,
      Map<Fusion.Source, Long> parts,
      long lists,
      long pieces,
      long bytes) {}

  /** Name of the kernel that prepares the next greedy step, in programs of one row. */
  static final String FOLLOW = "follow";

  /**
   * What rows may have low-rank terms for.
   *
   * @param products number of each product in the tables of adapters
   * @param inner address of what is between the factors, {@link AdapterKernels#MOST_INNER} a row
   */
  record Adapters(Map<Value, Integer> products, long inner) {
    static final Adapters NONE = new Adapters(Map.of(), 0);
  }

  /**
   * A launch; all parameters are addresses.
   *
   * @param overlaps whether it may begin before the launch before it ends
   */
  record Launch(
      String kernel, int threads, int gridX, int gridY, List<Long> parameters, boolean overlaps) {}

  /** What runs in a forward, and the text of its kernels. */
  record Program(String ptx, List<Launch> launches, Plan plan) {}

  private final Graph graph;
  private final List<Fusion.Node> nodes;
  private final int processors;
  private final boolean dependentLaunch;
  private final DeviceWeights weights;
  private final Memory memory;
  private final List<Integer> windows;
  private final long scratch;
  private final long control;
  private final long logits;
  private final long hidden;
  private final long statistics;
  private final Adapters adapters;
  private final Map<Value, Value> homes;

  /**
   * Lowers a graph.
   *
   * @param dependentLaunch whether kernels may be launched before those before them end
   */
  CudaLowering(
      Graph graph,
      List<Fusion.Node> nodes,
      int processors,
      boolean dependentLaunch,
      DeviceWeights weights,
      Memory memory,
      List<Integer> windows,
      long scratch,
      long control,
      long logits,
      long hidden,
      long statistics,
      Adapters adapters) {
    this.adapters = adapters;
    homes = homes(graph);
    this.graph = graph;
    this.nodes = nodes;
    this.processors = processors;
    this.dependentLaunch = dependentLaunch;
    this.weights = weights;
    this.memory = memory;
    this.windows = windows;
    this.scratch = scratch;
    this.control = control;
    this.logits = logits;
    this.hidden = hidden;
    this.statistics = statistics;
  }

  /** Packs values and parts by their lifetimes. */
  static Memory plan(Graph graph, List<Fusion.Node> nodes, int maxRows) {
    Map<Value, Value> homes = homes(graph);
    Map<Value, int[]> lives = new LinkedHashMap<>();
    Map<Fusion.Source, int[]> sources = new LinkedHashMap<>();
    for (int i = 0; i < nodes.size(); i++) {
      int at = i;
      Fusion.touched(nodes.get(i)).stream()
          .map(v -> homes.getOrDefault(v, v))
          .filter(v -> !isResult(graph, v))
          .forEach(v -> lives.computeIfAbsent(v, x -> new int[] {at, at})[1] = at);
      Fusion.parts(nodes.get(i))
          .forEach(s -> sources.computeIfAbsent(s, x -> new int[] {at, at})[1] = at);
    }
    List<MemoryPlanner.Buffer> buffers = new ArrayList<>();
    lives.forEach(
        (v, l) -> buffers.add(new MemoryPlanner.Buffer(4L * v.width() * maxRows, l[0], l[1])));
    // Blocks of products with many rows read all their rows.
    long rows = (long) blocks(maxRows, Products.WIDE) * Products.WIDE;
    sources.forEach(
        (s, l) -> buffers.add(new MemoryPlanner.Buffer(rows * s.parts().bytes(), l[0], l[1])));
    MemoryPlanner.Layout layout = MemoryPlanner.plan(buffers);
    Iterator<Long> offset = layout.offsets().iterator();
    Map<Value, Long> offsets = new HashMap<>();
    lives.keySet().forEach(v -> offsets.put(v, offset.next()));
    Map<Fusion.Source, Long> parts = new HashMap<>();
    sources.keySet().forEach(s -> parts.put(s, offset.next()));
    homes.forEach((base, home) -> {
      if (offsets.containsKey(home)) {
        offsets.put(base, offsets.get(home));
      }
    });
    long lists = 0;
    long pieces = 0;
    for (Op op : graph.ops()) {
      if (op instanceof Op.Attention a) {
        pieces = Math.max(pieces, AttentionTiles.scratch(a.spec(), maxRows));
      }
      if (op instanceof Op.ExpertLinear o) {
        long list = ExpertKernels.listBytes(maxRows, o.used());
        lists = Math.max(lists, list * o.experts().size());
      }
    }
    long listsAt = (layout.bytes() + 15) / 16 * 16;
    long piecesAt = (listsAt + lists + 15) / 16 * 16;
    return new Memory(offsets, parts, listsAt, piecesAt, piecesAt + pieces);
  }

  /** Low-rank terms are added in place: where the bases of {@link Op.Adapt} ops lie. */
  private static Map<Value, Value> homes(Graph graph) {
    Map<Value, Value> homes = new HashMap<>();
    for (Op op : graph.ops()) {
      if (op instanceof Op.Adapt o) {
        homes.put(o.base(), o.out());
      }
    }
    return homes;
  }

  /** Whether a value outlives the forward, in a block of its own. */
  private static boolean isResult(Graph graph, Value v) {
    return v.equals(graph.logits()) || graph.hidden().equals(Optional.of(v));
  }

  private long at(Value value) {
    Value v = homes.getOrDefault(value, value);
    if (isResult(graph, v)) {
      return v.equals(graph.logits()) ? logits : hidden;
    }
    return scratch + memory.offsets().get(v);
  }

  private long at(Fusion.Source s) {
    return scratch + memory.parts().get(s);
  }

  private final FewRows.Addresses places =
      new FewRows.Addresses() {
        @Override
        public long of(Value value) {
          return at(value);
        }

        @Override
        public long weights(Object source) {
          return weights.address(source);
        }

        @Override
        public long parts(Fusion.Source source) {
          return at(source);
        }

        @Override
        public int keysBefore(KvCache.Type type, int layer) {
          return kvBefore(type, layer);
        }
      };

  /** One lowering; collects launches and distinct kernels. */
  private final class Run {
    final Control c;
    final KvCache.Type type;
    final Emitter emit;
    final Products products;
    final Map<String, String> names = new LinkedHashMap<>();
    final Map<String, Integer> counts = new HashMap<>();
    final List<Launch> launches = new ArrayList<>();
    final List<Plan.Step> steps = new ArrayList<>();

    /** Launches of few rows are short: the next one is there when one ends. */
    final boolean overlaps;

    final StringBuilder ptx;
    long weightBytes;

    /** The routing that the lists in memory are of. */
    Optional<Value> listed = Optional.empty();

    Run(Control c, KvCache.Type type) {
      this.c = c;
      this.type = type;
      emit = new Emitter(c);
      products = new Products(c);
      overlaps = dependentLaunch && c.rows() <= Products.FEW;
      ptx = new StringBuilder(PtxKernel.header(overlaps ? 90 : 80));
    }

    void launch(Op op, String kind, PtxKernel kernel, int gridX, int gridY, long... addresses) {
      List<Long> parameters = Arrays.stream(addresses).boxed().toList();
      long bytes = 0;
      long flops = 0;
      if (op instanceof Op.ExpertLinear x && x.output().isPresent() && !kind.equals("list")) {
        Tensor w = x.experts().getFirst();
        TensorType stored = DeviceWeights.plainType(w);
        // At most: rows may share experts.
        long read = Math.min(x.experts().size(), (long) c.rows() * x.used());
        bytes = read * (w.elements() / stored.blockSize() * stored.blockBytes());
        flops = 2 * w.elements() * x.used() * c.rows();
      } else if (op instanceof Op.Linear l) {
        bytes = bytes(l);
        flops = flops(l);
      }
      String name = op.output().map(Value::name).orElse(kind);
      launch(
          name,
          op.inputs(),
          op.output().stream().toList(),
          bytes,
          flops,
          kind,
          kernel,
          gridX,
          gridY,
          parameters);
    }

    /** Adds a launch, and its kernel if there is none of the same text. */
    void launch(
        String label,
        List<Value> inputs,
        List<Value> outputs,
        long bytes,
        long flops,
        String kind,
        PtxKernel kernel,
        int gridX,
        int gridY,
        List<Long> addresses) {
      if (overlaps) {
        kernel.overlapping();
      }
      String name =
          names.computeIfAbsent(
              kind + " " + kernel.text("k"),
              t -> {
                String fresh = kind + "_" + (counts.merge(kind, 1, Integer::sum) - 1);
                ptx.append(kernel.text(fresh));
                return fresh;
              });
      List<Long> parameters = new ArrayList<>();
      parameters.add(control);
      parameters.addAll(addresses);
      if (parameters.size() != kernel.parameters()) {
        throw new IllegalStateException(
            kind + ": expected parameters=" + kernel.parameters() + " actual=" + parameters.size());
      }
      boolean after = overlaps && !launches.isEmpty();
      launches.add(new Launch(name, kernel.threads(), gridX, gridY, parameters, after));
      weightBytes += bytes;
      steps.add(new Plan.Step(label, name, 1, places(inputs), places(outputs), bytes, flops));
    }

    private List<Long> places(List<Value> values) {
      return values.stream()
          .filter(memory.offsets()::containsKey)
          .map(memory.offsets()::get)
          .toList();
    }

    void element(Op op, String kind, PtxKernel kernel, int width, long... addresses) {
      launch(op, kind, kernel, blocks(width, Emitter.THREADS), c.rows(), addresses);
    }
  }

  private static long bytes(Op.Linear l) {
    long plain =
        l.weight() instanceof LinearOp.Dense d ? 4 * d.weight().elements() : l.weight().bytes();
    return PackedMatrix.of(l.weight()).map(PackedMatrix::bytes).orElse(plain);
  }

  private static long flops(Op.Linear l) {
    return 2
        * (l.weight() instanceof LinearOp.Dense
            ? DeviceWeights.dense(l).elements()
            : LinearOp.storedElements(l.weight()));
  }

  private static int blocks(int n, int per) {
    return (n + per - 1) / per;
  }

  private int kvBefore(KvCache.Type type, int layer) {
    int bytes = 0;
    for (AttentionSpec s : graph.kvLayers().subList(0, layer)) {
      bytes += Emitter.kvBytes(type, s.kvHeads() * s.keyDim());
      bytes += Emitter.kvBytes(type, s.kvHeads() * s.valueDim());
    }
    return bytes;
  }

  /** Lowers all ops. */
  Program lower(Control c, KvCache.Type type) {
    Run run = new Run(c, type);
    nodes.forEach(node -> lower(run, node));
    Value out = graph.logits();
    long linearBytes = run.weightBytes;
    run.launch(
        new Op.Scale(out, 1, out),
        "statistics",
        run.emit.statistics(out.width()),
        1,
        c.rows(),
        at(out),
        statistics);
    if (c.rows() == 1) {
      // Launched by steps only, see CudaGreedySteps.
      PtxKernel follow = run.emit.follow(windows);
      run.ptx.append((run.overlaps ? follow.overlapping() : follow).text(FOLLOW));
    }
    Plan plan = new Plan(graph.name(), "cuda", c.rows(), memory.bytes(), linearBytes, run.steps);
    return new Program(run.ptx.toString(), List.copyOf(run.launches), plan);
  }

  private void lower(Run run, Fusion.Node node) {
    switch (node) {
      case Fusion.Plain p -> lower(run, p.op());
      case Fusion.StoreHalf s -> store(run, s.op(), s.keys());
      case Fusion.Prepare p -> prepare(run, p.source());
      case Fusion.Attend a -> attention(run, a.op(), Optional.of(a.next()));
      case Fusion.Product p -> {
        if (run.c.rows() <= Products.FEW) {
          few(run, p);
        } else {
          p.branches().forEach(b -> wide(run, p.source(), b));
        }
      }
    }
  }

  private void prepare(Run run, Fusion.Source s) {
    Value from = s.from();
    PtxKernel k = s.parts().prepare(run.c, s.factor(), from.rows());
    List<Long> addresses = new ArrayList<>(List.of(at(from), at(s)));
    s.norm().ifPresent(n -> addresses.add(weights.address(n.weight())));
    List<Value> in = List.of(from);
    run.launch(s.value().name(), in, List.of(), 0, 0, "prepare", k, 1, run.c.rows(), addresses);
  }

  /** Products of one input and what happens to their results, in one launch. */
  private void few(Run run, Fusion.Product p) {
    FewRows.Built built = new FewRows(run.c, run.emit, places, run.type, run.overlaps).product(p);
    List<String> names = new ArrayList<>();
    List<Value> outputs = new ArrayList<>();
    long bytes = 0;
    long flops = 0;
    for (Fusion.Branch b : p.branches()) {
      names.add(b.linear().out().name());
      List<Op> ops = new ArrayList<>(List.of(b.linear()));
      ops.addAll(b.tail().ops());
      for (Op op : ops) {
        op.output().ifPresent(outputs::add);
        if (op instanceof Op.Linear l) {
          bytes += bytes(l);
          flops += flops(l);
        }
      }
    }
    String kind = "skinny_" + Fusion.packed(p.branches().getFirst().linear()).orElseThrow().name();
    // As many blocks as run at the same time, each with as many units.
    int rounds = blocks(built.units(), built.resident() * processors);
    int across = blocks(built.units(), rounds);
    int down = blocks(run.c.rows(), Products.SKINNY);
    run.launch(
        String.join("+", names),
        List.of(p.source().from()),
        outputs,
        bytes,
        flops,
        kind,
        built.kernel(),
        across,
        down,
        built.addresses());
  }

  /** A product of many rows, then what happens to its result. */
  private void wide(Run run, Fusion.Source source, Fusion.Branch b) {
    switch (b.tail()) {
      case Fusion.Store t -> wide(run, source, b.linear(), Optional.empty());
      case Fusion.Rotate t -> {
        wide(run, source, b.linear(), Optional.empty());
        lower(run, t.rope());
      }
      case Fusion.Cache t -> {
        wide(run, source, b.linear(), Optional.empty());
        t.rope().ifPresent(r -> lower(run, r));
        store(run, t.store(), t.keys());
      }
      case Fusion.Activated t -> {
        wide(run, source, b.linear(), Optional.empty());
        t.up().ifPresent(up -> wide(run, source, up, Optional.empty()));
        lower(run, t.op());
        t.next().ifPresent(next -> prepare(run, next));
      }
      case Fusion.Residual t -> {
        wide(run, source, b.linear(), Optional.of(t.add()));
        t.next().ifPresent(next -> prepare(run, next));
      }
    }
  }

  private void wide(Run run, Fusion.Source source, Op.Linear o, Optional<Op.Add> add) {
    PackedMatrix m = Fusion.packed(o).orElseThrow();
    int rows = run.c.rows();
    Value out = add.map(Op.Add::out).orElse(o.out());
    List<Long> addresses =
        new ArrayList<>(List.of(weights.address(Fusion.matrix(o)), at(source), at(out)));
    o.bias().ifPresent(b -> addresses.add(weights.address(b)));
    add.ifPresent(a -> addresses.add(at(a.residual())));
    run.launch(
        out.name(),
        List.of(source.from()),
        List.of(out),
        bytes(o),
        flops(o),
        "wide_" + m.name(),
        run.products.wide(o, source.norm().isPresent(), add),
        blocks(m.tiles(), Products.wideTiles(rows, m)),
        blocks(rows, Products.WIDE),
        addresses);
  }

  private void store(Run run, Op.KvStore o, boolean keys) {
    int before = kvBefore(run.type, o.spec().layer());
    int k = o.key().width();
    Value v = keys ? o.key() : o.value();
    int at = keys ? before : before + Emitter.kvBytes(run.type, k);
    run.element(o, "kv_store", run.emit.kvStore(run.type, v.width(), at), v.width(), at(v));
  }

  /** Attention on tensor cores: the sums of pieces, then these together. */
  private void tiles(Run run, Op.Attention o, int before, Optional<Fusion.Source> next) {
    int rows = run.c.rows();
    int window = windows.indexOf(o.spec().window());
    boolean few = rows <= Products.FEW;
    AttentionTiles t =
        new AttentionTiles(run.c, run.emit, o.spec(), run.type, window, before, o.gate());
    long pieces = scratch + memory.pieces();
    if (few) {
      int across = t.splitBlocks();
      run.launch(o, "split_attention_" + run.type, t.split(), across, rows, at(o.query()), pieces);
    } else {
      int down = t.wholeBlocks(rows);
      int across = t.wholeAcross();
      run.launch(o, "tiled_attention_" + run.type, t.whole(), across, down, at(o.query()), pieces);
    }
    PtxKernel combine = t.combine(few, next.map(Fusion.Source::parts));
    long out = next.map(this::at).orElseGet(() -> at(o.out()));
    run.launch(o, "combine", combine, o.spec().heads(), rows, pieces, out);
  }

  private void attention(Run run, Op.Attention o, Optional<Fusion.Source> next) {
    int before = kvBefore(run.type, o.spec().layer());
    if (o.query().rows() == Value.Rows.BATCH && AttentionTiles.takes(o.spec(), run.type, before)) {
      tiles(run, o, before, next);
      return;
    }
    run.launch(
        o,
        "attention_" + run.type,
        run.emit.attention(
            o.spec(),
            run.type,
            windows.indexOf(o.spec().window()),
            kvBefore(run.type, o.spec().layer()),
            o.gate(),
            o.query().rows(),
            next.map(Fusion.Source::parts)),
        o.spec().heads(),
        run.c.rows(),
        at(o.query()),
        next.map(this::at).orElseGet(() -> at(o.out())));
  }

  private void lower(Run run, Op op) {
    Emitter e = run.emit;
    int rows = run.c.rows();
    switch (op) {
      case Op.Embedding o -> {
        TensorType t = o.table().type();
        int n = o.out().width();
        run.element(
            op,
            "embedding_" + t,
            DeviceWeights.packed(o.table())
                .map(m -> run.products.embedding(m, o.index(), o.scale()))
                .orElseGet(() -> e.embedding(TensorType.F32, n, o.index(), o.scale())),
            n,
            weights.address(o.table()),
            at(o.out()));
      }
      case Op.Input o ->
          run.element(
              op, "input", e.input(o.from(), o.out().width()), o.out().width(), at(o.out()));
      case Op.RmsNorm o ->
          run.launch(
              op,
              "rms_norm",
              e.rmsNorm(o.in().width(), o.groups(), o.eps(), o.outScale(), o.in().rows()),
              o.groups(),
              rows,
              at(o.in()),
              weights.address(o.weight()),
              at(o.out()));
      case Op.LayerNorm o -> {
        PtxKernel k = e.layerNorm(o.in().width(), o.eps(), o.bias().isPresent(), o.in().rows());
        long[] p =
            o.bias().isPresent()
                ? new long[] {
                  at(o.in()),
                  weights.address(o.weight()),
                  at(o.out()),
                  weights.address(o.bias().get())
                }
                : new long[] {at(o.in()), weights.address(o.weight()), at(o.out())};
        run.launch(op, "layer_norm", k, 1, rows, p);
      }
      case Op.Linear o when o.weight() instanceof LinearOp.Sparse w -> {
        SparseForm form = SparseForm.of(w.matrix());
        PtxKernel k = new SparseKernels(e, run.c).sparse(o, form);
        unstored(run, o, form.name(), k, w.matrix());
      }
      case Op.Linear o when o.weight() instanceof LinearOp.BlockDiagonal w -> {
        TensorType t = DeviceWeights.plainType(w.blocks());
        PtxKernel k = new SparseKernels(e, run.c).blockDiagonal(o, w.blocks(), t);
        unstored(run, o, "block_diagonal_" + t, k, w.blocks());
      }
      case Op.Linear o -> linear(run, o);
      case Op.Adapt o -> {
        AdapterKernels kernels = new AdapterKernels(e, run.c);
        long entry = (long) AdapterKernels.ENTRY_BYTES * adapters.products().get(o.out());
        run.launch(
            op,
            "adapter_down",
            kernels.down(o.in().width(), o.in().rows()),
            AdapterKernels.BLOCKS,
            rows,
            entry,
            at(o.in()),
            adapters.inner());
        PtxKernel up = kernels.up(o.out().width(), o.bias().isPresent(), o.gate(), o.in().rows());
        long[] p =
            o.bias().isPresent()
                ? new long[] {entry, adapters.inner(), at(o.out()), weights.address(o.bias().get())}
                : new long[] {entry, adapters.inner(), at(o.out())};
        run.element(op, "adapter_up", up, o.out().width(), p);
      }
      case Op.Rope o ->
          run.launch(
              op,
              "rope",
              e.rope(o.spec(), o.heads(), o.headDim(), o.in().rows()),
              1,
              rows,
              at(o.in()),
              weights.address(o.spec()),
              at(o.out()));
      case Op.KvStore o -> {
        store(run, o, true);
        store(run, o, false);
      }
      case Op.Attention o -> attention(run, o, Optional.empty());
      case Op.Activate o -> {
        int n = o.up().width();
        PtxKernel k =
            e.activate(o.activation(), n, o.gateHalf().isPresent(), o.gate(), o.up().rows());
        long[] p =
            o.gateHalf().isPresent()
                ? new long[] {at(o.up()), at(o.out()), at(o.gateHalf().get())}
                : new long[] {at(o.up()), at(o.out())};
        run.element(op, "activate", k, n, p);
      }
      case Op.Add o ->
          run.element(
              op,
              "add",
              e.add(o.out().width(), o.scale(), o.gate(), o.residual().rows()),
              o.out().width(),
              at(o.residual()),
              at(o.branch()),
              at(o.out()));
      case Op.Scale o ->
          run.element(
              op,
              "scale",
              e.scale(o.out().width(), o.factor(), o.in().rows()),
              o.out().width(),
              at(o.in()),
              at(o.out()));
      case Op.Affine o -> {
        int n = o.out().width();
        PtxKernel k = e.affine(n, o.bias().isPresent(), o.gate(), o.in().rows());
        long factors = weights.address(o.factors());
        long[] p =
            o.bias().isPresent()
                ? new long[] {at(o.in()), factors, at(o.out()), weights.address(o.bias().get())}
                : new long[] {at(o.in()), factors, at(o.out())};
        run.element(op, "affine", k, n, p);
      }
      case Op.SoftCap o ->
          run.element(
              op,
              "soft_cap",
              e.softCap(o.out().width(), o.cap(), o.in().rows()),
              o.out().width(),
              at(o.in()),
              at(o.out()));
      case Op.Slice o ->
          run.element(
              op,
              "slice",
              e.slice(o.in().width(), o.from(), o.out().width(), o.in().rows()),
              o.out().width(),
              at(o.in()),
              at(o.out()));
      case Op.KeepLargest o ->
          run.element(
              op,
              "keep_largest",
              e.keepLargest(o.out().width(), o.n(), o.m(), o.in().rows()),
              o.out().width(),
              at(o.in()),
              at(o.out()));
      case Op.Replace o ->
          run.element(
              op,
              "replace",
              e.replace(o.out().width(), o.gate(), o.residual().rows()),
              o.out().width(),
              at(o.residual()),
              at(o.branch()),
              at(o.out()));
      case Op.Gather o -> {
        int more = o.more().map(Value::width).orElse(0);
        PtxKernel k = e.gather(o.in().width(), more, o.out().width(), o.in().rows());
        long columns = weights.address(o.columns());
        long[] p =
            more > 0
                ? new long[] {at(o.in()), columns, at(o.out()), at(o.more().get())}
                : new long[] {at(o.in()), columns, at(o.out())};
        run.element(op, "gather", k, o.out().width(), p);
      }
      case Op.SelectRows o ->
          run.element(
              op,
              "select_rows",
              e.selectRows(o.out().width()),
              o.out().width(),
              at(o.in()),
              at(o.out()));
      case Op.SkipSimilar o -> {
        int[] targets =
            o.targets().stream()
                .mapToInt(t -> AbstractBatch.gateIndex(t.layer(), t.unit()))
                .toArray();
        run.launch(
            op,
            "skip_similar",
            e.skipSimilar(graph.decisions().indexOf(op), o.before().width(), o.unit(), targets),
            1,
            rows,
            at(o.before()),
            at(o.after()));
      }
      case Op.RouteUnit o ->
          run.launch(
              op,
              "route_unit",
              e.routeUnit(graph.decisions().indexOf(op), o.target()),
              1,
              rows,
              at(o.scores()));
      case Op.Route o -> {
        PtxKernel k =
            new ExpertKernels(e, run.c).route(o.spec(), o.bias().isPresent(), o.scores().rows());
        long[] p =
            o.bias().isPresent()
                ? new long[] {at(o.scores()), at(o.out()), weights.address(o.bias().get())}
                : new long[] {at(o.scores()), at(o.out())};
        run.launch(op, "route", k, 1, rows, p);
      }
      case Op.ExpertLinear o -> experts(run, o);
      case Op.Mix o ->
          run.element(
              op,
              "mix",
              new ExpertKernels(e, run.c).mix(o),
              o.out().width(),
              at(o.in()),
              at(o.routing()),
              at(o.out()));
    }
  }

  private void experts(Run run, Op.ExpertLinear o) {
    ExpertKernels kernels = new ExpertKernels(run.emit, run.c);
    TensorType t = DeviceWeights.plainType(o.experts().getFirst());
    int across = blocks(Math.toIntExact(o.experts().getFirst().rows()), Emitter.WARPS);
    long table = weights.address(o.experts());
    if (run.c.rows() == 1) {
      PtxKernel k = kernels.single(o, t);
      int all = o.used() * across;
      run.launch(o, "expert_" + t, k, all, 1, table, at(o.in()), at(o.routing()), at(o.out()));
      return;
    }
    long lists = scratch + memory.lists();
    int n = o.experts().size();
    if (!run.listed.equals(Optional.of(o.routing()))) {
      PtxKernel k = kernels.list(o.routing().width(), o.used(), o.routing().rows());
      run.launch(o, "list", k, 1, n, at(o.routing()), lists);
      run.listed = Optional.of(o.routing());
    }
    PtxKernel k = kernels.grouped(o, t);
    run.launch(o, "experts_" + t, k, across, n, table, at(o.in()), lists, at(o.out()));
  }

  private void unstored(Run run, Op.Linear o, String kind, PtxKernel k, Object matrix) {
    int across = blocks(o.out().width(), Emitter.WARPS);
    int down = blocks(run.c.rows(), Math.min(Emitter.TILE, run.c.rows()));
    long[] p =
        o.bias().isPresent()
            ? new long[] {
              weights.address(matrix), at(o.in()), at(o.out()), weights.address(o.bias().get())
            }
            : new long[] {weights.address(matrix), at(o.in()), at(o.out())};
    run.launch(o, kind, k, across, down, p);
  }

  /** A product with a matrix that is not packed. */
  private void linear(Run run, Op.Linear o) {
    Tensor w = DeviceWeights.dense(o);
    int rows = run.c.rows();
    boolean bias = o.bias().isPresent();
    int in = o.in().width();
    int out = o.out().width();
    PtxKernel k = run.emit.linear(TensorType.F32, in, out, bias, o.gate(), o.in().rows());
    int across = blocks(out, Emitter.WARPS);
    int down = blocks(rows, Math.min(Emitter.TILE, rows));
    long[] p =
        bias
            ? new long[] {
              weights.address(w), at(o.in()), at(o.out()), weights.address(o.bias().get())
            }
            : new long[] {weights.address(w), at(o.in()), at(o.out())};
    run.launch(o, "linear_F32", k, across, down, p);
  }
}
