package io.fletch.runtime.arch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.graph.Backend;
import io.fletch.graph.Graph;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.quant.SafetensorsWriter;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile.Format;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * What only adapters that are given at open may change, against models whose matrices were changed:
 * embeddings, experts, and matrices whose rows grow (DoRA); and the output matrix.
 */
class AdapterTargetsTest {
  private static final int ALPHA = 6;
  private static final int[] IDS = {5, 15, 39, 77, 49};

  @TempDir Path folder;

  private final TensorStore store = TensorStore.create();
  private final SplittableRandom random = new SplittableRandom(4);
  private final List<Tensor> factors = new ArrayList<>();

  @AfterEach
  void close() {
    store.close();
  }

  private float[] floats(int n, double size) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) random.nextDouble(-size, size);
    }
    return x;
  }

  private void factor(String name, float[] x, long... shape) {
    factors.add(store.floats("base_model.model." + name, x, shape));
  }

  private Path peft(String settings) throws IOException {
    Path peft = Files.createDirectories(folder.resolve("peft"));
    Files.writeString(
        peft.resolve("adapter_config.json"),
        "{\"peft_type\":\"LORA\",\"lora_alpha\":" + ALPHA + settings + "}");
    SafetensorsWriter writer = new SafetensorsWriter();
    factors.forEach(writer::add);
    writer.write(peft.resolve("adapter_model.safetensors"));
    return peft;
  }

  /** Changes a matrix of a model by a pair of factors of its own, and returns what is added. */
  private float[] lora(TinyModel model, String stem, int rank, double scale) {
    long[] shape = model.shapes().get(stem + ".weight");
    int out = (int) shape[0];
    int in = (int) shape[1];
    float[] a = floats(rank * in, 0.4);
    float[] b = floats(out * rank, 0.4);
    factor(stem + ".lora_A.weight", a, rank, in);
    factor(stem + ".lora_B.weight", b, out, rank);
    float[] added = new float[out * in];
    for (int i = 0; i < added.length; i++) {
      for (int k = 0; k < rank; k++) {
        added[i] += (float) (scale * ALPHA / rank * b[i / in * rank + k] * a[k * in + i % in]);
      }
    }
    return added;
  }

  private static void add(TinyModel model, String name, float[] added) {
    float[] w = model.weights().get(name);
    for (int i = 0; i < w.length; i++) {
      w[i] += added[i];
    }
  }

  private Graph graph(TinyModel model, Map<String, Tensor> tensors, List<Path> adapters, float s) {
    return graph(Format.SAFETENSORS, MapMetadata.of(model.config()), tensors, adapters, s);
  }

  private Graph graph(
      Format format,
      MapMetadata metadata,
      Map<String, Tensor> tensors,
      List<Path> adapters,
      float s) {
    HyperParameters hp = HyperParameters.read(format, metadata);
    WeightTensors weights = WeightTensors.of(format, tensors, hp.architecture(), store);
    HyperParameters fitted = weights.fit(hp);
    weights.adapt(
        adapters.stream().map(p -> AdapterFile.open(p, s, store, format, fitted)).toList());
    return ModelGraph.build(fitted, weights, 64, "adapted");
  }

  /**
   * The model with the adapter, in either format, gives what the changed model gives, and something
   * else than without.
   */
  private void check(TinyModel changed, String name, Path adapter, float scale) throws IOException {
    Map<String, Tensor> plain = TinyModel.read(name).tensors(store);
    Graph expected = graph(changed, changed.tensors(store), List.of(), 1);
    GgufForm form = GgufForm.of(TinyModel.read(name), store, false);
    List<Graph> both =
        List.of(
            graph(changed, plain, List.of(adapter), scale),
            graph(Format.GGUF, form.metadata(), form.tensors(), List.of(adapter), scale));
    float[][] want = Logits.of(new ReferenceBackend(), expected, IDS);
    assertNotEquals(
        want[2][3],
        Logits.of(new ReferenceBackend(), graph(changed, plain, List.of(), 1), IDS)[2][3]);
    for (Backend backend :
        List.of(
            new ReferenceBackend(), new CpuBackend(CpuBackend.Options.defaults().withThreads(2)))) {
      for (Graph actual : both) {
        float[][] got = Logits.of(backend, actual, IDS);
        for (int r = 0; r < want.length; r++) {
          for (int i = 0; i < want[r].length; i++) {
            assertEquals(want[r][i], got[r][i], 2e-4, backend.name() + " row " + r);
          }
        }
      }
    }
  }

  @Test
  void expertsHaveAdaptersOfTheirOwn() throws IOException {
    TinyModel model = TinyModel.read("qwen3moe");
    String at = "model.layers.1.mlp.experts.";
    for (String stem : new String[] {at + "0.gate_proj", at + "2.gate_proj", at + "5.up_proj"}) {
      add(model, stem + ".weight", lora(model, stem, stem.contains("0.") ? 2 : 3, 0.5));
    }
    for (int e = 0; e < 6; e++) {
      String stem = at + e + ".down_proj";
      add(model, stem + ".weight", lora(model, stem, 2, 0.5));
    }
    check(model, "qwen3moe", peft(""), 0.5f);
  }

  /** Every matrix of latent attention, with a query vector or without, and routers of a chain. */
  @ParameterizedTest
  @ValueSource(strings = {"deepseek2", "coe-outer", "coe-addinit"})
  void latentAttentionAndRouters(String name) throws IOException {
    TinyModel model = TinyModel.read(name);
    for (String weight : model.shapes().keySet()) {
      if (weight.matches(".*(self_attn\\..*_proj(_with_mqa)?|mlp\\.gate(\\.\\d)?)\\.weight")) {
        String stem = weight.substring(0, weight.length() - ".weight".length());
        add(model, weight, lora(model, stem, 2, 0.2));
      }
    }
    check(model, name, peft(""), 0.2f);
  }

  @Test
  void embeddingAndOutputAreChanged() throws IOException {
    TinyModel model = TinyModel.read("llama");
    int rank = 3;
    float[] a = floats(rank * 80, 0.4);
    float[] b = floats(32 * rank, 0.4);
    factor("model.embed_tokens.lora_embedding_A", a, rank, 80);
    factor("model.embed_tokens.lora_embedding_B", b, 32, rank);
    float[] added = new float[80 * 32];
    for (int i = 0; i < added.length; i++) {
      for (int k = 0; k < rank; k++) {
        added[i] += (float) ALPHA / rank * b[i % 32 * rank + k] * a[k * 80 + i / 32];
      }
    }
    add(model, "model.embed_tokens.weight", added);
    add(model, "lm_head.weight", lora(model, "lm_head", 2, 1));
    check(model, "llama", peft(""), 1);
  }

  /** Rows of lengths of their own, on matrices with and without bias, with a scale. */
  @Test
  void rowsGrow() throws IOException {
    TinyModel model = TinyModel.read("qwen2");
    float scale = 0.7f;
    String[] stems = {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "lm_head"};
    for (String stem : stems) {
      float[] w = model.weights().get(stem + ".weight");
      int rows = (int) model.shapes().get(stem + ".weight")[0];
      int in = w.length / rows;
      float[] added = lora(model, stem, 2, 1);
      float[] lengths = floats(rows, 0.5);
      for (int row = 0; row < rows; row++) {
        // Some rows vanish with the whole change, others turn.
        lengths[row] = row % 7 == 3 ? 0 : row % 7 == 5 ? -1.2f : lengths[row] + 1.2f;
        double squares = 0;
        for (int i = row * in; i < (row + 1) * in; i++) {
          squares += Math.pow(w[i] + added[i], 2);
        }
        for (int i = row * in; i < (row + 1) * in; i++) {
          double whole = lengths[row] * (w[i] + added[i]) / Math.sqrt(squares);
          w[i] += (float) (scale * (whole - w[i]));
        }
      }
      factor(stem + ".lora_magnitude_vector", lengths, rows);
    }
    check(model, "qwen2", peft(",\"use_dora\":true"), scale);
  }

  @Test
  void whatIsNotPossibleIsRefused() throws IOException {
    TinyModel model = TinyModel.read("llama");
    Map<String, Tensor> tensors = model.tensors(store);
    factor("model.embed_tokens.lora_embedding_A", floats(2 * 79, 1), 2, 79);
    factor("model.embed_tokens.lora_embedding_B", floats(64, 1), 32, 2);
    Path path = peft("");
    FletchException e =
        assertThrows(FletchException.class, () -> graph(model, tensors, List.of(path), 1));
    assertTrue(e.getMessage().contains("expected=[80, 32] actual=[79, 32]"), e.getMessage());
    // Rows of a session cannot change a table.
    HyperParameters hp = HyperParameters.read(Format.SAFETENSORS, MapMetadata.of(model.config()));
    AdapterFile file = AdapterFile.open(path, 1, store, Format.SAFETENSORS, hp);
    Graph plain = graph(model, tensors, List.of(), 1);
    e = assertThrows(FletchException.class, () -> file.deltas(plain));
    assertTrue(e.getMessage().contains("model is opened"), e.getMessage());
    // Nor a product that DoRA changed when the model was opened.
    for (String stem : List.of("model.layers.1.mlp.up_proj", "lm_head")) {
      factors.clear();
      lora(model, stem, 2, 1);
      int rows = (int) model.shapes().get(stem + ".weight")[0];
      factor(stem + ".lora_magnitude_vector", floats(rows, 1), rows);
      Path dora = peft(",\"use_dora\":true");
      Graph grown = graph(model, tensors, List.of(dora), 1);
      AdapterFile again = AdapterFile.open(dora, 1, store, Format.SAFETENSORS, hp);
      e = assertThrows(FletchException.class, () -> again.deltas(grown));
      assertTrue(e.getMessage().contains("matrix " + stem), e.getMessage());
      assertTrue(e.getMessage().contains("no DoRA given when the model was opened"));
      assertTrue(e.getMessage().contains("actual=changed by DoRA"), e.getMessage());
    }
    factors.clear();
    factor("model.embed_tokens.lora_A.weight", floats(64, 1), 2, 32);
    factor("model.embed_tokens.lora_B.weight", floats(160, 1), 80, 2);
    e = assertThrows(FletchException.class, () -> graph(model, tensors, List.of(peft("")), 1));
    assertTrue(e.getMessage().contains("lora_embedding_A"), e.getMessage());
  }
}
