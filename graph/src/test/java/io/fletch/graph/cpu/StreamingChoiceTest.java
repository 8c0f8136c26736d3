package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.cpu.x86.Streaming;
import java.util.List;
import org.junit.jupiter.api.Test;

class StreamingChoiceTest {
  private static final long BYTES = StreamingChoice.MIN_BYTES;

  private static final List<Streaming> WAYS =
      List.of(new Streaming(4, 512, false), new Streaming(2, 0, false), new Streaming(1, 0, true));

  /** Products until the choice is settled, each way with its nanoseconds. */
  private static StreamingChoice settle(long... nanos) {
    StreamingChoice choice = new StreamingChoice("test", WAYS);
    int[] taken = new int[WAYS.size()];
    for (int call = 0; !choice.settled(); call++) {
      int turn = choice.begin(2 * BYTES);
      int way = choice.way(turn);
      if (turn < 0) {
        assertEquals(choice.chosen(), way);
      } else {
        taken[way]++;
        // Now and then another process takes the processor.
        choice.end(turn, 2 * BYTES, turn % 7 == 0 ? 50 * nanos[way] : nanos[way]);
      }
      assertTrue(call < 100_000, "never settles");
    }
    for (int n : taken) {
      assertEquals(3 * StreamingChoice.SAMPLES, n);
    }
    assertEquals(-1, choice.begin(2 * BYTES));
    return choice;
  }

  @Test
  void theFastestWayStays() {
    assertEquals(2, settle(200, 190, 150).chosen());
    assertEquals(1, settle(200, 140, 150).chosen());
    assertEquals(0, settle(140, 150, 200).chosen());
  }

  @Test
  void theExpectedWayStaysUnlessAnotherIsClearlyBetter() {
    assertEquals(0, settle(1000, 980, 970).chosen());
  }

  @Test
  void shortProductsAreNotTried() {
    StreamingChoice choice = new StreamingChoice("test", WAYS);
    for (int i = 0; i < 10_000; i++) {
      assertEquals(-1, choice.begin(BYTES - 1));
    }
    assertEquals(0, choice.way(-1));
    assertFalse(choice.settled());
  }

  @Test
  void oneWayNeedsNoTrial() {
    StreamingChoice choice = new StreamingChoice("test", WAYS.subList(0, 1));
    assertTrue(choice.settled());
    assertEquals(-1, choice.begin(BYTES));
  }
}
