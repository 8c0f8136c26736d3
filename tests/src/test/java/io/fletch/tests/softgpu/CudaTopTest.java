package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.ffm.device.CudaDevices;
import io.fletch.graph.Batch;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.KvCache;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.sampling.SamplingOptions;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.stream.IntStream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** The largest logits, chosen on the device, are those that the host would keep. */
class CudaTopTest {
  private SoftGpu gpu;

  @BeforeEach
  void reset() {
    gpu = SoftGpu.reset().workers(2);
  }

  /** What comes in comes out as logits. */
  private interface Use {
    void with(Executable executable, KvCache kv, Batch batch);
  }

  private static void use(int width, int rows, Use use) {
    try (TensorStore store = TensorStore.create()) {
      Tensor one = store.allocate("e", TensorType.F32, 1, 32);
      Graph.Builder g = Graph.builder("top");
      g.embedding("embedding", one, 1);
      Graph graph = g.build(g.selectRows("logits", g.input("in", 0, width)));
      try (Executable e =
              new CudaBackend(CudaDevices.find().first(), (done, total) -> {})
                  .compile(graph, rows);
          KvCache kv = e.newKvCache(rows, KvCache.Type.F32);
          Batch b = e.newBatch(rows, rows)) {
        use.with(e, kv, b);
      }
    }
  }

  private static float[] logits(String kind, int width, long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    float[] x = new float[width];
    for (int i = 0; i < width; i++) {
      x[i] =
          switch (kind) {
            case "normal" -> (float) random.nextGaussian(0, 4);
            case "ties" -> random.nextInt(3) - 1;
            case "zeros" -> random.nextBoolean() ? 0f : -0f;
            case "bits" -> Float.intBitsToFloat(random.nextInt() & 0xbf7fffff);
            default -> random.nextInt(9) == 0 ? random.nextInt(5) : Float.NEGATIVE_INFINITY;
          };
    }
    return x;
  }

  private static int[] expected(float[] x, int defined, int k) {
    Comparator<Integer> order =
        (a, b) -> x[a] > x[b] ? -1 : x[a] < x[b] ? 1 : Integer.compare(a, b);
    return IntStream.range(0, defined)
        .boxed()
        .sorted(order)
        .limit(k)
        .mapToInt(i -> i)
        .sorted()
        .toArray();
  }

  @ParameterizedTest
  @CsvSource({
    "normal, 2, 2",
    "normal, 33, 33",
    "normal, 5000, 4999",
    "ties, 3001, 3001",
    "zeros, 1025, 1025",
    "bits, 2048, 2047",
    "infinite, 1500, 1400"
  })
  void theLargestAreThoseOfTheHost(String kind, int width, int defined) {
    use(
        width,
        2,
        (e, kv, b) -> {
          b.append(kv, new int[2], 0, 2);
          float[] x = logits(kind, width, 7);
          b.input(0, logits("normal", width, 8));
          b.input(1, x);
          b.wantLogits(0);
          b.wantLogits(1);
          e.forward(b);
          for (int k : new int[] {1, 2, 31, 207, 1024}) {
            int[] ids = new int[k];
            float[] values = new float[k];
            assertEquals(k < defined, b.top(1, defined, ids, values), "k=" + k);
            if (k < defined) {
              assertArrayEquals(expected(x, defined, k), ids, "k=" + k);
              for (int i = 0; i < k; i++) {
                assertEquals(x[ids[i]], values[i] + 0f, 0, "k=" + k);
              }
            }
          }
          assertFalse(b.top(0, defined, new int[1025], new float[1025]));
          assertThrows(
              IllegalArgumentException.class, () -> b.top(0, width + 1, new int[1], new float[1]));
        });
    assertEquals(0, gpu.liveBytes(), "memory left");
    assertEquals(0, gpu.liveObjects(), "objects left");
  }

  /** Samplers refuse such rows; they need them whole to say where. */
  @Test
  void rowsThatAreNoNumbersAreNotChosenFrom() {
    use(
        300,
        1,
        (e, kv, b) -> {
          for (float bad : new float[] {Float.NaN, Float.POSITIVE_INFINITY, -Float.NaN}) {
            for (int at : new int[] {0, 150, 299}) {
              b.clear();
              b.append(kv, new int[1], 0, 1);
              float[] x = logits("normal", 300, 9);
              x[at] = bad;
              b.input(0, x);
              b.wantLogits(0);
              e.forward(b);
              assertFalse(b.top(0, 300, new int[5], new float[5]), bad + " at " + at);
              assertEquals(at < 299, !b.top(0, 299, new int[5], new float[5]), bad + " at " + at);
            }
          }
        });
  }

