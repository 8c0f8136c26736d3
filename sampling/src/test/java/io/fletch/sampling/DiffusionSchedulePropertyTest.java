package io.fletch.sampling;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.sampling.Decodes.Outcome;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.stream.IntStream;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;
import org.junit.jupiter.api.Test;

/** Invariants of canvas, schedules, thresholds and shift (specs/diffusion.md 15, 1 to 16). */
class DiffusionSchedulePropertyTest {
  private static DiffusionOptions options(int block, int blocks) {
    return DiffusionOptions.reference(block * blocks, block);
  }

  private static Transfer.Schedule steps(int steps) {
    return new Transfer.Schedule(steps, Transfer.Order.LOW_CONFIDENCE);
  }

  /** Invariants 1, 2, 3 and 4 for the static schedule. */
  @Property(tries = 60, seed = "1")
  void scheduleCommitsWhatItPromisesBlockByBlock(
      @ForAll @IntRange(max = 1 << 20) int seed,
      @ForAll @IntRange(min = 1, max = 8) int block,
      @ForAll @IntRange(min = 1, max = 3) int blocks,
      @ForAll @IntRange(min = 1, max = 10) int stepsPerBlock,
      @ForAll Transfer.Order order) {
    DiffusionOptions o =
        options(block, blocks)
            .withTransfer(new Transfer.Schedule(stepsPerBlock * blocks, order))
            .withSeed(seed);
    Outcome r =
        Decodes.run(
            Decodes.network(seed), Decodes.model(false, 0), o, Decodes.prompt(seed, seed % 9));
    int useful = Math.min(stepsPerBlock, block);
    assertEquals(useful * blocks, r.steps().size());
    assertEquals(useful * blocks, r.counters().forwards());
    for (int k = 0; k < r.steps().size(); k++) {
      int b = k / useful;
      int i = k % useful;
      List<Integer> offsets = r.steps().get(k).offsets();
      assertEquals(
          block / stepsPerBlock + (i < block % stepsPerBlock ? 1 : 0), offsets.size(), "step " + k);
      for (int offset : offsets) {
        assertEquals(b, offset / block, "step " + k + " left its block");
      }
    }
  }

  @Property(tries = 60, seed = "2")
  void lowConfidenceOrderDescendsAndTiesGoLeft(@ForAll @IntRange(max = 1 << 20) int seed) {
    Outcome r =
        Decodes.run(
            Decodes.network(seed),
            Decodes.model(false, 0),
            options(12, 1).withTransfer(steps(3)),
            Decodes.prompt(seed, 5));
    for (DecodeTrace.Step s : r.steps()) {
      for (int i = 1; i < s.offsets().size(); i++) {
        float a = s.confidences().get(i - 1);
        float b = s.confidences().get(i);
        assertTrue(a > b || (a == b && s.offsets().get(i - 1) < s.offsets().get(i)));
      }
    }
  }

  /** The schedule shapes that specs/diffusion.md 3.2 lists for Dream, in float32. */
  @Test
  void dreamCounts() {
    for (int n : new int[] {128, 256, 512}) {
      int[] expected = new int[n];
      Arrays.fill(expected, 1);
      expected[0] = 0;
      expected[n - 1] = 2;
      assertArrayEquals(expected, dreamCounts(n, n), "N = T = " + n);
    }
    int[] four = dreamCounts(512, 128);
    assertEquals(3, four[0]);
    assertEquals(4, four[1]);
    assertEquals(5, four[127]);
    assertEquals(512, Arrays.stream(four).sum());
    int[] two = dreamCounts(256, 128);
    assertEquals(1, two[0]);
    assertEquals(3, two[127]);
    assertEquals(256, Arrays.stream(two).sum());
  }

  private static int[] dreamCounts(int masks, int steps) {
    float[] times = DreamPolicy.times(steps, 1e-3f);
    int[] counts = new int[steps];
    int left = masks;
    for (int k = 0; k < steps; k++) {
      counts[k] = DreamPolicy.count(times, left, k);
      left -= counts[k];
    }
    return counts;
  }

