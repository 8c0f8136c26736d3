package io.fletch.sampling;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.sampling.Decodes.Outcome;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.Combinators;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.constraints.IntRange;
import org.junit.jupiter.api.Test;

/** Invariants of caches and of FreeDave (specs/diffusion.md 15, 11 and 17 to 24). */
class DiffusionCachePropertyTest {
  /** A model, a prompt and options without search. */
  record Setup(int seed, int promptLength, boolean shift, int grid, DiffusionOptions options) {
    DiffusionModel model() {
      return Decodes.model(shift, grid);
    }

    int[] prompt() {
      return Decodes.prompt(seed, promptLength);
    }

    Outcome run(DiffusionOptions o) {
      return Decodes.run(Decodes.network(seed), model(), o, prompt());
    }
  }

  static Arbitrary<Transfer> transfers(int block, int blocks) {
    return Arbitraries.of(
        new Transfer.Schedule(0, Transfer.Order.LOW_CONFIDENCE),
        new Transfer.Schedule(blocks * ((block + 1) / 2), Transfer.Order.LOW_CONFIDENCE),
        new Transfer.Schedule(0, Transfer.Order.RANDOM),
        new Transfer.Schedule(0, Transfer.Order.SEQUENTIAL),
        new Transfer.Dream(0, Transfer.DreamAlgorithm.ENTROPY, 0, 1e-3f),
        new Transfer.Dream(0, Transfer.DreamAlgorithm.TOPK_MARGIN, 0.3f, 1e-3f),
        new Transfer.Dream(0, Transfer.DreamAlgorithm.ORIGIN, 0, 1e-3f),
        new Transfer.Threshold(0.5f),
        new Transfer.Threshold(0.8f),
        new Transfer.Factor(1.2f),
        new Transfer.LocalLeap(0.6f, 0.4f, 2),
        new Transfer.Dynamic(0, 0.6f));
  }

  @Provide
  Arbitrary<Setup> bidirectional() {
    return setups(false);
  }

  @Provide
  Arbitrary<Setup> any() {
    return Arbitraries.oneOf(setups(false), setups(true));
  }

  private static Arbitrary<Setup> setups(boolean blockCausal) {
    Arbitrary<Integer> block = Arbitraries.integers().between(1, 7);
    Arbitrary<Integer> blocks = Arbitraries.integers().between(1, 3);
    return Combinators.combine(block, blocks)
        .as((b, k) -> new int[] {b, k})
        .flatMap(bk -> {
          Arbitrary<Caching> caching =
              blockCausal
                  ? Arbitraries.of(
                      new Caching.None(),
                      new Caching.BlockCausal(false),
                      new Caching.BlockCausal(true))
                  : Arbitraries.of(
                      new Caching.None(),
                      new Caching.Prefix(),
                      new Caching.Dual(),
                      new Caching.FreeCache(0, 0),
                      new Caching.FreeCache(0, 1),
                      new Caching.FreeCache(1, 0),
                      new Caching.FreeCache(3, 0),
                      new Caching.FreeCache(4, 1));
          return Combinators.combine(
                  Arbitraries.integers().between(0, 1 << 24),
                  Arbitraries.integers().between(0, 9),
                  Arbitraries.of(true, false),
                  transfers(bk[0], bk[1]),
                  caching,
                  Arbitraries.of(0f, 0f, 0.4f, 1f))
              .as((seed, p, shift, transfer, c, temperature) ->
                  new Setup(
                      seed,
                      p,
                      shift,
                      blockCausal ? bk[0] : 0,
                      DiffusionOptions.reference(bk[0] * bk[1], bk[0])
                          .withTransfer(transfer)
                          .withCaching(c)
                          .withTemperature(temperature)
                          .withSeed(seed)));
        });
  }

