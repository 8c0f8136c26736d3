package io.fletch.graph.cuda;

import io.fletch.ffm.device.CudaEvent;
import io.fletch.ffm.device.CudaException;
import io.fletch.ffm.device.CudaGraphExec;
import io.fletch.ffm.device.CudaStream;
import io.fletch.ffm.device.PinnedMemory;
import io.fletch.graph.GraphException;
import io.fletch.graph.GreedySteps;
import java.lang.foreign.ValueLayout;
import java.util.Deque;
import java.util.List;

/**
 * Greedy steps on the device. A step is one launch of a captured graph: the kernels of a forward of
 * one row, then one that makes the row's argmax the token of the next row, and a download of the
 * latest tokens into pinned memory. An event per step says when its token is there.
 */
final class CudaGreedySteps implements GreedySteps {
  /** Tokens in the ring. A step's place is written again only when its token has been taken. */
  static final int RING = 32;

  /** Where the number of the next step lies, behind the ring. */
  static final int COUNT = 4 * RING;

  static final int BYTES = COUNT + 16;

  private static final int MOST_PENDING = RING / 2;

  private final CudaExecutable owner;
  private final CudaKvCache cache;
  private final CudaBatch batch;
  private final Parts parts;

  /** Number of the step that is queued next; the device counts along. */
  private int queued;

  /** Number of the step that is taken next. */
  private int taken;

  /** Slot of the step that is queued next. */
  private int slot;

  private boolean closed;

  CudaGreedySteps(CudaExecutable owner, CudaKvCache cache, CudaBatch batch, Parts parts) {
    this.owner = owner;
    this.cache = cache;
    this.batch = batch;
    this.parts = parts;
  }

  /**
   * What steps are made of.
   *
   * @param host the latest tokens, pinned
   * @param events one per place of the ring
   * @param step the graph
   * @param owned frees all of it and what belongs to it
   */
  record Parts(
      PinnedMemory host, List<CudaEvent> events, CudaGraphExec step, Deque<Runnable> owned) {}

  CudaKvCache cache() {
    return cache;
  }

  CudaBatch batch() {
    return batch;
  }

  private void checkOpen() {
    if (closed) {
      throw new IllegalStateException("the steps are closed");
    }
    cache.checkOpen();
  }

  @Override
  public void start(int token) {
    checkOpen();
    if (cache.length() >= owner.slots(cache)) {
      throw new IllegalStateException("the cache is full: capacity=" + owner.slots(cache));
    }
    // Whatever is pending is never asked for again.
    taken = queued;
    slot = cache.length();
    owner.start(this, token);
  }

  /** Queues a step; called by the owner, which has the lock. */
  void queue(CudaStream stream) {
    parts.step().launch(stream);
    stream.record(parts.events().get(queued % RING));
    queued++;
    slot++;
  }

  @Override
  public boolean follow() {
    checkOpen();
    boolean room = pending() < MOST_PENDING && slot < owner.slots(cache);
    return room && owner.follow(this);
  }

  @Override
  public int pending() {
    return queued - taken;
  }

  @Override
  public int take() {
    checkOpen();
    if (pending() == 0) {
      throw new IllegalStateException("no step is pending");
    }
    CudaEvent done = parts.events().get(taken % RING);
    try {
      if (!done.isDone()) {
        done.synchronize();
      }
    } catch (CudaException e) {
      throw new GraphException("greedy step: " + e.getMessage(), e);
    }
    int token = parts.host().segment().get(ValueLayout.JAVA_INT, 4L * (taken % RING));
    taken++;
    return token;
  }

  @Override
  public void close() {
    if (closed) {
      return;
    }
    closed = true;
    owner.end(this, parts.owned());
  }
}
