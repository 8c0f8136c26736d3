package io.fletch.graph;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/**
 * Pass: gives units of a graph stand-ins and routers (specs autoregressive 3). Before the first op
 * of a unit that a gate can spare, the router reads the unit's input, or the residual stream, and a
 * {@link Op.RouteUnit} decides; after the unit's residual add, the forecast is added for rows whose
 * gate says {@link Gate#SUBSTITUTE}. Keys and values are of no unit: they are stored whatever is
 * decided.
 */
public final class StandInPass {
  private final Graph graph;
  private final Map<Value, Op> producers = new HashMap<>();
  private final List<Op> ops = new ArrayList<>();
  private int next;

  private StandInPass(Graph graph) {
    this.graph = graph;
    for (Op op : graph.ops()) {
      op.output()
          .ifPresent(v -> {
            producers.put(v, op);
            next = Math.max(next, v.id() + 1);
          });
    }
  }

  /**
   * Runs the pass.
   *
   * @throws IllegalArgumentException if a unit is not in the graph, is named twice, or is of
   *     another width
   */
  public static Graph apply(Graph graph, List<StandIn> standIns) {
    return new StandInPass(graph).run(standIns);
  }

  /** The input of a unit, after its norm: what a forecaster and a router of it read. */
  public static Value input(Graph graph, Gate unit) {
    StandInPass pass = new StandInPass(graph);
    return pass.input(unit);
  }

  /** Where a unit is added to the residual stream: its branch is what a forecaster forecasts. */
  public static Op.Add add(Graph graph, Gate unit) {
    return graph.ops().stream()
        .filter(op -> op instanceof Op.Add a && a.gate().equals(Optional.of(unit)))
        .map(Op.Add.class::cast)
        .findFirst()
        .orElseThrow(() -> new IllegalArgumentException("no such unit: " + unit));
  }

  /** The units of a graph that can have stand-ins, in order. */
  public static List<Gate> units(Graph graph) {
    return graph.ops().stream()
        .filter(op -> op instanceof Op.Add a && a.gate().isPresent())
        .map(op -> ((Op.Add) op).gate().orElseThrow())
        .filter(g -> g.branch() == Gate.Branch.UNIT)
        .distinct()
        .toList();
  }

  private Graph run(List<StandIn> standIns) {
    Map<Gate, StandIn> wanted = new HashMap<>();
    Set<Gate> decided = new HashSet<>();
    for (StandIn s : standIns) {
      Value in = input(s.unit());
      if (in.width() != s.width()) {
        throw new IllegalArgumentException(
            s.unit() + ": width: expected=" + in.width() + " actual=" + s.width());
      }
      if (wanted.put(s.unit(), s) != null) {
        throw new IllegalArgumentException("named twice: " + s.unit());
      }
    }
    for (Op op : graph.ops()) {
      Optional<Gate> gate = Gate.of(op);
      StandIn s = gate.map(wanted::get).orElse(null);
      if (s == null) {
        ops.add(op);
        continue;
      }
      if (decided.add(s.unit())) {
        boolean normed = s.routerInput() == StandIn.RouterInput.NORMED;
        route(s, normed ? input(s.unit()) : add(graph, s.unit()).residual());
      }
      if (op instanceof Op.Add add) {
        Value sum = value(add.out().name() + ".unit", add.out());
        ops.add(new Op.Add(add.residual(), add.branch(), add.scale(), add.gate(), sum));
        Value forecast = forecast(s, input(s.unit()));
        ops.add(new Op.Add(sum, forecast, add.scale(), Optional.of(s.unit().standIn()), add.out()));
      } else {
        ops.add(op);
      }
    }
    return new Graph(
        graph.name(), ops, graph.logits(), graph.hidden(), graph.vocabulary(), graph.kvLayers());
  }

  private Value value(String name, Value like) {
    return new Value(next++, like.width(), like.rows(), name);
  }

  private Value linear(String name, Value in, StandIn.Layer layer, Optional<Gate> gate) {
    int out = Math.toIntExact(layer.weight().out());
    Value y = new Value(next++, out, in.rows(), name);
    ops.add(new Op.Linear(in, layer.weight(), Optional.of(layer.bias()), gate, y));
    return y;
  }

  private Value activate(String name, Activation activation, Value x, Optional<Gate> gate) {
    Value y = value(name, x);
    ops.add(new Op.Activate(activation, Optional.empty(), x, gate, y));
    return y;
  }

  private static String name(StandIn s) {
    return "blk." + s.unit().layer() + "." + (s.unit().unit() == Gate.Unit.FFN ? "ffn" : "attn");
  }

  private void route(StandIn s, Value h) {
    Value x = h;
    if (s.hidden().isPresent()) {
      x = linear(name(s) + ".router", h, s.hidden().get(), Optional.empty());
      x = activate(name(s) + ".router_act", Activation.RELU, x, Optional.empty());
    }
    Value z = linear(name(s) + ".router_scores", x, s.output(), Optional.empty());
    ops.add(new Op.RouteUnit(z, s.unit()));
  }

  private Value forecast(StandIn s, Value h) {
    Optional<Gate> gate = Optional.of(s.unit().standIn());
    Value x = linear(name(s) + ".forecast_down", h, s.down(), gate);
    if (s.activation().isPresent()) {
      x = activate(name(s) + ".forecast_act", s.activation().get(), x, gate);
    }
    return linear(name(s) + ".forecast", x, s.up(), gate);
  }

  private Value input(Gate unit) {
    Value branch = add(graph, unit).branch();
    Set<Value> seen = new HashSet<>();
    List<Value> inputs = new ArrayList<>();
    collect(branch, seen, inputs);
    if (inputs.isEmpty()) {
      throw new IllegalArgumentException("no input found: " + unit);
    }
    return inputs.getFirst();
  }

  /** Goes back to the first products of a unit; attention leads to its query. */
  private void collect(Value value, Set<Value> seen, List<Value> inputs) {
    if (!seen.add(value)) {
      return;
    }
    Op op = producers.get(value);
    boolean product = op instanceof Op.Linear || op instanceof Op.ExpertLinear;
    Value in = op.inputs().isEmpty() ? value : op.inputs().getFirst();
    if (product && isNormedResidual(in)) {
      inputs.add(in);
      return;
    }
    op.inputs().forEach(v -> collect(v, seen, inputs));
  }

  /** A norm of the residual stream (not one of heads), or the stream itself. */
  private boolean isNormedResidual(Value v) {
    Op op = producers.get(v);
    return switch (op) {
      case Op.RmsNorm n -> n.groups() == 1 && isResidual(n.in());
      case Op.LayerNorm n -> isResidual(n.in());
      case Op.Scale s -> isNormedResidual(s.in());
      default -> isResidual(v);
    };
  }

  private boolean isResidual(Value v) {
    Op op = producers.get(v);
    return switch (op) {
      case Op.Embedding e -> true;
      case Op.Add a -> a.gate().isPresent();
      case Op.Replace r -> true;
      case Op.Scale s -> isResidual(s.in());
      case Op.RmsNorm n -> n.groups() == 1 && isResidual(n.in());
      case Op.LayerNorm n -> isResidual(n.in());
      default -> false;
    };
  }
}
