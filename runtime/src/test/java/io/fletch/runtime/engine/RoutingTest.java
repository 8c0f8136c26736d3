package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Routing;
import io.fletch.Session;
import io.fletch.sampling.LearnedRouter;
import io.fletch.sampling.SamplingOptions;
import io.fletch.sampling.TokenRouter;
import io.fletch.sampling.WeightUse;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Token routing between the demo models. */
class RoutingTest {
  private static final List<List<Message>> QUESTIONS =
      List.of(
          List.of(Message.user("What is 457 + 386?")),
          List.of(Message.user("Reverse the words: tower stone rock egg")),
          List.of(Message.user("Sort: 5 2 9 1")));

  @TempDir static Path folder;
  private static Model large;
  private static Model small;

  @BeforeAll
  static void open() {
    ModelOptions options = TestModels.options(ModelOptions.Backend.CPU).withContextLength(256);
    large = TestModels.open("demo", options);
    small = TestModels.open("demo-small", options);
  }

  @AfterAll
  static void close() {
    large.close();
    small.close();
  }

  private static GenerationOptions routed(GenerationOptions base, TokenRouter router, double at) {
    return base.withMaxTokens(40).withRouting(new Routing(small, router, at));
  }

  private static Generation.Result answer(
      Session session, List<Message> question, GenerationOptions options) {
    try (Generation generation = session.chat(question, options)) {
      return generation.result();
    }
  }

  /** R1 and R2 on real models, greedy and sampled. */
  @Test
  void theEndsOfTheThresholdAreTheModelsAlone() {
    GenerationOptions hot =
        GenerationOptions.defaults()
            .withSampling(SamplingOptions.greedy().withTemperature(0.9f).withSeed(5));
    try (Session session = large.newSession();
        Session ofLarge = large.newSession();
        Session ofSmall = small.newSession()) {
      for (GenerationOptions base : List.of(GenerationOptions.greedy(), hot)) {
        for (List<Message> q : QUESTIONS) {
          Generation.Result all = answer(session, q, routed(base, TokenRouter.entropy(), 0));
          assertEquals(answer(ofLarge, q, base.withMaxTokens(40)).ids(), all.ids());
          assertEquals(0, all.counters().accepted());
          GenerationOptions never = routed(base, TokenRouter.entropy(), Double.POSITIVE_INFINITY);
          Generation.Result none = answer(session, q, never);
          assertEquals(answer(ofSmall, q, base.withMaxTokens(40)).ids(), none.ids());
          assertEquals(0, none.counters().forwards(), "the large model is never called");
          assertEquals(none.completionTokens(), none.counters().accepted());
        }
      }
    }
  }

  /** R6. */
  @Test
  void twinsGiveOneAnswer() {
    try (Session session = large.newSession();
        Session alone = large.newSession()) {
      for (List<Message> q : QUESTIONS) {
        GenerationOptions twins =
            GenerationOptions.greedy()
                .withMaxTokens(40)
                .withRouting(new Routing(large, TokenRouter.entropy(), 0.2));
        assertEquals(
            answer(alone, q, GenerationOptions.greedy().withMaxTokens(40)).ids(),
            answer(session, q, twins).ids());
      }
    }
  }

  @Test
  void someTokensCostSomeOfTheLargeModel() {
    try (Session session = large.newSession()) {
      GenerationOptions options = routed(GenerationOptions.greedy(), TokenRouter.entropy(), 0.3);
      Generation.Result r = answer(session, QUESTIONS.getFirst(), options);
      long routed = r.counters().drafted() - r.counters().accepted();
      assertTrue(routed > 0 && routed < r.completionTokens(), "routed " + routed);
      assertEquals(routed, r.counters().forwards(), "one pass per routed token");
      assertEquals(r.completionTokens(), r.counters().drafted());
      // The second turn of the conversation: both caches keep what they have.
      Generation.Result again = answer(session, QUESTIONS.getFirst(), options);
      assertEquals(r.ids(), again.ids());
      assertTrue(again.counters().rows() < r.counters().rows());
    }
  }

  /** What is counted of the weights is what the passes of both models read, and nothing else. */
  @Test
  void weightsAreCountedAsDefined() {
    try (Session session = large.newSession();
        Session ofSmall = small.newSession()) {
      List<Message> q = QUESTIONS.getFirst();
      GenerationOptions plain = GenerationOptions.greedy().withMaxTokens(40);
      WeightUse dense = answer(session, q, plain).counters().weights();
      WeightUse little = answer(ofSmall, q, plain).counters().weights();
      assertEquals(large.info().bytesPerToken(), dense.bytesPerToken());
      assertEquals(small.info().bytesPerToken(), little.bytesPerToken());
      // All matrices, the output matrix (which is the embedding) among them; not the norms.
      double share = dense.activatedPerToken() / large.info().parameters();
      assertTrue(share > 0.99 && share < 1, "share " + share);
      session.truncate(0);
      Generation.Result r =
          answer(session, q, routed(GenerationOptions.greedy(), TokenRouter.entropy(), 0.3));
      WeightUse both = r.counters().weights();
      long routed = r.counters().drafted() - r.counters().accepted();
      assertTrue(routed > 0 && routed < r.completionTokens());
      assertEquals(r.completionTokens(), both.tokens());
      assertEquals(
          r.completionTokens() * small.info().bytesPerToken()
              + routed * large.info().bytesPerToken(),
          both.bytes());
      assertEquals(
          Math.round(
              r.completionTokens() * little.activatedPerToken()
                  + routed * dense.activatedPerToken()),
          both.activated());
      // A prompt in chunks of one row reads the weights for each, but its output matrix only once.
      try (Model chunks =
              TestModels.open(
                  "demo-small",
                  TestModels.options(ModelOptions.Backend.CPU)
                      .withContextLength(256)
                      .withPrefillChunk(1));
          Session slow = chunks.newSession()) {
        Generation.Result pieces = answer(slow, q, plain.withMaxTokens(1));
        long passes = pieces.promptTokens();
        long bytes = pieces.counters().weights().bytes();
        long whole = small.info().bytesPerToken();
        assertTrue(bytes > whole * 2 && bytes < passes * whole, bytes + " of " + passes * whole);
      }
    }
  }

