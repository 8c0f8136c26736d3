package io.fletch.sampling;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.Example;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.constraints.IntRange;

/** The invariants of specs/autoregressive.md 4 on models made of tables. */
class TokenRoutingPropertyTest {
  private static final int VOCABULARY = 23;
  private static final int TOKENS = 40;
  private static final int[] PROMPT = {3, 1, 4, 1, 5};

  private static TableCausalModel model(long seed) {
    return new TableCausalModel(VOCABULARY, 64, 3, seed);
  }

  @Provide
  Arbitrary<SamplingOptions> samplings() {
    return Arbitraries.of(
        SamplingOptions.greedy(),
        SamplingOptions.greedy().withTemperature(1).withSeed(7),
        SamplingOptions.defaults().withSeed(3),
        SamplingOptions.greedy().withTemperature(1.5f).withPenalties(1.2f, 0.1f, 0, 8));
  }

  @Provide
  Arbitrary<TokenRouter> routers() {
    float[] weights = new float[LearnedRouter.WEIGHTS];
    weights[0] = 1;
    weights[LearnedRouter.WEIGHTS - 1] = -2;
    return Arbitraries.of(TokenRouter.entropy(), TokenRouter.logU(), new LearnedRouter(weights));
  }

  private static List<Integer> alone(CausalForward model, SamplingOptions sampling) {
    AutoregressiveDecoder d =
        AutoregressiveDecoder.of(
            model,
            Sampler.of(sampling, VOCABULARY),
            new AutoregressiveOptions(TOKENS, new int[0], -1));
    return run(d);
  }

  private static AutoregressiveDecoder routed(
      CausalForward small,
      CausalForward large,
      TokenRouter router,
      double threshold,
      SamplingOptions sampling) {
    return AutoregressiveDecoder.routed(
        small,
        new TokenRouting(large, router, threshold),
        Sampler.of(sampling, VOCABULARY),
        new AutoregressiveOptions(TOKENS, new int[0], -1),
        null);
  }

  private static List<Integer> run(AutoregressiveDecoder d) {
    d.start(PROMPT, PROMPT.length);
    List<Integer> out = new ArrayList<>();
    while (d.next()) {
      out.add(d.token());
    }
    return out;
  }

  /** R1: threshold 0 is the large model, greedy and sampled. */
  @Property(tries = 40)
  void zeroIsTheLargeModel(
      @ForAll long a,
      @ForAll long b,
      @ForAll("samplings") SamplingOptions sampling,
      @ForAll("routers") TokenRouter router) {
    TableCausalModel large = model(b);
    AutoregressiveDecoder d = routed(model(a), large, router, 0, sampling);
    assertEquals(alone(model(b), sampling), run(d));
    assertEquals(TOKENS, d.routed());
  }

  /** R2: threshold infinity is the small model, and the large one is never called. */
  @Property(tries = 40)
  void infinityIsTheSmallModel(
      @ForAll long a,
      @ForAll long b,
      @ForAll("samplings") SamplingOptions sampling,
      @ForAll("routers") TokenRouter router) {
    TableCausalModel large = model(b);
    AutoregressiveDecoder d = routed(model(a), large, router, Double.POSITIVE_INFINITY, sampling);
    assertEquals(alone(model(a), sampling), run(d));
    assertEquals(0, d.routed());
    assertEquals(0, large.forwards());
  }

  /** R3: teacher-forced, a higher threshold never routes more. */
  @Property(tries = 20)
  void aHigherThresholdRoutesLess(@ForAll long a, @ForAll("routers") TokenRouter router) {
    TableCausalModel small = model(a);
    float[] logits = new float[VOCABULARY];
    int[] text = new int[50];
    for (int i = 0; i < text.length; i++) {
      text[i] = Math.floorMod(a * 31 + i * 7L, VOCABULARY);
    }
    int before = Integer.MAX_VALUE;
    for (double threshold : new double[] {0, 0.1, 0.3, 0.5, 0.9, 1.5, 2.5, 4}) {
      int count = 0;
      for (int n = 1; n < text.length; n++) {
        small.row(text, n, logits);
        count += router.score(logits, VOCABULARY, text[n]) >= threshold ? 1 : 0;
      }
      assertTrue(count <= before);
      before = count;
    }
  }

