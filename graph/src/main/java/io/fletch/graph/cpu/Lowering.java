package io.fletch.graph.cpu;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
import io.fletch.graph.Op;
import io.fletch.graph.Plan;
import io.fletch.graph.Value;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.graph.support.EffectiveGates;
import io.fletch.graph.support.MemoryPlanner;
import io.fletch.quant.Tensor;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Function;

/**
 * Turns a graph into stages for each row bucket: fusion, gates and placement are done once, memory
 * is planned per bucket. Used at compile time by one thread.
 */
final class Lowering {
  /** A plan and the stages that carry it out. */
  record Program(Plan plan, WorkerPool.Stage<Frame>[] stages) {}

  private final Graph graph;
  private final Kernels kernels;
  private final Frame frame;
  private final int threads;
  private final Function<Op.Linear, PreparedWeight> weights;
  private final Function<Tensor, PreparedWeight> experts;
  private final Function<Tensor, MemorySegment> floats;
  private final AttentionMemory attentionMemory;
  private final List<Fusion.Section> sections;
  private final EffectiveGates gates;
  private final Placement placement;

  /** The products that rows may have low-rank terms for. */
  private final List<Value> targets;

  // Of the bucket at hand.
  private Map<Placement.Storage, Long> offsets = Map.of();

  /**
   * Runs the passes.
   *
   * @param floats gives small tensors (norm weights, biases) as float32
   * @param targets what {@link Op.Adapt} ops of the graph define, as adapters count them
   */
  Lowering(
      Graph graph,
      Frame frame,
      int threads,
      Function<Op.Linear, PreparedWeight> weights,
      Function<Tensor, PreparedWeight> experts,
      Function<Tensor, MemorySegment> floats,
      AttentionMemory attentionMemory,
      List<Value> targets) {
    this.graph = graph;
    this.targets = List.copyOf(targets);
    this.frame = frame;
    this.threads = threads;
    this.weights = weights;
    this.experts = experts;
    this.floats = floats;
    this.attentionMemory = attentionMemory;
    kernels = frame.kernels;
    sections =
        Fusion.fuse(
            graph,
            op -> weights.apply(op).activation(),
            op -> experts.apply(op.experts().getFirst()).activation());
    gates = new EffectiveGates(graph);
    placement = new Placement(graph, sections, kernels);
    graph
        .hidden()
        .filter(h -> !isRowWise(h))
        .ifPresent(h -> {
          throw new GraphException("hidden states must come out of a row-wise op: " + h.name());
        });
  }

  private boolean isRowWise(Value value) {
    return sections.stream()
        .anyMatch(s ->
            s instanceof Fusion.RowWise r
                && r.steps().stream()
                    .anyMatch(step ->
                        step instanceof Fusion.Compute c
                            && c.op().output().equals(Optional.of(value))));
  }

  /** Plans for forwards of up to {@code rows} rows. */
  Program lower(int rows) {
    List<Placement.Storage> storages = placement.scratch();
    MemoryPlanner.Layout layout =
        MemoryPlanner.plan(storages.stream().map(s -> s.buffer(rows)).toList());
    offsets = new IdentityHashMap<>();
    for (int i = 0; i < storages.size(); i++) {
      offsets.put(storages.get(i), layout.offsets().get(i));
    }
    List<Plan.Step> steps = new ArrayList<>();
    List<WorkerPool.Stage<Frame>> stages = new ArrayList<>();
    for (int s = 0; s < sections.size(); s++) {
      switch (sections.get(s)) {
        case Fusion.RowWise r -> {
          stages.add(rowWise(r, s == 0, steps));
          BitSet decided = decidedBy(r);
          if (!decided.isEmpty()) {
            stages.add(new RefreshStage(decided));
          }
        }
        case Fusion.Projection p -> {
          List<Op.Adapt> adapted = adapted(p);
          if (!adapted.isEmpty()) {
            stages.add(adapters(adapted));
          }
          stages.add(projection(p, rows, steps));
        }
        case Fusion.Attend a -> stages.add(attention(a.op(), steps));
        case Fusion.Experts e -> stages.add(experts(e, rows, steps));
      }
    }
    long bytes = steps.stream().mapToLong(Plan.Step::weightBytes).sum();
    Plan plan = new Plan(graph.name(), "cpu " + kernels.name(), rows, layout.bytes(), bytes, steps);
    return new Program(plan, array(stages));
  }

