package io.fletch.runtime.arch;

import io.fletch.FletchException;
import io.fletch.graph.Activation;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.RouteSpec;
import io.fletch.quant.Metadata;
import io.fletch.runtime.arch.Architecture.Trait;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.OptionalInt;

/**
 * Hyper-parameters from a Hugging Face {@code config.json} (specs weights 1.5).
 *
 * <p>These files are full of settings of training and generation, so unknown keys are let pass; the
 * keys that would change the computation are checked one by one.
 */
final class HfHyperParameters {
  private HfHyperParameters() {}

  static HyperParameters read(Metadata metadata) {
    Settings s = new Settings(metadata, "");
    Architecture arch =
        Architecture.ofModelType(
            s.string("model_type")
                .orElseThrow(() -> new FletchException("config.json model_type: missing")));
    for (String key : metadata.entries().keySet()) {
      if (key.equals("quantization_config") || key.startsWith("quantization_config.")) {
        throw new FletchException(
            "config.json quantization_config: quantized safetensors are not supported; convert the"
                + " model to GGUF");
      }
    }
    if (arch.has(Trait.ENCODER)) {
      return encoder(arch, s);
    }
    return arch == Architecture.LLADA ? llada(s) : llama(arch, s);
  }

  private static HyperParameters llama(Architecture arch, Settings s) {
    int layers = s.integer("num_hidden_layers", 1, HyperParameters.MAX_LAYERS);
    int embedding = s.integer("hidden_size", 1, HyperParameters.MAX_WIDTH);
    int context = s.integer("max_position_embeddings", 1, Integer.MAX_VALUE);
    int heads = s.integer("num_attention_heads", 1, 1 << 16);
    int kvHeads = s.integer("num_key_value_heads", heads, 1, 1 << 16);
    boolean isLatent = arch.has(Trait.LATENT);
    int rotatedOfLatent = isLatent ? s.integer("qk_rope_head_dim", 2, 1 << 16) : 0;
    int keyDim =
        isLatent
            ? rotatedOfLatent + s.integer("qk_nope_head_dim", 1, 1 << 16)
            : headDim(s, embedding, heads);
    int valueDim = isLatent ? s.integer("v_head_dim", 1, 1 << 16) : keyDim;
    Optional<BlockSpec.Latent> latent =
        isLatent
            ? Optional.of(
                new BlockSpec.Latent(
                    s.integer("q_lora_rank", 0, 1, 1 << 20), s.integer("kv_lora_rank", 1, 1 << 20)))
            : Optional.empty();
    int width = s.integer("intermediate_size", 1, 1 << 24);
    float branch = arch.has(Trait.SCALES) ? (float) s.number("residual_multiplier", 1) : 1;
    int rotated =
        isLatent
            ? rotatedOfLatent
            : (int) Math.round(keyDim * s.number("partial_rotary_factor", 1));
    RopeParameters rope = rope(arch, s, rotated, context);
    RopeParameters local =
        arch == Architecture.GEMMA3
            ? new RopeParameters(
                RopeSpec.Style.NEOX,
                rotated,
                s.number("rope_local_base_freq", 10000),
                new RopeScaling.None())
            : rope;
    double scale = 1 / Math.sqrt(keyDim);
    if (arch.has(Trait.GEMMA)) {
      scale = 1 / Math.sqrt(s.number("query_pre_attn_scalar"));
    }
    scale *= isLatent ? latentScale(s) : 1;
    float softCap = arch.has(Trait.GEMMA) ? (float) s.number("attn_logit_softcapping", 0) : 0;
    if (arch.has(Trait.SCALES)) {
      scale = s.number("attention_multiplier", scale);
    }
    BlockSpec.FeedForward dense =
        BlockSpec.FeedForward.dense(
            width, activation(arch, s), !arch.has(Trait.PLAIN_FFN), arch.has(Trait.FUSED));
    List<BlockSpec> blocks = new ArrayList<>();
    int[] windows = windows(arch, s, layers);
    for (int i = 0; i < layers; i++) {
      BlockSpec.Attention attention =
          new BlockSpec.Attention(
              heads,
              kvHeads,
              keyDim,
              valueDim,
              (float) scale,
              softCap,
              windows[i],
              arch.qkNorm(),
              arch.fusedQkv(),
              rotates(arch, s, i, layers)
                  ? Optional.of(windows[i] > 0 ? local : rope)
                  : Optional.empty(),
              latent);
      blocks.add(
          new BlockSpec(
              arch.norms(),
              1,
              branch,
              branch,
              1,
              1,
              Optional.of(attention),
              Optional.of(hasExperts(arch, s, i) ? experts(arch, s, width) : dense)));
    }
    boolean diffusion = arch.has(Trait.DIFFUSION);
    return new HyperParameters(
        arch,
        context,
        embedding,
        s.integer("vocab_size", 1, HyperParameters.MAX_VOCABULARY),
        (float) s.number(arch.has(Trait.LAYER_NORM) ? "norm_epsilon" : "rms_norm_eps"),
        arch.has(Trait.SCALES)
            ? (float) s.number("embedding_multiplier", 1)
            : arch.has(Trait.GEMMA) ? (float) Math.sqrt(embedding) : 1,
        arch.has(Trait.SCALES) ? (float) (1 / s.number("logits_scaling", 1)) : 1,
        arch.has(Trait.GEMMA) ? (float) s.number("final_logit_softcapping", 0) : 0,
        arch.has(Trait.GEMMA) ? 1 : 0,
        s.bool("tie_word_embeddings", arch.has(Trait.TIED)),
        diffusion,
        arch.has(Trait.SHIFTED_LOGITS),
        diffusion ? mask(s) : OptionalInt.empty(),
        arch.norm(),
        arch.has(Trait.BLOCK_CAUSAL)
            ? s.integer("block_size", arch == Architecture.LLADA2 ? 32 : 4, 1, 1 << 16)
            : 0,
        !diffusion,
        Optional.empty(),
        Optional.empty(),
        blocks);
  }

