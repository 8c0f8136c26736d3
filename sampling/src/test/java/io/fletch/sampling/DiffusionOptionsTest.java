package io.fletch.sampling;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Test;

/** Composition rules (invariant 32), presets, and techniques as text. */
class DiffusionOptionsTest {
  private static final DiffusionModel LLADA = Decodes.model(false, 0);
  private static final DiffusionModel DREAM = Decodes.model(true, 0);
  private static final DiffusionModel SDAR = Decodes.model(false, 4);

  private static final List<Transfer> TRANSFERS =
      List.of(
          new Transfer.Schedule(0, Transfer.Order.LOW_CONFIDENCE),
          new Transfer.Schedule(8, Transfer.Order.RANDOM),
          new Transfer.Dream(0, Transfer.DreamAlgorithm.TOPK_MARGIN, 0.5f, 1e-3f),
          new Transfer.Threshold(0.9f),
          new Transfer.Factor(1),
          new Transfer.LocalLeap(0.9f, 0.75f, 4),
          new Transfer.Dynamic(0, 0.9f),
          new Transfer.Edit(0.7f, 0.5f, 16));
  private static final List<Caching> CACHES =
      List.of(
          new Caching.None(),
          new Caching.Prefix(),
          new Caching.Dual(),
          new Caching.FreeCache(0, 0),
          new Caching.FreeCache(4, 1),
          new Caching.BlockCausal(true));
  private static final List<Search> SEARCHES =
      List.of(
          new Search.None(),
          new Search.FreeDave(4, 100, false, true),
          new Search.Soar(2, 0.95f, 1, 5, 1, false),
          new Search.Guided(Search.GuideRule.TOP_RELATIVE, 2, 0.5f, 32),
          new Search.Nap(List.of(List.of(), List.of()), List.of(), 7, 2, 0, 0.18f));
  private static final List<List<Exit>> EXITS =
      List.of(
          List.of(),
          List.of(new Exit.EndFill(false)),
          List.of(Exit.Prophet.over(2, 5)),
          List.of(Exit.Sched.exponential(16), new Exit.EndFill(true)));

  private static DiffusionOptions build(Transfer t, Caching c, Search s, List<Exit> e, float cfg) {
    int length = 16;
    int block = s instanceof Search.Nap ? 16 : 4;
    return new DiffusionOptions(
        length, block, t, c, s, e, 0, 1, 0, cfg, DiffusionOptions.End.PLAIN, 0, true, 3);
  }

  /** The table of specs/diffusion.md 12, written down once more, as a predicate. */
  private static boolean legal(Transfer t, Caching c, Search s, List<Exit> e, float cfg) {
    boolean early = e.stream().anyMatch(x -> !(x instanceof Exit.EndFill));
    boolean fill = e.stream().anyMatch(Exit.EndFill.class::isInstance);
    boolean own = !(s instanceof Search.None) && !(s instanceof Search.FreeDave);
    if (own && !t.equals(new Transfer.Schedule(0, Transfer.Order.LOW_CONFIDENCE))) {
      return false;
    }
    if (t instanceof Transfer.Edit
        && (!(c instanceof Caching.BlockCausal) || !(s instanceof Search.None) || early)) {
      return false;
    }
    if (cfg > 0 && c instanceof Caching.FreeCache) {
      return false;
    }
    if (s instanceof Search.Guided
        && (early || c instanceof Caching.Dual || c instanceof Caching.BlockCausal)) {
      return false;
    }
    return !(s instanceof Search.Nap)
        || (!fill && (c instanceof Caching.None || c instanceof Caching.FreeCache));
  }

  @Test
  void everyPairIsAllowedOrRefusedAsTheTableSays() {
    int refused = 0;
    for (Transfer t : TRANSFERS) {
      for (Caching c : CACHES) {
        for (Search s : SEARCHES) {
          for (List<Exit> e : EXITS) {
            for (float cfg : new float[] {0, 1}) {
              if (legal(t, c, s, e, cfg)) {
                build(t, c, s, e, cfg);
              } else {
                refused++;
                IllegalArgumentException x =
                    assertThrows(
                        IllegalArgumentException.class,
                        () -> build(t, c, s, e, cfg),
                        () -> t + " " + c + " " + s + " " + e + " " + cfg);
                assertTrue(x.getMessage().contains(" cannot be combined with "), x.getMessage());
              }
            }
          }
        }
      }
    }
    assertTrue(refused > 500);
  }

