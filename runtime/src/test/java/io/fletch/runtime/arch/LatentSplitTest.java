package io.fletch.runtime.arch;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.graph.Backend;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.Quantizer;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * GGUF files of DeepSeek-V2 in which keys and values of latent attention have matrices of their own
 * for each head, those of keys transposed, against files with one matrix.
 */
class LatentSplitTest {
  private static final int CONTEXT = 64;
  private static final String ONE = "attn_kv_b.weight";

  /** A file in both forms, with the same numbers. */
  private static final class Forms {
    final MapMetadata metadata;
    final MapMetadata splitMetadata;
    final Map<String, Tensor> one = new LinkedHashMap<>();
    final Map<String, Tensor> split = new LinkedHashMap<>();
    final int[] ids;
    private final TensorStore store;
    private final int heads;
    private final int plain;
    private final int values;
    private final int rank;

    Forms(TensorType type, TensorStore store) throws IOException {
      TinyModel model = TinyModel.read("deepseek2");
      this.store = store;
      ids = model.ids();
      heads = number(model, "num_attention_heads");
      plain = number(model, "qk_nope_head_dim");
      values = number(model, "v_head_dim");
      rank = number(model, "kv_lora_rank");
      int rotated = number(model, "qk_rope_head_dim");
      metadata = GgufForm.of(model, store, false).metadata();
      splitMetadata =
          GgufForm.of(model, store, false)
              .metadata()
              .with("deepseek2.attention.head_count_kv", 1)
              .with("deepseek2.attention.key_length", rank + rotated)
              .with("deepseek2.attention.value_length", rank)
              .with("deepseek2.attention.key_length_mla", plain + rotated)
              .with("deepseek2.attention.value_length_mla", values);
      GgufForm.of(model, store, false)
          .tensors()
          .forEach((name, t) -> {
            if (name.endsWith(ONE)) {
              split(name, t, type);
            } else {
              one.put(name, t);
              split.put(name, t);
            }
          });
    }

    private static int number(TinyModel model, String key) {
      return ((Number) model.config().get(key)).intValue();
    }

    private void split(String name, Tensor whole, TensorType type) {
      float[] x = Dequantizer.toFloats(whole);
      float[] keys = new float[heads * rank * plain];
      float[] headValues = new float[heads * values * rank];
      for (int h = 0; h < heads; h++) {
        for (int r = 0; r < rank; r++) {
          for (int i = 0; i < plain; i++) {
            keys[(h * rank + r) * plain + i] = x[(h * (plain + values) + i) * rank + r];
          }
          for (int i = 0; i < values; i++) {
            headValues[(h * values + i) * rank + r] =
                x[(h * (plain + values) + plain + i) * rank + r];
          }
        }
      }
      Tensor k = typed(name.replace(ONE, "attn_k_b.weight"), keys, type, heads, rank, plain);
      Tensor v = typed(name.replace(ONE, "attn_v_b.weight"), headValues, type, heads, values, rank);
      split.put(k.name(), k);
      split.put(v.name(), v);
      // The same numbers, as they are stored.
      keys = Dequantizer.toFloats(k);
      headValues = Dequantizer.toFloats(v);
      for (int h = 0; h < heads; h++) {
        for (int r = 0; r < rank; r++) {
          for (int i = 0; i < plain; i++) {
            x[(h * (plain + values) + i) * rank + r] = keys[(h * rank + r) * plain + i];
          }
          for (int i = 0; i < values; i++) {
            x[(h * (plain + values) + plain + i) * rank + r] =
                headValues[(h * values + i) * rank + r];
          }
        }
      }
      one.put(name, store.floats(name, x, whole.shape()));
    }

    private Tensor typed(String name, float[] x, TensorType type, long... shape) {
      return Quantizer.quantize(store.floats(name, x, shape), type, store);
    }
  }

  private static float[][] logits(
      Backend backend, MapMetadata metadata, Map<String, Tensor> tensors, int[] ids) {
    try (TensorStore derived = TensorStore.create()) {
      WeightFile.Format format = WeightFile.Format.GGUF;
      HyperParameters declared = HyperParameters.read(format, metadata);
      WeightTensors weights = WeightTensors.of(format, tensors, declared.architecture(), derived);
      Graph graph = ModelGraph.build(weights.fit(declared), weights, CONTEXT, "tiny");
      try (Executable e = backend.compile(graph, ids.length);
          KvCache kv = e.newKvCache(ids.length, KvCache.Type.F32);
          Batch batch = e.newBatch(ids.length, ids.length)) {
        batch.append(kv, ids, 0, ids.length);
        for (int r = 0; r < ids.length; r++) {
          batch.wantLogits(r);
        }
        e.forward(batch);
        float[][] rows = new float[ids.length][graph.logits().width()];
        for (int r = 0; r < rows.length; r++) {
          batch.logits(r, rows[r]);
        }
        return rows;
      }
    }
  }

