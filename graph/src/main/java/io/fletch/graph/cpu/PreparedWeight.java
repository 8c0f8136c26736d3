package io.fletch.graph.cpu;

import java.lang.foreign.MemorySegment;

/**
 * A matrix ready for its kernel.
 *
 * @param kernel runs products with it
 * @param data packed, or the tensor's own bytes
 * @param out rows
 * @param bytes bytes that one product reads
 */
record PreparedWeight(Kernels.Matmul kernel, MemorySegment data, long out, long bytes) {}
