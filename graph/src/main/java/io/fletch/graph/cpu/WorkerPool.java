package io.fletch.graph.cpu;

import io.fletch.ffm.Affinity;
import io.fletch.ffm.Threads;
import io.fletch.graph.GraphException;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.atomic.AtomicLongArray;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.atomic.AtomicReferenceArray;
import java.util.concurrent.locks.LockSupport;

/**
 * A fixed set of threads that run the stages of a job: the caller of {@link #run} is worker 0, the
 * others are threads of the pool, bound to cores of their own where that is asked for. Owned by one
 * executable, which closes it.
 *
 * <p>A stage is a number of independent tasks that workers claim one by one; the next stage starts
 * when all are done. Whoever finishes the last task starts it, running stages of a single task on
 * the spot, so that short serial work between two parallel stages costs no barrier. A worker that
 * sleeps or was descheduled delays nobody, since only tasks are waited for. Waiting spins briefly,
 * then parks.
 *
 * <p>Nothing is allocated and nothing locked while a job runs. Jobs are started by one thread at a
 * time; the owner sees to that.
 */
final class WorkerPool implements AutoCloseable {
  /** A stage of a job; {@code C} is what its stages share. */
  abstract static class Stage<C> {
    /** Number of tasks, 0 to skip the stage. */
    abstract int tasks(C context);

    /** Runs one task; {@code worker} is the index of the running worker. */
    abstract void run(C context, int task, int worker);
  }

  /** How threads sleep and are woken, with the permit of {@link LockSupport}. */
  interface Parking {
    /** What runs. Tests have one that never wakes by itself. */
    Parking OF_THREADS =
        new Parking() {
          @Override
          public void park(Object blocker) {
            LockSupport.park(blocker);
          }

          @Override
          public void unpark(Thread thread) {
            LockSupport.unpark(thread);
          }
        };

    /** Takes the permit of the current thread, or sleeps until there is one. */
    void park(Object blocker);

    /** Gives a thread its permit; nothing for null. */
    void unpark(Thread thread);
  }

  /** Long enough for the stages of a token to follow each other without sleeping. */
  private static final long SPIN_NANOS = 50_000;

  /** Spins between two looks at the clock. */
  private static final int SPINS = 32;

  // Slots of the counters, on cache lines (and their prefetched neighbours) of their own.
  /** Stage number in the upper half, unclaimed tasks in the lower. */
  private static final int CLAIM = 16;

  /** Unfinished tasks of the stage. */
  private static final int PENDING = 32;

  /** Sequence number of the last finished job. */
  private static final int FINISHED = 48;

  /** Parked flag of worker w. */
  private static final int PARKED = 64;

  private static final int LINE = 16;

  private static final Logger LOG = System.getLogger("io.fletch");

  private final int threads;
  private final boolean pinned;
  private final Thread[] workers;
  private final AtomicLongArray counters;
  private final AtomicReferenceArray<Thread> callers = new AtomicReferenceArray<>(1);
  private final AtomicReference<Throwable> failure = new AtomicReference<>();
  private final long spinNanos;
  private final int spins;
  private final Parking parking;

  // Written by the thread that starts a stage, before it publishes CLAIM.
  private Stage<?>[] stages = new Stage<?>[0];
  private Object context;
  private int stage;
  private int tasks;
  private long job;

  private volatile boolean closed;

  /** Starts {@code threads - 1} workers that the system places. */
  WorkerPool(int threads) {
    this(threads, CpuBackend.Workers.defaults());
  }

  /**
   * Starts {@code threads - 1} workers.
   *
   * @throws IllegalArgumentException if the factory makes virtual threads, or none
   */
  WorkerPool(int threads, CpuBackend.Workers made) {
    // With fewer processors than threads, spinning takes the time of those waited for.
    this(
        threads,
        made,
        threads <= Runtime.getRuntime().availableProcessors() ? SPIN_NANOS : 0,
        Parking.OF_THREADS);
  }

  /**
   * Starts {@code threads - 1} workers.
   *
   * @param spinNanos how long a thread with nothing to do spins before it parks; 0 to park at once
   */
  WorkerPool(int threads, CpuBackend.Workers made, long spinNanos, Parking parking) {
    if (threads < 1 || threads > 1024) {
      throw new IllegalArgumentException("threads: expected in [1, 1024] actual=" + threads);
    }
    this.threads = threads;
    counters = new AtomicLongArray(PARKED + LINE * threads);
    this.spinNanos = spinNanos;
    spins = spinNanos == 0 ? 1 : SPINS;
    this.parking = parking;
    workers = new Thread[threads];
    List<Integer> cores = made.pinned() ? Affinity.cores() : List.of();
    pinned = cores.size() >= threads && threads > 1;
    for (int w = 1; w < threads; w++) {
      int worker = w;
      // The first core is left to the caller, who goes where the others are not.
      int core = pinned ? cores.get(w) : -1;
      Thread thread =
          made.factory()
              .newThread(() -> {
                if (core >= 0 && !Affinity.pin(core)) {
                  LOG.log(Level.WARNING, "a worker cannot be bound to CPU {0}", core);
                }
                work(worker);
              });
      if (thread == null || thread.isVirtual()) {
        throw new IllegalArgumentException(
            "thread factory: expected=a platform thread actual=" + thread);
      }
      workers[w] = thread;
    }
    for (int w = 1; w < threads; w++) {
      workers[w].start();
    }
  }