  @Property(tries = 60, seed = "3")
  void dreamFillsEverythingWithinItsSteps(
      @ForAll @IntRange(max = 1 << 20) int seed,
      @ForAll Transfer.DreamAlgorithm algorithm,
      @ForAll @IntRange(min = 1, max = 20) int steps,
      @ForAll boolean shift,
      @ForAll @IntRange(max = 2) int heat) {
    DiffusionOptions o =
        options(16, 1)
            .withTransfer(new Transfer.Dream(steps, algorithm, heat == 2 ? 0.5f : 0, 1e-3f))
            .withTemperature(heat == 0 ? 0 : 0.7f)
            .withFilters(heat == 0 ? 1 : 0.95f, 0)
            .withSeed(seed);
    int[] prompt = Decodes.prompt(seed, 4);
    Outcome a = Decodes.run(Decodes.network(seed), Decodes.model(shift, 0), o, prompt);
    assertTrue(a.counters().forwards() <= steps);
    Outcome b = Decodes.run(Decodes.network(seed), Decodes.model(shift, 0), o, prompt);
    assertEquals(a.commits(), b.commits(), "invariant 5: same seed, same trace");
    if (algorithm != Transfer.DreamAlgorithm.ORIGIN) {
      float[] times = DreamPolicy.times(steps, 1e-3f);
      int left = 16;
      int i = 0;
      for (int k = 0; k < steps; k++) {
        int n = DreamPolicy.count(times, left, k);
        left -= n;
        if (n > 0) {
          assertEquals(n, a.steps().get(i++).offsets().size());
        }
      }
      assertEquals(i, a.steps().size());
    }
  }

  /** Invariant 6. */
  @Test
  void constantLogitsFillFromTheLeft() {
    TinyCanvasModel flat = new TinyCanvasModel(Decodes.VOCABULARY, 64, 1, true, 0);
    for (Transfer t :
        List.of(
            steps(0),
            new Transfer.Dream(0, Transfer.DreamAlgorithm.ENTROPY, 0, 1e-3f),
            new Transfer.Threshold(0.9f),
            new Transfer.Factor(0.1f))) {
      Outcome r =
          Decodes.run(flat, Decodes.model(false, 0), options(10, 1).withTransfer(t), new int[] {1});
      List<Integer> order = r.steps().stream().flatMap(s -> s.offsets().stream()).toList();
      assertEquals(IntStream.range(0, 10).boxed().toList(), order, t.toString());
      assertTrue(Arrays.stream(r.answer()).allMatch(id -> id == 0));
    }
  }

  /** Invariant 7, first half: with an empty prompt both halves are the same canvas. */
  @Property(tries = 20, seed = "4")
  void guidanceOfEqualHalvesIsNoGuidance(@ForAll @IntRange(max = 1 << 20) int seed) {
    DiffusionOptions o = options(6, 2);
    Outcome plain = Decodes.run(Decodes.network(seed), Decodes.model(false, 0), o, new int[0]);
    Outcome guided =
        Decodes.run(
            Decodes.network(seed), Decodes.model(false, 0), o.withGuidance(1.5f), new int[0]);
    assertEquals(plain.commits(), guided.commits());
    assertEquals(2 * plain.counters().rows(), guided.counters().rows());
    assertEquals(plain.counters().forwards(), guided.counters().forwards());
  }

