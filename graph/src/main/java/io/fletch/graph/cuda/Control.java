package io.fletch.graph.cuda;

/**
 * Where the data of a forward's rows lie in the block that is uploaded before each: byte offsets
 * for a row bucket. Counts of rows and logit rows come first.
 *
 * @param rows rows of the bucket
 * @param windows number of distinct sliding windows
 * @param gates number of gate indices
 */
record Control(int rows, int windows, int gates) {
  static final int ROWS = 0;
  static final int LOGIT_ROWS = 4;

  /** Bytes of the visible ranges of a row: their number, then six ints, then padding. */
  static final int RANGE_BYTES = 32;

  private static final int HEAD = 16;

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

  int gate(int index) {
    return ranges(windows) + rows * index;
  }

  int bytes() {
    return gate(gates);
  }
}
