package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ContextShift;
import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Routing;
import io.fletch.Session;
import io.fletch.UnitDrop;
import io.fletch.sampling.Grammar;
import io.fletch.sampling.TokenRouter;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

/** Going on where the context is full equals new sessions that are given what is left. */
class ContextShiftTest {
  private static final int CONTEXT = 64;
  private static final GenerationOptions ENDLESS = GenerationOptions.greedy().withIgnoreEnd(true);

  @TempDir private Path folder;

  private static Model open(int context, ModelOptions.KvType type) {
    return TestModels.open(
        "demo-small",
        TestModels.options(ModelOptions.Backend.CPU)
            .withContextLength(context)
            .withKvType(type)
            .withPrefillChunk(16));
  }

  private static int[] prompt(int length) {
    return IntStream.range(0, length).map(i -> 300 + i * 7 % 180).toArray();
  }

  private static int[] ints(List<Integer> list) {
    return list.stream().mapToInt(Integer::intValue).toArray();
  }

  /** The rule of the documentation, one token per session call, in a context where all fits. */
  private static List<Integer> expected(Session large, int[] prompt, int keep, int tokens) {
    List<Integer> context = new ArrayList<>(IntStream.of(prompt).boxed().toList());
    List<Integer> out = new ArrayList<>();
    while (context.size() >= CONTEXT) {
      context.subList(keep, keep + (context.size() - keep) / 2).clear();
    }
    while (out.size() < tokens) {
      int id = large.generate(ints(context), ENDLESS.withMaxTokens(1)).result().ids().getFirst();
      out.add(id);
      context.add(id);
      if (context.size() > CONTEXT) {
        context.subList(keep, keep + (CONTEXT - keep) / 2).clear();
      }
    }
    return out;
  }

  @ParameterizedTest
  @CsvSource({"F16, 0, 5", "F16, 7, 20", "Q8_0, 4, 20", "F16, 32, 40", "F16, 3, 200", "F16, 9, 2"})
  void equalsASessionWithTheTokensThatAreLeft(ModelOptions.KvType type, int keep, int length) {
    int[] prompt = prompt(length);
    try (Model small = open(CONTEXT, type);
        Model large = open(4 * CONTEXT, type);
        Session session = small.newSession();
        Session oracle = large.newSession()) {
      int kept = Math.min(keep, length);
      List<Integer> expected = expected(oracle, prompt, kept, 150);
      GenerationOptions options =
          ENDLESS.withMaxTokens(150).withContextShift(new ContextShift(keep));
      Generation.Result result = session.generate(prompt, options).result();
      assertEquals(expected, result.ids());
      assertEquals(150, result.completionTokens());
      assertEquals(Generation.FinishReason.LENGTH, result.finishReason());
      // Dropped and held tokens make up all; the last one is in no cache yet.
      assertEquals(
          length + 150 - 1, result.droppedTokens() + session.tokens().size(), result.toString());
      assertEquals(
          IntStream.of(prompt).limit(kept).boxed().toList(), session.tokens().subList(0, kept));
      // What the cache holds is what its tokens say.
      int[] next = ints(session.tokens().subList(0, Math.min(50, session.tokens().size())));
      Generation.Result warm = session.generate(next, ENDLESS.withMaxTokens(5)).result();
      assertEquals(next.length - 1, warm.reusedTokens());
      assertEquals(oracle.generate(next, ENDLESS.withMaxTokens(5)).result().ids(), warm.ids());
    }
  }

  @ParameterizedTest
  @EnumSource(ModelOptions.KvType.class)
  void savedAndForkedLikeAnyOther(ModelOptions.KvType type) {
    try (Model model = open(CONTEXT, type);
        Session session = model.newSession();
        Session other = model.newSession()) {
      GenerationOptions options = ENDLESS.withContextShift(new ContextShift(4));
      session.generate(prompt(20), options.withMaxTokens(70)).result();
      Path file = folder.resolve("shifted.session");
      session.save(file);
      other.restore(file);
      int[] next = ints(session.tokens());
      try (Session fork = session.fork()) {
        assertEquals(
            fork.generate(next, options.withMaxTokens(60)).result().ids(),
            other.generate(next, options.withMaxTokens(60)).result().ids());
      }
    }
  }

  @Test
  void withoutItTheEndIsClear() {
    try (Model model = open(CONTEXT, ModelOptions.KvType.F16);
        Session session = model.newSession()) {
      Generation.Result result = session.generate(prompt(20), ENDLESS).result();
      assertEquals(Generation.FinishReason.LENGTH, result.finishReason());
      assertEquals(CONTEXT - 20, result.completionTokens());
      assertEquals(0, result.droppedTokens());
      FletchException e =
          assertThrows(FletchException.class, () -> session.generate(prompt(64), ENDLESS));
      assertTrue(e.getMessage().contains("tokens=64 context=64"), e.getMessage());
    }
  }

  @Test
  void cancelsDuringAShiftAndEndsByItself() {
    try (Model model = open(CONTEXT, ModelOptions.KvType.F16);
        Session session = model.newSession()) {
      GenerationOptions shifting = ENDLESS.withContextShift(new ContextShift(2));
      // No limit: only cancelling ends it.
      try (Generation generation = session.generate(prompt(10), shifting)) {
        for (int i = 0; i < 300; i++) {
          generation.next();
        }
        generation.cancel();
        Generation.Result result = generation.result();
        assertEquals(Generation.FinishReason.CANCELLED, result.finishReason());
        assertEquals(300, result.completionTokens());
      }
      // A grammar ends by itself, however often the context shifted.
      Generation.Result counted =
          session
              .generate(prompt(10), shifting.withGrammar(Grammar.parse("root ::= [a-z ]{400}")))
              .result();
      assertEquals(400, counted.text().length());
      assertEquals(Generation.FinishReason.STOP, counted.finishReason());
      assertTrue(counted.droppedTokens() > 0, counted.toString());
      // The session is as good as before.
      assertEquals(
          3, session.generate(prompt(10), ENDLESS.withMaxTokens(3)).result().completionTokens());
    }
  }

  @Test
  void whatItExcludesIsRefused() {
    assertThrows(IllegalArgumentException.class, () -> new ContextShift(-1));
    GenerationOptions shifting = GenerationOptions.greedy().withContextShift(new ContextShift(33));
    try (Model model = open(CONTEXT, ModelOptions.KvType.F16);
        Model diffusion =
            TestModels.open("demo-diffusion", TestModels.options(ModelOptions.Backend.CPU));
        Session session = model.newSession();
        Session filling = diffusion.newSession()) {
      refused(session, shifting, "expected<=32");
      GenerationOptions fine = shifting.withContextShift(new ContextShift(1));
      refused(filling, fine, "is a diffusion model");
      refused(
          session,
          fine.withUnits(List.of(new UnitDrop(List.of(1), UnitDrop.Unit.FFN, 1, 0, false))),
          "unit policies");
      refused(
          session, fine.withRouting(new Routing(model, TokenRouter.entropy(), 1)), "token routing");
      assertEquals(
          1, session.generate(prompt(4), fine.withMaxTokens(1)).result().completionTokens());
    }
  }

  private static void refused(Session session, GenerationOptions options, String about) {
    FletchException e =
        assertThrows(FletchException.class, () -> session.generate(prompt(5), options));
    assertTrue(e.getMessage().contains(about), e.getMessage());
  }
}
