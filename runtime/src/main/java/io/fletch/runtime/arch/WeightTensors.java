package io.fletch.runtime.arch;

import io.fletch.FletchException;
import io.fletch.graph.Activation;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.LinearOpTensors;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalLong;
import java.util.Set;
import java.util.regex.Pattern;

/**
 * The tensors of a file under the names that the graph builder uses, shape-checked when asked for.
 * It remembers what was asked for: a tensor that nobody wanted is an error, since a model that
 * ignores some of its weights is not that model. Used by the thread that opens the model.
 */
public final class WeightTensors {
  /** Left-overs of training code that inference does not need, heads of BERT's pre-training. */
  private static final Pattern IGNORABLE =
      Pattern.compile(
          ".*(rotary_emb\\.inv_freq|\\.masked_bias|\\.attn_rot_embd\\.weight)"
              + "|(bert\\.)?(pooler\\.dense\\..*|embeddings\\.position_ids)"
              + "|cls\\.(predictions|seq_relationship)\\..*");

  private static final List<String> ATTENTION =
      List.of("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output");

  /** Of every kind of unit; {@code exps} and the router as well, and names of old files. */
  private static final List<String> FEED_FORWARD =
      List.of(
          "ffn_up",
          "ffn_gate",
          "ffn_down",
          "ffn_up_exps",
          "ffn_gate_exps",
          "ffn_down_exps",
          "ffn_gate_inp");

  /** The weights of a condensed layer's experts. */
  public static final String FIXED = "ffn_fixed_exps";

  private final Map<String, Tensor> tensors;
  private final TensorNames names;
  private final TensorStore derived;
  private final Set<String> asked = new HashSet<>();

  /** Layers share one embedding, so that its table is computed once. */
  private final Map<RopeParameters, RopeParameters> fittedRopes = new HashMap<>();

  private final List<AdapterFile> adapters = new ArrayList<>();

  /** Width of the residual stream, from the hyper-parameters that are fitted. */
  private long width;

  private WeightTensors(Map<String, Tensor> tensors, TensorNames names, TensorStore derived) {
    this.tensors = tensors;
    this.names = names;
    this.derived = derived;
  }

  /**
   * The tensors of a file in the naming of its format and architecture.
   *
   * @param derived takes weights that must be computed from those of the file; the caller closes it
   *     after the last use of the graph
   */
  public static WeightTensors of(
      WeightFile.Format format,
      Map<String, Tensor> tensors,
      Architecture architecture,
      TensorStore derived) {
    return new WeightTensors(
        tensors,
        switch (format) {
          case GGUF, ARROW -> TensorNames.GGUF;
          case SAFETENSORS -> architecture.hfNames().in(tensors.keySet());
        },
        derived);
  }

  /** Adds adapters to the matrices of the layers; call before the graph is built. */
  public void adapt(List<AdapterFile> added) {
    adapters.addAll(added);
  }

  /** The tensor, if the file has it. */
  Optional<Tensor> optional(String name) {
    return names
        .fileName(name)
        .map(n -> {
          asked.add(n);
          return tensors.get(n);
        });
  }

  /** The tensor. */
  Tensor required(String name) {
    return optional(name)
        .orElseThrow(() ->
            new FletchException(
                "tensor missing: "
                    + names
                        .fileName(name)
                        .filter(n -> !n.equals(name))
                        .map(n -> n + " (" + name + ")")
                        .orElse(name)));
  }

  /** A matrix {@code [out, in]} of weights. */
  Tensor matrix(String name, long out, long in) {
    return check(required(name), out, in);
  }

  /**
   * The linear map {@code [out, in]} of a layer: a matrix, or what a compressed model has in its
   * place ({@link LinearOpTensors}).
   */
  LinearOp linear(String name, long out, long in) {
    return adapted(name, base(name, out, in));
  }

  /** What adapters make of a matrix whose rows grow (DoRA); empty for none. */
  List<AdapterFile.Grown> grown(String name, LinearOp weight) {
    return adapters.stream().filter(a -> a.grows(name)).map(a -> a.grown(name, weight)).toList();
  }

