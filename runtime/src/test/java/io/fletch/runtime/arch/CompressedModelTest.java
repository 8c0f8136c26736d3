package io.fletch.runtime.arch;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.LinearOpTensors;
import io.fletch.quant.Quantizer;
import io.fletch.quant.SafetensorsWriter;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Whole models whose matrices are stored in parts, that adapters change, or that pruning made
 * ragged, against the dense model that they stand for (specs weights 3.4 to 3.6, properties 19, 23
 * and 30).
 */
class CompressedModelTest {
  private static final int WIDTH = 32;

  private static final String LORA = "{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8}";

  @TempDir Path folder;

  private final TensorStore store = TensorStore.create();
  private final SplittableRandom random = new SplittableRandom(4);
  private final Map<String, Tensor> tensors = new LinkedHashMap<>();

  @BeforeEach
  void model() {
    put("model.embed_tokens.weight", 50, WIDTH);
    norm("model.norm.weight");
    for (int i = 0; i < 2; i++) {
      String at = "model.layers." + i + ".";
      norm(at + "input_layernorm.weight");
      norm(at + "post_attention_layernorm.weight");
      put(at + "self_attn.q_proj.weight", 32, WIDTH);
      put(at + "self_attn.k_proj.weight", 16, WIDTH);
      put(at + "self_attn.v_proj.weight", 16, WIDTH);
      put(at + "self_attn.o_proj.weight", WIDTH, 32);
      put(at + "mlp.gate_proj.weight", 48, WIDTH);
      put(at + "mlp.up_proj.weight", 48, WIDTH);
      put(at + "mlp.down_proj.weight", WIDTH, 48);
    }
  }

  @AfterEach
  void close() {
    store.close();
  }

