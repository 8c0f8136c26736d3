package io.fletch.sampling;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;

/** The generator against published vectors, and its uniformity. */
class CounterRandomTest {
  /** Known answers of Philox4x32-10 that come with the authors' Random123 library. */
  @Test
  void knownAnswers() {
    assertEquals(0x6627e8d5e169c58dL, CounterRandom.high(0, 0, 0, 0, 0));
    assertEquals(0xbc57ac4c9b00dbd8L, CounterRandom.low(0, 0, 0, 0, 0));
    assertEquals(0x408f276d41c83b0eL, CounterRandom.high(-1, -1, -1, -1, -1));
    assertEquals(0xa20bc7c66d5451fdL, CounterRandom.low(-1, -1, -1, -1, -1));
    long key = 0x299f31d0a4093822L;
    assertEquals(
        0xd16cfe0994fdccebL,
        CounterRandom.high(key, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344));
    assertEquals(
        0x5001e42024126ea1L,
        CounterRandom.low(key, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344));
  }

  @Test
  void uniformValuesFillTheUnitInterval() {
    int[] bins = new int[16];
    int n = 16_000;
    for (int i = 0; i < n; i++) {
      double u = CounterRandom.uniform(42, 0, i, 0, 0);
      assertTrue(u >= 0 && u < 1);
      bins[(int) (u * 16)]++;
    }
    double chi = 0;
    for (int b : bins) {
      chi += (b - 1000.0) * (b - 1000.0) / 1000;
    }
    assertTrue(chi < 37.7, "chi-squared of 15 degrees of freedom, 0.1 % level: " + chi);
  }

  @Test
  void gumbelHasItsMeanAndEveryCounterMatters() {
    double sum = 0;
    for (int i = 0; i < 20_000; i++) {
      sum += gumbel(7, 3, 5, i);
    }
    assertEquals(0.5772, sum / 20_000, 0.03);
    double g = gumbel(7, 3, 5, 8);
    assertNotEquals(g, gumbel(8, 3, 5, 8));
    assertNotEquals(g, gumbel(7, 4, 5, 8));
    assertNotEquals(g, gumbel(7, 3, 6, 8));
    assertNotEquals(g, gumbel(7, 3, 5, 9));
  }

  private static double gumbel(long seed, int committed, int position, int id) {
    return CounterRandom.gumbel(CounterRandom.noiseBits(seed, committed, position, id));
  }

  @Test
  void boundsOfTheNoiseHold() {
    for (int i = 0; i < 20_000; i++) {
      long bits = CounterRandom.noiseBits(1, 2, 3, i);
      for (int ones = 0; ones <= 64; ones += 4) {
        long b = ones == 0 ? bits : bits | (ones == 64 ? -1L : ~(-1L >>> ones));
        double g = CounterRandom.gumbel(b);
        assertTrue(Double.isFinite(g));
        assertTrue(g <= CounterRandom.gumbelBound(b), Long.toHexString(b));
        assertTrue(CounterRandom.gumbelBound(b) <= CounterRandom.largestGumbel());
      }
    }
    assertTrue(Double.isFinite(CounterRandom.gumbel(0)));
  }
}
