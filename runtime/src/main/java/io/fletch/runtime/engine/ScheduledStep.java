package io.fletch.runtime.engine;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import java.util.concurrent.locks.Condition;

/**
 * What a session has to run, as {@link StepScheduler} sees it. Its fields are guarded by the lock
 * of the scheduler; its methods are called by the session's thread, or by the thread that leads the
 * forward in which it takes part, never by both at once.
 */
abstract class ScheduledStep {
  private final Condition turn;

  /** Whether the session's thread waits for the scheduler. */
  boolean waits;

  /** The latest forward of the scheduler that this took part in; -1 for none that counts. */
  long ranIn = -1;

  /** Makes one that waits on a condition of its scheduler; null to run alone. */
  ScheduledStep(Condition turn) {
    this.turn = turn;
  }

  /** What the session's thread waits on. */
  final Condition turn() {
    return turn;
  }

  /** Whether rows are left to run. */
  abstract boolean isPending();

  /** Rows that are left to run. */
  abstract int pendingRows();

  /** Most rows in one forward. */
  abstract int chunk();

  /** Runs the next rows in a batch of its own. */
  abstract void runAlone(Executable on, int rows);

  /** Adds the next rows to a batch of several sessions. */
  abstract void addTo(Batch into, int rows);

  /** Weights that the rows of a batch spared, in bytes. */
  abstract long bytesSpared(Batch in);

  /**
   * Takes what a batch has computed.
   *
   * @param sessions that it was for
   * @param spared bytes of weights that they spared together
   */
  abstract void ran(Batch in, int rows, int sessions, long spared);

  /** Ends it: nothing is pending any more, and {@link #rethrow} throws. */
  abstract void fail(Throwable why);

  /** Throws what it has failed of, if it has. */
  abstract void rethrow();
}