  /** Whether adapters make rows of a matrix grow. */
  boolean grows(String name) {
    return adapters.stream().anyMatch(a -> a.grows(name));
  }

  /** The linear map {@code [out, in]} of a layer without what adapters add. */
  LinearOp base(String name, long out, long in) {
    LinearOp op = linear(name, in);
    if (op instanceof LinearOp.Dense d) {
      check(d.weight(), out, in);
    } else if (op.in() != in || op.out() != out) {
      throw new FletchException(
          name
              + ": shape expected=["
              + out
              + ", "
              + in
              + "] actual=["
              + op.out()
              + ", "
              + op.in()
              + "]");
    }
    return op;
  }

  /** Sums that adapters add to a matrix. */
  List<LinearOp.Term> terms(String name) {
    List<LinearOp.Term> terms = new ArrayList<>();
    adapters.stream().filter(a -> !a.grows(name)).forEach(a -> a.term(name).ifPresent(terms::add));
    return terms;
  }

  /** What adapters add to rows of the embedding. */
  List<AdapterFile.TokenTerm> tokenTerms() {
    return adapters.stream().flatMap(a -> a.embedding().stream()).toList();
  }

  /** What adapters add to experts of a layer. */
  List<AdapterFile.ExpertTerms> expertTerms(String name, int experts, int out, int in) {
    return adapters.stream().flatMap(a -> a.experts(name, experts, out, in).stream()).toList();
  }

  /** Constants, one for each output of a matrix. */
  Tensor row(String name, float[] values) {
    return derived.floats(name, values, 1, values.length);
  }

  /** A linear map with what adapters add to it. */
  LinearOp adapted(String name, LinearOp op) {
    List<LinearOp.Term> terms = terms(name);
    if (terms.isEmpty()) {
      return op;
    }
    terms.addFirst(new LinearOp.Term(1, op));
    try {
      return new LinearOp.Sum(terms);
    } catch (IllegalArgumentException e) {
      throw new FletchException("adapter of " + name + ": " + e.getMessage(), e);
    }
  }

  private LinearOp linear(String name, long in) {
    return LinearOpTensors.find(this::optional, name, in)
        .orElseGet(() -> LinearOp.dense(required(name + ".weight")));
  }

  /** Whether keys and values of latent attention have matrices of their own for each head. */
  boolean hasKeysOfHeads(String at) {
    return optional(at + "attn_k_b.weight").isPresent();
  }

  /**
   * The matrix {@code [heads * dim, rank]} of the keys of latent attention. The file has that of
   * each head transposed, {@code [heads, rank, dim]}, as llama.cpp multiplies queries by it. Types
   * with blocks become F32.
   */
  LinearOp keysOfHeads(String at, int heads, int dim, int rank) {
    Tensor t = check(required(at + "attn_k_b.weight"), heads, rank, dim);
    int bytes =
        switch (t.type()) {
          case F16, BF16 -> 2;
          default -> 4;
        };
    boolean isStored = bytes == 2 || t.type() == TensorType.F32;
    Tensor out =
        derived.allocate(
            t.name() + ".rows", isStored ? t.type() : TensorType.F32, (long) heads * dim, rank);
    MemorySegment to = out.segment();
    MemorySegment from = isStored ? t.segment() : MemorySegment.ofArray(Dequantizer.toFloats(t));
    for (long h = 0; h < heads; h++) {
      for (long r = 0; r < rank; r++) {
        for (long i = 0; i < dim; i++) {
          long source = (h * rank + r) * dim + i;
          long target = (h * dim + i) * rank + r;
          MemorySegment.copy(from, bytes * source, to, bytes * target, bytes);
        }
      }
    }
    return LinearOp.dense(out);
  }

