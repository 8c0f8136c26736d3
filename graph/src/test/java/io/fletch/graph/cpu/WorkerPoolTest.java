package io.fletch.graph.cpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.fletch.ffm.Affinity;
import io.fletch.graph.GraphException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicIntegerArray;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Every task runs once, stages in order, failures surface, workers end. */
@Timeout(120)
class WorkerPoolTest {
  /** Counts its tasks and checks that the stage before is complete. */
  private static final class Counting extends WorkerPool.Stage<AtomicIntegerArray> {
    private final int index;
    private final int tasks;
    private final int before;

    Counting(int index, int tasks, int before) {
      this.index = index;
      this.tasks = tasks;
      this.before = before;
    }

    @Override
    int tasks(AtomicIntegerArray counts) {
      return tasks;
    }

    @Override
    void run(AtomicIntegerArray counts, int task, int worker) {
      if (index > 0 && counts.get(index - 1) != before) {
        throw new IllegalStateException("stage " + index + " started early");
      }
      if (task < 0 || task >= tasks) {
        throw new IllegalStateException("no such task: " + task);
      }
      counts.incrementAndGet(index);
    }
  }

  /** Runs some code as the only stage. */
  private interface Body {
    void run(int task, int worker);
  }

  private static WorkerPool.Stage<Object> stage(int tasks, Body body) {
    return new WorkerPool.Stage<>() {
      @Override
      int tasks(Object context) {
        return tasks;
      }

      @Override
      void run(Object context, int task, int worker) {
        body.run(task, worker);
      }

      @Override
      public String toString() {
        return "the stage";
      }
    };
  }

  @SafeVarargs
  @SuppressWarnings("varargs")
  private static <C> WorkerPool.Stage<C>[] stages(WorkerPool.Stage<C>... all) {
    return all;
  }

