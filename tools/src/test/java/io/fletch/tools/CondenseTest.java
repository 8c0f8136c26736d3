package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.quant.Dequantizer;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.SafetensorsWriter;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.arch.HyperParameters;
import io.fletch.runtime.arch.ModelGraph;
import io.fletch.runtime.arch.WeightTensors;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.SplittableRandom;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * {@code merge --condense} on a mixture of experts with random weights. What such a file computes
 * is a matter of the runtime's {@code TinyModelsTest} and {@code ExpertFormsTest}.
 */
class CondenseTest {
  private static final int WIDTH = 32;
  private static final int INNER = 16;
  private static final int EXPERTS = 4;

  @TempDir private Path folder;
  private final Map<String, float[]> values = new LinkedHashMap<>();
  private final Map<String, long[]> shapes = new LinkedHashMap<>();

  private String at(String name) {
    return folder.resolve(name).toString();
  }

  private void put(String name, long... shape) {
    int n = (int) Arrays.stream(shape).reduce(1, (a, b) -> a * b);
    SplittableRandom random = new SplittableRandom(name.hashCode());
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) random.nextDouble(-0.5, 0.5);
    }
    values.put(name, x);
    shapes.put(name, shape);
  }

  @BeforeEach
  void plan() throws IOException {
    Files.writeString(folder.resolve("order.json"), "[1, 0]");
    Files.writeString(folder.resolve("experts.json"), "{\"0\": [3, 1, 0], \"1\": [2, 0]}");
    Files.writeString(
        folder.resolve("weights.json"),
        "{\"0-3\": [9, 4, 0.25], \"0-1\": [1, 2, 0.5], \"0-0\": [1, 8, 0.125],"
            + " \"1-2\": [1, 1, 1.5], \"1-0\": [2, 1, 2]}");
  }

  /** Layer 0 is dense, 1 and 2 have experts. */
  private void checkpoint() throws IOException {
    put("model.embed_tokens.weight", 40, WIDTH);
    put("model.norm.weight", WIDTH);
    put("lm_head.weight", 40, WIDTH);
    for (int l = 0; l < 3; l++) {
      String p = "model.layers." + l + ".";
      put(p + "input_layernorm.weight", WIDTH);
      put(p + "post_attention_layernorm.weight", WIDTH);
      for (String matrix : new String[] {"q", "k", "v", "o"}) {
        put(p + "self_attn." + matrix + "_proj.weight", WIDTH, WIDTH);
      }
      unit(p + "mlp.", l == 0 ? 48 : 0);
      if (l > 0) {
        put(p + "mlp.gate.weight", EXPERTS, WIDTH);
        unit(p + "mlp.shared_experts.", INNER);
        for (int e = 0; e < EXPERTS; e++) {
          unit(p + "mlp.experts." + e + ".", INNER);
        }
      }
    }
    writeBase(
        """
        {"model_type": "deepseek", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
         "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
         "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
         "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
         "moe_intermediate_size": 16, "first_k_dense_replace": 1}
        """);
  }

  private void writeBase(String config) throws IOException {
    Path base = Files.createDirectories(folder.resolve("base"));
    try (TensorStore store = TensorStore.create()) {
      SafetensorsWriter writer = new SafetensorsWriter();
      values.forEach((name, x) -> writer.add(store.floats(name, x, shapes.get(name))));
      writer.write(base.resolve("model.safetensors"));
    }
    Files.writeString(base.resolve("config.json"), config);
  }

  private void unit(String at, int width) {
    if (width > 0) {
      put(at + "gate_proj.weight", width, WIDTH);
      put(at + "up_proj.weight", width, WIDTH);
      put(at + "down_proj.weight", WIDTH, width);
    }
  }

  private Fletch.Outcome condense(String base, String out, String... more) {
    String[] common = {"merge", "-m", at(base), "--condense", at("order.json"), "-o", at(out)};
    String[] all = Arrays.copyOf(common, common.length + more.length);
    System.arraycopy(more, 0, all, common.length, more.length);
    return Fletch.run(all);
  }

  private static float[] floats(WeightFile file, String name) {
    return Dequantizer.toFloats(file.tensor(name).orElseThrow(() -> new AssertionError(name)));
  }

  /** Builds a graph: every tensor is used, none is missing. */
  private static void assertModel(WeightFile file) {
    try (TensorStore derived = TensorStore.create()) {
      HyperParameters hp = HyperParameters.read(file.format(), file.metadata());
      WeightTensors weights =
          WeightTensors.of(file.format(), file.tensors(), hp.architecture(), derived);
      assertFalse(ModelGraph.build(weights.fit(hp), weights, 32, "condensed").ops().isEmpty());
    }
  }

  @Test
  void expertsThatStayAreRenumbered() throws IOException {
    checkpoint();
    String[] files = {"--experts", at("experts.json"), "--expert-weights", at("weights.json")};
    Fletch.Outcome done = condense("base", "all", files);
    assertEquals(0, done.status(), done.err());
    try (WeightFile file = WeightFile.open(folder.resolve("all"))) {
      assertModel(file);
      assertArrayEquals(
          new float[] {0.25f, 0.5f, 0.125f},
          floats(file, "model.layers.1.mlp.fixed_experts.weight"));
      assertArrayEquals(
          new float[] {1.5f, 2}, floats(file, "model.layers.2.mlp.fixed_experts.weight"));
      for (int[] e : new int[][] {{1, 0, 3}, {1, 1, 1}, {1, 2, 0}, {2, 0, 2}, {2, 1, 0}}) {
        for (String part : new String[] {"gate", "up", "down"}) {
          String to = "model.layers." + e[0] + ".mlp.experts.";
          assertArrayEquals(
              values.get(to + e[2] + "." + part + "_proj.weight"),
              floats(file, to + e[1] + "." + part + "_proj.weight"));
        }
      }
      assertFalse(file.tensors().containsKey("model.layers.1.mlp.gate.weight"));
      assertFalse(file.tensors().containsKey("model.layers.2.mlp.experts.2.up_proj.weight"));
    }
    done = condense("base", "one", "--condense-layers", "1");
    assertEquals(0, done.status(), done.err());
    try (WeightFile file = WeightFile.open(folder.resolve("one"))) {
      assertModel(file);
      assertArrayEquals(new float[1], floats(file, "model.layers.2.mlp.fixed_experts.weight"));
      assertTrue(file.tensors().containsKey("model.layers.1.mlp.gate.weight"));
      assertTrue(
          file.tensors().keySet().stream().noneMatch(n -> n.contains("layers.2.mlp.experts.")));
    }
  }

  /** LLaDA 2 adds a bias to the scores of its routers, which goes with them. */
  @Test
  void biasesOfRoutersGoWithThem() throws IOException {
    put("model.word_embeddings.weight", 40, WIDTH);
    put("model.norm.weight", WIDTH);
    put("lm_head.weight", 40, WIDTH);
    for (int l = 0; l < 3; l++) {
      String p = "model.layers." + l + ".";
      put(p + "input_layernorm.weight", WIDTH);
      put(p + "post_attention_layernorm.weight", WIDTH);
      put(p + "attention.query_key_value.weight", 3 * WIDTH, WIDTH);
      put(p + "attention.dense.weight", WIDTH, WIDTH);
      put(p + "attention.query_layernorm.weight", WIDTH / 4);
      put(p + "attention.key_layernorm.weight", WIDTH / 4);
      unit(p + "mlp.", l == 0 ? 48 : 0);
      if (l > 0) {
        put(p + "mlp.gate.weight", EXPERTS, WIDTH);
        put(p + "mlp.gate.expert_bias", EXPERTS);
        unit(p + "mlp.shared_experts.", INNER);
        for (int e = 0; e < EXPERTS; e++) {
          unit(p + "mlp.experts." + e + ".", INNER);
        }
      }
    }
    writeBase(
        """
        {"model_type": "llada2_moe", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
         "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8,
         "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu",
         "num_experts": 4, "num_shared_experts": 1, "num_experts_per_tok": 2,
         "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
         "score_function": "sigmoid", "moe_router_enable_expert_bias": true,
         "mask_token_id": 39, "block_size": 4}
        """);
    Fletch.Outcome done = condense("base", "out", "--condense-layers", "1");
    assertEquals(0, done.status(), done.err());
    try (WeightFile file = WeightFile.open(folder.resolve("out"))) {
      assertModel(file);
      assertTrue(file.tensors().containsKey("model.layers.1.mlp.gate.expert_bias"));
      assertFalse(file.tensors().containsKey("model.layers.2.mlp.gate.expert_bias"));
    }
  }

  @Test
  void stackedExpertsOfGgufAreCut() {
    GgufWriter writer =
        new GgufWriter()
            .put("general.architecture", "qwen2moe")
            .put("qwen2moe.block_count", 2)
            .put("qwen2moe.context_length", 64)
            .put("qwen2moe.embedding_length", WIDTH)
            .put("qwen2moe.feed_forward_length", 48)
            .put("qwen2moe.attention.head_count", 4)
            .put("qwen2moe.attention.layer_norm_rms_epsilon", 1e-5f)
            .put("qwen2moe.expert_count", EXPERTS)
            .put("qwen2moe.expert_used_count", 2)
            .put("qwen2moe.expert_feed_forward_length", INNER)
            .put("qwen2moe.expert_shared_feed_forward_length", 24);
    put("token_embd.weight", 40, WIDTH);
    put("output_norm.weight", WIDTH);
    for (int l = 0; l < 2; l++) {
      String p = "blk." + l + ".";
      put(p + "attn_norm.weight", WIDTH);
      put(p + "ffn_norm.weight", WIDTH);
      for (String matrix : new String[] {"q", "k", "v", "output"}) {
        put(p + "attn_" + matrix + ".weight", WIDTH, WIDTH);
      }
      put(p + "ffn_gate_inp.weight", EXPERTS, WIDTH);
      put(p + "ffn_gate_inp_shexp.weight", WIDTH);
      put(p + "ffn_gate_exps.weight", EXPERTS, INNER, WIDTH);
      put(p + "ffn_up_exps.weight", EXPERTS, INNER, WIDTH);
      put(p + "ffn_down_exps.weight", EXPERTS, WIDTH, INNER);
      put(p + "ffn_gate_shexp.weight", 24, WIDTH);
      put(p + "ffn_up_shexp.weight", 24, WIDTH);
      put(p + "ffn_down_shexp.weight", WIDTH, 24);
    }
    try (TensorStore store = TensorStore.create()) {
      values.forEach((name, x) -> {
        Tensor t = store.floats(name, x, shapes.get(name));
        writer.add(t);
      });
      writer.write(folder.resolve("base.gguf"));
    }
    Fletch.Outcome done =
        condense(
            "base.gguf",
            "out.gguf",
            "--condense-layers",
            "1",
            "--condense-experts",
            "2",
            "--experts",
            at("experts.json"),
            "--expert-weights",
            at("weights.json"));
    assertEquals(0, done.status(), done.err());
    try (WeightFile file = WeightFile.open(folder.resolve("out.gguf"))) {
      assertModel(file);
      assertArrayEquals(new float[] {1.5f, 2}, floats(file, "blk.1.ffn_fixed_exps.weight"));
      for (String part : new String[] {"gate", "up", "down"}) {
        String name = "blk.1.ffn_" + part + "_exps.weight";
        float[] old = values.get(name);
        int n = INNER * WIDTH;
        float[] expected = new float[2 * n];
        System.arraycopy(old, 2 * n, expected, 0, n);
        System.arraycopy(old, 0, expected, n, n);
        assertArrayEquals(expected, floats(file, name));
        assertArrayEquals(values.get(name.replace("1", "0")), floats(file, name.replace("1", "0")));
      }
    }
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "order.json | [2] | [0, 2)",
        "order.json | [-1] | [0, 2)",
        "order.json | [1.0] | [0, 2)",
        "order.json | [1, 1] | twice",
        "order.json | {} | JSON list",
        "order.json | [0 | JSON list",
        "experts.json | {\"1\": [0]} | list of experts",
        "experts.json | {\"0\": [4], \"1\": [0]} | [0, 4)",
        "experts.json | {\"0\": [0], \"1\": [0, 0]} | each expert once",
        "experts.json | [] | JSON object",
        "weights.json | {} | 1-2",
        "weights.json | {\"1-2\": [1e99], \"1-0\": [1]} | 1-2",
        "weights.json | {\"1-2\": [], \"1-0\": [1]} | 1-2"
      })
  void damagedPlansAreRefused(String name, String content, String part) throws IOException {
    checkpoint();
    Files.writeString(folder.resolve(name), content);
    Fletch.Outcome done =
        condense(
            "base", "bad", "--experts", at("experts.json"), "--expert-weights", at("weights.json"));
    assertTrue(done.status() != 0 && done.err().contains(part), done.err());
    assertFalse(Files.exists(folder.resolve("bad/config.json")));
  }
}
