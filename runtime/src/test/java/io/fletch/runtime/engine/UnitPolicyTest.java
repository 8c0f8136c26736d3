package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FfnSkip;
import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.UnitDrop;
import io.fletch.UnitPolicy;
import io.fletch.sampling.CausalForward.Logits;
import io.fletch.sampling.DecodeCounters;
import io.fletch.sampling.UnitUse;
import io.fletch.sampling.WeightUse;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Units of the demo model that rest while it answers. */
class UnitPolicyTest {
  private static final List<Message> SUM = List.of(Message.user("What is 457 + 386?"));
  private static final List<Message> WORDS =
      List.of(Message.user("Reverse the words: tower stone rock egg"));
  private static final GenerationOptions GREEDY = GenerationOptions.greedy().withMaxTokens(24);
  private static final int LAYERS = 8;

  /** Every unit of the region but the first rests from the third generated token on. */
  private static final FfnSkip ALWAYS = FfnSkip.of(2, 6, -2).withWarmUp(3);

  @TempDir static Path folder;
  private static Model dense;
  private static Model skipping;

  @BeforeAll
  static void open() {
    ModelOptions options = TestModels.options(ModelOptions.Backend.CPU).withContextLength(256);
    dense = TestModels.open("demo", options);
    skipping = TestModels.open("demo", options.withUnits(List.of(ALWAYS)));
  }

  @AfterAll
  static void close() {
    dense.close();
    skipping.close();
  }

  private static Generation.Result answer(
      Session session, List<Message> question, GenerationOptions options) {
    try (Generation generation = session.chat(question, options)) {
      return generation.result();
    }
  }

  private static Generation.Result answer(
      Model model, List<Message> question, GenerationOptions options) {
    try (Session session = model.newSession()) {
      return answer(session, question, options);
    }
  }

  private static GenerationOptions with(UnitPolicy... policies) {
    return GREEDY.withUnits(List.of(policies));
  }

  /** F1. */
  @Test
  void neverSkippingIsDense() {
    List<Integer> expected = answer(dense, SUM, GREEDY).ids();
    FfnSkip never = ALWAYS.withThreshold(Float.POSITIVE_INFINITY);
    assertEquals(expected, answer(skipping, SUM, with(never)).ids());
    assertEquals(expected, answer(skipping, SUM, with(ALWAYS.withWarmUp(100))).ids());
    assertEquals(expected, answer(skipping, SUM, with(ALWAYS.withBudget(0))).ids());
    assertEquals(expected, answer(skipping, SUM, with()).ids());
    int[] ids = dense.tokenizer().encode("12+30=42 and so on");
    try (Session a = dense.newSession();
        Session b = skipping.newSession()) {
      float[][] logits = a.logits(ids);
      float[][] same = b.logits(ids);
      // The first two tokens are warm-up; the others rest.
      for (int i = 0; i < ids.length; i++) {
        assertEquals(i < 2, Arrays.equals(logits[i], same[i]), "token " + i);
      }
    }
  }

  /** F6: the units that rest might as well not be there. */
  @Test
  void alwaysSkippingIsDroppingTheSameUnits() {
    FfnSkip first = ALWAYS.withWarmUp(0);
    UnitDrop drop = new UnitDrop(List.of(3, 4, 5), UnitDrop.Unit.FFN, 1, 0, false);
    for (List<Message> question : List.of(SUM, WORDS)) {
      Generation.Result skipped = answer(skipping, question, with(first));
      Generation.Result dropped = answer(dense, question, with(drop));
      assertEquals(dropped.ids(), skipped.ids());
      assertEquals(dropped.counters().units(), skipped.counters().units());
      assertEquals(dropped.counters().weights(), skipped.counters().weights());
    }
  }

