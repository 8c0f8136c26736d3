package io.fletch.runtime.arch;

import io.fletch.FletchException;
import io.fletch.Pooling;
import io.fletch.graph.Activation;
import io.fletch.graph.RouteSpec;
import io.fletch.quant.Metadata;
import io.fletch.runtime.arch.Architecture.Trait;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.Set;

/**
 * Hyper-parameters from GGUF metadata (specs weights 1.5, specs diffusion 2.7).
 *
 * <p>A key below the architecture's prefix that is not known here is an error unless its value is
 * neutral (0, false, empty): it may change what the model computes.
 */
final class GgufHyperParameters {
  /** Keys that say nothing about the computation, or repeat what the tensors say. */
  private static final Set<String> IGNORED =
      Set.of(
          "tensor_data_layout",
          "rope.scaling.finetuned",
          "use_parallel_residual",
          "interleave_moe_layer_step");

  private static final int MAX_EXPERTS = 1024;

  private GgufHyperParameters() {}

  static HyperParameters read(Metadata metadata) {
    Architecture arch =
        Architecture.ofGguf(
            metadata
                .string("general.architecture")
                .orElseThrow(() -> new FletchException("general.architecture: missing")));
    Settings s = new Settings(metadata, arch.id() + ".");
    if (arch == Architecture.LLAMA && s.integer("expert_count", 0, 0, MAX_EXPERTS) > 0) {
      arch = Architecture.MIXTRAL;
    }
    int layers = s.integer("block_count", 1, HyperParameters.MAX_LAYERS);
    int embedding = s.integer("embedding_length", 1, HyperParameters.MAX_WIDTH);
    int context = s.integer("context_length", 1, Integer.MAX_VALUE);
    boolean diffusion = arch.has(Trait.DIFFUSION);
    boolean encoder = arch.has(Trait.ENCODER);
    boolean causal = s.bool("attention.causal", !diffusion && !encoder) && !diffusion;
    List<BlockSpec> blocks = blocks(arch, s, layers, embedding, context);
    HyperParameters out =
        new HyperParameters(
            arch,
            context,
            embedding,
            s.integer("vocab_size", 0, 1, HyperParameters.MAX_VOCABULARY),
            epsilon(arch, s),
            arch.has(Trait.SCALES)
                ? factor(s, "embedding_scale")
                : arch.has(Trait.GEMMA) ? (float) Math.sqrt(embedding) : 1,
            arch.has(Trait.SCALES) ? 1 / factor(s, "logit_scale") : 1,
            arch.has(Trait.GEMMA) ? (float) s.number("final_logit_softcapping", 0) : 0,
            0,
            arch.has(Trait.TIED),
            diffusion,
            metadata.bool("diffusion.shift_logits").orElse(arch.has(Trait.SHIFTED_LOGITS)),
            diffusion ? mask(metadata) : OptionalInt.empty(),
            arch.norm(),
            arch.has(Trait.BLOCK_CAUSAL) ? diffusionBlock(arch, metadata) : 0,
            causal,
            encoder
                ? Optional.of(new HyperParameters.Encoder(arch.has(Trait.LEARNED_POSITIONS)))
                : Optional.empty(),
            pooling(s),
            blocks);
    checkWindows(s.key("attention.causal"), out);
    checkUnknown(s, arch);
    return out;
  }

  private static Optional<Pooling> pooling(Settings s) {
    return s.optionalInteger("pooling_type", 0, 4)
        .map(type ->
            switch (type) {
              case 0 -> Pooling.NONE;
              case 1 -> Pooling.MEAN;
              case 2 -> Pooling.CLS;
              case 3 -> Pooling.LAST;
              default ->
                  throw new FletchException(
                      s.key("pooling_type") + ": models that rank are not supported: " + type);
            });
  }

  /** What a window lets a position see of those after it is not settled. */
  static void checkWindows(String key, HyperParameters hp) {
    boolean slides =
        hp.blocks().stream().anyMatch(b -> b.attention().filter(a -> a.window() > 0).isPresent());
    if (!hp.causal() && !hp.diffusion() && slides) {
      throw new FletchException(key + ": false is not supported together with a sliding window");
    }
  }

