package io.fletch.graph.cpu;

import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.Value;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.graph.support.MemoryPlanner;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Pass: decides which values share storage, and how long each storage lives, in sections.
 *
 * <p>A slice is a view of its input. An element-wise op or a rotation whose operand nobody reads
 * later writes over it, so the residual stream stays in one place and a row that a gate skips need
 * not be copied. The logits, and what is computed in place into them, lie in the batch.
 *
 * <p>Lifetimes are whole sections because workers are at different rows within one; writing over an
 * operand is allowed when each row (or each range of a cluster) is read and written by one task.
 */
final class Placement {
  /** Memory for rows of values; live from section {@code first} to {@code last}. */
  static final class Storage {
    final long rowBytes;
    boolean logits;
    int first = Integer.MAX_VALUE;
    int last = -1;

    Storage(long rowBytes) {
      this.rowBytes = rowBytes;
    }

    private void touch(int section) {
      first = Math.min(first, section);
      last = Math.max(last, section);
    }

    MemoryPlanner.Buffer buffer(int rows) {
      return new MemoryPlanner.Buffer(rowBytes * rows, first, last);
    }
  }

  /** A value's storage, and where in a row it begins, in floats. */
  record Spot(Storage storage, long from) {}

  private record Converted(Value value, ActivationFormat format, int parts) {}

  /** A table of cosines and sines, and its storage. */
  record Table(RopeSpec spec, Storage storage) {}

  /** Who reads a value: order is that of execution. */
  private record Read(int section, int order, Object cluster, boolean elementWise) {}

  /** Stands for the cluster outside of products. */
  private static final Object NO_CLUSTER = new Object();

  private final Graph graph;
  private final Kernels kernels;
  private final List<Fusion.Section> sections;
  private final Map<Value, Op.Slice> views = new HashMap<>();
  private final Map<Value, List<Read>> reads = new HashMap<>();
  private final Map<Value, Spot> spots = new HashMap<>();
  private final Map<Converted, Storage> converted = new HashMap<>();
  private final List<Table> tables = new ArrayList<>();
  private final List<Storage> storages = new ArrayList<>();
  private int order;

  /** Runs the pass. */
  Placement(Graph graph, List<Fusion.Section> sections, Kernels kernels) {
    this.graph = graph;
    this.kernels = kernels;
    this.sections = sections;
    for (Op op : graph.ops()) {
      if (op instanceof Op.Slice slice && Fusion.isView(op, graph.logits())) {
        views.put(slice.out(), slice);
      }
    }
    walk(this::collectReads);
    walk(this::place);
  }

  /** Floats from row to row of a value with its own storage: whole cache lines. */
  static long stride(int width) {
    return (width + 15L) & -16L;
  }

  /** Where a value lies. */
  Spot spot(Value value) {
    Op.Slice view = views.get(value);
    if (view == null) {
      return spots.get(value);
    }
    Spot whole = spot(view.in());
    return new Spot(whole.storage(), whole.from() + view.from());
  }

  /** Where the converted form of a value lies. */
  Storage converted(Value value, ActivationFormat format) {
    return converted(value, format, 1);
  }

  /** Where the form of a value lies that was converted in parts. */
  Storage converted(Value value, ActivationFormat format, int parts) {
    return converted.get(new Converted(value, format, parts));
  }

  /** Whether a value was converted for products that read a format. */
  boolean isConverted(Value value, ActivationFormat format) {
    return isConverted(value, format, 1);
  }

  /** Whether a value was converted in parts. */
  boolean isConverted(Value value, ActivationFormat format, int parts) {
    return converted.containsKey(new Converted(value, format, parts));
  }

  /** The tables that rotations read. */
  List<Table> tables() {
    return List.copyOf(tables);
  }

  /** The table of a rotation. */
  Storage table(RopeSpec spec) {
    for (Table t : tables) {
      if (sameAngles(t.spec(), spec)) {
        return t.storage();
      }
    }
    throw new IllegalStateException("no table for " + spec);
  }

  private static boolean sameAngles(RopeSpec a, RopeSpec b) {
    return Arrays.equals(a.inverseFrequency(), b.inverseFrequency())
        && a.magnitude() == b.magnitude();
  }

  /** All storages but those in the batch, in a fixed order. */
  List<Storage> scratch() {
    return storages.stream().filter(s -> !s.logits).toList();
  }

  // The walk visits every op and conversion in the order of execution.

  private interface Visitor {
    void visit(int section, Object cluster, Fusion.RowStep step);
  }