  @Test
  void whatRestsIsCounted() {
    Generation.Result all = answer(dense, SUM, GREEDY.withIgnoreEnd(true));
    Generation.Result some = answer(skipping, SUM, GREEDY.withIgnoreEnd(true));
    assertEquals(UnitUse.NONE, all.counters().units());
    // The prompt gives the first token, and the last one is not run; two of the others warm up.
    long steps = some.completionTokens() - 1;
    assertEquals(new UnitUse(steps * 2 * LAYERS, (steps - 2) * 3, 0), some.counters().units());
    WeightUse dense = all.counters().weights();
    WeightUse spared = some.counters().weights();
    assertEquals(dense.tokens(), spared.tokens());
    // Three matrices of 256 x 512 each.
    long unit = 3L * 256 * 512;
    assertEquals((steps - 2) * 3 * unit, dense.activated() - spared.activated());
    double bytes = 34.0 / 32 * unit * (steps - 2) * 3;
    assertEquals(1, (dense.bytes() - spared.bytes()) / bytes, 0.02);
  }

  /**
   * A row of a shared pass, of which only the argmax was kept, for another one than was expected.
   */
  @Test
  void aRowThatRunsAgainCountsOnce() throws Exception {
    LoadedModel model = (LoadedModel) skipping;
    int[] ids = model.tokenizer().encode("12+30=42 and so on");
    float[] expected;
    try (Session session = model.newSession()) {
      expected = session.logits(ids)[ids.length - 1];
    }
    model.scheduler().changeQuorum(2);
    try (ExecutorService threads = Executors.newFixedThreadPool(2)) {
      List<Future<?>> all = new ArrayList<>();
      for (int i = 0; i < 2; i++) {
        all.add(
            threads.submit(() -> {
              try (GraphForward forward = model.newSharingForward()) {
                forward.rule(new UnitRule(model.units().policies(), 0));
                forward.append(ids, 0, ids.length - 1, Logits.NONE);
                forward.expectRead(0);
                forward.append(ids, ids.length - 1, 1, Logits.LAST);
                int argmax = forward.argmax(0);
                DecodeCounters before = forward.counters();
                long spared = forward.sparedParameters();
                assertTrue(spared > 0);
                float[] logits = new float[forward.vocabulary()];
                forward.rawLogits(0, logits);
                assertArrayEquals(expected, logits);
                assertEquals(argmax, forward.argmax(0));
                DecodeCounters after = forward.counters();
                assertEquals(before.units(), after.units());
                assertEquals(spared, forward.sparedParameters());
                // The pass has really run.
                assertEquals(before.forwards() + 1, after.forwards());
                assertEquals(before.rows() + 1, after.rows());
                assertEquals(before.headRows() + 1, after.headRows());
                assertTrue(before.weights().bytes() < after.weights().bytes());
              } finally {
                model.scheduler().changeQuorum(-1);
              }
              return null;
            }));
      }
      for (Future<?> one : all) {
        one.get();
      }
    }
  }

  @Test
  void shareOfRandomDroppingIsAsAsked() {
    UnitDrop half = new UnitDrop(List.of(0, 1, 2, 3, 4, 5, 6, 7), UnitDrop.Unit.FFN, 0.5, 7, false);
    GenerationOptions options = with(half).withIgnoreEnd(true).withMaxTokens(100);
    Generation.Result one = answer(dense, SUM, options);
    assertEquals(one.ids(), answer(dense, SUM, options).ids(), "drawn from the seed alone");
    UnitUse units = one.counters().units();
    assertEquals(0.5, 2.0 * units.skipped() / units.units(), 0.06);
    UnitDrop attention = new UnitDrop(List.of(1), UnitDrop.Unit.ATTENTION, 1, 0, true);
    units = answer(dense, SUM, with(attention)).counters().units();
    assertEquals(units.units() / (2 * LAYERS), units.skipped());
  }

  /** F7, and that a cache never mixes answers of different policies. */
  @Test
  void sessionsDoNotDisturbEachOther() throws Exception {
    List<Integer> skipped = answer(skipping, SUM, GREEDY).ids();
    List<Integer> plain = answer(dense, WORDS, GREEDY).ids();
    try (ExecutorService pool = Executors.newFixedThreadPool(4)) {
      List<Future<List<Integer>>> all = new ArrayList<>();
      for (int i = 0; i < 8; i++) {
        boolean rests = i % 2 == 0;
        all.add(
            pool.submit(
                () -> answer(skipping, rests ? SUM : WORDS, rests ? GREEDY : with()).ids()));
      }
      for (int i = 0; i < all.size(); i++) {
        assertEquals(i % 2 == 0 ? skipped : plain, all.get(i).get());
      }
    }
  }