  /**
   * R4: the small model lacks only the latest token; the large one too, right after a routed one.
   */
  @Property(tries = 30)
  void cachesAreWhereTheyShouldBe(
      @ForAll long a, @ForAll long b, @ForAll("samplings") SamplingOptions sampling) {
    TableCausalModel small = model(a);
    TableCausalModel large = model(b);
    AutoregressiveDecoder d = routed(small, large, TokenRouter.entropy(), 2.5, sampling);
    d.start(PROMPT, PROMPT.length);
    float[] fresh = new float[VOCABULARY];
    float[] caught = new float[VOCABULARY];
    while (d.next()) {
      int length = d.history().length();
      assertEquals(length - 1, small.length());
      assertTrue(large.length() <= length - 1);
      if (d.isRouted()) {
        assertEquals(length - 1, large.length());
        large.logits(0, caught);
        large.row(d.history().array(), length - 1, fresh);
        assertArrayEquals(fresh, caught);
      }
    }
  }

  /** R6: the same model on both sides gives one output, whatever the threshold. */
  @Property(tries = 30)
  void twinsAgree(
      @ForAll long a,
      @ForAll @IntRange(min = 0, max = 40) int tenths,
      @ForAll("samplings") SamplingOptions sampling,
      @ForAll("routers") TokenRouter router) {
    assertEquals(
        alone(model(a), sampling),
        run(routed(model(a), model(a), router, tenths / 10.0, sampling)));
  }

  /** A large cache that holds the beginning of the prompt, or too much of it, changes nothing. */
  @Property(tries = 20)
  void aKeptPrefixChangesNothing(
      @ForAll long a, @ForAll long b, @ForAll @IntRange(min = 0, max = 5) int kept) {
    SamplingOptions sampling = SamplingOptions.greedy().withTemperature(1).withSeed(1);
    List<Integer> expected = run(routed(model(a), model(b), TokenRouter.entropy(), 2, sampling));
    TableCausalModel large = model(b);
    if (kept > 0) {
      large.append(PROMPT, 0, kept, CausalForward.Logits.NONE);
    }
    assertEquals(expected, run(routed(model(a), large, TokenRouter.entropy(), 2, sampling)));
  }

  /** Scores that a list gives, one after the other. */
  private static TokenRouter listed(double[] scores) {
    return new TokenRouter() {
      private int next;

      @Override
      public double score(float[] logits, int vocabulary, int candidate) {
        return scores[next++];
      }

      @Override
      public String name() {
        return "listed";
      }

      @Override
      public TokenRouter copy() {
        return this;
      }
    };
  }

  private static boolean[] routes(double[] scores, double threshold, int hold) {
    AutoregressiveDecoder d =
        AutoregressiveDecoder.routed(
            model(1),
            new TokenRouting(model(2), listed(scores), threshold, hold),
            Sampler.of(SamplingOptions.greedy(), VOCABULARY),
            new AutoregressiveOptions(TOKENS, new int[0], -1),
            null);
    d.start(PROMPT, PROMPT.length);
    boolean[] out = new boolean[TOKENS];
    for (int i = 0; d.next(); i++) {
      out[i] = d.isRouted();
    }
    return out;
  }