  private static boolean rotates(Architecture arch, Settings s, int layer, int layers) {
    if (arch != Architecture.SMOLLM3) {
      return true;
    }
    Optional<float[]> flags = s.floats("no_rope_layers");
    if (flags.isPresent()) {
      if (flags.get().length != layers) {
        throw new FletchException(
            "no_rope_layers: expected=" + layers + " values actual=" + flags.get().length);
      }
      // In spite of its name, 1 says that the layer rotates.
      return flags.get()[layer] != 0;
    }
    int interval = s.integer("no_rope_layer_interval", 4, 1, Integer.MAX_VALUE);
    return (layer + 1) % interval != 0;
  }

  private static boolean hasExperts(Architecture arch, Settings s, int layer) {
    if (!arch.has(Trait.EXPERTS)) {
      return false;
    }
    if (arch.has(Trait.DEEPSEEK)) {
      // The code of chains cannot run a dense layer.
      int most = arch.has(Trait.CHAIN) ? 0 : HyperParameters.MAX_LAYERS;
      return layer >= s.integer("first_k_dense_replace", 0, 0, most)
          && layer % s.integer("moe_layer_freq", 1, 1, Math.max(1, most)) == 0;
    }
    if (arch == Architecture.LLADA2) {
      return layer >= s.integer("first_k_dense_replace", 0, 0, HyperParameters.MAX_LAYERS);
    }
    long[] dense = s.metadata().integers("mlp_only_layers").orElse(new long[0]);
    for (long l : dense) {
      if (l == layer) {
        return false;
      }
    }
    return (layer + 1) % s.integer("decoder_sparse_step", 1, 1, HyperParameters.MAX_LAYERS) == 0;
  }

  /** YaRN's {@code 0.1 m ln(factor) + 1}. */
  private static double yarnScale(double factor, double m) {
    return factor <= 1 ? 1 : 0.1 * m * Math.log(factor) + 1;
  }

  /** What latent attention with YaRN multiplies its scores by. */
  private static double latentScale(Settings s) {
    String at = ropeKeys(s);
    double all = s.number(at + "mscale_all_dim", 0);
    double m = all == 0 ? 1 : yarnScale(s.number(at + "factor"), all);
    return m * m;
  }

