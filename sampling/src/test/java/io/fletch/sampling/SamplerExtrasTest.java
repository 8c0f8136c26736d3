package io.fletch.sampling;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import org.junit.jupiter.api.Test;

/** The less common samplers, against their definitions worked out by hand. */
class SamplerExtrasTest {
  private static final SamplingOptions PLAIN = SamplingOptions.greedy().withTemperature(1);

  private static float[] logs(double... p) {
    float[] out = new float[p.length];
    for (int i = 0; i < p.length; i++) {
      out[i] = (float) Math.log(p[i]);
    }
    return out;
  }

  private static TokenHistory history(int... tokens) {
    TokenHistory h = new TokenHistory(tokens.length);
    for (int t : tokens) {
      h.add(t);
    }
    return h;
  }

  /** What can be drawn at all. */
  private static Set<Integer> support(SamplingOptions options, float[] logits) {
    Sampler s = Sampler.of(options, logits.length);
    TokenHistory h = history();
    Set<Integer> seen = new TreeSet<>();
    for (int i = 0; i < 3000; i++) {
      seen.add(s.sample(logits, h));
      h.add(0);
    }
    return seen;
  }

  private static SamplingOptions with(SamplerExtras extras) {
    return PLAIN.withExtras(extras);
  }

  @Test
  void typicalKeepsWhatIsNearTheEntropy() {
    // Entropy 1.09 nats; surprises 0.51, 1.61, 2.30, 2.30: the second is nearest, then the first.
    float[] logits = logs(0.6, 0.2, 0.1, 0.1);
    assertEquals(Set.of(1), support(with(SamplerExtras.NONE.withTypicalP(0.19f)), logits));
    assertEquals(Set.of(0, 1), support(with(SamplerExtras.NONE.withTypicalP(0.5f)), logits));
    assertEquals(Set.of(0, 1, 2, 3), support(with(SamplerExtras.NONE), logits));
  }

  @Test
  void topNSigma() {
    // Mean 2, deviation 1.79: the 4 is 1.12 of them below the 6.
    float[] logits = {6, 4, 2, 2, 0, 2, 2, 0, 0, 2};
    assertEquals(2, mean(logits));
    assertEquals(Set.of(0, 1), support(with(SamplerExtras.NONE.withTopNSigma(1.2f)), logits));
    assertEquals(Set.of(0), support(with(SamplerExtras.NONE.withTopNSigma(1.1f)), logits));
  }

  private static double mean(float[] x) {
    double sum = 0;
    for (float v : x) {
      sum += v;
    }
    return sum / x.length;
  }

  @Test
  void excludingTopChoicesLeavesTheLeastOfThem() {
    float[] logits = logs(0.4, 0.3, 0.2, 0.1);
    assertEquals(Set.of(2, 3), support(with(SamplerExtras.NONE.withXtc(1, 0.15f)), logits));
    // One choice above the threshold stays.
    assertEquals(Set.of(0, 1, 2, 3), support(with(SamplerExtras.NONE.withXtc(1, 0.35f)), logits));
    Sampler half = Sampler.of(with(SamplerExtras.NONE.withXtc(0.5f, 0.15f)), 4);
    TokenHistory h = history();
    int top = 0;
    for (int i = 0; i < 4000; i++) {
      top += half.sample(logits, h) < 2 ? 1 : 0;
      h.add(0);
    }
    assertEquals(0.35, top / 4000.0, 0.03);
  }

  @Test
  void dryPunishesWhatWouldRepeat() {
    SamplerExtras.Dry dry = new SamplerExtras.Dry(1, 2, 2, -1, List.of());
    SamplingOptions options = SamplingOptions.greedy().withExtras(SamplerExtras.NONE.withDry(dry));
    // 5 6 7 8 ... 5 6 7: an 8 would repeat four tokens; three agree, so it loses 1 * 2^(3 - 2).
    float[] logits = new float[10];
    logits[8] = 1.9f;
    logits[3] = 0;
    TokenHistory h = history(5, 6, 7, 8, 1, 5, 6, 7);
    assertEquals(0, Sampler.of(options, 10).sample(logits, h));
    logits[8] = 2.1f;
    assertEquals(8, Sampler.of(options, 10).sample(logits, h));
    // Two agree behind a breaker.
    logits[8] = 1.1f;
    assertEquals(8, Sampler.of(options, 10, List.of(), t -> t == 5).sample(logits, h));
    logits[8] = 0.9f;
    assertEquals(0, Sampler.of(options, 10, List.of(), t -> t == 5).sample(logits, h));
    // One that agrees is allowed.
    logits[8] = 0.1f;
    assertEquals(8, Sampler.of(options, 10, List.of(), t -> t == 6).sample(logits, h));
    // Out of the window.
    SamplerExtras.Dry near = new SamplerExtras.Dry(1, 2, 2, 4, List.of());
    SamplingOptions last = SamplingOptions.greedy().withExtras(SamplerExtras.NONE.withDry(near));
    assertEquals(8, Sampler.of(last, 10).sample(logits, h));
  }

