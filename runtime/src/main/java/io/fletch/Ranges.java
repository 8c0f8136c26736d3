package io.fletch;

/** Checks of options: a message names the one that is wrong, what it may be and what it is. */
final class Ranges {
  private Ranges() {}

  /**
   * Refuses a value.
   *
   * @throws IllegalArgumentException unless {@code ok}
   */
  static void check(String name, Object actual, boolean ok, String expected) {
    if (!ok) {
      throw new IllegalArgumentException(name + ": expected=" + expected + " actual=" + actual);
    }
  }
}
