package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Adapter;
import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.ffm.NativeException;
import io.fletch.ffm.device.CudaDevices;
import io.fletch.graph.AdapterScenario;
import io.fletch.graph.Backend;
import io.fletch.graph.Executable;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
import io.fletch.graph.LowRankAdapter;
import io.fletch.graph.LowRankDelta;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.Value;
import io.fletch.graph.cuda.CudaBackend;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.SyntheticModel;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import io.fletch.sampling.SamplingOptions;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.SplittableRandom;
import java.util.TreeSet;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Each driver call of a whole generation fails, and calls of models with adapters, of models of
 * which a part runs on the CPU, and of forwards that sequences share: nothing is left, the message
 * says what failed, and the next generation gives the same tokens.
 */
class GenerationFaultTest {
  private static final boolean FULL = Boolean.getBoolean("fletch.full");

  /** Out of memory, illegal address, unknown. */
  private static final int[] CODES = {2, 700, 999};

  /** Failing calls that nobody needs to hear of: what they clean up goes with the context. */
  private static final Set<String> QUIET = Set.of("cuCtxSetCurrent", "cuLinkDestroy");

  private static final SyntheticModel.Shape TINY =
      new SyntheticModel.Shape(
          "tiny", "llama", 1, 32, 32, 1, 1, 32, 1024, 64, 10000f, false, true, false);

  /** The same with a layer more. */
  private static final SyntheticModel.Shape TWO_LAYERS =
      new SyntheticModel.Shape(
          "two", "llama", 2, 32, 32, 1, 1, 32, 1024, 64, 10000f, false, true, false);

  private static final int[] PROMPT = {300, 301, 302, 303, 304};

  @TempDir static Path folder;

  private static Path file;
  private static Path twoLayers;
  private static Path adapter;

  /** Opens a model, uses and closes it. */
  private interface Scenario {
    List<Integer> run() throws Exception;
  }

  @BeforeAll
  static void write() throws Exception {
    SoftGpu.install();
    file = folder.resolve("tiny.gguf");
    SyntheticModel.write(file, TINY, SyntheticModel.Mix.Q8_0, 7);
    twoLayers = folder.resolve("two.gguf");
    SyntheticModel.write(twoLayers, TWO_LAYERS, SyntheticModel.Mix.Q8_0, 7);
    adapter = folder.resolve("adapter.gguf");
    writeAdapter();
    // Compiles once.
    run();
  }

  /** Of a matrix of attention, one of the feed-forward unit. */
  private static void writeAdapter() {
    SplittableRandom random = new SplittableRandom(3);
    try (TensorStore store = TensorStore.create()) {
      GgufWriter writer =
          new GgufWriter()
              .put("general.type", "adapter")
              .put("adapter.type", "lora")
              .put("adapter.lora.alpha", 3f);
      for (String stem : List.of("blk.0.attn_q.weight", "blk.0.ffn_down.weight")) {
        for (String half : List.of(".lora_a", ".lora_b")) {
          int rows = half.endsWith("a") ? 3 : 32;
          Tensor t = store.allocate(stem + half, TensorType.F32, rows, 96 / rows);
          writer.add(RandomMatrix.fill(t, random));
        }
      }
      writer.write(adapter);
    }
  }

  private static ModelOptions options() {
    return ModelOptions.defaults()
        .withBackend(ModelOptions.Backend.GPU)
        .withContextLength(24)
        .withThreads(1)
        .withPrefillChunk(3);
  }

  private static GenerationOptions greedy(int tokens) {
    return GenerationOptions.greedy().withIgnoreEnd(true).withMaxTokens(tokens);
  }

  /** One adapter since the model was opened, and one of a session beside a session without. */
  private static List<Integer> adapters() {
    List<Integer> tokens = new ArrayList<>();
    ModelOptions options = options().withAdapters(List.of(new ModelOptions.Adapter(adapter, 0.5f)));
    try (Model model = Model.open(file, options);
        Session plain = model.newSession();
        Session session = model.newSession()) {
      try (Adapter added = model.adapter(adapter)) {
        session.adapters(List.of(added.scaled(2)));
        read(session, PROMPT, greedy(2), tokens);
        read(plain, PROMPT, greedy(1), tokens);
        session.adapters(List.of());
      }
      read(session, PROMPT, greedy(1), tokens);
    }
    return tokens;
  }