  @Test
  void refusalsNameBothSidesAndTheReason() {
    DiffusionOptions o = DiffusionOptions.reference(16, 4);
    IllegalArgumentException x =
        assertThrows(
            IllegalArgumentException.class,
            () -> o.withCaching(new Caching.FreeCache(0, 0)).withGuidance(1));
    assertTrue(x.getMessage().startsWith("guidance cannot be combined with freecache: "));
    x =
        assertThrows(
            IllegalArgumentException.class,
            () ->
                o.withCaching(new Caching.Dual())
                    .withSearch(new Search.Guided(Search.GuideRule.TOP, 5, 0, 32)));
    assertTrue(x.getMessage().startsWith("guided cannot be combined with dual: "));
    x =
        assertThrows(
            IllegalArgumentException.class,
            () ->
                DiffusionDecoder.of(
                    Decodes.network(1), LLADA, o.withCaching(new Caching.BlockCausal(false))));
    assertTrue(x.getMessage().startsWith("block-causal cannot be combined with a bidirectional"));
    assertThrows(
        IllegalArgumentException.class,
        () -> DiffusionDecoder.of(Decodes.network(1), SDAR, o.withCaching(new Caching.Dual())));
    assertThrows(
        IllegalArgumentException.class,
        () -> DiffusionDecoder.of(Decodes.network(1), Decodes.model(false, 8), o),
        "another block length");
  }

  @Test
  void streamsTakeTheWholeAnswer() {
    Search.Nap nap = (Search.Nap) SEARCHES.getLast();
    int n = nap.length();
    for (int[] lengths : new int[][] {{n, n / 2}, {2 * n, 2 * n}, {2 * n, n}}) {
      DiffusionOptions o = DiffusionOptions.reference(lengths[0], lengths[1]);
      IllegalArgumentException x =
          assertThrows(IllegalArgumentException.class, () -> o.withSearch(nap));
      assertTrue(x.getMessage().startsWith("nap needs answerLength and blockLength: "), "" + x);
    }
    assertEquals(nap, DiffusionOptions.reference(n, n).withSearch(nap).search());
  }

  @Test
  void rangesAreChecked() {
    DiffusionOptions o = DiffusionOptions.reference(16, 4);
    assertThrows(IllegalArgumentException.class, () -> DiffusionOptions.reference(16, 5));
    assertThrows(IllegalArgumentException.class, () -> DiffusionOptions.reference(0, 1));
    assertThrows(
        IllegalArgumentException.class,
        () -> o.withTransfer(new Transfer.Schedule(7, Transfer.Order.RANDOM)));
    assertThrows(IllegalArgumentException.class, () -> o.withTemperature(Float.NaN));
    assertThrows(IllegalArgumentException.class, () -> new Transfer.Threshold(Float.NaN));
    assertThrows(IllegalArgumentException.class, () -> new Search.FreeDave(0, 0, false, false));
    assertThrows(IllegalArgumentException.class, () -> new Caching.FreeCache(-1, 0));
    assertThrows(
        IllegalArgumentException.class,
        () -> new Exit.Sched(Exit.Shape.LINEAR, 2, 3, 1, false, true, 0, 0, 0));
  }

  @Test
  void startChecksPromptAndAnswer() {
    DiffusionDecoder d =
        DiffusionDecoder.of(Decodes.network(1), LLADA, DiffusionOptions.reference(16, 4));
    assertThrows(IllegalStateException.class, d::next);
    assertThrows(IllegalArgumentException.class, () -> d.start(new int[] {Decodes.MASK}));
    assertThrows(IllegalArgumentException.class, () -> d.start(new int[] {-1}));
    assertThrows(IllegalArgumentException.class, () -> d.start(new int[50]));
    assertThrows(IllegalArgumentException.class, () -> d.start(new int[3], new int[3]));
  }

  @Test
  void infillingKeepsGivenTokens() {
    for (Caching c : CACHES.subList(0, 5)) {
      DiffusionDecoder d =
          DiffusionDecoder.of(
              Decodes.network(1), LLADA, DiffusionOptions.reference(16, 4).withCaching(c));
      int[] answer = new int[16];
      Arrays.fill(answer, Decodes.MASK);
      answer[1] = 7;
      for (int i = 4; i < 8; i++) {
        answer[i] = 20 + i; // a whole block is given
      }
      d.start(new int[] {1, 2, 3}, answer);
      int forwards = 0;
      while (d.next()) {
        forwards++;
      }
      assertEquals(11, forwards);
      assertEquals(7, d.answer()[1]);
      assertEquals(25, d.answer()[5]);
    }
    DiffusionDecoder whole =
        DiffusionDecoder.of(Decodes.network(1), LLADA, DiffusionOptions.reference(4, 4));
    whole.start(new int[] {1}, new int[] {1, 2, 3, 4});
    assertTrue(whole.finished());
  }

