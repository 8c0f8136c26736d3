package io.fletch.runtime.arch;

import io.fletch.FletchException;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.RouteSpec;
import io.fletch.graph.Value;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Tensor;
import io.fletch.runtime.arch.BlockSpec.Norms;
import java.util.HashMap;
import java.util.Map;
import java.util.Optional;

/**
 * Builds the graph of any model that {@link HyperParameters} can describe. Every attention and
 * feed-forward unit obeys its gate; keys and values are computed whatever the gate says, so that
 * the cache is complete. Used once, by one thread.
 */
public final class ModelGraph {
  private final HyperParameters hp;
  private final WeightTensors weights;
  private final int contextLength;
  private final Graph.Builder graph;

  /** One table per distinct embedding, so that a backend computes its sines once for all layers. */
  private final Map<RopeParameters, RopeSpec> ropes = new HashMap<>();

  /** Set by {@link #embeddings}. */
  private Tensor table;

  private int kvLayer;

  private ModelGraph(HyperParameters hp, WeightTensors weights, int contextLength, String name) {
    this.hp = hp;
    this.weights = weights;
    this.contextLength = contextLength;
    this.graph = Graph.builder(name);
  }

  /**
   * Builds the graph.
   *
   * @param hp hyper-parameters, fitted to the weights
   * @param contextLength most tokens of a session
   * @param name for printing
   * @throws io.fletch.FletchException if a tensor is missing, has the wrong shape, or is unknown,
   *     or the model is one of embeddings
   */
  public static Graph build(
      HyperParameters hp, WeightTensors weights, int contextLength, String name) {
    return new ModelGraph(hp, weights, contextLength, name).build();
  }

  /**
   * Builds a graph that gives out the hidden states: what the output matrix would be applied to. An
   * encoder has no other.
   *
   * @throws io.fletch.FletchException as {@link #build}
   */
  public static Graph buildHidden(
      HyperParameters hp, WeightTensors weights, int contextLength, String name) {
    ModelGraph g = new ModelGraph(hp, weights, contextLength, name);
    Value x = g.body();
    Value selected = g.graph.selectRows("selected", x);
    Value hidden = hp.encoder().isPresent() ? selected : g.norm("output_norm", selected, 1);
    weights.ignore("output.weight");
    weights.checkAllUsed();
    return g.graph.build(hidden);
  }

  private Graph build() {
    if (hp.isEmbedding() || !hp.causal() && !hp.diffusion()) {
      throw new FletchException(
          "an embedding model gives vectors, not text: open it with Embedder.open, fletch embed or"
              + " fletch serve: architecture="
              + hp.architecture().id());
    }
    Value x = body();
    Value selected = graph.selectRows("selected", x);
    Value normed = norm("output_norm", selected, 1);
    Value logits =
        graph.linear(
            "logits", normed, LinearOp.dense(output(table)), Optional.empty(), Optional.empty());
    if (hp.logitScale() != 1) {
      logits = graph.scale("scaled_logits", logits, hp.logitScale());
    }
    if (hp.logitSoftCap() > 0) {
      logits = graph.softCap("capped_logits", logits, hp.logitSoftCap());
    }
    weights.checkAllUsed();
    return graph.build(logits, normed);
  }

  private Value embeddings() {
    table = weights.matrix("token_embd.weight", hp.vocabulary(), hp.embeddingLength());
    Value x = graph.embedding("embedding", table, hp.embeddingScale());
    if (hp.encoder().isEmpty()) {
      return x;
    }
    // The type of the first text; there is no second one.
    Optional<Tensor> types = weights.optionalTable("token_types.weight", hp.embeddingLength());
    if (types.isPresent()) {
      Value type = graph.first("token_type", types.get());
      x = graph.add("typed_embedding", x, type, 1, Optional.empty());
    }
    if (hp.encoder().get().learnedPositions()) {
      Tensor all = weights.matrix("position_embd.weight", hp.contextLength(), hp.embeddingLength());
      Value position = graph.positions("position", all);
      x = graph.add("positioned_embedding", x, position, 1, Optional.empty());
    }
    return norm("token_embd_norm", x, 1);
  }

  /** The embeddings and all blocks. */
  private Value body() {
    Value x = embeddings();
    for (int i = 0; i < hp.blocks().size(); i++) {
      BlockSpec block = hp.blocks().get(i);
      if (block.norms() == Norms.PARALLEL) {
        x = parallel(x, block, i);
        continue;
      }
      if (block.attention().isPresent()) {
        x = unit(x, block, i, block.attention().get());
      }
      if (block.feedForward().isPresent()) {
        x = unit(x, block, i, block.feedForward().get());
      }
    }
    return x;
  }

  private Tensor output(Tensor table) {
    if (hp.tiedOutput()) {
      weights.ignore("output.weight");
      return table;
    }
    return weights.optional("output.weight").isPresent()
        ? weights.matrix("output.weight", hp.vocabulary(), hp.embeddingLength())
        : table;
  }