  /** The matrix {@code [heads * dim, rank]} of the values of latent attention. */
  LinearOp valuesOfHeads(String at, int heads, int dim, int rank) {
    Tensor t = check(required(at + "attn_v_b.weight"), heads, dim, rank);
    return LinearOp.dense(t.view(t.name(), 0, (long) heads * dim, rank));
  }

  /** A matrix of at least one row of {@code in} weights, if the file has it. */
  Optional<Tensor> optionalTable(String name, long in) {
    return optional(name).map(t -> check(t, t.rank() == 2 ? Math.max(1, t.rows()) : 1, in));
  }

  /** A vector of {@code n} weights. */
  Tensor vector(String name, long n) {
    return check(required(name), n);
  }

  /** A matrix of one row, stored as such or as a vector. */
  Tensor rowVector(String name, long in) {
    Tensor t = required(name);
    return t.rank() == 1 ? check(t, in).view(t.name(), 0, 1, in) : check(t, 1, in);
  }

  /**
   * The matrices {@code [out, in]} of all experts: slices of one tensor {@code [experts, out, in]},
   * or tensors of their own.
   *
   * @param name such as {@code blk.3.ffn_up_exps}
   */
  List<Tensor> experts(String name, int experts, long out, long in) {
    List<Tensor> all = new ArrayList<>();
    Optional<Tensor> together = optional(name + ".weight");
    if (together.isPresent()) {
      Tensor t = check(together.get(), experts, out, in);
      for (int e = 0; e < experts; e++) {
        all.add(t.view(name + "." + e, e * (t.bytes() / experts), out, in));
      }
      return all;
    }
    // Early GGUF files of Mixtral: blk.0.ffn_up.7.weight.
    boolean isOld = optional(name + ".0.weight").isEmpty();
    String stem = isOld ? name.substring(0, name.length() - "_exps".length()) : name;
    for (int e = 0; e < experts; e++) {
      all.add(matrix(stem + "." + e + ".weight", out, in));
    }
    return all;
  }

  /** Numbers of elements, for {@link io.fletch.graph.Op.Gather}. */
  Tensor columns(int[] values) {
    Tensor t = derived.allocate("columns", TensorType.I32, values.length);
    MemorySegment.copy(values, 0, t.segment(), ValueLayout.JAVA_INT, 0, values.length);
    return t;
  }

  /** A vector of {@code n} norm weights, to each of which {@code offset} is added. */
  Tensor norm(String name, long n, float offset) {
    Tensor stored = vector(name, n);
    if (offset == 0) {
      return stored;
    }
    float[] values = Dequantizer.toFloats(stored);
    for (int i = 0; i < values.length; i++) {
      values[i] += offset;
    }
    return derived.floats(stored.name(), values, n);
  }

  /** A vector of {@code n} weights, if the file has it. */
  Optional<Tensor> optionalVector(String name, long n) {
    return optional(name).map(t -> check(t, n));
  }

  private static Tensor check(Tensor t, long... shape) {
    if (!Arrays.equals(t.shape(), shape)) {
      throw new FletchException(
          t.name()
              + ": shape expected="
              + Arrays.toString(shape)
              + " actual="
              + Arrays.toString(t.shape()));
    }
    switch (t.type()) {
      case I8, I16, I32, I64, F64 ->
          throw new FletchException(t.name() + ": type not supported for weights: " + t.type());
      default -> {}
    }
    return t;
  }

