package io.fletch.quant;

import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.Objects;
import org.apache.arrow.memory.ArrowBuf;

/**
 * A named weight: a type, a shape and the Arrow buffer that holds it. Immutable; the buffer is
 * owned by the {@link WeightFile} (or {@link TensorStore}) it came from and dies with that.
 *
 * <p>Shapes are row-major with the outermost axis first, as in safetensors: a linear layer is
 * {@code [out, in]}. (GGUF lists axes the other way round; its reader turns them.)
 */
public final class Tensor {
  private final String name;
  private final TensorType type;
  private final long[] shape;
  private final ArrowBuf buffer;
  private final MemorySegment segment;

  /**
   * Describes a tensor.
   *
   * @param buffer the bytes, exactly {@code type.bytes(product(shape))} of them
   * @param segment a view of the same bytes; its lifetime is that of the buffer's owner
   */
  public Tensor(
      String name, TensorType type, long[] shape, ArrowBuf buffer, MemorySegment segment) {
    this.name = Objects.requireNonNull(name, "name");
    this.type = Objects.requireNonNull(type, "type");
    this.shape = shape.clone();
    this.buffer = Objects.requireNonNull(buffer, "buffer");
    this.segment = Objects.requireNonNull(segment, "segment");
    long expected = type.bytes(elements());
    if (segment.byteSize() != expected || buffer.capacity() != expected) {
      throw new IllegalArgumentException(
          "tensor "
              + name
              + " "
              + type
              + " "
              + Arrays.toString(shape)
              + ": expected="
              + expected
              + " bytes, actual="
              + segment.byteSize());
    }
  }

  /** The name in its file. */
  public String name() {
    return name;
  }

  /** How elements are stored. */
  public TensorType type() {
    return type;
  }

  /** A copy of the shape, outermost axis first; empty for a scalar. */
  public long[] shape() {
    return shape.clone();
  }

  /** Number of axes. */
  public int rank() {
    return shape.length;
  }

  /** Size of axis {@code axis}. */
  public long dim(int axis) {
    return shape[Objects.checkIndex(axis, shape.length)];
  }

  /** Number of elements. */
  public long elements() {
    long n = 1;
    for (long d : shape) {
      n = Math.multiplyExact(n, d);
    }
    return n;
  }

  /** Elements of the innermost axis (1 for a scalar): the {@code in} of a linear layer. */
  public long cols() {
    return shape.length == 0 ? 1 : shape[shape.length - 1];
  }

  /** Product of all other axes: the {@code out} of a linear layer. */
  public long rows() {
    long n = 1;
    for (int i = 0; i < shape.length - 1; i++) {
      n = Math.multiplyExact(n, shape[i]);
    }
    return n;
  }

  /** Bytes of one row. */
  public long rowBytes() {
    return type.bytes(cols());
  }

  /** Bytes in all. */
  public long bytes() {
    return segment.byteSize();
  }

  /**
   * A part of this tensor's bytes as a tensor of the same type; borrowed, like the whole.
   *
   * @param from first byte; a multiple of the block size
   */
  public Tensor view(String viewName, long from, long... viewShape) {
    long n = 1;
    for (long d : viewShape) {
      n = Math.multiplyExact(n, d);
    }
    long bytes = type.bytes(n);
    Objects.checkFromIndexSize(from, bytes, bytes());
    if (from % type.blockBytes() != 0) {
      throw new IllegalArgumentException(
          viewName + ": from expected=multiple of " + type.blockBytes() + " actual=" + from);
    }
    return new Tensor(
        viewName, type, viewShape, buffer.slice(from, bytes), segment.asSlice(from, bytes));
  }

  /** The Arrow buffer; borrowed, do not release it. */
  public ArrowBuf buffer() {
    return buffer;
  }

  /** The same bytes as a segment; borrowed. */
  public MemorySegment segment() {
    return segment;
  }

  @Override
  public String toString() {
    return name + " " + type + " " + Arrays.toString(shape);
  }
}
