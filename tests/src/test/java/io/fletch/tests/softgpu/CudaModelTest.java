package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** Models on the software GPU answer as the reference does. */
class CudaModelTest {
  private static final int[] PROMPT = {1021, 266, 10};

  private SoftGpu gpu;

  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  @BeforeEach
  void reset() {
    gpu = SoftGpu.reset().workers(2);
  }

  private static ModelOptions options(ModelOptions.Backend backend) {
    return ModelOptions.defaults()
        .withContextLength(128)
        .withThreads(2)
        .withPrefillChunk(3)
        .withBackend(backend);
  }

  private static String answer(String name, ModelOptions options, int chunks) {
    StringBuilder text = new StringBuilder();
    try (Model model = Model.demo(name, options);
        Session session = model.newSession();
        Generation generation =
            session.generate(PROMPT, GenerationOptions.greedy().withIgnoreEnd(true))) {
      for (int i = 0; i < chunks; i++) {
        text.append(generation.next().text());
      }
    }
    return text.toString();
  }

  @ParameterizedTest
  @EnumSource(ModelOptions.KvType.class)
  void greedyTextIsThatOfTheReference(ModelOptions.KvType type) {
    ModelOptions reference = options(ModelOptions.Backend.REFERENCE).withKvType(type);
    ModelOptions cuda = options(ModelOptions.Backend.GPU).withKvType(type);
    assertEquals(answer("demo-small", reference, 4), answer("demo-small", cuda, 4));
  }

  @Test
  void aTokenIsOneGraphLaunchAndOneWait() {
    try (Model model = Model.demo("demo-small", options(ModelOptions.Backend.GPU));
        Session session = model.newSession();
        Generation generation =
            session.generate(PROMPT, GenerationOptions.greedy().withIgnoreEnd(true))) {
      for (int i = 0; i < 3; i++) {
        generation.next();
      }
      long kernels = gpu.kernelLaunches();
      long graphs = gpu.graphLaunches();
      long waits = gpu.synchronisations();
      long copies = gpu.copies();
      for (int i = 0; i < 4; i++) {
        generation.next();
      }
      assertEquals(kernels, gpu.kernelLaunches(), "kernels outside of graphs");
      assertEquals(4, gpu.graphLaunches() - graphs, "graph launches");
      assertEquals(4, gpu.synchronisations() - waits, "waits");
      long perToken = (gpu.copies() - copies) / 4;
      assertTrue(perToken <= 2, "copies per token, those of the graph: " + perToken);
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
    assertEquals(0, gpu.liveObjects(), "objects left");
  }

  @Test
  void autoFallsBackToTheCpu() {
    gpu.pretend(13_000, 0);
    try (Model model = Model.demo("demo-small", options(ModelOptions.Backend.AUTO))) {
      assertTrue(model.backendDescription().startsWith("cpu"), model.backendDescription());
    }
  }
}
