package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.device.CudaDevices;
import io.fletch.graph.AdapterScenario;
import io.fletch.graph.Backend;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.LowRankAdapter;
import io.fletch.graph.LowRankAdapter.Term;
import io.fletch.graph.LowRankDelta;
import io.fletch.graph.ReferenceBackend;
import io.fletch.graph.SplitBackend;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.TestGraphs.Shape;
import io.fletch.graph.Value;
import io.fletch.graph.cpu.CpuBackend;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.graph.support.PreparedAdapter;
import io.fletch.quant.TensorType;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.SplittableRandom;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** Rows with different adapters in one forward on the software GPU, against the reference. */
class CudaAdaptersTest {
  private SoftGpu gpu;

  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  @BeforeEach
  void reset() {
    gpu = SoftGpu.reset().workers(2);
  }

  private static Executable compile(Graph graph, int rows) {
    return new CudaBackend(CudaDevices.find().first(), (done, total) -> {}).compile(graph, rows);
  }

  private static List<List<Term>> terms(LowRankAdapter a, LowRankAdapter b) {
    return List.of(
        List.of(new Term(a, 1)),
        List.of(),
        List.of(new Term(a, 0.5f), new Term(b, -1.25f)),
        List.of(new Term(b, 2), new Term(a, 0)));
  }

  @Test
  void mixedBatchesAreEachRowAlone() {
    TensorType[] types = {TensorType.F32, TensorType.F16, TensorType.Q8_0, TensorType.Q4_0};
    for (int seed = 0; seed < types.length; seed++) {
      boolean composed = seed == 1;
      try (TestGraphs graphs = composed ? new TestGraphs(seed).composed() : new TestGraphs(seed)) {
        Shape shape = Shape.random(new SplittableRandom(seed), types[seed]).layers(1);
        Graph graph = graphs.llama(shape);
        int[][] ids = new int[4][];
        for (int s = 0; s < ids.length; s++) {
          ids[s] = graphs.tokens(2 + graphs.random().nextInt(4), graph.vocabulary());
        }
        Map<Value, LowRankDelta> da = AdapterScenario.deltas(graphs, graph);
        Map<Value, LowRankDelta> db = AdapterScenario.deltas(graphs, graph);
        float[][][] expected;
        try (Executable e = new ReferenceBackend().compile(graph, 12);
            LowRankAdapter a = e.newAdapter("a", da);
            LowRankAdapter b = e.newAdapter("b", db)) {
          expected = AdapterScenario.run(e, ids, terms(a, b), true, 3);
        }
        List<List<Term>> none = Collections.nCopies(4, List.of());
        try (Executable e = compile(graph, 12)) {
          float[][][] plain = AdapterScenario.run(e, ids, none, true, 3);
          LowRankAdapter a = e.newAdapter("a", da);
          // The second adapter has products that the first has not, while forwards have run.
          float[][][] first =
              AdapterScenario.run(
                  e,
                  ids,
                  List.of(List.of(new Term(a, 1)), List.of(), List.of(), List.of()),
                  true,
                  3);
          LowRankAdapter b = e.newAdapter("b", db);
          float[][][] together = AdapterScenario.run(e, ids, terms(a, b), true, 3);
          float[][][] alone = AdapterScenario.run(e, ids, terms(a, b), false, 2);
          for (int s = 0; s < ids.length; s++) {
            for (int r = 0; r < ids[s].length; r++) {
              String at = types[seed] + " sequence " + s + " row " + r;
              assertArrayEquals(alone[s][r], together[s][r], at);
              close(expected[s][r], together[s][r], at);
              if (s == 1) {
                assertArrayEquals(plain[s][r], together[s][r], at);
              }
              if (s == 0) {
                assertArrayEquals(first[s][r], together[s][r], at);
              }
            }
          }
          assertTrue(a.bytes() > 0);
          a.close();
          b.close();
        }
      }
      assertEquals(0, gpu.liveBytes(), "memory left");
    }
  }

