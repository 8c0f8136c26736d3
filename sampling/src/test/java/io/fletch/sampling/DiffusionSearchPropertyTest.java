package io.fletch.sampling;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.sampling.Decodes.Outcome;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;
import org.junit.jupiter.api.Test;

/** Invariants of exits, guided diffusion, SOAR and NAP (specs/diffusion.md 15, 25 to 31). */
class DiffusionSearchPropertyTest {
  private static final DiffusionModel MODEL = Decodes.model(false, 0);

  private static DiffusionOptions options(int block, int blocks) {
    return DiffusionOptions.reference(block * blocks, block);
  }

  private static Outcome run(long seed, DiffusionOptions o) {
    return Decodes.run(Decodes.network(seed), MODEL, o, Decodes.prompt(seed, 5));
  }

  // ------------------------------------------------------------------------------------- exits

  /** Invariant 25. */
  @Property(tries = 50, seed = "1")
  void thresholdsOfExits(
      @ForAll @IntRange(max = 1 << 20) int seed, @ForAll boolean prophet, @ForAll boolean guard) {
    DiffusionOptions o = options(6, 3);
    Outcome base = run(seed, o);
    float inf = Float.POSITIVE_INFINITY;
    int before = -1;
    for (float tau : new float[] {0, 0.2f, 0.4f, 0.7f, 1, 1.5f, 3, inf}) {
      Exit exit =
          prophet
              ? new Exit.Prophet(0, -1, tau, tau, tau)
              : new Exit.Sched(Exit.Shape.LINEAR, tau, tau, 0, false, guard, 0, 0, 0);
      Outcome r = run(seed, o.withExit(exit));
      int at = r.counters().exitStep() < 0 ? Integer.MAX_VALUE : r.counters().exitStep();
      assertTrue(at >= before, "a higher threshold exits earlier");
      before = at;
      int same = Math.min(at, base.steps().size());
      assertEquals(base.commits().subList(0, same), r.commits().subList(0, same));
      assertEquals(Math.min(18, at == Integer.MAX_VALUE ? 18 : at + 1), r.counters().forwards());
      if (tau == 0 && (prophet || !guard)) {
        assertEquals(0, at, "a threshold of zero exits at the first test");
      }
      if (guard && !prophet) {
        assertTrue(at > 0, "invariant 27: the guard never exits at step 0");
      }
    }
    assertEquals(Integer.MAX_VALUE, before);
    assertEquals(base.commits(), run(seed, o.withExit(exit(inf))).commits());
  }

  private static Exit exit(float tau) {
    return new Exit.Sched(Exit.Shape.COSINE, tau, tau, 0, false, false, 0, 0, 0);
  }

  /** Invariant 26. */
  @Property(tries = 50, seed = "2")
  void schedThresholdsFall(
      @ForAll @IntRange(min = 0, max = 100) int hi10,
      @ForAll @IntRange(min = 0, max = 100) int lo10,
      @ForAll @IntRange(max = 16) int rate) {
    float hi = Math.max(hi10, lo10) / 10f;
    float lo = Math.min(hi10, lo10) / 10f;
    for (Exit.Shape shape : Exit.Shape.values()) {
      Exit.Sched s = new Exit.Sched(shape, hi, lo, rate, false, true, 0, 0, 0);
      assertEquals(hi, s.threshold(0), 1e-6);
      assertEquals(
          shape == Exit.Shape.EXPONENTIAL ? lo + (hi - lo) * Math.exp(-rate) : lo,
          s.threshold(1),
          1e-6);
      double before = Double.POSITIVE_INFINITY;
      for (double p = 0; p <= 1; p += 0.05) {
        double tau = s.threshold(p);
        assertTrue(tau <= before + 1e-12);
        before = tau;
      }
    }
  }

  /** Invariant 27. */
  @Property(tries = 40, seed = "3")
  void guardOnlyDelaysAndAnEmptyRegionNeverExits(@ForAll @IntRange(max = 1 << 20) int seed) {
    DiffusionOptions o = options(6, 3);
    for (float tau : new float[] {0.2f, 0.6f, 1.2f}) {
      Outcome off =
          run(
              seed,
              o.withExit(new Exit.Sched(Exit.Shape.LINEAR, tau, tau, 0, false, false, 0, 0, 0)));
      Outcome on =
          run(
              seed,
              o.withExit(new Exit.Sched(Exit.Shape.LINEAR, tau, tau, 0, false, true, 0, 0, 0)));
      int offAt = off.counters().exitStep() < 0 ? 99 : off.counters().exitStep();
      int onAt = on.counters().exitStep() < 0 ? 99 : on.counters().exitStep();
      assertTrue(offAt <= onAt);
    }
    assertEquals(
        run(seed, o).commits(), run(seed, o.withExit(new Exit.Prophet(2, 0, 0, 0, 0))).commits());
  }

