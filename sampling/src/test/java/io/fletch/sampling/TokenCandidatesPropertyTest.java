package io.fletch.sampling;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.HashSet;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.constraints.DoubleRange;
import net.jqwik.api.constraints.IntRange;
import net.jqwik.api.constraints.Scale;

/** The filters, which do not sort, against filters that do. */
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

  /** What sorting gives: the first of the descending keys whose weights make up the share. */
  private static List<Integer> sortedNucleus(List<Integer> descending, double[] weights, double p) {
    double total = Arrays.stream(weights).sum();
    double mass = 0;
    int n = 0;
    while (mass < p * total) {
      mass += weights[descending.get(n++)];
    }
    return descending.stream().limit(n).sorted().toList();
  }

  private static double[] weights(float[] row) {
    float max = row[descending(row).get(0)];
    double grid = TokenCandidates.grid(row.length);
    double[] weights = new double[row.length];
    for (int i = 0; i < row.length; i++) {
      weights[i] = TokenCandidates.weight((double) row[i] - max, grid);
    }
    return weights;
  }

  @Property(tries = 500, seed = "20251123")
  void weightsAreExponentialsWithExactSums(@ForAll("rows") float[] row, @ForAll long seed) {
    if (row[descending(row).get(0)] == Float.NEGATIVE_INFINITY) {
      return;
    }
    double[] weights = weights(row);
    float max = row[descending(row).get(0)];
    for (int i = 0; i < row.length; i++) {
      assertEquals(Math.exp((double) row[i] - max), weights[i], row.length * 0x1p-53 + 2e-14);
    }
    double sum = Arrays.stream(weights).sum();
    List<Double> shuffled = Arrays.stream(weights).boxed().collect(Collectors.toList());
    Collections.shuffle(shuffled, new Random(seed));
    double inOtherOrder = 0;
    for (double w : shuffled) {
      inOtherOrder += w;
    }
    assertEquals(sum, inOtherOrder);
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
    assertEquals(sortedNucleus(descending(row), weights(row), p), ids(c));
  }

  /** Rows of the size and the shapes of a vocabulary: bell, peaked, of few values, one value. */
  private static float[] vocabulary(int shape, int n, Random random) {
    float[] row = new float[n];
    for (int i = 0; i < n; i++) {
      row[i] =
          switch (shape) {
            case 0 -> (float) (3 * random.nextGaussian());
            case 1 -> (float) (random.nextInt(500) == 0 ? 12 + random.nextGaussian() : -9);
            case 2 -> random.nextInt(12) - 6;
            case 3 -> 1.5f;
            case 4 -> (float) -Math.log(random.nextDouble()) * 4 - 1e3f;
            default -> random.nextInt(3) > 0 ? Float.NEGATIVE_INFINITY : random.nextFloat();
          };
    }
    if (random.nextInt(3) == 0) {
      row[random.nextInt(n)] = 40;
    }
    return row;
  }

  @Property(tries = 60, seed = "20251123")
  void topPOfAWholeVocabularyIsWhatSortingGives(
      @ForAll @IntRange(max = 5) int shape,
      @ForAll @IntRange(min = 4000, max = 40000) int n,
      @ForAll @Scale(4) @DoubleRange(min = 0.01, max = 0.9999) double p,
      @ForAll long seed) {
    float[] row = vocabulary(shape, n, new Random(seed));
    TokenCandidates c = load(row);
    c.keepMass(p);
    List<Integer> expected = sortedNucleus(descending(row), weights(row), p);
    assertEquals(expected, ids(c));
    // A second row in the same memory: what the first left behind does not matter.
    c.load(row);
    c.keepMass(p);
    assertEquals(expected, ids(c));
    c.load(row);
    assertEquals(IntStream.range(0, n).boxed().toList(), ids(c));
  }

  @Property(tries = 100, seed = "20251123")
  void typicalKeepsThoseNearestToTheEntropy(
      @ForAll @IntRange(max = 5) int shape,
      @ForAll boolean large,
      @ForAll @Scale(4) @DoubleRange(min = 0.01, max = 0.9999) double p,
      @ForAll long seed) {
    Random random = new Random(seed);
    int n = large ? 4000 + random.nextInt(9000) : 1 + random.nextInt(300);
    float[] row = vocabulary(shape, n, random);
    TokenCandidates c = load(row);
    int best = c.best();
    if (best < 0) {
      return;
    }
    c.keepTypical(p);
    double[] weights = weights(row);
    double total = Arrays.stream(weights).sum();
    double entropy = Math.log(total);
    for (int i = 0; i < n; i++) {
      entropy -= weights[i] > 0 ? weights[i] / total * (row[i] - row[best]) : 0;
    }
    double[] distance = new double[n];
    for (int i = 0; i < n; i++) {
      distance[i] = Math.abs(Math.log(total) - ((double) row[i] - row[best]) - entropy);
    }
    double kept = 0;
    double farthest = 0;
    double largest = 0;
    for (int i : ids(c)) {
      kept += weights[i];
      farthest = Math.max(farthest, distance[i]);
    }
    Set<Integer> ids = new HashSet<>(ids(c));
    for (int i = 0; i < n; i++) {
      double slack = 1e-5 * (1 + farthest);
      if (!ids.contains(i)) {
        assertTrue(distance[i] >= farthest - slack, "a nearer one was removed");
      } else if (distance[i] >= farthest - slack) {
        largest += weights[i];
      }
    }
    assertTrue(kept >= p * total);
    assertTrue(kept - largest < p * total);
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
    assertTrue(before <= u * total + 1e-10 && with >= u * total - 1e-10);
  }
}