  /** Invariant 11: every block length, every prompt length modulo it, fused or not. */
  @Property(tries = 60, seed = "1")
  void blockCausalCacheIsExact(
      @ForAll @IntRange(max = 1 << 20) int seed,
      @ForAll @IntRange(min = 1, max = 6) int block,
      @ForAll @IntRange(min = 0, max = 13) int promptLength,
      @ForAll @IntRange(min = 1, max = 3) int blocks,
      @ForAll boolean shift) {
    Setup s =
        new Setup(
            seed, promptLength, shift, block, DiffusionOptions.reference(block * blocks, block));
    Outcome none = s.run(s.options());
    Outcome cached = s.run(s.options().withCaching(new Caching.BlockCausal(false)));
    Outcome fused = s.run(s.options().withCaching(new Caching.BlockCausal(true)));
    assertEquals(none.commits(), cached.commits());
    assertEquals(none.commits(), fused.commits());
    assertEquals(none.counters().forwards(), fused.counters().forwards());
    int start = promptLength / block * block;
    int active = (promptLength + block * blocks - start + block - 1) / block;
    int stores = active - 1 + (start > 0 ? 1 : 0);
    assertEquals(none.counters().forwards() + stores, cached.counters().forwards());
  }

  /** Invariant 17. */
  @Property(tries = 60, seed = "2")
  void refreshingEveryStepIsNoCache(@ForAll("bidirectional") Setup s) {
    Outcome none = s.run(s.options().withCaching(new Caching.None()));
    for (int delay = 0; delay < 2; delay++) {
      Outcome r = s.run(s.options().withCaching(new Caching.FreeCache(1, delay)));
      assertEquals(none.commits(), r.commits(), "tokens and confidences");
      assertEquals(none.counters().rows(), r.counters().rows());
    }
    for (int refresh : new int[] {0, 2, 5}) {
      Outcome r = s.run(s.options().withCaching(new Caching.FreeCache(refresh, 0)));
      assertEquals(none.commits().getFirst(), r.commits().getFirst(), "step 0 of R=" + refresh);
    }
  }

  /** Invariant 18, on the windows that were run. */
  @Property(tries = 60, seed = "3")
  void frozenRowsAreNotTouched(
      @ForAll @IntRange(max = 1 << 20) int seed,
      @ForAll @IntRange(min = 1, max = 6) int block,
      @ForAll boolean shift,
      @ForAll boolean threshold) {
    TinyCanvasModel m = Decodes.network(seed);
    int[] prompt = Decodes.prompt(seed, 6);
    int lead = shift ? 1 : 0;
    DiffusionOptions o =
        DiffusionOptions.reference(3 * block, block)
            .withCaching(new Caching.FreeCache(0, 0))
            .withTransfer(
                threshold
                    ? new Transfer.Threshold(0.5f)
                    : new Transfer.Schedule(0, Transfer.Order.LOW_CONFIDENCE));
    DiffusionDecoder d = DiffusionDecoder.of(m, Decodes.model(shift, 0), o);
    d.start(prompt);
    int length = 6 + 3 * block;
    int clean = 0;
    float[] frozen = new float[0];
    boolean first = true;
    int committed = 0;
    while (d.next()) {
      CanvasWindow w = m.runs.getLast().getFirst();
      int from = w.position();
      assertEquals(length - from, w.rows(), "rows run are L - clean");
      assertTrue(from >= clean, "clean never decreases");
      // Dream's clean is one lower: row e-1 predicts position e.
      assertEquals(first ? 0 : 6 + committed / block * block - lead, from);
      assertArrayEquals(frozen, m.frozen(clean), "frozen bytes changed");
      clean = Math.max(clean, from);
      frozen = m.frozen(clean);
      first = false;
      committed = committed(d);
    }
  }

  private static int committed(DiffusionDecoder d) {
    return (int) Arrays.stream(d.answer()).filter(t -> t != Decodes.MASK).count();
  }

  /** Invariant 19, second half. */
  @Property(tries = 60, seed = "4")
  void withoutAttentionEveryCacheIsExact(@ForAll("bidirectional") Setup s) {
    List<List<String>> all = new ArrayList<>();
    for (Caching c : DiffusionSchedulePropertyTest.caches()) {
      all.add(
          Decodes.run(
                  new TinyCanvasModel(Decodes.VOCABULARY, Decodes.CONTEXT, s.seed(), false),
                  s.model(),
                  s.options().withCaching(c),
                  s.prompt())
              .commits());
    }
    all.forEach(c -> assertEquals(all.getFirst(), c));
  }