  @SuppressWarnings({"unchecked", "rawtypes"})
  private static WorkerPool.Stage<AtomicIntegerArray>[] counting(int... tasks) {
    WorkerPool.Stage<AtomicIntegerArray>[] all = new WorkerPool.Stage[tasks.length];
    for (int i = 0; i < tasks.length; i++) {
      all[i] = new Counting(i, tasks[i], i == 0 ? 0 : tasks[i - 1]);
    }
    return all;
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 2, 3, 8, 40})
  void everyTaskRunsOnceAndInOrder(int threads) {
    int[] tasks = {5, 1, 0, 40, 1, 1, 2, 3, 0, 0, 17, 1};
    WorkerPool.Stage<AtomicIntegerArray>[] program = counting(tasks);
    try (WorkerPool pool = new WorkerPool(threads)) {
      for (int repeat = 0; repeat < 300; repeat++) {
        AtomicIntegerArray counts = new AtomicIntegerArray(tasks.length);
        pool.run(program, counts);
        for (int i = 0; i < tasks.length; i++) {
          assertEquals(tasks[i], counts.get(i), "stage " + i);
        }
      }
    }
  }

  @Test
  void tasksReallyRunAtTheSameTime() {
    try (WorkerPool pool = new WorkerPool(3)) {
      CountDownLatch all = new CountDownLatch(3);
      AtomicInteger workers = new AtomicInteger();
      pool.run(
          stages(
              stage(
                  3,
                  (task, worker) -> {
                    workers.addAndGet(1 << worker);
                    all.countDown();
                    try {
                      all.await();
                    } catch (InterruptedException e) {
                      throw new IllegalStateException(e);
                    }
                  })),
          "");
      assertEquals(7, workers.get(), "each of the workers 0, 1, 2 had one task");
    }
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 3})
  void theFirstFailureSurfacesAndThePoolStaysUsable(int threads) {
    try (WorkerPool pool = new WorkerPool(threads)) {
      IllegalStateException cause = new IllegalStateException("broken");
      AtomicInteger later = new AtomicInteger();
      for (int repeat = 0; repeat < 50; repeat++) {
        int failing = repeat % 20;
        GraphException thrown =
            assertThrows(
                GraphException.class,
                () ->
                    pool.run(
                        stages(
                            stage(
                                20,
                                (task, worker) -> {
                                  if (task == failing) {
                                    throw cause;
                                  }
                                }),
                            stage(4, (task, worker) -> later.incrementAndGet())),
                        ""));
        assertSame(cause, thrown.getCause());
        assertTrue(thrown.getMessage().contains("the stage"));
      }
      assertEquals(0, later.get(), "stages after a failure do not run");
      pool.run(stages(stage(4, (task, worker) -> later.incrementAndGet())), "");
      assertEquals(4, later.get());
    }
  }

  @Test
  void errorsSurfaceToo() {
    try (WorkerPool pool = new WorkerPool(2)) {
      GraphException thrown =
          assertThrows(
              GraphException.class,
              () ->
                  pool.run(
                      stages(
                          stage(
                              8,
                              (task, worker) -> {
                                throw new StackOverflowError();
                              })),
                      ""));
      assertTrue(thrown.getCause() instanceof StackOverflowError);
    }
  }

  @Test
  void anInterruptedCallerFinishesAndKeepsItsFlag() {
    try (WorkerPool pool = new WorkerPool(2)) {
      Thread.currentThread().interrupt();
      AtomicInteger done = new AtomicInteger();
      pool.run(stages(stage(50, (task, worker) -> done.incrementAndGet())), "");
      assertEquals(50, done.get());
      assertTrue(Thread.interrupted());
    }
  }

  @Test
  void idleWorkersParkAndCloseEndsThem() throws InterruptedException {
    WorkerPool pool = new WorkerPool(4);
    pool.run(stages(stage(50, (task, worker) -> {})), "");
    Thread[] workers = pool.workers();
    assertEquals(3, workers.length);
    for (Thread w : workers) {
      assertTrue(w.isDaemon());
      assertTrue(w.getName().startsWith("fletch-worker-"), w.getName());
      while (w.getState() != Thread.State.WAITING) {
        Thread.sleep(1);
      }
    }
    pool.close();
    for (Thread w : workers) {
      assertFalse(w.isAlive());
    }
    pool.close();
    assertThrows(IllegalStateException.class, () -> pool.run(stages(stage(1, (t, w) -> {})), ""));
  }

  @Test
  void wrongThreadCountsAreRefused() {
    assertThrows(IllegalArgumentException.class, () -> new WorkerPool(0));
    assertThrows(IllegalArgumentException.class, () -> new WorkerPool(1025));
  }

  @Test
  void workersAreMadeByTheFactoryAndPinnedWhereCoresAreEnough() {
    AtomicInteger made = new AtomicInteger();
    ThreadFactory factory =
        r -> {
          Thread thread = new Thread(r, "mine-" + made.incrementAndGet());
          thread.setDaemon(true);
          thread.setPriority(Thread.MIN_PRIORITY);
          return thread;
        };
    int cores = Affinity.cores().size();
    try (WorkerPool pool = new WorkerPool(2, new CpuBackend.Workers(factory, true))) {
      assertEquals(1, made.get());
      assertEquals("mine-1", pool.workers()[0].getName());
      assertEquals(Thread.MIN_PRIORITY, pool.workers()[0].getPriority());
      assertEquals(cores >= 2, pool.pinned());
      AtomicInteger ran = new AtomicInteger();
      pool.run(stages(stage(100, (task, worker) -> ran.incrementAndGet())), "");
      assertEquals(100, ran.get());
    }
    // One core more than there are: the system places them.
    try (WorkerPool pool = new WorkerPool(cores + 1, new CpuBackend.Workers(factory, true))) {
      assertFalse(pool.pinned());
    }
  }

  /** What the system says, not what the pool says. */
  @Test
  void pinnedWorkersHaveACoreOfTheirOwn() {
    List<Integer> cores = Affinity.cores();
    assumeTrue(cores.size() > 1, "one core, nothing is pinned");
    int threads = Math.min(cores.size(), 4);
    ConcurrentHashMap<Integer, String> allowed = new ConcurrentHashMap<>();
    CountDownLatch all = new CountDownLatch(threads);
    String before = allowed();
    CpuBackend.Workers pinned =
        new CpuBackend.Workers(CpuBackend.Workers.defaults().factory(), true);
    try (WorkerPool pool = new WorkerPool(threads, pinned)) {
      pool.run(
          stages(
              stage(
                  threads,
                  (task, worker) -> {
                    allowed.put(worker, allowed());
                    all.countDown();
                    try {
                      all.await();
                    } catch (InterruptedException e) {
                      throw new IllegalStateException(e);
                    }
                  })),
          "");
    }
    assertEquals(before, allowed.get(0), "the caller is not bound");
    for (int w = 1; w < threads; w++) {
      assertEquals(cores.get(w).toString(), allowed.get(w), "worker " + w);
    }
  }

  /** CPUs that the calling thread may use. */
  private static String allowed() {
    try {
      return Files.readAllLines(Path.of("/proc/thread-self/status")).stream()
          .filter(l -> l.startsWith("Cpus_allowed_list:"))
          .map(l -> l.substring(l.indexOf(':') + 1).strip())
          .findFirst()
          .orElseThrow();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  @Test
  void refusesVirtualThreads() {
    CpuBackend.Workers virtual = new CpuBackend.Workers(Thread.ofVirtual().factory(), false);
    assertThrows(IllegalArgumentException.class, () -> new WorkerPool(2, virtual));
    CpuBackend.Workers none = new CpuBackend.Workers(r -> null, false);
    assertThrows(IllegalArgumentException.class, () -> new WorkerPool(2, none));
  }
}
