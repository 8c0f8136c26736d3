package io.fletch.graph.support;

import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.graph.Value;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * Pass: which gate each op may obey. An op without a gate of its own whose result is only read
 * under one gate is not needed for a row that this gate skips (the norm before a feed-forward unit,
 * the rotation of the queries). Immutable.
 */
public final class EffectiveGates {
  private final Map<Op, Optional<Gate>> gates = new IdentityHashMap<>();
  private final Map<Op, Boolean> readWhenSkipped = new IdentityHashMap<>();

  /** Runs the pass. */
  public EffectiveGates(Graph graph) {
    Map<Value, List<Op>> readers = new HashMap<>();
    for (Op op : graph.ops()) {
      for (Value in : op.inputs()) {
        readers.computeIfAbsent(in, v -> new ArrayList<>()).add(op);
      }
    }
    for (Op op : graph.ops().reversed()) {
      Optional<Gate> declared = Gate.of(op);
      Optional<Gate> read = readUnder(graph, op, readers);
      gates.put(op, declared.isPresent() ? declared : read);
      readWhenSkipped.put(op, declared.isPresent() && !declared.equals(read));
    }
  }

  /** The one gate under which all readers of an op's result read it, if there is one. */
  private Optional<Gate> readUnder(Graph graph, Op op, Map<Value, List<Op>> readers) {
    // A row of KvStore is needed by other rows, one of SelectRows is counted differently.
    if (op.output().isEmpty() || op instanceof Op.SelectRows) {
      return Optional.empty();
    }
    Value out = op.output().get();
    List<Op> all = readers.getOrDefault(out, List.of());
    if (all.isEmpty() || out.equals(graph.logits())) {
      return Optional.empty();
    }
    Optional<Gate> gate = readUnder(all.getFirst(), out);
    for (Op reader : all) {
      if (!readUnder(reader, out).equals(gate)) {
        return Optional.empty();
      }
    }
    return gate;
  }

  private Optional<Gate> readUnder(Op reader, Value value) {
    boolean keepsResidual =
        reader instanceof Op.Add add && add.residual().equals(value) && add.gate().isPresent()
            || reader instanceof Op.Replace r && r.residual().equals(value);
    return keepsResidual ? Optional.empty() : gates.get(reader);
  }

  /** The gate whose skip lets the op do nothing for a row. */
  public Optional<Gate> of(Op op) {
    return gates.get(op);
  }

  /**
   * Whether somebody reads the result of a row that the op's own gate skipped, so that it must hold
   * what the op promises for it (zero, or the residual).
   */
  public boolean readWhenSkipped(Op op) {
    return readWhenSkipped.get(op);
  }
}