  @Property(tries = 20, seed = "5")
  void guidanceMixesTheLogits(@ForAll @IntRange(max = 1 << 20) int seed) {
    // One mask: the first step can be computed by hand from two forwards.
    int[] prompt = Decodes.prompt(seed, 5);
    TinyCanvasModel m = Decodes.network(seed);
    Outcome r = Decodes.run(m, Decodes.model(false, 0), options(1, 1).withGuidance(2), prompt);
    float[] conditional = logits(seed, prompt);
    int[] hidden = new int[5];
    Arrays.fill(hidden, Decodes.MASK);
    float[] unconditional = logits(seed, hidden);
    int best = 0;
    float[] mixed = new float[Decodes.VOCABULARY];
    for (int i = 0; i < mixed.length; i++) {
      mixed[i] =
          i == Decodes.MASK
              ? Float.NEGATIVE_INFINITY
              : unconditional[i] + 3 * (conditional[i] - unconditional[i]);
      best = mixed[i] > mixed[best] ? i : best;
    }
    assertEquals(best, r.answer()[0]);
  }

  private static float[] logits(long seed, int[] prompt) {
    TinyCanvasModel m = Decodes.network(seed);
    int[] tokens = Arrays.copyOf(prompt, prompt.length + 1);
    tokens[prompt.length] = Decodes.MASK;
    m.begin(1, tokens.length, tokens.length, 1, LogitEdits.none());
    m.run(
        List.of(
            new CanvasWindow(
                0,
                0,
                0,
                0,
                0,
                0,
                CanvasWindow.Own.BIDIRECTIONAL,
                0,
                tokens,
                new int[] {prompt.length})));
    float[] out = new float[Decodes.VOCABULARY];
    m.logits(0, 0, out);
    return out;
  }

  /** Invariant 7, second half. */
  @Property(tries = 30, seed = "6")
  void vanishingNoiseIsNoNoise(@ForAll @IntRange(max = 1 << 20) int seed) {
    int[] prompt = Decodes.prompt(seed, 5);
    Outcome cold =
        Decodes.run(Decodes.network(seed), Decodes.model(false, 0), options(6, 2), prompt);
    Outcome tiny =
        Decodes.run(
            Decodes.network(seed),
            Decodes.model(false, 0),
            options(6, 2).withTemperature(1e-12f).withSeed(seed),
            prompt);
    assertEquals(cold.commits(), tiny.commits());
  }

  @Test
  void noiseFollowsTheSoftmax() {
    // One mask of a context-free model, many seeds: frequencies against probabilities.
    TinyCanvasModel m = new TinyCanvasModel(Decodes.VOCABULARY, 64, 9, true, 1);
    DiffusionOptions o = options(1, 1).withTemperature(1);
    int[] counts = new int[Decodes.VOCABULARY];
    int n = 4000;
    double[] probability = new double[Decodes.VOCABULARY];
    for (int seed = 0; seed < n; seed++) {
      Outcome r = Decodes.run(m, Decodes.model(false, 0), o.withSeed(seed), new int[] {4});
      counts[r.answer()[0]]++;
      probability[r.answer()[0]] = r.steps().getFirst().confidences().getFirst();
    }
    for (int id = 0; id < counts.length; id++) {
      double sigma = Math.sqrt(n * probability[id]) + 1;
      assertEquals(n * probability[id], counts[id], 5 * sigma, "token " + id);
    }
    assertEquals(0, counts[Decodes.MASK]);
  }

  /** The proposal is the argmax over every id, though most are never looked at. */
  @Property(tries = 60, seed = "14")
  void noiseIsAddedToEveryLogit(
      @ForAll @IntRange(max = 1 << 20) int seed, @ForAll @IntRange(min = 1, max = 30) int heat) {
    float temperature = heat / 10f;
    int[] prompt = Decodes.prompt(seed, 5);
    float[] row = logits(seed, prompt);
    int best = -1;
    double most = Double.NEGATIVE_INFINITY;
    for (int id = 0; id < row.length; id++) {
      if (id != Decodes.MASK) {
        double g = CounterRandom.gumbel(CounterRandom.noiseBits(seed, 0, 5, id));
        if (row[id] + temperature * g > most) {
          most = row[id] + temperature * g;
          best = id;
        }
      }
    }
    Outcome r =
        Decodes.run(
            Decodes.network(seed),
            Decodes.model(false, 0),
            options(1, 1).withTemperature(temperature).withSeed(seed),
            prompt);
    assertEquals(best, r.answer()[0]);
  }