  /** The gate bytes that a section may change. */
  private static BitSet decidedBy(Fusion.RowWise section) {
    BitSet decided = new BitSet();
    for (Fusion.RowStep step : section.steps()) {
      if (step instanceof Fusion.Compute c) {
        Gate.decidedBy(c.op()).forEach(g -> decided.set(Frame.gateIndex(g) >> 1));
      }
    }
    return decided;
  }

  @SuppressWarnings({"unchecked", "rawtypes"})
  private static WorkerPool.Stage<Frame>[] array(List<WorkerPool.Stage<Frame>> stages) {
    return stages.toArray(new WorkerPool.Stage[0]);
  }

  private Place place(Value value) {
    Placement.Spot spot = placement.spot(value);
    return place(spot.storage(), spot.from());
  }

  private Place place(Placement.Storage storage, long from) {
    long base = storage.logits ? 0 : offsets.get(storage) / Float.BYTES;
    return new Place(storage.logits, base + from, storage.rowBytes / Float.BYTES);
  }

  /** Byte offset of a value in scratch memory (in the logits of the batch for those). */
  private long offset(Value value) {
    return place(value).offset() * Float.BYTES;
  }

  private int gate(Op op) {
    return gates.of(op).map(Frame::gateIndex).orElse(Frame.UNGATED);
  }

  // Row-wise sections.

  private RowStage rowWise(Fusion.RowWise section, boolean first, List<Plan.Step> plan) {
    List<RowStage.Step> steps = new ArrayList<>();
    List<Long> inputs = new ArrayList<>();
    List<Long> outputs = new ArrayList<>();
    if (first) {
      // A graph begins with an embedding, so the first section is one of batch rows.
      for (Placement.Table t : placement.tables()) {
        steps.add(new RowStage.RopeTable(t.spec(), place(t.storage(), 0)));
        outputs.add(offsets.get(t.storage()));
      }
    }
    String name = "";
    long bytes = 0;
    long flops = 0;
    int ops = 0;
    for (Fusion.RowStep step : section.steps()) {
      switch (step) {
        case Fusion.Convert c -> {
          steps.add(convert(c));
          inputs.add(offset(c.in()));
          outputs.add(offsets.get(placement.converted(c.in(), c.format(), c.parts())));
        }
        case Fusion.Compute c -> {
          Op op = c.op();
          steps.add(compute(op));
          op.output()
              .filter(out -> graph.hidden().equals(Optional.of(out)))
              .ifPresent(out -> steps.add(new RowStage.Keep(place(out), out.width())));
          op.inputs().forEach(in -> inputs.add(offset(in)));
          op.output().ifPresent(out -> outputs.add(offset(out)));
          name = name.isEmpty() ? name(op) : name;
          bytes += op instanceof Op.Embedding e ? e.table().rowBytes() : 0;
          flops += op.inputs().stream().mapToLong(Value::width).sum();
          ops++;
        }
      }
    }
    if (name.isEmpty() && section.steps().getFirst() instanceof Fusion.Convert c) {
      name = c.in().name();
    }
    String kernel = String.join(", ", steps.stream().map(RowStage.Step::toString).toList());
    plan.add(new Plan.Step(name, kernel, ops, inputs, outputs, bytes, flops));
    return new RowStage(section.rows(), steps, threads);
  }

  private static String name(Op op) {
    return switch (op) {
      case Op.KvStore o -> "kv_store." + o.spec().layer();
      case Op.SkipSimilar o -> "skip_similar." + o.unit().layer();
      case Op.RouteUnit o -> "route_unit." + o.target().layer();
      default -> op.output().map(Value::name).orElse("");
    };
  }

  private RowStage.Step convert(Fusion.Convert c) {
    Placement.Storage to = placement.converted(c.in(), c.format(), c.parts());
    int n = c.in().width() / c.parts();
    int gate = convertGate(c.in());
    if (c.format() == ActivationFormat.F32) {
      return new RowStage.Copy("copy", place(c.in()), false, n, place(to, 0), gate);
    }
    return new RowStage.Quantize(
        place(c.in()), c.format(), n, c.parts(), offsets.get(to), to.rowBytes, gate);
  }

