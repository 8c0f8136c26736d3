package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.quant.SyntheticModel;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** The last layers of a model on the software GPU, the others on the CPU. */
class PartialOffloadTest {
  private static final int[] PROMPT = {300, 301, 302, 303, 304};
  private static final int LAYERS = 4;

  private static final SyntheticModel.Shape SHAPE =
      new SyntheticModel.Shape(
          "tiny", "qwen3", LAYERS, 64, 96, 4, 2, 16, 1024, 64, 10000f, false, true, true);

  @TempDir static Path folder;

  private static Path file;
  private static float[][] logits;
  private static List<Integer> greedy;

  private SoftGpu gpu;

  @BeforeAll
  static void write() throws Exception {
    SoftGpu.reset();
    file = folder.resolve("tiny.gguf");
    SyntheticModel.write(file, SHAPE, SyntheticModel.Mix.F32, 7);
    ModelOptions reference = options(0).withBackend(ModelOptions.Backend.REFERENCE);
    try (Model model = Model.open(file, reference);
        Session session = model.newSession()) {
      logits = session.logits(PROMPT);
      greedy = answer(session);
    }
  }

  @BeforeEach
  void reset() {
    gpu = SoftGpu.reset();
  }

  private static ModelOptions options(int gpuLayers) {
    ModelOptions all =
        ModelOptions.defaults()
            .withBackend(ModelOptions.Backend.GPU)
            .withContextLength(32)
            .withThreads(2)
            .withKvType(ModelOptions.KvType.F32)
            .withPrefillChunk(3);
    return gpuLayers == 0 ? all : all.withGpuLayers(gpuLayers);
  }

  private static List<Integer> answer(Session session) {
    try (Generation g =
        session.generate(PROMPT, GenerationOptions.greedy().withIgnoreEnd(true).withMaxTokens(3))) {
      return g.result().ids();
    }
  }

  private static void near(float[][] expected, float[][] actual) {
    assertEquals(expected.length, actual.length);
    for (int r = 0; r < expected.length; r++) {
      double error = 0;
      double size = 0;
      for (int i = 0; i < expected[r].length; i++) {
        error = Math.max(error, Math.abs(expected[r][i] - actual[r][i]));
        size = Math.max(size, Math.abs(expected[r][i]));
      }
      assertTrue(error <= 1e-3 * size, "row " + r + ": error=" + error + " of size=" + size);
    }
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 2, 3, 4, 99})
  void anyCutAnswersAsTheReference(int n) {
    try (Model model = Model.open(file, options(n));
        Session session = model.newSession()) {
      String description = model.backendDescription();
      int there = Math.min(n, LAYERS);
      assertEquals(
          there < LAYERS,
          description.startsWith("the first " + (LAYERS - there) + " of 4 layers on cpu"),
          description);
      assertTrue(description.contains("cuda: Software GPU"), description);
      near(logits, session.logits(PROMPT));
      assertEquals(greedy, answer(session));
      // Layers on the CPU take nothing of the device.
      assertTrue(gpu.kernelRuns().keySet().stream().anyMatch(k -> k.startsWith("attention")));
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
    assertEquals(0, gpu.liveObjects(), "objects left");
    assertEquals(0, gpu.retained(), "contexts left");
  }

  @Test
  void sessionsForkSaveAndRestore() {
    List<Integer> again = new ArrayList<>();
    try (Model model = Model.open(file, options(2));
        Session session = model.newSession()) {
      session.generate(PROMPT, GenerationOptions.greedy().withMaxTokens(1)).result();
      try (Session fork = session.fork()) {
        assertEquals(greedy, answer(fork));
      }
      session.save(folder.resolve("session"));
      session.truncate(0);
      session.restore(folder.resolve("session"));
      again.addAll(answer(session));
    }
    assertEquals(greedy, again);
  }

  /** As many as fit: fewer with less memory, and the same answer with each. */
  @Test
  void memoryDecides() {
    long whole;
    try (Model model = Model.open(file, options(0))) {
      whole = gpu.liveBytes();
      assertTrue(model.backendDescription().startsWith("cuda"), model.backendDescription());
    }
    int before = LAYERS + 1;
    for (double share : new double[] {1.2, 0.9, 0.75, 0.62}) {
      SoftGpu.reset(90, (long) (whole * share));
      try (Model model = Model.open(file, options(0));
          Session session = model.newSession()) {
        String description = model.backendDescription();
        int there =
            description.startsWith("cuda")
                ? LAYERS
                : LAYERS - Integer.parseInt(description.replaceAll("^the first (\\d+) .*", "$1"));
        assertTrue(there < before || there == LAYERS, share + ": " + description);
        before = there;
        assertEquals(greedy, answer(session), description);
      }
    }
    assertTrue(before < LAYERS, "layers=" + before);
    SoftGpu.reset(90, 1 << 14);
    FletchException e =
        assertThrows(FletchException.class, () -> Model.open(file, options(0)).close());
    assertTrue(e.getMessage().contains("not even the last one fits"), e.getMessage());
    assertTrue(e.getMessage().contains("free="), e.getMessage());
    ModelOptions auto = options(0).withBackend(ModelOptions.Backend.AUTO);
    try (Model model = Model.open(file, auto)) {
      assertTrue(model.backendDescription().startsWith("cpu"), model.backendDescription());
    }
    SoftGpu.reset(90, (long) (whole * 0.75));
    e = assertThrows(FletchException.class, () -> Model.open(file, options(LAYERS)).close());
    assertTrue(e.getMessage().contains("4 of 4 need "), e.getMessage());
    assertTrue(e.getMessage().matches("(?s).*; [123] would fit.*"), e.getMessage());
  }

  /** Those of the device: what runs on processors cannot tell. */
  @Test
  void kernelsOfTheDeviceAreTimed() {
    try (Model model = Model.open(file, options(3))) {
      List<Model.KernelTime> times = model.kernelTimes(8);
      assertTrue(times.stream().anyMatch(t -> t.kernel().startsWith("attention")), "" + times);
      int attention =
          times.stream()
              .filter(t -> t.kernel().startsWith("attention"))
              .mapToInt(Model.KernelTime::launches)
              .sum();
      assertEquals(3, attention, "layers on the device");
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
  }

  @Test
  void rowsDoNotDependOnEachOther() {
    try (Model model = Model.open(file, options(2));
        Session one = model.newSession();
        Session two = model.newSession()) {
      float[][] together = one.logits(PROMPT);
      float[][] alone = two.logits(new int[] {PROMPT[0], PROMPT[1]});
      assertArrayEquals(together[0], alone[0]);
      assertArrayEquals(together[1], alone[1]);
    }
  }

  @Test
  void refusedValues() {
    assertThrows(IllegalArgumentException.class, () -> options(0).withGpuLayers(0));
    assertThrows(IllegalArgumentException.class, () -> options(0).withGpuLayers(-2));
  }
}
