package io.fletch.sampling;

/**
 * Rows of a canvas that a forward runs, and what they see; slots equal positions.
 *
 * @param from first row
 * @param to end of the rows
 * @param prefix slots {@code [0, prefix)} are seen
 * @param suffixFrom slots {@code [suffixFrom, suffixTo)} are seen too
 * @param suffixTo end of them
 * @param refresh whether later forwards rely on what this one writes: it runs alone and in place
 */
record Region(int from, int to, int prefix, int suffixFrom, int suffixTo, boolean refresh) {
  int rows() {
    return to - from;
  }

  static Region full(CanvasState s, boolean refresh) {
    return new Region(0, s.length(), 0, 0, 0, refresh);
  }
}
