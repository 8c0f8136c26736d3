package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Routing;
import io.fletch.Session;
import io.fletch.graph.Op;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.SafetensorsWriter;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.runtime.arch.TinyWeights;
import io.fletch.sampling.TokenRouter;
import io.fletch.sampling.WeightUse;
import java.io.IOException;
import java.io.InputStream;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** The published router network against PyTorch: runtime/src/test/python/tiny_router.py. */
class RouterNetworkTest {
  private static final List<Message> QUESTION = List.of(Message.user("What is 457 + 386?"));
  private static final String TABLE = "token_embeddings.weight";

  @TempDir static Path folder;
  private static Map<String, Object> oracle;
  private static Model large;

  @BeforeAll
  static void open() throws IOException {
    try (InputStream in = RouterNetworkTest.class.getResourceAsStream("router.json")) {
      oracle = JSON.std.mapFrom(in.readAllBytes());
    }
    large = TestModels.open("demo", options(ModelOptions.Backend.CPU));
  }

  @AfterAll
  static void close() {
    large.close();
  }

  private static ModelOptions options(ModelOptions.Backend backend) {
    return TestModels.options(backend).withContextLength(128);
  }

  private static Model small(ModelOptions.Backend backend) {
    return TestModels.open("demo-small", options(backend));
  }

  private static int number(Map<?, ?> of, String key) {
    return ((Number) of.get(key)).intValue();
  }

  private static Map<String, float[]> weights() {
    Map<String, float[]> out = new LinkedHashMap<>();
    for (Object entry : (List<?>) oracle.get("tensors")) {
      Map<?, ?> t = (Map<?, ?>) entry;
      String name = (String) t.get("name");
      double scale = ((Number) t.get("scale")).doubleValue();
      double offset = ((Number) t.get("offset")).doubleValue();
      out.put(name, TinyWeights.values(name, shape(name), scale, offset));
    }
    return out;
  }

  private static long[] shape(String name) {
    for (Object entry : (List<?>) oracle.get("tensors")) {
      Map<?, ?> t = (Map<?, ?>) entry;
      if (name.equals(t.get("name"))) {
        return ((List<?>) t.get("shape"))
            .stream().mapToLong(d -> ((Number) d).longValue()).toArray();
      }
    }
    return new long[] {1};
  }

  private static Path write(String file, TensorType type, Map<String, float[]> weights) {
    return write(file, type, weights, "0.125");
  }

  private static Path write(
      String file, TensorType type, Map<String, float[]> weights, String threshold) {
    Path path = folder.resolve(file + ".safetensors");
    try (TensorStore store = TensorStore.create()) {
      SafetensorsWriter writer = new SafetensorsWriter().put("threshold", threshold);
      weights.forEach((name, x) -> writer.add(tensor(store, name, type, x, shape(name))));
      writer.write(path);
    }
    return path;
  }

  private static Tensor tensor(
      TensorStore store, String name, TensorType type, float[] x, long... shape) {
    if (type == TensorType.F32) {
      return store.floats(name, x, shape);
    }
    Tensor t = store.allocate(name, type, shape);
    for (int i = 0; i < x.length; i++) {
      short half =
          type == TensorType.F16
              ? Float.floatToFloat16(x[i])
              : (short) (Float.floatToRawIntBits(x[i]) + 0x8000 >>> 16);
      t.segment().set(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i, half);
    }
    return t;
  }

  private static float[] hidden(int c) {
    return TinyWeights.values("hidden." + c, new long[] {number(oracle, "hidden")}, 2, 0);
  }

  private static float[] logits(int c) {
    return TinyWeights.values(
        "logits." + c, new long[] {number(oracle, "vocabulary")}, 3.0 + c, 0.5);
  }

