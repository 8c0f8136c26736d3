package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Embedder;
import io.fletch.EmbedderOptions;
import io.fletch.ModelOptions;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Whole embedding models on the software GPU: the vectors of the CPU, for any batch. */
class CudaEmbedderTest {
  private static final Path MODELS =
      Path.of("../runtime/src/test/resources/io/fletch/runtime/engine/embedders");
  private static final List<String> TEXTS = List.of("the fox", "a dog", "hello, world");

  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  private static EmbedderOptions options(ModelOptions.Backend backend) {
    ModelOptions model =
        EmbedderOptions.defaults()
            .model()
            .withBackend(backend)
            .withThreads(1)
            .withContextLength(24)
            .withPrefillChunk(24);
    return EmbedderOptions.defaults().withModel(model);
  }

  @ParameterizedTest
  @ValueSource(strings = {"bert", "nomic-bert", "qwen3"})
  void vectorsAreThoseOfTheCpu(String name) {
    Path file = MODELS.resolve(name + ".gguf");
    List<float[]> expected;
    try (Embedder cpu = Embedder.open(file, options(ModelOptions.Backend.CPU))) {
      expected = cpu.embed(TEXTS);
    }
    SoftGpu gpu = SoftGpu.reset().workers(2);
    try (Embedder cuda = Embedder.open(file, options(ModelOptions.Backend.GPU))) {
      assertTrue(cuda.backendDescription().startsWith("cuda"), cuda.backendDescription());
      List<float[]> together = cuda.embed(TEXTS);
      for (int i = 0; i < TEXTS.size(); i++) {
        for (int d = 0; d < expected.get(i).length; d++) {
          assertEquals(expected.get(i)[d], together.get(i)[d], 1e-5, TEXTS.get(i));
        }
      }
      assertArrayEquals(together.get(1), cuda.embed(TEXTS.get(1)), "alone");
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
    assertEquals(0, gpu.liveObjects(), "objects left");
  }
}