  private static BlockSpec.FeedForward deepSeek(Architecture arch, Settings s) {
    int count = s.integer("n_routed_experts", 1, 1024);
    int used = s.integer("num_experts_per_tok", 1, count);
    int width = s.integer("moe_intermediate_size", 1, 1 << 24);
    s.requireString("scoring_func", "softmax");
    String method = s.string("topk_method").orElse("greedy");
    if (!method.equals("greedy") && s.integer("n_group", 1, 1, 1 << 16) != 1) {
      throw new FletchException(
          "topk_method: not supported: \"" + method + "\", supported=\"greedy\"");
    }
    boolean normalized = s.bool("norm_topk_prob", false) && used > 1;
    // What is normalised is not scaled, and DeepSeekMoE scales nothing.
    double scale =
        normalized || arch == Architecture.DEEPSEEK ? 1 : s.number("routed_scaling_factor", 1);
    int shared = width * s.integer("n_shared_experts", 0, 0, 1024);
    BlockSpec.Experts experts =
        BlockSpec.Experts.once(
            GgufHyperParameters.route(
                count, used, RouteSpec.Scoring.SOFTMAX, normalized, scale, 1, 1),
            false,
            shared,
            false);
    if (arch.has(Trait.CHAIN)) {
      boolean isNamed = s.has("residual") || !s.has("outer_residual");
      String residual = s.string("residual").orElse("inner");
      experts =
          experts.withChain(
              chain(
                  s.integer("inner_iter", 1, 1, BlockSpec.Chain.MAX_ITERATIONS),
                  s.bool("use_igate", false),
                  isNamed
                      ? residual
                      : residual(s.bool("inner_residual", true), s.bool("outer_residual", false))));
    }
    return new BlockSpec.FeedForward(width, activation(arch, s), true, false, Optional.of(experts));
  }

  /** Older code has two flags in place of a name. */
  private static String residual(boolean inner, boolean outer) {
    if (inner && outer) {
      return "both";
    }
    return inner ? "inner" : outer ? "outer" : "none";
  }

  /** A chain of experts by the name of its residual. */
  static BlockSpec.Chain chain(int iterations, boolean routers, String residual) {
    BlockSpec.Chain.Carry carry =
        switch (residual) {
          case "inner", "both" -> BlockSpec.Chain.Carry.INNER;
          case "addinit" -> BlockSpec.Chain.Carry.FIRST;
          case "outer", "none" -> BlockSpec.Chain.Carry.NONE;
          default ->
              throw new FletchException(
                  "residual of a chain of experts: not supported: \""
                      + residual
                      + "\", supported=inner|outer|both|addinit|none");
        };
    boolean outer = residual.equals("outer") || residual.equals("both");
    return new BlockSpec.Chain(iterations, routers, carry, outer);
  }

  private static BlockSpec.FeedForward experts(Architecture arch, Settings s, int denseWidth) {
    if (arch.has(Trait.DEEPSEEK)) {
      return deepSeek(arch, s);
    }
    int count =
        arch == Architecture.MIXTRAL
            ? s.integer("num_local_experts", 1, 1024)
            : s.integer("num_experts", 1, 1024);
    int used = s.integer("num_experts_per_tok", 1, count);
    boolean isGrouped = arch == Architecture.LLADA2;
    boolean isNamedWidth = arch == Architecture.MIXTRAL || arch == Architecture.OLMOE;
    int width =
        isNamedWidth
            ? denseWidth
            : s.optionalInteger("moe_intermediate_size", 1, 1 << 24)
                .orElseGet(() -> s.integer("expert_intermediate_size", denseWidth, 1, 1 << 24));
    int shared =
        switch (arch) {
          case QWEN2MOE -> s.integer("shared_expert_intermediate_size", 1, 1 << 24);
          case LLADA2 -> width * s.integer("num_shared_experts", 0, 0, 1024);
          default -> 0;
        };
    if (isGrouped) {
      s.requireString("score_function", "sigmoid");
    }
    int groups = isGrouped ? s.integer("n_group", 1, 1, RouteSpec.MAX_GROUPS) : 1;
    return new BlockSpec.FeedForward(
        width,
        activation(arch, s),
        true,
        false,
        Optional.of(
            BlockSpec.Experts.once(
                GgufHyperParameters.route(
                    count,
                    used,
                    isGrouped ? RouteSpec.Scoring.SIGMOID : RouteSpec.Scoring.SOFTMAX,
                    arch == Architecture.MIXTRAL || s.bool("norm_topk_prob", isGrouped),
                    isGrouped ? s.number("routed_scaling_factor", 1) : 1,
                    groups,
                    isGrouped ? s.integer("topk_group", groups, 1, groups) : 1),
                isGrouped && s.bool("moe_router_enable_expert_bias", true),
                shared,
                arch == Architecture.QWEN2MOE)));
  }

