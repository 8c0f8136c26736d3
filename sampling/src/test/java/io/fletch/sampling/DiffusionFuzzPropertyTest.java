package io.fletch.sampling;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;

/**
 * Any options that can be built, on any model that they allow, with any given part of the answer:
 * the run ends, keeps what was given, leaves no mask, counts what it did, and can be repeated.
 */
class DiffusionFuzzPropertyTest {
  @Property(tries = 1500, seed = "20251123")
  void everyLegalCombinationWorks(@ForAll long seed) {
    Random r = new Random(seed);
    boolean blockCausal = r.nextInt(4) == 0;
    int block = 1 + r.nextInt(6);
    DiffusionModel model = Decodes.model(r.nextBoolean(), blockCausal ? block : 0);
    DiffusionOptions options;
    try {
      options = options(r, block, blockCausal);
    } catch (IllegalArgumentException e) {
      return; // what is refused, and why, is another test's
    }
    boolean guided = options.search() instanceof Search.Guided;
    if (blockCausal && (guided || options.search() instanceof Search.Nap)) {
      return;
    }
    int[] prompt = Decodes.prompt(seed, guided ? 1 + r.nextInt(6) : r.nextInt(7));
    int[] given = given(r, options, guided);
    int[][] answers = new int[2][];
    List<String> traces = new ArrayList<>();
    for (int i = 0; i < 2; i++) {
      TinyCanvasModel network = Decodes.network(seed);
      TableCausalModel guide = new TableCausalModel(Decodes.VOCABULARY, 64, 2, seed);
      DiffusionDecoder d =
          guided
              ? DiffusionDecoder.of(network, model, options, guide)
              : DiffusionDecoder.of(network, model, options);
      d.start(prompt, given);
      long masks = Arrays.stream(given).filter(t -> t == Decodes.MASK).count();
      int limit = 1000;
      while (d.next()) {
        assertTrue(limit-- > 0, "no end in sight");
      }
      assertTrue(d.finished());
      answers[i] = d.answer();
      traces.add(d.trace().steps().toString());
      for (int p = 0; p < given.length; p++) {
        assertTrue(answers[i][p] != Decodes.MASK, "a mask is left");
        if (given[p] != Decodes.MASK && !(options.transfer() instanceof Transfer.Edit)) {
          assertEquals(given[p], answers[i][p], "a given token changed");
        }
      }
      assertArrayEquals(prompt, Arrays.copyOf(d.canvas(), prompt.length));
      DecodeCounters c = d.counters();
      assertEquals(masks, c.committed() + c.filled());
      assertEquals(network.runs.size(), c.forwards());
      assertEquals(
          network.runs.stream().flatMap(List::stream).mapToLong(CanvasWindow::rows).sum(),
          c.rows());
      boolean sequential = options.search() instanceof Search.FreeDave f && f.sequential();
      if (!sequential && !(options.transfer() instanceof Transfer.Edit)) {
        assertTrue(c.forwards() <= 2 * masks + 2, c.toString());
      }
    }
    assertArrayEquals(answers[0], answers[1], "not repeatable");
    assertEquals(traces.get(0), traces.get(1));
  }

  private static int[] given(Random r, DiffusionOptions o, boolean suffixOnly) {
    int[] given = new int[o.answerLength()];
    if (o.search() instanceof Search.Nap nap) {
      return NapPolicy.template(nap, Decodes.MASK);
    }
    Arrays.fill(given, Decodes.MASK);
    int kind = r.nextInt(3);
    for (int i = 0; i < given.length && kind > 0; i++) {
      if (suffixOnly ? i < given.length / 3 : r.nextInt(3) == 0) {
        given[i] = r.nextInt(37);
      }
    }
    return given;
  }

