package io.fletch.sampling.support;

/** Checks of options: a message names the one that is wrong, what it may be and what it is. */
public final class Ranges {
  private Ranges() {}

  /**
   * Refuses a value.
   *
   * @param name of the option
   * @param actual its value
   * @param ok whether it is in its range
   * @param expected the range, for the message
   * @throws IllegalArgumentException unless {@code ok}
   */
  public static void check(String name, Object actual, boolean ok, String expected) {
    if (!ok) {
      throw new IllegalArgumentException(name + ": expected=" + expected + " actual=" + actual);
    }
  }
}
