package io.fletch.graph.support;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.graph.support.MemoryPlanner.Buffer;
import io.fletch.graph.support.MemoryPlanner.Layout;
import java.util.List;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.Combinators;
import net.jqwik.api.Example;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;

/** Live buffers never overlap, and the block is not much larger than it must be. */
class MemoryPlannerPropertyTest {
  private static final int STEPS = 20;

  @Provide
  Arbitrary<List<Buffer>> buffers() {
    Arbitrary<Integer> step = Arbitraries.integers().between(0, STEPS - 1);
    return Combinators.combine(Arbitraries.longs().between(0, 10_000), step, step)
        .as((bytes, a, b) -> new Buffer(bytes, Math.min(a, b), Math.max(a, b)))
        .list()
        .ofMaxSize(40);
  }

  @Property(tries = 300)
  void liveBuffersDoNotOverlap(@ForAll("buffers") List<Buffer> buffers) {
    Layout layout = MemoryPlanner.plan(buffers);
    for (int i = 0; i < buffers.size(); i++) {
      long from = layout.offsets().get(i);
      long to = from + buffers.get(i).bytes();
      assertEquals(0, from % MemoryPlanner.ALIGNMENT);
      assertTrue(to <= layout.bytes());
      for (int k = 0; k < i; k++) {
        long otherFrom = layout.offsets().get(k);
        long otherTo = otherFrom + buffers.get(k).bytes();
        assertTrue(
            !buffers.get(i).meets(buffers.get(k)) || to <= otherFrom || otherTo <= from,
            i + " and " + k + " overlap");
      }
    }
  }

  @Property(tries = 300)
  void theBlockIsNeverLargerThanAllAndSeldomMuchLargerThanLive(
      @ForAll("buffers") List<Buffer> buffers) {
    long all = 0;
    long live = 0;
    for (int s = 0; s < STEPS; s++) {
      long now = 0;
      for (Buffer b : buffers) {
        now += b.first() <= s && s <= b.last() ? aligned(b) : 0;
      }
      live = Math.max(live, now);
    }
    for (Buffer b : buffers) {
      all += aligned(b);
    }
    long bytes = MemoryPlanner.plan(buffers).bytes();
    assertTrue(bytes <= all);
    assertTrue(bytes >= live);
    assertTrue(bytes <= 2 * live, bytes + " for " + live + " live bytes");
  }

  private static long aligned(Buffer b) {
    return (b.bytes() + MemoryPlanner.ALIGNMENT - 1)
        / MemoryPlanner.ALIGNMENT
        * MemoryPlanner.ALIGNMENT;
  }

  @Example
  void chainsReuseTwoBuffers() {
    List<Buffer> chain =
        java.util.stream.IntStream.range(0, 50).mapToObj(i -> new Buffer(1024, i, i + 1)).toList();
    assertEquals(2048, MemoryPlanner.plan(chain).bytes());
  }

  @Example
  void wrongBuffersAreRefused() {
    assertThrows(IllegalArgumentException.class, () -> new Buffer(-1, 0, 0));
    assertThrows(IllegalArgumentException.class, () -> new Buffer(1, 2, 1));
    assertThrows(
        RuntimeException.class,
        () -> MemoryPlanner.plan(List.of(new Buffer(Long.MAX_VALUE, 0, 1))));
  }
}
