package io.fletch.graph;

import io.fletch.graph.Value.Rows;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;

/**
 * An immutable list of {@link Op}s in execution order. Shapes are static: only the number of rows
 * is left open until a plan fixes its bucket.
 *
 * @param name for printing
 * @param ops in execution order; every input is defined before it is read
 * @param logits the value that a forward gives out, of {@link Rows#LOGITS} rows: the logits, or of
 *     an embedding model the hidden states
 * @param hidden another value of {@link Rows#LOGITS} rows that can be read after a forward: what
 *     the output matrix is applied to; empty if nobody may
 * @param vocabulary number of token ids: rows of the embedding
 * @param kvLayers shape of each KV cache layer
 */
public record Graph(
    String name,
    List<Op> ops,
    Value logits,
    Optional<Value> hidden,
    int vocabulary,
    List<AttentionSpec> kvLayers) {
  /** Checks that values are defined once, before use. */
  public Graph {
    ops = List.copyOf(ops);
    kvLayers = List.copyOf(kvLayers);
    Set<Value> defined = new HashSet<>();
    for (Op op : ops) {
      for (Value in : op.inputs()) {
        if (!defined.contains(in)) {
          throw new IllegalArgumentException(
              "value read before it is defined: " + in.name() + " in " + op);
        }
      }
      op.output()
          .ifPresent(v -> {
            if (!defined.add(v)) {
              throw new IllegalArgumentException("value defined twice: " + v.name());
            }
          });
    }
    if (!defined.contains(logits) || logits.rows() != Rows.LOGITS) {
      throw new IllegalArgumentException("logits are not a LOGITS value of the graph: " + logits);
    }
    hidden.ifPresent(h -> {
      if (!defined.contains(h) || h.rows() != Rows.LOGITS || h.equals(logits)) {
        throw new IllegalArgumentException("hidden is not another LOGITS value of the graph: " + h);
      }
    });
  }

  /** Numbers that a row of {@link Batch#input} has; 0 if the graph takes none. */
  public int inputWidth() {
    return ops.stream()
        .mapToInt(op -> op instanceof Op.Input i ? i.from() + i.out().width() : 0)
        .max()
        .orElse(0);
  }

  /** Positions that a row can have: those of the smallest table of learned ones. */
  public int positions() {
    return ops.stream()
        .mapToInt(op ->
            op instanceof Op.Embedding e && e.index() == Op.Embedding.Index.POSITION
                ? Math.toIntExact(e.table().rows())
                : Integer.MAX_VALUE)
        .min()
        .orElse(Integer.MAX_VALUE);
  }

  /**
   * The ops that set gates during a forward ({@link Op.SkipSimilar}, {@link Op.RouteUnit}), in
   * order.
   */
  public List<Op> decisions() {
    return ops.stream()
        .filter(op -> op instanceof Op.SkipSimilar || op instanceof Op.RouteUnit)
        .toList();
  }

  /** Starts a graph. */
  public static Builder builder(String name) {
    return new Builder(name);
  }

  /** Most neighbours of which {@link Op.KeepLargest} keeps some. */
  public static final int MAX_GROUP = 32;

  /** Appends ops; each method returns the value it defines. Used by one thread. */
  public static final class Builder {
    private final String name;
    private final List<Op> ops = new ArrayList<>();
    private final List<AttentionSpec> kvLayers = new ArrayList<>();
    private int next;
    private int vocabulary;

    private Builder(String name) {
      this.name = Objects.requireNonNull(name, "name");
    }

    private Value value(String valueName, long width, Rows rows) {
      return new Value(next++, Math.toIntExact(width), rows, valueName);
    }

    /** Token embedding. */
    public Value embedding(String valueName, Tensor table, float scale) {
      vocabulary = Math.toIntExact(table.rows());
      return embedding(valueName, table, Op.Embedding.Index.TOKEN, scale);
    }

    /** A row of another table by the same token ids. */
    public Value tokens(String valueName, Tensor table, float scale) {
      if (table.rows() != vocabulary) {
        throw new IllegalArgumentException(
            valueName + ": rows expected=" + vocabulary + " actual=" + table.rows());
      }
      return embedding(valueName, table, Op.Embedding.Index.TOKEN, scale);
    }

    /** Learned positions: row {@code p} of the table is added to what is at position {@code p}. */
    public Value positions(String valueName, Tensor table) {
      return embedding(valueName, table, Op.Embedding.Index.POSITION, 1);
    }

    /** The first row of a table, for every row. */
    public Value first(String valueName, Tensor table) {
      return embedding(valueName, table, Op.Embedding.Index.FIRST, 1);
    }

    private Value embedding(String valueName, Tensor table, Op.Embedding.Index index, float scale) {
      Value out = value(valueName, table.cols(), Rows.BATCH);
      ops.add(new Op.Embedding(table, index, scale, out));
      return out;
    }

    /** Numbers of a row from {@code from} on. */
    public Value input(String valueName, int from, int width) {
      Objects.checkFromIndexSize(from, width, Integer.MAX_VALUE);
      Value out = value(valueName, width, Rows.BATCH);
      ops.add(new Op.Input(from, out));
      return out;
    }

    /** RMSNorm; {@code weight} has {@code in.width / groups} elements. */
    public Value rmsNorm(
        String valueName, Value in, Tensor weight, float eps, int groups, float outScale) {
      if (in.width() % groups != 0 || weight.elements() != in.width() / groups) {
        throw new IllegalArgumentException(
            "norm weight does not fit: "
                + weight
                + " for width="
                + in.width()
                + " groups="
                + groups);
      }
      Value out = value(valueName, in.width(), in.rows());
      ops.add(new Op.RmsNorm(in, weight, eps, groups, outScale, out));
      return out;
    }

    /** LayerNorm. */
    public Value layerNorm(
        String valueName, Value in, Tensor weight, Optional<Tensor> bias, float eps) {
      if (weight.elements() != in.width()
          || bias.isPresent() && bias.get().elements() != in.width()) {
        throw new IllegalArgumentException(
            valueName + ": norm does not fit: width=" + in.width() + " weight=" + weight);
      }
      Value out = value(valueName, in.width(), in.rows());
      ops.add(new Op.LayerNorm(in, weight, bias, eps, out));
      return out;
    }

    /** Choice of experts. */
    public Value route(String valueName, Value scores, RouteSpec spec, Optional<Tensor> bias) {
      if (scores.width() != spec.experts()
          || bias.isPresent() && bias.get().elements() != spec.experts()) {
        throw new IllegalArgumentException(
            valueName + ": scores do not fit: width=" + scores.width() + " " + spec);
      }
      Value out = value(valueName, spec.width(), scores.rows());
      ops.add(new Op.Route(scores, spec, bias, out));
      return out;
    }

    /**
     * Products with the chosen experts' matrices, of the whole input or, if {@code parts}, of one
     * part each.
     */
    public Value expertLinear(
        String valueName,
        Value in,
        Value routing,
        RouteSpec spec,
        List<Tensor> experts,
        boolean parts) {
      Tensor first = experts.getFirst();
      for (Tensor t : experts) {
        if (t.rank() != 2
            || t.rows() != first.rows()
            || t.cols() != first.cols()
            || t.type() != first.type()) {
          throw new IllegalArgumentException(
              valueName + ": experts differ: " + first + " and " + t);
        }
      }
      long width = parts ? first.cols() * spec.used() : first.cols();
      if (experts.size() != spec.experts()
          || routing.width() != spec.width()
          || width != in.width()
          || routing.rows() != in.rows()) {
        throw new IllegalArgumentException(
            valueName
                + ": experts do not fit: experts="
                + experts.size()
                + " width="
                + in.width()
                + " "
                + spec
                + " "
                + first);
      }
      Value out = value(valueName, first.rows() * spec.used(), in.rows());
      ops.add(new Op.ExpertLinear(in, routing, experts, spec.used(), parts, out));
      return out;
    }

    /** Weighted sum of the chosen experts' results. */
    public Value mix(String valueName, Value in, Value routing, RouteSpec spec) {
      if (in.width() % spec.used() != 0 || routing.width() != spec.width()) {
        throw new IllegalArgumentException(
            valueName + ": parts do not fit: width=" + in.width() + " " + spec);
      }
      Value out = value(valueName, in.width() / spec.used(), in.rows());
      ops.add(new Op.Mix(in, routing, spec.used(), out));
      return out;
    }

    /** Linear layer. */
    public Value linear(
        String valueName, Value in, LinearOp weight, Optional<Tensor> bias, Optional<Gate> gate) {
      if (weight.in() != in.width()) {
        throw new IllegalArgumentException(
            valueName
                + ": weight does not fit its input: expected in="
                + in.width()
                + " actual="
                + weight.in());
      }
      if (bias.isPresent() && bias.get().elements() != weight.out()) {
        throw new IllegalArgumentException(
            valueName + ": bias does not fit: expected=" + weight.out() + " actual=" + bias.get());
      }
      Value out = value(valueName, weight.out(), in.rows());
      ops.add(new Op.Linear(in, weight, bias, gate, out));
      return out;
    }

    /** Rotary embedding. */
    public Value rope(String valueName, Value in, RopeSpec spec, int heads, int headDim) {
      if ((long) heads * headDim != in.width() || 2 * spec.inverseFrequency().length > headDim) {
        throw new IllegalArgumentException(
            valueName
                + ": heads do not fit: width="
                + in.width()
                + " heads="
                + heads
                + " headDim="
                + headDim);
      }
      Value out = value(valueName, in.width(), in.rows());
      ops.add(new Op.Rope(in, spec, heads, headDim, out));
      return out;
    }

    /** Stores keys and values, then attends; {@code spec.layer()} must be the next KV layer. */
    public Value attention(
        String valueName,
        AttentionSpec spec,
        Value query,
        Value key,
        Value value,
        Optional<Gate> gate) {
      if (spec.layer() != kvLayers.size()) {
        throw new IllegalArgumentException(
            "KV layers must be numbered in order: expected="
                + kvLayers.size()
                + " actual="
                + spec.layer());
      }
      if (query.width() != spec.heads() * spec.keyDim()
          || key.width() != spec.kvHeads() * spec.keyDim()
          || value.width() != spec.kvHeads() * spec.valueDim()) {
        throw new IllegalArgumentException(
            valueName
                + ": q/k/v do not fit "
                + spec
                + ": q="
                + query.width()
                + " k="
                + key.width()
                + " v="
                + value.width());
      }
      kvLayers.add(spec);
      ops.add(new Op.KvStore(spec, key, value));
      Value out = value(valueName, (long) spec.heads() * spec.valueDim(), query.rows());
      ops.add(new Op.Attention(spec, query, gate, out));
      return out;
    }

    /** Gated activation. */
    public Value activate(
        String valueName,
        Activation activation,
        Optional<Value> gateHalf,
        Value up,
        Optional<Gate> gate) {
      if (gateHalf.isPresent() && gateHalf.get().width() != up.width()) {
        throw new IllegalArgumentException(
            valueName + ": widths differ: " + gateHalf.get().width() + " and " + up.width());
      }
      Value out = value(valueName, up.width(), up.rows());
      ops.add(new Op.Activate(activation, gateHalf, up, gate, out));
      return out;
    }

    /** The largest of groups of neighbours. */
    public Value keepLargest(String valueName, Value in, int n, int m) {
      if (n < 1 || n > m || m > MAX_GROUP || in.width() % m != 0) {
        throw new IllegalArgumentException(
            valueName
                + ": "
                + n
                + " of "
                + m
                + ": expected=groups of at most "
                + MAX_GROUP
                + " that divide the width="
                + in.width());
      }
      Value out = value(valueName, in.width(), in.rows());
      ops.add(new Op.KeepLargest(in, n, m, out));
      return out;
    }

    /** Residual add. */
    public Value add(
        String valueName, Value residual, Value branch, float scale, Optional<Gate> gate) {
      if (residual.width() != branch.width() || residual.rows() != branch.rows()) {
        throw new IllegalArgumentException(
            valueName + ": shapes differ: " + residual + " and " + branch);
      }
      Value out = value(valueName, residual.width(), residual.rows());
      ops.add(new Op.Add(residual, branch, scale, gate, out));
      return out;
    }

    /** The branch in place of the residual. */
    public Value replace(String valueName, Value residual, Value branch, Gate gate) {
      if (residual.width() != branch.width() || residual.rows() != branch.rows()) {
        throw new IllegalArgumentException(
            valueName + ": shapes differ: " + residual + " and " + branch);
      }
      Value out = value(valueName, residual.width(), residual.rows());
      ops.add(new Op.Replace(residual, branch, gate, out));
      return out;
    }

    /**
     * Elements of a row in any order.
     *
     * @param more its elements are counted behind those of {@code in}
     * @param columns I32, within the width of both together
     */
    public Value gather(String valueName, Value in, Optional<Value> more, Tensor columns) {
      int width = in.width() + more.map(Value::width).orElse(0);
      float[] index = Dequantizer.toFloats(columns);
      for (float i : index) {
        if (!(i >= 0 && i < width)) {
          throw new IllegalArgumentException(
              valueName + ": element: expected=[0, " + width + ") actual=" + i);
        }
      }
      if (more.isPresent() && more.get().rows() != in.rows()) {
        throw new IllegalArgumentException(
            valueName + ": rows differ: " + in + " and " + more.get());
      }
      Value out = value(valueName, index.length, in.rows());
      ops.add(new Op.Gather(in, more, columns, out));
      return out;
    }

    /** Multiplication by a constant. */
    public Value scale(String valueName, Value in, float factor) {
      Value out = value(valueName, in.width(), in.rows());
      ops.add(new Op.Scale(in, factor, out));
      return out;
    }

    /** Multiplication by a factor for each element, and a bias. */
    public Value affine(
        String valueName, Value in, Tensor factors, Optional<Tensor> bias, Optional<Gate> gate) {
      if (factors.elements() != in.width()
          || bias.isPresent() && bias.get().elements() != in.width()) {
        throw new IllegalArgumentException(
            valueName
                + ": factors and bias: expected="
                + in.width()
                + " actual="
                + factors.elements()
                + bias.map(b -> " and " + b.elements()).orElse(""));
      }
      Value out = value(valueName, in.width(), in.rows());
      ops.add(new Op.Affine(in, factors, bias, gate, out));
      return out;
    }

    /** Soft cap. */
    public Value softCap(String valueName, Value in, float cap) {
      Value out = value(valueName, in.width(), in.rows());
      ops.add(new Op.SoftCap(in, cap, out));
      return out;
    }

    /** Part of each row. */
    public Value slice(String valueName, Value in, int from, int width) {
      Objects.checkFromIndexSize(from, width, in.width());
      Value out = value(valueName, width, in.rows());
      ops.add(new Op.Slice(in, from, out));
      return out;
    }

    /** Rows whose logits were asked for. */
    public Value selectRows(String valueName, Value in) {
      Value out = value(valueName, in.width(), Rows.LOGITS);
      ops.add(new Op.SelectRows(in, out));
      return out;
    }

    /** Ends the graph. */
    public Graph build(Value logits) {
      return new Graph(name, ops, logits, Optional.empty(), vocabulary, kvLayers);
    }

    /** Ends a graph that gives the rows of {@code hidden} out beside the logits. */
    public Graph build(Value logits, Value hidden) {
      return new Graph(name, ops, logits, Optional.of(hidden), vocabulary, kvLayers);
    }
  }
}