  /**
   * With a memory of scores a routed token keeps the large model until the mean of the latest is
   * below the threshold; R1 to R3 hold as without.
   */
  @Property(tries = 40)
  void aRoutedTokenHoldsOn(@ForAll long seed, @ForAll @IntRange(min = 1, max = 5) int hold) {
    double[] scores = new double[TOKENS];
    for (int i = 0; i < TOKENS; i++) {
      scores[i] = CounterRandom.uniform(seed, i, 0, 0, 0);
    }
    int before = TOKENS;
    for (double threshold : new double[] {0, 0.3, 0.5, 0.7, 0.9, Double.POSITIVE_INFINITY}) {
      boolean[] routed = routes(scores, threshold, hold);
      boolean on = false;
      int count = 0;
      for (int i = 0; i < TOKENS; i++) {
        double sum = 0;
        int n = 0;
        for (int k = i; k >= 0 && n < hold; k--, n++) {
          sum += scores[k];
        }
        on = scores[i] >= threshold || (on && sum / n >= threshold);
        assertEquals(on, routed[i], "token " + i + " threshold " + threshold);
        count += on ? 1 : 0;
      }
      assertTrue(count <= before);
      before = count;
      if (threshold == 0) {
        assertEquals(TOKENS, count);
      }
    }
    assertEquals(0, before);
    // A memory of one score is no memory.
    assertArrayEquals(routes(scores, 0.5, 0), routes(scores, 0.5, 1));
  }

  /** Of several routers all must say so, each by its own threshold. */
  @Property(tries = 40)
  void jointRoutersAllDecide(@ForAll long a, @ForAll @IntRange(min = 0, max = 22) int candidate) {
    float[] logits = new float[VOCABULARY];
    for (int i = 0; i < VOCABULARY; i++) {
      logits[i] = (float) (6 * CounterRandom.uniform(a, i, 0, 0, 0));
    }
    double entropy = TokenRouter.entropy().score(logits, VOCABULARY, candidate);
    double logU = TokenRouter.logU().score(logits, VOCABULARY, candidate);
    List<TokenRouter> both = List.of(TokenRouter.entropy(), TokenRouter.logU());
    for (double first : new double[] {0.5, 2.2, 2.8}) {
      for (double second : new double[] {1.8, 2.2, 2.28}) {
        TokenRouter joint = TokenRouter.all(both, first, second);
        boolean all = entropy >= first && logU >= second;
        assertEquals(all, joint.copy().score(logits, VOCABULARY, candidate) >= 1);
      }
    }
    assertEquals("entropy+logu", TokenRouter.all(both, 1, 1).name());
    assertThrows(IllegalArgumentException.class, () -> TokenRouter.all(both, 1));
    assertThrows(IllegalArgumentException.class, () -> TokenRouter.all(both, 1, 0));
    assertThrows(IllegalArgumentException.class, () -> TokenRouter.all(List.of()));
  }

  /** A rule that only hidden states tell is learnt by a router that reads them, and by no other. */
  @Example
  void hiddenStatesTellWhatLogitsDoNot() {
    int width = 24;
    RouterTraining training = new RouterTraining(width);
    float[] flat = new float[VOCABULARY];
    flat[3] = 2;
    List<float[]> states = new ArrayList<>();
    List<Boolean> labels = new ArrayList<>();
    for (int i = 0; i < 500; i++) {
      float[] state = new float[width];
      for (int k = 0; k < width; k++) {
        state[k] = (float) (CounterRandom.uniform(9, i, k, 0, 0) - 0.5);
      }
      boolean divergent = state[5] + state[6] > 0.2;
      training.add(flat, VOCABULARY, 3, state, divergent);
      states.add(state);
      labels.add(divergent);
    }
    LearnedRouter blind = training.fit(1);
    LearnedRouter seeing = training.fit(1, true);
    assertEquals(0, blind.hiddenWidth());
    assertEquals(width, seeing.hiddenWidth());
    LearnedRouter stored = new LearnedRouter(seeing.weights(), width);
    int right = 0;
    for (int i = 0; i < states.size(); i++) {
      double score = seeing.score(flat, VOCABULARY, 3, states.get(i));
      assertEquals(score, stored.copy().score(flat, VOCABULARY, 3, states.get(i)));
      right += score >= 0.5 == labels.get(i) ? 1 : 0;
    }
    assertTrue(right > 0.9 * states.size(), "right " + right);
    List<RouterTraining.Point> curve = training.curve(seeing);
    List<RouterTraining.Point> without = training.curve(blind);
    RouterTraining.Point half =
        curve.stream().filter(p -> p.threshold() >= 0.5).findFirst().orElseThrow();
    assertTrue(half.recall() > 0.85 && half.precision() > 0.7, half.toString());
    for (RouterTraining.Point p : without) {
      assertTrue(p.routed() == 0 || p.routed() == 1, "all alike: " + p);
    }
    assertThrows(UnsupportedOperationException.class, () -> seeing.score(flat, VOCABULARY, 3));
    assertThrows(IllegalArgumentException.class, () -> new LearnedRouter(blind.weights(), width));
    assertThrows(IllegalArgumentException.class, () -> new RouterTraining().fit(1, true));
  }

