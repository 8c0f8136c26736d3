package io.fletch.quant;

import java.io.IOException;
import java.lang.foreign.MemorySegment;

/** Produces the bytes of a tensor for a file writer, in pieces of any size, in order. */
@FunctionalInterface
public interface TensorSource {
  /**
   * Writes all bytes; called once, by the thread that writes the file.
   *
   * @throws IOException from the sink
   */
  void writeTo(Sink sink) throws IOException;

  /** Takes the bytes. */
  @FunctionalInterface
  interface Sink {
    /**
     * Appends a piece, which may be reused afterwards.
     *
     * @throws IOException if writing fails
     */
    void write(MemorySegment bytes) throws IOException;
  }
}
