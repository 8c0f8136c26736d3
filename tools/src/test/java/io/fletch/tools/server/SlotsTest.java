package io.fletch.tools.server;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.tools.server.Slots.End;
import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;

/** Slots and their queue, by one thread and by many that leave, come late, and are interrupted. */
class SlotsTest {
  private static final long LONG = Long.MAX_VALUE;

  private static Slots.Turn enter(Slots slots) {
    return slots.enter().orElseThrow();
  }

  @Test
  void firstComeFirstServed() throws Exception {
    Slots slots = new Slots(1, 2);
    Slots.Turn a = enter(slots);
    assertEquals(End.TAKEN, a.await(-1));
    Slots.Turn b = enter(slots);
    Slots.Turn c = enter(slots);
    assertTrue(slots.enter().isEmpty());
    assertEquals(2, slots.waiting());
    a.close();
    a.close();
    assertEquals(End.TAKEN, b.await(0));
    assertEquals(1, slots.waiting());
    b.leave();
    assertEquals(1, slots.waiting(), "who has a slot keeps it");
    assertEquals(End.LATE, c.await(1));
    c.close();
    b.close();
    assertEquals(End.TAKEN, enter(slots).await(0));
  }

  @Test
  void whoLeavesMakesRoom() throws Exception {
    Slots slots = new Slots(1, 1);
    Slots.Turn a = enter(slots);
    Slots.Turn b = enter(slots);
    Thread.startVirtualThread(b::leave);
    assertEquals(End.LEFT, b.await(LONG));
    Slots.Turn c = enter(slots);
    b.close();
    assertEquals(1, slots.waiting());
    a.close();
    assertEquals(End.TAKEN, c.await(0));
  }

  @Test
  void closingSendsAwayWhoWaits() throws Exception {
    Slots slots = new Slots(1, 1);
    Slots.Turn a = enter(slots);
    Slots.Turn b = enter(slots);
    slots.close();
    assertEquals(End.TAKEN, a.await(0));
    assertEquals(End.CLOSED, b.await(LONG));
    assertEquals(End.CLOSED, enter(slots).await(0));
    a.close();
    b.close();
  }

  @Test
  void anInterruptedThreadKeepsNothing() throws Exception {
    Slots slots = new Slots(1, 1);
    Slots.Turn a = enter(slots);
    try (Slots.Turn b = enter(slots)) {
      Thread.currentThread().interrupt();
      assertThrows(InterruptedException.class, () -> b.await(LONG));
    }
    assertEquals(0, slots.waiting());
    a.close();
    assertEquals(End.TAKEN, enter(slots).await(0));
  }

  @Test
  void manyThreads() throws Exception {
    int most = 3;
    Slots slots = new Slots(most, 8);
    AtomicInteger inside = new AtomicInteger();
    AtomicInteger taken = new AtomicInteger();
    AtomicInteger wrong = new AtomicInteger();
    List<Thread> threads = new ArrayList<>();
    for (int i = 0; i < 16; i++) {
      SplittableRandom random = new SplittableRandom(i);
      threads.add(
          Thread.startVirtualThread(() -> {
            for (int n = 0; n < 500; n++) {
              Slots.Turn turn = slots.enter().orElse(null);
              if (turn == null) {
                Thread.yield();
                continue;
              }
              if (random.nextInt(4) == 0) {
                Thread.startVirtualThread(turn::leave);
              }
              try (turn) {
                if (turn.await(random.nextInt(3) == 0 ? 1000 : LONG) == End.TAKEN) {
                  taken.incrementAndGet();
                  if (inside.incrementAndGet() > most) {
                    wrong.incrementAndGet();
                  }
                  Thread.yield();
                  inside.decrementAndGet();
                }
              } catch (InterruptedException _) {
                wrong.incrementAndGet();
              }
            }
          }));
    }
    for (Thread t : threads) {
      t.join();
    }
    assertEquals(0, wrong.get());
    assertTrue(taken.get() > 0);
    assertEquals(0, slots.waiting());
    // All are free again.
    for (int i = 0; i < most; i++) {
      assertEquals(End.TAKEN, enter(slots).await(0));
    }
    assertEquals(End.LATE, enter(slots).await(0));
  }
}
