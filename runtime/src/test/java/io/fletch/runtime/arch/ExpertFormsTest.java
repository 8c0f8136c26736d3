package io.fletch.runtime.arch;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.graph.Backend;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * Chain-of-Experts and condensed layers (specs weights, property 27), beside the logits that {@link
 * TinyModelsTest} compares.
 */
class ExpertFormsTest {
  private static final int ROWS = 6;
  private static final String FIXED = "model.layers.1.mlp.fixed_experts.weight";

  private final TensorStore store = TensorStore.create();

  @AfterEach
  void close() {
    store.close();
  }

  private static Graph graph(MapMetadata config, Map<String, Tensor> tensors, TensorStore store) {
    HyperParameters hp = HyperParameters.read(WeightFile.Format.SAFETENSORS, config);
    WeightTensors weights =
        WeightTensors.of(WeightFile.Format.SAFETENSORS, tensors, hp.architecture(), store);
    return ModelGraph.build(weights.fit(hp), weights, 64, "test");
  }

  private static List<Backend> backends() {
    return List.of(
        new ReferenceBackend(), new CpuBackend(CpuBackend.Options.defaults().withThreads(2)));
  }

  private static float[][] logits(Backend backend, Graph graph, Optional<Gate> skipped) {
    int[] ids = {5, 15, 39, 77, 49, 35};
    return Logits.of(
        backend,
        graph,
        ids,
        batch -> {
          for (int r = 0; r < ids.length; r++) {
            int row = r;
            skipped.ifPresent(g -> batch.gate(g.layer(), g.unit(), row, Gate.SKIP));
          }
        });
  }

  private static void assertNear(float[][] expected, float[][] actual) {
    for (int r = 0; r < expected.length; r++) {
      for (int i = 0; i < expected[r].length; i++) {
        assertEquals(expected[r][i], actual[r][i], 2e-4, "row " + r + " logit " + i);
      }
    }
  }

  /** One iteration, added to the residual stream: the usual experts. */
  @Test
  void aChainOfOneIsAMixture() throws IOException {
    TinyModel model = TinyModel.read("deepseek2");
    MapMetadata usual = MapMetadata.of(model.config()).with("first_k_dense_replace", 0);
    MapMetadata chain =
        MapMetadata.of(model.config())
            .with("first_k_dense_replace", 0)
            .with("model_type", "coe_deepseekv2")
            .with("inner_iter", 1)
            .with("use_igate", false)
            .with("residual", "outer");
    Map<String, Tensor> tensors = model.tensors(store);
    // The first layer is dense there: it gets the experts of the second.
    tensors.keySet().removeIf(n -> n.startsWith("model.layers.0.mlp."));
    for (String name : List.copyOf(tensors.keySet())) {
      if (name.startsWith("model.layers.1.mlp.")) {
        tensors.put(name.replace("layers.1", "layers.0"), tensors.get(name));
      }
    }
    for (Backend backend : backends()) {
      float[][] expected = logits(backend, graph(usual, tensors, store), Optional.empty());
      assertArrayEquals(expected, logits(backend, graph(chain, tensors, store), Optional.empty()));
      // The names of older code.
      MapMetadata flags =
          chain.without("residual").with("inner_residual", false).with("outer_residual", true);
      assertArrayEquals(expected, logits(backend, graph(flags, tensors, store), Optional.empty()));
      chain.with("residual", "outer");
      // With the flags of the published model the residual stream is dropped.
      float[][] inner =
          logits(backend, graph(chain.with("residual", "inner"), tensors, store), Optional.empty());
      assertTrue(!Arrays.deepEquals(expected, inner));
      chain.with("residual", "outer");
    }
  }

  /** All experts with equal constants: what a router gives that says nothing. */
  @Test
  void aCondensedLayerOfAllExpertsIsAMixtureWithAConstantRouter() throws IOException {
    TinyModel model = TinyModel.read("deepseek");
    MapMetadata config = MapMetadata.of(model.config()).with("num_experts_per_tok", 6);
    Map<String, Tensor> routed = model.tensors(store);
    Map<String, Tensor> condensed = new LinkedHashMap<>(routed);
    for (int layer = 1; layer < 4; layer++) {
      String at = "model.layers." + layer + ".mlp.";
      String router = at + "gate.weight";
      Tensor old = routed.get(router);
      routed.put(router, store.floats(router, new float[(int) old.elements()], old.shape()));
      condensed.remove(router);
      float[] sixth = new float[6];
      Arrays.fill(sixth, 1 / 6f);
      condensed.put(
          at + "fixed_experts.weight", store.floats(at + "fixed_experts.weight", sixth, 6));
    }
    for (Backend backend : backends()) {
      assertNear(
          logits(backend, graph(config, routed, store), Optional.empty()),
          logits(backend, graph(config, condensed, store), Optional.empty()));
    }
  }

