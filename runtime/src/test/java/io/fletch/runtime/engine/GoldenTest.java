package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.ModelOptions.KvType;
import io.fletch.Session;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * Logits and greedy continuations against independent implementations: PyTorch in float32 for the
 * files beside the checkout, NumPy in float64 (src/test/python) for the shipped ones. A bound is a
 * share of the largest logit of the row.
 */
class GoldenTest {
  private static ModelOptions options(String backend) {
    return TestModels.options(ModelOptions.Backend.valueOf(backend)).withKvType(KvType.F32);
  }

  @ParameterizedTest
  @CsvSource({
    "ar-small-F32.gguf,   ar-small,  REFERENCE, 1e-5",
    "ar-small-F16.gguf,   ar-small,  REFERENCE, 1e-5",
    "ar-small,            ar-small,  REFERENCE, 1e-5",
    "ar-large,            ar-large,  CPU,       1e-3",
    "diffusion,           diffusion, CPU,       1e-3",
    "ar-large-F16.gguf,   ar-large,  REFERENCE, 1e-5",
    "diffusion-F16.gguf,  diffusion, REFERENCE, 1e-5",
    "ar-small-F32.gguf,   ar-small,  CPU,       1e-3",
    "ar-small-F16.gguf,   ar-small,  CPU,       1e-3",
    "ar-large-F16.gguf,   ar-large,  CPU,       1e-3",
    "diffusion-F16.gguf,  diffusion, CPU,       1e-3",
    "ar-small-Q8_0.gguf,  ar-small,  CPU,       3e-2",
    "ar-large-Q8_0.gguf,  ar-large,  CPU,       3e-2",
    "diffusion-Q8_0.gguf, diffusion, CPU,       3e-2",
    "ar-small-Q8_0.gguf,  ar-small,  REFERENCE, 2e-2",
    "ar-large-Q8_0.gguf,  ar-large,  REFERENCE, 2e-2",
    "diffusion-Q8_0.gguf, diffusion, REFERENCE, 2e-2",
  })
  void logitsOfTheTrainer(String file, String golden, String backend, double bound) {
    Map<String, Object> json = TestModels.json(TestModels.shared("golden/" + golden + ".json"));
    float[][] expected = TestModels.npy(TestModels.shared("golden/" + golden + "-logits.npy"));
    double worst = 0;
    int rows = 0;
    int sameArgmax = 0;
    try (Model model = Model.open(TestModels.shared(file), options(backend));
        Session session = model.newSession()) {
      for (Map<String, Object> prompt : prompts(json, model, backend)) {
        int[] ids = TestModels.ints(prompt.get("ids"));
        if (prompt.containsKey("masked")) {
          ids = withMasks(ids, ((Number) prompt.get("masked")).intValue(), model);
        }
        float[][] logits = session.logits(ids);
        int[] positions = TestModels.ints(prompt.get("positions"));
        int[] at = TestModels.ints(prompt.get("logit_rows"));
        for (int i = 0; i < positions.length; i++) {
          float[] row = expected[at[i]];
          worst = Math.max(worst, difference(row, logits[positions[i]]));
          sameArgmax += argmax(row) == argmax(logits[positions[i]]) ? 1 : 0;
          rows++;
        }
      }
    }
    assertTrue(rows >= 6, "rows compared: " + rows);
    assertTrue(worst <= bound, "largest difference " + worst);
    assertTrue(sameArgmax >= rows - 1, "same argmax: " + sameArgmax + " of " + rows);
  }

  /** The reference backend is too slow for all canvases. */
  private static List<Map<String, Object>> prompts(
      Map<String, Object> json, Model model, String backend) {
    List<Map<String, Object>> all = TestModels.list(json, "prompts");
    boolean isSlow = backend.equals("REFERENCE") && model.info().decoding().equals("diffusion");
    return isSlow ? all.subList(0, 2) : all;
  }

  private static int[] withMasks(int[] ids, int masks, Model model) {
    int[] out = java.util.Arrays.copyOf(ids, ids.length + masks);
    java.util.Arrays.fill(out, ids.length, out.length, model.tokenizer().mask().orElseThrow());
    return out;
  }

