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
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
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