  private static void check(TokenRouter router, double tolerance) {
    List<?> cases = (List<?>) oracle.get("cases");
    assertTrue(cases.size() > 10);
    for (int c = 0; c < cases.size(); c++) {
      Map<?, ?> one = (Map<?, ?>) cases.get(c);
      float[] logits = logits(c);
      double score = router.score(logits, logits.length, number(one, "token"), hidden(c));
      assertEquals(((Number) one.get("score")).doubleValue(), score, tolerance, "case " + c);
    }
  }

  @ParameterizedTest
  @EnumSource(
      value = ModelOptions.Backend.class,
      names = {"CPU", "REFERENCE"})
  void scoresAreThoseOfPyTorch(ModelOptions.Backend backend) {
    Path file = write("f32", TensorType.F32, weights());
    try (Model small = small(backend)) {
      Routing routing = Routing.load(file, small, large);
      assertEquals(0.125, routing.threshold());
      check(routing.router(), 2e-6);
    }
  }

  @Test
  void halvesAreCloseToThem() {
    for (TensorType type : List.of(TensorType.F16, TensorType.BF16)) {
      Path file = write(type.name(), type, weights());
      try (Model small = small(ModelOptions.Backend.CPU)) {
        check(Routing.load(file, small, large).router(), type == TensorType.F16 ? 1e-3 : 1e-2);
      }
    }
  }

  /** Without an embedding in the file, that of the small model is used, not a copy. */
  @Test
  void theSmallModelsEmbeddingIsUsed() {
    try (Model small = small(ModelOptions.Backend.CPU)) {
      Op.Embedding embedding =
          (Op.Embedding) ((LoadedModel) small).executable().graph().ops().getFirst();
      Map<String, float[]> with = weights();
      with.put(TABLE, Dequantizer.toFloats(embedding.table()));
      Map<String, float[]> without = weights();
      without.remove(TABLE);
      TokenRouter own = Routing.load(write("with", TensorType.F32, with), small, large).router();
      TokenRouter shared =
          Routing.load(write("without", TensorType.F32, without), small, large).router();
      TokenRouter other =
          Routing.load(write("other", TensorType.F32, weights()), small, large).router();
      for (int c = 0; c < 5; c++) {
        double expected = own.score(logits(c), 1024, 7 * c, hidden(c));
        assertEquals(expected, shared.score(logits(c), 1024, 7 * c, hidden(c)), 1e-6);
        assertTrue(expected != other.score(logits(c), 1024, 7 * c, hidden(c)));
      }
    }
  }

  /** The router sees what the reference model computes: the state behind the final norm. */
  @Test
  void hiddenStatesReachTheRouter() {
    int width = number(oracle, "hidden");
    List<float[]> seen = new ArrayList<>();
    TokenRouter spy =
        new TokenRouter() {
          @Override
          public int hiddenWidth() {
            return width;
          }

          @Override
          public double score(float[] logits, int vocabulary, int candidate) {
            throw new UnsupportedOperationException();
          }

          @Override
          public double score(float[] logits, int vocabulary, int candidate, float[] hidden) {
            seen.add(hidden.clone());
            return 0;
          }

          @Override
          public String name() {
            return "spy";
          }

          @Override
          public TokenRouter copy() {
            return this;
          }
        };
    List<List<float[]>> all = new ArrayList<>();
    for (ModelOptions.Backend backend :
        List.of(ModelOptions.Backend.CPU, ModelOptions.Backend.REFERENCE)) {
      seen.clear();
      try (Model small = small(backend);
          Session session = large.newSession();
          Generation answer =
              session.chat(
                  QUESTION,
                  GenerationOptions.greedy()
                      .withMaxTokens(3)
                      .withRouting(new Routing(small, spy, 0)))) {
        answer.result();
      }
      all.add(List.copyOf(seen));
    }
    assertEquals(3, all.get(0).size());
    for (int i = 0; i < 3; i++) {
      double norm = 0;
      double error = 0;
      for (int k = 0; k < width; k++) {
        double d = all.get(0).get(i)[k] - all.get(1).get(i)[k];
        error += d * d;
        norm += Math.pow(all.get(1).get(i)[k], 2);
      }
      assertTrue(norm > 1, "not empty: " + norm);
      assertTrue(error < 0.01 * norm, "row " + i + ": " + error + " of " + norm);
    }
  }