  private void walk(Visitor visitor) {
    order = 0;
    for (int s = 0; s < sections.size(); s++) {
      switch (sections.get(s)) {
        case Fusion.RowWise r -> {
          for (Fusion.RowStep step : r.steps()) {
            visit(visitor, s, NO_CLUSTER, step);
          }
        }
        case Fusion.Attend a -> visit(visitor, s, NO_CLUSTER, new Fusion.Compute(a.op()));
        case Fusion.Experts e -> {
          for (Op op : e.ops()) {
            visit(visitor, s, e, new Fusion.Compute(op));
          }
        }
        case Fusion.Projection p -> {
          for (Fusion.Cluster c : p.clusters()) {
            for (Op op : c.products()) {
              visit(visitor, s, c, new Fusion.Compute(op));
            }
            for (Op op : c.epilogue()) {
              visit(visitor, s, c, new Fusion.Compute(op));
            }
          }
        }
      }
    }
  }

  private void visit(Visitor visitor, int section, Object cluster, Fusion.RowStep step) {
    visitor.visit(section, cluster, step);
    order++;
  }

  private Value root(Value value) {
    Op.Slice view = views.get(value);
    return view == null ? value : root(view.in());
  }

  private void collectReads(int section, Object cluster, Fusion.RowStep step) {
    List<Value> inputs =
        switch (step) {
          case Fusion.Convert c -> List.of(c.in());
          case Fusion.Compute c -> c.op().inputs();
        };
    boolean elementWise =
        step instanceof Fusion.Compute c && !(c.op() instanceof Op.Linear) && cluster != NO_CLUSTER;
    for (Value in : inputs) {
      reads
          .computeIfAbsent(root(in), v -> new ArrayList<>())
          .add(new Read(section, order, cluster, elementWise));
    }
  }

  private void place(int section, Object cluster, Fusion.RowStep step) {
    switch (step) {
      case Fusion.Convert c -> {
        spot(c.in()).storage().touch(section);
        int part = c.in().width() / c.parts();
        Storage to = storage(c.parts() * kernels.activationBytes(c.format(), part));
        to.touch(section);
        converted.put(new Converted(c.in(), c.format(), c.parts()), to);
      }
      case Fusion.Compute c -> place(section, cluster, c.op());
    }
  }

  private void place(int section, Object cluster, Op op) {
    for (Value in : op.inputs()) {
      spot(in).storage().touch(section);
    }
    if (op instanceof Op.Linear linear) {
      for (ActivationFormat f : ActivationFormat.values()) {
        if (isConverted(linear.in(), f)) {
          converted(linear.in(), f).touch(section);
        }
      }
    }
    if (op instanceof Op.ExpertLinear experts) {
      for (ActivationFormat f : ActivationFormat.values()) {
        for (int parts : new int[] {1, experts.used()}) {
          if (isConverted(experts.in(), f, parts)) {
            converted(experts.in(), f, parts).touch(section);
          }
        }
      }
    }
    if (op instanceof Op.Rope rope) {
      useTable(rope.spec(), section);
    }
    op.output().ifPresent(out -> placeOutput(section, cluster, op, out));
  }

  private void useTable(RopeSpec spec, int section) {
    if (tables.stream().noneMatch(t -> sameAngles(t.spec(), spec))) {
      Storage table = storage(stride(2 * spec.inverseFrequency().length) * Float.BYTES);
      table.touch(0);
      tables.add(new Table(spec, table));
    }
    table(spec).touch(section);
  }

  private void placeOutput(int section, Object cluster, Op op, Value out) {
    Storage home = null;
    for (Value operand : overwritable(op)) {
      if (home == null && mayOverwrite(operand, out, section, cluster)) {
        home = spots.get(operand).storage();
      }
    }
    if (home == null) {
      home = storage(stride(out.width()) * Float.BYTES);
    }
    home.logits |= out.equals(graph.logits());
    home.touch(section);
    spots.put(out, new Spot(home, 0));
  }

  private static List<Value> overwritable(Op op) {
    return switch (op) {
      case Op.Add o -> List.of(o.residual());
      case Op.Adapt o -> List.of(o.base());
      case Op.Scale o -> List.of(o.in());
      case Op.Affine o -> List.of(o.in());
      case Op.SoftCap o -> List.of(o.in());
      case Op.Activate o -> List.of(o.up());
      case Op.Rope o -> List.of(o.in());
      default -> List.of();
    };
  }

  private boolean mayOverwrite(Value operand, Value out, int section, Object cluster) {
    if (views.containsKey(operand)
        || views.values().stream().anyMatch(v -> root(v.out()).equals(operand))
        || operand.equals(graph.logits())
        || operand.width() != out.width()
        || operand.rows() != out.rows()) {
      return false;
    }
    for (Read read : reads.get(operand)) {
      boolean sameTask = cluster == NO_CLUSTER || read.elementWise() && read.cluster() == cluster;
      if (read.order() > order || read.section() == section && !sameTask) {
        return false;
      }
    }
    return true;
  }

  private Storage storage(long rowBytes) {
    Storage s = new Storage(rowBytes);
    storages.add(s);
    return s;
  }
}