  /** A layer on the CPU, the last one on the GPU. */
  private static List<Integer> split() {
    List<Integer> tokens = new ArrayList<>();
    try (Model model = Model.open(twoLayers, options().withGpuLayers(1));
        Session session = model.newSession()) {
      read(session, PROMPT, greedy(2), tokens);
      try (Session fork = session.fork()) {
        read(fork, new int[] {300, 301, 302, 303, 304, 400}, greedy(1), tokens);
      }
      session.save(folder.resolve("split"));
      session.truncate(0);
      session.restore(folder.resolve("split"));
      read(session, new int[] {300, 301, 302, 303, 304, 500}, greedy(1), tokens);
    }
    return tokens;
  }

  /** Sequences with different adapters in each forward; the bits of their logits. */
  private static List<Integer> together() {
    try {
      return logitsTogether();
    } catch (GraphException | NativeException e) {
      // As the runtime does, which lies between graphs and users of models.
      throw new FletchException(e.getMessage(), e);
    }
  }

  private static List<Integer> logitsTogether() {
    List<Integer> bits = new ArrayList<>();
    try (TestGraphs graphs = new TestGraphs(4)) {
      Graph graph = graphs.llama(TestGraphs.Shape.small().layers(1));
      int[][] ids = new int[3][];
      for (int s = 0; s < ids.length; s++) {
        ids[s] = graphs.tokens(2 + s, graph.vocabulary());
      }
      Map<Value, LowRankDelta> deltas = AdapterScenario.deltas(graphs, graph);
      Backend cuda = new CudaBackend(CudaDevices.find().first(), (done, total) -> {});
      try (Executable e = cuda.compile(graph, 6);
          LowRankAdapter a = e.newAdapter("a", deltas);
          LowRankAdapter b = e.newAdapter("b", deltas)) {
        List<List<LowRankAdapter.Term>> terms =
            List.of(
                List.of(new LowRankAdapter.Term(a, 1)),
                List.of(),
                List.of(new LowRankAdapter.Term(a, 0.5f), new LowRankAdapter.Term(b, 2)));
        for (float[][] rows : AdapterScenario.run(e, ids, terms, true, 2)) {
          for (float[] row : rows) {
            for (float v : row) {
              bits.add(Float.floatToRawIntBits(v));
            }
          }
        }
      }
    }
    return bits;
  }

  /**
   * Sessions that generate at the same time: while one computes the others come together. All end,
   * and those that fail do so with what a forward of theirs failed with.
   */
  private static List<Integer> sessions() throws Exception {
    int n = 3;
    List<List<Integer>> tokens = new ArrayList<>();
    try (Model model = Model.open(file, options());
        Session one = model.newSession();
        Session two = model.newSession();
        Session three = model.newSession();
        ExecutorService threads = Executors.newFixedThreadPool(n)) {
      CyclicBarrier barrier = new CyclicBarrier(n);
      List<Future<?>> all = new ArrayList<>();
      for (Session session : List.of(one, two, three)) {
        List<Integer> own = new ArrayList<>();
        tokens.add(own);
        all.add(
            threads.submit(() -> {
              barrier.await();
              read(session, PROMPT, greedy(3), own);
              return null;
            }));
      }
      RuntimeException failure = null;
      for (Future<?> f : all) {
        try {
          f.get(60, TimeUnit.SECONDS);
        } catch (ExecutionException e) {
          assertInstanceOf(RuntimeException.class, e.getCause(), "" + e);
          failure = (RuntimeException) e.getCause();
        }
      }
      if (failure != null) {
        throw failure;
      }
    }
    return tokens.stream().flatMap(List::stream).toList();
  }

  static Stream<Arguments> scenarios() {
    return Stream.of(
        Arguments.of("adapters", (Scenario) GenerationFaultTest::adapters),
        Arguments.of("split", (Scenario) GenerationFaultTest::split),
        Arguments.of("together", (Scenario) GenerationFaultTest::together),
        Arguments.of("sessions", (Scenario) GenerationFaultTest::sessions));
  }

  @ParameterizedTest
  @MethodSource("scenarios")
  void aFailingCallOfOtherScenariosLeavesNothing(String name, Scenario scenario) throws Exception {
    scenario.run();
    SoftGpu counting = SoftGpu.reset();
    List<Integer> expected = scenario.run();
    assertFalse(expected.isEmpty());
    assertEquals(0, counting.liveBytes());
    assertEquals(0, counting.liveObjects());
    long calls = counting.calls();
    Set<String> failed = new TreeSet<>();
    // A stride that is odd meets other places of a loop of forwards each time.
    long stride = FULL ? 1 : Math.max(1, calls / 10) | 1;
    int code = 0;
    for (long n = 2; n <= calls; n += stride) {
      failed.add(oneFailure(scenario, n, CODES[code++ % CODES.length], expected));
    }
    // Sessions that share more forwards than the first time make fewer calls.
    failed.remove("");
    System.out.println(name + ": " + calls + " calls, of these failed once: " + failed);
    assertTrue(failed.size() > 3, "failed=" + failed);
  }

