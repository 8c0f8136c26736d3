package io.fletch.sampling;

import java.util.List;

/**
 * A model that denoises a canvas, as diffusion schedules see it: it runs windows of rows with
 * explicit positions, cache slots and visibility, and reduces the rows asked for. The runtime maps
 * a {@link CanvasWindow} onto a span of the graph; tests put a table behind it. Used by one thread
 * at a time.
 *
 * <p>There are several caches (a second one for classifier-free guidance, one per beam). Every row
 * that runs writes keys and values into its slot, and what a later window sees is only what it
 * names, so that <em>keeping</em> keys and values is naming their slots again, and
 * <em>invalidating</em> them is not naming them. In one run all rows write before any row attends.
 */
public interface CanvasForward {
  /** Number of logits of a row. */
  int vocabulary();

  /** Most positions (the model's context). */
  int context();

  /**
   * Starts a request: makes room and forgets what the caches hold. Calls within one request stay
   * within these numbers.
   *
   * @param caches number of caches
   * @param slots slots of each
   * @param rows most rows in one {@link #run}, over all windows
   * @param headRows most rows with logits in one run
   * @param edits what {@link #statistics} adds to logits before it reduces them
   * @throws SamplingException if there is no room; the message says what was wanted and what there
   *     is
   */
  void begin(int caches, int slots, int rows, int headRows, LogitEdits edits);

  /**
   * One pass over the weights. Results of the pass before are lost.
   *
   * @throws IllegalArgumentException if a window is outside what {@link #begin} reserved or a token
   *     is outside the vocabulary
   */
  void run(List<CanvasWindow> windows);

  /**
   * Reduces, after the edits, the logits of a row of the latest run.
   *
   * @param window index in the run's list
   * @param head index into that window's {@link CanvasWindow#heads()}
   */
  void statistics(int window, int head, RowStatistics into);

  /** Copies the raw logits (without edits) of a row into {@code target[0 .. vocabulary)}. */
  void logits(int window, int head, float[] target);

  /**
   * Copies keys and values of {@code count} slots of all layers; ranges do not overlap. A drafted
   * canvas that is accepted moves into its place this way.
   */
  void copy(int fromCache, int fromSlot, int toCache, int toSlot, int count);

  /** Bytes of weights and cache read so far, or -1 if not known. */
  default long bytesRead() {
    return -1;
  }
}
