package io.fletch.ffm;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.util.List;
import org.junit.jupiter.api.Test;

class AffinityTest {
  @Test
  void pinsAndUnpinsTheCallingThread() throws Exception {
    assumeTrue(Affinity.available(), "no affinity here");
    List<Integer> cores = Affinity.cores();
    assertTrue(Affinity.allowed().containsAll(cores));
    assertFalse(cores.isEmpty());
    int cpu = cores.getLast();
    long[][] seen = new long[2][];
    long[] before = Affinity.current();
    Thread thread =
        new Thread(() -> {
          assertTrue(Affinity.pin(cpu));
          seen[0] = Affinity.current();
          assertTrue(Affinity.unpin());
          seen[1] = Affinity.current();
        });
    thread.start();
    thread.join();
    assertEquals(1L << cpu, seen[0][cpu >> 6]);
    assertArrayEquals(before, seen[1]);
    assertArrayEquals(before, Affinity.current(), "other threads are not concerned");
  }

  @Test
  void countsCores() {
    int cores = Affinity.physicalCores();
    assertTrue(cores >= 1 && cores <= Runtime.getRuntime().availableProcessors());
    assertThrows(IllegalArgumentException.class, () -> Affinity.pin(-1));
    assertThrows(IllegalArgumentException.class, () -> Affinity.pin(1 << 20));
  }
}