  @Test
  void itRoutesInSessionsAloneAndTogether() throws Exception {
    Path file = write("route", TensorType.F32, weights(), "0.85");
    try (Model small = small(ModelOptions.Backend.CPU)) {
      Routing routing = Routing.load(file, small, large);
      GenerationOptions options = GenerationOptions.greedy().withMaxTokens(30).withRouting(routing);
      Generation.Result alone;
      try (Session session = large.newSession();
          Generation answer = session.chat(QUESTION, options)) {
        alone = answer.result();
      }
      long routed = alone.counters().drafted() - alone.counters().accepted();
      assertTrue(routed > 0 && routed < alone.completionTokens(), "routed " + routed);
      WeightUse router = routing.router().cost();
      assertEquals(
          alone.completionTokens() * (small.info().bytesPerToken() + router.bytes())
              + routed * large.info().bytesPerToken(),
          alone.counters().weights().bytes());
      // 128 x 100, 24 x 384, 24 x 24, three blocks of two 24 x 56, and 24.
      assertEquals(128 * 100 + 24 * 384 + 24 * 24 + 3 * 2 * 24 * 56 + 24, router.activated());
      List<Future<List<Integer>>> together = new ArrayList<>();
      try (ExecutorService threads = Executors.newFixedThreadPool(4)) {
        for (int i = 0; i < 8; i++) {
          together.add(
              threads.submit(() -> {
                try (Session session = large.newSession();
                    Generation answer = session.chat(QUESTION, options)) {
                  return answer.result().ids();
                }
              }));
        }
        for (Future<List<Integer>> one : together) {
          assertEquals(alone.ids(), one.get());
        }
      }
    }
  }

  @Test
  void filesThatDoNotFitAreRefused() {
    Map<String, float[]> weights = weights();
    try (Model small = small(ModelOptions.Backend.CPU)) {
      Map<String, float[]> missing = new LinkedHashMap<>(weights);
      missing.remove("backbone.blocks.1.mlp.3.bias");
      refused(small, write("missing", TensorType.F32, missing), "backbone.blocks.1.mlp.3.bias");
      Map<String, float[]> gap = new LinkedHashMap<>(weights);
      gap.keySet().removeIf(name -> name.startsWith("backbone.blocks.1."));
      refused(small, write("gap", TensorType.F32, gap), "backbone.blocks.2");
      Map<String, float[]> more = new LinkedHashMap<>(weights);
      more.put("layer_norm_token.weight", new float[1]);
      refused(small, write("more", TensorType.F32, more), "layer_norm_token.weight");
      refused(small, write("word", TensorType.F32, weights, "high"), "threshold");
      refused(small, write("minus", TensorType.F32, weights, "-1"), "threshold");
      Path good = write("good", TensorType.F32, weights);
      FletchException e =
          assertThrows(FletchException.class, () -> Routing.load(good, large, small));
      assertTrue(e.getMessage().contains("logits_projection.weight"), e.getMessage());
      TokenRouter router = Routing.load(good, small, large).router();
      assertThrows(UnsupportedOperationException.class, () -> router.score(logits(0), 1024, 1));
      assertThrows(
          IllegalArgumentException.class, () -> router.score(logits(0), 1024, -1, hidden(0)));
      assertThrows(
          IllegalArgumentException.class, () -> router.score(logits(0), 1024, 1, new float[3]));
      assertThrows(
          FletchException.class,
          () -> new Routing(small, router, 1).save(folder.resolve("x"), large, Map.of()));
    }
  }

  private static void refused(Model small, Path file, String named) {
    FletchException e = assertThrows(FletchException.class, () -> Routing.load(file, small, large));
    assertTrue(e.getMessage().contains(named), e.getMessage());
    assertTrue(e.getMessage().startsWith(file.toString()), e.getMessage());
  }
}