  /** Of a row the margin and the entropy are given, whatever is drawn. */
  @Test
  void scoresOfDreamDoNotDependOnTheDraw() {
    int differ = 0;
    for (int seed = 0; seed < 20; seed++) {
      for (Transfer.DreamAlgorithm a :
          List.of(Transfer.DreamAlgorithm.TOPK_MARGIN, Transfer.DreamAlgorithm.ENTROPY)) {
        DiffusionOptions o =
            DiffusionOptions.reference(8, 8)
                .withTransfer(new Transfer.Dream(0, a, 0, 1e-3f))
                .withTemperature(1);
        int[] tokens = canvas(Decodes.prompt(seed, 5), 8);
        CanvasState s = CanvasState.start(tokens, 5, Decodes.MASK, 8, false);
        Evaluation one = evaluation(seed, s, o.withSeed(1));
        Evaluation two = evaluation(seed, s, o.withSeed(2));
        assertArrayEquals(one.score, two.score, a.toString());
        differ += Arrays.equals(one.proposal, two.proposal) ? 0 : 1;
      }
    }
    assertTrue(differ > 10, "other tokens drawn: " + differ);
  }

  /** Invariant 8. */
  @Property(tries = 30, seed = "7")
  void orderDoesNotMatterWithoutContext(@ForAll @IntRange(max = 1 << 20) int seed) {
    TinyCanvasModel m = new TinyCanvasModel(Decodes.VOCABULARY, 64, seed, false);
    Set<String> answers = new HashSet<>();
    for (Transfer.Order order : Transfer.Order.values()) {
      DiffusionOptions o =
          options(6, 2).withTransfer(new Transfer.Schedule(0, order)).withSeed(seed);
      answers.add(Decodes.run(m, Decodes.model(false, 0), o, Decodes.prompt(seed, 5)).tokens());
    }
    assertEquals(1, answers.size());
  }

  /** Invariant 10: row i of this model knows the token of position i + 1. */
  @Property(tries = 20, seed = "8")
  void shiftedModelsAreReadShifted(@ForAll @IntRange(max = 1 << 20) int seed) {
    int[] target = Decodes.prompt(seed, 24);
    int[] prompt = Arrays.copyOf(target, 8);
    for (Caching c : caches()) {
      DiffusionOptions o = options(8, 2).withCaching(c);
      Outcome shifted = Decodes.run(new TargetModel(target, 1), Decodes.model(true, 0), o, prompt);
      assertArrayEquals(Arrays.copyOfRange(target, 8, 24), shifted.answer(), c.toString());
      Outcome straight =
          Decodes.run(new TargetModel(target, 1), Decodes.model(false, 0), o, prompt);
      assertFalse(Arrays.equals(shifted.answer(), straight.answer()));
    }
  }

  static List<Caching> caches() {
    return List.of(
        new Caching.None(),
        new Caching.Prefix(),
        new Caching.Dual(),
        new Caching.FreeCache(0, 0),
        new Caching.FreeCache(0, 1),
        new Caching.FreeCache(3, 0));
  }

  /** Invariant 14. */
  @Property(tries = 40, seed = "9")
  void thresholdsAtTheirEnds(@ForAll @IntRange(max = 1 << 20) int seed) {
    int[] prompt = Decodes.prompt(seed, 5);
    DiffusionModel model = Decodes.model(false, 0);
    DiffusionOptions o = options(6, 2);
    Outcome greedy = Decodes.run(Decodes.network(seed), model, o, prompt);
    Outcome never =
        Decodes.run(
            Decodes.network(seed), model, o.withTransfer(new Transfer.Threshold(1.5f)), prompt);
    assertEquals(greedy.commits(), never.commits());
    Outcome always =
        Decodes.run(
            Decodes.network(seed), model, o.withTransfer(new Transfer.Threshold(0)), prompt);
    assertEquals(2, always.counters().forwards());
    TinyCanvasModel table = new TinyCanvasModel(Decodes.VOCABULARY, 64, seed, false);
    long before = 0;
    for (float tau = 0; tau <= 1.05f; tau += 0.1f) {
      Outcome r = Decodes.run(table, model, o.withTransfer(new Transfer.Threshold(tau)), prompt);
      assertTrue(r.counters().forwards() >= before, "tau " + tau);
      assertTrue(r.counters().forwards() <= 12);
      before = r.counters().forwards();
    }
  }

