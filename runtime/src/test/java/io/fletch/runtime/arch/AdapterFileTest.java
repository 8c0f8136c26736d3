package io.fletch.runtime.arch;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.graph.Graph;
import io.fletch.graph.LowRankDelta;
import io.fletch.graph.Value;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.LinearOp;
import io.fletch.quant.SafetensorsWriter;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile.Format;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.SplittableRandom;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What adapters are read as, for models of both formats (specs weights 4.7). */
class AdapterFileTest {
  private static final int WIDTH = 32;
  private static final int RANK = 4;
  private static final String Q = "model.layers.0.self_attn.q_proj";
  private static final String UP = "model.layers.1.mlp.up_proj";

  @TempDir Path folder;

  private final TensorStore store = TensorStore.create();
  private final SplittableRandom random = new SplittableRandom(6);
  private HyperParameters llama;

  @BeforeEach
  void model() throws IOException {
    llama =
        HyperParameters.read(
            Format.SAFETENSORS,
            MapMetadata.config("llama-3.2-1b")
                .with("hidden_size", WIDTH)
                .with("num_hidden_layers", 2)
                .with("num_attention_heads", 4)
                .with("num_key_value_heads", 2)
                .with("head_dim", 8)
                .with("intermediate_size", 48)
                .with("vocab_size", 50));
  }

  @AfterEach
  void close() {
    store.close();
  }

