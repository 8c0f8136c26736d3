package io.fletch.runtime.engine;

import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import org.jetbrains.lincheck.datastructures.ModelCheckingOptions;
import org.jetbrains.lincheck.datastructures.Operation;
import org.junit.jupiter.api.Test;

/**
 * The queue of {@link StepScheduler} with forwards that compute nothing: Lincheck makes random
 * scenarios of steps of three sessions, and its model checker the interleavings. Every row runs
 * once, one forward runs at a time, a failure reaches those that took part, and nobody waits for
 * ever.
 */
class StepSchedulerInterleavingsTest {
  private static final int MAX_ROWS = 4;

  @Test
  void everyStepRunsOnceAndEnds() {
    new ModelCheckingOptions()
        .iterations(4)
        .invocationsPerIteration(200)
        .threads(3)
        .actorsPerThread(1)
        .actorsBefore(0)
        .actorsAfter(0)
        .minimizeFailedScenario(false)
        .sequentialSpecification(OneAfterTheOther.class)
        .check(Sessions.class);
  }

  /** Steps of sessions of one model. */
  public static class Sessions {
    private final StepScheduler scheduler = new StepScheduler(executable(), MAX_ROWS);

    /** Neither volatile nor locked: forwards come one after the other. */
    private int inForward;

    /** Runs a step that fits a forward; gives the rows that ran. */
    @Operation
    public int step() {
      return run(new Step(this, 1));
    }

    /** Runs a prompt of several forwards; gives the rows that ran. */
    @Operation
    public int prompt() {
      return run(new Step(this, MAX_ROWS + 1));
    }

    private int run(Step step) {
      scheduler.run(step);
      return step.isPending() ? -1 : step.ran;
    }
  }

  /** What {@link Sessions} does without threads. */
  public static class OneAfterTheOther {
    /** As there. */
    public int step() {
      return 1;
    }

    /** As there. */
    public int prompt() {
      return MAX_ROWS + 1;
    }
  }

  private static final class Step extends ScheduledStep {
    private final Sessions of;
    private int pending;
    private int ran;
    private Throwable failure;

    Step(Sessions of, int rows) {
      super(of.scheduler.newTurn());
      this.of = of;
      this.pending = rows;
    }

    @Override
    boolean isPending() {
      return pending > 0;
    }

    @Override
    int pendingRows() {
      return pending;
    }

    @Override
    int chunk() {
      return MAX_ROWS;
    }

    @Override
    void runAlone(Executable on, int rows) {
      of.inForward++;
      ran(null, rows, 1, 0);
      if (--of.inForward != 0) {
        throw new AssertionError("two forwards at once");
      }
    }

    @Override
    void addTo(Batch into, int rows) {
      if (rows > pending) {
        throw new AssertionError("rows=" + rows + " pending=" + pending);
      }
    }

    @Override
    long bytesSpared(Batch in) {
      return 0;
    }

    @Override
    void ran(Batch in, int rows, int sessions, long spared) {
      pending -= rows;
      ran += rows;
    }

    @Override
    void fail(Throwable why) {
      failure = why;
      pending = 0;
    }

    @Override
    void rethrow() {
      if (failure != null) {
        throw new IllegalStateException(failure);
      }
    }
  }

  private static Executable executable() {
    Batch batch = Stubs.of(Batch.class, (method, _) -> method.equals("maxLogitRows") ? 64 : null);
    return Stubs.of(Executable.class, (method, _) -> method.equals("newBatch") ? batch : null);
  }
}
