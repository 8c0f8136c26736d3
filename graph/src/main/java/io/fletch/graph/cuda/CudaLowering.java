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
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** Turns the ops of a graph into kernel launches for a row bucket and a type of cache. */
final class CudaLowering {
  /**
   * Offsets of the values in the scratch memory, of the parts of the activations that are
   * multiplied, and of the lists of experts' rows; logits and hidden states have blocks of their
   * own.
   */
  record Memory(Map<Value, Long> offsets, long parts, long lists, long bytes) {}

  /** A launch; all parameters are addresses. */
  record Launch(String kernel, int threads, int gridX, int gridY, List<Long> parameters) {}

  /** What runs in a forward, and the text of its kernels. */
  record Program(String ptx, List<Launch> launches, Plan plan) {}

  private final Graph graph;
  private final DeviceWeights weights;
  private final Memory memory;
  private final List<Integer> windows;
  private final long scratch;
  private final long control;
  private final long logits;
  private final long hidden;
  private final long statistics;

  CudaLowering(
      Graph graph,
      DeviceWeights weights,
      Memory memory,
      List<Integer> windows,
      long scratch,
      long control,
      long logits,
      long hidden,
      long statistics) {
    this.graph = graph;
    this.weights = weights;
    this.memory = memory;
    this.windows = windows;
    this.scratch = scratch;
    this.control = control;
    this.logits = logits;
    this.hidden = hidden;
    this.statistics = statistics;
  }

  /** Packs the values by their lifetimes. */
  static Memory plan(Graph graph, int maxRows) {
    Map<Value, int[]> lives = new LinkedHashMap<>();
    for (int i = 0; i < graph.ops().size(); i++) {
      Op op = graph.ops().get(i);
      int at = i;
      op.output().filter(v -> !isResult(graph, v)).ifPresent(v -> lives.put(v, new int[] {at, at}));
      op.inputs().stream().filter(lives::containsKey).forEach(v -> lives.get(v)[1] = at);
    }
    List<MemoryPlanner.Buffer> buffers = new ArrayList<>();
    lives.forEach(
        (v, l) -> buffers.add(new MemoryPlanner.Buffer(4L * v.width() * maxRows, l[0], l[1])));
    MemoryPlanner.Layout layout = MemoryPlanner.plan(buffers);
    Map<Value, Long> offsets = new HashMap<>();
    int n = 0;
    for (Value v : lives.keySet()) {
      offsets.put(v, layout.offsets().get(n++));
    }
    int parts = 0;
    long lists = 0;
    for (Op op : graph.ops()) {
      if (op instanceof Op.Linear l && l.weight() instanceof LinearOp.Dense d) {
        if (DeviceWeights.packed(d.weight()).isPresent()) {
          parts = Math.max(parts, Products.splitBytes(l.in().width()));
        }
      }
      if (op instanceof Op.ExpertLinear o) {
        long list = ExpertKernels.listBytes(maxRows, o.used());
        lists = Math.max(lists, list * o.experts().size());
      }
    }
    long partsAt = (layout.bytes() + 15) / 16 * 16;
    long rows = (long) blocks(maxRows, Products.WIDE) * Products.WIDE;
    long listsAt = (partsAt + rows * parts + 15) / 16 * 16;
    return new Memory(offsets, partsAt, listsAt, listsAt + lists);
  }

  /** Whether a value outlives the forward, in a block of its own. */
  private static boolean isResult(Graph graph, Value v) {
    return v.equals(graph.logits()) || graph.hidden().equals(Optional.of(v));
  }

  private long at(Value v) {
    if (isResult(graph, v)) {
      return v.equals(graph.logits()) ? logits : hidden;
    }
    return scratch + memory.offsets().get(v);
  }

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
    final StringBuilder ptx = new StringBuilder(PtxKernel.header());
    long weightBytes;

    /** What the parts of activations in memory are of. */
    String split = "";

    /** The routing that the lists in memory are of. */
    Optional<Value> listed = Optional.empty();

    Run(Control c, KvCache.Type type) {
      this.c = c;
      this.type = type;
      emit = new Emitter(c);
      products = new Products(c);
    }

    void launch(Op op, String kind, PtxKernel kernel, int gridX, int gridY, long... addresses) {
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
      for (long a : addresses) {
        parameters.add(a);
      }
      if (parameters.size() != kernel.parameters()) {
        throw new IllegalStateException(
            kind + ": expected parameters=" + kernel.parameters() + " actual=" + parameters.size());
      }
      launches.add(new Launch(name, kernel.threads(), gridX, gridY, parameters));
      long bytes = 0;
      long flops = 0;
      if (op instanceof Op.Linear l && !(l.weight() instanceof LinearOp.Dense)) {
        bytes = l.weight().bytes();
        flops = 2 * LinearOp.storedElements(l.weight());
      } else if (op instanceof Op.ExpertLinear x
          && x.output().isPresent()
          && !kind.equals("list")) {
        Tensor w = x.experts().getFirst();
        TensorType stored = DeviceWeights.plainType(w);
        // At most: rows may share experts.
        long read = Math.min(x.experts().size(), (long) c.rows() * x.used());
        bytes = read * (w.elements() / stored.blockSize() * stored.blockBytes());
        flops = 2 * w.elements() * x.used() * c.rows();
      } else if (op instanceof Op.Linear l) {
        Tensor w = DeviceWeights.dense(l);
        bytes = DeviceWeights.packed(w).map(PackedMatrix::bytes).orElse(4 * w.elements());
        flops = 2 * w.elements();
      }
      weightBytes += bytes;
      steps.add(
          new Plan.Step(
              op.output().map(Value::name).orElse(kind),
              name,
              1,
              op.inputs().stream()
                  .filter(memory.offsets()::containsKey)
                  .map(memory.offsets()::get)
                  .toList(),
              op.output().filter(memory.offsets()::containsKey).map(memory.offsets()::get).stream()
                  .toList(),
              bytes,
              flops));
    }