  /** Opens, prefills in two chunks, decodes, forks, decodes beside it, and closes all. */
  private static List<Integer> run() throws Exception {
    GenerationOptions greedy = greedy(2);
    List<Integer> tokens = new ArrayList<>();
    try (Model model = Model.open(file, options());
        Session session = model.newSession()) {
      read(session, PROMPT, greedy, tokens);
      try (Session fork = session.fork()) {
        read(fork, new int[] {300, 301, 302, 303, 304, 400}, greedy, tokens);
      }
      session.save(folder.resolve("session"));
      session.truncate(0);
      session.restore(folder.resolve("session"));
      // Whole rows of logits come to the host.
      GenerationOptions sampled =
          GenerationOptions.defaults()
              .withSampling(SamplingOptions.defaults().withSeed(5))
              .withIgnoreEnd(true)
              .withMaxTokens(1);
      read(session, new int[] {300, 301, 302, 303, 304, 500}, sampled, tokens);
      // Pairs are chosen on the device.
      GenerationOptions few =
          sampled.withSampling(SamplingOptions.defaults().withTopK(5).withSeed(5));
      read(session, new int[] {300, 301, 302, 303, 304, 501}, few, tokens);
    }
    return tokens;
  }

  private static void read(
      Session session, int[] prompt, GenerationOptions options, List<Integer> tokens) {
    try (Generation generation = session.generate(prompt, options)) {
      for (int t : generation.result().ids()) {
        tokens.add(t);
      }
    }
  }

  @Test
  void aFailingCallLeavesNothing() throws Exception {
    SoftGpu counting = SoftGpu.reset();
    List<Integer> expected = run();
    assertEquals(6, expected.size());
    assertEquals(0, counting.liveBytes());
    assertEquals(0, counting.liveObjects());
    long calls = counting.calls();
    assertTrue(calls > 100, "calls=" + calls);
    Set<String> failed = new TreeSet<>();
    // Each code begins elsewhere; everyFunctionFails meets the functions that this passes over.
    long stride = FULL ? 1 : Math.max(1, calls / 8) | 1;
    for (int c = 0; c < CODES.length; c++) {
      for (long n = 1 + c; n <= calls; n += stride) {
        failed.add(oneFailure(GenerationFaultTest::run, n, CODES[c], expected));
      }
    }
    System.out.println(calls + " calls, of these failed once: " + failed);
  }

  /** Each function of the driver that the scenario calls fails at its first and last call. */
  @Test
  void everyFunctionFails() throws Exception {
    SoftGpu tracing = SoftGpu.reset();
    tracing.trace();
    List<Integer> expected = run();
    List<String> names = tracing.traced();
    for (String name : new TreeSet<>(names)) {
      for (int n : new TreeSet<>(List.of(names.indexOf(name), names.lastIndexOf(name)))) {
        assertEquals(name, oneFailure(GenerationFaultTest::run, n + 1, 999, expected));
      }
    }
  }

  private static String oneFailure(Scenario scenario, long n, int code, List<Integer> expected)
      throws Exception {
    SoftGpu gpu = SoftGpu.reset();
    gpu.failCall(n, code);
    String where = "call " + n + " with " + code;
    try {
      List<Integer> tokens = scenario.run();
      where += " " + gpu.failedCall();
      assertEquals(expected, tokens, where);
      boolean fewer = gpu.calls() < n;
      assertTrue(fewer || QUIET.contains(gpu.failedCall()), "no exception: " + where);
    } catch (FletchException | IllegalStateException e) {
      where += " " + gpu.failedCall();
      assertFalse(gpu.failedCall().isEmpty(), where + ": " + e);
      assertTrue(
          e.getMessage().contains(gpu.failedCall().replaceFirst("_v\\d$", "")), where + ": " + e);
      assertFalse(e.getMessage().contains("leaked"), where + ": " + e);
    }
    assertEquals(0, gpu.liveBytes(), "bytes left: " + where);
    assertEquals(0, gpu.liveObjects(), "objects left: " + where);
    assertEquals(0, gpu.retained(), "contexts left: " + where);
    if (FULL || n % 8 == 0) {
      assertEquals(expected, scenario.run(), "after " + where);
      assertEquals(0, gpu.liveBytes(), "bytes left after " + where);
    }
    return gpu.failedCall();
  }
}
