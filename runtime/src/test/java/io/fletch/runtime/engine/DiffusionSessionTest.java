package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.Generation.FinishReason;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.sampling.DiffusionOptions;
import io.fletch.sampling.SamplingOptions;
import io.fletch.sampling.Transfer;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** Sessions on the diffusion demo model. */
class DiffusionSessionTest {
  private static final List<Message> QUESTION =
      List.of(Message.user("Reverse the words: tower stone rock egg"));

  private static final String ANSWER = "Answer: egg rock stone tower";

  private static final GenerationOptions GREEDY = GenerationOptions.greedy();

  private static Model model;

  private Session session;

  @BeforeAll
  static void open() {
    model =
        TestModels.open(
            "demo-diffusion", TestModels.options(ModelOptions.Backend.CPU).withContextLength(128));
  }

  @AfterAll
  static void close() {
    model.close();
  }

  @BeforeEach
  void newSession() {
    session = model.newSession();
  }

  @AfterEach
  void closeSession() {
    session.close();
  }

  @Test
  void streamsAnAnswer() {
    assertEquals("diffusion", model.info().decoding());
    Generation generation = session.chat(QUESTION, GREEDY);
    TreeMap<Integer, Integer> filled = new TreeMap<>();
    StringBuilder text = new StringBuilder();
    while (generation.hasNext()) {
      Generation.Chunk chunk = generation.next();
      for (int i = 0; i < chunk.ids().size(); i++) {
        filled.put(chunk.position() + i, chunk.ids().get(i));
      }
      text.append(chunk.text());
    }
    Generation.Result result = generation.result();
    assertEquals(ANSWER, text.toString());
    assertEquals(ANSWER, result.text());
    assertEquals(FinishReason.STOP, result.finishReason());
    assertEquals(64, filled.size(), "every position is filled once");
    assertEquals(List.copyOf(filled.values()).subList(0, result.ids().size()), result.ids());
    assertEquals(result.ids().size() + 1, result.completionTokens());
    // One step per token of the first block; it ends the answer.
    assertEquals(16, result.forwards());
  }

  @Test
  void turnsDoNotDependOnEachOther() {
    session.chat(List.of(Message.user("Copy: duck 439 tiger")), GREEDY).result();
    assertEquals(ANSWER, session.chat(QUESTION, GREEDY).result().text());
    assertEquals(List.of(), session.tokens());
  }

  @Test
  void fewerStepsCostFewerForwards() {
    DiffusionOptions fast =
        DiffusionOptions.reference(32, 16)
            .withTransfer(new Transfer.Schedule(8, Transfer.Order.LOW_CONFIDENCE));
    Generation.Result result = session.chat(QUESTION, GREEDY.withDiffusion(fast)).result();
    assertEquals(8, result.forwards());
    assertEquals(ANSWER, result.text());
  }

  @Test
  void limits() {
    Generation.Result result = session.chat(QUESTION, GREEDY.withMaxTokens(4)).result();
    assertEquals(FinishReason.LENGTH, result.finishReason());
    assertEquals(4, result.completionTokens());
    assertEquals(4, result.ids().size());
    assertTrue(ANSWER.startsWith(result.text()), result.text());
  }

  @Test
  void stopStrings() {
    Generation.Result result =
        session.chat(QUESTION, GREEDY.withStopStrings(List.of(" rock"))).result();
    assertEquals("Answer: egg", result.text());
    assertEquals(FinishReason.STOP, result.finishReason());
  }

  @Test
  void cancel() {
    Generation generation = session.chat(QUESTION, GREEDY);
    generation.next();
    generation.cancel();
    while (generation.hasNext()) {
      generation.next();
    }
    assertEquals(FinishReason.CANCELLED, generation.result().finishReason());
    assertTrue(generation.result().forwards() <= 2);
    assertEquals(ANSWER, session.chat(QUESTION, GREEDY).result().text());
  }

  @Test
  void closingEarlyFreesTheSession() {
    Generation generation = session.chat(QUESTION, GREEDY);
    generation.next();
    assertThrows(IllegalStateException.class, () -> session.chat(QUESTION, GREEDY));
    generation.close();
    assertFalse(generation.hasNext());
    session.chat(QUESTION, GREEDY).close();
  }

  @Test
  void whatMeansNothingIsRefused() {
    SamplingOptions penalty = new SamplingOptions(0, 0, 1, 0, 1.1f, 0, 0, 64, Map.of(), 0);
    assertThrows(FletchException.class, () -> session.chat(QUESTION, GREEDY.withSampling(penalty)));
    assertThrows(FletchException.class, () -> session.chat(QUESTION, GREEDY.withLogprobs(3)));
    assertThrows(FletchException.class, () -> session.score(new int[] {1, 2}));
    DiffusionOptions large = DiffusionOptions.reference(128, 16);
    FletchException e =
        assertThrows(
            FletchException.class, () -> session.chat(QUESTION, GREEDY.withDiffusion(large)));
    assertTrue(e.getMessage().contains("context=128"), e.getMessage());
    assertEquals(ANSWER, session.chat(QUESTION, GREEDY).result().text());
  }

  @Test
  void autoregressiveModelsRefuseDiffusionOptions() {
    try (Model other = TestModels.open("demo-small", TestModels.options(ModelOptions.Backend.CPU));
        Session s = other.newSession()) {
      GenerationOptions options = GREEDY.withDiffusion(DiffusionOptions.reference(16, 16));
      assertThrows(FletchException.class, () -> s.chat(QUESTION, options));
    }
  }
}