  /** R5: how the large model's cache catches up, in one pass or in pieces, changes nothing. */
  @Test
  void piecesOfCatchingUpDoNotMatter() {
    GenerationOptions options = routed(GenerationOptions.greedy(), TokenRouter.entropy(), 0.3);
    try (Session whole = large.newSession()) {
      for (int chunk : new int[] {1, 3}) {
        try (Model pieces =
                TestModels.open(
                    "demo",
                    TestModels.options(ModelOptions.Backend.CPU)
                        .withContextLength(256)
                        .withPrefillChunk(chunk));
            Session session = pieces.newSession()) {
          for (List<Message> q : QUESTIONS) {
            Generation.Result expected = answer(whole, q, options);
            Generation.Result actual = answer(session, q, options);
            assertEquals(expected.ids(), actual.ids(), "chunk " + chunk);
            assertEquals(expected.counters().accepted(), actual.counters().accepted());
          }
        }
      }
    }
  }

  /** R7: answers that run together are those that run alone. */
  @Test
  void neighboursDoNotMatter() throws Exception {
    GenerationOptions options = routed(GenerationOptions.greedy(), TokenRouter.entropy(), 0.3);
    List<List<Integer>> alone = new ArrayList<>();
    try (Session session = large.newSession()) {
      for (List<Message> q : QUESTIONS) {
        alone.add(answer(session, q, options).ids());
      }
    }
    List<Future<List<Integer>>> together = new ArrayList<>();
    try (ExecutorService threads = Executors.newFixedThreadPool(6)) {
      for (int i = 0; i < 12; i++) {
        List<Message> q = QUESTIONS.get(i % QUESTIONS.size());
        together.add(
            threads.submit(() -> {
              try (Session session = large.newSession()) {
                return answer(session, q, options).ids();
              }
            }));
      }
      for (int i = 0; i < together.size(); i++) {
        assertEquals(alone.get(i % QUESTIONS.size()), together.get(i).get(), "answer " + i);
      }
    }
  }

  @Test
  void aRouterBelongsToItsModels() throws IOException {
    float[] weights = new float[LearnedRouter.WEIGHTS];
    weights[3] = 1.5f;
    Path file = folder.resolve("router.arrow");
    new Routing(small, new LearnedRouter(weights), 0.25)
        .save(file, large, Map.of("labels", "proxy", "questions", 3));
    Routing read = Routing.load(file, small, large);
    assertEquals(0.25, read.threshold());
    assertEquals(
        1.5f,
        org.junit.jupiter.api.Assertions.assertInstanceOf(LearnedRouter.class, read.router())
            .weights()[3]);
    FletchException swapped =
        assertThrows(FletchException.class, () -> Routing.load(file, large, small));
    assertTrue(swapped.getMessage().contains("another small model"), swapped.getMessage());
    // The same weights under another tokenizer: the models' hashes do not see it.
    byte[] gguf = Files.readAllBytes(TestModels.demo("demo-small"));
    int at = indexOf(gguf, "<|mask|>".getBytes(java.nio.charset.StandardCharsets.UTF_8));
    gguf[at + 3] = 'u';
    Path respelled = Files.write(folder.resolve("respelled.gguf"), gguf);
    try (Model other =
        Model.open(respelled, TestModels.options(ModelOptions.Backend.CPU).withContextLength(64))) {
      FletchException e =
          assertThrows(FletchException.class, () -> Routing.load(file, other, large));
      assertTrue(e.getMessage().contains("another tokenizer"), e.getMessage());
    }
    assertThrows(
        FletchException.class,
        () -> new Routing(small, TokenRouter.entropy(), 1).save(file, large, Map.of()));
    Path model = TestModels.demo("demo-small");
    assertThrows(FletchException.class, () -> Routing.load(model, small, large));
    byte[] bytes = Files.readAllBytes(file);
    Path broken = folder.resolve("broken.arrow");
    for (int cut : new int[] {0, 10, bytes.length / 2, bytes.length - 1}) {
      Files.write(broken, java.util.Arrays.copyOf(bytes, cut));
      assertThrows(FletchException.class, () -> Routing.load(broken, small, large));
    }
  }

  private static int indexOf(byte[] in, byte[] what) {
    for (int i = 0; i + what.length <= in.length; i++) {
      if (java.util.Arrays.equals(in, i, i + what.length, what, 0, what.length)) {
        return i;
      }
    }
    throw new AssertionError("not there");
  }

  @Test
  void refusals() {
    ModelOptions options = TestModels.options(ModelOptions.Backend.CPU).withContextLength(128);
    try (Model diffusion = TestModels.open("demo-diffusion", options);
        Session session = large.newSession();
        Session ofDiffusion = diffusion.newSession()) {
      GenerationOptions wrong =
          GenerationOptions.greedy().withRouting(new Routing(diffusion, TokenRouter.entropy(), 1));
      assertThrows(FletchException.class, () -> session.chat(QUESTIONS.getFirst(), wrong));
      GenerationOptions right =
          GenerationOptions.greedy().withRouting(new Routing(small, TokenRouter.entropy(), 1));
      assertThrows(FletchException.class, () -> ofDiffusion.chat(QUESTIONS.getFirst(), right));
    }
  }
}