    void element(Op op, String kind, PtxKernel kernel, int width, long... addresses) {
      launch(op, kind, kernel, blocks(width, Emitter.THREADS), c.rows(), addresses);
    }
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
    for (Op op : graph.ops()) {
      lower(run, op);
    }
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
    Plan plan = new Plan(graph.name(), "cuda", c.rows(), memory.bytes(), linearBytes, run.steps);
    return new Program(run.ptx.toString(), List.copyOf(run.launches), plan);
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
        SparseKernels.Layout layout = SparseKernels.Layout.of(w.matrix());
        PtxKernel k = new SparseKernels(e, run.c).sparse(o, layout);
        unstored(run, o, "sparse_" + w.matrix().kind(), k, w.matrix());
      }
      case Op.Linear o when o.weight() instanceof LinearOp.BlockDiagonal w -> {
        TensorType t = DeviceWeights.plainType(w.blocks());
        PtxKernel k = new SparseKernels(e, run.c).blockDiagonal(o, w.blocks(), t);
        unstored(run, o, "block_diagonal_" + t, k, w.blocks());
      }
      case Op.Linear o -> linear(run, o);
      case Op.Adapt o -> throw new IllegalStateException("no adapters: " + o);
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
        int before = kvBefore(run.type, o.spec().layer());
        int k = o.key().width();
        int v = o.value().width();
        run.element(op, "kv_store", e.kvStore(run.type, k, before), k, at(o.key()));
        run.element(
            op,
            "kv_store",
            e.kvStore(run.type, v, before + Emitter.kvBytes(run.type, k)),
            v,
            at(o.value()));
      }
      case Op.Attention o ->
          run.launch(
              op,
              "attention_" + run.type,
              e.attention(
                  o.spec(),
                  run.type,
                  windows.indexOf(o.spec().window()),
                  kvBefore(run.type, o.spec().layer()),
                  o.gate(),
                  o.query().rows()),
              o.spec().heads(),
              rows,
              at(o.query()),
              at(o.out()));
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
      case Op.Gather o ->
          run.element(
              op,
              "gather",
              e.gather(o.in().width(), o.out().width(), o.in().rows()),
              o.out().width(),
              at(o.in()),
              weights.address(o.columns()),
              at(o.out()));
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

  private void linear(Run run, Op.Linear o) {
    Tensor w = DeviceWeights.dense(o);
    Optional<PackedMatrix> packed = DeviceWeights.packed(w);
    int rows = run.c.rows();
    boolean bias = o.bias().isPresent();
    Value.Rows kind = o.in().rows();
    int in = o.in().width();
    int out = o.out().width();
    if (packed.isEmpty()) {
      PtxKernel k = run.emit.linear(TensorType.F32, in, out, bias, o.gate(), kind);
      int across = blocks(out, Emitter.WARPS);
      int down = blocks(rows, Math.min(Emitter.TILE, rows));
      run.launch(o, "linear_F32", k, across, down, parameters(o, w, at(o.in())));
      return;
    }
    PackedMatrix m = packed.get();
    long parts = scratch + memory.parts();
    String halves = Products.parts(m.type());
    String split = o.in().id() + " " + halves;
    if (!run.split.equals(split)) {
      PtxKernel k = run.products.split(in, halves, kind);
      run.launch(new Op.Scale(o.in(), 1, o.in()), "split", k, 1, rows, at(o.in()), parts);
      run.split = split;
    }
    long[] addresses = parameters(o, w, parts);
    if (rows <= Products.FEW) {
      PtxKernel k = run.products.skinny(m, bias, o.gate(), kind);
      int down = blocks(rows, Products.SKINNY);
      run.launch(o, "skinny_" + m.type(), k, m.tiles(), down, addresses);
    } else {
      PtxKernel k = run.products.wide(m, bias, o.gate(), kind);
      int across = blocks(m.tiles(), Products.wideTiles(rows));
      run.launch(o, "wide_" + m.type(), k, across, blocks(rows, Products.WIDE), addresses);
    }
  }

  private long[] parameters(Op.Linear o, Tensor w, long in) {
    return o.bias().isPresent()
        ? new long[] {weights.address(w), in, at(o.out()), weights.address(o.bias().get())}
        : new long[] {weights.address(w), in, at(o.out())};
  }
}
