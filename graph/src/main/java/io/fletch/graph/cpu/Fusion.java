package io.fletch.graph.cpu;

import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.graph.Value;
import io.fletch.graph.cpu.Kernels.ActivationFormat;
import io.fletch.graph.support.EffectiveGates;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.function.Function;

/**
 * Pass: groups the ops of a graph into sections, each run by all workers without a barrier inside.
 *
 * <p>There are three kinds. Matrix products that read the same input form one section (query, key
 * and value; gate and up), and element-wise ops on their results are done range by range right
 * after the product (bias, activation, residual). Everything that works on a row by itself between
 * two products forms one section: normalisation, rotation, storing keys and values, and the
 * conversion of activations that the next product wants. Attention is a section of its own, because
 * a row must not attend before all rows have stored.
 *
 * <p>Values are defined once. Ops have no other effects than KvStore, which keeps its order with
 * Attention, and deciding about gates, before which no op moves that obeys one of these; so moving
 * a product up to the first one with the same input changes nothing.
 */
final class Fusion {
  /** Ops run together between two barriers. */
  sealed interface Section {}

  /** Steps on each row by itself. */
  record RowWise(Value.Rows rows, List<RowStep> steps) implements Section {}

  /** Products of one input with several matrices. */
  record Projection(Value in, List<Cluster> clusters) implements Section {}

  /** Products of one input with matrices of the experts that each row is routed to. */
  record Experts(Value in, Value routing, List<Op.ExpertLinear> ops) implements Section {}

  /** Attention of all rows. */
  record Attend(Op.Attention op) implements Section {}

  /** One step of a row-wise section. */
  sealed interface RowStep {}

  /** A graph op. */
  record Compute(Op op) implements RowStep {}

  /**
   * Conversion of a value into the form that a product wants, in {@code parts} equal parts, each as
   * if it were a row.
   */
  record Convert(Value in, ActivationFormat format, int parts) implements RowStep {}

  /**
   * Products of equal width whose ranges are computed together, with the element-wise ops that
   * follow on the same range.
   */
  record Cluster(List<Op.Linear> products, List<Op> epilogue) {}

  private final List<Op> ops;
  private final Value logits;
  private final EffectiveGates gates;

  /** Indices of ops that decide about gates. */
  private final List<Integer> deciding = new ArrayList<>();

  private final Function<Op.Linear, ActivationFormat> format;
  private final Function<Op.ExpertLinear, ActivationFormat> expertFormat;
  private final Set<Convert> conversions = new HashSet<>();
  private final boolean[] done;
  private final Set<Value> defined = new HashSet<>();
  private final Set<Value> views = new HashSet<>();
  private final List<Section> sections = new ArrayList<>();

  private Fusion(
      Graph graph,
      Function<Op.Linear, ActivationFormat> format,
      Function<Op.ExpertLinear, ActivationFormat> expertFormat) {
    ops = graph.ops();
    gates = new EffectiveGates(graph);
    for (int i = 0; i < ops.size(); i++) {
      if (!Gate.decidedBy(ops.get(i)).isEmpty()) {
        deciding.add(i);
      }
    }
    logits = graph.logits();
    this.format = format;
    this.expertFormat = expertFormat;
    done = new boolean[ops.size()];
  }

  /** Runs the pass; the functions say in which form a product wants its input. */
  static List<Section> fuse(
      Graph graph,
      Function<Op.Linear, ActivationFormat> format,
      Function<Op.ExpertLinear, ActivationFormat> expertFormat) {
    return new Fusion(graph, format, expertFormat).run();
  }

  /** Whether an op needs no work: a slice is a view of its input, unless it is the result. */
  static boolean isView(Op op, Value logits) {
    return op instanceof Op.Slice slice && !slice.out().equals(logits);
  }

  private List<Section> run() {
    for (int i = 0; i < ops.size(); i++) {
      if (done[i]) {
        continue;
      }
      Op op = ops.get(i);
      if (isView(op, logits)) {
        op.output().ifPresent(views::add);
        finish(i);
      } else if (op instanceof Op.Linear linear) {
        project(i, linear.in());
      } else if (op instanceof Op.ExpertLinear experts) {
        projectExperts(i, experts);
      } else if (op instanceof Op.Attention attention) {
        sections.add(new Attend(attention));
        finish(i);
      } else {
        rowStep(op.output().map(Value::rows).orElse(Value.Rows.BATCH), new Compute(op));
        finish(i);
      }
    }
    return List.copyOf(sections);
  }

  private void finish(int i) {
    done[i] = true;
    ops.get(i).output().ifPresent(defined::add);
  }

