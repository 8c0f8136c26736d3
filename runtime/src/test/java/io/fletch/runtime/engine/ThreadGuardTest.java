package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ConcurrentModificationException;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.Test;

class ThreadGuardTest {
  private static Throwable inAnotherThread(Runnable action) throws InterruptedException {
    AtomicReference<Throwable> failure = new AtomicReference<>();
    Thread thread =
        new Thread(
            () -> {
              try {
                action.run();
              } catch (RuntimeException e) {
                failure.set(e);
              }
            },
            "intruder");
    thread.start();
    thread.join();
    return failure.get();
  }

  @Test
  void refusesTheSecondThreadUntilTheFirstHasLeft() throws InterruptedException {
    ThreadGuard guard = new ThreadGuard("session");
    guard.enter();
    guard.enter();
    guard.exit();
    Throwable e = inAnotherThread(guard::enter);
    assertInstanceOf(ConcurrentModificationException.class, e);
    assertTrue(e.getMessage().contains("intruder"), e.getMessage());
    guard.exit();
    assertNull(
        inAnotherThread(() -> {
          guard.enter();
          guard.exit();
        }));
  }
}
