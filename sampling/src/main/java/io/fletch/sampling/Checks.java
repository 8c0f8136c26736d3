package io.fletch.sampling;

/** Range checks of option records. */
final class Checks {
  private Checks() {}

  static void atLeast(String name, long value, long least) {
    if (value < least) {
      throw new IllegalArgumentException(
          name + ": expected=at least " + least + " actual=" + value);
    }
  }

  static void range(String name, double value, double least, double most) {
    if (!(value >= least && value <= most)) {
      throw new IllegalArgumentException(
          name + ": expected=in [" + least + ", " + most + "] actual=" + value);
    }
  }
}