  private static double difference(float[] expected, float[] actual) {
    assertEquals(expected.length, actual.length);
    double largest = 0;
    double worst = 0;
    for (int i = 0; i < expected.length; i++) {
      largest = Math.max(largest, Math.abs(expected[i]));
      worst = Math.max(worst, Math.abs((double) expected[i] - actual[i]));
    }
    return worst / largest;
  }

  private static int argmax(float[] row) {
    int best = 0;
    for (int i = 1; i < row.length; i++) {
      best = row[i] > row[best] ? i : best;
    }
    return best;
  }

  @ParameterizedTest
  @CsvSource({
    "ar-small-F16.gguf,  ar-small, CPU",
    "ar-large-F16.gguf,  ar-large, CPU",
    "ar-large-Q8_0.gguf, ar-large, CPU",
    "ar-small-F16.gguf,  ar-small, REFERENCE",
    "ar-small-Q8_0.gguf, ar-small, REFERENCE",
  })
  void greedyAnswersOfTheTrainer(String file, String golden, String backend) {
    Map<String, Object> json = TestModels.json(TestModels.shared("golden/" + golden + ".json"));
    try (Model model = Model.open(TestModels.shared(file), options(backend));
        Session session = model.newSession()) {
      for (Map<String, Object> prompt : TestModels.list(json, "prompts")) {
        List<Integer> expected = TestModels.boxed(prompt.get("greedy"));
        // A margin below the error of quantized weights decides nothing.
        if (((Number) prompt.get("greedy_min_margin")).doubleValue() < 0.2) {
          continue;
        }
        assertGreedy(session, prompt, expected);
      }
    }
  }

  private static void assertGreedy(
      Session session, Map<String, Object> prompt, List<Integer> expected) {
    var result =
        session
            .generate(
                TestModels.ints(prompt.get("ids")),
                GenerationOptions.greedy().withMaxTokens(expected.size()))
            .result();
    // The golden ids include the token that ended the answer.
    assertEquals(expected.subList(0, result.ids().size()), result.ids());
    assertEquals(expected.size(), result.completionTokens());
  }

  @ParameterizedTest
  @CsvSource({
    "demo,           CPU,       2e-2",
    "demo-small,     CPU,       2e-2",
    "demo-diffusion, CPU,       2e-2",
    "demo,           REFERENCE, 1e-5",
    "demo-small,     REFERENCE, 1e-5",
    "demo-diffusion, REFERENCE, 1e-5",
  })
  void logitsOfShippedModels(String name, String backend, double bound) {
    try (Model model = TestModels.open(name, options(backend));
        Session session = model.newSession()) {
      for (Map<String, Object> prompt :
          TestModels.list(TestModels.json(name + ".json"), "prompts")) {
        float[][] logits = session.logits(TestModels.ints(prompt.get("ids")));
        for (Map<String, Object> row : TestModels.list(prompt, "positions")) {
          float[] actual = logits[((Number) row.get("position")).intValue()];
          double largest = ((Number) row.get("maximum")).doubleValue();
          int[] tokens = TestModels.ints(row.get("tokens"));
          List<?> expected = (List<?>) row.get("logits");
          for (int i = 0; i < tokens.length; i++) {
            double value = ((Number) expected.get(i)).doubleValue();
            assertEquals(value, actual[tokens[i]], bound * largest, name + " " + row);
          }
          double sum = 0;
          for (float logit : actual) {
            sum += Math.exp(logit);
          }
          assertEquals(
              ((Number) row.get("logsumexp")).doubleValue(), Math.log(sum), bound * largest);
        }
      }
    }
  }

  @ParameterizedTest
  @CsvSource({"demo-small, REFERENCE", "demo-small, CPU", "demo, CPU"})
  void greedyAnswersOfShippedModels(String name, String backend) {
    try (Model model = TestModels.open(name, options(backend));
        Session session = model.newSession()) {
      for (Map<String, Object> prompt :
          TestModels.list(TestModels.json(name + ".json"), "prompts")) {
        assertGreedy(session, prompt, TestModels.boxed(prompt.get("greedy")));
      }
    }
  }
}
