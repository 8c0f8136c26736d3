package io.fletch.runtime.arch;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.function.UnaryOperator;

/**
 * From the names that the graph builder uses (those of GGUF, specs weights 1.6) to the names in a
 * file. {@code {}} stands for the layer, {@code {e}} for the expert.
 */
public final class TensorNames {
  /** GGUF: names are as they are. */
  static final TensorNames GGUF = new TensorNames(Map.of());

  /** Hugging Face checkpoints of the llama family. */
  static final TensorNames HF_LLAMA =
      new TensorNames(
          Map.ofEntries(
              Map.entry("token_embd", "model.embed_tokens"),
              Map.entry("output_norm", "model.norm"),
              Map.entry("output", "lm_head"),
              Map.entry("blk.{}.attn_norm", "model.layers.{}.input_layernorm"),
              Map.entry("blk.{}.attn_q", "model.layers.{}.self_attn.q_proj"),
              Map.entry("blk.{}.attn_k", "model.layers.{}.self_attn.k_proj"),
              Map.entry("blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"),
              Map.entry("blk.{}.attn_qkv", "model.layers.{}.self_attn.qkv_proj"),
              Map.entry("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
              Map.entry("blk.{}.attn_q_norm", "model.layers.{}.self_attn.q_norm"),
              Map.entry("blk.{}.attn_k_norm", "model.layers.{}.self_attn.k_norm"),
              Map.entry("blk.{}.ffn_norm", "model.layers.{}.post_attention_layernorm"),
              Map.entry("blk.{}.gpas_gate", "model.layers.{}.gpas_block.gate"),
              Map.entry("blk.{}.attn_branch_scale", "model.layers.{}.raw_scaling_factor_attn"),
              Map.entry("blk.{}.ffn_branch_scale", "model.layers.{}.raw_scaling_factor_mlp"),
              Map.entry("blk.{}.ffn_gate", "model.layers.{}.mlp.gate_proj"),
              Map.entry("blk.{}.ffn_up", "model.layers.{}.mlp.up_proj"),
              Map.entry("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj")));

  /** The llama family with norms after the units too (Gemma 2 and 3). */
  static final TensorNames HF_SANDWICH = HF_LLAMA.with(sandwich());

  /** Phi-3: gate and up in one matrix. */
  static final TensorNames HF_PHI3 =
      HF_LLAMA.with(Map.of("blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj"));

  /** The llama family with experts, in the names of Qwen. */
  static final TensorNames HF_EXPERTS =
      HF_LLAMA.with(
          Map.ofEntries(
              Map.entry("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.gate"),
              Map.entry("blk.{}.ffn_fixed_exps", "model.layers.{}.mlp.fixed_experts"),
              Map.entry("blk.{}.ffn_gate_exps.{e}", "model.layers.{}.mlp.experts.{e}.gate_proj"),
              Map.entry("blk.{}.ffn_up_exps.{e}", "model.layers.{}.mlp.experts.{e}.up_proj"),
              Map.entry("blk.{}.ffn_down_exps.{e}", "model.layers.{}.mlp.experts.{e}.down_proj"),
              Map.entry("blk.{}.ffn_gate_inp_shexp", "model.layers.{}.mlp.shared_expert_gate"),
              Map.entry("blk.{}.ffn_gate_shexp", "model.layers.{}.mlp.shared_expert.gate_proj"),
              Map.entry("blk.{}.ffn_up_shexp", "model.layers.{}.mlp.shared_expert.up_proj"),
              Map.entry("blk.{}.ffn_down_shexp", "model.layers.{}.mlp.shared_expert.down_proj")));

  /**
   * DeepSeekMoE, DeepSeek-V2 and what has their shape; condensed layers of the first, several
   * routers (Chain-of-Experts) of the second.
   */
  static final TensorNames HF_DEEPSEEK =
      HF_EXPERTS.with(
          Map.ofEntries(
              Map.entry("blk.{}.attn_q_a", "model.layers.{}.self_attn.q_a_proj"),
              Map.entry("blk.{}.attn_q_a_norm", "model.layers.{}.self_attn.q_a_layernorm"),
              Map.entry("blk.{}.attn_q_b", "model.layers.{}.self_attn.q_b_proj"),
              Map.entry("blk.{}.attn_kv_a_mqa", "model.layers.{}.self_attn.kv_a_proj_with_mqa"),
              Map.entry("blk.{}.attn_kv_a_norm", "model.layers.{}.self_attn.kv_a_layernorm"),
              Map.entry("blk.{}.attn_kv_b", "model.layers.{}.self_attn.kv_b_proj"),
              Map.entry("blk.{}.ffn_gate_inp.{e}", "model.layers.{}.mlp.gate.{e}"),
              Map.entry("blk.{}.ffn_gate_shexp", "model.layers.{}.mlp.shared_experts.gate_proj"),
              Map.entry("blk.{}.ffn_up_shexp", "model.layers.{}.mlp.shared_experts.up_proj"),
              Map.entry("blk.{}.ffn_down_shexp", "model.layers.{}.mlp.shared_experts.down_proj")));

  /** Mixtral. */
  static final TensorNames HF_MIXTRAL =
      HF_LLAMA.with(
          Map.of(
              "blk.{}.ffn_gate_inp", "model.layers.{}.block_sparse_moe.gate",
              "blk.{}.ffn_gate_exps.{e}", "model.layers.{}.block_sparse_moe.experts.{e}.w1",
              "blk.{}.ffn_down_exps.{e}", "model.layers.{}.block_sparse_moe.experts.{e}.w2",
              "blk.{}.ffn_up_exps.{e}", "model.layers.{}.block_sparse_moe.experts.{e}.w3"));

  /** Norms after the units alone (OLMo 2). */
  static final TensorNames HF_BRANCH =
      HF_LLAMA.with(
          Map.of(
              "blk.{}.post_attention_norm", "model.layers.{}.post_attention_layernorm",
              "blk.{}.post_ffw_norm", "model.layers.{}.post_feedforward_layernorm"));

  /** StarCoder 2. */
  static final TensorNames HF_STARCODER2 =
      HF_LLAMA.with(
          Map.of(
              "blk.{}.ffn_up", "model.layers.{}.mlp.c_fc",
              "blk.{}.ffn_down", "model.layers.{}.mlp.c_proj"));

  /** Ling 2 and LLaDA 2. */
  static final TensorNames HF_BAILING =
      HF_EXPERTS.with(
          Map.ofEntries(
              Map.entry("token_embd", "model.word_embeddings"),
              Map.entry("blk.{}.attn_qkv", "model.layers.{}.attention.query_key_value"),
              Map.entry("blk.{}.attn_output", "model.layers.{}.attention.dense"),
              Map.entry("blk.{}.attn_q_norm", "model.layers.{}.attention.query_layernorm"),
              Map.entry("blk.{}.attn_k_norm", "model.layers.{}.attention.key_layernorm"),
              Map.entry("blk.{}.exp_probs_b", "model.layers.{}.mlp.gate.expert_bias"),
              Map.entry("blk.{}.ffn_gate_shexp", "model.layers.{}.mlp.shared_experts.gate_proj"),
              Map.entry("blk.{}.ffn_up_shexp", "model.layers.{}.mlp.shared_experts.up_proj"),
              Map.entry("blk.{}.ffn_down_shexp", "model.layers.{}.mlp.shared_experts.down_proj")));

  /** LLaDA's own code. */
  static final TensorNames HF_LLADA =
      new TensorNames(
          Map.ofEntries(
              Map.entry("token_embd", "model.transformer.wte"),
              Map.entry("output_norm", "model.transformer.ln_f"),
              Map.entry("output", "model.transformer.ff_out"),
              Map.entry("blk.{}.attn_norm", "model.transformer.blocks.{}.attn_norm"),
              Map.entry("blk.{}.attn_q", "model.transformer.blocks.{}.q_proj"),
              Map.entry("blk.{}.attn_k", "model.transformer.blocks.{}.k_proj"),
              Map.entry("blk.{}.attn_v", "model.transformer.blocks.{}.v_proj"),
              Map.entry("blk.{}.attn_output", "model.transformer.blocks.{}.attn_out"),
              Map.entry("blk.{}.ffn_norm", "model.transformer.blocks.{}.ff_norm"),
              Map.entry("blk.{}.ffn_gate", "model.transformer.blocks.{}.ff_proj"),
              Map.entry("blk.{}.ffn_up", "model.transformer.blocks.{}.up_proj"),
              Map.entry("blk.{}.ffn_down", "model.transformer.blocks.{}.ff_out")));

  /** BERT, in the names of its body alone. */
  static final TensorNames HF_BERT =
      new TensorNames(
          Map.ofEntries(
              Map.entry("token_embd", "embeddings.word_embeddings"),
              Map.entry("token_types", "embeddings.token_type_embeddings"),
              Map.entry("position_embd", "embeddings.position_embeddings"),
              Map.entry("token_embd_norm", "embeddings.LayerNorm"),
              Map.entry("blk.{}.attn_q", "encoder.layer.{}.attention.self.query"),
              Map.entry("blk.{}.attn_k", "encoder.layer.{}.attention.self.key"),
              Map.entry("blk.{}.attn_v", "encoder.layer.{}.attention.self.value"),
              Map.entry("blk.{}.attn_output", "encoder.layer.{}.attention.output.dense"),
              Map.entry("blk.{}.attn_output_norm", "encoder.layer.{}.attention.output.LayerNorm"),
              Map.entry("blk.{}.ffn_up", "encoder.layer.{}.intermediate.dense"),
              Map.entry("blk.{}.ffn_down", "encoder.layer.{}.output.dense"),
              Map.entry("blk.{}.layer_output_norm", "encoder.layer.{}.output.LayerNorm")));

  /** Nomic's BERT. */
  static final TensorNames HF_NOMIC_BERT =
      new TensorNames(
          Map.ofEntries(
              Map.entry("token_embd", "embeddings.word_embeddings"),
              Map.entry("token_types", "embeddings.token_type_embeddings"),
              Map.entry("token_embd_norm", "emb_ln"),
              Map.entry("blk.{}.attn_qkv", "encoder.layers.{}.attn.Wqkv"),
              Map.entry("blk.{}.attn_output", "encoder.layers.{}.attn.out_proj"),
              Map.entry("blk.{}.attn_output_norm", "encoder.layers.{}.norm1"),
              Map.entry("blk.{}.ffn_up", "encoder.layers.{}.mlp.fc11"),
              Map.entry("blk.{}.ffn_gate", "encoder.layers.{}.mlp.fc12"),
              Map.entry("blk.{}.ffn_down", "encoder.layers.{}.mlp.fc2"),
              Map.entry("blk.{}.layer_output_norm", "encoder.layers.{}.norm2")));

  /** What follows the name of a layer whose matrix is stored in parts. */
  private static final List<String> COMPRESSED =
      List.of(".sp.", ".U.", ".V.", ".A.diag_blocks", ".B.diag_blocks", ".coefficients");

  private static final String FFN_NORM = "model.layers.{}.post_attention_layernorm";
  private static final String FFN_AFTER = "blk.{}.post_ffw_norm";
  private static final String WHOLE = "model.";
  private static final String ENCODER = "bert.";

  private final Map<String, String> templates;

  private TensorNames(Map<String, String> templates) {
    this.templates = templates;
  }

  private static Map<String, String> sandwich() {
    return Map.of(
        "blk.{}.post_attention_norm",
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_norm",
        "model.layers.{}.pre_feedforward_layernorm",
        FFN_AFTER,
        "model.layers.{}.post_feedforward_layernorm");
  }

  private TensorNames with(Map<String, String> changes) {
    Map<String, String> all = new HashMap<>(templates);
    all.putAll(changes);
    return new TensorNames(Map.copyOf(all));
  }

  /**
   * The names as a checkpoint has them: one of the llama family with norms after the units says so
   * by tensors of its own; that of a body alone lacks the {@code model.} of the whole, that of a
   * whole encoder has {@code bert.} before the names of the body.
   */
  public TensorNames in(Set<String> tensors) {
    if (FFN_NORM.equals(templates.get("blk.{}.ffn_norm")) && !templates.containsKey(FFN_AFTER)) {
      if (tensors.contains("model.layers.0.pre_feedforward_layernorm.weight")) {
        return with(sandwich());
      }
      if (tensors.stream().anyMatch(n -> n.endsWith(".post_feedforward_layernorm.weight"))) {
        // Mix-LN: in some layers, which have no norm before the units.
        return with(
            Map.of(
                "blk.{}.attn_output_norm",
                FFN_NORM,
                "blk.{}.layer_output_norm",
                "model.layers.{}.post_feedforward_layernorm"));
      }
    }
    String table = fileName("token_embd.weight").orElseThrow();
    if (tensors.contains(table)) {
      return this;
    }
    if (table.startsWith(WHOLE) && tensors.contains(table.substring(WHOLE.length()))) {
      return mapped(n -> n.startsWith(WHOLE) ? n.substring(WHOLE.length()) : n);
    }
    return tensors.contains(ENCODER + table) ? mapped(n -> ENCODER + n) : this;
  }

  private TensorNames mapped(UnaryOperator<String> change) {
    Map<String, String> all = new HashMap<>(templates);
    all.replaceAll((name, template) -> change.apply(template));
    return new TensorNames(Map.copyOf(all));
  }

  /** The name in the file of, for example, {@code blk.3.attn_q.weight}; empty if it has none. */
  public Optional<String> fileName(String name) {
    if (this == GGUF) {
      return Optional.of(name);
    }
    int dot = suffix(name);
    String stem = name.substring(0, dot);
    String suffix = name.substring(dot);
    String layer = "";
    if (stem.startsWith("blk.")) {
      int end = stem.indexOf('.', 4);
      layer = stem.substring(4, end);
      stem = "blk.{}" + stem.substring(end);
    }
    String expert = "";
    int last = stem.lastIndexOf('.');
    if (!layer.isEmpty() && stem.substring(last + 1).chars().allMatch(Character::isDigit)) {
      expert = stem.substring(last + 1);
      stem = stem.substring(0, last) + ".{e}";
    }
    String template = templates.get(stem);
    if (template == null) {
      return Optional.empty();
    }
    // What Hugging Face stores under a name without a suffix.
    boolean isWhole =
        template.endsWith("expert_bias")
            || template.endsWith("gpas_block.gate")
            || template.contains("raw_scaling_factor");
    String end = isWhole ? "" : suffix;
    return Optional.of(template.replace("{}", layer).replace("{e}", expert) + end);
  }

  /**
   * Where the name of the layer ends: at the last dot, or before the names of parts of a compressed
   * matrix ({@code blk.3.attn_q.sp.mask}).
   */
  private static int suffix(String name) {
    for (String part : COMPRESSED) {
      int at = name.indexOf(part);
      if (at > 0) {
        return at;
      }
    }
    return name.lastIndexOf('.');
  }
}
