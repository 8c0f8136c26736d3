package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.Generation.FinishReason;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.sampling.SamplingOptions;
import java.util.ArrayList;
import java.util.ConcurrentModificationException;
import java.util.List;
import java.util.Map;
import java.util.NoSuchElementException;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** Sessions on the small demo model. */
class SessionTest {
  private static final String PROMPT =
      "<|im_start|>user\nWhat is 457 + 386?<|im_end|>\n<|im_start|>assistant\n";

  /** The greedy answer to {@link #PROMPT}. */
  private static final String ANSWER = "7+6=13\n5+8+1=14\n4+3+1=8\nAnswer: 843";

  private static final GenerationOptions GREEDY = GenerationOptions.greedy();

  private static Model model;

  private Session session;

  @BeforeAll
  static void open() {
    model =
        TestModels.open(
            "demo-small",
            TestModels.options(ModelOptions.Backend.CPU)
                .withContextLength(128)
                .withPrefillChunk(8));
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

  private static String read(Generation generation) {
    StringBuilder out = new StringBuilder();
    while (generation.hasNext()) {
      out.append(generation.next().text());
    }
    return out.toString();
  }

  @Test
  void streamsAnAnswer() {
    Generation generation = session.generate(PROMPT, GREEDY);
    List<Integer> ids = new ArrayList<>();
    StringBuilder text = new StringBuilder();
    while (generation.hasNext()) {
      Generation.Chunk chunk = generation.next();
      assertEquals(ids.size(), chunk.position());
      ids.addAll(chunk.ids());
      text.append(chunk.text());
    }
    assertThrows(NoSuchElementException.class, generation::next);
    Generation.Result result = generation.result();
    assertEquals(ANSWER, text.toString());
    assertEquals(ANSWER, result.text());
    assertEquals(ids, result.ids());
    assertEquals(FinishReason.STOP, result.finishReason());
    assertEquals(model.tokenizer().encode(PROMPT).length, result.promptTokens());
    assertEquals(0, result.reusedTokens());
    assertEquals(ids.size() + 1, result.completionTokens());
    // 20 prompt tokens in chunks of 8, then one pass per token but the first.
    assertEquals(3 + ids.size(), result.forwards());
    assertTrue(result.prefillNanos() > 0 && result.decodeNanos() > 0);
  }

  @Test
  void cacheHoldsPromptAndAnswer() {
    Generation.Result result = session.generate(PROMPT, GREEDY).result();
    List<Integer> expected = new ArrayList<>();
    for (int id : model.tokenizer().encode(PROMPT)) {
      expected.add(id);
    }
    expected.addAll(result.ids());
    assertEquals(expected, session.tokens());
  }

  @Test
  void secondTurnReusesTheFirstAndEqualsAFreshSession() {
    Generation.Result first = session.generate(PROMPT, GREEDY).result();
    String second =
        PROMPT
            + first.text()
            + "<|im_end|>\n<|im_start|>user\nCompute 84 + 23.<|im_end|>\n<|im_start|>assistant\n";
    Generation.Result warm = session.generate(second, GREEDY).result();
    assertEquals(first.promptTokens() + first.ids().size(), warm.reusedTokens());
    try (Session fresh = model.newSession()) {
      Generation.Result cold = fresh.generate(second, GREEDY).result();
      assertEquals(0, cold.reusedTokens());
      assertEquals(cold.ids(), warm.ids());
      assertEquals(cold.promptTokens(), warm.promptTokens());
      assertTrue(cold.forwards() > warm.forwards());
    }
  }

  @Test
  void reuseStopsWherePromptsPart() {
    session.generate(PROMPT, GREEDY).result();
    String other = PROMPT.replace("457", "459");
    Generation.Result warm = session.generate(other, GREEDY).result();
    try (Session fresh = model.newSession()) {
      assertEquals(fresh.generate(other, GREEDY).result().ids(), warm.ids());
    }
    int[] a = model.tokenizer().encode(PROMPT);
    int[] b = model.tokenizer().encode(other);
    int common = 0;
    while (a[common] == b[common]) {
      common++;
    }
    assertEquals(common, warm.reusedTokens());
  }

  @Test
  void theSamePromptRunsItsLastTokenAgain() {
    Generation.Result first = session.generate(PROMPT, GREEDY).result();
    Generation.Result again = session.generate(PROMPT, GREEDY).result();
    assertEquals(first.ids(), again.ids());
    assertEquals(first.promptTokens() - 1, again.reusedTokens());
  }

  @Test
  void truncateForgets() {
    session.generate(PROMPT, GREEDY).result();
    session.truncate(5);
    assertEquals(5, session.tokens().size());
    Generation.Result result = session.generate(PROMPT, GREEDY).result();
    assertEquals(5, result.reusedTokens());
    assertEquals(ANSWER, result.text());
    assertThrows(IndexOutOfBoundsException.class, () -> session.truncate(1000));
    assertThrows(IndexOutOfBoundsException.class, () -> session.truncate(-1));
  }

  @Test
  void limits() {
    Generation.Result result = session.generate(PROMPT, GREEDY.withMaxTokens(4)).result();
    assertEquals(FinishReason.LENGTH, result.finishReason());
    assertEquals(4, result.ids().size());
    assertEquals(4, result.completionTokens());
    assertTrue(ANSWER.startsWith(result.text()));
  }

  @Test
  void aFullContextEndsTheAnswer() {
    Generation.Result result = session.generate(PROMPT, GREEDY.withIgnoreEnd(true)).result();
    assertEquals(FinishReason.LENGTH, result.finishReason());
    assertEquals(128, result.promptTokens() + result.completionTokens());
    assertTrue(result.text().startsWith(ANSWER));
  }

  @Test
  void aPromptThatDoesNotFitIsRefusedWithSizes() {
    int[] ids = new int[128];
    FletchException e = assertThrows(FletchException.class, () -> session.generate(ids, GREEDY));
    assertTrue(
        e.getMessage().contains("tokens=128") && e.getMessage().contains("context=128"),
        e.getMessage());
    Generation.Result result = session.generate(new int[127], GREEDY.withIgnoreEnd(true)).result();
    assertEquals(1, result.completionTokens());
    assertEquals(FinishReason.LENGTH, result.finishReason());
  }

  @Test
  void badPromptsAreRefused() {
    assertThrows(IllegalArgumentException.class, () -> session.generate(new int[0], GREEDY));
    IllegalArgumentException e =
        assertThrows(
            IllegalArgumentException.class, () -> session.generate(new int[] {1, 1024}, GREEDY));
    assertTrue(e.getMessage().contains("1024"), e.getMessage());
    assertThrows(IllegalArgumentException.class, () -> session.generate(new int[] {-1}, GREEDY));
    // Nothing of that leaves the session unusable.
    assertEquals(ANSWER, session.generate(PROMPT, GREEDY).result().text());
  }

  @Test
  void stopStringsAcrossTokens() {
    Generation generation =
        session.generate(PROMPT, GREEDY.withStopStrings(List.of("14\n4", "never")));
    assertEquals("7+6=13\n5+8+1=", read(generation));
    Generation.Result result = generation.result();
    assertEquals("7+6=13\n5+8+1=", result.text());
    assertEquals(FinishReason.STOP, result.finishReason());
  }

  @Test
  void withheldTextComesOutAtTheEnd() {
    Generation generation = session.generate(PROMPT, GREEDY.withStopStrings(List.of("843!")));
    assertEquals(ANSWER, read(generation));
    assertEquals(ANSWER, generation.result().text());
  }

  @Test
  void stopTokens() {
    int newline = model.tokenizer().encode("\n", false, false)[0];
    Generation.Result result =
        session.generate(PROMPT, GREEDY.withStopTokens(List.of(newline))).result();
    assertEquals("7+6=13", result.text());
    assertEquals(FinishReason.STOP, result.finishReason());
    assertEquals(result.ids().size() + 1, result.completionTokens());
  }

  @Test
  void cancelTakesEffectBeforeTheNextStep() {
    Generation generation = session.generate(PROMPT, GREEDY);
    generation.next();
    generation.next();
    generation.cancel();
    assertFalse(generation.hasNext());
    Generation.Result result = generation.result();
    assertEquals(FinishReason.CANCELLED, result.finishReason());
    assertEquals(2, result.ids().size());
    assertEquals(ANSWER, session.generate(PROMPT, GREEDY).result().text());
  }

  @Test
  void cancelBeforeThePromptRunsNothing() {
    Generation generation = session.generate(PROMPT, GREEDY);
    generation.cancel();
    assertEquals(FinishReason.CANCELLED, generation.result().finishReason());
    assertEquals(0, generation.result().forwards());
    assertEquals(List.of(), session.tokens());
  }

  @Test
  void cancelFromAnotherThread() throws InterruptedException {
    Generation generation = session.generate(PROMPT, GREEDY.withIgnoreEnd(true));
    generation.next();
    Thread other = new Thread(generation::cancel);
    other.start();
    other.join();
    assertFalse(generation.hasNext());
  }

  @Test
  void closingEarlyKeepsWhatWasGenerated() {
    Generation generation = session.generate(PROMPT, GREEDY);
    generation.next();
    String text = generation.next().text();
    generation.close();
    generation.close();
    assertFalse(generation.hasNext());
    Generation.Result result = generation.result();
    assertEquals(FinishReason.CANCELLED, result.finishReason());
    assertTrue(result.text().endsWith(text));
    int cached = session.tokens().size();
    assertEquals(result.promptTokens() + 1, cached, "the last token is not in the cache yet");
    assertEquals(ANSWER, session.generate(PROMPT, GREEDY).result().text());
  }

  @Test
  void oneGenerationIsOpenAtATime() {
    Generation generation = session.generate(PROMPT, GREEDY);
    assertThrows(IllegalStateException.class, () -> session.generate(PROMPT, GREEDY));
    assertThrows(IllegalStateException.class, () -> session.truncate(0));
    generation.close();
    session.generate(PROMPT, GREEDY).close();
  }

  @Test
  void concurrentUseIsRefused() throws InterruptedException {
    AtomicReference<Throwable> failure = new AtomicReference<>();
    BaseSession base = assertInstanceOf(BaseSession.class, session);
    base.guard().enter();
    Thread other =
        new Thread(() -> {
          try {
            session.generate(PROMPT, GREEDY);
          } catch (RuntimeException e) {
            failure.set(e);
          }
        });
    other.start();
    other.join();
    base.guard().exit();
    assertInstanceOf(ConcurrentModificationException.class, failure.get());
    // One thread after the other is fine.
    Thread next = new Thread(() -> session.generate(PROMPT, GREEDY).result());
    next.start();
    next.join();
    assertEquals(ANSWER, session.generate(PROMPT, GREEDY).result().text());
  }

  @Test
  void aClosedSessionSaysSo() {
    Generation generation = session.generate(PROMPT, GREEDY);
    generation.next();
    session.close();
    session.close();
    assertFalse(generation.hasNext());
    assertThrows(IllegalStateException.class, () -> session.generate(PROMPT, GREEDY));
    assertThrows(IllegalStateException.class, session::tokens);
    assertThrows(IllegalStateException.class, () -> session.logits(new int[] {1}));
  }

  @Test
  void aModelIsClosedAfterItsSessions() {
    Model own = TestModels.open("demo-small", TestModels.options(ModelOptions.Backend.REFERENCE));
    Session open = own.newSession();
    IllegalStateException e = assertThrows(IllegalStateException.class, own::close);
    assertTrue(e.getMessage().contains("sessions=1"), e.getMessage());
    assertEquals(1, open.generate(PROMPT, GREEDY.withMaxTokens(1)).result().completionTokens());
    open.close();
    own.close();
    own.close();
    assertThrows(IllegalStateException.class, own::newSession);
  }

  @Test
  void seedsDecideWhatIsDrawn() {
    SamplingOptions hot = new SamplingOptions(1.5f, 0, 1, 0, 1, 0, 0, 0, Map.of(), 7);
    GenerationOptions options = GREEDY.withSampling(hot).withMaxTokens(24);
    List<Integer> first = session.generate(PROMPT, options).result().ids();
    assertEquals(first, session.generate(PROMPT, options).result().ids());
    SamplingOptions other = new SamplingOptions(1.5f, 0, 1, 0, 1, 0, 0, 0, Map.of(), 8);
    assertNotEquals(first, session.generate(PROMPT, options.withSampling(other)).result().ids());
  }

  @Test
  void logprobsAreThoseOfTheModel() {
    int[] prompt = model.tokenizer().encode(PROMPT);
    Generation generation = session.generate(prompt, GREEDY.withLogprobs(3).withMaxTokens(5));
    List<Generation.TokenLogprob> all = new ArrayList<>();
    while (generation.hasNext()) {
      all.addAll(generation.next().logprobs());
    }
    int[] ids = new int[prompt.length + 5];
    System.arraycopy(prompt, 0, ids, 0, prompt.length);
    for (int i = 0; i < 5; i++) {
      ids[prompt.length + i] = all.get(i).id();
    }
    double[] scores = session.score(ids);
    for (int i = 0; i < 5; i++) {
      Generation.TokenLogprob logprob = all.get(i);
      assertEquals(scores[prompt.length - 1 + i], logprob.logprob(), 1e-6);
      assertEquals(3, logprob.top().size());
      assertEquals(logprob.id(), logprob.top().get(0).id(), "greedy takes the most likely");
      assertTrue(logprob.top().get(0).logprob() >= logprob.top().get(1).logprob());
    }
  }

  @Test
  void logitsKeepTheConversationAndDoNotDependOnChunks() {
    session.generate(PROMPT, GREEDY).result();
    List<Integer> before = session.tokens();
    int[] ids = model.tokenizer().encode(PROMPT);
    float[][] all = session.logits(ids);
    assertEquals(ids.length, all.length);
    assertEquals(before, session.tokens());
    for (int n : new int[] {1, 7, 8, 9}) {
      float[][] part = session.logits(java.util.Arrays.copyOf(ids, n));
      for (int i = 0; i < n; i++) {
        assertArrayEquals(all[i], part[i]);
      }
    }
    assertThrows(FletchException.class, () -> session.logits(new int[0]));
    assertThrows(FletchException.class, () -> session.logits(new int[129]));
  }
}