  /** Whether the workers are bound to cores. */
  boolean pinned() {
    return pinned;
  }

  /** Workers, the caller included. */
  int threads() {
    return threads;
  }

  /** The threads of the pool, without the caller. */
  Thread[] workers() {
    Thread[] own = new Thread[threads - 1];
    System.arraycopy(workers, 1, own, 0, own.length);
    return own;
  }

  /**
   * Runs the stages in order and returns when the last is done.
   *
   * @throws GraphException if a task failed, with the first failure as cause; the remaining tasks
   *     are not run
   */
  <C> void run(Stage<C>[] program, C shared) {
    if (closed) {
      throw new IllegalStateException("the worker pool is closed");
    }
    stages = Objects.requireNonNull(program, "program");
    context = shared;
    stage = -1;
    failure.setPlain(null);
    callers.set(0, Thread.currentThread());
    long ours = ++job;
    startNextStage(0);
    while (counters.get(FINISHED) != ours) {
      long seen = counters.get(CLAIM);
      if (!claimAndRun(seen, 0)) {
        awaitCaller(seen, ours);
      }
    }
    context = null;
    callers.set(0, null);
    Throwable thrown = failure.get();
    if (thrown != null) {
      throw new GraphException(
          "a CPU worker failed in " + program[Math.min(stage, program.length - 1)], thrown);
    }
  }

  private void work(int worker) {
    while (!closed) {
      long seen = counters.get(CLAIM);
      if (!claimAndRun(seen, worker)) {
        await(seen, worker);
      }
    }
  }

  /** Claims a task of the stage in {@code seen}; false if none is left. */
  private boolean claimAndRun(long seen, int worker) {
    if ((int) seen == 0) {
      return false;
    }
    if (counters.compareAndSet(CLAIM, seen, seen - 1)) {
      // The stage cannot end before this task does, so its fields are stable here.
      if (failure.getPlain() == null) {
        runTask(stages[stage], tasks - (int) seen, worker);
      }
      if (counters.decrementAndGet(PENDING) == 0) {
        startNextStage(worker);
      }
    }
    return true;
  }

  @SuppressWarnings("unchecked")
  private void runTask(Stage<?> current, int task, int worker) {
    try {
      ((Stage<Object>) current).run(context, task, worker);
    } catch (Throwable t) {
      failure.compareAndSet(null, t);
    }
  }

  /** Runs stages of one task here and publishes the next one that has more, or the end. */
  private void startNextStage(int worker) {
    int next = stage + 1;
    while (next < stages.length && failure.get() == null) {
      stage = next;
      int count = count(stages[next]);
      if (count > 1 && threads > 1) {
        publish(count);
        return;
      }
      for (int t = 0; t < count && failure.getPlain() == null; t++) {
        runTask(stages[next], t, worker);
      }
      next++;
    }
    counters.set(FINISHED, job);
    unpark(0);
  }

  @SuppressWarnings("unchecked")
  private int count(Stage<?> current) {
    try {
      return ((Stage<Object>) current).tasks(context);
    } catch (Throwable t) {
      failure.compareAndSet(null, t);
      return 0;
    }
  }

  private void publish(int count) {
    tasks = count;
    counters.set(PENDING, count);
    long number = (counters.get(CLAIM) >>> 32) + 1;
    counters.set(CLAIM, number << 32 | count);
    int wanted = Math.min(threads, count);
    for (int w = 0; w < threads && wanted > 0; w++) {
      unpark(w);
      wanted--;
    }
  }

  private void unpark(int worker) {
    if (counters.get(PARKED + LINE * worker) != 0) {
      counters.set(PARKED + LINE * worker, 0);
      parking.unpark(worker == 0 ? callers.get(0) : workers[worker]);
    }
  }

  /** Waits until CLAIM differs from {@code seen}. */
  private void await(long seen, int worker) {
    long start = System.nanoTime();
    while (true) {
      for (int i = 0; i < spins; i++) {
        if (counters.get(CLAIM) != seen || closed) {
          return;
        }
        Thread.onSpinWait();
      }
      if (System.nanoTime() - start >= spinNanos) {
        counters.set(PARKED + LINE * worker, 1);
        if (counters.get(CLAIM) == seen && !closed) {
          parking.park(this);
        }
        counters.set(PARKED + LINE * worker, 0);
      }
    }
  }

  /** Waits until CLAIM differs from {@code seen} or the job has finished. */
  private void awaitCaller(long seen, long ours) {
    long start = System.nanoTime();
    while (true) {
      for (int i = 0; i < spins; i++) {
        if (counters.get(CLAIM) != seen || counters.get(FINISHED) == ours) {
          return;
        }
        Thread.onSpinWait();
      }
      if (System.nanoTime() - start >= spinNanos) {
        counters.set(PARKED, 1);
        if (counters.get(CLAIM) == seen && counters.get(FINISHED) != ours) {
          parking.park(this);
        }
        counters.set(PARKED, 0);
      }
    }
  }

  /** Ends the workers and waits for them. No job may be running. */
  @Override
  public void close() {
    if (closed) {
      return;
    }
    closed = true;
    for (int w = 1; w < threads; w++) {
      parking.unpark(workers[w]);
    }
    for (int w = 1; w < threads; w++) {
      Threads.join(workers[w]);
    }
  }
}