  /** Invariant 15. */
  @Property(tries = 40, seed = "10")
  void localLeapAgainstThreshold(@ForAll @IntRange(max = 1 << 20) int seed) {
    int[] prompt = Decodes.prompt(seed, 5);
    DiffusionModel model = Decodes.model(false, 0);
    DiffusionOptions o = options(8, 2);
    float kappa = 0.5f;
    List<String> threshold =
        run(seed, model, o.withTransfer(new Transfer.Threshold(kappa)), prompt).commits();
    assertEquals(
        threshold,
        run(seed, model, o.withTransfer(new Transfer.LocalLeap(kappa, 0.2f, 0)), prompt).commits());
    assertEquals(
        threshold,
        run(seed, model, o.withTransfer(new Transfer.LocalLeap(kappa, kappa, 5)), prompt)
            .commits());
    Outcome leap = run(seed, model, o.withTransfer(new Transfer.LocalLeap(kappa, 0.3f, 2)), prompt);
    assertTrue(leap.counters().forwards() <= 16);
    // On one canvas the commit set holds the threshold's.
    CanvasState s = CanvasState.start(canvas(prompt, 8), 5, Decodes.MASK, 8, false);
    Evaluation e = evaluation(seed, s);
    Set<Integer> wide = positions(new LocalLeapPolicy(leap(kappa, 0.3f, 2)).select(s, e));
    Set<Integer> narrow = positions(new ThresholdPolicy(kappa).select(s, e));
    assertTrue(wide.containsAll(narrow));
    boolean anchor = IntStream.range(5, 13).anyMatch(p -> e.confidence[p] >= kappa);
    Set<Integer> everywhere = positions(new LocalLeapPolicy(leap(kappa, 0.3f, 99)).select(s, e));
    if (anchor) {
      assertEquals(positions(new ThresholdPolicy(0.3f).select(s, e)), everywhere);
    }
  }

  private static Transfer.LocalLeap leap(float kappa, float relaxed, int radius) {
    return new Transfer.LocalLeap(kappa, relaxed, radius);
  }

  /** Invariant 16. */
  @Property(tries = 40, seed = "11")
  void factorTakesAPrefixOfTheOrder(@ForAll @IntRange(max = 1 << 20) int seed) {
    int[] prompt = Decodes.prompt(seed, 5);
    CanvasState s = CanvasState.start(canvas(prompt, 12), 5, Decodes.MASK, 12, false);
    Evaluation e = evaluation(seed, s);
    int[] ranking = Ranking.best(s, e);
    int before = 0;
    for (float f : new float[] {0, 0.1f, 0.5f, 1, 2, 4, 100}) {
      Selection got = new FactorPolicy(f).select(s, e);
      for (int i = 0; i < got.size(); i++) {
        assertEquals(ranking[i], got.position(i));
      }
      assertTrue(got.size() >= Math.max(1, before));
      before = got.size();
    }
    assertEquals(1, new FactorPolicy(0).select(s, e).size());
    assertEquals(12, before);
  }

  @Property(tries = 40, seed = "12")
  void dynamicIsTheLargerOfThresholdAndSchedule(@ForAll @IntRange(max = 1 << 20) int seed) {
    int[] prompt = Decodes.prompt(seed, 5);
    CanvasState s = CanvasState.start(canvas(prompt, 8), 5, Decodes.MASK, 8, false);
    Evaluation e = evaluation(seed, s);
    for (float tau : new float[] {0.1f, 0.3f, 0.6f, 1}) {
      long above = IntStream.range(5, 13).filter(p -> e.confidence[p] > tau).count();
      assertEquals(Math.max(2, above), new DynamicPolicy(4, tau).select(s, e).size());
    }
  }

