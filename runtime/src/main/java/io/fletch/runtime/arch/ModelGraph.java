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
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.IntFunction;
import java.util.stream.IntStream;

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
    LinearOp head = LinearOp.dense(output(table));
    Value logits =
        weights.grows("output")
            ? grown("logits", "output", normed, head, Optional.empty(), Optional.empty())
            : graph.linear(
                "logits",
                normed,
                weights.adapted("output", head),
                Optional.empty(),
                Optional.empty());
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
    for (AdapterFile.TokenTerm t : weights.tokenTerms()) {
      if (t.table().rows() != hp.vocabulary() || t.b().rows() != hp.embeddingLength()) {
        throw new FletchException(
            "adapter of the embedding: shape expected=["
                + hp.vocabulary()
                + ", "
                + hp.embeddingLength()
                + "] actual=["
                + t.table().rows()
                + ", "
                + t.b().rows()
                + "]");
      }
      Value inner = graph.tokens("embedding.a", t.table(), hp.embeddingScale());
      Value added =
          graph.linear(
              "embedding.b", inner, LinearOp.dense(t.b()), Optional.empty(), Optional.empty());
      x = graph.add("adapted_embedding", x, added, 1, Optional.empty());
    }
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
    if (spec.experts().filter(e -> !e.chain().outer()).isPresent()) {
      return graph.replace(at + "ffn_replaced", x, branch, gate);
    }
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
    if (spec.latent().isPresent()) {
      return latentAttention(at, in, spec, spec.latent().get(), gate);
    }
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
    return attend(at, spec, q, k, v, gate);
  }

  private Value attend(String at, BlockSpec.Attention spec, Value q, Value k, Value v, Gate gate) {
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

  /**
   * Multi-head latent attention (DeepSeek-V2): keys and values of all heads come out of one short
   * vector, but for the rotated elements of the keys, which all heads share. Heads are put together
   * with the rotated elements first, which changes no product of a query with a key. The cache has
   * whole keys and values.
   */
  private Value latentAttention(
      String at, Value in, BlockSpec.Attention spec, BlockSpec.Latent latent, Gate gate) {
    int heads = spec.heads();
    RopeParameters parameters = spec.rope().orElseThrow();
    int rotated = parameters.rotated();
    int plain = spec.keyDim() - rotated;
    int rank = latent.kvRank();
    Value from = in;
    if (latent.queryRank() > 0) {
      Value a = linear(at + "attn_q_a", in, latent.queryRank(), Optional.of(gate));
      from = norm(at + "attn_q_a_norm", a, 1);
    }
    String queries = at + (latent.queryRank() > 0 ? "attn_q_b" : "attn_q");
    Value q = linear(queries, from, heads * spec.keyDim(), Optional.of(gate));
    q =
        graph.gather(
            at + "attn_q_heads",
            q,
            Optional.empty(),
            columns(
                heads,
                h -> {
                  int head = h * spec.keyDim();
                  return List.of(new Run(head + plain, rotated), new Run(head, plain));
                }));
    Value both = linear(at + "attn_kv_a_mqa", in, rank + rotated, Optional.empty());
    Value inner = norm(at + "attn_kv_a_norm", graph.slice(at + "attn_kv", both, 0, rank), 1);
    RopeSpec rope = ropes.computeIfAbsent(parameters, r -> r.spec(contextLength));
    q = graph.rope(at + "attn_q_rope", q, rope, heads, spec.keyDim());
    Value shared = graph.slice(at + "attn_k_shared", both, rank, rotated);
    shared = graph.rope(at + "attn_k_rope", shared, rope, 1, rotated);
    if (weights.hasKeysOfHeads(at)) {
      Value keys = keysOfHeads(at, inner, heads, plain);
      Value k =
          graph.gather(
              at + "attn_k_heads",
              keys,
              Optional.of(shared),
              columns(
                  heads, h -> List.of(new Run(heads * plain, rotated), new Run(h * plain, plain))));
      LinearOp w = weights.valuesOfHeads(at, heads, spec.valueDim(), rank);
      Value v = graph.linear(at + "attn_v_b", inner, w, Optional.empty(), Optional.empty());
      return attend(at, spec, q, k, v, gate);
    }
    int part = plain + spec.valueDim();
    Value kv = linear(at + "attn_kv_b", inner, heads * part, Optional.empty());
    Value k =
        graph.gather(
            at + "attn_k_heads",
            kv,
            Optional.of(shared),
            columns(heads, h -> List.of(new Run(heads * part, rotated), new Run(h * part, plain))));
    Value v =
        graph.gather(
            at + "attn_v_heads",
            kv,
            Optional.empty(),
            columns(heads, h -> List.of(new Run(h * part + plain, spec.valueDim()))));
    return attend(at, spec, q, k, v, gate);
  }

  private Value keysOfHeads(String at, Value inner, int heads, int plain) {
    LinearOp w = weights.keysOfHeads(at, heads, plain, inner.width());
    return graph.linear(at + "attn_k_b", inner, w, Optional.empty(), Optional.empty());
  }

  /** Elements that lie one after the other. */
  private record Run(int from, int count) {}

  private Tensor columns(int heads, IntFunction<List<Run>> of) {
    List<Integer> all = new ArrayList<>();
    for (int h = 0; h < heads; h++) {
      of.apply(h).forEach(r -> IntStream.range(r.from(), r.from() + r.count()).forEach(all::add));
    }
    return weights.columns(all.stream().mapToInt(i -> i).toArray());
  }

  private Value feedForward(String at, Value in, BlockSpec.FeedForward spec, Gate gate) {
    if (spec.experts().isPresent()) {
      BlockSpec.Experts experts = spec.experts().get();
      return experts.fixed().isPresent()
          ? condensed(at, in, spec, experts, gate)
          : chain(at, in, spec, experts, gate);
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
    if (spec.keep().isPresent()) {
      BlockSpec.Keep keep = spec.keep().get();
      inner = graph.keepLargest(at + "ffn_kept", inner, keep.count(), keep.of());
    }
    return linear(at + "ffn_down", inner, hp.embeddingLength(), gated);
  }

  /** Chain-of-Experts, of which the usual experts are a chain of one. */
  private Value chain(
      String at, Value in, BlockSpec.FeedForward unit, BlockSpec.Experts spec, Gate gate) {
    BlockSpec.Chain chain = spec.chain();
    ExpertMatrices matrices = new ExpertMatrices(at, unit, spec);
    Value x = in;
    for (int t = 0; t < chain.iterations(); t++) {
      String router = at + "ffn_gate_inp" + (chain.routers() ? "." + t : "");
      String step = chain.iterations() == 1 ? "" : "." + t;
      Value y = experts(at, step, router, x, unit, spec, matrices, gate);
      x =
          switch (chain.carry()) {
            case NONE -> y;
            case INNER -> graph.add(at + "ffn_carried" + step, x, y, 1, Optional.empty());
            case FIRST -> graph.add(at + "ffn_carried" + step, in, y, 1, Optional.empty());
          };
    }
    return x;
  }

  /** The matrices of a layer's experts, which all iterations share. */
  private final class ExpertMatrices {
    final List<Tensor> gate;
    final List<Tensor> up;
    final List<Tensor> down;

    ExpertMatrices(String at, BlockSpec.FeedForward unit, BlockSpec.Experts spec) {
      int n = spec.fixed().map(List::size).orElse(spec.route().experts());
      int width = unit.width();
      int hidden = hp.embeddingLength();
      gate = weights.experts(at + "ffn_gate_exps", n, width, hidden);
      up = weights.experts(at + "ffn_up_exps", n, width, hidden);
      down = weights.experts(at + "ffn_down_exps", n, hidden, width);
    }
  }

  /** Names of values end with {@code step}. */
  private Value experts(
      String at,
      String step,
      String router,
      Value in,
      BlockSpec.FeedForward unit,
      BlockSpec.Experts spec,
      ExpertMatrices matrices,
      Gate gate) {
    RouteSpec route = spec.route();
    int n = route.experts();
    Value scores = linear(router, in, n, Optional.empty());
    Optional<Tensor> bias =
        spec.bias() ? Optional.of(weights.vector(at + "exp_probs_b.bias", n)) : Optional.empty();
    Value routing = graph.route(at + "ffn_routing" + step, scores, route, bias);
    Value half =
        expertLinear(
            at + "ffn_gate_exps" + step,
            at + "ffn_gate_exps",
            in,
            routing,
            route,
            matrices.gate,
            false);
    Value up =
        expertLinear(
            at + "ffn_up_exps" + step, at + "ffn_up_exps", in, routing, route, matrices.up, false);
    Value inner =
        graph.activate(
            at + "ffn_act_exps" + step,
            unit.activation(),
            Optional.of(half),
            up,
            Optional.of(gate));
    Value down =
        expertLinear(
            at + "ffn_down_exps" + step,
            at + "ffn_down_exps",
            inner,
            routing,
            route,
            matrices.down,
            true);
    Value mixed = graph.mix(at + "ffn_moe" + step, down, routing, route);
    if (spec.sharedWidth() == 0) {
      return mixed;
    }
    Value shared = shared(at, step, in, unit, spec, gate);
    return graph.add(at + "ffn_moe_shared" + step, mixed, shared, 1, Optional.empty());
  }

  /**
   * A condensed layer (CD-MoE): the shared expert, and a few experts that every row runs, each
   * times a constant.
   */
  private Value condensed(
      String at, Value in, BlockSpec.FeedForward unit, BlockSpec.Experts spec, Gate gate) {
    Value sum = shared(at, "", in, unit, spec, gate);
    List<Float> factors = spec.fixed().orElseThrow();
    if (factors.isEmpty()) {
      return sum;
    }
    Optional<Gate> gated = Optional.of(gate);
    ExpertMatrices matrices = new ExpertMatrices(at, unit, spec);
    for (int e = 0; e < factors.size(); e++) {
      Value half = product(at + "ffn_gate_exps." + e, in, matrices.gate.get(e), gate);
      Value up = product(at + "ffn_up_exps." + e, in, matrices.up.get(e), gate);
      Value inner =
          graph.activate(at + "ffn_act_exps." + e, unit.activation(), Optional.of(half), up, gated);
      Value down = product(at + "ffn_down_exps." + e, inner, matrices.down.get(e), gate);
      sum = graph.add(at + "ffn_condensed." + e, sum, down, factors.get(e), Optional.empty());
    }
    return sum;
  }

  private Value product(String name, Value in, Tensor weight, Gate gate) {
    LinearOp op = weights.adapted(name, LinearOp.dense(weight));
    return graph.linear(name, in, op, Optional.empty(), Optional.of(gate));
  }

  /** The expert that every row runs. */
  private Value shared(
      String at,
      String step,
      Value in,
      BlockSpec.FeedForward unit,
      BlockSpec.Experts spec,
      Gate gate) {
    Optional<Gate> gated = Optional.of(gate);
    Value half = linear(at + "ffn_gate_shexp", in, spec.sharedWidth(), gated);
    Value up = linear(at + "ffn_up_shexp", in, spec.sharedWidth(), gated);
    Value inner =
        graph.activate(
            at + "ffn_act_shexp" + step, unit.activation(), Optional.of(half), up, gated);
    Value out = linear(at + "ffn_down_shexp", inner, hp.embeddingLength(), gated);
    if (!spec.sharedGate()) {
      return out;
    }
    RouteSpec one = new RouteSpec(1, 1, RouteSpec.Scoring.SIGMOID, false, 1, 1, 1);
    String name = at + "ffn_gate_inp_shexp";
    Tensor weight = weights.rowVector(name + ".weight", in.width());
    Value score =
        graph.linear(name, in, LinearOp.dense(weight), Optional.empty(), Optional.empty());
    Value routing = graph.route(at + "ffn_routing_shexp" + step, score, one, Optional.empty());
    return graph.mix(at + "ffn_shexp" + step, out, routing, one);
  }

  /**
   * A product with a matrix whose rows adapters make grow (DoRA): {@code sum of gains (W x) +
   * bias}, then what is added.
   *
   * @param name of the result
   * @param matrix its name for adapters
   */
  private Value grown(
      String name,
      String matrix,
      Value in,
      LinearOp weight,
      Optional<Tensor> bias,
      Optional<Gate> gate) {
    List<AdapterFile.Grown> all = weights.grown(matrix, weight);
    float[] gain = new float[Math.toIntExact(weight.out())];
    Arrays.fill(gain, 1);
    for (AdapterFile.Grown g : all) {
      for (int i = 0; i < gain.length; i++) {
        gain[i] += g.gain()[i] - 1;
      }
    }
    Value y = graph.linear(name + AdapterFile.WHOLE, in, weight, Optional.empty(), gate);
    y = graph.affine(name + ".grown", y, weights.row(name + ".gain", gain), bias, gate);
    List<LinearOp.Term> terms = new ArrayList<>(weights.terms(matrix));
    all.forEach(g -> terms.add(g.term()));
    for (int t = 0; t < terms.size(); t++) {
      LinearOp op = terms.get(t).op();
      Value added = graph.linear(name + ".term" + t, in, op, Optional.empty(), gate);
      y = graph.add(name + ".sum" + t, y, added, terms.get(t).coefficient(), Optional.empty());
    }
    return y;
  }

  /** A product with experts' matrices and what adapters add to these. */
  private Value expertLinear(
      String name,
      String matrix,
      Value in,
      Value routing,
      RouteSpec route,
      List<Tensor> experts,
      boolean parts) {
    Value y = graph.expertLinear(name, in, routing, route, experts, parts);
    int out = Math.toIntExact(experts.getFirst().rows());
    int width = Math.toIntExact(experts.getFirst().cols());
    for (AdapterFile.ExpertTerms t : weights.expertTerms(matrix, experts.size(), out, width)) {
      Value inner = graph.expertLinear(name + ".a", in, routing, route, t.a(), parts);
      Value added = graph.expertLinear(name + ".b", inner, routing, route, t.b(), true);
      y = graph.add(name + ".adapted", y, added, 1, Optional.empty());
    }
    return y;
  }

  private Value linear(String name, Value in, int out, Optional<Gate> gate) {
    if (weights.grows(name)) {
      LinearOp base = weights.base(name, out, in.width());
      return grown(name, name, in, base, weights.optionalVector(name + ".bias", out), gate);
    }
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
