package io.fletch.quant;

import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.ForeignAllocation;
import org.apache.arrow.memory.RootAllocator;

/**
 * One Arrow allocator and the foreign memory wrapped by it: the single place where this module
 * meets Arrow's memory management. Owned by an open {@link WeightFile} or {@link TensorStore}.
 *
 * <p>Memory goes back when the last reference to its buffer is released. {@link #close()} releases
 * the owner's references, so a buffer that somebody else retained stays readable and is reported as
 * a leak instead of becoming a dangling pointer. Methods are safe for use by several threads.
 */
final class ArrowMemory implements AutoCloseable {
  static {
    // Arrow logs through slf4j, which prints a warning to stderr when the application has no
    // provider. An embedder did not ask for either, so that one report is silenced, here and
    // nowhere else, unless the embedder chose a verbosity.
    if (System.getProperty("slf4j.internal.verbosity") == null) {
      System.setProperty("slf4j.internal.verbosity", "ERROR");
    }
  }

  private final BufferAllocator allocator = new RootAllocator(Long.MAX_VALUE);
  private final List<ArrowBuf> roots = new ArrayList<>();
  private boolean closed;

  /**
   * Wraps memory without copying it.
   *
   * @param segment native memory, not empty
   * @param release gives the memory back; called exactly once, also when this method throws
   */
  synchronized ArrowBuf wrap(MemorySegment segment, Runnable release) {
    ArrowBuf buffer = null;
    try {
      checkOpen();
      buffer =
          allocator.wrapForeignAllocation(
              new ForeignAllocation(segment.byteSize(), segment.address()) {
                @Override
                protected void release0() {
                  release.run();
                }
              });
      roots.add(buffer);
      return buffer;
    } finally {
      if (buffer == null) {
        release.run();
      }
    }
  }

  /**
   * Does something with wrapped memory that must not go away meanwhile.
   *
   * @throws IllegalStateException if closed
   */
  synchronized void whileOpen(Runnable action) {
    checkOpen();
    action.run();
  }

  /** A buffer of no bytes, which needs no release. */
  ArrowBuf empty() {
    return allocator.getEmpty();
  }

  /** Bytes wrapped and not yet released. */
  long allocatedBytes() {
    return allocator.getAllocatedMemory();
  }

  private void checkOpen() {
    if (closed) {
      throw new IllegalStateException("closed");
    }
  }

  /**
   * Releases everything; later calls do nothing.
   *
   * @throws IllegalStateException if somebody still retains a buffer
   */
  @Override
  public synchronized void close() {
    if (closed) {
      return;
    }
    closed = true;
    for (ArrowBuf root : roots) {
      root.getReferenceManager().release();
    }
    roots.clear();
    long left = allocator.getAllocatedMemory();
    if (left != 0) {
      // The allocator stays open for whoever holds the buffer, and goes with it.
      throw new IllegalStateException(
          "closed while buffers are still retained elsewhere: expected=0 actual="
              + left
              + " bytes");
    }
    allocator.close();
  }
}