  /** End tokens: forbidden ones never appear; late ones are committed after all others. */
  @Test
  void treatmentOfEndTokens() {
    treatmentOf(Decodes.END);
    treatmentOf(Decodes.FILL);
  }

  private static void treatmentOf(int token) {
    // A model that likes the token everywhere.
    int[] target = new int[20];
    Arrays.fill(target, token);
    for (int i = 0; i < 20; i += 3) {
      target[i] = i;
    }
    DiffusionOptions o = options(15, 1);
    int[] prompt = Arrays.copyOf(target, 5);
    Outcome forbidden =
        Decodes.run(
            new TargetModel(target, 0),
            Decodes.model(false, 0),
            o.withEnd(DiffusionOptions.End.FORBIDDEN, 0),
            prompt);
    assertTrue(Arrays.stream(forbidden.answer()).noneMatch(t -> t == token));
    Outcome last =
        Decodes.run(
            new TargetModel(target, 0),
            Decodes.model(false, 0),
            o.withEnd(DiffusionOptions.End.LAST, 0),
            prompt);
    boolean seen = false;
    for (DecodeTrace.Step s : last.steps()) {
      boolean end = s.tokens().contains(token);
      assertTrue(end || !seen, "an end token before another");
      seen |= end;
    }
    assertTrue(seen);
  }

  @Test
  void editingCorrectsAndComesToAnEnd() {
    DiffusionModel blocky = Decodes.model(false, 4);
    for (int seed = 0; seed < 20; seed++) {
      DiffusionOptions o =
          options(4, 3)
              .withCaching(new Caching.BlockCausal(false))
              .withTransfer(new Transfer.Edit(0.3f, 0.1f, 4));
      Outcome r = Decodes.run(Decodes.network(seed), blocky, o, Decodes.prompt(seed, 6));
      assertTrue(r.counters().forwards() <= 4 * (4 + 4) + 5);
      Outcome never =
          Decodes.run(
              Decodes.network(seed),
              blocky,
              o.withTransfer(new Transfer.Edit(0.3f, 2, 4)),
              Decodes.prompt(seed, 6));
      long commits = never.steps().stream().mapToLong(s -> s.offsets().size()).sum();
      assertEquals(12, commits, "an edit threshold above 1 edits nothing");
    }
  }

  private static Outcome run(int seed, DiffusionModel m, DiffusionOptions o, int[] prompt) {
    return Decodes.run(Decodes.network(seed), m, o, prompt);
  }

  static int[] canvas(int[] prompt, int masks) {
    int[] c = Arrays.copyOf(prompt, prompt.length + masks);
    Arrays.fill(c, prompt.length, c.length, Decodes.MASK);
    return c;
  }

  static Evaluation evaluation(long seed, CanvasState s) {
    return evaluation(seed, s, DiffusionOptions.reference(8, 8));
  }

  private static Evaluation evaluation(long seed, CanvasState s, DiffusionOptions o) {
    TinyCanvasModel m = Decodes.network(seed);
    DiffusionModel model = Decodes.model(false, 0);
    m.begin(1, s.length(), s.length(), s.length(), Proposer.edits(model, o, Decodes.VOCABULARY));
    Evaluator e =
        new Evaluator(
            m,
            model,
            o,
            new Proposer(m, model, o),
            new Evaluator.Scope(true, false, 0, 0),
            new Tally());
    return e.evaluate(List.of(new Evaluator.Job(s, Region.full(s, true), 0, 0))).getFirst();
  }

  private static Set<Integer> positions(Selection s) {
    Set<Integer> out = new HashSet<>();
    for (int i = 0; i < s.size(); i++) {
      out.add(s.position(i));
    }
    return out;
  }
}
