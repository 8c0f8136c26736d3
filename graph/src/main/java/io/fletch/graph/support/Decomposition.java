package io.fletch.graph.support;

import io.fletch.graph.Activation;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.graph.Value;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * Pass: replaces products with composed matrices ({@link LinearOp.LowRank}, {@link LinearOp.Sum},
 * {@link LinearOp.Chain}, {@link LinearOp.Columns}) by products with stored ones and ops between
 * them, so that a backend needs kernels only for {@link LinearOp.Dense}, {@link LinearOp.Sparse}
 * and {@link LinearOp.BlockDiagonal}. Results, gates and names of the values that were there stay
 * as they are. A graph without composed matrices is returned as it is.
 *
 * <p>The parts of a product obey its gate: the rows that it skips are zero in every part, and so in
 * the result. A bias goes to one part that counts once; where all parts have factors, the factor of
 * one is applied to the input of its last matrix instead, which is the same by linearity.
 */
public final class Decomposition {
  private final List<Op> ops = new ArrayList<>();
  private int next;

  private Decomposition(Graph graph) {
    for (Op op : graph.ops()) {
      op.output().ifPresent(v -> next = Math.max(next, v.id() + 1));
    }
  }

  /** Runs the pass. */
  public static Graph of(Graph graph) {
    boolean needed =
        graph.ops().stream().anyMatch(op -> op instanceof Op.Linear l && !isStored(l.weight()));
    if (!needed) {
      return graph;
    }
    Decomposition d = new Decomposition(graph);
    for (Op op : graph.ops()) {
      if (op instanceof Op.Linear l) {
        d.linear(l.in(), l.weight(), l.bias(), l.gate(), l.out());
      } else {
        d.ops.add(op);
      }
    }
    return new Graph(
        graph.name(), d.ops, graph.logits(), graph.hidden(), graph.vocabulary(), graph.kvLayers());
  }

  /** Whether a kernel does the product in one go. */
  public static boolean isStored(LinearOp op) {
    return switch (op) {
      case LinearOp.Dense d -> true;
      case LinearOp.Sparse s -> true;
      case LinearOp.BlockDiagonal b -> true;
      case LinearOp.LowRank l -> false;
      case LinearOp.Sum s -> false;
      case LinearOp.Chain c -> false;
      case LinearOp.Columns c -> false;
    };
  }

  private Value value(String name, long width, Value.Rows rows) {
    return new Value(next++, Math.toIntExact(width), rows, name);
  }

  private void linear(
      Value in, LinearOp weight, Optional<Tensor> bias, Optional<Gate> gate, Value out) {
    switch (weight) {
      case LinearOp.Dense d -> ops.add(new Op.Linear(in, d, bias, gate, out));
      case LinearOp.Sparse s -> ops.add(new Op.Linear(in, s, bias, gate, out));
      case LinearOp.BlockDiagonal b -> ops.add(new Op.Linear(in, b, bias, gate, out));
      case LinearOp.LowRank l -> {
        Value h = value(out.name() + ".v", l.rank(), out.rows());
        linear(in, l.v(), Optional.empty(), gate, h);
        if (l.inner() == LinearOp.Inner.SILU) {
          Value a = value(out.name() + ".silu", l.rank(), out.rows());
          ops.add(new Op.Activate(Activation.SILU, Optional.empty(), h, gate, a));
          h = a;
        }
        linear(h, l.u(), bias, gate, out);
      }
      case LinearOp.Chain c -> {
        Value x = in;
        int last = c.ops().size() - 1;
        for (int i = 0; i < last; i++) {
          LinearOp part = c.ops().get(i);
          Value y = value(out.name() + ".c" + i, part.out(), out.rows());
          linear(x, part, Optional.empty(), gate, y);
          x = y;
        }
        linear(x, c.ops().get(last), bias, gate, out);
      }
      case LinearOp.Columns c -> {
        Value x = value(out.name() + ".columns", c.columns().elements(), out.rows());
        ops.add(new Op.Gather(in, Optional.empty(), c.columns(), x));
        linear(x, c.weight(), bias, gate, out);
      }
      case LinearOp.Sum s -> sum(in, s, bias, gate, out);
    }
  }

  private void sum(
      Value in, LinearOp.Sum s, Optional<Tensor> bias, Optional<Gate> gate, Value out) {
    List<LinearOp.Term> terms = new ArrayList<>(s.terms());
    // One that counts once comes first, where it needs no scaling.
    for (int i = 0; i < terms.size(); i++) {
      if (terms.get(i).coefficient() == 1) {
        terms.addFirst(terms.remove(i));
        break;
      }
    }
    LinearOp.Term head = terms.getFirst();
    Value total = terms.size() == 1 ? out : value(out.name() + ".s0", out.width(), out.rows());
    scaled(in, head.op(), head.coefficient(), bias, gate, total);
    for (int i = 1; i < terms.size(); i++) {
      LinearOp.Term t = terms.get(i);
      Value branch = value(out.name() + ".t" + i, out.width(), out.rows());
      linear(in, t.op(), Optional.empty(), gate, branch);
      boolean last = i == terms.size() - 1;
      Value next = last ? out : value(out.name() + ".s" + i, out.width(), out.rows());
      ops.add(new Op.Add(total, branch, t.coefficient(), gate, next));
      total = next;
    }
  }

  /** {@code out = factor * W x + bias}: the input of the last stored matrix is scaled. */
  private void scaled(
      Value in,
      LinearOp weight,
      float factor,
      Optional<Tensor> bias,
      Optional<Gate> gate,
      Value out) {
    if (factor == 1) {
      linear(in, weight, bias, gate, out);
      return;
    }
    switch (weight) {
      case LinearOp.LowRank l -> {
        // What is between the factors need not be linear, so the inner vector is scaled after it.
        Value h = value(out.name() + ".v", l.rank(), out.rows());
        linear(in, l.v(), Optional.empty(), gate, h);
        if (l.inner() == LinearOp.Inner.SILU) {
          Value a = value(out.name() + ".silu", l.rank(), out.rows());
          ops.add(new Op.Activate(Activation.SILU, Optional.empty(), h, gate, a));
          h = a;
        }
        scaled(h, l.u(), factor, bias, gate, out);
      }
      case LinearOp.Chain c -> {
        int last = c.ops().size() - 1;
        Value x = in;
        if (last > 0) {
          x = value(out.name() + ".c", c.ops().get(last).in(), out.rows());
          linear(in, new LinearOp.Chain(c.ops().subList(0, last)), Optional.empty(), gate, x);
        }
        scaled(x, c.ops().get(last), factor, bias, gate, out);
      }
      case LinearOp.Columns c -> {
        Value x = value(out.name() + ".columns", c.columns().elements(), out.rows());
        ops.add(new Op.Gather(in, Optional.empty(), c.columns(), x));
        scaled(x, c.weight(), factor, bias, gate, out);
      }
      case LinearOp.Sum s -> {
        List<LinearOp.Term> terms =
            s.terms().stream()
                .map(t -> new LinearOp.Term(factor * t.coefficient(), t.op()))
                .toList();
        sum(in, new LinearOp.Sum(terms), bias, gate, out);
      }
      default -> {
        Value x = value(out.name() + ".scaled", in.width(), in.rows());
        ops.add(new Op.Scale(in, factor, x));
        linear(x, weight, bias, gate, out);
      }
    }
  }
}
