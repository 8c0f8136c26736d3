package io.fletch.tools.server;

import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * What bounds the requests that are worked on at once: so many slots, and a queue of bounded length
 * for them, first come, first served. Who waits can be sent away by another thread. Thread-safe.
 */
final class Slots {
  /** How a request's stay in the queue ended. */
  enum End {
    /** With a slot. */
    TAKEN,
    /** It has left, see {@link Turn#leave}. */
    LEFT,
    /** No slot in time. */
    LATE,
    /** The slots are closed. */
    CLOSED
  }

  /** A request that has a slot or a place in the queue, until it is closed. */
  final class Turn implements AutoCloseable {
    /** Completed once, by who holds the lock; done if and only if it is not in the queue. */
    private final CompletableFuture<End> end = new CompletableFuture<>();

    /** Belongs to who holds the lock. */
    private boolean isGivenBack;

    private Turn() {}

    /**
     * Waits for the slot, unless it is there.
     *
     * @param nanos how long at most; 0 or less does not wait
     * @throws InterruptedException if the thread was interrupted
     */
    End await(long nanos) throws InterruptedException {
      try {
        return end.get(Math.max(0, nanos), TimeUnit.NANOSECONDS);
      } catch (TimeoutException _) {
        return give(End.LATE);
      } catch (ExecutionException e) {
        throw new IllegalStateException(e);
      }
    }

    /** Gives the place in the queue up; does nothing if the slot is taken. */
    void leave() {
      give(End.LEFT);
    }

    /** Gives the slot back, to the first of those that wait, or the place in the queue. */
    @Override
    public void close() {
      synchronized (Slots.this) {
        if (give(End.LEFT) != End.TAKEN || isGivenBack) {
          return;
        }
        isGivenBack = true;
        Turn next = queue.poll();
        if (next == null) {
          free++;
        } else {
          next.end.complete(End.TAKEN);
        }
      }
    }

    private End give(End why) {
      synchronized (Slots.this) {
        if (end.complete(why)) {
          queue.remove(this);
        }
        return end.join();
      }
    }
  }

  private final int most;

  // All below belong to who holds the lock.

  private final Deque<Turn> queue = new ArrayDeque<>();
  private int free;
  private boolean isClosed;

  /**
   * Makes free slots.
   *
   * @param slots 1 or more
   * @param most requests that may wait
   */
  Slots(int slots, int most) {
    this.free = slots;
    this.most = most;
  }

  /** Takes a slot, or a place in the queue; empty if that is full. */
  synchronized Optional<Turn> enter() {
    Turn turn = new Turn();
    if (isClosed) {
      turn.end.complete(End.CLOSED);
    } else if (free > 0) {
      free--;
      turn.end.complete(End.TAKEN);
    } else if (queue.size() < most) {
      queue.add(turn);
    } else {
      return Optional.empty();
    }
    return Optional.of(turn);
  }

  /** How many wait. */
  synchronized int waiting() {
    return queue.size();
  }

  /** Sends all away that wait, and those that come. Slots that are taken stay so. */
  synchronized void close() {
    isClosed = true;
    queue.forEach(turn -> turn.end.complete(End.CLOSED));
    queue.clear();
  }
}
