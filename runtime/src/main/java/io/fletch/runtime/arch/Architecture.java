package io.fletch.runtime.arch;

import io.fletch.FletchException;
import io.fletch.graph.RopeSpec;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;

/**
 * The supported model families. What tells them apart is data (specs weights 1.5, specs diffusion
 * 2); there is one graph builder for all.
 */
public enum Architecture {
  /** Llama 1 to 3, Mistral, SmolLM, and whatever else has this shape. */
  LLAMA("llama", List.of("llama", "mistral"), RopeSpec.Style.NORM, TensorNames.HF_LLAMA),
  /** Qwen 1.5 to 2.5. */
  QWEN2("qwen2", List.of("qwen2"), RopeSpec.Style.NEOX, TensorNames.HF_LLAMA),
  /** Qwen 3, dense. */
  QWEN3("qwen3", List.of("qwen3"), RopeSpec.Style.NEOX, TensorNames.HF_LLAMA, Trait.QK_NORM),
  /** LLaDA. Its GGUF converter permutes query and key rows as that of llama does. */
  LLADA("llada", List.of("llada"), RopeSpec.Style.NORM, TensorNames.HF_LLADA, Trait.DIFFUSION),
  /** Dream: Qwen 2.5 made bidirectional. */
  DREAM(
      "dream",
      List.of("Dream", "dream"),
      RopeSpec.Style.NEOX,
      TensorNames.HF_LLAMA,
      Trait.DIFFUSION,
      Trait.SHIFTED_LOGITS),
  /** Gemma 2. */
  GEMMA2(
      "gemma2",
      List.of("gemma2"),
      RopeSpec.Style.NEOX,
      TensorNames.HF_SANDWICH,
      Trait.GEMMA,
      Trait.TIED),
  /** Gemma 3, text only. */
  GEMMA3(
      "gemma3",
      List.of("gemma3_text"),
      RopeSpec.Style.NEOX,
      TensorNames.HF_SANDWICH,
      Trait.GEMMA,
      Trait.TIED,
      Trait.QK_NORM),
  /** Phi-3 and Phi-4-mini: fused projections, LongRoPE. */
  PHI3("phi3", List.of("phi3"), RopeSpec.Style.NEOX, TensorNames.HF_PHI3, Trait.FUSED),
  /** Mixtral: llama with experts. In GGUF files it is {@code llama} with an expert count. */
  MIXTRAL("llama", List.of("mixtral"), RopeSpec.Style.NORM, TensorNames.HF_MIXTRAL, Trait.EXPERTS),
  /** Qwen 1.5 and 2 with experts, a shared one among them. */
  QWEN2MOE(
      "qwen2moe", List.of("qwen2_moe"), RopeSpec.Style.NEOX, TensorNames.HF_EXPERTS, Trait.EXPERTS),
  /** Qwen 3 with experts. */
  QWEN3MOE(
      "qwen3moe",
      List.of("qwen3_moe"),
      RopeSpec.Style.NEOX,
      TensorNames.HF_EXPERTS,
      Trait.EXPERTS,
      Trait.QK_NORM),
  /** DeepSeekMoE: llama with fine experts and shared ones, the base of condensed models. */
  DEEPSEEK(
      "deepseek",
      List.of("deepseek"),
      RopeSpec.Style.NORM,
      TensorNames.HF_DEEPSEEK,
      Trait.EXPERTS,
      Trait.DEEPSEEK),
  /**
   * DeepSeek-V2: the same with multi-head latent attention, with one matrix for keys and values or
   * one for each head of both.
   */
  DEEPSEEK2(
      "deepseek2",
      List.of("deepseek_v2"),
      RopeSpec.Style.NORM,
      TensorNames.HF_DEEPSEEK,
      Trait.EXPERTS,
      Trait.DEEPSEEK,
      Trait.LATENT),
  /** Chain-of-Experts on DeepSeek-V2. */
  COE(
      "coe_deepseekv2",
      List.of("coe_deepseekv2"),
      RopeSpec.Style.NORM,
      TensorNames.HF_DEEPSEEK,
      Trait.EXPERTS,
      Trait.DEEPSEEK,
      Trait.LATENT,
      Trait.CHAIN),
  /** OLMoE. */
  OLMOE(
      "olmoe",
      List.of("olmoe"),
      RopeSpec.Style.NEOX,
      TensorNames.HF_EXPERTS,
      Trait.EXPERTS,
      Trait.FULL_QK_NORM),
  /** OLMo 2: norms on the branches alone. */
  OLMO2(
      "olmo2",
      List.of("olmo2"),
      RopeSpec.Style.NEOX,
      TensorNames.HF_BRANCH,
      Trait.FULL_QK_NORM,
      Trait.BRANCH_NORMS),
  /** Granite 3, dense: llama with scales. */
  GRANITE("granite", List.of("granite"), RopeSpec.Style.NORM, TensorNames.HF_LLAMA, Trait.SCALES),
  /** SmolLM 3: llama, every fourth layer without rotation. */
  SMOLLM3("smollm3", List.of("smollm3"), RopeSpec.Style.NORM, TensorNames.HF_LLAMA),
  /** StarCoder 2: LayerNorm, plain feed-forward units, biases. */
  STARCODER2(
      "starcoder2",
      List.of("starcoder2"),
      RopeSpec.Style.NEOX,
      TensorNames.HF_STARCODER2,
      Trait.LAYER_NORM,
      Trait.PLAIN_FFN),
  /**
   * Falcon 7B and 40B: attention and feed-forward side by side. From GGUF alone: Hugging Face
   * checkpoints interleave the rows of queries, keys and values.
   */
  FALCON(
      "falcon",
      List.of(),
      RopeSpec.Style.NEOX,
      TensorNames.GGUF,
      Trait.LAYER_NORM,
      Trait.PLAIN_FFN,
      Trait.PARALLEL,
      Trait.FUSED_QKV),
  /** LLaDA with experts. */
  LLADA_MOE(
      "llada-moe",
      List.of("llada_moe"),
      RopeSpec.Style.NEOX,
      TensorNames.HF_EXPERTS,
      Trait.EXPERTS,
      Trait.QK_NORM,
      Trait.DIFFUSION),
  /** SDAR and TraDo: Qwen 3 that unmasks block after block. */
  SDAR(
      "sdar",
      List.of("sdar"),
      RopeSpec.Style.NEOX,
      TensorNames.HF_LLAMA,
      Trait.QK_NORM,
      Trait.DIFFUSION,
      Trait.BLOCK_CAUSAL),
  /** SDAR with experts. */
  SDAR_MOE(
      "sdar-moe",
      List.of("sdar_moe"),
      RopeSpec.Style.NEOX,
      TensorNames.HF_EXPERTS,
      Trait.EXPERTS,
      Trait.QK_NORM,
      Trait.DIFFUSION,
      Trait.BLOCK_CAUSAL),
  /** LLaDA 2: groups of experts chosen by sigmoids, block-causal. */
  LLADA2(
      "llada2",
      List.of("llada2_moe"),
      RopeSpec.Style.NEOX,
      TensorNames.HF_BAILING,
      Trait.EXPERTS,
      Trait.QK_NORM,
      Trait.FUSED_QKV,
      Trait.DIFFUSION,
      Trait.BLOCK_CAUSAL),
  /** BERT, an encoder: learned positions, norms after the units. */
  BERT(
      "bert",
      List.of("bert"),
      RopeSpec.Style.NEOX,
      TensorNames.HF_BERT,
      Trait.ENCODER,
      Trait.LEARNED_POSITIONS,
      Trait.LAYER_NORM,
      Trait.PLAIN_FFN),
  /** Nomic's BERT: rotation instead of learned positions, gated units. */
  NOMIC_BERT(
      "nomic-bert",
      List.of("nomic_bert"),
      RopeSpec.Style.NEOX,
      TensorNames.HF_NOMIC_BERT,
      Trait.ENCODER,
      Trait.LAYER_NORM,
      Trait.FUSED_QKV);

