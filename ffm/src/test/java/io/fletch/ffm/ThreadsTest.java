package io.fletch.ffm;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

class ThreadsTest {
  /** Interrupted before and while it waits: it waits to the end and stays interrupted. */
  @Test
  void joinOutlastsInterrupts() throws Exception {
    CountDownLatch end = new CountDownLatch(1);
    Thread worker = Thread.ofPlatform().daemon().start(() -> await(end));
    FutureTask<Boolean> join =
        new FutureTask<>(() -> {
          Thread.currentThread().interrupt();
          Threads.join(worker);
          assertFalse(worker.isAlive());
          return Thread.interrupted();
        });
    Thread joining = Thread.ofPlatform().daemon().start(join);
    for (int i = 0; i < 3; i++) {
      awaitState(joining, Thread.State.WAITING);
      joining.interrupt();
      // The interrupt has been taken once it is cleared.
      while (joining.isInterrupted()) {
        Thread.onSpinWait();
      }
    }
    awaitState(joining, Thread.State.WAITING);
    assertTrue(worker.isAlive());
    end.countDown();
    assertTrue(join.get(20, TimeUnit.SECONDS), "interrupted");
  }

  @Test
  void threadsThatWereNotStartedOrHaveEndedAreNotWaitedFor() throws Exception {
    Thread never = new Thread(() -> {});
    Threads.join(never);
    assertEquals(Thread.State.NEW, never.getState());
    Thread ended = Thread.ofPlatform().start(() -> {});
    ended.join();
    Threads.join(ended);
    assertFalse(Thread.interrupted());
  }

  private static void awaitState(Thread thread, Thread.State state) {
    long patience = System.nanoTime() + TimeUnit.SECONDS.toNanos(20);
    while (thread.getState() != state && System.nanoTime() < patience) {
      Thread.onSpinWait();
    }
    assertEquals(state, thread.getState());
  }

  private static void await(CountDownLatch latch) {
    try {
      latch.await(20, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }
}
