package io.fletch.graph;

import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * A graph compiled for a backend. Safe for use by several threads: forwards of different batches
 * are serialised on its workers. Closing it releases workers and packed weights; batches and caches
 * made by it must be closed before.
 */
public interface Executable extends AutoCloseable {
  /** The graph it was compiled from. */
  Graph graph();

  /** One plan per row bucket, smallest first; a forward runs the smallest that holds its rows. */
  List<Plan> plans();

  /** One line: backend, kernels, threads, and the reason for the choice. */
  String description();

  /** Makes an empty cache. */
  KvCache newKvCache(int capacity, KvCache.Type type);

  /** Makes a reusable batch. */
  Batch newBatch(int maxRows, int maxLogitRows);

  /**
   * Prepares low-rank terms that rows of batches may ask for, each with a scale of its own. Rows
   * with different adapters, and without, share forwards; the graph's matrices are read once for
   * all of them. May be called at any time; the first adapter for a product makes the executable
   * plan anew.
   *
   * @param name for messages
   * @param deltas what is added, by the value that a product of {@link #graph()} defines; the
   *     tensors are borrowed during the call
   * @throws IllegalArgumentException if a value is not defined by a product, or shapes do not fit
   */
  LowRankAdapter newAdapter(String name, Map<Value, LowRankDelta> deltas);

  /**
   * Refuses a list of terms that rows of its batches cannot have: a device may have room for so
   * many only.
   *
   * @throws IllegalArgumentException naming the limit; {@link Batch#adapt} would throw it too
   */
  default void checkTerms(List<LowRankAdapter.Term> terms) {}

  /**
   * Runs all rows of the batch and fills in the logits asked for. Does not change the length of any
   * cache. Keys and values of all rows are stored before any row attends within a layer.
   *
   * @throws GraphException if a kernel failed; the batch has no logits then, and cache slots of its
   *     rows are undefined
   */
  void forward(Batch batch);

  /**
   * Makes what continues a sequence greedily without the host between its steps.
   *
   * @param cache the sequence's; closed after the steps
   * @param batch made by this executable; its results are lost when steps start
   * @return empty if the backend has nothing that is faster than a forward for every token, or the
   *     graph takes numbers with its rows
   */
  default Optional<GreedySteps> newGreedySteps(KvCache cache, Batch batch) {
    return Optional.empty();
  }

  /**
   * Measures the kernels of a forward of one row, each by itself: slower in sum than the forward,
   * in which they overlap.
   *
   * @param context slots that the row sees, itself included, at least 1
   * @param type of the cache
   * @return one entry per kernel, the slowest first; empty if the backend cannot tell
   * @throws GraphException if a kernel failed or there is no memory for the cache
   */
  default List<KernelTime> kernelTimes(int context, KvCache.Type type) {
    return List.of();
  }

  @Override
  void close();
}
