package io.fletch.runtime.arch;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.Op;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.LinearOpTensors;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/**
 * Whole models whose matrices are stored in parts, or that pruning made ragged, against the dense
 * model that they stand for (specs weights 3.4 to 3.6, properties 19, 23 and 30).
 */
class CompressedModelTest {
  private static final int WIDTH = 32;

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
    return ModelGraph.build(weights.fit(hp), weights, 64, "test");
  }

  private float[][] logits(Graph graph, boolean reference) {
    int[] ids = {3, 17, 42, 8};
    CpuBackend.Options options = CpuBackend.Options.defaults().withThreads(2);
    try (Executable e =
            (reference ? new ReferenceBackend() : new CpuBackend(options)).compile(graph, 4);
        KvCache kv = e.newKvCache(8, KvCache.Type.F32);
        Batch b = e.newBatch(4, 4)) {
      b.append(kv, ids, 0, 4);
      for (int r = 0; r < 4; r++) {
        b.wantLogits(r);
      }
      e.forward(b);
      float[][] all = new float[4][50];
      for (int r = 0; r < 4; r++) {
        b.logits(r, all[r]);
      }
      return all;
    }
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
}
