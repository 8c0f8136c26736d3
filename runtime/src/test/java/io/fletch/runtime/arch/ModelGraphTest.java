package io.fletch.runtime.arch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.Map;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Graphs built over tensors of zeros: names, shapes and op order. */
class ModelGraphTest {
  private final TensorStore store = TensorStore.create();
  private final Map<String, Tensor> tensors = new LinkedHashMap<>();

  @AfterEach
  void close() {
    store.close();
  }

  private void tensor(String name, long... shape) {
    tensors.put(name, store.allocate(name, TensorType.F32, shape));
  }

  /** A small configuration of the given family's published one. */
  private static MapMetadata small(String config) throws IOException {
    MapMetadata out = MapMetadata.config(config);
    return out.has("d_model")
        ? out.with("d_model", 24)
            .with("n_layers", 2)
            .with("n_heads", 4)
            .with("n_kv_heads", 2)
            .with("mlp_hidden_size", 40)
            .with("vocab_size", 100)
            .with("embedding_size", 100)
            .with("mask_token_id", 99)
        : out.with("hidden_size", 24)
            .with("num_hidden_layers", 2)
            .with("num_attention_heads", 4)
            .with("num_key_value_heads", 2)
            .with("head_dim", 6)
            .with("intermediate_size", 40)
            .with("vocab_size", 100)
            .with("mask_token_id", 99);
  }

  private void hfTensors(int layers) {
    tensor("model.embed_tokens.weight", 100, 24);
    tensor("model.norm.weight", 24);
    for (int i = 0; i < layers; i++) {
      String at = "model.layers." + i + ".";
      tensor(at + "input_layernorm.weight", 24);
      tensor(at + "post_attention_layernorm.weight", 24);
      tensor(at + "self_attn.q_proj.weight", 24, 24);
      tensor(at + "self_attn.k_proj.weight", 12, 24);
      tensor(at + "self_attn.v_proj.weight", 12, 24);
      tensor(at + "self_attn.o_proj.weight", 24, 24);
      tensor(at + "mlp.gate_proj.weight", 40, 24);
      tensor(at + "mlp.up_proj.weight", 40, 24);
      tensor(at + "mlp.down_proj.weight", 24, 40);
    }
  }

  private Graph build(MapMetadata config) {
    HyperParameters hp = HyperParameters.read(WeightFile.Format.SAFETENSORS, config);
    WeightTensors weights =
        WeightTensors.of(WeightFile.Format.SAFETENSORS, tensors, hp.architecture(), store);
    return ModelGraph.build(weights.fit(hp), weights, 512, "test");
  }

  private static long count(Graph graph, Class<? extends Op> kind) {
    return graph.ops().stream().filter(kind::isInstance).count();
  }

  private static Op.Linear linear(Graph graph, String name) {
    return graph.ops().stream()
        .filter(Op.Linear.class::isInstance)
        .map(Op.Linear.class::cast)
        .filter(l -> l.out().name().equals(name))
        .findFirst()
        .orElseThrow();
  }

  @Test
  void llama() throws IOException {
    hfTensors(2);
    Graph graph = build(small("llama-3.2-1b"));
    assertEquals(100, graph.vocabulary());
    assertEquals(2, graph.kvLayers().size());
    assertEquals(2 * 7 + 1, count(graph, Op.Linear.class));
    assertEquals(2 * 2 + 1, count(graph, Op.RmsNorm.class));
    assertEquals(4, count(graph, Op.Rope.class));
    assertEquals(
        1,
        graph.ops().stream()
            .filter(Op.Rope.class::isInstance)
            .map(op -> ((Op.Rope) op).spec())
            .distinct()
            .count(),
        "layers share one rotary table");
    // Tied: the head reads the embedding.
    assertEquals(
        tensors.get("model.embed_tokens.weight").bytes(), linear(graph, "logits").weight().bytes());
    // Keys and values are complete whatever is gated.
    assertTrue(linear(graph, "blk.1.attn_k").gate().isEmpty());
    assertTrue(linear(graph, "blk.1.attn_v").gate().isEmpty());
    assertTrue(linear(graph, "blk.1.attn_q").gate().isPresent());
    assertTrue(linear(graph, "blk.1.ffn_down").gate().isPresent());
  }

