package io.fletch.runtime.arch;

import io.fletch.graph.RopeSpec;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * A Hugging Face checkpoint as llama.cpp's converter stores it: names, keys, rows permuted for
 * pairwise rotation, experts stacked, Gemma's norms increased by one, Falcon's projections sorted.
 */
record GgufForm(MapMetadata metadata, Map<String, Tensor> tensors) {
  private static final List<String> STEMS =
      List.of(
          "token_embd",
          "token_embd_norm",
          "token_types",
          "position_embd",
          "output_norm",
          "output",
          "blk.#.attn_norm",
          "blk.#.attn_norm_2",
          "blk.#.attn_q",
          "blk.#.attn_k",
          "blk.#.attn_v",
          "blk.#.attn_qkv",
          "blk.#.attn_output",
          "blk.#.attn_output_norm",
          "blk.#.layer_output_norm",
          "blk.#.attn_q_norm",
          "blk.#.attn_k_norm",
          "blk.#.post_attention_norm",
          "blk.#.ffn_norm",
          "blk.#.post_ffw_norm",
          "blk.#.ffn_gate",
          "blk.#.ffn_up",
          "blk.#.ffn_down",
          "blk.#.ffn_gate_inp",
          "blk.#.ffn_gate_inp_shexp",
          "blk.#.ffn_gate_shexp",
          "blk.#.ffn_up_shexp",
          "blk.#.ffn_down_shexp",
          "blk.#.attn_q_a",
          "blk.#.attn_q_a_norm",
          "blk.#.attn_q_b",
          "blk.#.attn_kv_a_mqa",
          "blk.#.attn_kv_a_norm",
          "blk.#.attn_kv_b",
          "blk.#.ffn_gate_inp.0",
          "blk.#.ffn_gate_inp.1",
          "blk.#.ffn_fixed_exps");

  private static final List<String> EXPERTS =
      List.of("blk.#.ffn_gate_exps", "blk.#.ffn_up_exps", "blk.#.ffn_down_exps");

  private static final Map<String, String> FALCON =
      Map.ofEntries(
          Map.entry("token_embd", "transformer.word_embeddings"),
          Map.entry("output_norm", "transformer.ln_f"),
          Map.entry("blk.#.attn_qkv", "transformer.h.#.self_attention.query_key_value"),
          Map.entry("blk.#.attn_output", "transformer.h.#.self_attention.dense"),
          Map.entry("blk.#.ffn_up", "transformer.h.#.mlp.dense_h_to_4h"),
          Map.entry("blk.#.ffn_down", "transformer.h.#.mlp.dense_4h_to_h"));

  static GgufForm of(TinyModel model, TensorStore store, boolean oldExperts) {
    Map<String, Object> c = model.config();
    String type = (String) c.get("model_type");
    boolean falcon = type.equals("falcon");
    Architecture arch = falcon ? Architecture.FALCON : Architecture.ofModelType(type);
    Map<String, Tensor> out = new LinkedHashMap<>();
    int layers = number(c, "num_hidden_layers");
    for (String stem : STEMS) {
      for (int i = 0; i < (stem.contains("#") ? layers : 1); i++) {
        for (String suffix : new String[] {".weight", ".bias"}) {
          String gguf = stem.replace("#", "" + i) + suffix;
          String hf =
              falcon
                  ? falcon(model, stem, i, suffix)
                  : arch.hfNames().in(model.weights().keySet()).fileName(gguf).orElse("");
          // OLMo 2 has no norms before its units; llama's name for one is that of a norm behind.
          boolean other = arch == Architecture.OLMO2 && stem.equals("blk.#.ffn_norm");
          if (model.weights().containsKey(hf) && !other) {
            out.put(gguf, tensor(model, arch, c, store, gguf, hf));
          }
        }
      }
    }
    for (String stem : EXPERTS) {
      for (int i = 0; i < layers && !falcon; i++) {
        experts(model, arch, store, stem.replace("#", "" + i), oldExperts, out);
      }
    }
    return new GgufForm(metadata(arch, c), out);
  }

  private static String hf(Architecture arch, String gguf) {
    return arch.hfNames().fileName(gguf).orElse("");
  }

  private static String falcon(TinyModel model, String stem, int layer, String suffix) {
    boolean two = model.weights().containsKey("transformer.h.0.ln_mlp.weight");
    String name =
        switch (stem) {
          case "blk.#.attn_norm" ->
              two ? "transformer.h.#.ln_mlp" : "transformer.h.#.input_layernorm";
          case "blk.#.attn_norm_2" -> "transformer.h.#.ln_attn";
          default -> FALCON.getOrDefault(stem, "");
        };
    return name.replace("#", "" + layer) + suffix;
  }