  /** What a family has that llama has not. */
  enum Trait {
    /** RMS norms on query and key heads. */
    QK_NORM,
    /** Rows see later rows; text is made by unmasking. */
    DIFFUSION,
    /** Logits of row i predict position i + 1 although it is a diffusion model. */
    SHIFTED_LOGITS,
    /** Norms around units, scaled embeddings, GELU, norm weights stored less 1 by Hugging Face. */
    GEMMA,
    /** There is never an output matrix. */
    TIED,
    /** One matrix for q, k and v, one for gate and up. */
    FUSED,
    /** One matrix for q, k and v. */
    FUSED_QKV,
    /** RMS norms on all query heads together, and on all key heads. */
    FULL_QK_NORM,
    /** Mixtures of experts. */
    EXPERTS,
    /** Norms on the branches alone. */
    BRANCH_NORMS,
    /** Factors on embeddings, branches, scores and logits. */
    SCALES,
    /** LayerNorm instead of RMSNorm. */
    LAYER_NORM,
    /** Feed-forward units without a gate. */
    PLAIN_FFN,
    /** Attention and feed-forward read the same residual. */
    PARALLEL,
    /** Diffusion in blocks: a position sees its block and those before. */
    BLOCK_CAUSAL,
    /** All positions see each other; there is no output matrix, but a norm of the embeddings. */
    ENCODER,
    /** A table of positions instead of a rotation. */
    LEARNED_POSITIONS,
    /** Experts and their settings as DeepSeekMoE has them. */
    DEEPSEEK,
    /** Multi-head latent attention. */
    LATENT,
    /** Experts that run several times. */
    CHAIN
  }

