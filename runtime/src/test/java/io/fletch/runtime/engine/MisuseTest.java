package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Embedder;
import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.JsonSchemas;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.Tokenizer;
import io.fletch.ToolCallFormat.Call;
import io.fletch.sampling.Grammar;
import io.fletch.sampling.SamplerExtras;
import io.fletch.sampling.SamplingException;
import io.fletch.sampling.SamplingOptions;
import java.util.ArrayList;
import java.util.Collections;
import java.util.ConcurrentModificationException;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

/** What an application hears that uses the API wrongly: which value, what was expected. */
class MisuseTest {
  private static final GenerationOptions GREEDY = GenerationOptions.greedy();

  private static Model model() {
    return TestModels.open(
        "demo-small", TestModels.options(ModelOptions.Backend.CPU).withThreads(1));
  }

  private static void says(String message, Executable wrong) {
    assertEquals(message, assertThrows(RuntimeException.class, wrong).getMessage());
  }

  @Test
  void optionsNameTheOneThatIsWrong() {
    SamplingOptions sampling = SamplingOptions.defaults();
    says("temperature: expected=finite, >= 0 actual=-1.0", () -> sampling.withTemperature(-1));
    says("topK: expected=>= 0 actual=-1", () -> sampling.withTopK(-1));
    says("topP: expected=in (0, 1] actual=2.0", () -> sampling.withTopP(2));
    says("minP: expected=in [0, 1] actual=NaN", () -> sampling.withMinP(Float.NaN));
    says("penaltyWindow: expected=>= -1 actual=-2", () -> sampling.withPenalties(1, 0, 0, -2));
    says(
        "logitBias of token 3: expected=a number, or negative infinity actual=NaN",
        () -> sampling.withLogitBias(Map.of(3, Float.NaN)));
    says("typicalP: expected=in (0, 1] actual=0.0", () -> SamplerExtras.NONE.withTypicalP(0));
    says("maxTokens: expected=>= 0 (0 for no limit) actual=-1", () -> GREEDY.withMaxTokens(-1));
    says("logprobs: expected=>= -1 (-1 for none) actual=-2", () -> GREEDY.withLogprobs(-2));
    says(
        "stopStrings: expected=no empty text actual=[]", () -> GREEDY.withStopStrings(List.of("")));
    says("stopStrings", () -> GREEDY.withStopStrings(null));
    ModelOptions options = ModelOptions.defaults();
    says(
        "contextLength: expected=>= 0 (0 for the model's) actual=-1",
        () -> options.withContextLength(-1));
    says(
        "threads: expected=in [0, 1024] (0 for the default) actual=5000",
        () -> options.withThreads(5000));
  }

  @Test
  void schemasThatAreNoneSayWhere() {
    says("JSON schema: expected=an object actual=nothing", () -> JsonSchemas.grammar(" \n"));
    says("JSON schema: expected=an object actual=[]", () -> JsonSchemas.grammar("[]"));
    String message =
        assertThrows(FletchException.class, () -> JsonSchemas.grammar("{\n \"type\": x}"))
            .getMessage();
    assertTrue(message.startsWith("JSON schema: line 2 column "), message);
    assertFalse(message.contains("REDACTED"), message);
  }

  @Test
  void fieldsOfMessagesMayBeNull() {
    Map<String, Object> more = new HashMap<>();
    more.put("tool_calls", null);
    Message message = new Message("assistant", "Hi", more);
    more.clear();
    assertEquals(Collections.singletonMap("tool_calls", null), message.more());
    says("content", () -> new Message("user", null));
    more.put(null, "x");
    says("more: a key", () -> new Message("user", "Hi", more));
  }

  @Test
  void aFailureEndsTheAnswerAndNotTheSession() {
    try (Model model = model();
        Session session = model.newSession()) {
      says("options", () -> session.generate("Hi", null));
      says("messages", () -> session.chat(null, GREEDY));
      // The token that the grammar wants first is forbidden, so none may follow.
      Map<Integer, Float> bias = new HashMap<>();
      for (int id = 0; id < model.info().vocabularySize(); id++) {
        bias.put(id, Float.NEGATIVE_INFINITY);
      }
      Generation answer =
          session.generate(
              "Hi",
              GREEDY
                  .withGrammar(Grammar.parse("root ::= \"a\""))
                  .withSampling(SamplingOptions.greedy().withLogitBias(bias)));
      RuntimeException failure = assertThrows(SamplingException.class, answer::hasNext);
      assertFalse(answer.hasNext());
      IllegalStateException later = assertThrows(IllegalStateException.class, answer::result);
      assertSame(failure, later.getCause());
      answer.close();
      assertEquals(3, session.generate("Hi", endless(3)).result().completionTokens());
    }
  }

  private static GenerationOptions endless(int tokens) {
    return GREEDY.withIgnoreEnd(true).withMaxTokens(tokens);
  }

  @Test
  void moreAlternativesThanTokensAreAllTokens() {
    try (Model model = model();
        Session session = model.newSession()) {
      Generation.Chunk chunk =
          session.generate("Hi", endless(1).withLogprobs(Integer.MAX_VALUE)).next();
      int tokens = chunk.logprobs().getFirst().top().size();
      assertTrue(tokens > 1 && tokens <= model.info().vocabularySize(), "tokens=" + tokens);
    }
  }