  /**
   * BERT and Nomic's, which has two sets of names: those of its own code, after GPT-2's, and those
   * of transformers.
   */
  private static HyperParameters encoder(Architecture arch, Settings s) {
    boolean isNomic = arch == Architecture.NOMIC_BERT;
    boolean isOwn = isNomic && s.has("n_embd");
    int layers = s.integer(isOwn ? "n_layer" : "num_hidden_layers", 1, HyperParameters.MAX_LAYERS);
    int embedding = s.integer(isOwn ? "n_embd" : "hidden_size", 1, HyperParameters.MAX_WIDTH);
    int heads = s.integer(isOwn ? "n_head" : "num_attention_heads", 1, 1 << 16);
    int context =
        s.integer(isOwn ? "n_positions" : "max_position_embeddings", 1, Integer.MAX_VALUE);
    int keyDim = headDim(s, embedding, heads);
    s.requireString("position_embedding_type", "absolute");
    s.requireBool("is_decoder", false);
    s.requireBool("add_cross_attention", false);
    Activation activation = isNomic ? Activation.SILU : activation("hidden_act", "gelu", s);
    Optional<RopeParameters> rope = Optional.empty();
    if (isOwn) {
      s.requireString("activation_function", "swiglu");
      for (String refused :
          List.of(
              "causal",
              "prenorm",
              "parallel_block",
              "use_rms_norm",
              "rotary_emb_interleaved",
              "scale_attn_by_inverse_layer_idx")) {
        s.requireBool(refused, false);
      }
      s.requireBool("scale_attn_weights", true);
      if (s.optionalNumber("rotary_emb_scale_base").isPresent()) {
        throw new FletchException(
            "rotary_emb_scale_base: not supported: " + s.number("rotary_emb_scale_base"));
      }
      // Beyond the positions of training its base grows with the text.
      if (s.optionalNumber("rotary_scaling_factor").isPresent()) {
        context = Math.min(context, s.integer("max_trained_positions", 2048, 1, 1 << 24));
      }
      int rotated = (int) Math.round(keyDim * s.number("rotary_emb_fraction", 1));
      rope =
          Optional.of(
              new RopeParameters(
                  RopeSpec.Style.NEOX,
                  rotated,
                  s.number("rotary_emb_base", 10000),
                  new RopeScaling.None()));
    } else if (isNomic) {
      s.requireString("hidden_act", "silu");
      rope = Optional.of(rope(arch, s, keyDim, context));
    }
    BlockSpec.Attention attention =
        new BlockSpec.Attention(
            heads,
            heads,
            keyDim,
            keyDim,
            (float) (1 / Math.sqrt(keyDim)),
            0,
            0,
            arch.qkNorm(),
            arch.fusedQkv(),
            rope,
            Optional.empty());
    BlockSpec.FeedForward feedForward =
        BlockSpec.FeedForward.dense(
            s.integer(isOwn ? "n_inner" : "intermediate_size", 1, 1 << 24),
            activation,
            !arch.has(Trait.PLAIN_FFN),
            false);
    List<BlockSpec> blocks = new ArrayList<>();
    for (int i = 0; i < layers; i++) {
      blocks.add(BlockSpec.of(arch.norms(), Optional.of(attention), Optional.of(feedForward)));
    }
    return new HyperParameters(
        arch,
        context,
        embedding,
        s.integer("vocab_size", 1, HyperParameters.MAX_VOCABULARY),
        (float) s.number(isOwn ? "layer_norm_epsilon" : "layer_norm_eps", 1e-12),
        1,
        1,
        0,
        0,
        false,
        false,
        false,
        OptionalInt.empty(),
        arch.norm(),
        0,
        false,
        Optional.of(new HyperParameters.Encoder(arch.has(Trait.LEARNED_POSITIONS))),
        Optional.empty(),
        blocks);
  }

  private static Activation activation(String key, String otherwise, Settings s) {
    return activation(key, s.string(key).orElse(otherwise));
  }

