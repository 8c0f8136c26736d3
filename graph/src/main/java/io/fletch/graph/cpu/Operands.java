package io.fletch.graph.cpu;

import java.lang.foreign.MemorySegment;
import java.util.Objects;

/** Checks of what a product is asked for, before machine code takes addresses. Stateless. */
final class Operands {
  private Operands() {}

  /**
   * Checks a range of outputs.
   *
   * @param rows rows of the matrix that the kernel is for, which {@code out} must be
   * @param granule what each end is a multiple of, unless it is the end of the matrix
   * @throws IllegalArgumentException if it is none of the matrix
   */
  static void checkRange(long rows, long out, long from, long to, int granule) {
    boolean whole = (from % granule == 0 || from == out) && (to % granule == 0 || to == out);
    if (from < 0 || from > to || to > out || out != rows || !whole) {
      throw new IllegalArgumentException(
          "rows: expected=multiples of "
              + granule
              + " within "
              + rows
              + " actual=["
              + from
              + ","
              + to
              + ") of "
              + out);
    }
  }

  /**
   * Checks the segments of a product with at least one row and one output.
   *
   * @param weightBytes bytes of the matrix
   * @param xBytes bytes of all rows of activations
   * @param yAt float of the first output of the first row
   * @param n outputs of a row
   * @throws IndexOutOfBoundsException if one is too short
   */
  static void check(
      MemorySegment weight,
      long weightBytes,
      MemorySegment x,
      long xOffset,
      long xBytes,
      int rows,
      MemorySegment y,
      long yAt,
      long yStride,
      long n) {
    Objects.checkFromIndexSize(0, weightBytes, weight.byteSize());
    Objects.checkFromIndexSize(xOffset, xBytes, x.byteSize());
    Objects.checkFromIndexSize(4 * yAt, 4 * ((rows - 1) * yStride + n), y.byteSize());
  }
}