  private void rowStep(Value.Rows rows, RowStep step) {
    if (!sections.isEmpty() && sections.getLast() instanceof RowWise last && last.rows() == rows) {
      last.steps().add(step);
      return;
    }
    RowWise section = new RowWise(rows, new ArrayList<>());
    section.steps().add(step);
    sections.add(section);
  }

  /**
   * Whether nothing that still has to run decides about an op's gate. It is asked of ops that are
   * about to move up.
   */
  private boolean isDecided(Op op, int before) {
    if (deciding.isEmpty()) {
      return true;
    }
    Optional<Gate> gate = gates.of(op);
    for (int i : deciding) {
      if (gate.isPresent()
          && i < before
          && !done[i]
          && Gate.decidedBy(ops.get(i)).stream()
              .anyMatch(g -> g.layer() == gate.get().layer() && g.unit() == gate.get().unit())) {
        return false;
      }
    }
    return true;
  }

  private void project(int from, Value in) {
    Map<Value, Cluster> clusterOf = new HashMap<>();
    List<Cluster> clusters = new ArrayList<>();
    Set<ActivationFormat> formats = new HashSet<>();
    for (int i = from; i < ops.size(); i++) {
      if (!done[i]
          && ops.get(i) instanceof Op.Linear linear
          && linear.in().equals(in)
          && isDecided(linear, i)) {
        Cluster cluster = new Cluster(new ArrayList<>(List.of(linear)), new ArrayList<>());
        clusters.add(cluster);
        clusterOf.put(linear.out(), cluster);
        formats.add(format.apply(linear));
        done[i] = true;
      }
    }
    convert(in, formats, 1);
    for (int i = from; i < ops.size(); i++) {
      if (!done[i]
          && isElementWise(ops.get(i))
          && isDecided(ops.get(i), i)
          && absorb(ops.get(i), clusterOf, clusters)) {
        done[i] = true;
      }
    }
    clusterOf.keySet().forEach(defined::add);
    sections.add(new Projection(in, List.copyOf(clusters)));
  }

  private void convert(Value in, Set<ActivationFormat> formats, int parts) {
    for (ActivationFormat f : ActivationFormat.values()) {
      // A view has the row stride of what it is a part of, which a product cannot read.
      if (formats.contains(f) && (f != ActivationFormat.F32 || views.contains(in))) {
        Convert step = new Convert(in, f, f == ActivationFormat.F32 ? 1 : parts);
        if (conversions.add(step)) {
          rowStep(in.rows(), step);
        }
      }
    }
  }

  private void projectExperts(int from, Op.ExpertLinear first) {
    List<Op.ExpertLinear> together = new ArrayList<>();
    Set<ActivationFormat> formats = new HashSet<>();
    for (int i = from; i < ops.size(); i++) {
      if (!done[i]
          && ops.get(i) instanceof Op.ExpertLinear e
          && e.in().equals(first.in())
          && e.routing().equals(first.routing())
          && e.parts() == first.parts()
          && isDecided(e, i)) {
        together.add(e);
        formats.add(expertFormat.apply(e));
        finish(i);
      }
    }
    convert(first.in(), formats, first.parts() ? first.used() : 1);
    sections.add(new Experts(first.in(), first.routing(), List.copyOf(together)));
  }

  private static boolean isElementWise(Op op) {
    return op instanceof Op.Activate
        || op instanceof Op.Adapt
        || op instanceof Op.Add
        || op instanceof Op.Scale
        || op instanceof Op.Affine
        || op instanceof Op.SoftCap;
  }

  /** Adds an op to the clusters that make its inputs, merged into one; false if it must wait. */
  private boolean absorb(Op op, Map<Value, Cluster> clusterOf, List<Cluster> clusters) {
    Optional<Cluster> home = Optional.empty();
    for (Value in : op.inputs()) {
      if (clusterOf.containsKey(in)) {
        home = Optional.of(clusterOf.get(in));
      } else if (!defined.contains(in)) {
        return false;
      }
    }
    if (home.isEmpty()) {
      return false;
    }
    Cluster target = home.get();
    for (Value in : op.inputs()) {
      Cluster other = clusterOf.getOrDefault(in, target);
      if (other != target) {
        target.products().addAll(other.products());
        target.epilogue().addAll(other.epilogue());
        clusters.removeIf(c -> c == other);
        clusterOf.replaceAll((value, cluster) -> cluster == other ? target : cluster);
      }
    }
    target.epilogue().add(op);
    clusterOf.put(op.output().orElseThrow(), target);
    return true;
  }
}
