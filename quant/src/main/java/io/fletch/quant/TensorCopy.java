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
    FloatRows values = FloatRows.of(source);
    return sink ->
        write(type, type == source.type() ? this::copy : quantizer(values, type, importance), sink);
  }

  /**
   * The bytes of other values in the place of the source's.
   *
   * @param values rows as the source has them
   * @throws IllegalArgumentException if they have another shape; when written, if an element does
   *     not fit the type (F32 takes all)
   */
  public TensorSource with(FloatRows values, TensorType type) {
    if (values.rows() != source.rows() || values.cols() != source.cols()) {
      throw new IllegalArgumentException(
          "tensor "
              + name
              + ": values: expected="
              + source.rows()
              + "x"
              + source.cols()
              + " actual="
              + values.rows()
              + "x"
              + values.cols());
    }
    return sink ->
        write(type, type == TensorType.F32 ? floats(values) : quantizer(values, type, null), sink);
  }

  /** Writes a row of the source to a place. */
  private interface RowWriter {
    void write(long from, MemorySegment to, long at);
  }

  private void write(TensorType type, RowWriter writer, TensorSource.Sink sink) throws IOException {
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
        try {
          LongStream.range(0, n)
              .parallel()
              .forEach(i -> writer.write(order.applyAsLong(first + i), piece, i * rowBytes));
        } catch (IllegalArgumentException e) {
          throw asThrown(e);
        }
        sink.write(piece.asSlice(0, n * rowBytes));
      }
    }
  }

  /** What a task threw: a pool gives another thread a copy that has it as its cause. */
  private static IllegalArgumentException asThrown(IllegalArgumentException e) {
    return e.getCause() instanceof IllegalArgumentException cause
            && cause.toString().equals(e.getMessage())
        ? cause
        : e;
  }

  private void copy(long from, MemorySegment to, long at) {
    long bytes = source.rowBytes();
    MemorySegment.copy(source.segment(), from * bytes, to, at, bytes);
  }

  private static RowWriter floats(FloatRows values) {
    return (from, to, at) -> {
      float[] row = new float[values.cols()];
      values.row(from, row);
      MemorySegment.copy(row, 0, to, ByteCursor.FLOAT, at, row.length);
    };
  }

  private RowWriter quantizer(FloatRows values, TensorType type, float[] importance) {
    return (from, to, at) -> {
      float[] row = new float[values.cols()];
      values.row(from, row);
      try {
        Quantizer.quantize(type, row, 0, row.length, importance, to, at);
      } catch (IllegalArgumentException e) {
        throw new IllegalArgumentException(
            "tensor " + name + " row " + from + " as " + type + ": " + e.getMessage(), e);
      }
    };
  }
}