  @Test
  void theThreadThatIsRefusedHearsOfTheOther() throws Exception {
    try (Model model = model();
        Session session = model.newSession();
        var executor = Executors.newVirtualThreadPerTaskExecutor()) {
      CountDownLatch inside = new CountDownLatch(1);
      CountDownLatch isTried = new CountDownLatch(1);
      ThreadGuard guard = ((BaseSession) session).guard();
      Future<Long> holder =
          executor.submit(() -> {
            guard.enter();
            try {
              inside.countDown();
              isTried.await();
              return Thread.currentThread().threadId();
            } finally {
              guard.exit();
            }
          });
      inside.await();
      String message =
          assertThrows(ConcurrentModificationException.class, session::tokens).getMessage();
      assertThrows(ConcurrentModificationException.class, session::close);
      isTried.countDown();
      assertTrue(message.contains("in use by=virtual thread #" + holder.get() + " "), message);
      assertTrue(message.endsWith("refused=" + Thread.currentThread().getName()), message);
    }
  }

  @Test
  void closingInTheMiddleOfAnAnswerEndsIt() {
    try (Model model = model()) {
      Session session = model.newSession();
      Generation answer = session.generate("Hi", endless(20));
      List<Integer> ids = new ArrayList<>(answer.next().ids());
      session.close();
      assertFalse(answer.hasNext());
      Generation.Result result = answer.result();
      assertEquals(Generation.FinishReason.CANCELLED, result.finishReason());
      assertEquals(ids, result.ids());
      says("the session is closed", session::tokens);
    }
  }

  @Test
  void anInterruptedThreadGoesOnAndStaysInterrupted() {
    try (Model model = model();
        Session session = model.newSession()) {
      Generation.Result calm = session.generate("Hi", endless(5)).result();
      Thread.currentThread().interrupt();
      Generation.Result interrupted = session.generate("Hi", endless(5)).result();
      assertTrue(Thread.interrupted());
      assertEquals(calm.ids(), interrupted.ids());
    }
  }

  @Test
  void chatsTakeVariablesOfTheTemplate() {
    try (Model model = model();
        Session session = model.newSession()) {
      List<Message> messages = List.of(Message.user("What is 4 + 3?"));
      assertEquals(
          session.chat(messages, endless(5)).result().ids(),
          session.chat(messages, Map.of("unheard_of", true), endless(5)).result().ids());
      assertEquals(
          session.chat(messages, endless(5)).result().ids(),
          session
              .chat(messages, Collections.singletonMap("tools", null), endless(5))
              .result()
              .ids());
    }
  }

  @Test
  void requestsThatMakeNoSenseAreRefusedBeforeTheyRun() {
    says("stopTokens: expected=>= 0 actual=-1", () -> GREEDY.withStopTokens(List.of(-1)));
    says("path", () -> Model.open(null));
    says("path", () -> Tokenizer.open(null));
    says("path", () -> Embedder.open(null));
    says("index: expected=>= 0 actual=-1", () -> Message.tool(-1, new Call("f", "{}"), "1"));
    try (Model model = model();
        Session session = model.newSession()) {
      says("messages: expected=one or more actual=none", () -> session.chat(List.of(), endless(1)));
      says(
          "stop token: expected=below 1024 actual=1024",
          () -> session.generate("Hi", GREEDY.withStopTokens(List.of(3, 1024))));
      assertTrue(model.toString().startsWith("Model[demo-small.gguf, Info["), model.toString());
      assertEquals("Session[demo-small.gguf]", session.toString());
    }
  }

  @Test
  void memoryOfASessionIsKnownBeforehand() {
    long bytes = perToken(ModelOptions.KvType.F16);
    // 4 layers, 1 head of 64 keys and 64 values, 2 bytes.
    assertEquals(4 * (64 + 64) * 2, bytes);
    assertEquals(bytes * 2, perToken(ModelOptions.KvType.F32));
    assertEquals(bytes / 2 * 34 / 32, perToken(ModelOptions.KvType.Q8_0));
  }

  private static long perToken(ModelOptions.KvType type) {
    try (Model model =
        TestModels.open(
            "demo-small", TestModels.options(ModelOptions.Backend.CPU).withKvType(type))) {
      return model.kvBytesPerToken();
    }
  }

  @Test
  void stepsOfTheApplicationDecideWhatMayFollow() {
    try (Model model = model();
        Session session = model.newSession()) {
      int digit = model.tokenizer().id("7").orElseThrow();
      List<Integer> lengths = new ArrayList<>();
      // Filters that leave one token come behind, so a step may forbid that one.
      GenerationOptions only =
          endless(4)
              .withSampling(SamplingOptions.defaults().withTopK(1))
              .withSamplerSteps(
                  List.of(
                      (candidates, history) -> lengths.add(history.length()),
                      (candidates, history) -> candidates.retain(id -> id == digit)));
      assertEquals(List.of(digit, digit, digit, digit), session.generate("H", only).result().ids());
      int prompt = model.tokenizer().encode("H").length;
      assertEquals(List.of(prompt, prompt + 1, prompt + 2, prompt + 3), lengths);
      assertEquals(
          session.generate("H", endless(4)).result().ids(),
          session.generate("H", endless(4).withSamplerSteps(List.of((c, h) -> {}))).result().ids());
    }
    try (Model model =
            TestModels.open("demo-diffusion", TestModels.options(ModelOptions.Backend.CPU));
        Session session = model.newSession()) {
      says(
          "sampler steps are for autoregressive models: model=demo-diffusion.gguf"
              + " decoding=diffusion",
          () -> session.generate("H", GREEDY.withSamplerSteps(List.of((c, h) -> {}))));
    }
  }
}