  private Value unit(Value x, BlockSpec block, int layer, BlockSpec.Attention spec) {
    String at = "blk." + layer + ".";
    Gate gate = new Gate(layer, Gate.Unit.ATTENTION);
    Value in = hasInputNorms(block) ? norm(at + "attn_norm", x, block.normScale()) : x;
    Value branch = attention(at, in, spec, gate);
    return residual(
        x, branch, block, block.attentionScale(), at + "attn", "post_attention_norm", gate);
  }

  private Value unit(Value x, BlockSpec block, int layer, BlockSpec.FeedForward spec) {
    String at = "blk." + layer + ".";
    Gate gate = new Gate(layer, Gate.Unit.FFN);
    Value in = hasInputNorms(block) ? norm(at + "ffn_norm", x, block.normScale()) : x;
    Value branch = feedForward(at, in, spec, gate);
    return residual(x, branch, block, block.feedForwardScale(), at + "ffn", "post_ffw_norm", gate);
  }

  private static boolean hasInputNorms(BlockSpec block) {
    return block.norms() == Norms.PRE || block.norms() == Norms.SANDWICH;
  }

  /**
   * Attention and feed-forward of the same residual. With two norms, as in Falcon 40B, the second
   * one is that of attention.
   */
  private Value parallel(Value x, BlockSpec block, int layer) {
    String at = "blk." + layer + ".";
    Gate attentionGate = new Gate(layer, Gate.Unit.ATTENTION);
    Gate feedForwardGate = new Gate(layer, Gate.Unit.FFN);
    Value normed = norm(at + "attn_norm", x, block.normScale());
    Value forAttention =
        weights.optional(at + "attn_norm_2.weight").isPresent()
            ? norm(at + "attn_norm_2", x, block.normScale())
            : normed;
    Value a = attention(at, forAttention, block.attention().orElseThrow(), attentionGate);
    Value f = feedForward(at, normed, block.feedForward().orElseThrow(), feedForwardGate);
    Value sum = residual(x, a, block, block.attentionScale(), at + "attn", "", attentionGate);
    return residual(sum, f, block, block.feedForwardScale(), at + "ffn", "", feedForwardGate);
  }

  private Value residual(
      Value x,
      Value branch,
      BlockSpec block,
      float scale,
      String name,
      String postNorm,
      Gate gate) {
    String layer = name.substring(0, name.lastIndexOf('.') + 1);
    if (block.norms() == Norms.SANDWICH || block.norms() == Norms.BRANCH) {
      branch = norm(layer + postNorm, branch, 1);
    }
    if (block.residualAlpha() != 1) {
      x = graph.scale(name + "_alpha", x, block.residualAlpha());
    }
    Value sum = graph.add(name + "_residual", x, branch, scale, Optional.of(gate));
    if (block.norms() == Norms.POST) {
      boolean isAttention = gate.unit() == Gate.Unit.ATTENTION;
      sum = norm(layer + (isAttention ? "attn_output_norm" : "layer_output_norm"), sum, 1);
    }
    return block.postAddScale() == 1
        ? sum
        : graph.scale(name + "_scaled", sum, block.postAddScale());
  }

  private Value attention(String at, Value in, BlockSpec.Attention spec, Gate gate) {
    int queryWidth = spec.heads() * spec.keyDim();
    int keyWidth = spec.kvHeads() * spec.keyDim();
    int valueWidth = spec.kvHeads() * spec.valueDim();
    Value q;
    Value k;
    Value v;
    if (spec.fusedQkv()) {
      Value qkv = linear(at + "attn_qkv", in, queryWidth + keyWidth + valueWidth, Optional.empty());
      q = graph.slice(at + "attn_q", qkv, 0, queryWidth);
      k = graph.slice(at + "attn_k", qkv, queryWidth, keyWidth);
      v = graph.slice(at + "attn_v", qkv, queryWidth + keyWidth, valueWidth);
    } else {
      q = linear(at + "attn_q", in, queryWidth, Optional.of(gate));
      k = linear(at + "attn_k", in, keyWidth, Optional.empty());
      v = linear(at + "attn_v", in, valueWidth, Optional.empty());
    }
    switch (spec.qkNorm()) {
      case NONE -> {}
      case HEAD -> {
        q = headNorm(at + "attn_q_norm", q, spec.keyDim(), spec.heads());
        k = headNorm(at + "attn_k_norm", k, spec.keyDim(), spec.kvHeads());
      }
      case FULL -> {
        q = headNorm(at + "attn_q_norm", q, queryWidth, 1);
        k = headNorm(at + "attn_k_norm", k, keyWidth, 1);
      }
    }
    if (spec.rope().isPresent()) {
      RopeSpec rope = ropes.computeIfAbsent(spec.rope().orElseThrow(), r -> r.spec(contextLength));
      q = graph.rope(at + "attn_q_rope", q, rope, spec.heads(), spec.keyDim());
      k = graph.rope(at + "attn_k_rope", k, rope, spec.kvHeads(), spec.keyDim());
    }
    AttentionSpec shape =
        new AttentionSpec(
            kvLayer++,
            spec.heads(),
            spec.kvHeads(),
            spec.keyDim(),
            spec.valueDim(),
            spec.scale(),
            spec.softCap(),
            spec.window());
    Value mixed = graph.attention(at + "attn", shape, q, k, v, Optional.of(gate));
    return linear(at + "attn_output", mixed, hp.embeddingLength(), Optional.of(gate));
  }

