package io.fletch.quant;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Objects;
import java.util.function.LongUnaryOperator;
import java.util.stream.LongStream;

/**
 * A tensor on its way into another file: its rows perhaps in another order, its type perhaps
 * another. Rows are converted in pieces of a few MiB, several threads at once; the bytes do not
 * depend on the number of threads. Immutable.
 *
 * @param name in the new file
 * @param source stays open meanwhile
 * @param shape in the new file; a whole number of the source's rows
 * @param order from a row of the new tensor to that of the source
 */
public record TensorCopy(String name, Tensor source, long[] shape, LongUnaryOperator order) {
  private static final long PIECE = 4L << 20;

  /** Checks for nulls. */
  public TensorCopy {
    Objects.requireNonNull(name, "name");
    Objects.requireNonNull(source, "source");
    Objects.requireNonNull(order, "order");
    shape = shape.clone();
  }

  @Override
  public long[] shape() {
    return shape.clone();
  }

  /** A tensor as it is. */
  public static TensorCopy of(Tensor tensor) {
    return new TensorCopy(tensor.name(), tensor, tensor.shape(), LongUnaryOperator.identity());
  }

  /**
   * The bytes as another type. The same type is copied, never decoded.
   *
   * @param importance per column, or null (see {@link Quantizer})
   * @throws IllegalArgumentException when written, if an element does not fit the type; the message
   *     names the tensor
   */
  public TensorSource as(TensorType type, float[] importance) {
    return sink -> write(type, importance, sink);
  }

  private void write(TensorType type, float[] importance, TensorSource.Sink sink)
      throws IOException {
    int cols = Math.toIntExact(source.cols());
    long rows = cols == 0 ? 0 : LongStream.of(shape).reduce(1, Math::multiplyExact) / cols;
    long rowBytes = type.bytes(cols);
    if (rowBytes == 0 || rows == 0) {
      return;
    }
    long step = Math.max(1, PIECE / Math.max(rowBytes, 4L * cols));
    try (Arena arena = Arena.ofShared()) {
      MemorySegment piece = arena.allocate(Math.min(step, rows) * rowBytes, 64);
      for (long from = 0; from < rows; from += step) {
        long first = from;
        long n = Math.min(step, rows - from);
        LongStream.range(0, n)
            .parallel()
            .forEach(i -> row(type, importance, first + i, piece, i * rowBytes));
        sink.write(piece.asSlice(0, n * rowBytes));
      }
    }
  }

  private void row(TensorType type, float[] importance, long row, MemorySegment to, long at) {
    long from = order.applyAsLong(row);
    if (type == source.type()) {
      long bytes = source.rowBytes();
      MemorySegment.copy(source.segment(), from * bytes, to, at, bytes);
      return;
    }
    float[] values = new float[Math.toIntExact(source.cols())];
    Dequantizer.row(source, from, values, 0);
    try {
      Quantizer.quantize(type, values, 0, values.length, importance, to, at);
    } catch (IllegalArgumentException e) {
      throw new IllegalArgumentException(
          "tensor " + name + " row " + row + " as " + type + ": " + e.getMessage(), e);
    }
  }
}
