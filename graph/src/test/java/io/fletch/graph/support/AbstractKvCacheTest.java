package io.fletch.graph.support;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.fletch.graph.Backend;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.SplitBackend;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.cpu.CpuBackend;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.nio.channels.Channels;
import java.util.stream.Stream;
import org.junit.jupiter.api.Named;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Caches of all backends refuse the same things. */
class AbstractKvCacheTest {
  private static final int[] IDS = {0, 1, 2, 3};

  static Stream<Named<Backend>> backends() {
    Backend cpu = new CpuBackend(CpuBackend.Options.defaults().withThreads(1));
    Backend reference = new ReferenceBackend();
    return Stream.of(cpu, reference, new SplitBackend(cpu, reference, 1))
        .map(b -> Named.of(b.name(), b));
  }

  @SuppressWarnings("try") // a cache is closed early on purpose
  @ParameterizedTest
  @MethodSource("backends")
  void refusesWhatIsNotItsOwnOrNotThere(Backend backend) throws Exception {
    try (TestGraphs graphs = new TestGraphs(3)) {
      Graph graph = graphs.llama(TestGraphs.Shape.small());
      try (Executable e = backend.compile(graph, 4);
          Executable other = backend.compile(graph, 4);
          Batch batch = e.newBatch(4, 1);
          KvCache kv = e.newKvCache(8, KvCache.Type.F32);
          KvCache mine = e.newKvCache(6, KvCache.Type.F32);
          KvCache half = e.newKvCache(8, KvCache.Type.F16);
          KvCache foreign = other.newKvCache(8, KvCache.Type.F32)) {
        assertEquals(8, kv.capacity());
        assertEquals(KvCache.Type.F32, kv.type());
        assertThrows(IllegalArgumentException.class, () -> batch.append(foreign, IDS, 0, 1));
        assertThrows(IllegalArgumentException.class, () -> kv.copy(foreign, 0, 0, 1));
        assertThrows(IllegalArgumentException.class, () -> kv.copy(half, 0, 0, 1));
        assertThrows(IllegalArgumentException.class, () -> kv.copy(kv, 0, 1, 2));
        assertThrows(IndexOutOfBoundsException.class, () -> kv.copy(mine, 5, 0, 2));
        assertThrows(IndexOutOfBoundsException.class, () -> mine.copy(kv, 0, 5, 2));
        assertThrows(IndexOutOfBoundsException.class, () -> kv.length(9));
        assertThrows(IndexOutOfBoundsException.class, () -> kv.length(-1));
        kv.length(0);

        batch.append(kv, IDS, 0, 3);
        e.forward(batch);
        kv.length(3);
        assertEquals(3, kv.length());
        mine.copy(kv, 0, 1, 3);
        assertEquals(0, mine.length());
        kv.copy(mine, 1, 4, 3);
        kv.copy(kv, 4, 0, 3);
        byte[] saved = save(kv, 3);
        assertEquals(3 * kv.slotBytes(), saved.length);
        assertThrows(IndexOutOfBoundsException.class, () -> save(kv, 9));
        mine.load(3, Channels.newChannel(new ByteArrayInputStream(saved)));
        assertArrayEquals(saved, save(mine, 3));

        kv.close();
        kv.close();
        assertThrows(IllegalStateException.class, () -> kv.length(1));
        assertThrows(IllegalStateException.class, () -> kv.copy(mine, 0, 0, 1));
        assertThrows(IllegalStateException.class, () -> mine.copy(kv, 0, 0, 1));
        assertThrows(IllegalStateException.class, () -> save(kv, 1));
        assertThrows(
            IllegalStateException.class,
            () -> kv.load(1, Channels.newChannel(new ByteArrayInputStream(saved))));
        assertThrows(IllegalStateException.class, () -> e.forward(batch));
        batch.clear();
        assertThrows(IllegalStateException.class, () -> batch.append(kv, IDS, 0, 1));
      }
    }
  }

  private static byte[] save(KvCache kv, int count) throws Exception {
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    kv.save(count, Channels.newChannel(bytes));
    return bytes.toByteArray();
  }
}
