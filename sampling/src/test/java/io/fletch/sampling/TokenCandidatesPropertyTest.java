package io.fletch.sampling;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Comparator;
import java.util.List;
import java.util.stream.IntStream;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.constraints.DoubleRange;
import net.jqwik.api.constraints.IntRange;
import net.jqwik.api.constraints.Scale;

/** The linear-time filters against filters that sort. */
class TokenCandidatesPropertyTest {
  /** Rows with many ties, forbidden ids and extreme values. */
  @Provide
  Arbitrary<float[]> rows() {
    Arbitrary<Float> value =
        Arbitraries.frequencyOf(
            net.jqwik.api.Tuple.of(6, Arbitraries.floats().between(-20, 20).ofScale(2)),
            net.jqwik.api.Tuple.of(4, Arbitraries.integers().between(-3, 3).map(i -> (float) i)),
            net.jqwik.api.Tuple.of(
                1, Arbitraries.of(Float.NEGATIVE_INFINITY, -3e38f, 1e30f, -0f, 0f)));
    return value.array(float[].class).ofMinSize(1).ofMaxSize(300);
  }

  private static TokenCandidates load(float[] row) {
    TokenCandidates c = new TokenCandidates(row.length);
    c.load(row);
    return c;
  }

  private static List<Integer> ids(TokenCandidates c) {
    return IntStream.range(0, c.size()).mapToObj(c::id).toList();
  }

  private static List<Integer> descending(float[] row) {
    return IntStream.range(0, row.length)
        .boxed()
        .sorted(Comparator.comparingDouble((Integer i) -> -(row[i] + 0.0)).thenComparing(i -> i))
        .toList();
  }

  @Property(tries = 500, seed = "20251123")
  void topKKeepsTheLargestAndTheLowestIdsOfTies(
      @ForAll("rows") float[] row, @ForAll @IntRange(min = 1, max = 320) int k) {
    TokenCandidates c = load(row);
    c.keepTop(k);
    assertEquals(descending(row).stream().limit(k).sorted().toList(), ids(c));
  }

  @Property(tries = 500, seed = "20251123")
  void topPKeepsTheSmallestSufficientSet(
      @ForAll("rows") float[] row,
      @ForAll @Scale(3) @DoubleRange(min = 0.01, max = 0.999) double p) {
    TokenCandidates c = load(row);
    if (c.best() < 0) {
      return;
    }
    c.keepMass(p);
    double max = row[descending(row).get(0)];
    double total = 0;
    for (float l : row) {
      total += Math.exp(l - max);
    }
    List<Integer> kept = ids(c);
    double mass = kept.stream().mapToDouble(i -> Math.exp(row[i] - max)).sum();
    double least = kept.stream().mapToDouble(i -> Math.exp(row[i] - max)).min().orElseThrow();
    assertEquals(descending(row).stream().limit(kept.size()).sorted().toList(), kept);
    assertTrue(mass >= p * total * (1 - 1e-12), "too little: " + mass / total + " of " + p);
    assertTrue(mass - least < p * total * (1 + 1e-12), "too much: " + mass / total + " of " + p);
  }

  @Property(tries = 300, seed = "20251123")
  void minPComparesWithTheBest(
      @ForAll("rows") float[] row,
      @ForAll @Scale(3) @DoubleRange(min = 0.001, max = 1) double share) {
    TokenCandidates c = load(row);
    int best = c.best();
    if (best < 0) {
      return;
    }
    double least = row[best] + Math.log(share);
    c.keepShare(share);
    assertEquals(
        IntStream.range(0, row.length).filter(i -> row[i] >= least).boxed().toList(), ids(c));
  }

  @Property(tries = 300, seed = "20251123")
  void drawInvertsTheDistribution(
      @ForAll("rows") float[] row, @ForAll @Scale(7) @DoubleRange(max = 0.9999999) double u) {
    TokenCandidates c = load(row);
    int best = c.best();
    int drawn = c.draw(u);
    if (best < 0) {
      assertEquals(-1, drawn);
      return;
    }
    double total = 0;
    for (float l : row) {
      total += Math.exp((double) l - row[best]);
    }
    double before = 0;
    for (int i = 0; i < drawn; i++) {
      before += Math.exp((double) row[i] - row[best]);
    }
    double with = before + Math.exp((double) row[drawn] - row[best]);
    assertTrue(with > before, "a token of probability zero was drawn");
    assertTrue(before <= u * total + 1e-12 && with >= u * total - 1e-12);
  }
}
