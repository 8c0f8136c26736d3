package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotSame;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;

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

  private static Session used(SessionPool pool, int[] prompt) {
    Session session = pool.take(prompt);
    session.generate(prompt, GenerationOptions.greedy().withMaxTokens(1)).result();
    return session;
  }

  @Test
  void conversationsFindTheirSession() {
    try (Model model =
        TestModels.open(
            "demo-small", TestModels.options(ModelOptions.Backend.CPU).withThreads(1))) {
      try (SessionPool pool = new SessionPool(model, 2)) {
        Session a = used(pool, A);
        Session b = used(pool, B);
        assertNotSame(a, b);
        assertEquals(2, pool.open());
        assertThrows(IllegalStateException.class, () -> pool.take(A));
        pool.give(a);
        pool.give(b);
        assertSame(b, pool.take(new int[] {9, 2, 3, 4, 5, 6}));
        assertSame(a, pool.take(new int[] {1, 2, 3, 4, 5, 7}));
        pool.give(a);
        // Nothing in common and no room for another: the one that waits.
        assertSame(a, pool.take(new int[] {5, 5}));
        pool.drop(a);
        assertEquals(1, pool.open());
        Session c = pool.take(B);
        assertNotSame(b, c);
        pool.give(b);
        pool.give(c);
      }
      assertThrows(IllegalArgumentException.class, () -> new SessionPool(model, 0));
      SessionPool closed = new SessionPool(model, 1);
      Session late = closed.take(A);
      closed.close();
      assertThrows(IllegalStateException.class, () -> closed.take(A));
      closed.give(late);
      assertEquals(0, closed.open());
      assertThrows(IllegalStateException.class, late::tokens);
      // Closing the model at the end of this block is refused if one of the sessions is left.
    }
  }
}