  private final String id;
  private final List<String> modelTypes;
  private final RopeSpec.Style ggufRope;
  private final TensorNames hfNames;
  private final Set<Trait> traits;

  Architecture(
      String id,
      List<String> modelTypes,
      RopeSpec.Style ggufRope,
      TensorNames hfNames,
      Trait... traits) {
    this.id = id;
    this.modelTypes = modelTypes;
    this.ggufRope = ggufRope;
    this.hfNames = hfNames;
    EnumSet<Trait> set = EnumSet.noneOf(Trait.class);
    set.addAll(Arrays.asList(traits));
    this.traits = set;
  }

  /** The name in {@code general.architecture}. */
  public String id() {
    return id;
  }

  boolean has(Trait trait) {
    return traits.contains(trait);
  }

  BlockSpec.QkNorm qkNorm() {
    if (has(Trait.QK_NORM)) {
      return BlockSpec.QkNorm.HEAD;
    }
    return has(Trait.FULL_QK_NORM) ? BlockSpec.QkNorm.FULL : BlockSpec.QkNorm.NONE;
  }

  BlockSpec.Norms norms() {
    if (has(Trait.GEMMA)) {
      return BlockSpec.Norms.SANDWICH;
    }
    if (has(Trait.ENCODER)) {
      return BlockSpec.Norms.POST;
    }
    if (has(Trait.BRANCH_NORMS)) {
      return BlockSpec.Norms.BRANCH;
    }
    return has(Trait.PARALLEL) ? BlockSpec.Norms.PARALLEL : BlockSpec.Norms.PRE;
  }

  HyperParameters.Norm norm() {
    return has(Trait.LAYER_NORM) ? HyperParameters.Norm.LAYER : HyperParameters.Norm.RMS;
  }

  boolean fusedQkv() {
    return has(Trait.FUSED) || has(Trait.FUSED_QKV);
  }

  /** Rotation style of GGUF files; Hugging Face checkpoints are always {@code NEOX}. */
  public RopeSpec.Style ggufRope() {
    return ggufRope;
  }

  /** Names of tensors in Hugging Face checkpoints. */
  public TensorNames hfNames() {
    return hfNames;
  }

  /** The family of a GGUF file. */
  static Architecture ofGguf(String name) {
    for (Architecture a : values()) {
      if (a.id.equals(name)) {
        return a;
      }
    }
    throw new FletchException(
        "general.architecture: not supported: \""
            + name
            + "\", supported="
            + Arrays.stream(values()).map(Architecture::id).distinct().toList());
  }

  /** The family of a Hugging Face checkpoint. */
  static Architecture ofModelType(String type) {
    for (Architecture a : values()) {
      if (a.modelTypes.contains(type)) {
        return a;
      }
    }
    throw new FletchException(
        "config.json model_type: not supported: \""
            + type
            + "\", supported="
            + Arrays.stream(values())
                .flatMap(a -> a.modelTypes.stream())
                .collect(Collectors.toList()));
  }
}