  @Test
  void prophetStagesFollowProgress() {
    Progress progress = new Progress(100, true);
    ProphetExit exit = new ProphetExit(Exit.Prophet.over(0, 4), progress, 0, 4);
    int[] canvas = new int[4];
    Arrays.fill(canvas, Decodes.MASK);
    CanvasState s = CanvasState.start(canvas, 0, Decodes.MASK, 4, false);
    Evaluation e = new Evaluation(4, 0, 0);
    Arrays.fill(e.argmax, 1);
    int[][] at = {{0, 75}, {31, 75}, {32, 50}, {65, 50}, {66, 25}, {99, 25}};
    for (int[] a : at) {
      s.step = a[0];
      Arrays.fill(e.gap, a[1] / 10f);
      assertTrue(exit.fires(s, e, 0, 4), "step " + a[0]);
      Arrays.fill(e.gap, a[1] / 10f - 0.01f);
      assertFalse(exit.fires(s, e, 0, 4), "step " + a[0]);
    }
  }

  /** Invariant 28: a text whose end is followed by nothing but end tokens. */
  @Property(tries = 30, seed = "4")
  void endFillLosesNothing(@ForAll @IntRange(min = 5, max = 28) int end, @ForAll boolean freeDave) {
    int[] target = Decodes.prompt(end, 29);
    Arrays.fill(target, end, 29, Decodes.END);
    int[] prompt = Arrays.copyOf(target, 5);
    DiffusionOptions o = options(4, 6);
    if (freeDave) {
      o = o.withSearch(new Search.FreeDave(3, 0, false, false));
    }
    Outcome full = Decodes.run(new TargetModel(target, 0), MODEL, o, prompt);
    for (boolean whole : new boolean[] {false, true}) {
      Outcome filled =
          Decodes.run(
              new TargetModel(target, 0), MODEL, o.withExit(new Exit.EndFill(whole)), prompt);
      assertArrayEquals(upToEnd(full.answer()), upToEnd(filled.answer()));
      assertTrue(filled.counters().forwards() <= full.counters().forwards());
      if (end < 25 && !whole) {
        assertTrue(filled.counters().filled() > 0);
      }
    }
  }

  private static int[] upToEnd(int[] answer) {
    int n = 0;
    while (n < answer.length && answer[n] != Decodes.END) {
      n++;
    }
    return Arrays.copyOf(answer, n);
  }

  @Test
  void exitsOfBlockCausalModelsFillTheirBlockOnly() {
    DiffusionModel m = Decodes.model(false, 6);
    DiffusionOptions o =
        options(6, 3)
            .withCaching(new Caching.BlockCausal(true))
            .withExit(new Exit.Sched(Exit.Shape.LINEAR, 0, 0, 0, false, false, 0, 0, 0));
    Outcome r = Decodes.run(Decodes.network(3), m, o, Decodes.prompt(3, 6));
    assertEquals(3, r.counters().forwards(), "one forward, and exit, per block");
    assertEquals(18, r.counters().filled());
  }

  // ------------------------------------------------------------------------------------ guided

  private static Search.Guided guided(Search.GuideRule rule, int chunk) {
    return new Search.Guided(rule, 3, 0.2f, chunk);
  }

  /** A guide that is sure of one text, or of nothing the diffusion model says. */
  private static CausalForward guide(int[] text, boolean agrees) {
    return new CausalForward() {
      private int length;
      private int rows;
      private int from;
      private long forwards;

      @Override
      public int vocabulary() {
        return Decodes.VOCABULARY;
      }

      @Override
      public int capacity() {
        return 64;
      }

      @Override
      public int length() {
        return length;
      }

      @Override
      public void append(int[] tokens, int offset, int count, Logits wanted) {
        from = length;
        length += count;
        rows = wanted == Logits.ALL ? count : wanted == Logits.LAST ? 1 : 0;
        from = length - rows;
        forwards++;
      }

      @Override
      public void truncate(int newLength) {
        assertTrue(newLength <= length);
        length = newLength;
      }

      @Override
      public int logitRows() {
        return rows;
      }

      @Override
      public void logits(int row, float[] target) {
        Arrays.fill(target, 0);
        int next = from + row + 1;
        int said = next < text.length ? text[next] : 0;
        target[agrees ? said : (said + 1) % 30] = 9;
      }

      @Override
      public int argmax(int row) {
        float[] l = new float[Decodes.VOCABULARY];
        logits(row, l);
        int best = 0;
        for (int i = 0; i < l.length; i++) {
          best = l[i] > l[best] ? i : best;
        }
        return best;
      }

      @Override
      public void statistics(int row, RowStatistics into) {
        float[] l = new float[Decodes.VOCABULARY];
        logits(row, l);
        into.set(l, 0, l.length);
      }

      @Override
      public long forwards() {
        return forwards;
      }

      @Override
      public long rows() {
        return 0;
      }
    };
  }