  @ParameterizedTest
  @EnumSource(
      value = TensorType.class,
      names = {"F32", "F16", "BF16"})
  void logitsAreThoseOfOneMatrix(TensorType type) throws IOException {
    try (TensorStore store = TensorStore.create()) {
      Forms f = new Forms(type, store);
      assertEquals(f.one.size() + count(f), f.split.size());
      Backend reference = new ReferenceBackend();
      float[][] expected = logits(reference, f.metadata, f.one, f.ids);
      assertArrayEquals(expected, logits(reference, f.splitMetadata, f.split, f.ids));
      if (type == TensorType.F32) {
        Backend cpu = new CpuBackend(CpuBackend.Options.defaults().withThreads(2));
        expected = logits(cpu, f.metadata, f.one, f.ids);
        assertArrayEquals(expected, logits(cpu, f.splitMetadata, f.split, f.ids));
      }
    }
  }

  /** Blocks of keys lie across the rows that are wanted; those of values along them. */
  @ParameterizedTest
  @EnumSource(
      value = TensorType.class,
      names = {"F32", "BF16", "Q8_0", "Q4_K"})
  void numbersStayAsTheyAre(TensorType type) {
    int heads = 3;
    int dim = 256;
    int rank = 512;
    try (TensorStore store = TensorStore.create()) {
      SplittableRandom random = new SplittableRandom(5);
      float[] x = new float[heads * rank * dim];
      for (int i = 0; i < x.length; i++) {
        x[i] = (float) random.nextDouble(-1, 1);
      }
      String at = "blk.0.";
      Tensor floats = store.floats(at + "attn_k_b.weight", x, heads, rank, dim);
      Tensor k = Quantizer.quantize(floats, type, store);
      floats = store.floats(at + "attn_v_b.weight", x, heads, dim, rank);
      Tensor v = Quantizer.quantize(floats, type, store);
      WeightTensors weights =
          WeightTensors.of(
              WeightFile.Format.GGUF,
              Map.of(k.name(), k, v.name(), v),
              Architecture.ofModelType("deepseek_v2"),
              store);
      assertTrue(weights.hasKeysOfHeads(at));
      LinearOp.Dense keys = (LinearOp.Dense) weights.keysOfHeads(at, heads, dim, rank);
      float[] stored = Dequantizer.toFloats(k);
      float[] rows = Dequantizer.toFloats(keys.weight());
      for (int i = 0; i < stored.length; i++) {
        int h = i / (rank * dim);
        int r = i / dim % rank;
        assertEquals(stored[i], rows[(h * dim + i % dim) * rank + r]);
      }
      LinearOp.Dense values = (LinearOp.Dense) weights.valuesOfHeads(at, heads, dim, rank);
      assertEquals(type, values.weight().type());
      assertArrayEquals(new long[] {heads * dim, rank}, values.weight().shape());
      assertArrayEquals(Dequantizer.toFloats(v), Dequantizer.toFloats(values.weight()));
    }
  }

  private static int count(Forms f) {
    return (int) f.one.keySet().stream().filter(n -> n.endsWith(ONE)).count();
  }

  @Test
  void otherShapesAreRefused() throws IOException {
    try (TensorStore store = TensorStore.create()) {
      Forms f = new Forms(TensorType.F32, store);
      Backend backend = new ReferenceBackend();
      for (String stem : List.of("attn_k_b", "attn_v_b")) {
        String name = "blk.1." + stem + ".weight";
        Map<String, Tensor> wrong = new LinkedHashMap<>(f.split);
        long[] shape = wrong.get(name).shape();
        Tensor less = store.allocate(name, TensorType.F32, shape[0], shape[1], shape[2] - 1);
        wrong.put(name, less);
        FletchException e =
            assertThrows(
                FletchException.class, () -> logits(backend, f.splitMetadata, wrong, f.ids));
        assertTrue(e.getMessage().startsWith(name + ": shape expected="), e.getMessage());
        wrong.remove(name);
        assertThrows(FletchException.class, () -> logits(backend, f.splitMetadata, wrong, f.ids));
      }
    }
  }
}
