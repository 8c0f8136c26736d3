package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;

import org.jetbrains.lincheck.Lincheck;
import org.junit.jupiter.api.Test;

/**
 * The hand-over of {@link WorkerPool} under interleavings that Lincheck's model checker chooses one
 * after the other, those with few switches first: every task runs once, nobody sleeps for ever, and
 * closing ends the workers. A missing second look before parking, a wake-up before what it
 * announces, a claim that is not atomic and a close that wakes nobody are each found.
 */
class WorkerPoolInterleavingsTest {
  private static final int INTERLEAVINGS = 1500;

  /**
   * The permit of a thread by a monitor: Lincheck lets {@code LockSupport.park} return at any time,
   * which would hide a wake-up that is lost, but follows monitors exactly.
   */
  private static final class Permit {
    private boolean isGiven;

    synchronized void take() {
      while (!isGiven) {
        try {
          wait();
        } catch (InterruptedException e) {
          throw new IllegalStateException(e);
        }
      }
      isGiven = false;
    }

    synchronized void give() {
      isGiven = true;
      notifyAll();
    }
  }

  /** Of a pool of two: the caller, who makes it, and one worker. */
  private static final class Permits implements WorkerPool.Parking {
    private final Thread caller = Thread.currentThread();
    private final Permit ofCaller = new Permit();
    private final Permit ofWorker = new Permit();

    @Override
    public void park(Object blocker) {
      of(Thread.currentThread()).take();
    }

    @Override
    public void unpark(Thread thread) {
      if (thread != null) {
        of(thread).give();
      }
    }

    private Permit of(Thread thread) {
      return thread == caller ? ofCaller : ofWorker;
    }
  }

  /** Counts its runs per task, without atomics: a stage publishes what its tasks have written. */
  private static final class Counting extends WorkerPool.Stage<int[]> {
    private final int first;
    private final int tasks;

    Counting(int first, int tasks) {
      this.first = first;
      this.tasks = tasks;
    }

    @Override
    int tasks(int[] counts) {
      return tasks;
    }

    @Override
    void run(int[] counts, int task, int worker) {
      counts[first + task]++;
    }
  }

  private static void run(Counting... stages) {
    try (WorkerPool pool = new WorkerPool(2, CpuBackend.Workers.defaults(), 0, new Permits())) {
      int[] counts = new int[4];
      pool.run(stages, counts);
      assertArrayEquals(new int[] {1, 1, 1, 1}, counts);
    }
  }

  @Test
  void oneStage() {
    Lincheck.runConcurrentTest(INTERLEAVINGS, () -> run(new Counting(0, 4)));
  }

  @Test
  void stagesOneAfterTheOther() {
    Lincheck.runConcurrentTest(
        INTERLEAVINGS, () -> run(new Counting(0, 2), new Counting(2, 0), new Counting(2, 2)));
  }
}