  /** Invariant 29, its two ends. */
  @Property(tries = 30, seed = "5")
  void guideThatAcceptsAllOrNothing(
      @ForAll @IntRange(max = 1 << 20) int seed,
      @ForAll Search.GuideRule rule,
      @ForAll @IntRange(min = 1, max = 9) int chunk,
      @ForAll boolean freeCache) {
    int[] text = Decodes.prompt(seed, 21);
    int[] prompt = Arrays.copyOf(text, 5);
    DiffusionOptions o = options(8, 2).withSearch(guided(rule, chunk));
    if (freeCache) {
      o = o.withCaching(new Caching.FreeCache(0, 0));
    }
    DiffusionDecoder all =
        DiffusionDecoder.of(new TargetModel(text, 0), MODEL, o, guide(text, true));
    Outcome r = Decodes.run(all, o, prompt);
    assertEquals(1, r.counters().forwards());
    assertArrayEquals(Arrays.copyOfRange(text, 5, 21), r.answer());

    Search.Guided strict = new Search.Guided(rule, 1, 0.99f, chunk);
    DiffusionOptions none = o.withSearch(strict);
    DiffusionDecoder nothing =
        DiffusionDecoder.of(new TargetModel(text, 0), MODEL, none, guide(text, false));
    Outcome n = Decodes.run(nothing, none, prompt);
    assertEquals(16, n.counters().forwards());
    assertEquals(0, n.counters().accepted());
    assertArrayEquals(Arrays.copyOfRange(text, 5, 21), n.answer());

    for (DecodeTrace.Step s : n.steps()) {
      assertTrue(s.leftmost());
      assertEquals(1, s.offsets().size());
    }
  }

  /** Invariant 29, its rest, between a network and a table guide. */
  @Property(tries = 60, seed = "6")
  void guidedCommitsOnlyWhatTheModelProposes(
      @ForAll @IntRange(max = 1 << 20) int seed,
      @ForAll @IntRange(min = 1, max = 8) int top,
      @ForAll @IntRange(min = 1, max = 6) int chunk,
      @ForAll @IntRange(max = 4) int cacheIndex,
      @ForAll boolean shift) {
    Caching cache =
        List.of(
                new Caching.None(),
                new Caching.Prefix(),
                new Caching.FreeCache(0, 0),
                new Caching.FreeCache(0, 1),
                new Caching.FreeCache(2, 0))
            .get(cacheIndex);
    DiffusionOptions o =
        options(5, 3)
            .withCaching(cache)
            .withSearch(new Search.Guided(Search.GuideRule.TOP, top, 0, chunk));
    TableCausalModel guide = new TableCausalModel(Decodes.VOCABULARY, 64, 2, seed);
    int[] prompt = Decodes.prompt(seed, 6);
    TinyCanvasModel network = Decodes.network(seed);
    DiffusionModel model = Decodes.model(shift, 0);
    DiffusionDecoder d = DiffusionDecoder.of(network, model, o, guide);
    d.start(prompt);
    int committed = 0;
    int forwards = 0;
    while (d.next()) {
      forwards++;
      DecodeTrace.Step s = d.latest();
      if (s.kind() != DecodeTrace.Kind.COMMIT) {
        continue;
      }
      for (int i = 0; i < s.offsets().size(); i++) {
        assertEquals(committed + i, s.offsets().get(i), "the masks stay a suffix");
      }
      committed += s.offsets().size();
      assertEquals(6 + committed - 1, guide.length(), "the guide's cache");
      assertArrayEquals(
          Arrays.copyOf(d.canvas(), guide.length()), guide.sequence(), "the guide's tokens");
      if (cache instanceof Caching.None) {
        // Every token is the model's most likely one on the canvas before the step.
        DiffusionDecoder check =
            DiffusionDecoder.of(
                Decodes.network(seed),
                model,
                options(15, 1).withTransfer(new Transfer.Threshold(0)));
        int[] before = d.answer();
        Arrays.fill(before, s.offsets().getFirst(), 15, Decodes.MASK);
        check.start(prompt, before);
        check.next();
        for (int i = 0; i < s.offsets().size(); i++) {
          int at = check.latest().offsets().indexOf(s.offsets().get(i));
          assertEquals(check.latest().tokens().get(at), s.tokens().get(i));
        }
      }
    }
    assertTrue(d.counters().forwards() <= 15);
    assertTrue(forwards <= 16);
    assertTrue(Arrays.stream(d.answer()).noneMatch(t -> t == Decodes.MASK));
  }

