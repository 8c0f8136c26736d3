package io.fletch.graph;

import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import java.util.List;
import java.util.Optional;

/**
 * The closed op set of the graph. Every op defines at most one value; norm weights, biases and
 * embeddings are tensors, matrices are {@link LinearOp}s. Backends switch over this family
 * exhaustively.
 */
public sealed interface Op {
  /** The value this op defines, if any. */
  Optional<Value> output();

  /** The values it reads. */
  List<Value> inputs();

  /** Row of {@code table} for each row of the batch, times {@code scale}. */
  record Embedding(Tensor table, Index index, float scale, Value out) implements Op {
    /** Which row of the table a row of the batch gets. */
    public enum Index {
      /** That of its token id. */
      TOKEN,
      /** That of its position (learned positions); the table has a row for every position. */
      POSITION,
      /** The first (the type of all tokens of a text without a second part). */
      FIRST
    }

    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of();
    }
  }

  /**
   * Numbers that come with the row: elements {@code [from, from + out.width)} of what {@link
   * Batch#input} gave it.
   */
  record Input(int from, Value out) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of();
    }
  }

  /**
   * RMSNorm over groups: the row is split into {@code groups} equal parts, each normalised by
   * itself and multiplied by the same weight (groups = heads gives QK-norm, 1 the usual norm), then
   * by {@code outScale}.
   */
  record RmsNorm(Value in, Tensor weight, float eps, int groups, float outScale, Value out)
      implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(in);
    }
  }

  /** {@code y = W x + bias}; rows whose gate says skip are not computed and read as zero. */
  record Linear(Value in, LinearOp weight, Optional<Tensor> bias, Optional<Gate> gate, Value out)
      implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(in);
    }
  }

  /**
   * {@code out = base + sum s_t (f_t B_t (A_t in) + g_t (base - bias))} over the terms of the row
   * ({@link Batch#adapt}) whose adapter has a delta for the product that gave {@code base}, in the
   * order of the row's list; rows without any keep the base bit for bit. Put in by a backend behind
   * a product with input {@code in} and the same gate.
   */
  record Adapt(Value in, Value base, Optional<Tensor> bias, Optional<Gate> gate, Value out)
      implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(in, base);
    }
  }

  /** Rotates each of {@code heads} heads of {@code headDim} by the row's position. */
  record Rope(Value in, RopeSpec spec, int heads, int headDim, Value out) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(in);
    }
  }

  /**
   * Writes keys and values of each row into the row's KV slot. Never gated, so the cache is
   * complete.
   */
  record KvStore(AttentionSpec spec, Value key, Value value) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.empty();
    }

    @Override
    public List<Value> inputs() {
      return List.of(key, value);
    }
  }

  /**
   * Attention of each row over the slots its span lets it see; after the layer's {@link KvStore}.
   */
  record Attention(AttentionSpec spec, Value query, Optional<Gate> gate, Value out) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(query);
    }
  }

  /** {@code act(gate) * up}, or {@code act(up)} without a gate half. */
  record Activate(
      Activation activation, Optional<Value> gateHalf, Value up, Optional<Gate> gate, Value out)
      implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return gateHalf.map(g -> List.of(g, up)).orElse(List.of(up));
    }
  }

  /**
   * The {@code n} elements of largest magnitude of each {@code m} neighbours (activation sparsity,
   * ELAS); the others become 0. Of equal ones the first are kept, and what is no number always.
   */
  record KeepLargest(Value in, int n, int m, Value out) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(in);
    }
  }

  /** {@code residual + scale * branch}; rows whose gate says skip keep the residual bit for bit. */
  record Add(Value residual, Value branch, float scale, Optional<Gate> gate, Value out)
      implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(residual, branch);
    }
  }

  /**
   * The branch in place of the residual (Chain-of-Experts); rows whose gate says skip keep the
   * residual bit for bit.
   */
  record Replace(Value residual, Value branch, Gate gate, Value out) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(residual, branch);
    }
  }

  /** {@code factor * x}. */
  record Scale(Value in, float factor, Value out) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(in);
    }
  }

  /**
   * {@code f_i x_i + b_i} (a product whose rows grow, as those of DoRA do); rows whose gate says
   * skip read as zero.
   */
  record Affine(Value in, Tensor factors, Optional<Tensor> bias, Optional<Gate> gate, Value out)
      implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(in);
    }
  }

  /** {@code cap * tanh(x / cap)}. */
  record SoftCap(Value in, float cap, Value out) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(in);
    }
  }

  /** Elements {@code [from, from + out.width)} of each row (splits fused projections). */
  record Slice(Value in, int from, Value out) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(in);
    }
  }

  /**
   * Some elements of each row: {@code out[i] = in[columns[i]]} (a matrix with columns of zeros), in
   * any order (heads whose parts lie elsewhere).
   *
   * @param more its elements are counted behind those of {@code in}
   * @param columns I32, one per element of the result, each within the width of both together
   */
  record Gather(Value in, Optional<Value> more, Tensor columns, Value out) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return more.map(m -> List.of(in, m)).orElse(List.of(in));
    }
  }

  /** Keeps the rows whose logits were asked for. */
  record SelectRows(Value in, Value out) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(in);
    }
  }

  /**
   * Lets feed-forward units of later layers rest for rows that this one hardly turned (FFN-SkipLLM,
   * specs autoregressive 2). For a row whose unit ran and for which the batch asks for it ({@link
   * Batch#skipSimilar}), the score is the cosine of the angle between {@code before} and {@code
   * after}; if it reaches the row's threshold, the next targets get {@link Gate#SKIP}, as many as
   * the row's run and what is left of its budget allow.
   *
   * @param before residual stream that enters the unit
   * @param after the same with the unit's result
   * @param unit the gate of the unit between them
   * @param targets gates that may be closed, nearest first; their ops come later
   */
  record SkipSimilar(Value before, Value after, Gate unit, List<Gate> targets) implements Op {
    /** Copies the list. */
    public SkipSimilar {
      targets = List.copyOf(targets);
    }

    @Override
    public Optional<Value> output() {
      return Optional.empty();
    }

    @Override
    public List<Value> inputs() {
      return List.of(before, after);
    }
  }

  /**
   * Decides whether a unit runs for a row (informed routing, specs autoregressive 3). For a row
   * whose gate says run and for which the batch asks for it ({@link Batch#routeUnits}), the score
   * is {@code scores[0] - scores[1]}; below the row's threshold the gate gets the row's other byte.
   * A score that is no number lets the unit run.
   *
   * @param scores two per row: execute, approximate
   * @param target the gate; its ops come later
   */
  record RouteUnit(Value scores, Gate target) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.empty();
    }

    @Override
    public List<Value> inputs() {
      return List.of(scores);
    }
  }

  /**
   * LayerNorm: {@code (x - mean) / sqrt(variance + eps) * weight + bias}, the variance being that
   * of the row itself (divided by its width).
   */
  record LayerNorm(Value in, Tensor weight, Optional<Tensor> bias, float eps, Value out)
      implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(in);
    }
  }

  /** Chooses experts by their scores; {@code out} has {@link RouteSpec#width} elements a row. */
  record Route(Value scores, RouteSpec spec, Optional<Tensor> bias, Value out) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(scores);
    }
  }

  /**
   * For the k-th expert {@code e} that the routing gives a row: elements {@code [k m, (k + 1) m)}
   * of the result are {@code W_e x}, where {@code x} is the whole input row, or its k-th part if
   * {@code parts}. Only the chosen matrices are read.
   *
   * @param experts one matrix {@code [m, n]} per expert, of equal shapes and types
   * @param used experts per row
   */
  record ExpertLinear(
      Value in, Value routing, List<Tensor> experts, int used, boolean parts, Value out)
      implements Op {
    /** Copies the list. */
    public ExpertLinear {
      experts = List.copyOf(experts);
    }

    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(in, routing);
    }
  }

  /**
   * Sum of the {@code used} parts of a row, each times its weight of the routing, in that order.
   */
  record Mix(Value in, Value routing, int used, Value out) implements Op {
    @Override
    public Optional<Value> output() {
      return Optional.of(out);
    }

    @Override
    public List<Value> inputs() {
      return List.of(in, routing);
    }
  }
}