  /** A row whose gate says skip keeps the residual stream, which the unit replaces otherwise. */
  @Test
  void aSkippedUnitThatReplacesKeepsTheStream() throws IOException {
    TinyModel model = TinyModel.read("coe-inner");
    MapMetadata config = MapMetadata.of(model.config());
    Map<String, Tensor> tensors = model.tensors(store);
    HyperParameters hp = HyperParameters.read(WeightFile.Format.SAFETENSORS, config);
    Map<String, Tensor> without = new LinkedHashMap<>(tensors);
    without
        .keySet()
        .removeIf(n ->
            n.startsWith("model.layers.1.mlp.")
                || n.equals("model.layers.1.post_attention_layernorm.weight"));
    WeightTensors weights =
        WeightTensors.of(WeightFile.Format.SAFETENSORS, without, hp.architecture(), store);
    List<BlockSpec> blocks = new ArrayList<>(hp.blocks());
    blocks.set(1, blocks.get(1).withUnits(blocks.get(1).attention(), Optional.empty()));
    Graph shorter =
        ModelGraph.build(hp.withShapes(hp.vocabulary(), blocks), weights, 64, "shorter");
    Gate gate = new Gate(1, Gate.Unit.FFN);
    for (Backend backend : backends()) {
      assertArrayEquals(
          logits(backend, shorter, Optional.empty()),
          logits(backend, graph(config, tensors, store), Optional.of(gate)),
          backend.name());
    }
  }

  private void refused(MapMetadata config, Map<String, Tensor> tensors, String... parts) {
    FletchException e =
        assertThrows(FletchException.class, () -> graph(config, tensors, store).ops());
    for (String part : parts) {
      assertTrue(e.getMessage().contains(part), e.getMessage());
    }
  }

  @Test
  void damagedCondensedLayersAreRefused() throws IOException {
    TinyModel model = TinyModel.read("cd-moe");
    MapMetadata config = MapMetadata.of(model.config());
    Map<String, Tensor> good = model.tensors(store);
    Map<String, Tensor> bad = new LinkedHashMap<>(good);
    bad.put(FIXED, store.floats(FIXED, new float[] {0.1f, Float.NaN}, 2));
    refused(config, bad, FIXED, "finite", "NaN");
    bad.put(FIXED, store.floats(FIXED, new float[2], 1, 2));
    refused(config, bad, FIXED, "vector", "[1, 2]");
    bad.put(FIXED, store.floats(FIXED, new float[7], 7));
    refused(config, bad, FIXED, "1 to 6", "[7]");
    bad.put(FIXED, store.floats(FIXED, new float[0], 0));
    refused(config, bad, FIXED, "1 to 6", "[0]");
    bad.put(FIXED, store.allocate(FIXED, TensorType.I8, 2));
    refused(config, bad, FIXED, "F32", "I8");
    // An expert more, or less, than there are constants.
    bad.put(FIXED, store.floats(FIXED, new float[] {0.1f}, 1));
    refused(config, bad, "does not know", "experts.1");
    bad.put(FIXED, store.floats(FIXED, new float[] {0.1f, 1, 2}, 3));
    refused(config, bad, "missing", "experts.2");
    bad.put(FIXED, good.get(FIXED));
    String router = "model.layers.1.mlp.gate.weight";
    bad.put(router, store.floats(router, new float[6 * 32], 6, 32));
    refused(config, bad, FIXED, "no router");
    Map<String, Tensor> alone = new LinkedHashMap<>(good);
    alone.keySet().removeIf(n -> n.contains("shared_experts"));
    refused(
        MapMetadata.of(model.config()).with("n_shared_experts", 0), alone, "condensed", "shared");
    Map<String, Tensor> neither = new LinkedHashMap<>(good);
    neither.remove(FIXED);
    refused(config, neither, "missing", "layers.1.mlp");
  }

  @ParameterizedTest
  @CsvSource({
    "inner_iter, 0, inner_iter",
    "inner_iter, 65, inner_iter",
    "inner_iter, 3, gate.2",
    "residual, sometimes, sometimes",
    "topk_group, 1, ''",
    "scoring_func, sigmoid, scoring_func",
    "first_k_dense_replace, 1, first_k_dense_replace",
    "num_key_value_heads, 2, latent",
    "kv_lora_rank, 0, kv_lora_rank",
    "kv_lora_rank, 11, kv_a",
    "qk_rope_head_dim, 0, qk_rope_head_dim",
    "qk_rope_head_dim, 3, even",
    "qk_nope_head_dim, 9, q_proj",
    "v_head_dim, 7, kv_b",
    "n_routed_experts, 5, gate",
    "num_experts_per_tok, 7, num_experts_per_tok",
    "n_shared_experts, 2, shared_experts"
  })
  void settingsThatDoNotFitAreRefused(String key, String value, String part) throws IOException {
    TinyModel model = TinyModel.read("coe-inner");
    MapMetadata config = MapMetadata.of(model.config());
    boolean isNumber = value.chars().allMatch(Character::isDigit);
    config.with(key, isNumber ? (Object) Long.parseLong(value) : value);
    if (part.isEmpty()) {
      assertEquals(
          ROWS,
          logits(
                  new ReferenceBackend(),
                  graph(config, model.tensors(store), store),
                  Optional.empty())
              .length);
      return;
    }
    refused(config, model.tensors(store), part);
  }
}