  @Test
  void guidedRefusesWhatItCannotDo() {
    DiffusionOptions o = options(4, 2).withSearch(guided(Search.GuideRule.TOP, 4));
    assertThrows(
        IllegalArgumentException.class,
        () -> DiffusionDecoder.of(Decodes.network(1), MODEL, o),
        "no guide");
    IllegalArgumentException x =
        assertThrows(
            IllegalArgumentException.class,
            () ->
                DiffusionDecoder.of(
                    Decodes.network(1), MODEL, o, new TableCausalModel(20, 64, 2, 1)));
    assertTrue(x.getMessage().contains("vocabulary"), x.getMessage());
    DiffusionDecoder d =
        DiffusionDecoder.of(
            Decodes.network(1), MODEL, o, new TableCausalModel(Decodes.VOCABULARY, 64, 2, 1));
    int[] holes = new int[8];
    Arrays.fill(holes, Decodes.MASK);
    holes[5] = 3;
    assertThrows(IllegalArgumentException.class, () -> d.start(new int[] {1}, holes));
    assertThrows(IllegalArgumentException.class, () -> d.start(new int[0]));
  }

  // -------------------------------------------------------------------------------------- SOAR

  /** Invariant 30: one canvas. */
  @Property(tries = 40, seed = "7")
  void soarWithOneCanvas(
      @ForAll @IntRange(max = 1 << 20) int seed, @ForAll @IntRange(max = 5) int cacheIndex) {
    Caching cache = DiffusionSchedulePropertyTest.caches().get(cacheIndex);
    DiffusionOptions o = options(8, 2).withCaching(cache);
    Outcome greedy = run(seed, o);
    Outcome one =
        run(seed, o.withSearch(new Search.Soar(1, Float.POSITIVE_INFINITY, 1, 5, 1, false)));
    assertEquals(greedy.commits(), one.commits());
    Outcome threshold = run(seed, o.withTransfer(new Transfer.Threshold(0.5f)));
    Outcome capped = run(seed, o.withSearch(new Search.Soar(1, 0.5f, 1, 99, 1, false)));
    assertEquals(threshold.commits(), capped.commits());
    Outcome five = run(seed, o.withSearch(new Search.Soar(1, 0.5f, 1, 3, 1, false)));
    assertTrue(five.steps().stream().allMatch(s -> s.offsets().size() <= 3));
  }

  /** Invariant 30: the beam. */
  @Property(tries = 80, seed = "8")
  void soarBeams(
      @ForAll @IntRange(max = 1 << 20) int seed,
      @ForAll @IntRange(min = 2, max = 4) int beams,
      @ForAll @IntRange(min = 1, max = 3) int collapse,
      @ForAll boolean mean,
      @ForAll boolean shift,
      @ForAll @IntRange(max = 5) int cacheIndex) {
    DiffusionOptions o =
        options(5, 3)
            .withCaching(DiffusionSchedulePropertyTest.caches().get(cacheIndex))
            .withSearch(new Search.Soar(beams, 0.6f, 2, 4, collapse, mean));
    DiffusionDecoder d = DiffusionDecoder.of(Decodes.network(seed), Decodes.model(shift, 0), o);
    int[] prompt = Decodes.prompt(seed, 5);
    d.start(prompt);
    SoarRun run = (SoarRun) d.current();
    int[] reported = new int[15];
    Arrays.fill(reported, Decodes.MASK);
    while (d.next()) {
      Set<String> distinct = new HashSet<>();
      run.canvases().forEach(c -> distinct.add(Arrays.toString(c.tokens)));
      assertEquals(run.canvases().size(), distinct.size(), "two equal canvases");
      assertTrue(run.canvases().size() <= beams);
      for (int i = 0; i < d.latest().offsets().size(); i++) {
        reported[d.latest().offsets().get(i)] = d.latest().tokens().get(i);
      }
    }
    assertArrayEquals(d.answer(), reported, "what was reported is the answer");
    double score = 0;
    int tokens = 0;
    int[] replay = new int[15];
    for (DecodeTrace.Step s : d.trace().steps()) {
      for (int i = 0; i < s.offsets().size(); i++) {
        score += s.confidences().get(i);
        replay[s.offsets().get(i)] = s.tokens().get(i);
        tokens++;
      }
    }
    assertEquals(15, tokens);
    assertArrayEquals(d.answer(), replay);
    assertEquals(mean ? score / 15 : score, run.score(), 1e-9, "score from the trace");
    assertEquals(15, d.counters().committed());
  }