  private float[] floats(int n, double scale) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) ((random.nextDouble() - 0.5) * scale);
    }
    return x;
  }

  private void put(String name, int out, int in) {
    tensors.put(name, store.floats(name, floats(out * in, 0.8), out, in));
  }

  private void norm(String name) {
    float[] ones = new float[WIDTH];
    Arrays.fill(ones, 1f);
    tensors.put(name, store.floats(name, ones, WIDTH));
  }

  private Graph graph(Map<String, Tensor> all) throws IOException {
    return graph(all, Map.of());
  }

  private Graph graph(Map<String, Tensor> all, Map<Path, Float> adapters) throws IOException {
    MapMetadata config =
        MapMetadata.config("llama-3.2-1b")
            .with("hidden_size", WIDTH)
            .with("num_hidden_layers", 2)
            .with("num_attention_heads", 4)
            .with("num_key_value_heads", 2)
            .with("head_dim", 8)
            .with("intermediate_size", 48)
            .with("vocab_size", 50);
    HyperParameters hp = HyperParameters.read(WeightFile.Format.SAFETENSORS, config);
    WeightTensors weights =
        WeightTensors.of(WeightFile.Format.SAFETENSORS, all, hp.architecture(), store);
    weights.adapt(
        adapters.entrySet().stream()
            .map(e ->
                AdapterFile.open(
                    e.getKey(), e.getValue(), store, WeightFile.Format.SAFETENSORS, hp))
            .toList());
    return ModelGraph.build(weights.fit(hp), weights, 64, "test");
  }

  private float[][] logits(Graph graph, boolean reference) {
    CpuBackend.Options options = CpuBackend.Options.defaults().withThreads(2);
    return Logits.of(
        reference ? new ReferenceBackend() : new CpuBackend(options),
        graph,
        new int[] {3, 17, 42, 8});
  }

  private static void assertClose(float[][] expected, float[][] actual) {
    for (int r = 0; r < expected.length; r++) {
      assertArrayEquals(expected[r], actual[r], 1e-3f, "row " + r);
    }
  }

  /** Replaces a matrix by the tensors of a map, under the names of files. */
  private static void replace(Map<String, Tensor> all, String stem, LinearOp op) {
    all.remove(stem + ".weight");
    all.putAll(LinearOpTensors.of(op, stem));
  }

  @Test
  void sparsePartsGiveTheBitsOfTheMatrixWithZeros() throws IOException {
    Map<String, Tensor> sparse = new LinkedHashMap<>(tensors);
    for (String name : List.copyOf(tensors.keySet())) {
      if (!name.contains("_proj")) {
        continue;
      }
      Tensor t = tensors.get(name);
      float[] x = Dequantizer.toFloats(t);
      for (int i = 0; i < x.length; i++) {
        x[i] = random.nextBoolean() ? x[i] : 0;
      }
      Tensor masked = store.floats(name, x, t.shape());
      tensors.put(name, masked);
      replace(
          sparse,
          name.substring(0, name.length() - 7),
          new LinearOp.Sparse(SparseEncoder.bitmap(masked, TensorType.F32, store)));
    }
    Graph graph = graph(sparse);
    float[][] expected = logits(graph(tensors), false);
    float[][] actual = logits(graph, false);
    for (int r = 0; r < 4; r++) {
      assertArrayEquals(expected[r], actual[r], "row " + r);
    }
    assertTrue(
        graph.ops().stream()
            .anyMatch(op -> op instanceof Op.Linear l && l.weight() instanceof LinearOp.Sparse));
  }

  @Test
  void lowRankSumsAndBlockDiagonalChainsAreFoundByTheirNames() throws IOException {
    Map<String, Tensor> all = new LinkedHashMap<>(tensors);
    Tensor u = store.floats("u", floats(48 * 4, 1), 48, 4);
    Tensor v = store.floats("v", floats(4 * WIDTH, 1), 4, WIDTH);
    String up = "model.layers.0.mlp.up_proj";
    replace(all, up, LinearOp.lowRank(u, v));
    String gate = "model.layers.1.mlp.gate_proj";
    Tensor columns = store.allocate("c", TensorType.I32, 8);
    for (int i = 0; i < 8; i++) {
      columns.segment().setAtIndex(ValueLayout.JAVA_INT, i, 3 * i + 1);
    }
    Tensor chosen = store.floats("s", floats(48 * 8, 1), 48, 8);
    replace(
        all,
        gate,
        new LinearOp.Sum(
            List.of(
                new LinearOp.Term(1, new LinearOp.Columns(LinearOp.dense(chosen), columns, WIDTH)),
                new LinearOp.Term(1, LinearOp.lowRank(u, v)))));
    all.put(gate + ".coefficients", store.floats("k", new float[] {0.75f, 0.25f}, 2));
    String o = "model.layers.1.self_attn.o_proj";
    float[] half = floats(WIDTH * 32, 0.8);
    for (int i = 0; i < half.length; i++) {
      half[i] = i % 4 < 2 ? half[i] : 0;
    }
    Tensor a = store.floats("a", floats(4 * 8 * 8, 0.8), 4, 8, 8);
    Tensor b = store.floats("b", floats(8 * 4 * 4, 0.8), 8, 4, 4);
    Tensor middle = store.floats("w", half, WIDTH, 32);
    replace(
        all,
        o,
        new LinearOp.Chain(
            List.of(
                new LinearOp.BlockDiagonal(b),
                new LinearOp.Sparse(SparseEncoder.twoOfFour(middle, TensorType.F32, store)),
                new LinearOp.BlockDiagonal(a))));
    Graph graph = graph(all);
    List<Class<?>> kinds = new ArrayList<>();
    for (Op op : graph.ops()) {
      if (op instanceof Op.Linear l && !(l.weight() instanceof LinearOp.Dense)) {
        kinds.add(l.weight().getClass());
      }
    }
    assertEquals(List.of(LinearOp.LowRank.class, LinearOp.Chain.class, LinearOp.Sum.class), kinds);
    // The same matrices, multiplied out.
    float[] uv = product(Dequantizer.toFloats(u), Dequantizer.toFloats(v), 48, 4, WIDTH);
    tensors.put(up + ".weight", store.floats("m", uv, 48, WIDTH));
    float[] sum = new float[48 * WIDTH];
    float[] s = Dequantizer.toFloats(chosen);
    for (int i = 0; i < sum.length; i++) {
      int c = i % WIDTH;
      sum[i] = 0.25f * uv[i] + (c % 3 == 1 && c < 24 ? 0.75f * s[i / WIDTH * 8 + c / 3] : 0);
    }
    tensors.put(gate + ".weight", store.floats("m", sum, 48, WIDTH));
    float[] bd = diagonal(b);
    float[] ad = diagonal(a);
    float[] chain = product(product(ad, half, 32, 32, 32), bd, 32, 32, 32);
    tensors.put(o + ".weight", store.floats("m", chain, WIDTH, 32));
    float[][] expected = logits(graph(tensors), true);
    assertClose(expected, logits(graph, true));
    assertClose(expected, logits(graph, false));
  }

  private static float[] product(float[] a, float[] b, int m, int k, int n) {
    float[] c = new float[m * n];
    for (int i = 0; i < m; i++) {
      for (int j = 0; j < n; j++) {
        double sum = 0;
        for (int l = 0; l < k; l++) {
          sum += (double) a[i * k + l] * b[l * n + j];
        }
        c[i * n + j] = (float) sum;
      }
    }
    return c;
  }

  private static float[] diagonal(Tensor blocks) {
    int n = (int) blocks.dim(1);
    int width = (int) (blocks.dim(0) * n);
    float[] x = Dequantizer.toFloats(blocks);
    float[] full = new float[width * width];
    for (int i = 0; i < x.length; i++) {
      int block = i / (n * n);
      full[(block * n + i / n % n) * width + block * n + i % n] = x[i];
    }
    return full;
  }

  /** FLAP and its like: fewer heads and units per layer, biases where there were none. */
  @Test
  void raggedLayersWithNewBiasesRun() throws IOException {
    String at = "model.layers.0.";
    put(at + "self_attn.q_proj.weight", 16, WIDTH);
    put(at + "self_attn.k_proj.weight", 8, WIDTH);
    put(at + "self_attn.v_proj.weight", 8, WIDTH);
    put(at + "self_attn.o_proj.weight", WIDTH, 16);
    put(at + "mlp.gate_proj.weight", 20, WIDTH);
    put(at + "mlp.up_proj.weight", 20, WIDTH);
    put(at + "mlp.down_proj.weight", WIDTH, 20);
    for (String name : List.of("self_attn.o_proj.bias", "mlp.down_proj.bias")) {
      tensors.put(at + name, store.floats(at + name, floats(WIDTH, 1), WIDTH));
    }
    Graph graph = graph(tensors);
    assertEquals(2, graph.kvLayers().get(0).heads());
    assertEquals(1, graph.kvLayers().get(0).kvHeads());
    assertEquals(4, graph.kvLayers().get(1).heads());
    assertClose(logits(graph, true), logits(graph, false));
  }

  @Test
  void aUnitWithoutRowsIsNotThere() throws IOException {
    String at = "model.layers.0.self_attn.";
    for (String name : List.of("q_proj", "k_proj", "v_proj")) {
      put(at + name + ".weight", 0, WIDTH);
    }
    put(at + "o_proj.weight", WIDTH, 0);
    put("model.layers.1.mlp.gate_proj.weight", 0, WIDTH);
    put("model.layers.1.mlp.up_proj.weight", 0, WIDTH);
    put("model.layers.1.mlp.down_proj.weight", WIDTH, 0);
    Graph graph = graph(tensors);
    assertEquals(1, graph.kvLayers().size(), "no cache for the attention that is gone");
    assertClose(logits(graph, true), logits(graph, false));
    tensors.keySet().removeIf(n -> n.startsWith(at));
    assertThrows(FletchException.class, () -> graph(tensors), "missing is not pruned");
  }

  @Test
  void partsThatDoNotFitAreRefused() {
    String stem = "model.layers.0.mlp.up_proj";
    Tensor u = store.floats("u", floats(48 * 4, 1), 48, 4);
    Tensor v = store.floats("v", floats(5 * WIDTH, 1), 5, WIDTH);
    tensors.remove(stem + ".weight");
    tensors.put(stem + ".U.weight", u);
    tensors.put(stem + ".V.weight", v);
    RuntimeException e = assertThrows(RuntimeException.class, () -> graph(tensors));
    assertTrue(e.getMessage().contains("rank of the factors"), e.getMessage());
  }

  private Path peft(String config, float[] a, float[] b, float[] n, String layer)
      throws IOException {
    Path to = Files.createDirectories(folder.resolve("a" + random.nextInt(1 << 30)));
    Files.writeString(to.resolve("adapter_config.json"), config);
    String stem = "base_model.model." + layer;
    SafetensorsWriter writer =
        new SafetensorsWriter()
            .add(store.floats(stem + ".lora_A.weight", a, 4, a.length / 4))
            .add(store.floats(stem + ".lora_B.weight", b, b.length / 4, 4));
    if (n.length > 0) {
      writer.add(store.floats(stem + ".lora_N.weight", n, 4, 4));
    }
    writer.write(to.resolve("adapter_model.safetensors"));
    return to;
  }

  private float[][] adapted(Map<String, Tensor> all, Map<Path, Float> adapters) throws IOException {
    return logits(graph(all, adapters), false);
  }

  /** Properties 24 and 25. */
  @Test
  void adaptersAddUpAndEqualTheMergedModel() throws IOException {
    String up = "model.layers.1.mlp.up_proj";
    String q = "model.layers.0.self_attn.q_proj";
    float[] a = floats(4 * WIDTH, 0.5);
    float[] b = floats(48 * 4, 0.5);
    float[] b2 = floats(32 * 4, 0.5);
    Path one = peft(LORA, a, b, new float[0], up);
    Path two = peft(LORA.replace("8}", "8,\"use_rslora\":true}"), a, b2, new float[0], q);
    float[][] base = logits(graph(tensors), false);
    Map<Path, Float> both = new LinkedHashMap<>();
    both.put(one, 0.5f);
    both.put(two, 1f);
    float[][] actual = adapted(tensors, both);
    Map<String, Tensor> merged = new LinkedHashMap<>(tensors);
    merge(merged, up, product(b, a, 48, 4, WIDTH), 0.5f * 8 / 4);
    merge(merged, q, product(b2, a, 32, 4, WIDTH), 8f / 2);
    float[][] expected = logits(graph(merged), true);
    double difference = 0;
    for (int r = 0; r < 4; r++) {
      for (int i = 0; i < 50; i++) {
        assertEquals(expected[r][i], actual[r][i], 1e-4 * Math.max(1, Math.abs(expected[r][i])));
        difference = Math.max(difference, Math.abs(base[r][i] - actual[r][i]));
      }
    }
    assertTrue(difference > 0.01, "the adapters do something: " + difference);
    // An adapter of zeros, or one of scale zero, changes no bit.
    Path zero = peft(LORA, a, new float[48 * 4], new float[0], up);
    for (Map<Path, Float> none : List.of(Map.of(zero, 1f), Map.of(one, 0f))) {
      float[][] same = adapted(tensors, none);
      for (int r = 0; r < 4; r++) {
        assertArrayEquals(base[r], same[r]);
      }
    }
    float[] identity = new float[16];
    for (int i = 0; i < 16; i += 5) {
      identity[i] = 1;
    }
    Path middle = peft(LORA, a, b, identity, up);
    float[][] plain = adapted(tensors, Map.of(one, 1f));
    float[][] withMiddle = adapted(tensors, Map.of(middle, 1f));
    for (int r = 0; r < 4; r++) {
      assertArrayEquals(plain[r], withMiddle[r]);
    }
  }

  @Test
  void adaptersWorkOverAQuantizedBase() throws IOException {
    String up = "model.layers.1.mlp.up_proj";
    Map<String, Tensor> eight = new LinkedHashMap<>(tensors);
    for (String name : tensors.keySet()) {
      if (name.endsWith("up_proj.weight")) {
        eight.put(name, Quantizer.quantize(tensors.get(name), TensorType.Q8_0, store));
      }
    }
    Path one = peft(LORA, floats(4 * WIDTH, 0.5), floats(48 * 4, 0.5), new float[0], up);
    float[][] expected = logits(graph(eight, Map.of(one, 1f)), true);
    float[][] actual = adapted(eight, Map.of(one, 1f));
    for (int r = 0; r < 4; r++) {
      assertArrayEquals(expected[r], actual[r], 0.05f);
    }
  }

  private void merge(Map<String, Tensor> all, String stem, float[] delta, float scale) {
    Tensor t = all.get(stem + ".weight");
    float[] x = Dequantizer.toFloats(t);
    for (int i = 0; i < x.length; i++) {
      x[i] += scale * delta[i];
    }
    all.put(stem + ".weight", store.floats(t.name(), x, t.shape()));
  }

  @Test
  void adaptersThatDoNotFitAreRefusedByName() throws IOException {
    float[] a = floats(4 * WIDTH, 1);
    float[] b = floats(48 * 4, 1);
    String up = "model.layers.1.mlp.up_proj";
    Map<String, Path> wrong = new LinkedHashMap<>();
    wrong.put("use_dora", peft(LORA.replace("8}", "8,\"use_dora\":true}"), a, b, new float[0], up));
    wrong.put("peft_type", peft(LORA.replace("LORA", "IA3"), a, b, new float[0], up));
    wrong.put("matrix model.x", peft(LORA, a, b, new float[0], "model.x"));
    wrong.put("shape of a term", peft(LORA, a, a, new float[0], up));
    for (Map.Entry<String, Path> e : wrong.entrySet()) {
      FletchException x =
          assertThrows(
              FletchException.class, () -> adapted(tensors, Map.of(e.getValue(), 1f)), e.getKey());
      assertTrue(x.getMessage().contains(e.getKey()), x.getMessage());
    }
  }
}
