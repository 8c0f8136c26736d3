package io.fletch.runtime.arch;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import io.fletch.graph.Backend;
import io.fletch.graph.Gate;
import io.fletch.graph.Graph;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.Value;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.quant.LinearOp;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile.Format;
import java.io.IOException;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.SplittableRandom;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

/** Properties of specs weights 6 that are about whole models: 16, 23 and 28. */
class WeightPropertiesTest {
  private static final int[] IDS = {5, 15, 39, 77};

  private final TensorStore store = TensorStore.create();

  @AfterEach
  void close() {
    store.close();
  }

  private static List<Backend> backends() {
    return List.of(
        new ReferenceBackend(), new CpuBackend(CpuBackend.Options.defaults().withThreads(1)));
  }

  private Graph graph(MapMetadata config, Map<String, Tensor> tensors) {
    HyperParameters hp = HyperParameters.read(Format.SAFETENSORS, config);
    WeightTensors weights = WeightTensors.of(Format.SAFETENSORS, tensors, hp.architecture(), store);
    return ModelGraph.build(weights.fit(hp), weights, 64, "test");
  }

  /** Property 16: tied embeddings are an output matrix that is a copy of them, bit for bit. */
  @Test
  void tiedEmbeddingsAreACopy() throws IOException {
    TinyModel model = TinyModel.read("llama");
    Map<String, Tensor> copied = model.tensors(store);
    float[] x = model.weights().get("model.embed_tokens.weight");
    copied.put("lm_head.weight", store.floats("lm_head.weight", x, 80, 32));
    Map<String, Tensor> tied = new LinkedHashMap<>(copied);
    tied.remove("lm_head.weight");
    MapMetadata config = MapMetadata.of(model.config());
    Graph one = graph(config, copied);
    Graph other = graph(MapMetadata.of(model.config()).with("tie_word_embeddings", true), tied);
    for (Backend backend : backends()) {
      assertArrayEquals(Logits.of(backend, one, IDS), Logits.of(backend, other, IDS));
    }
  }

  /** Property 28: a layer that is not there is one whose units add nothing, bit for bit. */
  @Test
  void aRemovedLayerIsOneThatAddsNothing() throws IOException {
    TinyModel model = TinyModel.read("llama");
    Map<String, Tensor> all = model.tensors(store);
    Map<String, Tensor> fewer = new LinkedHashMap<>();
    all.forEach((name, t) -> {
      if (!name.startsWith("model.layers.1.")) {
        fewer.put(name.replace("model.layers.2.", "model.layers.1."), t);
      }
    });
    Graph whole = graph(MapMetadata.of(model.config()), all);
    Graph shorter = graph(MapMetadata.of(model.config()).with("num_hidden_layers", 2), fewer);
    for (Backend backend : backends()) {
      float[][] expected = Logits.of(backend, shorter, IDS);
      float[][] actual =
          Logits.of(
              backend,
              whole,
              IDS,
              b -> {
                for (int r = 0; r < IDS.length; r++) {
                  b.gate(1, Gate.Unit.ATTENTION, r, Gate.SKIP);
                  b.gate(1, Gate.Unit.FFN, r, Gate.SKIP);
                }
              });
      assertArrayEquals(expected, actual);
      assertFalse(Arrays.deepEquals(expected, Logits.of(backend, whole, IDS)));
    }
  }

  /** Property 23: with identities before and after, ARMOR is plain 2:4. */
  @Test
  void armorOfIdentitiesIsTwoOfFour() {
    SplittableRandom random = new SplittableRandom(2);
    float[] half = new float[64 * 64];
    for (int g = 0; g < half.length; g += 4) {
      half[g + g / 4 % 2] = (float) random.nextDouble(-1, 1);
      half[g + 3] = (float) random.nextDouble(-1, 1);
    }
    float[] identities = new float[4 * 16 * 16];
    for (int i = 0; i < 64; i++) {
      identities[i / 16 * 256 + i % 16 * 17] = 1;
    }
    Tensor blocks = store.floats("i", identities, 4, 16, 16);
    LinearOp sparse =
        new LinearOp.Sparse(
            SparseEncoder.twoOfFour(store.floats("w", half, 64, 64), TensorType.F32, store));
    LinearOp diagonal = new LinearOp.BlockDiagonal(blocks);
    Tensor table = table(random, 80, 64);
    Graph plain = oneProduct(table, sparse);
    Graph armor = oneProduct(table, new LinearOp.Chain(List.of(diagonal, sparse, diagonal)));
    for (Backend backend : backends()) {
      assertArrayEquals(Logits.of(backend, plain, IDS), Logits.of(backend, armor, IDS));
    }
  }

  private static Graph oneProduct(Tensor table, LinearOp op) {
    Graph.Builder g = Graph.builder("product");
    Value x = g.selectRows("rows", g.embedding("x", table, 1));
    return g.build(g.linear("logits", x, op, Optional.empty(), Optional.empty()));
  }

  private Tensor table(SplittableRandom random, int rows, int cols) {
    float[] x = new float[rows * cols];
    for (int i = 0; i < x.length; i++) {
      x[i] = (float) random.nextDouble(-1, 1);
    }
    return store.floats("table", x, rows, cols);
  }
}