  /** Each row has its own request, or none; one launch for all of them, beside the forward. */
  @Test
  void rowsOfAForwardAreChosenFromTogether() {
    int width = 1500;
    use(
        width,
        5,
        (e, kv, b) -> {
          float[][] x = new float[5][];
          for (int round = 0; round < 2; round++) {
            b.clear();
            b.append(kv, new int[5], 0, 5);
            for (int r = 0; r < 5; r++) {
              x[r] = logits("normal", width, 10 * round + r);
              if (r == 3) {
                x[r][700] = Float.NaN;
              }
              b.input(r, x[r]);
              b.wantLogits(r);
            }
            b.wantTop(0, width, 40);
            b.wantTop(2, 1400, 7 + round);
            b.wantTop(3, width, 40);
            b.wantTop(4, width, 1025);
            assertThrows(IllegalArgumentException.class, () -> b.wantTop(1, width + 1, 3));
            assertThrows(IllegalArgumentException.class, () -> b.wantTop(1, width, 0));
            int before = gpu.kernelRuns().getOrDefault("top", 0);
            long waits = gpu.synchronisations();
            e.forward(b);
            if (round == 1) {
              // Another forward comes between; the results have moved.
              try (Batch other = e.newBatch(1, 1)) {
                other.append(kv, new int[1], 0, 1);
                other.input(0, x[1]);
                other.wantTop(other.wantLogits(0), width, 3);
                e.forward(other);
                int[] ids = new int[3];
                assertTrue(other.top(0, width, ids, new float[3]));
                assertArrayEquals(expected(x[1], width, 3), ids);
              }
            }
            int[] ids = new int[40];
            assertTrue(b.top(0, width, ids, new float[40]));
            assertArrayEquals(expected(x[0], width, 40), ids);
            int[] few = new int[7 + round];
            assertTrue(b.top(2, 1400, few, new float[7 + round]));
            assertArrayEquals(expected(x[2], 1400, 7 + round), few);
            assertFalse(b.top(3, width, ids, new float[40]));
            if (round == 0) {
              assertEquals(1, gpu.kernelRuns().get("top") - before, "launches");
              assertTrue(gpu.synchronisations() - waits <= 1, "waits");
            }
            assertFalse(b.top(4, width, new int[1025], new float[1025]));
            // What nobody had asked for, and something else than was asked for.
            int[] late = new int[9];
            for (int r : new int[] {1, 0}) {
              assertTrue(b.top(r, width, late, new float[9]));
              assertArrayEquals(expected(x[r], width, 9), late);
            }
            assertTrue(b.top(0, width, ids, new float[40]));
            assertArrayEquals(expected(x[0], width, 40), ids);
          }
        });
    assertEquals(0, gpu.liveBytes(), "memory left");
    assertEquals(0, gpu.liveObjects(), "objects left");
  }

  /** Sessions that share forwards read pairs or a token, never rows of the vocabulary. */
  @Test
  void sharedForwardsCopyNoRows() throws Exception {
    ModelOptions options =
        ModelOptions.defaults().withBackend(ModelOptions.Backend.GPU).withContextLength(16);
    List<SamplingOptions> sampling =
        List.of(
            SamplingOptions.defaults().withTemperature(1.5f).withTopK(20).withSeed(3),
            SamplingOptions.greedy(),
            SamplingOptions.defaults().withTemperature(0.8f).withTopK(5).withSeed(4),
            SamplingOptions.greedy());
    List<List<Integer>> alone = new ArrayList<>();
    List<List<Integer>> together = new ArrayList<>();
    try (Model model = Model.demo("demo-small", options);
        ExecutorService threads = Executors.newFixedThreadPool(sampling.size())) {
      for (SamplingOptions s : sampling) {
        try (Session session = model.newSession()) {
          alone.add(sampled(session, s));
        }
      }
      CyclicBarrier begin = new CyclicBarrier(sampling.size());
      long before = gpu.downloadedBytes();
      List<Future<List<Integer>>> answers = new ArrayList<>();
      for (SamplingOptions s : sampling) {
        answers.add(
            threads.submit(() -> {
              try (Session session = model.newSession()) {
                begin.await();
                return sampled(session, s);
              }
            }));
      }
      for (Future<List<Integer>> answer : answers) {
        together.add(answer.get());
      }
      long row = 4L * model.info().vocabularySize();
      long bytes = gpu.downloadedBytes() - before;
      assertTrue(bytes < 8 * row, "bytes of 16 tokens=" + bytes + ", of a row=" + row);
    }
    assertEquals(alone, together);
    assertTrue(gpu.liveBytes() == 0 && gpu.liveObjects() == 0, "left");
  }

  private static List<Integer> sampled(Session session, SamplingOptions sampling) {
    session.truncate(0);
    try (Generation g =
        session.generate(
            new int[] {1021, 266, 10},
            GenerationOptions.defaults()
                .withSampling(sampling)
                .withIgnoreEnd(true)
                .withMaxTokens(4))) {
      return g.result().ids();
    }
  }

  @Test
  void samplingReadsPairsAndDrawsTheSame() {
    ModelOptions options =
        ModelOptions.defaults().withBackend(ModelOptions.Backend.GPU).withContextLength(16);
    SamplingOptions sampling = SamplingOptions.defaults().withTemperature(1.5f).withTopK(20);
    try (Model model = Model.demo("demo-small", options);
        Session session = model.newSession()) {
      for (int seed = 1; seed <= 3; seed++) {
        int before = gpu.kernelRuns().getOrDefault("top", 0);
        List<Integer> few = sampled(session, sampling.withSeed(seed));
        assertEquals(4, gpu.kernelRuns().get("top") - before);
        // A bias of 0 changes nothing, but comes before the choice.
        List<Integer> all = sampled(session, sampling.withSeed(seed).withLogitBias(Map.of(5, 0f)));
        assertEquals(4, gpu.kernelRuns().get("top") - before);
        assertEquals(all, few, "seed " + seed);
      }
    }
    assertTrue(gpu.liveBytes() == 0 && gpu.liveObjects() == 0, "left");
  }
}