  @Test
  void biasesAreUsedWhereTheyAre() throws IOException {
    hfTensors(2);
    for (String p : new String[] {"q", "k", "v"}) {
      tensor("model.layers.1.self_attn." + p + "_proj.bias", p.equals("q") ? 24 : 12);
    }
    Graph graph = build(small("qwen2.5-0.5b"));
    assertTrue(linear(graph, "blk.0.attn_q").bias().isEmpty());
    assertTrue(linear(graph, "blk.1.attn_q").bias().isPresent());
  }

  @Test
  void queryAndKeyNorms() throws IOException {
    hfTensors(2);
    for (int i = 0; i < 2; i++) {
      tensor("model.layers." + i + ".self_attn.q_norm.weight", 6);
      tensor("model.layers." + i + ".self_attn.k_norm.weight", 6);
    }
    Graph graph = build(small("qwen3-0.6b"));
    assertEquals(2 * 4 + 1, count(graph, Op.RmsNorm.class));
  }

  @Test
  void llada() throws IOException {
    tensor("model.transformer.wte.weight", 100, 24);
    tensor("model.transformer.ln_f.weight", 24);
    tensor("model.transformer.ff_out.weight", 100, 24);
    for (int i = 0; i < 2; i++) {
      String at = "model.transformer.blocks." + i + ".";
      tensor(at + "attn_norm.weight", 24);
      tensor(at + "ff_norm.weight", 24);
      tensor(at + "q_proj.weight", 24, 24);
      tensor(at + "k_proj.weight", 12, 24);
      tensor(at + "v_proj.weight", 12, 24);
      tensor(at + "attn_out.weight", 24, 24);
      tensor(at + "ff_proj.weight", 40, 24);
      tensor(at + "up_proj.weight", 40, 24);
      tensor(at + "ff_out.weight", 24, 40);
    }
    assertEquals(2, build(small("llada-8b")).kvLayers().size());
  }

  @Test
  void gemmaNormsGetTheirOne() throws IOException {
    hfTensors(2);
    for (int i = 0; i < 2; i++) {
      tensor("model.layers." + i + ".pre_feedforward_layernorm.weight", 24);
      tensor("model.layers." + i + ".post_feedforward_layernorm.weight", 24);
    }
    Graph graph = build(small("gemma-2-2b").with("query_pre_attn_scalar", 6));
    assertEquals(2 * 4 + 1, count(graph, Op.RmsNorm.class));
    assertEquals(1, count(graph, Op.SoftCap.class));
    for (Op op : graph.ops()) {
      if (op instanceof Op.RmsNorm norm) {
        assertEquals(1f, io.fletch.quant.Dequantizer.element(norm.weight(), 3), norm.toString());
      }
    }
  }

  @Test
  void phi3SplitsFusedProjections() throws IOException {
    tensor("model.embed_tokens.weight", 100, 24);
    tensor("model.norm.weight", 24);
    tensor("lm_head.weight", 100, 24);
    for (int i = 0; i < 2; i++) {
      String at = "model.layers." + i + ".";
      tensor(at + "input_layernorm.weight", 24);
      tensor(at + "post_attention_layernorm.weight", 24);
      tensor(at + "self_attn.qkv_proj.weight", 48, 24);
      tensor(at + "self_attn.o_proj.weight", 24, 24);
      tensor(at + "mlp.gate_up_proj.weight", 80, 24);
      tensor(at + "mlp.down_proj.weight", 24, 40);
    }
    MapMetadata config = small("qwen2.5-0.5b").with("model_type", "phi3");
    config.with("tie_word_embeddings", false);
    Graph graph = build(config);
    assertEquals(2 * 5, count(graph, Op.Slice.class));
  }