  /** Invariant 20: the first step of each block is that of no cache on the same canvas. */
  @Property(tries = 40, seed = "5")
  void prefixAndDualStartBlocksExactly(
      @ForAll @IntRange(max = 1 << 20) int seed, @ForAll boolean dual, @ForAll boolean shift) {
    int[] prompt = Decodes.prompt(seed, 5);
    DiffusionOptions o =
        DiffusionOptions.reference(12, 4)
            .withCaching(dual ? new Caching.Dual() : new Caching.Prefix());
    DiffusionDecoder d = DiffusionDecoder.of(Decodes.network(seed), Decodes.model(shift, 0), o);
    d.start(prompt);
    for (int step = 0; step < 12; step++) {
      int[] before = d.answer();
      assertTrue(d.next());
      if (step % 4 == 0) {
        DiffusionDecoder fresh =
            DiffusionDecoder.of(
                Decodes.network(seed), Decodes.model(shift, 0), o.withCaching(new Caching.None()));
        fresh.start(prompt, before);
        fresh.next();
        assertEquals(fresh.latest().tokens(), d.latest().tokens());
        assertEquals(fresh.latest().offsets(), d.latest().offsets());
        assertEquals(fresh.latest().confidences(), d.latest().confidences());
      }
    }
  }

  @Test
  void rowsPerForwardAreThoseOfTheCostModel() {
    int[] prompt = Decodes.prompt(1, 8);
    DiffusionOptions o = DiffusionOptions.reference(16, 4);
    assertEquals(16 * 24, rows(o, new Caching.None(), prompt));
    assertEquals(4 * 24 + 3 * (16 + 12 + 8 + 4), rows(o, new Caching.Prefix(), prompt));
    assertEquals(4 * 24 + 12 * 4, rows(o, new Caching.Dual(), prompt));
    assertEquals(24 + 3 * 16 + 4 * (12 + 8 + 4), rows(o, new Caching.FreeCache(0, 0), prompt));
  }

  private static long rows(DiffusionOptions o, Caching c, int[] prompt) {
    return Decodes.run(Decodes.network(1), Decodes.model(false, 0), o.withCaching(c), prompt)
        .counters()
        .rows();
  }

  /** Invariants 21 and 22. */
  @Property(tries = 250, seed = "6")
  void freeDaveIsTheStaticChain(
      @ForAll("any") Setup s,
      @ForAll @IntRange(min = 1, max = 9) int depth,
      @ForAll boolean sequential,
      @ForAll @IntRange(max = 1) int limited) {
    Outcome plain = s.run(s.options());
    Outcome dave =
        s.run(s.options().withSearch(new Search.FreeDave(depth, 40 * limited, sequential, false)));
    assertEquals(plain.commits(), dave.commits());
    if (!sequential) {
      assertTrue(dave.counters().forwards() <= plain.counters().forwards());
    }
    if (depth == 1) {
      assertEquals(plain.counters().forwards(), dave.counters().forwards());
      assertEquals(plain.counters().rows(), dave.counters().rows());
    }
    assertTrue(dave.counters().accepted() <= dave.counters().drafted());
    long answered =
        dave.counters().forwards()
            + dave.counters().accepted()
            - (sequential ? dave.counters().drafted() : 0);
    assertEquals(plain.counters().forwards(), answered, "each state is evaluated once");
  }

  @Test
  void freeDaveSavesForwards() {
    long plain = 0;
    long dave = 0;
    for (int seed = 0; seed < 20; seed++) {
      Setup s = new Setup(seed, 6, false, 0, DiffusionOptions.reference(16, 8));
      plain += s.run(s.options()).counters().forwards();
      dave +=
          s.run(s.options().withSearch(new Search.FreeDave(4, 0, false, false)))
              .counters()
              .forwards();
    }
    assertEquals(20 * 16, plain);
    assertTrue(dave < 0.75 * plain, "forwards with drafts: " + dave + " of " + plain);
  }

  /** A canvas behind a refresh could never be used, so none is run. */
  @Test
  void draftsEndBeforeARefresh() {
    Setup s =
        new Setup(
            4,
            6,
            false,
            0,
            DiffusionOptions.reference(16, 8).withCaching(new Caching.FreeCache(2, 0)));
    Search.FreeDave dave = new Search.FreeDave(4, 0, false, false);
    assertEquals(0, s.run(s.options().withSearch(dave)).counters().drafted());
    DiffusionOptions rarer = s.options().withCaching(new Caching.FreeCache(4, 0));
    assertTrue(s.run(rarer.withSearch(dave)).counters().drafted() > 0);
  }

