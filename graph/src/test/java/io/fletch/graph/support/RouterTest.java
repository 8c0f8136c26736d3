package io.fletch.graph.support;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.fletch.graph.RouteSpec;
import io.fletch.graph.RouteSpec.Scoring;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import org.junit.jupiter.api.Test;

class RouterTest {
  private static float[] route(RouteSpec spec, float[] scores, float... bias) {
    float[] out = new float[spec.width()];
    Router.route(
        spec,
        MemorySegment.ofArray(scores),
        0,
        bias.length == 0 ? MemorySegment.NULL : MemorySegment.ofArray(bias),
        MemorySegment.ofArray(out),
        0);
    return Arrays.copyOf(out, 2 * spec.used());
  }

  @Test
  void softmaxOverAllOrOverTheChosen() {
    float[] scores = {0, (float) Math.log(2), (float) Math.log(5), 0};
    assertArrayEquals(
        new float[] {5f / 9, 2f / 9, 2, 1}, route(RouteSpec.softmax(4, 2, false), scores), 1e-6f);
    assertArrayEquals(
        new float[] {5f / 7, 2f / 7, 2, 1}, route(RouteSpec.softmax(4, 2, true), scores), 1e-6f);
  }

  @Test
  void theLowestIndexWinsTies() {
    assertArrayEquals(
        new float[] {1f / 3, 1f / 3, 0, 1},
        route(RouteSpec.softmax(3, 2, false), new float[] {7, 7, 7}),
        1e-6f);
  }

  @Test
  void aBiasDecidesTheChoiceButNotTheWeight() {
    RouteSpec spec = new RouteSpec(3, 1, Scoring.SIGMOID, false, 2.5f, 1, 1);
    assertArrayEquals(new float[] {1.25f, 1}, route(spec, new float[] {3, 0, 1}, 0, 1, 0), 1e-6f);
  }

  @Test
  void groupsAreChosenByTheirTwoBest() {
    RouteSpec spec = new RouteSpec(6, 2, Scoring.SIGMOID, true, 1, 3, 1);
    // The best expert is alone in its group; the middle group has the better pair.
    float[] r = route(spec, new float[] {4, -9, 2, 2, 1, 1});
    assertEquals(2, r[2]);
    assertEquals(3, r[3]);
    assertEquals(0.5f, r[0], 1e-6f);
  }

  @Test
  void notANumberIsNeverChosenBeforeANumber() {
    float[] r = route(RouteSpec.softmax(3, 2, true), new float[] {Float.NaN, -80, 1});
    assertEquals(2, r[2]);
    assertEquals(1, r[3]);
  }

  @Test
  void refusesMoreThanThereIs() {
    assertThrows(IllegalArgumentException.class, () -> RouteSpec.softmax(4, 5, false));
    assertThrows(
        IllegalArgumentException.class, () -> new RouteSpec(8, 3, Scoring.SOFTMAX, false, 1, 4, 1));
    assertThrows(
        IllegalArgumentException.class, () -> new RouteSpec(9, 1, Scoring.SOFTMAX, false, 1, 2, 1));
  }
}
