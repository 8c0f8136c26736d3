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
import io.fletch.Session;
import io.fletch.sampling.DiffusionModel;
import io.fletch.sampling.DiffusionPresets;
import io.fletch.sampling.DiffusionTechnique;
import java.util.List;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** Techniques that promise not to change an answer, on the demo model and the CPU backend. */
class LosslessDiffusionTest {
  private static final int LENGTH = 32;

  private static final List<Message> QUESTION =
      List.of(Message.user("Reverse the words: tower stone rock egg"));

  private static Model model;
  private static Session session;

  @BeforeAll
  static void open() {
    model =
        TestModels.open(
            "demo-diffusion", TestModels.options(ModelOptions.Backend.CPU).withContextLength(128));
    session = model.newSession();
  }

  @AfterAll
  static void close() {
    session.close();
    model.close();
  }

  private static GenerationOptions options(String technique) {
    return GenerationOptions.greedy()
        .withDiffusion(
            DiffusionTechnique.parse(technique, model.diffusion().orElseThrow(), LENGTH));
  }

  private static Generation.Result answer(String technique) {
    return session.chat(QUESTION, options(technique)).result();
  }

  @Test
  void draftsNeverChangeTheAnswer() {
    for (String chain :
        List.of(
            "block(tokens=16)",
            "block(tokens=8)+temperature(t=0.7)+seed(value=5)",
            "block(tokens=16)+prefix",
            "block(tokens=8)+dual",
            "block(tokens=16)+freecache(refresh=4)+temperature(t=1.5)+seed(value=9)")) {
      Generation.Result expected = answer(chain);
      for (int depth : new int[] {2, 3, 5}) {
        String drafting = chain + "+freedave(depth=" + depth + ")";
        Generation.Result actual = answer(drafting);
        assertEquals(expected.ids(), actual.ids(), drafting);
        assertEquals(expected.completionTokens(), actual.completionTokens(), drafting);
        assertTrue(actual.forwards() <= expected.forwards(), drafting);
        assertEquals(
            expected.forwards() - actual.forwards(),
            actual.counters().drafted() == 0 ? 0 : actual.counters().accepted(),
            drafting);
      }
    }
    assertTrue(answer("block(tokens=16)+freedave(depth=4)").forwards() < LENGTH);
  }

  @Test
  void refreshingEveryStepIsNoCache() {
    Generation.Result expected = answer("block(tokens=8)+temperature(t=0.5)+seed(value=3)");
    Generation.Result actual =
        answer("block(tokens=8)+temperature(t=0.5)+seed(value=3)+freecache(refresh=1)");
    assertEquals(expected.ids(), actual.ids());
    assertEquals(expected.counters().rows(), actual.counters().rows());
    assertTrue(
        answer("block(tokens=8)+freecache").counters().rows()
            < answer("block(tokens=8)").counters().rows());
  }

  @Test
  void thresholdsThatAreNeverReachedAreTheBaseline() {
    Generation.Result expected = answer("block(tokens=8)");
    for (String never :
        List.of(
            "threshold(tau=1e6)",
            "localleap(anchor=1e6,relaxed=1e6)",
            "prophet(early=inf,middle=inf,late=inf)",
            "sched(hi=inf,lo=inf)")) {
      Generation.Result actual = answer("block(tokens=8)+" + never);
      assertEquals(expected.ids(), actual.ids(), never);
      assertEquals(expected.forwards(), actual.forwards(), never);
      assertEquals(-1, actual.counters().exitStep(), never);
    }
  }

  @Test
  void countersSayWhatWasRun() {
    Generation.Result result = answer("block(tokens=16)");
    assertEquals(LENGTH, result.forwards());
    assertEquals((long) LENGTH * (result.promptTokens() + LENGTH), result.counters().rows());
    // The head runs on the masks of the block: 16, 15, ... 1, twice.
    assertEquals(2 * 16 * 17 / 2, result.counters().headRows());
    assertTrue(result.counters().bytesRead() > LENGTH * model.info().bytesPerToken());
    Generation.Result exit = answer("block(tokens=16)+prophet(early=0,middle=0,late=0)");
    assertTrue(exit.counters().exitStep() >= 0);
    assertTrue(exit.counters().filled() > 0);
    assertTrue(exit.forwards() < LENGTH);
  }

  @Test
  void presetsRun() {
    DiffusionModel facts = model.diffusion().orElseThrow();
    for (String technique : DiffusionPresets.comparison(facts)) {
      Generation.Result result = answer(technique);
      assertTrue(result.forwards() <= 2 * LENGTH, technique + ": " + result.forwards());
      assertTrue(result.text().contains("egg rock stone tower"), technique + ": " + result.text());
    }
  }

  @Test
  void aGuideDecides() {
    String technique = "guided";
    assertThrows(FletchException.class, () -> answer(technique));
    ModelOptions cpu = TestModels.options(ModelOptions.Backend.CPU).withContextLength(128);
    try (Model guide = TestModels.open("demo", cpu)) {
      try (Session s = model.newSession()) {
        GenerationOptions guided = options(technique).withGuide(guide);
        Generation.Result result = s.chat(QUESTION, guided).result();
        assertTrue(result.counters().guideForwards() > 0);
        assertTrue(result.counters().accepted() > 0);
        assertTrue(result.forwards() < LENGTH);
        assertEquals(result.ids(), s.chat(QUESTION, guided).result().ids());
        assertThrows(
            FletchException.class, () -> s.chat(QUESTION, options("reference").withGuide(guide)));
        assertThrows(
            FletchException.class, () -> s.chat(QUESTION, options(technique).withGuide(model)));
        // The guide is in use as long as the session is open.
        assertThrows(IllegalStateException.class, guide::close);
      }
    }
  }
}
