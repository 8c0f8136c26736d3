package io.fletch.sampling;

/**
 * What a technique that lets units of a model rest did: attention and feed-forward units of the
 * tokens that it looked at.
 *
 * @param units units of these tokens
 * @param skipped those that added nothing
 * @param approximated those whose result was forecast
 */
public record UnitUse(long units, long skipped, long approximated) {
  /** Nothing. */
  public static final UnitUse NONE = new UnitUse(0, 0, 0);

  /** Share of units that did not run; 0 without any. */
  public double restShare() {
    return units == 0 ? 0 : (double) (skipped + approximated) / units;
  }

  /** Both together. */
  public UnitUse plus(UnitUse other) {
    return new UnitUse(
        units + other.units, skipped + other.skipped, approximated + other.approximated);
  }

  /** What came after an earlier count. */
  public UnitUse minus(UnitUse earlier) {
    return new UnitUse(
        units - earlier.units, skipped - earlier.skipped, approximated - earlier.approximated);
  }
}