  /** Factors default to 1, and so does a 0 that was written for "none". */
  private static float factor(Settings s, String key) {
    double value = s.number(key, 1);
    return value == 0 ? 1 : (float) value;
  }

  private static float epsilon(Architecture arch, Settings s) {
    boolean hasMean = arch.norm() == HyperParameters.Norm.LAYER;
    s.optionalNumber("attention.layer_norm_epsilon");
    return (float)
        s.number(hasMean ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon");
  }

  /** No converter writes it for all families yet, so the published lengths are the fallback. */
  private static int diffusionBlock(Architecture arch, Metadata metadata) {
    Settings s = new Settings(metadata, "diffusion.");
    return s.integer("block_length", arch == Architecture.LLADA2 ? 32 : 4, 1, 1 << 16);
  }

  private static OptionalInt mask(Metadata metadata) {
    String key = "tokenizer.ggml.mask_token_id";
    long id =
        metadata
            .integer(key)
            .orElseThrow(() -> new FletchException(key + ": missing in a diffusion model"));
    if (id < 0 || id >= HyperParameters.MAX_VOCABULARY) {
      throw new FletchException(key + ": out of range: " + id);
    }
    return OptionalInt.of((int) id);
  }

  private static List<BlockSpec> blocks(
      Architecture arch, Settings s, int layers, int embedding, int context) {
    int[] heads = s.perLayer("attention.head_count", layers, 0, 1 << 16);
    int[] kvHeads = s.perLayer("attention.head_count_kv", heads, 0, 1 << 16);
    int[] widths = s.perLayer("feed_forward_length", layers, 0, 1 << 24);
    int mostHeads = 1;
    for (int h : heads) {
      mostHeads = Math.max(mostHeads, h);
    }
    Optional<Integer> keyLength = s.optionalInteger("attention.key_length", 1, 1 << 16);
    if (keyLength.isEmpty() && embedding % mostHeads != 0) {
      throw new FletchException(
          s.key("attention.head_count")
              + ": must divide embedding_length where key_length is absent: embedding_length="
              + embedding
              + " head_count="
              + mostHeads);
    }
    int keyDim = keyLength.orElse(embedding / mostHeads);
    int valueDim = s.integer("attention.value_length", keyDim, 1, 1 << 16);
    Optional<Integer> keysOfHeads =
        arch.has(Trait.LATENT)
            ? s.optionalInteger("attention.key_length_mla", 1, 1 << 16)
            : Optional.empty();
    if (keysOfHeads.isPresent()) {
      // The other lengths, and one head of keys, are what llama.cpp keeps of the short vector.
      keyDim = keysOfHeads.get();
      valueDim = s.integer("attention.value_length_mla", 1, 1 << 16);
      kvHeads = heads;
    }
    int rotated = s.integer("rope.dimension_count", keyDim, 2, 1 << 16);
    Optional<BlockSpec.Latent> latent =
        arch.has(Trait.LATENT)
            ? Optional.of(
                new BlockSpec.Latent(
                    s.integer("attention.q_lora_rank", 0, 0, 1 << 20),
                    s.integer("attention.kv_lora_rank", 1, 1 << 20)))
            : Optional.empty();
    if (arch == Architecture.LLAMA && rotated != keyDim) {
      throw new FletchException(
          s.key("rope.dimension_count") + ": expected=" + keyDim + " actual=" + rotated);
    }
    int experts = s.integer("expert_count", 0, 0, MAX_EXPERTS);
    if (experts > 0 && !arch.has(Trait.EXPERTS)) {
      throw new FletchException(
          s.key("expert_count")
              + ": mixtures of experts are not supported for "
              + arch.id()
              + ": "
              + experts);
    }
    int denseLayers = s.integer("leading_dense_block_count", 0, 0, layers);
    float branch = arch.has(Trait.SCALES) ? factor(s, "residual_scale") : 1;
    int window =
        s.integer(
            "attention.sliding_window",
            arch == Architecture.GEMMA2 ? 4096 : 0,
            0,
            Integer.MAX_VALUE);
    if (arch == Architecture.GEMMA3 && window == 0) {
      throw new FletchException(s.key("attention.sliding_window") + ": missing");
    }
    RopeParameters rope =
        new RopeParameters(
            arch.ggufRope(), rotated, s.number("rope.freq_base", 10000), scaling(arch, s, context));
    RopeParameters local =
        new RopeParameters(
            arch.ggufRope(),
            rotated,
            arch == Architecture.GEMMA3 ? s.number("rope.freq_base_swa", 10000) : rope.base(),
            arch == Architecture.GEMMA3 ? new RopeScaling.None() : rope.scaling());
    // The 27B models scale queries by the width per head instead of the head's own width.
    boolean wide =
        arch == Architecture.GEMMA2 && layers == 46 || arch == Architecture.GEMMA3 && layers == 62;
    double scale = 1 / Math.sqrt(wide ? (double) embedding / mostHeads : keyDim);
    scale = s.number("attention.scale", scale);
    if (latent.isPresent() && rope.scaling() instanceof RopeScaling.Yarn y) {
      // 0.1 times the share of YaRN's scale that is in the scores and not in the rotation.
      double m = 1 + s.number("rope.scaling.yarn_log_multiplier", 0) * Math.log(y.factor());
      scale *= m * m;
    }
    float softCap =
        arch == Architecture.GEMMA2 ? (float) s.number("attn_logit_softcapping", 50) : 0;
    Activation activation = activation(arch);
    List<BlockSpec> blocks = new ArrayList<>();
    for (int i = 0; i < layers; i++) {
      if (heads[i] == 0 != (kvHeads[i] == 0)) {
        throw new FletchException(
            s.key("attention.head_count_kv")
                + ": layer "
                + i
                + ": head_count="
                + heads[i]
                + " head_count_kv="
                + kvHeads[i]);
      }
      boolean sliding = Windows.slides(arch, i);
      Optional<BlockSpec.Attention> attention =
          heads[i] == 0
              ? Optional.empty()
              : Optional.of(
                  new BlockSpec.Attention(
                      heads[i],
                      kvHeads[i],
                      keyDim,
                      valueDim,
                      (float) scale,
                      softCap,
                      sliding ? window : 0,
                      arch.qkNorm(),
                      arch.fusedQkv(),
                      Windows.rotates(arch, i) && !arch.has(Trait.LEARNED_POSITIONS)
                          ? Optional.of(sliding ? local : rope)
                          : Optional.empty(),
                      latent));
      Optional<BlockSpec.FeedForward> feedForward =
          widths[i] == 0
              ? Optional.empty()
              : Optional.of(
                  experts > 0 && i >= denseLayers
                      ? experts(arch, s, experts, widths[i], activation)
                      : BlockSpec.FeedForward.dense(
                          widths[i],
                          activation,
                          !arch.has(Trait.PLAIN_FFN),
                          arch.has(Trait.FUSED)));
      blocks.add(new BlockSpec(arch.norms(), 1, branch, branch, 1, 1, attention, feedForward));
    }
    return blocks;
  }

  private static Activation activation(Architecture arch) {
    if (arch == Architecture.BERT) {
      return Activation.GELU_ERF;
    }
    return arch.has(Trait.GEMMA) || arch.has(Trait.PLAIN_FFN)
        ? Activation.GELU_TANH
        : Activation.SILU;
  }

  private static BlockSpec.FeedForward experts(
      Architecture arch, Settings s, int experts, int denseWidth, Activation activation) {
    int used = s.integer("expert_used_count", 1, experts);
    // Early files of Qwen 1.5 say nothing about the width of an expert.
    int unsaid = arch == Architecture.QWEN2MOE ? Math.max(1, denseWidth / used) : denseWidth;
    int width = s.integer("expert_feed_forward_length", unsaid, 1, 1 << 24);
    int shared =
        switch (arch) {
          case QWEN2MOE -> s.integer("expert_shared_feed_forward_length", denseWidth, 1, 1 << 24);
          case LLADA2 -> width * s.integer("expert_shared_count", 1, 0, 1 << 10);
          case DEEPSEEK, DEEPSEEK2, COE ->
              Math.toIntExact((long) width * s.integer("expert_shared_count", 0, 0, 1 << 7));
          default -> 0;
        };
    int gating = s.integer("expert_gating_func", arch == Architecture.LLADA2 ? 2 : 1, 0, 2);
    boolean normalized =
        switch (arch) {
          case MIXTRAL, QWEN3MOE, SDAR_MOE -> true;
          case LLADA2 -> s.bool("expert_weights_norm", true);
          default -> s.bool("expert_weights_norm", false);
        };
    s.bool("expert_weights_norm", false);
    double scale = s.number("expert_weights_scale", 1);
    int groups = Math.max(1, s.integer("expert_group_count", 1, 0, RouteSpec.MAX_GROUPS));
    int groupsUsed = s.integer("expert_group_used_count", groups, 0, groups);
    return new BlockSpec.FeedForward(
        width,
        activation,
        true,
        false,
        Optional.of(
            new BlockSpec.Experts(
                route(
                    experts,
                    used,
                    gating == 2 ? RouteSpec.Scoring.SIGMOID : RouteSpec.Scoring.SOFTMAX,
                    normalized,
                    scale == 0 ? 1 : scale,
                    groups,
                    groupsUsed == 0 ? groups : groupsUsed),
                arch == Architecture.LLADA2,
                shared,
                arch == Architecture.QWEN2MOE,
                arch.has(Trait.CHAIN)
                    ? HfHyperParameters.chain(
                        s.integer("chain.iterations", 1, 1, BlockSpec.Chain.MAX_ITERATIONS),
                        s.bool("chain.routers", false),
                        s.string("chain.residual").orElse("inner"))
                    : BlockSpec.Chain.ONCE,
                Optional.empty())));
  }

  /** A routing, or the model's fault. */
  static RouteSpec route(
      int experts,
      int used,
      RouteSpec.Scoring scoring,
      boolean normalized,
      double scale,
      int groups,
      int groupsUsed) {
    try {
      return new RouteSpec(experts, used, scoring, normalized, (float) scale, groups, groupsUsed);
    } catch (IllegalArgumentException e) {
      throw new FletchException("mixture of experts: " + e.getMessage(), e);
    }
  }

  private static RopeScaling scaling(Architecture arch, Settings s, int context) {
    double factor = s.number("rope.scaling.factor", s.number("rope.scale_linear", 0));
    factor = factor == 0 ? 1 : factor;
    String type = s.string("rope.scaling.type").orElse("linear");
    double original =
        s.integer("rope.scaling.original_context_length", context, 1, Integer.MAX_VALUE);
    double attention =
        s.number("rope.scaling.attn_factor", s.number("rope.scaling.yarn_attn_factor", 1));
    double extrapolation = s.number("rope.scaling.yarn_ext_factor", 1);
    double betaFast = s.number("rope.scaling.yarn_beta_fast", 32);
    double betaSlow = s.number("rope.scaling.yarn_beta_slow", 1);
    if (arch == Architecture.PHI3) {
      return new RopeScaling.LongRopeTensors(original, attention);
    }
    return switch (type) {
      case "none" -> new RopeScaling.None();
      case "linear" -> factor == 1 ? new RopeScaling.None() : new RopeScaling.Linear(factor);
      case "yarn" ->
          new RopeScaling.Yarn(
              factor,
              original,
              betaFast,
              betaSlow,
              extrapolation,
              // With latent attention the scores have what belongs to them.
              extrapolation == 0 || arch.has(Trait.LATENT)
                  ? attention
                  : attention * (1 + 0.1 * Math.log(factor)));
      default ->
          throw new FletchException(
              s.key("rope.scaling.type") + ": not supported: \"" + type + "\"");
    };
  }

  private static void checkUnknown(Settings s, Architecture arch) {
    String prefix = s.key("");
    for (String key : s.metadata().entries().keySet()) {
      if (key.startsWith(prefix)
          && !s.wasAsked(key)
          && !IGNORED.contains(key.substring(prefix.length()))
          && !isNeutral(s.metadata().entries().get(key))) {
        throw new FletchException(
            key + ": not supported for " + arch.id() + ": " + s.metadata().entries().get(key));
      }
    }
  }

  private static boolean isNeutral(Object value) {
    return switch (value) {
      case Number n -> n.doubleValue() == 0;
      case Boolean b -> !b;
      case String t -> t.isEmpty();
      case List<?> l -> l.stream().allMatch(GgufHyperParameters::isNeutral);
      default -> false;
    };
  }
}
