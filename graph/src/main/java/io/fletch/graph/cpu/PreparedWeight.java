package io.fletch.graph.cpu;

import java.lang.foreign.MemorySegment;

/**
 * A matrix ready for its kernel.
 *
 * <p>It may change its form while forwards run, from the bytes of the file to a packed copy, and
 * from pages of a file to huge pages: a task takes the {@link #form()} once and works with that.
 * All forms give the same bits, want activations alike and are cut into the same ranges, so nothing
 * else depends on which one it is. One thread at a time changes it.
 */
final class PreparedWeight {
  /**
   * What a product reads.
   *
   * @param kernel runs products with it
   * @param data packed, or the tensor's own bytes
   */
  record Form(Kernels.Matmul kernel, MemorySegment data) {}

  private final long out;
  private final long bytes;
  private final Kernels.ActivationFormat activation;
  private final int rowGranule;
  private volatile Form form;

  /**
   * A matrix in its first form.
   *
   * @param out rows
   * @param bytes bytes that one product reads
   */
  PreparedWeight(Kernels.Matmul kernel, MemorySegment data, long out, long bytes) {
    this.out = out;
    this.bytes = bytes;
    activation = kernel.activation();
    rowGranule = kernel.rowGranule();
    form = new Form(kernel, data);
  }

  /** The form of now. */
  Form form() {
    return form;
  }

  /** Rows. */
  long out() {
    return out;
  }

  /** Bytes that one product reads. */
  long bytes() {
    return bytes;
  }

  /** The form activations are wanted in. */
  Kernels.ActivationFormat activation() {
    return activation;
  }

  /** Rows that a range must be a multiple of. */
  int rowGranule() {
    return rowGranule;
  }

  /** Name of the kernel of now. */
  String kernelName() {
    return form.kernel().name();
  }

  /** Whether this kernel could take the place of the one of now. */
  boolean accepts(Kernels.Matmul kernel) {
    return kernel.activation() == activation && kernel.rowGranule() == rowGranule;
  }

  /**
   * Takes another form of the same matrix, for tasks that begin later.
   *
   * @throws IllegalArgumentException if products with it would be cut or fed otherwise
   */
  void become(Kernels.Matmul kernel, MemorySegment data) {
    if (!accepts(kernel)) {
      throw new IllegalArgumentException(
          "kernel: expected="
              + activation
              + " granule "
              + rowGranule
              + " actual="
              + kernel.activation()
              + " granule "
              + kernel.rowGranule());
    }
    form = new Form(kernel, data);
  }
}
