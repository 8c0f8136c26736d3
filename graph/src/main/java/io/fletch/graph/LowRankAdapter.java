package io.fletch.graph;

import java.util.Objects;

/**
 * Low-rank terms for products of a graph, prepared by an executable ({@link
 * Executable#newAdapter}), which rows of its batches may ask for ({@link Batch#adapt}). Immutable
 * until it is closed; used by any number of batches and threads.
 */
public interface LowRankAdapter extends AutoCloseable {
  /** Name for messages. */
  String name();

  /** Bytes of memory that its matrices take. */
  long bytes();

  /**
   * Releases its memory, after a forward that runs. Batches that name it cannot be run any more.
   * Closing it again does nothing.
   */
  @Override
  void close();

  /**
   * One of the adapters of a row.
   *
   * @param adapter prepared by the batch's executable
   * @param scale multiplies what it adds; finite, 0 for nothing
   */
  record Term(LowRankAdapter adapter, float scale) {
    /** Refuses what is not a number. */
    public Term {
      Objects.requireNonNull(adapter, "adapter");
      if (!Float.isFinite(scale)) {
        throw new IllegalArgumentException(
            adapter.name() + ": scale: expected=finite actual=" + scale);
      }
    }
  }
}
