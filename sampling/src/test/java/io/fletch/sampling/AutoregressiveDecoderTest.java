package io.fletch.sampling;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import org.junit.jupiter.api.Test;

/** The decoding loop over a table model. */
class AutoregressiveDecoderTest {
  private static final int[] PROMPT = {3, 1, 4, 1, 5};

  private static int[] run(AutoregressiveDecoder d) {
    int[] out = new int[1000];
    int n = 0;
    while (d.next()) {
      out[n++] = d.token();
    }
    return Arrays.copyOf(out, n);
  }

  private static AutoregressiveDecoder decoder(
      CausalForward model, SamplingOptions options, int max, int... stop) {
    return AutoregressiveDecoder.of(
        model, Sampler.of(options, model.vocabulary()), new AutoregressiveOptions(max, stop, -1));
  }

  @Test
  void greedyFollowsTheTable() {
    TableCausalModel m = new TableCausalModel(50, 64, 3, 1);
    AutoregressiveDecoder d = decoder(m, SamplingOptions.greedy(), 20);
    d.start(PROMPT, PROMPT.length);
    int[] got = run(d);
    assertEquals(20, got.length);
    assertEquals(AutoregressiveDecoder.Finish.MAX_TOKENS, d.finish());
    int[] sequence = Arrays.copyOf(PROMPT, 25);
    float[] row = new float[50];
    for (int i = 0; i < 20; i++) {
      m.row(sequence, 5 + i, row);
      RowStatistics s = new RowStatistics();
      s.set(row, 0, 50);
      assertEquals(s.argmax, got[i], "step " + i);
      sequence[5 + i] = got[i];
    }
    assertEquals(20, m.forwards());
    assertEquals(5 + 19, m.rows(), "the last token is not run");
    assertFalse(d.next());
  }

  @Test
  void aKeptPrefixChangesNothing() {
    SamplingOptions options = SamplingOptions.defaults().withSeed(99);
    TableCausalModel fresh = new TableCausalModel(50, 64, 4, 2);
    AutoregressiveDecoder a = decoder(fresh, options, 15);
    a.start(PROMPT, 5);
    int[] expected = run(a);
    for (int kept = 0; kept < 5; kept++) {
      TableCausalModel m = new TableCausalModel(50, 64, 4, 2);
      if (kept > 0) {
        m.append(PROMPT, 0, kept, CausalForward.Logits.NONE);
      }
      AutoregressiveDecoder b = decoder(m, options, 15);
      b.start(PROMPT, 5);
      assertArrayEquals(expected, run(b), "kept " + kept);
    }
  }

  @Test
  void stopTokenEndsAndIsReported() {
    TableCausalModel m = new TableCausalModel(50, 64, 3, 1);
    AutoregressiveDecoder d = decoder(m, SamplingOptions.greedy(), 20);
    d.start(PROMPT, 5);
    int[] all = run(d);
    int stop = all[6];
    int first = 0;
    while (all[first] != stop) {
      first++;
    }
    m.truncate(0);
    AutoregressiveDecoder e = decoder(m, SamplingOptions.greedy(), 20, stop);
    e.start(PROMPT, 5);
    assertArrayEquals(Arrays.copyOf(all, first + 1), run(e));
    assertEquals(AutoregressiveDecoder.Finish.STOP_TOKEN, e.finish());
  }

  @Test
  void contextIsUsedToItsEnd() {
    TableCausalModel m = new TableCausalModel(50, 8, 3, 1);
    AutoregressiveDecoder d = decoder(m, SamplingOptions.greedy(), 0);
    d.start(PROMPT, 5);
    assertEquals(4, run(d).length, "three in the cache and one behind it");
    assertEquals(AutoregressiveDecoder.Finish.CONTEXT, d.finish());
  }

  @Test
  void badPromptsAreRefused() {
    TableCausalModel m = new TableCausalModel(50, 8, 3, 1);
    AutoregressiveDecoder d = decoder(m, SamplingOptions.greedy(), 0);
    assertThrows(IllegalStateException.class, d::next);
    assertThrows(IllegalArgumentException.class, () -> d.start(PROMPT, 0));
    assertThrows(IllegalArgumentException.class, () -> d.start(new int[9], 9));
    assertThrows(IllegalArgumentException.class, () -> d.start(new int[] {50}, 1));
    m.append(PROMPT, 0, 5, CausalForward.Logits.NONE);
    assertThrows(IllegalArgumentException.class, () -> d.start(PROMPT, 5));
  }

  @Test
  void whatIsDroppedWasNeverThere() {
    SamplingOptions options = SamplingOptions.greedy();
    for (int keep = 0; keep < 4; keep++) {
      for (int count = 1; keep + count < PROMPT.length; count++) {
        TableCausalModel m = new TableCausalModel(50, 64, 5, 3);
        AutoregressiveDecoder d = decoder(m, options, 8);
        d.start(PROMPT, 5);
        d.drop(keep, count);
        assertEquals(count, d.dropped());
        int[] left = Arrays.copyOf(PROMPT, 5 - count);
        System.arraycopy(PROMPT, keep + count, left, keep, 5 - count - keep);
        AutoregressiveDecoder fresh = decoder(new TableCausalModel(50, 64, 5, 3), options, 8);
        fresh.start(left, left.length);
        assertArrayEquals(run(fresh), run(d), "keep " + keep + " count " + count);
      }
    }
    AutoregressiveDecoder d = decoder(new TableCausalModel(50, 64, 5, 3), options, 8);
    d.start(PROMPT, 5);
    assertThrows(IllegalArgumentException.class, () -> d.drop(1, 4), "the last token stays");
    assertThrows(IllegalArgumentException.class, () -> d.drop(0, 0));
    assertThrows(IllegalArgumentException.class, () -> d.drop(-1, 1));
  }

  @Test
  void logProbabilitiesBelongToTheToken() {
    TableCausalModel m = new TableCausalModel(50, 64, 3, 1);
    AutoregressiveDecoder d =
        AutoregressiveDecoder.of(
            m,
            Sampler.of(SamplingOptions.greedy(), 50),
            new AutoregressiveOptions(4, new int[0], 3));
    d.start(PROMPT, 5);
    while (d.next()) {
      assertEquals(d.token(), d.logProbabilities().alternative(0));
      assertEquals(
          d.logProbabilities().of(d.token()), d.logProbabilities().alternativeLogProbability(0));
    }
  }

  @Test
  void aStepAllocatesNothing() {
    TableCausalModel m = new TableCausalModel(200, 4000, 3, 1);
    SamplingOptions options = SamplingOptions.defaults().withPenalties(1.1f, 0.1f, 0.1f, 64);
    AutoregressiveDecoder d =
        AutoregressiveDecoder.of(
            m, Sampler.of(options, 200), new AutoregressiveOptions(0, new int[] {}, 5));
    d.start(PROMPT, 5);
    for (int i = 0; i < 1000; i++) {
      assertTrue(d.next());
    }
    AllocationCounter counter = new AllocationCounter();
    counter.bytes();
    long least = Long.MAX_VALUE;
    for (int round = 0; round < 5; round++) {
      long before = counter.bytes();
      for (int i = 0; i < 200; i++) {
        d.next();
      }
      least = Math.min(least, counter.bytes() - before);
    }
    // The counter itself may cost a few bytes; a step that allocated would cost 200 objects.
    assertTrue(least < 200 * 16, "bytes per 200 steps: " + least);
  }
}
