package io.fletch.runtime.engine;

import io.fletch.Adapter;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.Session;
import io.fletch.SessionPool;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.jetbrains.lincheck.datastructures.BooleanGen;
import org.jetbrains.lincheck.datastructures.IntGen;
import org.jetbrains.lincheck.datastructures.ModelCheckingOptions;
import org.jetbrains.lincheck.datastructures.Operation;
import org.jetbrains.lincheck.datastructures.Param;
import org.jetbrains.lincheck.datastructures.Validate;
import org.junit.jupiter.api.Test;

/**
 * {@link SessionPool} with sessions that compute nothing: Lincheck makes random scenarios of
 * requests that lease, keep and drop, of evictions and of the end, and its model checker the
 * interleavings. Fields of the sessions that are neither volatile nor locked stand for what the
 * pool protects: a session has one user at a time, nobody gets one that is closed, and all are
 * closed in the end.
 */
class SessionPoolInterleavingsTest {
  private static final int MOST = 2;

  @Test
  void sessionsHaveOneUserAtATime() {
    new ModelCheckingOptions()
        .iterations(8)
        .invocationsPerIteration(40)
        .threads(2)
        .actorsPerThread(1)
        .actorsBefore(0)
        .actorsAfter(1)
        .minimizeFailedScenario(false)
        .sequentialSpecification(OneAfterTheOther.class)
        .check(Pool.class);
  }

  /** With room for the sessions of all threads, one of which waits with an adapter at first. */
  @Param(name = "kept", gen = BooleanGen.class)
  @Param(name = "prompt", gen = IntGen.class, conf = "0:1")
  public static class Pool {
    private final List<Fake> made = new ArrayList<>();
    private final Adapter adapter = Stubs.of(Adapter.class, (_, _) -> null);
    private final List<List<Adapter.Scaled>> lists =
        List.of(List.of(), List.of(new Adapter.Scaled(adapter, 1)));
    private final SessionPool pool = new SessionPool(model(), MOST);
    private boolean isShut;

    /** Leases once. */
    public Pool() {
      request(1, true);
    }

    /** Runs a prompt, with the adapter or without; gives whether there was a session for it. */
    @Operation
    public boolean request(
        @Param(name = "prompt") int prompt, @Param(name = "kept") boolean isKept) {
      int[] ids = {prompt, prompt};
      try (SessionPool.Lease lease = pool.lease(ids, lists.get(prompt))) {
        lease.session().generate(ids, GenerationOptions.defaults());
        if (lease.session().adapters().size() != prompt) {
          throw new AssertionError("other adapters");
        }
        if (isKept) {
          lease.keep();
        }
        return true;
      } catch (IllegalStateException _) {
        return false;
      }
    }

    /** Closes what waits with the adapter. */
    @Operation
    public void evict() {
      pool.evict(adapter);
    }

    /** Closes the pool. */
    @Operation
    public void shut() {
      pool.close();
      isShut = true;
    }

    /** Nothing is lost. */
    @Validate
    public void check() {
      int open = 0;
      for (Fake f : made) {
        open += 1 - f.closed;
      }
      if (open != pool.open() || open > (isShut ? 0 : MOST)) {
        throw new AssertionError("sessions: open=" + open + " counted=" + pool.open());
      }
      pool.close();
      for (Fake f : made) {
        if (f.closed != 1) {
          throw new AssertionError("a session that nobody closes");
        }
      }
    }

    private Model model() {
      return Stubs.of(
          Model.class,
          (_, _) -> {
            Fake out = new Fake();
            made.add(out);
            return out.session;
          });
    }
  }

  /** What a session of the pool holds. */
  private static final class Fake {
    private final Session session = Stubs.of(Session.class, this::call);
    private List<Adapter.Scaled> adapters = List.of();
    private List<Integer> tokens = List.of();
    private int users;
    private int closed;

    private Object call(String method, Object[] arguments) {
      users++;
      Object out =
          switch (method) {
            case "isIdle" -> true;
            case "tokens" -> tokens;
            case "adapters" -> arguments == null ? adapters : adapters((List<?>) arguments[0]);
            case "generate" -> {
              tokens = Arrays.stream((int[]) arguments[0]).boxed().toList();
              yield null;
            }
            case "close" -> {
              closed++;
              yield null;
            }
            default -> throw new UnsupportedOperationException(method);
          };
      if (users != 1 || closed > (method.equals("close") ? 1 : 0)) {
        throw new AssertionError(method + ": users=" + users + " closed=" + closed);
      }
      users--;
      return out;
    }

    private Object adapters(List<?> list) {
      if (!adapters.equals(list)) {
        adapters = list.stream().map(Adapter.Scaled.class::cast).toList();
        tokens = List.of();
      }
      return null;
    }
  }

  /** What {@link Pool} does without threads. */
  public static class OneAfterTheOther {
    private boolean isShut;

    /** As there. */
    public boolean request(int prompt, boolean isKept) {
      return !isShut;
    }

    /** As there. */
    public void evict() {}

    /** As there. */
    public void shut() {
      isShut = true;
    }
  }
}