  /** The gate under which every product reads a value, if it is one and the same. */
  private int convertGate(Value in) {
    List<Integer> all =
        graph.ops().stream()
            .filter(op ->
                op instanceof Op.Linear l && l.in().equals(in)
                    || op instanceof Op.ExpertLinear e && e.in().equals(in))
            .map(this::gate)
            .distinct()
            .toList();
    return all.size() == 1 ? all.getFirst() : Frame.UNGATED;
  }

  private RowStage.Step compute(Op op) {
    return switch (op) {
      case Op.Embedding o ->
          new RowStage.Embed(o.table(), o.index(), o.scale(), place(o.out()), gate(op));
      case Op.Input o ->
          new RowStage.Input(
              graph.inputWidth(), o.from(), o.out().width(), place(o.out()), gate(op));
      case Op.RmsNorm o ->
          new RowStage.Norm(
              place(o.in()),
              floats.apply(o.weight()),
              o.in().width() / o.groups(),
              o.groups(),
              o.eps(),
              o.outScale(),
              place(o.out()),
              gate(op));
      case Op.Rope o ->
          new RowStage.Rope(
              place(o.in()),
              o.spec(),
              o.heads(),
              o.headDim(),
              place(placement.table(o.spec()), 0),
              place(o.out()),
              gate(op));
      case Op.KvStore o -> {
        AttentionSpec spec = o.spec();
        yield new RowStage.Store(
            place(o.key()),
            place(o.value()),
            spec.layer(),
            spec.kvHeads(),
            spec.keyDim(),
            spec.valueDim());
      }
      case Op.Slice o -> {
        Place in = place(o.in());
        Place part = new Place(in.logits(), in.offset() + o.from(), in.stride());
        yield new RowStage.Copy("slice", part, false, o.out().width(), place(o.out()), gate(op));
      }
      case Op.Gather o ->
          new RowStage.Gather(
              place(o.in()),
              o.in().width(),
              place(o.more().orElse(o.in())),
              o.columns(),
              place(o.out()),
              gate(op));
      case Op.KeepLargest o ->
          new RowStage.KeepLargest(
              place(o.in()), o.n(), o.m(), o.out().width(), place(o.out()), gate(op));
      case Op.Replace o ->
          new RowStage.Replace(
              place(o.residual()), place(o.branch()), o.out().width(), place(o.out()), gate(op));
      case Op.SelectRows o ->
          new RowStage.Copy(
              "select_rows", place(o.in()), true, o.in().width(), place(o.out()), gate(op));
      case Op.Activate o -> new RowStage.Elements(element(op), o.out().width());
      case Op.Add o -> new RowStage.Elements(element(op), o.out().width());
      case Op.Scale o -> new RowStage.Elements(element(op), o.out().width());
      case Op.Affine o -> new RowStage.Elements(element(op), o.out().width());
      case Op.SoftCap o -> new RowStage.Elements(element(op), o.out().width());
      case Op.LayerNorm o ->
          new RowStage.MeanNorm(
              place(o.in()),
              floats.apply(o.weight()),
              o.bias().map(floats).orElse(MemorySegment.NULL),
              o.in().width(),
              o.eps(),
              place(o.out()),
              gate(op));
      case Op.Route o ->
          new RowStage.Route(
              place(o.scores()),
              o.spec(),
              o.bias().map(floats).orElse(MemorySegment.NULL),
              place(o.out()),
              gate(op));
      case Op.Mix o ->
          new RowStage.Mix(
              place(o.in()),
              place(o.routing()),
              o.used(),
              o.out().width(),
              place(o.out()),
              gate(op));
      case Op.SkipSimilar o ->
          new RowStage.SkipSimilar(
              graph.decisions().indexOf(op),
              place(o.before()),
              place(o.after()),
              o.before().width(),
              o.targets().stream().mapToInt(t -> Frame.gateIndex(t) >> 1).toArray(),
              gate(op));
      case Op.RouteUnit o ->
          new RowStage.RouteUnit(
              graph.decisions().indexOf(op), place(o.scores()), Frame.gateIndex(o.target()));
      case Op.Linear o -> throw new IllegalStateException("not row-wise: " + o);
      case Op.Adapt o -> throw new IllegalStateException("not behind its product: " + o);
      case Op.ExpertLinear o -> throw new IllegalStateException("not row-wise: " + o);
      case Op.Attention o -> throw new IllegalStateException("not row-wise: " + o);
    };
  }