  @Test
  void dryTakesTheLongestRepetition() {
    SamplerExtras.Dry dry = new SamplerExtras.Dry(1, 2, 1, -1, List.of());
    SamplingOptions options = SamplingOptions.greedy().withExtras(SamplerExtras.NONE.withDry(dry));
    // Overlapping: 4 4 4 4 would go on with a 4 after three that agree.
    float[] logits = new float[6];
    logits[4] = 3.9f;
    assertEquals(0, Sampler.of(options, 6).sample(logits, history(4, 4, 4, 4)));
    logits[4] = 4.1f;
    assertEquals(4, Sampler.of(options, 6).sample(logits, history(4, 4, 4, 4)));
  }

  /** Against the algorithm written down again; its mean surprise must come to tau. */
  @Test
  void mirostatHoldsTheSurprise() {
    int n = 1000;
    float[] logits = new float[n];
    double[] weights = new double[n];
    double total = 0;
    for (int i = 0; i < n; i++) {
      logits[i] = (float) -Math.log(i + 1);
      weights[i] = Math.exp(logits[i]);
      total += weights[i];
    }
    for (float tau : new float[] {2, 4}) {
      SamplingOptions options = with(SamplerExtras.NONE.withMirostat(tau, 0.1f)).withSeed(9);
      Sampler s = Sampler.of(options, n);
      TokenHistory h = history();
      double bound = 2 * tau;
      double sum = 0;
      for (int i = 0; i < 3000; i++) {
        // Probabilities fall with the id, so what is kept is a prefix.
        double least = Math.log(total) - bound * Math.log(2);
        int kept = 1;
        double mass = weights[0];
        while (kept < n && logits[kept] >= least) {
          mass += weights[kept++];
        }
        double target = mass * CounterRandom.uniform(9, CounterRandom.AUTOREGRESSIVE, i, 0, 0);
        int expected = 0;
        double upTo = weights[0];
        while (upTo <= target) {
          upTo += weights[++expected];
        }
        assertEquals(expected, s.sample(logits, h), "tau " + tau + " token " + i);
        h.add(expected);
        double surprise = -Math.log(weights[expected] / mass) / Math.log(2);
        bound -= 0.1f * (surprise - tau);
        sum += surprise;
      }
      assertEquals(tau, sum / 3000, 0.05);
    }
  }

  @Test
  void mirostatForgetsAnotherText() {
    float[] logits = logs(0.5, 0.25, 0.125, 0.125);
    SamplingOptions options = with(SamplerExtras.NONE.withMirostat(1, 1));
    Sampler fresh = Sampler.of(options, 4);
    Sampler used = Sampler.of(options, 4);
    TokenHistory other = history(1, 2, 3);
    for (int i = 0; i < 20; i++) {
      other.add(used.sample(logits, other));
    }
    TokenHistory a = history();
    TokenHistory b = history();
    for (int i = 0; i < 20; i++) {
      a.add(fresh.sample(logits, a));
      b.add(used.sample(logits, b));
      assertEquals(a.token(i), b.token(i));
    }
  }

  @Test
  void entropyMakesItHotter() {
    SamplerExtras extras = SamplerExtras.NONE.withDynamicTemperature(0.9f, 1);
    // Nearly certain: temperature near 0.1, the rest is never drawn.
    assertEquals(Set.of(0), support(with(extras), new float[] {8, 0, 0, 0}));
    // All alike: the highest temperature, all of them.
    assertEquals(Set.of(0, 1, 2, 3), support(with(extras), new float[] {1, 1, 1, 1}));
  }

  @Test
  void outOfRange() {
    assertThrows(IllegalArgumentException.class, () -> SamplerExtras.NONE.withTypicalP(0));
    assertThrows(IllegalArgumentException.class, () -> SamplerExtras.NONE.withTopNSigma(-1));
    assertThrows(IllegalArgumentException.class, () -> SamplerExtras.NONE.withXtc(2, 0.1f));
    assertThrows(
        IllegalArgumentException.class, () -> SamplerExtras.NONE.withDynamicTemperature(0, 1));
    assertThrows(IllegalArgumentException.class, () -> SamplerExtras.NONE.withMirostat(5, 0));
    assertThrows(
        IllegalArgumentException.class, () -> new SamplerExtras.Dry(1, 1.75f, 2, -1, List.of("")));
    List<String> none = List.of();
    assertThrows(IllegalArgumentException.class, () -> new SamplerExtras.Dry(0, 1, 1, -1, none));
    assertThrows(
        IllegalArgumentException.class, () -> new SamplerExtras.Dry(1, 0.99f, 1, -1, none));
    assertThrows(IllegalArgumentException.class, () -> new SamplerExtras.Dry(1, 1, 0, -1, none));
    assertThrows(IllegalArgumentException.class, () -> new SamplerExtras.Dry(1, 1, 1, -2, none));
    // The ends of the ranges belong to them.
    assertEquals(1, new SamplerExtras.Dry(1, 1, 1, -1, none).base());
    assertEquals(1, SamplerExtras.NONE.withTypicalP(1).withTopNSigma(0).typicalP());
    assertEquals(1, SamplerExtras.NONE.withXtc(1, 1).xtc().orElseThrow().threshold());
  }
}
