package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import org.junit.jupiter.api.Test;

class StopStringsTest {
  @Test
  void withholdsWhatMayBecomeAStop() {
    StopStrings stops = new StopStrings(List.of("END", "NEVER"));
    assertEquals("a ", stops.accept("a E"));
    assertEquals("", stops.accept("N"));
    assertEquals("ENA", stops.accept("A"));
    assertEquals("", stops.accept("EN"));
    assertFalse(stops.matched());
    assertEquals("", stops.accept("Dx"));
    assertTrue(stops.matched());
    assertEquals("", stops.accept("more"));
    assertEquals("", stops.finish());
  }

  @Test
  void givesBackWhatNeverBecameOne() {
    StopStrings stops = new StopStrings(List.of("\n\n"));
    assertEquals("x", stops.accept("x\n"));
    assertEquals("\n", stops.finish());
  }

  @Test
  void theFirstCompleteOneWinsAndTheLongestOfThose() {
    assertEquals("ab", new StopStrings(List.of("abcd", "c")).accept("abcd"));
    assertEquals("a", new StopStrings(List.of("cd", "bcd")).accept("abcd"));
  }

  @Test
  void overlappingBeginnings() {
    StopStrings stops = new StopStrings(List.of("aab"));
    assertEquals("a", stops.accept("aaa"));
    assertEquals("", stops.accept("b"));
    assertTrue(stops.matched());
  }

  @Test
  void withoutStopsTextPasses() {
    StopStrings stops = new StopStrings(List.of());
    assertEquals("abc", stops.accept("abc"));
    assertEquals("", stops.finish());
  }
}
