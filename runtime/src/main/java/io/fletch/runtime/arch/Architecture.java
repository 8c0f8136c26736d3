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
  PHI3("phi3", List.of("phi3"), RopeSpec.Style.NEOX, TensorNames.HF_PHI3, Trait.FUSED);

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
    FUSED
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

  /** Rotation style of GGUF files; Hugging Face checkpoints are always {@code NEOX}. */
  RopeSpec.Style ggufRope() {
    return ggufRope;
  }

  TensorNames hfNames() {
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
            + Arrays.stream(values()).map(Architecture::id).toList());
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
