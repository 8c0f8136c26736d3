package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import java.io.IOException;
import java.io.InputStream;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * An independent engine on the same file: what llama.cpp v0.5.0 tokenized and answered to 40
 * questions, recorded once (the llama.cpp of {@code de.kherud:llama}, which {@link PeerTest} runs
 * live, is older than the demo model's architecture).
 */
class LlamaCppGreedyTest {
  @ParameterizedTest(name = "{0} {1} {2}")
  @CsvSource({
    "demo, AUTO, AUTO, 40",
    "demo, AUTO, MAPPED, 10",
    "demo, SCALAR, MAPPED, 4",
    "demo, VECTOR, MAPPED, 10",
    "demo-small, AUTO, AUTO, 40"
  })
  void greedyAnswersAreThoseOfLlamaCpp(
      String name, ModelOptions.Kernels kernels, ModelOptions.Weights weights, int questions)
      throws IOException {
    List<?> recorded = recorded(name).subList(0, questions);
    ModelOptions options = ModelOptions.defaults().withKernels(kernels).withWeights(weights);
    int same = 0;
    try (Model model = Model.demo(name, options);
        Session session = model.newSession()) {
      for (Object entry : recorded) {
        Map<?, ?> row = (Map<?, ?>) entry;
        String prompt =
            model.chatPrompt(List.of(Message.user((String) row.get("question"))), true, Map.of());
        int[] ids = model.tokenizer().encode(prompt);
        assertArrayEquals(ints(row.get("prompt")), ids, () -> "tokens of " + row.get("question"));
        session.truncate(0);
        try (Generation generation =
            session.generate(ids, GenerationOptions.greedy().withMaxTokens(80))) {
          same += generation.result().ids().equals(boxed(row.get("ids"))) ? 1 : 0;
        }
      }
    }
    // Both engines round activations to 8 bits, in different ways: an answer of the small model,
    // whose
    // smallest logit margins are about 1e-3, may turn.
    int wanted = name.equals("demo") ? recorded.size() : recorded.size() - 3;
    int found = same;
    assertTrue(found >= wanted, () -> found + " of " + recorded.size() + " answers are the same");
  }

  private static List<?> recorded(String name) throws IOException {
    try (InputStream in = LlamaCppGreedyTest.class.getResourceAsStream("llama-cpp-greedy.json")) {
      Map<String, Object> root = JSON.std.mapFrom(in);
      List<?> rows = (List<?>) ((Map<?, ?>) root.get("models")).get(name);
      assertEquals(40, rows.size());
      return rows;
    }
  }

  private static List<Integer> boxed(Object list) {
    return ((List<?>) list).stream().map(i -> ((Number) i).intValue()).toList();
  }

  private static int[] ints(Object list) {
    return boxed(list).stream().mapToInt(Integer::intValue).toArray();
  }
}
