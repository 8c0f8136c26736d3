package io.fletch.quant;

import java.util.Objects;

/**
 * A matrix of floats whose rows are made when they are asked for, so that no more of it than the
 * rows in work is in memory. Rows may be asked for in any order, again, and by several threads at
 * once.
 */
public interface FloatRows {
  /** Number of rows, at least 0. */
  long rows();

  /** Elements of a row, at least 0. */
  int cols();

  /**
   * Writes a row to the first {@link #cols()} elements of an array.
   *
   * @param row from 0
   * @throws IndexOutOfBoundsException if there is no such row or the array is too short
   */
  void row(long row, float[] to);

  /** The rows of a stored tensor, which stays open meanwhile. */
  static FloatRows of(Tensor tensor) {
    return new FloatRows() {
      @Override
      public long rows() {
        return tensor.rows();
      }

      @Override
      public int cols() {
        return Math.toIntExact(tensor.cols());
      }

      @Override
      public void row(long row, float[] to) {
        Dequantizer.row(tensor, row, to, 0);
      }
    };
  }

  /** An array in rows of {@code cols} elements, at least 1; it is not copied. */
  static FloatRows of(float[] values, int cols) {
    if (cols < 1 || values.length % cols != 0) {
      throw new IllegalArgumentException(
          "elements: expected=a multiple of cols=" + cols + " actual=" + values.length);
    }
    return new FloatRows() {
      @Override
      public long rows() {
        return values.length / cols;
      }

      @Override
      public int cols() {
        return cols;
      }

      @Override
      public void row(long row, float[] to) {
        System.arraycopy(values, (int) Objects.checkIndex(row, rows()) * cols, to, 0, cols);
      }
    };
  }
}
