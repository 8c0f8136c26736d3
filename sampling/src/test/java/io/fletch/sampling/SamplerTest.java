package io.fletch.sampling;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

/** The sampler chain: order of steps, penalties, grammar hook, errors, statistics of the draw. */
class SamplerTest {
  private static final SamplingOptions PLAIN = SamplingOptions.greedy().withTemperature(1);

  private static TokenHistory history(int... tokens) {
    TokenHistory h = new TokenHistory(tokens.length);
    for (int t : tokens) {
      h.add(t);
    }
    return h;
  }

  @Test
  void greedyTakesTheLowestOfEqualLogits() {
    Sampler s = Sampler.of(SamplingOptions.greedy(), 4);
    assertTrue(s.isArgmax());
    assertEquals(1, s.sample(new float[] {0, 3, 3, 1}, history()));
  }

  @Test
  void drawFollowsTheSoftmax() {
    float[] logits = {(float) Math.log(0.5), (float) Math.log(0.3), (float) Math.log(0.2)};
    Sampler s = Sampler.of(PLAIN.withSeed(11), 3);
    int[] counts = new int[3];
    TokenHistory h = history();
    for (int i = 0; i < 20_000; i++) {
      counts[s.sample(logits, h)]++;
      h.add(0);
    }
    assertEquals(0.5, counts[0] / 20_000.0, 0.015);
    assertEquals(0.3, counts[1] / 20_000.0, 0.015);
    assertEquals(0.2, counts[2] / 20_000.0, 0.015);
  }

  @Test
  void drawIsAFunctionOfSeedAndPosition() {
    float[] logits = new float[64];
    Sampler a = Sampler.of(PLAIN.withSeed(5), 64);
    Sampler b = Sampler.of(PLAIN.withSeed(5), 64);
    Sampler other = Sampler.of(PLAIN.withSeed(6), 64);
    TokenHistory h = history();
    List<Integer> first = new ArrayList<>();
    List<Integer> different = new ArrayList<>();
    for (int i = 0; i < 50; i++) {
      first.add(a.sample(logits, h));
      different.add(other.sample(logits, h));
      h.add(0);
    }
    for (int i = 49; i >= 0; i--) {
      h.truncate(i);
      assertEquals(first.get(i), b.sample(logits, h), "position " + i);
    }
    assertFalse(first.equals(different));
  }

  @Test
  void temperatureComesAfterTopP() {
    // At temperature 1 the first token has 71 %, so top-p keeps it alone however hot the draw is.
    float[] logits = {2, 0, 0, 0};
    Sampler hot = Sampler.of(PLAIN.withTemperature(4).withTopP(0.6f), 4);
    Sampler wide = Sampler.of(PLAIN.withTemperature(4).withTopP(0.8f), 4);
    boolean spread = false;
    TokenHistory h = history();
    for (int i = 0; i < 200; i++) {
      assertEquals(0, hot.sample(logits, h));
      spread |= wide.sample(logits, h) != 0;
      h.add(0);
    }
    assertTrue(spread);
  }

  @Test
  void penalties() {
    float[] logits = {2, -2, 1, 1.9f};
    TokenHistory h = history(0, 0, 1);
    assertEquals(
        3, Sampler.of(SamplingOptions.greedy().withPenalties(1.5f, 0, 0, -1), 4).sample(logits, h));
    assertEquals(
        3, Sampler.of(SamplingOptions.greedy().withPenalties(1, 0.1f, 0, -1), 4).sample(logits, h));
    assertEquals(
        3, Sampler.of(SamplingOptions.greedy().withPenalties(1, 0, 0.2f, -1), 4).sample(logits, h));
    // The window of one token holds only token 1.
    assertEquals(
        0, Sampler.of(SamplingOptions.greedy().withPenalties(1.5f, 1, 1, 1), 4).sample(logits, h));
    TokenCandidates c = new TokenCandidates(4);
    c.load(logits);
    SamplerStep.penalties(4, 2, 0.25f, 0.5f, -1).apply(c, h);
    assertEquals(2f / 2 - 0.25f * 2 - 0.5f, c.logit(0));
    assertEquals(-2f * 2 - 0.25f - 0.5f, c.logit(1));
    assertEquals(1f, c.logit(2));
  }