  /** Adaptive drafting: the clock decides what it costs, never what comes out. */
  @Property(tries = 30, seed = "7")
  void adaptiveDraftingIsLossless(
      @ForAll @IntRange(max = 1 << 20) int seed, @ForAll boolean draftsAreSlow) {
    Setup s = new Setup(seed, 6, false, 0, DiffusionOptions.reference(20, 10));
    Outcome plain = s.run(s.options());
    TinyCanvasModel m = Decodes.network(seed);
    DiffusionModel model = s.model();
    DiffusionOptions o = s.options();
    int[] canvas = DiffusionSchedulePropertyTest.canvas(s.prompt(), 20);
    CanvasState state = CanvasState.start(canvas, 6, Decodes.MASK, 10, false);
    m.begin(1, 26 * 4, 26 * 4, 80, Proposer.edits(model, o, Decodes.VOCABULARY));
    Tally tally = new Tally();
    Evaluator evaluator =
        new Evaluator(
            m, model, o, new Proposer(m, model, o), new Evaluator.Scope(false, false, 0, 0), tally);
    long[] now = {0};
    // Time goes by with the rows, much faster or slower than linearly.
    java.util.function.LongSupplier clock =
        () -> {
          long rows = m.runs.isEmpty() ? 0 : m.runs.getLast().size();
          now[0] += 1000 + (draftsAreSlow ? 100_000 * (rows - 1) : 0);
          return now[0];
        };
    ChainRun run =
        new ChainRun(
            state,
            new DraftingSource(
                evaluator,
                new NoCache(),
                TransferPolicy.of(o),
                new Search.FreeDave(4, 0, false, true),
                tally,
                clock),
            TransferPolicy.of(o),
            List.of(),
            null,
            model,
            new Steps(),
            tally);
    while (run.step() != null) {}
    assertArrayEquals(plain.answer(), Arrays.copyOfRange(state.tokens, 6, 26));
    assertTrue(tally.forwards <= 20);
    if (draftsAreSlow) {
      assertTrue(tally.drafted <= 12, "drafts though they do not pay: " + tally.drafted);
    } else {
      assertTrue(tally.drafted > 12, "no drafts though they are free: " + tally.drafted);
    }
  }

  /** Invariant 24. */
  @Property(tries = 120, seed = "8")
  void freeDaveExitsWhereTheStaticChainDoes(
      @ForAll("any") Setup s,
      @ForAll @IntRange(min = 2, max = 6) int depth,
      @ForAll boolean guard,
      @ForAll boolean prophet,
      @ForAll @IntRange(min = 0, max = 3) int hi) {
    List<Exit> exits = new ArrayList<>();
    exits.add(new Exit.Sched(Exit.Shape.EXPONENTIAL, hi / 2f, 0, 4, false, guard, 0, 0, 0));
    if (prophet) {
      exits.add(new Exit.Prophet(0, -1, 0.8f, 0.5f, 0.2f));
    }
    exits.add(new Exit.EndFill(false));
    DiffusionOptions o = s.options().withExits(exits);
    Outcome plain = s.run(o);
    Outcome dave = s.run(o.withSearch(new Search.FreeDave(depth, 0, false, false)));
    assertEquals(plain.commits(), dave.commits());
    assertEquals(plain.counters().exitStep(), dave.counters().exitStep());
    assertTrue(dave.counters().forwards() <= plain.counters().forwards());
  }

  /** Guidance runs twice the rows under every cache that allows it. */
  @Property(tries = 40, seed = "9")
  void guidanceComposesWithCachesAndDrafts(@ForAll("any") Setup s) {
    if (s.options().caching() instanceof Caching.FreeCache) {
      return;
    }
    Outcome one = s.run(s.options());
    Outcome plain = s.run(s.options().withGuidance(1));
    assertTrue(plain.counters().rows() >= 2 * plain.counters().forwards());
    Outcome dave =
        s.run(s.options().withGuidance(1).withSearch(new Search.FreeDave(3, 0, false, false)));
    assertEquals(plain.commits(), dave.commits());
    assertEquals(one.answer().length, plain.answer().length);
  }
}