  @Test
  void anAnswerByAllUnitsRunsAgainWhatOthersComputed() {
    List<Message> more = new ArrayList<>(SUM);
    String text = answer(skipping, SUM, GREEDY).text();
    more.add(Message.assistant(text));
    more.add(Message.user("And 12 + 30?"));
    List<Integer> expected = answer(dense, more, GREEDY).ids();
    try (Session session = skipping.newSession();
        Session same = skipping.newSession()) {
      Generation.Result first = answer(session, SUM, GREEDY);
      Generation.Result second = answer(session, more, with());
      assertEquals(expected, second.ids());
      assertTrue(second.reusedTokens() > 0, "the prompt had been run by all units");
      assertTrue(second.reusedTokens() < first.promptTokens() + 3);
      answer(same, SUM, GREEDY);
      assertTrue(answer(same, more, GREEDY).reusedTokens() > first.promptTokens() + 3);
      Path saved = folder.resolve("session");
      same.save(saved);
      session.restore(saved);
      assertEquals(expected, answer(session, more, with()).ids());
    }
  }

  @Test
  void filesAreBoundToTheirModel() throws IOException {
    Path file = folder.resolve("skip.arrow");
    FfnSkip made = new FfnSkip(1, 6, 0.995f, 2, 3, 4, "");
    made.save(file, dense, Map.of("ratio", 0.25));
    FfnSkip loaded = FfnSkip.load(file);
    assertEquals(
        made,
        new FfnSkip(
            loaded.from(),
            loaded.to(),
            loaded.threshold(),
            loaded.run(),
            loaded.budget(),
            loaded.warmUp(),
            ""));
    ModelOptions options =
        TestModels.options(ModelOptions.Backend.CPU)
            .withContextLength(64)
            .withUnits(List.of(loaded));
    TestModels.open("demo", options).close();
    assertTrue(
        assertThrows(FletchException.class, () -> TestModels.open("demo-small", options))
            .getMessage()
            .contains("another model"));
    byte[] bytes = Files.readAllBytes(file);
    for (int i = 0; i < bytes.length; i += 7) {
      byte[] damaged = bytes.clone();
      damaged[i] ^= 0x55;
      Path other = Files.write(folder.resolve("damaged.arrow"), damaged);
      try {
        FfnSkip.load(other);
      } catch (FletchException e) {
        assertTrue(e.getMessage().contains("damaged.arrow"), e.getMessage());
      }
    }
    Path router = folder.resolve("none.arrow");
    Files.writeString(router, "ARROW?");
    assertThrows(FletchException.class, () -> FfnSkip.load(router));
  }

  @Test
  void policiesThatDoNotFitAreRefused() {
    assertThrows(FletchException.class, () -> answer(dense, SUM, with(ALWAYS)));
    assertThrows(FletchException.class, () -> answer(skipping, SUM, with(FfnSkip.of(1, 6, 0.9f))));
    assertThrows(FletchException.class, () -> answer(skipping, SUM, with(ALWAYS, ALWAYS)));
    UnitDrop nowhere = new UnitDrop(List.of(8), UnitDrop.Unit.FFN, 1, 0, true);
    assertThrows(FletchException.class, () -> answer(dense, SUM, with(nowhere)));
    ModelOptions options = TestModels.options(ModelOptions.Backend.CPU).withContextLength(64);
    for (List<UnitPolicy> bad :
        List.<List<UnitPolicy>>of(
            List.of(FfnSkip.of(4, 9, 0.9f)), List.of(ALWAYS, ALWAYS), List.of(nowhere))) {
      assertThrows(FletchException.class, () -> TestModels.open("demo", options.withUnits(bad)));
    }
    assertThrows(
        FletchException.class,
        () -> TestModels.open("demo-diffusion", options.withUnits(List.of(ALWAYS))));
    assertThrows(IllegalArgumentException.class, () -> FfnSkip.of(3, 4, 0.9f));
    assertThrows(IllegalArgumentException.class, () -> FfnSkip.of(1, 4, Float.NaN));
  }
}