  @Example
  void theSmallerContextEnds() {
    TableCausalModel large = new TableCausalModel(VOCABULARY, 20, 3, 2);
    AutoregressiveDecoder d =
        routed(model(1), large, TokenRouter.entropy(), 0, SamplingOptions.greedy());
    assertEquals(16, run(d).size());
    assertEquals(AutoregressiveDecoder.Finish.CONTEXT, d.finish());
  }

  @Example
  void refusals() {
    SamplingOptions mirostat =
        SamplingOptions.greedy()
            .withTemperature(1)
            .withExtras(SamplerExtras.NONE.withMirostat(3, 0.1f));
    assertThrows(
        IllegalArgumentException.class,
        () -> routed(model(1), model(2), TokenRouter.entropy(), 1, mirostat));
    assertThrows(
        IllegalArgumentException.class,
        () ->
            routed(
                model(1),
                new TableCausalModel(VOCABULARY + 1, 64, 3, 2),
                TokenRouter.entropy(),
                1,
                SamplingOptions.greedy()));
    assertThrows(
        IllegalArgumentException.class,
        () -> new TokenRouting(model(1), TokenRouter.entropy(), Double.NaN));
    assertThrows(
        IllegalArgumentException.class,
        () -> new TokenRouting(model(1), TokenRouter.entropy(), 1, -1));
    assertThrows(IllegalArgumentException.class, () -> new LearnedRouter(new float[3]));
  }

  @Example
  void signals() {
    float[] even = new float[8];
    assertEquals(Math.log(8), TokenRouter.entropy().score(even, 8, 0), 1e-12);
    // Ten equal logits a: S = 10 a, -(digamma(a + 1) - digamma(10 a + 1)).
    float[] twos = new float[10];
    java.util.Arrays.fill(twos, 2);
    double digamma3 = 1.5 - 0.5772156649015329;
    double digamma21 = -0.5772156649015329;
    for (int i = 1; i <= 20; i++) {
      digamma21 += 1.0 / i;
    }
    assertEquals(digamma21 - digamma3, TokenRouter.logU().score(twos, 10, 0), 1e-9);
  }

  /** A router learns a rule that its features can express. */
  @Example
  void trainingFindsTheRule() {
    RouterTraining training = new RouterTraining();
    for (int i = 0; i < 600; i++) {
      float[] logits = new float[VOCABULARY];
      double peak = 8 * CounterRandom.uniform(5, 1, i, 0, 0);
      int token = (int) (VOCABULARY * CounterRandom.uniform(5, 2, i, 0, 0));
      logits[token] = (float) peak;
      training.add(logits, VOCABULARY, token, peak < 3 || token == 7);
    }
    LearnedRouter router = training.fit(1);
    RouterTraining.Point best =
        training.curve(router).stream()
            .filter(p -> p.recall() >= 0.95)
            .reduce((x, y) -> x.routed() <= y.routed() ? x : y)
            .orElseThrow();
    assertTrue(best.precision() > 0.9, best.toString());
    List<RouterTraining.Point> curve = training.curve(router);
    for (int k = 1; k < curve.size(); k++) {
      assertTrue(curve.get(k).routed() <= curve.get(k - 1).routed());
      assertTrue(curve.get(k).recall() <= curve.get(k - 1).recall());
    }
    assertArrayEquals(router.weights(), training.fit(1).weights(), "deterministic");
    assertThrows(IllegalArgumentException.class, () -> new RouterTraining().fit(1));
  }
}