  @Test
  void prunedLayersAreReadFromShapes() throws IOException {
    hfTensors(2);
    String at = "model.layers.1.";
    tensor(at + "self_attn.q_proj.weight", 12, 24);
    tensor(at + "self_attn.k_proj.weight", 6, 24);
    tensor(at + "self_attn.v_proj.weight", 6, 24);
    tensor(at + "self_attn.o_proj.weight", 24, 12);
    tensor(at + "mlp.gate_proj.weight", 16, 24);
    tensor(at + "mlp.up_proj.weight", 16, 24);
    tensor(at + "mlp.down_proj.weight", 24, 16);
    Graph graph = build(small("llama-3.2-1b"));
    assertEquals(4, graph.kvLayers().get(0).heads());
    assertEquals(2, graph.kvLayers().get(1).heads());
    assertEquals(1, graph.kvLayers().get(1).kvHeads());
    assertEquals(16, linear(graph, "blk.1.ffn_up").out().width());
  }

  @ParameterizedTest
  @CsvSource({
    "model.embed_tokens.weight,                  101, 24, 100",
    "model.embed_tokens.weight,                  100, 25, 24",
    "model.layers.1.self_attn.q_proj.weight,     30,  24, 24",
    "model.layers.1.self_attn.q_proj.weight,     23,  24, 24",
    "model.layers.1.self_attn.q_proj.weight,     18,  24, heads",
    "model.layers.1.self_attn.o_proj.weight,     24,  23, 24",
    "model.layers.0.mlp.up_proj.weight,          41,  24, 40",
    "model.layers.0.mlp.up_proj.weight,          39,  24, 39",
    "model.layers.0.mlp.down_proj.weight,        24,  39, 40",
  })
  void namesBothNumbersOfAMismatch(String name, long rows, long cols, String expected)
      throws IOException {
    hfTensors(2);
    tensor(name, rows, cols);
    MapMetadata config = small("llama-3.2-1b");
    FletchException e = assertThrows(FletchException.class, () -> build(config));
    assertTrue(
        e.getMessage().contains(expected)
            && (e.getMessage().contains("" + rows)
                || e.getMessage().contains("" + cols)
                || expected.equals("heads")),
        e.getMessage());
  }

  @Test
  void namesMissingAndUnknownTensors() throws IOException {
    hfTensors(2);
    MapMetadata config = small("llama-3.2-1b");
    tensor("model.layers.0.self_attn.rotary_emb.inv_freq", 3);
    build(config);
    tensor("model.layers.0.mlp.experts.0.up_proj.weight", 40, 24);
    FletchException unknown = assertThrows(FletchException.class, () -> build(config));
    assertTrue(unknown.getMessage().contains("experts.0"), unknown.getMessage());
    tensors.remove("model.layers.0.mlp.experts.0.up_proj.weight");
    tensors.remove("model.layers.1.mlp.down_proj.weight");
    FletchException missing = assertThrows(FletchException.class, () -> build(config));
    assertTrue(
        missing.getMessage().contains("model.layers.1.mlp.down_proj.weight"), missing.getMessage());
  }

  @Test
  void integerTensorsAreNoWeights() throws IOException {
    hfTensors(2);
    tensors.put("model.norm.weight", store.allocate("model.norm.weight", TensorType.I32, 24));
    MapMetadata config = small("llama-3.2-1b");
    FletchException e = assertThrows(FletchException.class, () -> build(config));
    assertTrue(e.getMessage().contains("I32"), e.getMessage());
  }

  @Test
  void everyOpIsPrintable() throws IOException {
    hfTensors(1);
    Graph graph = build(small("smollm2-135m").with("num_hidden_layers", 1));
    assertTrue(graph.ops().stream().allMatch(op -> op.toString().length() > 10));
    assertEquals("logits", graph.logits().name());
  }
}