  @Test
  void everyPresetRunsOnItsModels() {
    for (DiffusionModel m : List.of(LLADA, DREAM, SDAR)) {
      for (String name : DiffusionPresets.names()) {
        if (name.equals("guided")) {
          continue;
        }
        DiffusionOptions o = DiffusionPresets.of(name, m, 16);
        Decodes.run(Decodes.network(5), m, o, Decodes.prompt(5, 6));
      }
      for (String text : DiffusionPresets.comparison(m)) {
        DiffusionOptions o = DiffusionTechnique.parse(text, m, 16);
        Decodes.run(Decodes.network(5), m, o, Decodes.prompt(5, 6));
      }
    }
    assertEquals(
        new Search.Guided(Search.GuideRule.TOP_RELATIVE, 2, 0.5f, 32),
        DiffusionPresets.of("guided", DREAM, 64).search());
    assertThrows(IllegalArgumentException.class, () -> DiffusionPresets.of("guided", SDAR, 16));
    assertThrows(IllegalArgumentException.class, () -> DiffusionPresets.of("warp", LLADA, 16));
    assertEquals(32, DiffusionPresets.of("reference", LLADA, 256).blockLength());
    assertEquals(25, DiffusionPresets.of("reference", LLADA, 100).blockLength());
    assertEquals(100, DiffusionPresets.of("reference", DREAM, 100).blockLength());
  }

  @Test
  void techniquesAreRead() {
    DiffusionOptions o = DiffusionTechnique.parse("freedave(depth=4)+freecache", LLADA, 64);
    assertEquals(new Search.FreeDave(4, 0, false, false), o.search());
    assertEquals(new Caching.FreeCache(0, 0), o.caching());
    assertEquals(64, o.answerLength());
    assertEquals(32, o.blockLength());
    DiffusionOptions p =
        DiffusionTechnique.parse(
            "fast + prophet(from=2, length=5) + length(tokens=32) + block(tokens=8)"
                + " + threshold(tau=0.8)+seed(value=9)",
            LLADA,
            64);
    assertEquals(new Transfer.Threshold(0.8f), p.transfer());
    assertEquals(List.of(new Exit.EndFill(false), Exit.Prophet.over(2, 5)), p.exits());
    assertEquals(32, p.answerLength());
    assertEquals(8, p.blockLength());
    assertEquals(9, p.seed());
    assertEquals(
        DiffusionPresets.of("reference", LLADA, 64), DiffusionTechnique.parse(" ", LLADA, 64));
    DiffusionOptions nap = DiffusionTechnique.parse("nap(paths=2,summary-length=8)", LLADA, 48);
    assertEquals(48, nap.answerLength());
  }

  @Test
  void badTechniquesAreExplained() {
    for (String bad :
        List.of(
            "warp",
            "freedave(depth=x)",
            "freedave(depht=4)",
            "freedave(depth=4",
            "freedave(depth=4,depth=5)",
            "freedave++freecache",
            "prefix+fast",
            "prefix(refresh=2)",
            "schedule(order=sideways)",
            "block-causal(fused=maybe)",
            "guidance(scale=1)+freecache",
            "soar+threshold")) {
      IllegalArgumentException x =
          assertThrows(
              IllegalArgumentException.class, () -> DiffusionTechnique.parse(bad, LLADA, 64), bad);
      assertTrue(
          x.getMessage().contains("expected=")
              || x.getMessage().contains("cannot be combined")
              || x.getMessage().contains("nothing between"),
          x.getMessage());
    }
  }

  @Test
  void formatAndParseAreInverse() {
    List<DiffusionOptions> all = new ArrayList<>();
    for (Transfer t : TRANSFERS) {
      for (Caching c : CACHES) {
        for (Search s : SEARCHES) {
          for (List<Exit> e : EXITS) {
            boolean block = c instanceof Caching.BlockCausal;
            if (legal(t, c, s, e, 0) && !(block && s instanceof Search.Nap)) {
              all.add(build(t, c, s, e, 0));
            }
          }
        }
      }
    }
    all.add(
        all.getFirst()
            .withTemperature(0.7f)
            .withFilters(0.9f, 11)
            .withGuidance(1.5f)
            .withEnd(DiffusionOptions.End.LAST, 2.5f)
            .withSuppressMask(false)
            .withSeed(-77));
    for (DiffusionOptions o : all) {
      DiffusionModel m = o.caching() instanceof Caching.BlockCausal ? SDAR : LLADA;
      String text = DiffusionTechnique.format(o);
      assertEquals(o, DiffusionTechnique.parse(text, m, 4), text);
    }
  }
}
