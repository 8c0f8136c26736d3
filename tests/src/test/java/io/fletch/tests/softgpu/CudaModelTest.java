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
      long calls = gpu.calls();
      long kernels = gpu.kernelLaunches();
      for (int i = 0; i < 4; i++) {
        generation.next();
      }
      assertEquals(0, gpu.kernelLaunches() - kernels, "kernels outside of graphs");
      // A launch and the wait for its token; a change of the calling thread enters the context.
      assertTrue(gpu.calls() - calls <= 4 * 2 + 1, "driver calls: " + (gpu.calls() - calls));
    }
  }

  @Test
  void autoFallsBackToTheCpu() {
    gpu.pretend(13_000, 0);
    try (Model model = Model.demo("demo-small", options(ModelOptions.Backend.AUTO))) {
      assertTrue(model.backendDescription().startsWith("cpu"), model.backendDescription());
    }
  }
}