  /**
   * Hyper-parameters as the tensors have them: rotary factors from tensors, and head counts and
   * widths of layers that were pruned without a trace in the configuration (they may be smaller
   * there, not larger).
   */
  public HyperParameters fit(HyperParameters hp) {
    Tensor embedding = required("token_embd.weight");
    if (embedding.rank() != 2 || embedding.cols() != hp.embeddingLength()) {
      throw new FletchException(
          embedding.name()
              + ": shape expected=[vocabulary, "
              + hp.embeddingLength()
              + "] actual="
              + Arrays.toString(embedding.shape()));
    }
    long rows = embedding.rows();
    if (rows < 1
        || rows > HyperParameters.MAX_VOCABULARY
        || hp.vocabulary() != 0 && rows != hp.vocabulary()) {
      throw new FletchException(
          embedding.name()
              + ": rows expected="
              + (hp.vocabulary() == 0
                  ? "[1, " + HyperParameters.MAX_VOCABULARY + "]"
                  : "" + hp.vocabulary())
              + " actual="
              + rows);
    }
    hp.maskToken()
        .ifPresent(mask -> {
          if (mask >= rows) {
            throw new FletchException(
                "mask token: expected < vocabulary=" + rows + " actual=" + mask);
          }
        });
    width = hp.embeddingLength();
    List<BlockSpec> blocks = new ArrayList<>();
    for (int i = 0; i < hp.blocks().size(); i++) {
      BlockSpec block = hp.blocks().get(i);
      String at = "blk." + i + ".";
      Optional<BlockSpec.Attention> attention =
          block.attention().filter(a -> !removed(at, ATTENTION, "attn_norm")).map(a -> fit(at, a));
      Optional<BlockSpec.FeedForward> feedForward =
          block
              .feedForward()
              .filter(f -> !removed(at, FEED_FORWARD, "ffn_norm"))
              .map(f -> fit(at, f));
      blocks.add(form(block.withUnits(attention, feedForward), at));
    }
    boolean isAsked = hp.blocks().stream().anyMatch(b -> b.residualAlpha() != 1);
    if (isAsked && blocks.stream().noneMatch(b -> b.norms() == BlockSpec.Norms.POST)) {
      throw new FletchException(
          "fletch.residual_alpha: expected=layers whose norms come after the units actual=none");
    }
    return hp.withShapes((int) rows, blocks);
  }

  private boolean has(String name) {
    return present(name).isPresent();
  }

  /**
   * Where norms are and what is scaled, where the tensors of a layer say it (specs weights 5.2).
   * Mix-LN: a layer without norm before attention, and with norms after both units, has them after
   * the add. Both kinds: before the units, and on the branches. GPAS: {@code 1 - silu(gate)} scales
   * what comes out of every add, or with norms after it the residual that goes in.
   */
  private BlockSpec form(BlockSpec block, String at) {
    BlockSpec.Norms place = block.norms();
    if (place == BlockSpec.Norms.PRE) {
      boolean before = has(at + "attn_norm.weight");
      if (!before && has(at + "attn_output_norm.weight") && has(at + "layer_output_norm.weight")) {
        place = BlockSpec.Norms.POST;
      } else if (before
          && has(at + "ffn_norm.weight")
          && has(at + "post_attention_norm.weight")
          && has(at + "post_ffw_norm.weight")) {
        place = BlockSpec.Norms.SANDWICH;
      }
    }
    boolean isPost = place == BlockSpec.Norms.POST;
    float gate = 1;
    if (has(at + "gpas_gate.weight")) {
      double g = scalar(at + "gpas_gate.weight");
      gate = (float) (1 - g / (1 + Math.exp(-g)));
      if (block.norms() != BlockSpec.Norms.PRE) {
        throw new FletchException(
            at + "gpas_gate: norms of the architecture: expected=PRE actual=" + block.norms());
      }
    }
    float attention = block.attentionScale();
    if (has(at + "attn_branch_scale.weight")) {
      attention *= (float) scalar(at + "attn_branch_scale.weight");
    }
    float feedForward = block.feedForwardScale();
    if (has(at + "ffn_branch_scale.weight")) {
      feedForward *= (float) scalar(at + "ffn_branch_scale.weight");
    }
    return block.withForm(
        place,
        isPost ? block.residualAlpha() * gate : 1,
        attention,
        feedForward,
        isPost ? block.postAddScale() : block.postAddScale() * gate,
        isPost ? 1 : block.normScale());
  }

  private double scalar(String name) {
    Tensor t = required(name);
    if (t.elements() != 1) {
      throw new FletchException(t.name() + ": elements expected=1 actual=" + t.elements());
    }
    return Dequantizer.element(t, 0);
  }