  /** What forwards of earlier sets of products used is freed when a larger set needs its own. */
  @Test
  void roomForFewerProductsIsFreed() {
    try (TestGraphs graphs = new TestGraphs(5)) {
      Graph graph = graphs.llama(Shape.small().layers(1));
      List<Value> products = List.copyOf(PreparedAdapter.products(graph).keySet());
      int[][] ids = {graphs.tokens(2, graph.vocabulary())};
      try (Executable e = compile(graph, 2)) {
        List<Long> bytes = new ArrayList<>();
        List<Long> objects = new ArrayList<>();
        for (Value product : products) {
          try (LowRankAdapter a =
              e.newAdapter("a", Map.of(product, AdapterScenario.delta(graphs, graph, product)))) {
            AdapterScenario.run(e, ids, List.of(List.of(new Term(a, 1))), true, 2);
          }
          bytes.add(gpu.liveBytes());
          objects.add(gpu.liveObjects());
        }
        // Values that have to be kept for terms need some more room.
        assertTrue(bytes.getLast() < bytes.getFirst() * 1.2, "bytes=" + bytes);
        assertEquals(objects.get(1), objects.getLast(), "objects=" + objects);
      }
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
    assertEquals(0, gpu.liveObjects(), "objects left");
  }

  /** Products of both parts have terms; a part without any has none of its own. */
  @Test
  void aCutModelTakesAdapters() {
    try (TestGraphs graphs = new TestGraphs(4)) {
      Graph graph = graphs.llama(Shape.small().layers(2));
      int[][] ids = new int[4][];
      for (int s = 0; s < ids.length; s++) {
        ids[s] = graphs.tokens(3, graph.vocabulary());
      }
      Map<Value, LowRankDelta> da = AdapterScenario.deltas(graphs, graph);
      Map<Value, LowRankDelta> db = new HashMap<>(AdapterScenario.deltas(graphs, graph));
      db.keySet().retainAll(Set.of(graph.logits()));
      if (db.isEmpty()) {
        db.put(graph.logits(), AdapterScenario.delta(graphs, graph, graph.logits()));
      }
      Backend reference = new ReferenceBackend();
      Backend cuda = new CudaBackend(CudaDevices.find().first(), (done, total) -> {});
      List<float[][][]> all = new ArrayList<>();
      for (Backend backend :
          List.of(
              reference,
              new SplitBackend(reference, reference, 1),
              new SplitBackend(
                  new CpuBackend(CpuBackend.Options.defaults().withThreads(2)), cuda, 1))) {
        try (Executable e = backend.compile(graph, 12);
            LowRankAdapter a = e.newAdapter("a", da);
            LowRankAdapter b = e.newAdapter("b", db)) {
          assertTrue(a.bytes() > b.bytes() && b.bytes() > 0);
          all.add(AdapterScenario.run(e, ids, terms(a, b), true, 3));
          float[][][] alone = AdapterScenario.run(e, ids, terms(a, b), false, 2);
          for (int s = 0; s < ids.length; s++) {
            for (int r = 0; r < ids[s].length; r++) {
              assertArrayEquals(all.getLast()[s][r], alone[s][r], "sequence " + s + " row " + r);
              close(all.getFirst()[s][r], all.getLast()[s][r], "sequence " + s + " row " + r);
              if (all.size() == 2) {
                assertArrayEquals(all.getFirst()[s][r], alone[s][r]);
              }
            }
          }
        }
      }
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
  }

  private static void close(float[] expected, float[] actual, String what) {
    double norm = 0;
    double error = 0;
    for (int i = 0; i < expected.length; i++) {
      norm += (double) expected[i] * expected[i];
      error += Math.pow(expected[i] - actual[i], 2);
    }
    double relative = Math.sqrt(error / norm);
    assertTrue(relative < 5e-3, what + ": relative error " + relative);
  }

  @Test
  void moreThanARowHasRoomForIsRefused() {
    try (TestGraphs graphs = new TestGraphs(9)) {
      Graph graph = graphs.llama(Shape.small().layers(1));
      try (Executable e = compile(graph, 2);
          LowRankAdapter a = e.newAdapter("a", AdapterScenario.deltas(graphs, graph));
          KvCache kv = e.newKvCache(4, KvCache.Type.F32);
          Batch batch = e.newBatch(1, 1)) {
        batch.append(kv, new int[] {1}, 0, 1);
        IllegalArgumentException x =
            assertThrows(
                IllegalArgumentException.class,
                () -> batch.adapt(0, Collections.nCopies(9, new Term(a, 1))));
        assertTrue(x.getMessage().contains("expected=at most 8"), x.getMessage());
        e.forward(batch);
      }
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
  }
}
