package io.fletch.runtime.engine;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import java.util.ArrayDeque;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;

/**
 * Runs the steps of all sessions of a model together: what is waiting when a forward begins shares
 * it, so that the weights are read once for all (continuous batching). The graph's rows do not
 * depend on each other, so a session gets the very bits that it would get alone.
 *
 * <p>There is no thread of its own. A session that has a step to run puts itself into the queue; if
 * nobody leads, its thread leads one forward for all that wait, else it waits. Where several
 * sessions ran together last, the leader waits a moment for those that are choosing their token: at
 * most a quarter of the last forward and never longer than {@link #MOST_WAIT_NANOS}. A session
 * alone never waits and runs in a batch of its own: no copies, no allocation.
 *
 * <p>Fair: first come first served; steps of few rows (decoding) go before long prompts, which
 * share what {@link #promptRows} leaves in turns of one chunk, so a long prompt delays the others
 * by a bounded number of rows per step and is never starved itself.
 *
 * <p>Owned by the model; safe for use by its sessions' threads.
 */
final class StepScheduler implements AutoCloseable {
  /** Steps of up to that many rows are decoding steps. */
  private static final int FEW_ROWS = 16;

  /** Most sessions in one forward. */
  private static final int MOST_SESSIONS = 64;

  /** The longest that a leader waits for sessions that ran with it last. */
  private static final long MOST_WAIT_NANOS = 20_000_000;

  private final Executable executable;
  private final int maxRows;
  private final ReentrantLock lock = new ReentrantLock();
  private final Condition arrived = lock.newCondition();
  private final ArrayDeque<ScheduledStep> queue = new ArrayDeque<>();

  /** The forward being run: written by the leader with the lock, read by it without. */
  private final ScheduledStep[] chosen = new ScheduledStep[MOST_SESSIONS];

  private final int[] chosenRows = new int[MOST_SESSIONS];
  private int chosenCount;

  /** Whether the latest forward had no room for the prompts that waited. */
  private boolean promptsPassedOver;

  private boolean leading;

  /** No forward begins before so many sessions wait for it. */
  private int quorum;

  /** The session that decodes by itself; null if none does. */
  private ScheduledStep solo;

  /** Number of the latest forward, and how many of its sessions have not come back yet. */
  private long latest;

  private int expected;
  private long lastForwardNanos;
  private Batch shared;
  private long sharedForwards;
  private long forwards;

  StepScheduler(Executable executable) {
    this(executable, executable.plans().getLast().maxRows());
  }

  /**
   * Makes one that runs nothing yet.
   *
   * @param maxRows most rows of a forward
   */
  StepScheduler(Executable executable, int maxRows) {
    this.executable = executable;
    this.maxRows = maxRows;
  }

  /** A condition for a session's thread to wait on. */
  Condition newTurn() {
    return lock.newCondition();
  }

  /** Rows of prompts in a forward that also decodes. */
  private int promptRows() {
    return Math.max(FEW_ROWS, maxRows / 4);
  }

  /** Runs what the forward has pending to its end. Called by its session's thread. */
  void run(ScheduledStep forward) {
    lock.lock();
    try {
      queue.addLast(forward);
      forward.waits = true;
      here(forward);
      // Not isPending(): a leader counts that down without the lock, before it has finished.
      while (forward.waits) {
        if (leading || queue.size() < quorum) {
          forward.turn().awaitUninterruptibly();
        } else {
          lead();
        }
      }
    } finally {
      if (forward.waits) {
        // Something failed before a forward was chosen: nobody may run this one any more.
        forward.waits = false;
        queue.remove(forward);
      }
      lock.unlock();
    }
    forward.rethrow();
  }

  /**
   * Whether a session decodes by itself, so that its steps need not come here. Two that would both
   * do so come here again.
   */
  boolean isAlone(ScheduledStep forward) {
    lock.lock();
    try {
      here(forward);
      boolean others = leading || !queue.isEmpty() || expected > 0 || quorum > 0;
      boolean alone = !others && (solo == null || solo == forward);
      solo = alone ? forward : null;
      return alone;
    } finally {
      lock.unlock();
    }
  }

  /** The session decodes no more for now: nobody needs to wait for it. */
  void leave(ScheduledStep forward) {
    lock.lock();
    try {
      here(forward);
      if (solo == forward) {
        solo = null;
      }
    } finally {
      lock.unlock();
    }
  }

  private void here(ScheduledStep forward) {
    if (forward.ranIn == latest) {
      forward.ranIn = -1;
      expected--;
      if (expected == 0) {
        arrived.signal();
      }
    }
  }

  private void lead() {
    leading = true;
    Throwable failure = null;
    try {
      gather();
      select();
      lock.unlock();
      try {
        long start = System.nanoTime();
        forward();
        lastForwardNanos = System.nanoTime() - start;
      } catch (RuntimeException | Error e) {
        failure = e;
      } finally {
        lock.lock();
      }
      complete(failure);
    } finally {
      leading = false;
      ScheduledStep next = queue.peekFirst();
      if (next != null) {
        next.turn().signal();
      }
    }
  }