  @Test
  void biasForbidsAndPromotes() {
    float[] logits = {2, 1, 0};
    assertEquals(
        1,
        Sampler.of(SamplingOptions.greedy().withLogitBias(Map.of(0, Float.NEGATIVE_INFINITY)), 3)
            .sample(logits, history()));
    assertEquals(
        2,
        Sampler.of(SamplingOptions.greedy().withLogitBias(Map.of(2, 5f)), 3)
            .sample(logits, history()));
    assertThrows(
        IllegalArgumentException.class,
        () -> Sampler.of(SamplingOptions.greedy().withLogitBias(Map.of(3, 5f)), 3));
    assertThrows(
        IllegalArgumentException.class,
        () -> SamplingOptions.greedy().withLogitBias(Map.of(3, Float.NaN)));
  }

  @Test
  void ownStepsRunBeforeFilters() {
    SamplerStep evenOnly = (c, h) -> c.retain(id -> id % 2 == 0);
    float[] logits = {0, 9, 1, 9};
    Sampler s = Sampler.of(SamplingOptions.greedy(), 4, List.of(evenOnly));
    assertFalse(s.isArgmax());
    assertEquals(2, s.sample(logits, history()));
    // Top-k would leave nothing that the step allows.
    Sampler filtered = Sampler.of(PLAIN.withTopK(1), 4, List.of(evenOnly));
    assertEquals(0, filtered.leading());
    assertEquals(2, filtered.sample(logits, history()));
  }

  @Test
  void grammarMaskIsCheckedExactly() {
    List<Integer> checked = new ArrayList<>();
    List<Integer> committed = new ArrayList<>();
    TokenMask mask =
        new TokenMask() {
          @Override
          public long[] allowed() {
            return new long[] {0b1110};
          }

          @Override
          public boolean check(int token) {
            checked.add(token);
            return token == 3;
          }

          @Override
          public void commit(int token) {
            committed.add(token);
          }
        };
    Sampler s = Sampler.of(SamplingOptions.greedy(), 4);
    assertEquals(3, s.sample(new float[] {9, 5, 4, 3}, history(), mask));
    assertEquals(List.of(1, 2, 3), checked);
    assertEquals(List.of(3), committed);
  }

  @Test
  void deadEndAndBadLogitsAreNamed() {
    Sampler s = Sampler.of(PLAIN, 2);
    SamplingException nan =
        assertThrows(
            SamplingException.class, () -> s.sample(new float[] {0, Float.NaN}, history()));
    assertTrue(nan.getMessage().contains("token=1"), nan.getMessage());
    assertThrows(
        SamplingException.class,
        () -> s.sample(new float[] {Float.POSITIVE_INFINITY, 0}, history()));
    float no = Float.NEGATIVE_INFINITY;
    assertThrows(SamplingException.class, () -> s.sample(new float[] {no, no}, history()));
  }

  @Test
  void tinyTemperatureIsGreedy() {
    Sampler s = Sampler.of(PLAIN.withTemperature(1e-30f), 3);
    assertEquals(1, s.sample(new float[] {80, 81, -90}, history()));
  }

  @Test
  void logProbabilitiesIgnoreTemperature() {
    LogProbabilities p = new LogProbabilities(2);
    p.set(new float[] {1, 3, 3, 0}, 4);
    double lse = Math.log(Math.exp(1) + 2 * Math.exp(3) + 1);
    assertEquals(3 - lse, p.of(1), 1e-12);
    assertEquals(-lse, p.of(3), 1e-12);
    assertEquals(2, p.alternatives());
    assertEquals(1, p.alternative(0));
    assertEquals(2, p.alternative(1));
    assertEquals(3 - lse, p.alternativeLogProbability(1), 1e-12);
  }

  @Test
  void optionsOutOfRangeAreRefused() {
    SamplingOptions o = SamplingOptions.defaults();
    assertThrows(IllegalArgumentException.class, () -> o.withTemperature(-1));
    assertThrows(IllegalArgumentException.class, () -> o.withTemperature(Float.NaN));
    assertThrows(IllegalArgumentException.class, () -> o.withTopP(0));
    assertThrows(IllegalArgumentException.class, () -> o.withMinP(1.5f));
    assertThrows(IllegalArgumentException.class, () -> o.withPenalties(0, 0, 0, 1));
    assertThrows(IllegalArgumentException.class, () -> o.withPenalties(1, Float.NaN, 0, 1));
  }
}