  private float[] floats(int n) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) random.nextDouble() - 0.5f;
    }
    return x;
  }

  private Tensor matrix(String name, int rows, int cols) {
    return store.floats(name, floats(rows * cols), rows, cols);
  }

  private Path peft(String config, List<Tensor> tensors) throws IOException {
    Path to = Files.createDirectories(folder.resolve("a" + random.nextInt(1 << 30)));
    Files.writeString(to.resolve("adapter_config.json"), "{\"peft_type\":" + config + "}");
    SafetensorsWriter writer = new SafetensorsWriter();
    tensors.forEach(writer::add);
    writer.write(to.resolve("adapter_model.safetensors"));
    return to;
  }

  private List<Tensor> lora(String stem, int out) {
    String at = "base_model.model." + stem;
    return List.of(
        matrix(at + ".lora_A.weight", RANK, WIDTH), matrix(at + ".lora_B.weight", out, RANK));
  }

  private AdapterFile open(Path path, Format base) {
    return AdapterFile.open(path, 1, store, base, llama);
  }

  private static float[] b(AdapterFile adapter, String layer) {
    return Dequantizer.toFloats(
        ((LinearOp.LowRank) adapter.term(layer).orElseThrow().op()).u().tensors().getFirst());
  }

  @Test
  void scalesFollowTheConfiguration() throws IOException {
    Map<String, Double> expected = new LinkedHashMap<>();
    expected.put("\"LORA\",\"lora_alpha\":8", 8.0 / RANK);
    expected.put("\"LORA\",\"lora_alpha\":8,\"use_rslora\":true", 8 / Math.sqrt(RANK));
    expected.put(
        "\"LORA\",\"lora_alpha\":8,\"alpha_pattern\":{\"v_proj\":1,\"mlp.up_proj\":3}", 3.0 / RANK);
    expected.put(
        "\"LORA\",\"lora_alpha\":8,\"r\":64,\"rank_pattern\":{\"up_proj\":4},\"bias\":\"none\","
            + "\"modules_to_save\":[],\"init_lora_weights\":\"gaussian\"",
        8.0 / RANK);
    for (Map.Entry<String, Double> e : expected.entrySet()) {
      AdapterFile a = open(peft(e.getKey(), lora(UP, 48)), Format.SAFETENSORS);
      assertEquals(
          e.getValue(), a.term("blk.1.ffn_up").orElseThrow().coefficient(), 1e-6, e.getKey());
      assertEquals(RANK, a.rank());
      assertEquals(List.of("blk.1.ffn_up"), a.targets());
    }
  }

  /** Row 2 i + t of a head in pairs is row t n / 2 + i in halves (specs weights 1.7). */
  @Test
  void rowsOfQueriesFollowTheFormatOfTheModel() throws IOException {
    List<Tensor> tensors = new ArrayList<>(lora(Q, 32));
    tensors.addAll(lora("model.layers.0.self_attn.v_proj", 16));
    Path peft = peft("\"LORA\",\"lora_alpha\":4", tensors);
    float[] halves = b(open(peft, Format.SAFETENSORS), "blk.0.attn_q");
    assertArrayEquals(Dequantizer.toFloats(tensors.get(1)), halves);
    for (Format format : new Format[] {Format.GGUF, Format.ARROW}) {
      AdapterFile a = open(peft, format);
      float[] pairs = b(a, "blk.0.attn_q");
      for (int head = 0; head < 4; head++) {
        for (int i = 0; i < 4; i++) {
          for (int t = 0; t < 2; t++) {
            for (int k = 0; k < RANK; k++) {
              assertEquals(
                  halves[(head * 8 + t * 4 + i) * RANK + k],
                  pairs[(head * 8 + 2 * i + t) * RANK + k]);
            }
          }
        }
      }
      assertArrayEquals(
          Dequantizer.toFloats(tensors.get(3)), b(a, "blk.0.attn_v"), "values do not turn");
      // And back: the same adapter as a GGUF file.
      Path gguf = folder.resolve(format + ".gguf");
      new GgufWriter()
          .put("general.architecture", "llama")
          .put("adapter.type", "lora")
          .put("adapter.lora.alpha", 4f)
          .add(store.floats("blk.0.attn_q.weight.lora_a", floats(RANK * WIDTH), RANK, WIDTH))
          .add(store.floats("blk.0.attn_q.weight.lora_b", pairs, 32, RANK))
          .write(gguf);
      assertArrayEquals(pairs, b(open(gguf, Format.GGUF), "blk.0.attn_q"));
      assertArrayEquals(halves, b(open(gguf, Format.SAFETENSORS), "blk.0.attn_q"));
    }
  }

  /** Property 25: without saved scales the squares of those of an entry sum to 1. */
  @Test
  void uniLoraIsExpandedFromItsVector() throws IOException {
    int n = 23;
    String at = "base_model.model." + UP + ".unilora_";
    Tensor theta = store.floats("base_model.model.unilora_theta_d", floats(n), n);
    Tensor ia = indices(at + "indices_A", RANK, WIDTH, n);
    Tensor ib = indices(at + "indices_B", 48, RANK, n);
    Tensor sa = matrix(at + "scales_A", RANK, WIDTH);
    Tensor sb = matrix(at + "scales_B", 48, RANK);
    AdapterFile saved =
        open(peft("\"UNILORA\"", List.of(theta, ia, ib, sa, sb)), Format.SAFETENSORS);
    LinearOp.Term term = saved.term("blk.1.ffn_up").orElseThrow();
    assertEquals(1, term.coefficient());
    LinearOp.LowRank map = (LinearOp.LowRank) term.op();
    float[] t = Dequantizer.toFloats(theta);
    float[] a = Dequantizer.toFloats(map.v().tensors().getFirst());
    float[] scales = Dequantizer.toFloats(sa);
    for (int i = 0; i < a.length; i++) {
      assertEquals(t[index(ia, i)] * scales[i], a[i]);
    }
    AdapterFile counted = open(peft("\"UNILORA\"", List.of(theta, ia, ib)), Format.SAFETENSORS);
    float[] b = b(counted, "blk.1.ffn_up");
    double[] squares = new double[n];
    for (int i = 0; i < b.length; i++) {
      squares[index(ib, i)] += Math.pow(b[i] / t[index(ib, i)], 2);
    }
    for (int i = 0; i < n; i++) {
      assertTrue(squares[i] == 0 || Math.abs(squares[i] - 1) < 1e-5, i + ": " + squares[i]);
    }
    refused("save_indices", peft("\"UNILORA\"", List.of(theta)));
    refused(
        "expected=[0, 2) actual=",
        peft(
            "\"UNILORA\"",
            List.of(
                store.floats("base_model.model.unilora_theta_d", floats(2), 2),
                indices(at + "indices_A", RANK, WIDTH, n),
                ib)));
    refused(
        "scales=128", peft("\"UNILORA\"", List.of(theta, ia, ib, matrix(at + "scales_A", 2, 2))));
  }

  private Tensor indices(String name, int rows, int cols, int n) {
    Tensor t = store.allocate(name, TensorType.I64, rows, cols);
    for (int i = 0; i < rows * cols; i++) {
      t.segment().set(ValueLayout.JAVA_LONG, 8L * i, random.nextInt(n));
    }
    return t;
  }

  private static int index(Tensor t, int i) {
    return (int) t.segment().get(ValueLayout.JAVA_LONG, 8L * i);
  }

  private void refused(String part, Path path) {
    FletchException e =
        assertThrows(FletchException.class, () -> open(path, Format.SAFETENSORS), part);
    assertTrue(e.getMessage().contains(part), e.getMessage());
  }

  /** Terms and gain together are the merged matrix. */
  @Test
  void doraScalesTheRowsOfTheModel() throws IOException {
    List<Tensor> tensors = new ArrayList<>(lora(UP, 48));
    float[] lengths = floats(48);
    for (int i = 0; i < lengths.length; i++) {
      lengths[i] += 2;
    }
    tensors.add(store.floats("base_model.model." + UP + ".lora_magnitude_vector", lengths, 48));
    AdapterFile adapter =
        open(peft("\"LORA\",\"lora_alpha\":8,\"use_dora\":true", tensors), Format.SAFETENSORS);
    Tensor w = matrix("w", 48, WIDTH);
    Graph.Builder g = Graph.builder("dora");
    Tensor table = matrix("e", 50, WIDTH);
    Value x = g.embedding("x", table, 1);
    Value up = g.linear("blk.1.ffn_up", x, LinearOp.dense(w), Optional.empty(), Optional.empty());
    LinearOp head = LinearOp.dense(matrix("head", 50, 48));
    Value logits =
        g.linear("logits", g.selectRows("s", up), head, Optional.empty(), Optional.empty());
    LowRankDelta d = adapter.deltas(g.build(logits)).get(up);
    float[] base = Dequantizer.toFloats(w);
    float[] expected =
        merged(
            base,
            Dequantizer.toFloats(tensors.get(0)),
            Dequantizer.toFloats(tensors.get(1)),
            8.0 / RANK,
            lengths);
    float[] a = Dequantizer.toFloats(d.a());
    float[] b = Dequantizer.toFloats(d.b());
    float[] gain = Dequantizer.toFloats(d.gain().orElseThrow());
    for (int i = 0; i < base.length; i++) {
      double sum = 0;
      for (int k = 0; k < RANK; k++) {
        sum += (double) b[i / WIDTH * RANK + k] * a[k * WIDTH + i % WIDTH];
      }
      double actual = base[i] + d.factor() * sum + (double) gain[i / WIDTH] * base[i];
      assertEquals(expected[i], actual, 1e-5, "element " + i);
    }
    // At open it is more than a sum: AdapterTargetsTest.
    assertTrue(adapter.grows("blk.1.ffn_up"));
  }

  /** {@code m (W + s B A) / |W + s B A|}, row by row. */
  private static float[] merged(float[] w, float[] a, float[] b, double s, float[] m) {
    float[] out = new float[w.length];
    for (int row = 0; row < m.length; row++) {
      double[] v = new double[WIDTH];
      double squares = 0;
      for (int i = 0; i < WIDTH; i++) {
        v[i] = w[row * WIDTH + i];
        for (int k = 0; k < RANK; k++) {
          v[i] += s * b[row * RANK + k] * a[k * WIDTH + i];
        }
        squares += v[i] * v[i];
      }
      for (int i = 0; i < WIDTH; i++) {
        out[row * WIDTH + i] = (float) (m[row] * v[i] / Math.sqrt(squares));
      }
    }
    return out;
  }

  @Test
  void whatIsNotSupportedIsRefusedByItsKey() throws IOException {
    Map<String, String> wrong = new LinkedHashMap<>();
    wrong.put("peft_type: expected=LORA or UNILORA actual=IA3", "\"IA3\"");
    wrong.put(
        "modules_to_save: expected=none",
        "\"LORA\",\"lora_alpha\":8,\"modules_to_save\":[\"lm_head\"]");
    wrong.put("bias: expected=none actual=all", "\"LORA\",\"lora_alpha\":8,\"bias\":\"all\"");
    wrong.put("fan_in_fan_out", "\"LORA\",\"lora_alpha\":8,\"fan_in_fan_out\":true");
    wrong.put("layer_replication", "\"LORA\",\"lora_alpha\":8,\"layer_replication\":[[0,2]]");
    wrong.put("pissa", "\"LORA\",\"lora_alpha\":8,\"init_lora_weights\":\"pissa_niter_4\"");
    wrong.put("alpha_pattern", "\"LORA\",\"lora_alpha\":8,\"alpha_pattern\":{\"(a+)+\":1}");
    wrong.put("lora_alpha: expected=a number actual=null", "\"LORA\"");
    for (Map.Entry<String, String> e : wrong.entrySet()) {
      refused(e.getKey(), peft(e.getValue(), lora(UP, 48)));
    }
    String config = "\"LORA\",\"lora_alpha\":8";
    String at = "base_model.model." + UP;
    refused("tensor: expected=base_model.model.*", peft(config, List.of(matrix("x", 2, 2))));
    refused("lora_A and lora_B", peft(config, lora(UP, 48).subList(0, 1)));
    refused(
        UP + ": rank: expected=4 actual=3",
        peft(
            config,
            List.of(
                matrix(at + ".lora_A.weight", 4, WIDTH), matrix(at + ".lora_B.weight", 48, 3))));
    List<Tensor> middle = new ArrayList<>(lora(UP, 48));
    middle.add(matrix(at + ".lora_N.weight", 4, 3));
    refused("rank: expected=4 actual=4 and 4 x 3", peft(config, middle));
    refused("matrices: expected=>=1", peft(config, List.of()));
    Path gguf = folder.resolve("x.gguf");
    new GgufWriter()
        .put("general.architecture", "qwen3")
        .put("adapter.type", "lora")
        .put("adapter.lora.alpha", 4f)
        .write(gguf);
    refused("general.architecture: expected=llama actual=qwen3", gguf);
  }
}
