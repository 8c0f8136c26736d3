package io.fletch.quant.prune;

/**
 * Which weights may be zero.
 *
 * @param keep of every aligned group along a row, at most this many stay; 0 where any may go
 * @param group elements of a group; 0 where any may go
 */
public record Pattern(int keep, int group) {
  /** Any weights. */
  public static final Pattern UNSTRUCTURED = new Pattern(0, 0);

  /** Checks the numbers. */
  public Pattern {
    if (!(keep == 0 && group == 0) && !(keep > 0 && group > keep)) {
      throw new IllegalArgumentException(
          "pattern: expected=0 < N < M actual=" + keep + ":" + group);
    }
  }

  /**
   * Reads {@code unstructured} or {@code N:M}.
   *
   * @throws IllegalArgumentException for anything else
   */
  public static Pattern parse(String text) {
    if (text.equals("unstructured")) {
      return UNSTRUCTURED;
    }
    int colon = text.indexOf(':');
    try {
      return new Pattern(
          Integer.parseInt(text.substring(0, Math.max(0, colon))),
          Integer.parseInt(text.substring(colon + 1)));
    } catch (NumberFormatException e) {
      throw new IllegalArgumentException(
          "pattern: expected=unstructured or N:M such as 2:4 actual=" + text, e);
    }
  }

  /** Whether groups matter. */
  public boolean isGrouped() {
    return group > 0;
  }

  /** Checks that rows are whole groups. */
  void check(int cols) {
    if (isGrouped() && cols % group != 0) {
      throw new IllegalArgumentException(
          "pattern " + this + ": columns: expected=a multiple of " + group + " actual=" + cols);
    }
  }

  @Override
  public String toString() {
    return isGrouped() ? keep + ":" + group : "unstructured";
  }
}