  private static Tensor tensor(
      TinyModel model,
      Architecture arch,
      Map<String, Object> c,
      TensorStore store,
      String gguf,
      String hf) {
    float[] x = model.weights().get(hf);
    long[] shape = model.shapes().get(hf);
    boolean q = gguf.contains(".attn_q.");
    boolean k = gguf.contains(".attn_k.");
    if ((q || k)
        && !arch.has(Architecture.Trait.LATENT)
        && arch.ggufRope() == RopeSpec.Style.NORM) {
      x = pairs(x, shape, number(c, q ? "num_attention_heads" : "num_key_value_heads"));
    }
    if (arch.has(Architecture.Trait.GEMMA) && gguf.contains("norm")) {
      x = x.clone();
      for (int i = 0; i < x.length; i++) {
        x[i] += 1;
      }
    }
    if (arch == Architecture.FALCON && gguf.contains("attn_qkv")) {
      x = sorted(x, shape, number(c, "num_attention_heads"), falconKvHeads(c));
    }
    if (gguf.contains("ffn_gate_inp_shexp")) {
      shape = new long[] {x.length};
    }
    return store.floats(gguf, x, shape);
  }

  /** Row {@code i} of the second half of a head goes behind row {@code i} of the first. */
  private static float[] pairs(float[] x, long[] shape, int heads) {
    int cols = shape.length == 1 ? 1 : (int) shape[1];
    int dim = x.length / cols / heads;
    float[] y = new float[x.length];
    for (int h = 0; h < heads; h++) {
      for (int r = 0; r < dim; r++) {
        int to = r < dim / 2 ? 2 * r : 2 * (r - dim / 2) + 1;
        System.arraycopy(x, (h * dim + r) * cols, y, (h * dim + to) * cols, cols);
      }
    }
    return y;
  }

  /** From (q.. k v) per key/value head to all q, all k, all v. */
  private static float[] sorted(float[] x, long[] shape, int heads, int kvHeads) {
    int cols = (int) shape[1];
    int group = heads / kvHeads;
    int dim = (int) shape[0] / (heads + 2 * kvHeads);
    int block = dim * cols;
    float[] y = new float[x.length];
    for (int g = 0; g < kvHeads; g++) {
      int from = g * (group + 2);
      for (int h = 0; h < group; h++) {
        System.arraycopy(x, (from + h) * block, y, (g * group + h) * block, block);
      }
      System.arraycopy(x, (from + group) * block, y, (heads + g) * block, block);
      System.arraycopy(x, (from + group + 1) * block, y, (heads + kvHeads + g) * block, block);
    }
    return y;
  }

  private static void experts(
      TinyModel model,
      Architecture arch,
      TensorStore store,
      String stem,
      boolean old,
      Map<String, Tensor> out) {
    int count = 0;
    while (model.weights().containsKey(hf(arch, stem + "." + count + ".weight"))) {
      count++;
    }
    if (count == 0) {
      return;
    }
    long[] one = model.shapes().get(hf(arch, stem + ".0.weight"));
    int n = Math.toIntExact(one[0] * one[1]);
    float[] all = new float[count * n];
    for (int e = 0; e < count; e++) {
      float[] x = model.weights().get(hf(arch, stem + "." + e + ".weight"));
      System.arraycopy(x, 0, all, e * n, n);
      if (old) {
        String name = stem.replace("_exps", "") + "." + e + ".weight";
        out.put(name, store.floats(name, x, one));
      }
    }
    if (!old) {
      out.put(stem + ".weight", store.floats(stem + ".weight", all, count, one[0], one[1]));
    }
  }

  private static int number(Map<String, Object> c, String key) {
    return ((Number) c.get(key)).intValue();
  }

  private static int falconKvHeads(Map<String, Object> c) {
    return c.containsKey("num_kv_heads") ? number(c, "num_kv_heads") : 1;
  }