  /**
   * Whether pruning took a whole unit away: of its matrices there are some, and all of them have no
   * elements. What is left of it, a norm or a bias that nothing is added to, is not used. (A unit
   * without any matrix is a damaged file.)
   */
  private boolean removed(String at, List<String> matrices, String norm) {
    int empty = 0;
    for (String name : matrices) {
      Optional<Tensor> t = names.fileName(at + name + ".weight").map(tensors::get);
      if (t.isPresent() && t.get().elements() > 0) {
        return false;
      }
      empty += t.isPresent() ? 1 : 0;
    }
    if (empty == 0) {
      return false;
    }
    ignore(at + norm + ".weight");
    for (String name : matrices) {
      ignore(at + name + ".weight");
      ignore(at + name + ".bias");
    }
    return true;
  }

  private BlockSpec.Attention fit(String at, BlockSpec.Attention a) {
    BlockSpec.Attention out =
        a.withRope(a.rope().map(r -> fittedRopes.computeIfAbsent(r, this::fit)));
    if (a.fusedQkv() || a.latent().isPresent()) {
      return out;
    }
    int heads = heads(at + "attn_q", a.keyDim(), a.heads());
    int kvHeads = heads(at + "attn_k", a.keyDim(), a.kvHeads());
    if (heads % kvHeads != 0) {
      throw new FletchException(
          at + "attn_k: key/value heads must divide heads: heads=" + heads + " kvHeads=" + kvHeads);
    }
    return out.withHeads(heads, kvHeads);
  }

  private int heads(String name, int headDim, int declared) {
    long rows = linear(name, width).out();
    if (rows < headDim || rows % headDim != 0 || rows / headDim > declared) {
      throw new FletchException(
          name
              + ": rows expected="
              + (long) declared * headDim
              + " ("
              + declared
              + " heads of "
              + headDim
              + ", or fewer) actual="
              + rows);
    }
    return (int) (rows / headDim);
  }

  private BlockSpec.FeedForward fit(String at, BlockSpec.FeedForward f) {
    if (f.fusedGateUp()) {
      return f;
    }
    if (f.experts().isPresent()) {
      Optional<BlockSpec.FeedForward> condensed = condensed(at, f, f.experts().get());
      if (condensed.isPresent()) {
        return condensed.get();
      }
      // Files of Qwen do not say which layers are dense; their tensors do.
      boolean routed = optional(at + "ffn_gate_inp.weight").isPresent();
      Optional<Tensor> up = routed ? Optional.empty() : optional(at + "ffn_up.weight");
      return up.isEmpty()
          ? f
          : BlockSpec.FeedForward.dense(
              Math.toIntExact(up.get().rows()), f.activation(), f.gated(), false);
    }
    long rows = linear(at + "ffn_up", width).out();
    if (rows < 1 || rows > f.width()) {
      throw new FletchException(
          at + "ffn_up: rows expected=" + f.width() + " (or fewer) actual=" + rows);
    }
    BlockSpec.FeedForward out = f.withWidth((int) rows);
    boolean isRelu = f.activation() == Activation.RELU || f.activation() == Activation.RELU_SQUARED;
    // Research code has units of this kind with and without a gate.
    return f.gated() && isRelu && !hasLinear(at + "ffn_gate") ? out.withoutGate() : out;
  }

  /**
   * A condensed layer (CD-MoE) says so by the weights of its experts instead of a router. Without
   * experts the vector has one element, which is 0.
   */
  private Optional<BlockSpec.FeedForward> condensed(
      String at, BlockSpec.FeedForward f, BlockSpec.Experts experts) {
    String name = at + FIXED + ".weight";
    if (!has(name)) {
      return Optional.empty();
    }
    Tensor t = required(name);
    if (has(at + "ffn_gate_inp.weight")) {
      throw new FletchException(
          t.name() + ": expected=no router in a condensed layer actual=" + at + "ffn_gate_inp");
    }
    if (t.rank() != 1 || t.elements() < 1 || t.elements() > experts.route().experts()) {
      throw new FletchException(
          t.name()
              + ": expected=a vector of 1 to "
              + experts.route().experts()
              + " weights actual="
              + Arrays.toString(t.shape()));
    }
    List<Float> factors = new ArrayList<>();
    for (float w : floats(t)) {
      if (!Float.isFinite(w)) {
        throw new FletchException(t.name() + ": expected=finite weights actual=" + w);
      }
      factors.add(w);
    }
    boolean isNone = factors.equals(List.of(0f)) && !hasExperts(at);
    return Optional.of(f.withExperts(experts.withFixed(isNone ? List.of() : factors)));
  }

