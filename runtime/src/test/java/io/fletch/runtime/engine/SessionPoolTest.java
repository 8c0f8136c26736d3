package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotSame;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.SessionPool;
import org.junit.jupiter.api.Test;

/** Who gets which session. */
class SessionPoolTest {
  private static final int[] A = {1, 2, 3, 4, 5, 6, 7, 8};
  private static final int[] B = {9, 2, 3, 4};

  private static SessionPool.Lease used(SessionPool pool, int[] prompt) {
    SessionPool.Lease lease = pool.lease(prompt);
    lease.session().generate(prompt, GenerationOptions.greedy().withMaxTokens(1)).result();
    lease.keep();
    return lease;
  }

  private static Model model() {
    return TestModels.open(
        "demo-small", TestModels.options(ModelOptions.Backend.CPU).withThreads(1));
  }

  /** The session that a prompt gets; it goes back at once. */
  private static Session peek(SessionPool pool, int[] prompt) {
    try (SessionPool.Lease lease = pool.lease(prompt)) {
      lease.keep();
      return lease.session();
    }
  }

  @Test
  void conversationsFindTheirSession() {
    // Closing the model at the end is refused if one of the sessions is left.
    try (Model model = model()) {
      try (SessionPool pool = new SessionPool(model, 2)) {
        SessionPool.Lease first = used(pool, A);
        SessionPool.Lease second = used(pool, B);
        Session a = first.session();
        Session b = second.session();
        assertNotSame(a, b);
        assertEquals(2, pool.open());
        assertThrows(IllegalStateException.class, () -> pool.lease(A));
        first.close();
        second.close();
        assertSame(b, peek(pool, new int[] {9, 2, 3, 4, 5, 6}));
        assertSame(a, peek(pool, new int[] {1, 2, 3, 4, 5, 7}));
        try (SessionPool.Lease theirs = pool.lease(B)) {
          theirs.keep();
          assertSame(b, theirs.session());
          // Nothing in common and no room for another: the one that waits.
          assertSame(a, peek(pool, new int[] {5, 5}));
        }
        assertEquals(2, pool.open());
      }
      assertThrows(IllegalArgumentException.class, () -> new SessionPool(model, 0));
    }
  }

  @Test
  void aLeaseThatIsNotKeptClosesItsSession() {
    try (Model model = model();
        SessionPool pool = new SessionPool(model, 1)) {
      Session failed;
      try (SessionPool.Lease lease = pool.lease(A)) {
        failed = lease.session();
        failed.generate(A, GenerationOptions.greedy());
      }
      assertThrows(IllegalStateException.class, failed::tokens);
      assertEquals(0, pool.open());
      // One in the middle of an answer is of no use to the next.
      Session busy;
      try (SessionPool.Lease lease = pool.lease(A)) {
        busy = lease.session();
        assertTrue(busy.isIdle());
        assertTrue(busy.generate(A, GenerationOptions.greedy()).hasNext());
        assertFalse(busy.isIdle());
        lease.keep();
      }
      assertFalse(busy.isIdle(), "closed");
      assertThrows(IllegalStateException.class, busy::tokens);
      assertEquals(0, pool.open());
      assertNotSame(busy, peek(pool, A));
    }
  }

  @Test
  void aClosedLeaseIsNobodys() {
    try (Model model = model();
        SessionPool pool = new SessionPool(model, 1)) {
      SessionPool.Lease lease = pool.lease(A);
      Session session = lease.session();
      lease.keep();
      lease.close();
      assertThrows(IllegalStateException.class, lease::session);
      try (SessionPool.Lease next = pool.lease(A)) {
        assertSame(session, next.session());
        // Gives nothing back a second time.
        lease.close();
        assertThrows(IllegalStateException.class, () -> pool.lease(A));
      }
      assertEquals(0, pool.open());
    }
  }

  @Test
  void aClosedPoolTakesNothingBack() {
    try (Model model = model()) {
      SessionPool pool = new SessionPool(model, 1);
      SessionPool.Lease late = used(pool, A);
      Session session = late.session();
      pool.close();
      assertThrows(IllegalStateException.class, () -> pool.lease(A));
      late.close();
      assertEquals(0, pool.open());
      assertThrows(IllegalStateException.class, session::tokens);
    }
  }
}
