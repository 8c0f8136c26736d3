package io.fletch.graph.cuda;

/**
 * Where the data of a forward's rows lie in the block that is uploaded before each: byte offsets
 * for a row bucket. Counts of rows and logit rows come first. What kernels decide about gates they
 * write into it, and it is downloaded from {@link #gate} on where the graph decides.
 *
 * @param rows rows of the bucket
 * @param windows number of distinct sliding windows
 * @param gates number of gate indices
 * @param decisions number of deciding ops
 * @param numbers floats that come with a row, see {@link io.fletch.graph.Op.Input}
 * @param adapted whether rows may have low-rank terms
 */
record Control(int rows, int windows, int gates, int decisions, int numbers, boolean adapted) {
  static final int ROWS = 0;
  static final int LOGIT_ROWS = 4;

  /**
   * Bytes of the visible ranges of a row: their number, then six ints, zeros where there are fewer,
   * then how far behind its own slots the row comes in the order of the sequence.
   */
  static final int RANGE_BYTES = 32;

  private static final int HEAD = 16;

  /** Without low-rank terms. */
  Control(int rows, int windows, int gates, int decisions, int numbers) {
    this(rows, windows, gates, decisions, numbers, false);
  }

  /** Address of the row's cache, 64 bits. */
  int cache() {
    return HEAD;
  }

  int capacity() {
    return cache() + 8 * rows;
  }

  int token() {
    return capacity() + 4 * rows;
  }

  int position() {
    return token() + 4 * rows;
  }

  int slot() {
    return position() + 4 * rows;
  }

  int logitSource() {
    return slot() + 4 * rows;
  }

  int ranges(int window) {
    return logitSource() + 4 * rows + RANGE_BYTES * rows * window;
  }

  // What deciding ops go by; nothing without any.

  private int deciding() {
    return decisions == 0 ? 0 : 4 * rows;
  }

  /** Whether the row takes part in skipping: 0 or 1. */
  int skips() {
    return ranges(windows);
  }

  int skipThreshold() {
    return skips() + deciding();
  }

  int skipRun() {
    return skipThreshold() + deciding();
  }

  /** Units that may still rest; counted down. */
  int skipLeft() {
    return skipRun() + deciding();
  }

  /** The byte of a unit that is not executed, 0 for a row that takes no part in routing. */
  int routeOtherwise() {
    return skipLeft() + deciding();
  }

  int routeThreshold() {
    return routeOtherwise() + deciding();
  }

  /** Scores of a deciding op. */
  int score(int decision) {
    return routeThreshold() + deciding() + 4 * rows * decision;
  }

  int gate(int index) {
    return score(decisions) + rows * index;
  }

  /** The numbers of the first row. */
  int input() {
    return gate(gates) + 3 & -4;
  }

  private int endOfInput() {
    return Math.addExact(input(), Math.multiplyExact(4 * numbers, rows));
  }

  /** How many low-rank terms the row has. */
  int termCount() {
    return endOfInput() + 15 & -16;
  }

  /** The terms of the first row, room for {@link AdapterKernels#MOST_TERMS} a row. */
  int terms() {
    return termCount() + 4 * rows + 15 & -16;
  }

  int bytes() {
    return adapted
        ? Math.addExact(
            terms(),
            Math.multiplyExact(AdapterKernels.TERM_BYTES * AdapterKernels.MOST_TERMS, rows))
        : endOfInput();
  }
}