  private static HyperParameters llada(Settings s) {
    int layers = s.integer("n_layers", 1, HyperParameters.MAX_LAYERS);
    int embedding = s.integer("d_model", 1, HyperParameters.MAX_WIDTH);
    int context = s.integer("max_sequence_length", 1, Integer.MAX_VALUE);
    int heads = s.integer("n_heads", 1, 1 << 16);
    int kvHeads =
        s.integer("n_kv_heads", s.bool("multi_query_attention", false) ? 1 : heads, 1, 1 << 16);
    s.requireString("block_type", "llama");
    s.requireString("layer_norm_type", "rms");
    s.requireBool("alibi", false);
    s.requireBool("rope", true);
    s.requireBool("input_emb_norm", false);
    s.requireBool("attention_layer_norm", false);
    s.requireBool("residual_dropout_at_inference", false);
    if (s.integer("block_group_size", 1, 1, HyperParameters.MAX_LAYERS) != 1) {
      throw new FletchException(
          "block_group_size: expected=1 actual=" + s.integer("block_group_size", 1, 4096));
    }
    if (s.optionalNumber("clip_qkv").isPresent()) {
      throw new FletchException("clip_qkv: not supported: " + s.number("clip_qkv"));
    }
    int keyDim = headDim(s, embedding, heads);
    BlockSpec.Attention attention =
        new BlockSpec.Attention(
            heads,
            kvHeads,
            keyDim,
            keyDim,
            (float) (1 / Math.sqrt(keyDim)),
            0,
            0,
            BlockSpec.QkNorm.NONE,
            false,
            Optional.of(
                new RopeParameters(
                    RopeSpec.Style.NEOX,
                    keyDim,
                    s.number("rope_theta", 10000),
                    new RopeScaling.None())),
            Optional.empty());
    BlockSpec.FeedForward feedForward =
        BlockSpec.FeedForward.dense(
            s.integer("mlp_hidden_size", 1, 1 << 24),
            activation("activation_type", s.string("activation_type").orElse("silu")),
            true,
            false);
    List<BlockSpec> blocks = new ArrayList<>();
    for (int i = 0; i < layers; i++) {
      blocks.add(
          BlockSpec.of(BlockSpec.Norms.PRE, Optional.of(attention), Optional.of(feedForward)));
    }
    int vocabulary = s.integer("vocab_size", 1, HyperParameters.MAX_VOCABULARY);
    return new HyperParameters(
        Architecture.LLADA,
        context,
        embedding,
        s.integer("embedding_size", vocabulary, 1, HyperParameters.MAX_VOCABULARY),
        (float) s.number("rms_norm_eps"),
        1,
        s.bool("scale_logits", false) ? (float) (1 / Math.sqrt(embedding)) : 1,
        0,
        0,
        s.bool("weight_tying", false),
        true,
        false,
        mask(s),
        HyperParameters.Norm.RMS,
        0,
        false,
        Optional.empty(),
        Optional.empty(),
        blocks);
  }

  private static int headDim(Settings s, int embedding, int heads) {
    Optional<Integer> dim = s.optionalInteger("head_dim", 1, 1 << 16);
    if (dim.isEmpty() && embedding % heads != 0) {
      throw new FletchException(
          "attention heads must divide the width where head_dim is absent: width="
              + embedding
              + " heads="
              + heads);
    }
    return dim.orElse(embedding / heads);
  }

  private static OptionalInt mask(Settings s) {
    return OptionalInt.of(s.integer("mask_token_id", 0, HyperParameters.MAX_VOCABULARY - 1));
  }

  private static Activation activation(Architecture arch, Settings s) {
    String key =
        arch.has(Trait.GEMMA) && s.has("hidden_activation") ? "hidden_activation" : "hidden_act";
    return activation(
        key, s.string(key).orElse(arch.has(Trait.GEMMA) ? "gelu_pytorch_tanh" : "silu"));
  }

  /** An activation by the name that transformers has for it. */
  static Activation activation(String key, String name) {
    return switch (name) {
      case "silu", "swish" -> Activation.SILU;
      case "gelu_pytorch_tanh", "gelu_new" -> Activation.GELU_TANH;
      case "gelu" -> Activation.GELU_ERF;
      case "relu" -> Activation.RELU;
      case "relu2" -> Activation.RELU_SQUARED;
      default -> throw new FletchException(key + ": not supported: \"" + name + "\"");
    };
  }

  private static int[] windows(Architecture arch, Settings s, int layers) {
    int window = s.integer("sliding_window", 0, 0, Integer.MAX_VALUE);
    int[] out = new int[layers];
    boolean isQwen =
        switch (arch) {
          case QWEN2, QWEN3, DREAM, QWEN2MOE, QWEN3MOE, SDAR, SDAR_MOE, SMOLLM3 -> true;
          default -> false;
        };
    if (window == 0 || isQwen && !s.bool("use_sliding_window", false)) {
      return out;
    }
    Optional<String[]> types = s.strings("layer_types");
    if (types.isPresent() && types.get().length != layers) {
      throw new FletchException(
          "layer_types: expected=" + layers + " values actual=" + types.get().length);
    }
    int firstOfQwen = isQwen ? s.integer("max_window_layers", 28, 0, Integer.MAX_VALUE) : 0;
    int pattern =
        arch == Architecture.GEMMA3
            ? s.integer("sliding_window_pattern", 6, 1, Integer.MAX_VALUE)
            : 0;
    for (int i = 0; i < layers; i++) {
      boolean slides;
      if (types.isPresent()) {
        slides =
            switch (types.get()[i]) {
              case "sliding_attention" -> true;
              case "full_attention" -> false;
              default ->
                  throw new FletchException(
                      "layer_types[" + i + "]: not supported: \"" + types.get()[i] + "\"");
            };
      } else if (pattern > 0) {
        slides = (i + 1) % pattern != 0;
      } else {
        slides = isQwen ? i >= firstOfQwen : Windows.slides(arch, i);
      }
      out[i] = slides ? window : 0;
    }
    return out;
  }