  private ElementOp element(Op op) {
    int gate = gate(op);
    boolean read = gates.readWhenSkipped(op);
    return switch (op) {
      case Op.Activate o -> {
        Optional<Value> half = o.gateHalf();
        yield half.isPresent()
            ? new ElementOp.Gated(
                o.activation(), place(half.get()), place(o.up()), place(o.out()), gate, read)
            : new ElementOp.Plain(o.activation(), place(o.up()), place(o.out()), gate, read);
      }
      case Op.Add o ->
          new ElementOp.Add(
              place(o.residual()), place(o.branch()), o.scale(), place(o.out()), gate, read);
      case Op.Scale o -> new ElementOp.Scaled(place(o.in()), o.factor(), place(o.out()), gate);
      case Op.Affine o ->
          new ElementOp.Affine(
              place(o.in()),
              floats.apply(o.factors()),
              o.bias().map(floats).orElse(MemorySegment.NULL),
              place(o.out()),
              gate,
              read);
      case Op.SoftCap o -> new ElementOp.Capped(place(o.in()), o.cap(), place(o.out()), gate);
      default -> throw new IllegalStateException("not element-wise: " + op);
    };
  }

  // Products.

  private ProjectionStage projection(Fusion.Projection section, int rows, List<Plan.Step> plan) {
    List<ProjectionStage.Cluster> clusters = new ArrayList<>();
    List<Op.Adapt> adapted = adapted(section);
    List<String> names = new ArrayList<>();
    List<String> kernelNames = new ArrayList<>();
    List<Long> outputs = new ArrayList<>();
    long bytes = 0;
    long flops = 0;
    int ops = 0;
    for (Fusion.Cluster c : section.clusters()) {
      List<ProjectionStage.Product> products = new ArrayList<>();
      for (Op.Linear op : c.products()) {
        PreparedWeight w = weights.apply(op);
        products.add(product(op, w));
        names.add(op.out().name());
        kernelNames.add(w.kernelName() + (op.bias().isPresent() ? " + bias" : ""));
        outputs.add(offset(op.out()));
        bytes += w.bytes();
        flops += 2 * op.weight().in() * op.weight().out();
      }
      List<ElementOp> epilogue =
          c.epilogue().stream()
              .map(op -> op instanceof Op.Adapt o ? adapt(o, adapted) : element(op))
              .toList();
      for (int i = 0; i < epilogue.size(); i++) {
        kernelNames.add(epilogue.get(i).toString());
        outputs.add(c.epilogue().get(i).output().map(this::offset).orElseThrow());
        flops += c.products().getFirst().out().width();
      }
      ops += c.products().size() + c.epilogue().size();
      clusters.add(new ProjectionStage.Cluster(products, epilogue));
    }
    String name = String.join(" ", names);
    List<Long> inputs = new ArrayList<>();
    for (ActivationFormat f : ActivationFormat.values()) {
      if (placement.isConverted(section.in(), f)) {
        inputs.add(offsets.get(placement.converted(section.in(), f)));
      }
    }
    if (inputs.isEmpty()) {
      inputs.add(offset(section.in()));
    }
    plan.add(
        new Plan.Step(
            name,
            String.join(", ", kernelNames.stream().distinct().toList()),
            ops,
            inputs,
            outputs,
            bytes,
            flops));
    return new ProjectionStage(name, section.in().rows(), clusters, threads, rows);
  }

  /** The ops of a section that add low-rank terms, in the order of their products' numbers. */
  private static List<Op.Adapt> adapted(Fusion.Projection section) {
    return section.clusters().stream()
        .flatMap(c -> c.epilogue().stream())
        .filter(Op.Adapt.class::isInstance)
        .map(Op.Adapt.class::cast)
        .toList();
  }

