package io.fletch.runtime.engine;

import java.util.ConcurrentModificationException;
import org.jetbrains.lincheck.datastructures.ModelCheckingOptions;
import org.jetbrains.lincheck.datastructures.Operation;
import org.junit.jupiter.api.Test;

/**
 * Close against use ({@link Users}) and the thread rule ({@link ThreadGuard}): Lincheck makes
 * random scenarios of two threads, and its model checker the interleavings, those with few switches
 * first. Fields that are neither volatile nor locked stand for what the two protect.
 */
class LifetimeInterleavingsTest {
  private static ModelCheckingOptions options() {
    return new ModelCheckingOptions()
        .iterations(6)
        .invocationsPerIteration(200)
        .threads(2)
        .actorsPerThread(2)
        .actorsBefore(0)
        .actorsAfter(1)
        .minimizeFailedScenario(false);
  }

  @Test
  void nothingIsReleasedWhileItIsUsed() {
    options().sequentialSpecification(Sequential.class).check(Resource.class);
  }

  @Test
  void oneThreadIsInsideAtATime() {
    options().sequentialSpecification(AlwaysAlone.class).check(Guarded.class);
  }

  /** Something that is released once, when nobody uses it. */
  public static class Resource {
    private final Users users = new Users("it", "users");
    private int released;

    /** Whether it could be used; throws if it was released meanwhile. */
    @Operation
    public boolean use() {
      try {
        users.enter();
      } catch (IllegalStateException _) {
        return false;
      }
      if (released > 0) {
        throw new AssertionError("released while it was used");
      }
      users.leave();
      return true;
    }

    /** Closes it as soon as nobody uses it; returns how often it was released. */
    @Operation
    public int close() {
      while (true) {
        try {
          if (users.close()) {
            released++;
          }
          return 1;
        } catch (IllegalStateException _) {
          Thread.onSpinWait();
        }
      }
    }
  }

  /** What {@link Resource} does when operations come one after the other. */
  public static class Sequential {
    private boolean isClosed;

    /** As there. */
    public boolean use() {
      return !isClosed;
    }

    /** As there. */
    public int close() {
      isClosed = true;
      return 1;
    }
  }

  /** Counts who is inside. */
  public static class Guarded {
    private final ThreadGuard guard = new ThreadGuard("it");
    private int inside;

    /** Whether the thread was alone, or refused. */
    @Operation
    public boolean use() {
      try {
        guard.enter();
      } catch (ConcurrentModificationException _) {
        return true;
      }
      try {
        int before = inside++;
        // The same thread may enter again.
        guard.enter();
        guard.exit();
        return before == 0 && inside-- == 1;
      } finally {
        guard.exit();
      }
    }
  }

  /** Nobody is ever inside with another. */
  public static class AlwaysAlone {
    /** As there. */
    public boolean use() {
      return true;
    }
  }
}