  /** A canvas that commits enough at once is the only one from then on. */
  @Test
  void soarCollapsesToASureCanvas() {
    int[] met = new int[5];
    for (int seed = 0; seed < 60; seed++) {
      for (int collapse = 2; collapse <= 4; collapse++) {
        DiffusionOptions o =
            options(5, 3).withSearch(new Search.Soar(3, 0.5f, 2, 4, collapse, false));
        DiffusionDecoder d = DiffusionDecoder.of(Decodes.network(seed), MODEL, o);
        d.start(Decodes.prompt(seed, 5));
        SoarRun run = (SoarRun) d.current();
        while (d.next() && run.state().masks > 0) {
          int together = run.history().getLast().offsets().size();
          if (together >= collapse) {
            assertEquals(1, run.canvases().size(), together + " of " + collapse);
            met[collapse] += together == collapse ? 1 : 0;
          }
        }
      }
    }
    assertTrue(met[2] > 0 && met[3] > 0, Arrays.toString(met));
  }

  /** What an exit fills is not counted as committed. */
  @Test
  void exitsOfSoarAreCounted() {
    int filled = 0;
    for (int seed = 0; seed < 20; seed++) {
      DiffusionOptions o =
          options(5, 3).withExit(exit(0.5f)).withSearch(new Search.Soar(2, 0.6f, 2, 4, 3, false));
      Outcome r = run(seed, o);
      int exits =
          r.steps().stream()
              .filter(s -> s.kind() == DecodeTrace.Kind.EXIT)
              .mapToInt(s -> s.offsets().size())
              .sum();
      assertEquals(exits, r.counters().filled());
      assertEquals(15, r.counters().filled() + r.counters().committed());
      filled += exits;
    }
    assertTrue(filled > 0, "an exit");
  }

  @Property(tries = 30, seed = "9")
  void soarOnBlockCausalModelsIsExact(
      @ForAll @IntRange(max = 1 << 20) int seed, @ForAll boolean fused) {
    // Waiting at block ends is all that a cache may change, and with one block there is none.
    DiffusionModel m = Decodes.model(false, 8);
    DiffusionOptions o = options(8, 1).withSearch(new Search.Soar(3, 0.6f, 1, 5, 1, false));
    int[] prompt = Decodes.prompt(seed, 8);
    Outcome none = Decodes.run(Decodes.network(seed), m, o, prompt);
    Outcome cached =
        Decodes.run(
            Decodes.network(seed), m, o.withCaching(new Caching.BlockCausal(fused)), prompt);
    assertEquals(none.commits(), cached.commits());
  }

  // --------------------------------------------------------------------------------------- NAP

  private static Search.Nap nap(int paths, int length, int summary, int steps) {
    List<List<Integer>> headers = new ArrayList<>();
    for (int k = 0; k < paths; k++) {
      headers.add(List.of(20 + k, 30));
    }
    return new Search.Nap(headers, List.of(31), length, summary, steps, 0.18f);
  }

  /** Invariant 31, first part. */
  @Property(tries = 30, seed = "10")
  void napWithOneBarePathIsTheInnerPolicy(
      @ForAll @IntRange(max = 1 << 20) int seed, @ForAll @IntRange(min = 1, max = 12) int steps) {
    Search.Nap bare = new Search.Nap(List.of(List.of()), List.of(), 12, 0, steps, 0.18f);
    DiffusionOptions inner =
        options(12, 1).withTransfer(new Transfer.Schedule(steps, Transfer.Order.LOW_CONFIDENCE));
    assertEquals(run(seed, inner).commits(), run(seed, options(12, 1).withSearch(bare)).commits());
  }