  private Value feedForward(String at, Value in, BlockSpec.FeedForward spec, Gate gate) {
    if (spec.experts().isPresent()) {
      return experts(at, in, spec, spec.experts().get(), gate);
    }
    Optional<Gate> gated = Optional.of(gate);
    Value inner;
    if (spec.fusedGateUp()) {
      Value both = linear(at + "ffn_up", in, 2 * spec.width(), gated);
      Value gateHalf = graph.slice(at + "ffn_gate_half", both, 0, spec.width());
      Value up = graph.slice(at + "ffn_up_half", both, spec.width(), spec.width());
      inner = graph.activate(at + "ffn_act", spec.activation(), Optional.of(gateHalf), up, gated);
    } else {
      Optional<Value> gateHalf =
          spec.gated()
              ? Optional.of(linear(at + "ffn_gate", in, spec.width(), gated))
              : Optional.empty();
      Value up = linear(at + "ffn_up", in, spec.width(), gated);
      inner = graph.activate(at + "ffn_act", spec.activation(), gateHalf, up, gated);
    }
    return linear(at + "ffn_down", inner, hp.embeddingLength(), gated);
  }

  private Value experts(
      String at, Value in, BlockSpec.FeedForward unit, BlockSpec.Experts spec, Gate gate) {
    RouteSpec route = spec.route();
    int n = route.experts();
    int width = unit.width();
    int hidden = hp.embeddingLength();
    Value scores = linear(at + "ffn_gate_inp", in, n, Optional.empty());
    Optional<Tensor> bias =
        spec.bias() ? Optional.of(weights.vector(at + "exp_probs_b.bias", n)) : Optional.empty();
    Value routing = graph.route(at + "ffn_routing", scores, route, bias);
    String name = at + "ffn_gate_exps";
    Value half =
        graph.expertLinear(
            name, in, routing, route, weights.experts(name, n, width, hidden), false);
    name = at + "ffn_up_exps";
    Value up =
        graph.expertLinear(
            name, in, routing, route, weights.experts(name, n, width, hidden), false);
    Value inner =
        graph.activate(
            at + "ffn_act_exps", unit.activation(), Optional.of(half), up, Optional.of(gate));
    name = at + "ffn_down_exps";
    Value down =
        graph.expertLinear(
            name, inner, routing, route, weights.experts(name, n, hidden, width), true);
    Value mixed = graph.mix(at + "ffn_moe", down, routing, route);
    return spec.sharedWidth() == 0
        ? mixed
        : graph.add(
            at + "ffn_moe_shared", mixed, shared(at, in, unit, spec, gate), 1, Optional.empty());
  }

  /** The expert that every row runs. */
  private Value shared(
      String at, Value in, BlockSpec.FeedForward unit, BlockSpec.Experts spec, Gate gate) {
    Optional<Gate> gated = Optional.of(gate);
    Value half = linear(at + "ffn_gate_shexp", in, spec.sharedWidth(), gated);
    Value up = linear(at + "ffn_up_shexp", in, spec.sharedWidth(), gated);
    Value inner =
        graph.activate(at + "ffn_act_shexp", unit.activation(), Optional.of(half), up, gated);
    Value out = linear(at + "ffn_down_shexp", inner, hp.embeddingLength(), gated);
    if (!spec.sharedGate()) {
      return out;
    }
    RouteSpec one = new RouteSpec(1, 1, RouteSpec.Scoring.SIGMOID, false, 1, 1, 1);
    String name = at + "ffn_gate_inp_shexp";
    Tensor weight = weights.rowVector(name + ".weight", in.width());
    Value score =
        graph.linear(name, in, LinearOp.dense(weight), Optional.empty(), Optional.empty());
    Value routing = graph.route(at + "ffn_routing_shexp", score, one, Optional.empty());
    return graph.mix(at + "ffn_shexp", out, routing, one);
  }

  private Value linear(String name, Value in, int out, Optional<Gate> gate) {
    LinearOp weight = weights.linear(name, out, in.width());
    return graph.linear(name, in, weight, weights.optionalVector(name + ".bias", out), gate);
  }

  private Value norm(String name, Value in, float outScale) {
    Tensor weight = weights.norm(name + ".weight", in.width(), hp.normOffset());
    if (hp.norm() == HyperParameters.Norm.RMS) {
      return graph.rmsNorm(name, in, weight, hp.normEps(), 1, outScale);
    }
    Value out =
        graph.layerNorm(
            name, in, weight, weights.optionalVector(name + ".bias", in.width()), hp.normEps());
    return outScale == 1 ? out : graph.scale(name + "_scaled", out, outScale);
  }

  private Value headNorm(String name, Value in, int headDim, int heads) {
    Tensor weight = weights.norm(name + ".weight", headDim, hp.normOffset());
    return graph.rmsNorm(name, in, weight, hp.normEps(), heads, 1);
  }
}