  private AdapterStage adapters(List<Op.Adapt> ops) {
    frame.adapts(ops.size());
    Op.Adapt first = ops.getFirst();
    return new AdapterStage(
        first.in().rows(),
        ops.stream()
            .map(o ->
                new AdapterStage.Product(targets.indexOf(o.out()), place(o.in()), o.in().width()))
            .toList(),
        first.out().name());
  }

  private ElementOp adapt(Op.Adapt op, List<Op.Adapt> all) {
    return new ElementOp.Adapt(
        op.in().rows(),
        targets.indexOf(op.out()),
        all.indexOf(op),
        place(op.base()),
        op.bias().map(floats).orElse(MemorySegment.NULL),
        place(op.out()),
        gate(op),
        gates.readWhenSkipped(op));
  }

  private ProjectionStage.Product product(Op.Linear op, PreparedWeight w) {
    ActivationFormat format = w.activation();
    long inputOffset = -1;
    if (placement.isConverted(op.in(), format)) {
      inputOffset = offsets.get(placement.converted(op.in(), format));
    }
    int gate = gate(op);
    return new ProjectionStage.Product(
        w,
        op.bias().map(floats).orElse(MemorySegment.NULL),
        place(op.in()),
        inputOffset,
        kernels.activationBytes(format, op.in().width()),
        place(op.out()),
        gate,
        frame.runsOf(gate, op.in().rows()),
        gates.readWhenSkipped(op));
  }

  // Experts.

  private ExpertStage experts(Fusion.Experts section, int rows, List<Plan.Step> plan) {
    List<ExpertStage.Product> products = new ArrayList<>();
    List<Long> outputs = new ArrayList<>();
    List<String> names = new ArrayList<>();
    List<String> kernelNames = new ArrayList<>();
    long bytes = 0;
    long flops = 0;
    for (Op.ExpertLinear op : section.ops()) {
      PreparedWeight[] all = op.experts().stream().map(experts).toArray(PreparedWeight[]::new);
      products.add(expertProduct(op, all));
      outputs.add(offset(op.out()));
      names.add(op.out().name());
      kernelNames.add("experts " + all[0].kernelName());
      bytes += op.used() * all[0].bytes();
      flops += 2L * op.used() * op.experts().getFirst().elements();
    }
    Op.ExpertLinear first = section.ops().getFirst();
    plan.add(
        new Plan.Step(
            String.join(" ", names),
            String.join(", ", kernelNames.stream().distinct().toList()),
            section.ops().size(),
            List.of(offset(section.in()), offset(section.routing())),
            outputs,
            bytes,
            flops));
    return new ExpertStage(first, products, place(section.routing()), gate(first), rows, threads);
  }

  private ExpertStage.Product expertProduct(Op.ExpertLinear op, PreparedWeight[] all) {
    ActivationFormat format = all[0].activation();
    int n = Math.toIntExact(op.experts().getFirst().cols());
    int parts = op.parts() && format != ActivationFormat.F32 ? op.used() : 1;
    long inputOffset = -1;
    long rowBytes = 0;
    if (placement.isConverted(op.in(), format, parts)) {
      Placement.Storage converted = placement.converted(op.in(), format, parts);
      inputOffset = offsets.get(converted);
      rowBytes = converted.rowBytes;
    }
    long partBytes = 0;
    if (op.parts()) {
      partBytes =
          format == ActivationFormat.F32
              ? (long) n * Float.BYTES
              : kernels.activationBytes(format, n);
    }
    return new ExpertStage.Product(
        all, place(op.in()), inputOffset, rowBytes, partBytes, place(op.out()));
  }

  private AttentionStage attention(Op.Attention op, List<Plan.Step> plan) {
    plan.add(
        new Plan.Step(
            op.out().name(),
            "attention " + kernels.name(),
            1,
            List.of(offset(op.query())),
            List.of(offset(op.out())),
            0,
            0));
    return new AttentionStage(
        op.out().name(),
        op.spec(),
        op.query().rows(),
        frame.windowOf(op.spec().window()),
        gate(op),
        gates.readWhenSkipped(op),
        place(op.query()),
        place(op.out()),
        attentionMemory);
  }
}