  /** Invariant 31, its rest. */
  @Property(tries = 50, seed = "11")
  void napStreams(
      @ForAll @IntRange(max = 1 << 20) int seed,
      @ForAll @IntRange(min = 1, max = 3) int paths,
      @ForAll @IntRange(min = 2, max = 7) int length,
      @ForAll @IntRange(min = 0, max = 4) int summary,
      @ForAll @IntRange(min = 1, max = 8) int steps,
      @ForAll boolean frozenPrompt) {
    Search.Nap nap = nap(paths, length, summary, steps);
    DiffusionOptions o = DiffusionOptions.reference(nap.length(), nap.length()).withSearch(nap);
    if (frozenPrompt) {
      o = o.withCaching(new Caching.FreeCache(0, 0));
    }
    DiffusionDecoder d = DiffusionDecoder.of(Decodes.network(seed), MODEL, o);
    Outcome r = Decodes.run(d, o, Decodes.prompt(seed, 5));
    assertTrue(r.counters().forwards() <= steps);
    NapPolicy streams = new NapPolicy(nap, 0);
    int[] left = new int[streams.streams()];
    for (int k = 0; k < left.length; k++) {
      left[k] = streams.end(k) - streams.start(k);
    }
    int masks = Arrays.stream(left).sum();
    for (int i = 0; i < r.steps().size(); i++) {
      DecodeTrace.Step s = r.steps().get(i);
      int[] count = new int[left.length];
      for (int offset : s.offsets()) {
        int k = 0;
        while (offset >= streams.end(k)) {
          k++;
        }
        assertTrue(offset >= streams.start(k), "a header was written");
        count[k]++;
      }
      int budget = (masks + steps - i - 1) / (steps - i);
      int unfinished = 0;
      for (int k = 0; k < paths; k++) {
        unfinished += left[k] > 0 ? 1 : 0;
      }
      int least = Integer.MAX_VALUE;
      int most = 0;
      for (int k = 0; k < paths; k++) {
        if (left[k] > 0) {
          least = Math.min(least, count[k]);
        }
        if (left[k] > count[k]) {
          most = Math.max(most, count[k]);
        }
      }
      if (unfinished > 0) {
        if (budget >= left.length) {
          assertTrue(least >= 1, "a stream got nothing");
        }
        if (Arrays.stream(left).limit(paths).allMatch(n -> n >= budget)) {
          assertTrue(most - least <= 1, "uneven: " + Arrays.toString(count));
        }
      }
      for (int k = 0; k < left.length; k++) {
        left[k] -= count[k];
        masks -= count[k];
      }
    }
    for (int k = 0; k < paths; k++) {
      assertEquals(20 + k, r.answer()[streams.start(k) - 2]);
      assertEquals(30, r.answer()[streams.start(k) - 1]);
    }
    if (summary > 0) {
      assertEquals(31, r.answer()[streams.start(paths) - 1]);
      assertEquals(summary, d.output().length);
    }
  }

  @Test
  void summaryOpensLate() {
    Search.Nap nap = nap(2, 10, 4, 0);
    DiffusionOptions o = DiffusionOptions.reference(nap.length(), nap.length()).withSearch(nap);
    Outcome r = run(3, o);
    NapPolicy streams = new NapPolicy(nap, 0);
    int committed = 0;
    for (DecodeTrace.Step s : r.steps()) {
      boolean inSummary = s.offsets().getFirst() >= streams.start(2);
      if (inSummary) {
        assertTrue(20 - committed <= 0.18 * 20, "opened with " + (20 - committed) + " masks left");
        break;
      }
      committed++;
    }
  }

  @Test
  void budgetSplitIsEvenAndTurns() {
    assertArrayEquals(new int[] {2, 1, 1}, NapPolicy.split(4, new int[] {9, 9, 9}, 0));
    assertArrayEquals(new int[] {1, 2, 1}, NapPolicy.split(4, new int[] {9, 9, 9}, 1));
    assertArrayEquals(new int[] {1, 5, 4}, NapPolicy.split(10, new int[] {1, 9, 9}, 1));
    assertArrayEquals(new int[] {1, 0, 2}, NapPolicy.split(10, new int[] {1, 0, 2}, 0));
    assertArrayEquals(new int[] {0, 0, 1}, NapPolicy.split(1, new int[] {4, 4, 4}, 2));
  }
}
