package io.fletch.runtime.arch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.Backend;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.Span;
import io.fletch.graph.SplitBackend;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Every family against Hugging Face transformers, on random weights. */
class TinyModelsTest {
  private static final int CONTEXT = 256;

  @ParameterizedTest
  @ValueSource(
      strings = {
        "llama",
        "qwen2",
        "qwen3",
        "mistral-window",
        "mixtral",
        "qwen2moe",
        "qwen3moe",
        "olmoe",
        "olmo2",
        "granite",
        "smollm3",
        "starcoder2",
        "gemma2",
        "gemma3",
        "phi3",
        "dream",
        "llada-moe",
        "sdar",
        "sdar-moe",
        "llada2",
        "deepseek",
        "deepseek2",
        "cd-moe",
        "coe-inner",
        "coe-outer",
        "coe-addinit",
        "elas",
        "elas-gated",
        "bert",
        "nomic-bert",
        "qwen3-embedding"
      })
  void logitsAreThoseOfTransformers(String name) throws IOException {
    TinyModel model = TinyModel.read(name);
    try (TensorStore store = TensorStore.create()) {
      check(
          model,
          WeightFile.Format.SAFETENSORS,
          MapMetadata.of(model.config()),
          model.tensors(store),
          store);
    }
  }

  /** The same weights as a GGUF converter would store them. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "llama",
        "qwen2",
        "qwen3",
        "mixtral",
        "mixtral-old",
        "qwen2moe",
        "qwen3moe",
        "olmoe",
        "olmo2",
        "granite",
        "smollm3",
        "starcoder2",
        "gemma2",
        "gemma3",
        "phi3",
        "falcon-7b",
        "falcon-40b",
        "dream",
        "llada-moe",
        "sdar",
        "deepseek",
        "deepseek2",
        "cd-moe",
        "coe-inner",
        "coe-outer",
        "coe-addinit",
        "elas",
        "elas-gated",
        "bert",
        "nomic-bert",
        "qwen3-embedding"
      })
  void logitsOfGgufAreThose(String name) throws IOException {
    TinyModel model = TinyModel.read(name.replace("-old", ""));
    try (TensorStore store = TensorStore.create()) {
      GgufForm form = GgufForm.of(model, store, name.endsWith("-old"));
      check(model, WeightFile.Format.GGUF, form.metadata(), form.tensors(), store);
    }
  }

  /** Columns of zeros, wherever the layers run. */
  @Test
  void bytesThatWereNotReadAreCounted() throws IOException {
    TinyModel model = TinyModel.read("elas");
    Backend cpu = new CpuBackend(CpuBackend.Options.defaults().withThreads(2));
    Backend reference = new ReferenceBackend();
    try (TensorStore store = TensorStore.create()) {
      HyperParameters hp =
          HyperParameters.read(WeightFile.Format.SAFETENSORS, MapMetadata.of(model.config()));
      WeightTensors weights =
          WeightTensors.of(
              WeightFile.Format.SAFETENSORS, model.tensors(store), hp.architecture(), store);
      Graph graph = ModelGraph.build(weights.fit(hp), weights, CONTEXT, "tiny");
      long all = skipped(cpu, graph, model);
      long first = skipped(new SplitBackend(cpu, reference, 1), graph, model);
      assertEquals(0, skipped(reference, graph, model));
      assertTrue(first > 0 && first < all, first + " of " + all);
      assertEquals(all, skipped(new SplitBackend(cpu, cpu, 1), graph, model));
    }
  }

  private static long skipped(Backend backend, Graph graph, TinyModel model) {
    try (Executable e = backend.compile(graph, 1);
        KvCache kv = e.newKvCache(1, KvCache.Type.F32);
        Batch batch = e.newBatch(1, 1)) {
      batch.append(kv, model.ids(), 0, 1);
      batch.wantLogits(0);
      e.forward(batch);
      return batch.skippedBytes();
    }
  }

  private static void check(
      TinyModel model,
      WeightFile.Format format,
      MapMetadata metadata,
      Map<String, Tensor> tensors,
      TensorStore store) {
    HyperParameters declared = HyperParameters.read(format, metadata);
    WeightTensors weights = WeightTensors.of(format, tensors, declared.architecture(), store);
    HyperParameters hp = weights.fit(declared);
    Graph graph =
        model.hidden()
            ? ModelGraph.buildHidden(hp, weights, CONTEXT, "tiny")
            : ModelGraph.build(hp, weights, CONTEXT, "tiny");
    List<Backend> backends =
        List.of(
            new ReferenceBackend(), new CpuBackend(CpuBackend.Options.defaults().withThreads(2)));
    for (Backend backend : backends) {
      try (Executable e = backend.compile(graph, model.ids().length)) {
        compare(backend.name(), e, model, declared);
      }
    }
  }

  private static void compare(String what, Executable e, TinyModel model, HyperParameters hp) {
    int n = model.ids().length;
    float[] row = new float[e.graph().logits().width()];
    // Falcon was trained with the exact GELU; engines of GGUF files compute its tanh form.
    double bound = model.config().get("model_type").equals("falcon") ? 5e-3 : 1e-4;
    try (KvCache kv = e.newKvCache(n, KvCache.Type.F32);
        Batch batch = e.newBatch(n, n)) {
      int block = hp.diffusionBlock();
      Span.Own own =
          block > 0
              ? Span.Own.BLOCK_CAUSAL
              : hp.causal() ? Span.Own.CAUSAL : Span.Own.BIDIRECTIONAL;
      batch.add(new Span(kv, n, 0, 0, 0, 0, 0, own, block), model.ids(), 0);
      for (int r = 0; r < n; r++) {
        batch.wantLogits(r);
      }
      e.forward(batch);
      for (int r = 0; r < n; r++) {
        batch.logits(r, row);
        float[] expected = model.logits()[r];
        double error = 0;
        double size = 0;
        for (int i = 0; i < row.length; i++) {
          error = Math.max(error, Math.abs(row[i] - expected[i]));
          size = Math.max(size, Math.abs(expected[i]));
        }
        assertTrue(
            error <= bound * size, what + " row " + r + ": error=" + error + " of size=" + size);
      }
    }
  }
}