  private static void deepSeek(Architecture arch, Map<String, Object> c, MapMetadata out) {
    String at = arch.id() + ".";
    out.with(at + "expert_count", c.get("n_routed_experts"))
        .with(at + "expert_used_count", c.get("num_experts_per_tok"))
        .with(at + "expert_feed_forward_length", c.get("moe_intermediate_size"))
        .with(at + "expert_shared_count", c.get("n_shared_experts"))
        .with(at + "leading_dense_block_count", c.get("first_k_dense_replace"));
    if (c.containsKey("routed_scaling_factor")) {
      out.with(at + "expert_weights_scale", c.get("routed_scaling_factor"));
    }
    if (!arch.has(Architecture.Trait.LATENT)) {
      return;
    }
    int rotated = number(c, "qk_rope_head_dim");
    out.with(at + "attention.key_length", rotated + number(c, "qk_nope_head_dim"))
        .with(at + "attention.value_length", c.get("v_head_dim"))
        .with(at + "attention.kv_lora_rank", c.get("kv_lora_rank"))
        .with(at + "rope.dimension_count", rotated);
    if (c.get("q_lora_rank") != null) {
      out.with(at + "attention.q_lora_rank", c.get("q_lora_rank"));
    }
    if (c.get("rope_scaling") instanceof Map<?, ?> yarn) {
      double share = ((Number) yarn.get("mscale_all_dim")).doubleValue();
      out.with(at + "rope.scaling.type", "yarn")
          .with(at + "rope.scaling.factor", yarn.get("factor"))
          .with(
              at + "rope.scaling.original_context_length",
              yarn.get("original_max_position_embeddings"))
          .with(at + "rope.scaling.yarn_log_multiplier", 0.1 * share);
    }
    if (arch.has(Architecture.Trait.CHAIN)) {
      out.with(at + "chain.iterations", c.get("inner_iter"))
          .with(at + "chain.routers", c.get("use_igate"))
          .with(at + "chain.residual", c.get("residual"));
    }
  }

  private static MapMetadata metadata(Architecture arch, Map<String, Object> c) {
    String at = arch.id() + ".";
    boolean falcon = arch == Architecture.FALCON;
    boolean layerNorm = arch.has(Architecture.Trait.LAYER_NORM);
    boolean encoder = arch.has(Architecture.Trait.ENCODER);
    Object heads = c.get("num_attention_heads");
    int hidden = number(c, "hidden_size");
    MapMetadata out =
        MapMetadata.empty()
            .with("general.architecture", arch.id())
            .with(at + "block_count", c.get("num_hidden_layers"))
            .with(at + "context_length", encoder ? c.get("max_position_embeddings") : 256)
            .with(at + "embedding_length", hidden)
            .with(at + "feed_forward_length", falcon ? 4 * hidden : c.get("intermediate_size"))
            .with(at + "attention.head_count", heads)
            .with(
                at + "attention.head_count_kv",
                falcon ? falconKvHeads(c) : c.getOrDefault("num_key_value_heads", heads))
            .with(
                at
                    + (layerNorm
                        ? "attention.layer_norm_epsilon"
                        : "attention.layer_norm_rms_epsilon"),
                encoder ? 1e-12 : 1e-5)
            .with(at + "rope.freq_base", arch == Architecture.NOMIC_BERT ? 1000.0 : 10000.0);
    if (encoder) {
      out.with(at + "attention.causal", false).with(at + "pooling_type", 1);
    }
    boolean isLatent = arch.has(Architecture.Trait.LATENT);
    if (!isLatent && c.containsKey("head_dim") && c.get("head_dim") != null) {
      out.with(at + "attention.key_length", c.get("head_dim"))
          .with(at + "attention.value_length", c.get("head_dim"));
    }
    if (arch.has(Architecture.Trait.DEEPSEEK)) {
      deepSeek(arch, c, out);
    }
    String count = arch == Architecture.MIXTRAL ? "num_local_experts" : "num_experts";
    if (c.containsKey(count)) {
      out.with(at + "expert_count", c.get(count))
          .with(at + "expert_used_count", c.get("num_experts_per_tok"));
      if (c.containsKey("moe_intermediate_size")) {
        out.with(at + "expert_feed_forward_length", c.get("moe_intermediate_size"));
      }
      if (c.containsKey("shared_expert_intermediate_size")) {
        out.with(
            at + "expert_shared_feed_forward_length", c.get("shared_expert_intermediate_size"));
      }
    }
    if (c.get("fletch") instanceof Map<?, ?> ours) {
      out.with("fletch.hidden_act", c.get("hidden_act"))
          .with("fletch.activation_sparsity", ours.get("activation_sparsity"));
    }
    if (c.containsKey("mask_token_id")) {
      out.with("tokenizer.ggml.mask_token_id", c.get("mask_token_id"));
    }
    switch (arch) {
      case GRANITE ->
          out.with(at + "embedding_scale", c.get("embedding_multiplier"))
              .with(at + "residual_scale", c.get("residual_multiplier"))
              .with(at + "attention.scale", c.get("attention_multiplier"))
              .with(at + "logit_scale", c.get("logits_scaling"));
      case GEMMA2 ->
          out.with(at + "attn_logit_softcapping", c.get("attn_logit_softcapping"))
              .with(at + "final_logit_softcapping", c.get("final_logit_softcapping"))
              .with(at + "attention.sliding_window", c.get("sliding_window"))
              .with(at + "attention.scale", 0.25);
      case GEMMA3 ->
          out.with(at + "attention.sliding_window", c.get("sliding_window"))
              .with(at + "rope.freq_base_swa", 5000.0)
              .with(at + "attention.scale", 0.25);
      default -> {}
    }
    return out;
  }
}