  /** Waits a moment for the sessions of the last forward. */
  private void gather() {
    long left = Math.min(lastForwardNanos / 4, MOST_WAIT_NANOS);
    try {
      while (expected > 0 && left > 0) {
        left = arrived.awaitNanos(left);
      }
    } catch (InterruptedException _) {
      Thread.currentThread().interrupt();
    }
  }

  /** Chooses who runs, and how many rows of each; takes them out of the queue. */
  private void select() {
    chosenCount = 0;
    boolean havePrompts;
    if (promptsPassedOver) {
      int left = maxRows - choosePrompts(Math.min(promptRows(), maxRows));
      havePrompts = true;
      chooseSteps(left);
    } else {
      int left = chooseSteps(maxRows);
      int before = chosenCount;
      choosePrompts(before == 0 ? left : Math.min(promptRows(), left));
      havePrompts = chosenCount > before;
    }
    // Only where steps alone fill a forward.
    promptsPassedOver = !havePrompts && !queue.isEmpty();
  }

  /** Chooses whoever needs few rows; returns how many are left. Whoever stays keeps its place. */
  private int chooseSteps(int rows) {
    int left = rows;
    for (int i = queue.size(); i > 0; i--) {
      ScheduledStep f = queue.pollFirst();
      int n = f.pendingRows();
      if (n <= FEW_ROWS && n <= left && chosenCount < MOST_SESSIONS) {
        choose(f, n);
        left -= n;
      } else {
        queue.addLast(f);
      }
    }
    return left;
  }

  /** Chooses chunks of whoever waits; returns their rows. */
  private int choosePrompts(int budget) {
    int left = budget;
    for (int i = queue.size(); i > 0; i--) {
      ScheduledStep f = queue.pollFirst();
      int n = Math.min(f.pendingRows(), Math.min(left, f.chunk()));
      if (n > 0 && chosenCount < MOST_SESSIONS) {
        choose(f, n);
        left -= n;
      } else {
        queue.addLast(f);
      }
    }
    return budget - left;
  }

  private void choose(ScheduledStep f, int rows) {
    chosen[chosenCount] = f;
    chosenRows[chosenCount++] = rows;
  }

  /** Runs the chosen ones; called without the lock by the leader alone. */
  private void forward() {
    forwards++;
    if (chosenCount == 1) {
      chosen[0].runAlone(executable, chosenRows[0]);
      return;
    }
    sharedForwards++;
    Batch batch = sharedBatch();
    batch.clear();
    for (int i = 0; i < chosenCount; i++) {
      chosen[i].addTo(batch, chosenRows[i]);
    }
    executable.forward(batch);
    // One row that runs a unit makes all pay for it, so one session that runs all leaves nothing.
    long spared = chosen[0].bytesSpared(batch);
    for (int i = 0; i < chosenCount; i++) {
      chosen[i].ran(batch, chosenRows[i], chosenCount, spared);
    }
  }

  /** The batch for several sessions, with a logit row for each. */
  private Batch sharedBatch() {
    int logitRows = Math.min(maxRows, Math.max(8, Integer.highestOneBit(chosenCount * 2 - 1)));
    if (shared == null || shared.maxLogitRows() < Math.min(chosenCount, logitRows)) {
      if (shared != null) {
        shared.close();
        shared = null;
      }
      shared = executable.newBatch(maxRows, logitRows);
    }
    return shared;
  }

  private void complete(Throwable failure) {
    latest++;
    expected = 0;
    for (int i = 0; i < chosenCount; i++) {
      ScheduledStep f = chosen[i];
      chosen[i] = null;
      if (failure != null) {
        f.fail(failure);
      }
      if (f.isPending()) {
        queue.addLast(f);
      } else {
        if (failure == null) {
          f.ranIn = latest;
          expected++;
        }
        f.waits = false;
        f.turn().signal();
      }
    }
  }

  /**
   * Changes how many sessions must wait before a forward begins; none need to at first. For tests
   * of sessions that share forwards, which on a busy machine they may not do by chance.
   */
  void changeQuorum(int by) {
    lock.lock();
    try {
      quorum += by;
      ScheduledStep next = queue.peekFirst();
      if (next != null) {
        next.turn().signal();
      }
    } finally {
      lock.unlock();
    }
  }

  /** Forwards so far, and how many of them several sessions shared. */
  long[] counts() {
    lock.lock();
    try {
      return new long[] {forwards, sharedForwards};
    } finally {
      lock.unlock();
    }
  }

  @Override
  public void close() {
    lock.lock();
    try {
      if (shared != null) {
        shared.close();
        shared = null;
      }
    } finally {
      lock.unlock();
    }
  }
}