  private static DiffusionOptions options(Random r, int block, boolean blockCausal) {
    int blocks = 1 + r.nextInt(3);
    Transfer transfer =
        switch (r.nextInt(9)) {
          case 0 -> new Transfer.Schedule(blocks * (1 + r.nextInt(8)), Transfer.Order.RANDOM);
          case 1 ->
              new Transfer.Dream(
                  blocks * (1 + r.nextInt(8)),
                  Transfer.DreamAlgorithm.values()[r.nextInt(4)],
                  r.nextInt(2),
                  1e-3f);
          case 2 -> new Transfer.Threshold(r.nextFloat());
          case 3 -> new Transfer.Factor(2 * r.nextFloat());
          case 4 -> new Transfer.LocalLeap(r.nextFloat(), r.nextFloat(), r.nextInt(5));
          case 5 -> new Transfer.Dynamic(0, r.nextFloat());
          case 6 -> new Transfer.Edit(r.nextFloat(), r.nextFloat(), r.nextInt(5));
          default ->
              new Transfer.Schedule(blocks * (1 + r.nextInt(8)), Transfer.Order.LOW_CONFIDENCE);
        };
    Caching caching =
        blockCausal
            ? r.nextInt(4) == 0 ? new Caching.None() : new Caching.BlockCausal(r.nextBoolean())
            : switch (r.nextInt(4)) {
              case 0 -> new Caching.None();
              case 1 -> new Caching.Prefix();
              case 2 -> new Caching.Dual();
              default -> new Caching.FreeCache(r.nextInt(5), r.nextInt(2));
            };
    Search search =
        switch (r.nextInt(6)) {
          case 0 ->
              new Search.Soar(
                  1 + r.nextInt(4),
                  r.nextFloat(),
                  1 + r.nextInt(2),
                  1 + r.nextInt(5),
                  1 + r.nextInt(2),
                  r.nextBoolean());
          case 1 ->
              new Search.Guided(
                  Search.GuideRule.values()[r.nextInt(3)],
                  1 + r.nextInt(9),
                  r.nextFloat(),
                  1 + r.nextInt(5));
          case 2 ->
              new Search.Nap(
                  List.of(List.of(3), List.of(4, 5)),
                  List.of(6),
                  1 + r.nextInt(6),
                  r.nextInt(4),
                  r.nextInt(9),
                  r.nextFloat());
          case 3, 4 ->
              new Search.FreeDave(1 + r.nextInt(6), r.nextInt(2) * 50, r.nextInt(4) == 0, false);
          default -> new Search.None();
        };
    List<Exit> exits = new ArrayList<>();
    if (r.nextInt(3) == 0) {
      exits.add(new Exit.EndFill(r.nextBoolean()));
    }
    if (r.nextInt(3) == 0) {
      exits.add(
          new Exit.Prophet(r.nextInt(5), r.nextInt(6) - 1, 2 * r.nextFloat(), r.nextFloat(), 0.5f));
    }
    if (r.nextInt(3) == 0) {
      exits.add(
          new Exit.Sched(
              Exit.Shape.values()[r.nextInt(3)],
              1 + 2 * r.nextFloat(),
              r.nextFloat(),
              4,
              r.nextBoolean(),
              r.nextBoolean(),
              r.nextFloat() / 2,
              r.nextInt(2),
              r.nextFloat() / 2));
    }
    boolean nap = search instanceof Search.Nap;
    int length = nap ? ((Search.Nap) search).length() : block * blocks;
    boolean hot = r.nextInt(3) == 0;
    return new DiffusionOptions(
        length,
        nap ? length : block,
        transfer,
        caching,
        search,
        exits,
        hot ? 0.2f + r.nextFloat() : 0,
        r.nextInt(4) == 0 ? 0.9f : 1,
        r.nextInt(4) == 0 ? 5 : 0,
        r.nextInt(4) == 0 ? 1.5f : 0,
        DiffusionOptions.End.values()[r.nextInt(3)],
        r.nextInt(3),
        true,
        r.nextLong());
  }
}
