package io.fletch.quant;

import io.fletch.ffm.NativeMemory;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.apache.arrow.memory.ArrowBuf;

/**
 * Tensors in native memory rather than in a file: converted, packed or made up. The store owns the
 * memory; closing it releases all of its tensors at once, and reading one afterwards is an {@link
 * IllegalStateException}. Safe for use by several threads.
 */
public final class TensorStore implements AutoCloseable {
  /** Smallest alignment of a tensor: a cache line, and the widest vector register. */
  public static final long ALIGNMENT = 64;

  /** From this size on a tensor lies in huge pages, where the system has them. */
  private static final long HUGE_PAGE = 2L << 20;

  private final ArrowMemory memory = new ArrowMemory();

  private TensorStore() {}

  /** An empty store. */
  public static TensorStore create() {
    return new TensorStore();
  }

  /**
   * A tensor of zero bytes, aligned to {@link #ALIGNMENT} (to 2 MiB, and in huge pages where the
   * system has them, when it is at least that large). Large tensors cost memory only where they are
   * written.
   *
   * @param shape outermost axis first
   * @throws IllegalArgumentException if a row is not a whole number of blocks
   * @throws IllegalStateException if the store is closed
   * @throws OutOfMemoryError if the memory cannot be had
   */
  public Tensor allocate(String name, TensorType type, long... shape) {
    long elements = 1;
    for (long dim : shape) {
      if (dim < 0) {
        throw new IllegalArgumentException(name + ": dimension: expected>=0 actual=" + dim);
      }
      elements = Math.multiplyExact(elements, dim);
    }
    if (shape.length > 0) {
      type.bytes(shape[shape.length - 1]);
    }
    long bytes = type.bytes(elements);
    if (bytes == 0) {
      return new Tensor(name, type, shape, memory.empty(), MemorySegment.NULL);
    }
    // Memory of its own per tensor: a buffer that outlives the store keeps only itself.
    if (bytes >= HUGE_PAGE) {
      NativeMemory own = NativeMemory.allocate(bytes);
      ArrowBuf buffer = memory.wrap(own.segment(), own::close);
      return new Tensor(name, type, shape, buffer, own.segment());
    }
    Arena arena = Arena.ofShared();
    MemorySegment segment;
    try {
      segment = arena.allocate(bytes, ALIGNMENT);
    } catch (RuntimeException | Error e) {
      arena.close();
      throw e;
    }
    ArrowBuf buffer = memory.wrap(segment, arena::close);
    return new Tensor(name, type, shape, buffer, segment);
  }

  /**
   * An F32 tensor with these values.
   *
   * @throws IllegalArgumentException if their number is not the product of {@code shape}
   */
  public Tensor floats(String name, float[] values, long... shape) {
    Tensor tensor = allocate(name, TensorType.F32, shape);
    if (tensor.elements() != values.length) {
      throw new IllegalArgumentException(
          name + ": values: expected=" + tensor.elements() + " actual=" + values.length);
    }
    MemorySegment.copy(values, 0, tensor.segment(), ValueLayout.JAVA_FLOAT, 0, values.length);
    return tensor;
  }

  /** Bytes held. */
  public long bytes() {
    return memory.allocatedBytes();
  }

  /**
   * Releases all tensors; later calls do nothing.
   *
   * @throws IllegalStateException if a buffer of the store is still retained elsewhere
   */
  @Override
  public void close() {
    memory.close();
  }
}