  private static String ropeKeys(Settings s) {
    boolean isNew = s.has("rope_parameters.rope_theta") || s.has("rope_parameters.rope_type");
    return isNew ? "rope_parameters." : "rope_scaling.";
  }

  /**
   * Newer files have one object {@code rope_parameters}, older ones {@code rope_theta} and {@code
   * rope_scaling}.
   */
  private static RopeParameters rope(Architecture arch, Settings s, int rotated, int context) {
    String at = ropeKeys(s);
    boolean isNew = at.equals("rope_parameters.");
    double base = s.number(isNew ? "rope_parameters.rope_theta" : "rope_theta", 10000);
    String type = s.string(at + "rope_type").or(() -> s.string(at + "type")).orElse("default");
    RopeScaling scaling =
        switch (type) {
          case "default" -> new RopeScaling.None();
          case "linear" -> new RopeScaling.Linear(s.number(at + "factor"));
          case "llama3" ->
              new RopeScaling.Llama3(
                  s.number(at + "factor"),
                  s.number(at + "low_freq_factor", 1),
                  s.number(at + "high_freq_factor", 4),
                  s.number(at + "original_max_position_embeddings", 8192));
          case "yarn" -> yarn(arch, s, at, context);
          case "longrope", "su" -> longRope(arch, s, at, context);
          default -> throw new FletchException(at + "rope_type: not supported: \"" + type + "\"");
        };
    // The one kind of checkpoint that rotates pairs.
    RopeSpec.Style style = arch.has(Trait.LATENT) ? RopeSpec.Style.NORM : RopeSpec.Style.NEOX;
    return new RopeParameters(style, rotated, base, scaling);
  }

  private static RopeScaling yarn(Architecture arch, Settings s, String at, int context) {
    double factor = s.number(at + "factor");
    if (arch.has(Trait.LATENT)) {
      double m = yarnScale(factor, s.number(at + "mscale", 1));
      double all = s.number(at + "mscale_all_dim", 0);
      return new RopeScaling.Yarn(
          factor,
          s.number(at + "original_max_position_embeddings", 4096),
          s.number(at + "beta_fast", 32),
          s.number(at + "beta_slow", 1),
          1,
          all == 0 ? m : m / yarnScale(factor, all));
    }
    if (s.has(at + "mscale") || s.has(at + "mscale_all_dim")) {
      throw new FletchException(at + "mscale: not supported");
    }
    if (!s.bool(at + "truncate", true)) {
      throw new FletchException(at + "truncate: not supported: false");
    }
    return new RopeScaling.Yarn(
        factor,
        s.number(at + "original_max_position_embeddings", context),
        s.number(at + "beta_fast", 32),
        s.number(at + "beta_slow", 1),
        1,
        s.number(at + "attention_factor", factor <= 1 ? 1 : 1 + 0.1 * Math.log(factor)));
  }

  private static RopeScaling longRope(Architecture arch, Settings s, String at, int context) {
    double original =
        s.optionalNumber(at + "original_max_position_embeddings")
            .or(() -> s.optionalNumber("original_max_position_embeddings"))
            .orElseThrow(() ->
                new FletchException(
                    "original_max_position_embeddings: missing, needed by longrope in "
                        + arch.id()));
    double stretch = context / original;
    double magnitude = stretch <= 1 ? 1 : Math.sqrt(1 + Math.log(stretch) / Math.log(original));
    return new RopeScaling.LongRope(
        factors(s, at + "short_factor"),
        factors(s, at + "long_factor"),
        original,
        s.number(at + "attention_factor", magnitude));
  }

  private static float[] factors(Settings s, String key) {
    return s.floats(key).orElseThrow(() -> new FletchException(key + ": missing"));
  }
}