  private boolean hasLinear(String name) {
    return has(name + ".weight") || LinearOpTensors.find(this::present, name, width).isPresent();
  }

  /** The tensor, without asking for it. */
  private Optional<Tensor> present(String name) {
    return names.fileName(name).map(tensors::get);
  }

  private boolean hasExperts(String at) {
    return has(at + "ffn_up_exps.weight") || has(at + "ffn_up_exps.0.weight");
  }

  private RopeParameters fit(RopeParameters rope) {
    int pairs = rope.rotated() / 2;
    if (rope.scaling() instanceof RopeScaling.LongRopeTensors(double original, double magnitude)) {
      Optional<Tensor> shortFactors = optional("rope_factors_short.weight");
      if (shortFactors.isEmpty()) {
        return rope.withScaling(new RopeScaling.None());
      }
      return rope.withScaling(
          new RopeScaling.LongRope(
              floats(vector("rope_factors_short.weight", pairs)),
              floats(vector("rope_factors_long.weight", pairs)),
              original,
              magnitude));
    }
    Optional<Tensor> factors = optionalVector("rope_freqs.weight", pairs);
    if (factors.isEmpty()) {
      return rope;
    }
    if (!(rope.scaling() instanceof RopeScaling.None)) {
      throw new FletchException(
          "rope_freqs.weight: not supported together with rope scaling " + rope.scaling());
    }
    return rope.withScaling(new RopeScaling.Factors(floats(factors.get())));
  }

  private static float[] floats(Tensor t) {
    if (t.type() != TensorType.F32) {
      throw new FletchException(t.name() + ": type expected=F32 actual=" + t.type());
    }
    return Dequantizer.toFloats(t);
  }

  /** Marks a tensor as known although it is not used (an output matrix beside tied embeddings). */
  void ignore(String name) {
    names.fileName(name).ifPresent(asked::add);
  }

  /** Whether a tensor of a file is a left-over that no graph needs. */
  public static boolean isIgnorable(String fileName) {
    return IGNORABLE.matcher(fileName).matches();
  }

  /** Refuses tensors that nobody asked for. */
  void checkAllUsed() {
    adapters.forEach(AdapterFile::checkAllUsed);
    List<String> left =
        tensors.keySet().stream().filter(n -> !asked.contains(n) && !isIgnorable(n)).toList();
    if (!left.isEmpty()) {
      throw new FletchException(
          "tensors that this architecture does not know: "
              + String.join(", ", left.subList(0, Math.min(4, left.size())))
              + (left.size() > 4 ? ", ... (" + left.size() + ")" : ""));
    }
  }

  /** Bytes of all tensors. */
  public long bytes() {
    return tensors.values().stream().mapToLong(Tensor::bytes).sum();
  }

  /** Elements of all tensors. */
  public long elements() {
    return tensors.values().stream().mapToLong(Tensor::elements).sum();
  }

  /** The type that most bytes have. */
  public TensorType mainType() {
    long[] bytes = new long[TensorType.values().length];
    tensors.values().forEach(t -> bytes[t.type().ordinal()] += t.bytes());
    OptionalLong most = Arrays.stream(bytes).max();
    for (TensorType type : TensorType.values()) {
      if (bytes[type.ordinal()] == most.getAsLong()) {
        return type;
      }
    }
    throw new AssertionError();
  }
}
