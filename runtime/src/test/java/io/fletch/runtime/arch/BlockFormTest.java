package io.fletch.runtime.arch;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.SplittableRandom;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/**
 * Blocks of training research: where norms are and what is scaled (specs weights 5.2, property 29).
 * Models whose matrices are zero have constants (their biases) as branches, so that what a layer
 * does can be written down.
 */
class BlockFormTest {
  private static final int WIDTH = 32;
  private static final int ROWS = 4;
  private static final int VOCABULARY = 50;
  private static final int[] IDS = {3, 17, 42, 8};
  private static final String LAYER = "model.layers.";

  private final TensorStore store = TensorStore.create();
  private final SplittableRandom random = new SplittableRandom(7);
  private final Map<String, Tensor> tensors = new LinkedHashMap<>();
  private final Map<String, Object> options = new LinkedHashMap<>();

  @BeforeEach
  void model() {
    put("model.embed_tokens.weight", VOCABULARY, WIDTH);
    put("model.norm.weight", WIDTH);
    for (int i = 0; i < 2; i++) {
      String at = LAYER + i + ".";
      put(at + "input_layernorm.weight", WIDTH);
      put(at + "post_attention_layernorm.weight", WIDTH);
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

  private void put(String name, long... shape) {
    int n = 1;
    for (long d : shape) {
      n *= (int) d;
    }
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = (float) (random.nextDouble() - 0.5) * 0.8f + (shape.length == 1 ? 1 : 0);
    }
    tensors.put(name, store.floats(name, x, shape));
  }

  private void set(String name, float... values) {
    tensors.put(name, store.floats(name, values, values.length));
  }

  /** Branches that are constants. */
  private void constantBranches() {
    for (int i = 0; i < 2; i++) {
      for (String part : new String[] {"self_attn.o_proj", "mlp.down_proj"}) {
        String name = LAYER + i + "." + part;
        Tensor w = tensors.get(name + ".weight");
        tensors.put(name + ".weight", store.floats(name, new float[(int) w.elements()], w.shape()));
        put(name + ".bias", WIDTH);
      }
    }
  }

  private float[][] logits() throws IOException {
    MapMetadata config =
        MapMetadata.config("llama-3.2-1b")
            .with("hidden_size", WIDTH)
            .with("num_hidden_layers", 2)
            .with("num_attention_heads", 4)
            .with("num_key_value_heads", 2)
            .with("head_dim", 8)
            .with("intermediate_size", 48)
            .with("rms_norm_eps", 1e-9)
            .with("vocab_size", VOCABULARY);
    for (Map.Entry<String, Object> e : options.entrySet()) {
      config = config.with(e.getKey(), e.getValue());
    }
    HyperParameters hp = HyperParameters.read(WeightFile.Format.SAFETENSORS, config);
    WeightTensors weights =
        WeightTensors.of(WeightFile.Format.SAFETENSORS, tensors, hp.architecture(), store);
    return Logits.of(
        new CpuBackend(CpuBackend.Options.defaults().withThreads(1)),
        ModelGraph.build(weights.fit(hp), weights, 64, "test"),
        IDS);
  }

  private double[] vector(String name) {
    float[] x = Dequantizer.toFloats(tensors.get(name));
    double[] all = new double[x.length];
    for (int i = 0; i < x.length; i++) {
      all[i] = x[i];
    }
    return all;
  }

  private double[] norm(double[] x, String name) {
    double[] w = vector(name);
    double sum = 0;
    for (double v : x) {
      sum += v * v;
    }
    double scale = 1 / Math.sqrt(sum / x.length + 1e-9);
    double[] y = new double[x.length];
    for (int i = 0; i < x.length; i++) {
      y[i] = x[i] * scale * w[i];
    }
    return y;
  }

  private static double[] add(double a, double[] x, double b, double[] y) {
    double[] sum = new double[x.length];
    for (int i = 0; i < x.length; i++) {
      sum[i] = a * x[i] + b * y[i];
    }
    return sum;
  }

  /** What one layer does to the residual, given the constants of its branches. */
  private interface Layer {
    double[] of(double[] x, String at, double[] attention, double[] feedForward);
  }

  private void assertLayers(Layer... layers) throws IOException {
    float[][] actual = logits();
    double[] table = vector("model.embed_tokens.weight");
    for (int r = 0; r < ROWS; r++) {
      double[] x = java.util.Arrays.copyOfRange(table, IDS[r] * WIDTH, (IDS[r] + 1) * WIDTH);
      for (int l = 0; l < layers.length; l++) {
        String at = LAYER + l + ".";
        x =
            layers[l].of(
                x, at, vector(at + "self_attn.o_proj.bias"), vector(at + "mlp.down_proj.bias"));
      }
      x = norm(x, "model.norm.weight");
      for (int v = 0; v < VOCABULARY; v++) {
        double expected = 0;
        for (int i = 0; i < WIDTH; i++) {
          expected += x[i] * table[v * WIDTH + i];
        }
        assertEquals(expected, actual[r][v], 1e-4, "row " + r + " id " + v);
      }
    }
  }

  private static final String AFTER_ATTENTION = "post_attention_layernorm.weight";
  private static final String AFTER_FFN = "post_feedforward_layernorm.weight";

  /** The first layer of Mix-LN has its norms after the add. */
  private void postNorms(int layer) {
    tensors.remove(LAYER + layer + ".input_layernorm.weight");
    put(LAYER + layer + "." + AFTER_FFN, WIDTH);
  }

  private double[] post(double alpha, double[] x, String at, double[] a, double[] f) {
    double[] y = norm(add(alpha, x, 1, a), at + AFTER_ATTENTION);
    return norm(add(alpha, y, 1, f), at + AFTER_FFN);
  }

  private static double[] pre(double s, double[] x, double[] a, double[] f) {
    double[] y = add(s, x, s, a);
    return add(s, y, s, f);
  }

  @Test
  void mixLnHasNormsAfterTheAddInSomeLayers() throws IOException {
    constantBranches();
    assertLayers((x, at, a, f) -> pre(1, x, a, f), (x, at, a, f) -> pre(1, x, a, f));
    postNorms(0);
    assertLayers((x, at, a, f) -> post(1, x, at, a, f), (x, at, a, f) -> pre(1, x, a, f));
    // What a layer's units read is not normalised there: it is the residual itself.
    options.put("fletch.residual_alpha", 2.8284);
    assertLayers((x, at, a, f) -> post(2.8284, x, at, a, f), (x, at, a, f) -> pre(1, x, a, f));
    postNorms(1);
    set(LAYER + "1.gpas_block.gate", -0.7f);
    double gate = 1 - -0.7 / (1 + Math.exp(0.7));
    assertLayers(
        (x, at, a, f) -> post(2.8284, x, at, a, f),
        (x, at, a, f) -> post(2.8284 * gate, x, at, a, f));
  }

  @Test
  void sandwichHasFourNorms() throws IOException {
    constantBranches();
    for (int i = 0; i < 2; i++) {
      put(LAYER + i + ".pre_feedforward_layernorm.weight", WIDTH);
      put(LAYER + i + "." + AFTER_FFN, WIDTH);
    }
    Layer layer =
        (x, at, a, f) -> {
          double[] y = add(1, x, 1, norm(a, at + AFTER_ATTENTION));
          return add(1, y, 1, norm(f, at + AFTER_FFN));
        };
    assertLayers(layer, layer);
  }

  @Test
  void gpasScalesWhatComesOutOfEveryAdd() throws IOException {
    float[][] base = logits();
    set(LAYER + "0.gpas_block.gate", 0f);
    float[][] same = logits();
    for (int r = 0; r < ROWS; r++) {
      assertArrayEquals(base[r], same[r]);
    }
    constantBranches();
    set(LAYER + "0.gpas_block.gate", 0.9f);
    double s = 1 - 0.9 / (1 + Math.exp(-0.9));
    assertLayers((x, at, a, f) -> pre(s, x, a, f), (x, at, a, f) -> pre(1, x, a, f));
    set(LAYER + "0.raw_scaling_factor_attn", 0.25f);
    set(LAYER + "1.raw_scaling_factor_mlp", -2f);
    assertLayers(
        (x, at, a, f) -> pre(s, x, add(0.25, a, 0, a), f),
        (x, at, a, f) -> pre(1, x, a, add(-2, f, 0, f)));
  }

  /** Scaling after the norm is scaling its weights. */
  @Test
  void layerNormScalingIsWhatScaledWeightsGive() throws IOException {
    options.put("fletch.layernorm_scaling", true);
    float[][] scaled = logits();
    options.clear();
    float[][] plain = logits();
    String[] norms = {"input_layernorm.weight", AFTER_ATTENTION};
    for (String norm : norms) {
      String name = LAYER + "1." + norm;
      float[] w = Dequantizer.toFloats(tensors.get(name));
      for (int i = 0; i < w.length; i++) {
        w[i] *= (float) (1 / Math.sqrt(2));
      }
      set(name, w);
    }
    float[][] folded = logits();
    double change = 0;
    for (int r = 0; r < ROWS; r++) {
      assertArrayEquals(folded[r], scaled[r], 1e-4f);
      for (int v = 0; v < VOCABULARY; v++) {
        change = Math.max(change, Math.abs(plain[r][v] - scaled[r][v]));
      }
    }
    assertTrue(change > 0.01, "nothing changed: " + change);
  }

  @Test
  void whatDoesNotFitIsRefused() {
    options.put("fletch.residual_alpha", 2.0);
    FletchException none = assertThrows(FletchException.class, this::logits);
    assertTrue(
        none.getMessage().contains("expected=layers whose norms come after"), none::getMessage);
    options.put("fletch.residual_alpha", -1.0);
    FletchException range = assertThrows(FletchException.class, this::logits);
    assertTrue(range.getMessage().contains("expected=(0, 1e6) actual=-1.0"), range::getMessage);
    options.clear();
    set(LAYER + "0.gpas_block.gate", 1, 2);
    FletchException two = assertThrows(FletchException.class, this::logits);
    assertTrue(two.getMessage().contains("elements expected=1 actual=2"), two::getMessage);
    tensors.remove(LAYER + "0.gpas_block.gate");
    // Norms after one unit only are no form that is known.
    put(LAYER + "0." + AFTER_FFN, WIDTH);
    FletchException odd = assertThrows(FletchException.class, this::logits);
    assertTrue(
        odd.getMessage().contains("does not know: " + LAYER + "0." + AFTER_FFN), odd::getMessage);
  }

  /** Activation sparsity (ELAS); what it computes is a matter of {@link TinyModelsTest}. */
  @Test
  void activationSparsityThatDoesNotFitIsRefused() throws IOException {
    float[][] all = logits();
    options.put("fletch.activation_sparsity", "4:4");
    // Nothing is left out, but sums are taken in another order.
    float[][] kept = logits();
    for (int r = 0; r < all.length; r++) {
      assertArrayEquals(all[r], kept[r], 1e-5f);
    }
    for (String bad : new String[] {"0:4", "5:4", "2:5", "20:33", "two of four", "2:4:8", "-1:4"}) {
      options.put("fletch.activation_sparsity", bad);
      FletchException e = assertThrows(FletchException.class, this::logits);
      assertTrue(e.getMessage().contains("fletch.activation_sparsity"), e.getMessage());
    }
    options.clear();
    options.put("fletch.hidden_act", "sigmoid");
    FletchException e = assertThrows(FletchException.class, this::logits);
    assertTrue(e.getMessage().contains("fletch.hidden_act"), e.getMessage());
  }
}
