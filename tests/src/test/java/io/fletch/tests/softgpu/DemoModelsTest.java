package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import java.util.List;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.EnabledIfSystemProperty;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** The embedded models answer on the software GPU with the tokens of the CPU. */
class DemoModelsTest {
  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  private static ModelOptions options(ModelOptions.Backend backend, int context) {
    return ModelOptions.defaults()
        .withBackend(backend)
        .withContextLength(context)
        .withThreads(2)
        .withPrefillChunk(8);
  }

  private static List<Integer> tokens(String name, ModelOptions options, String text, int count) {
    try (Model model = Model.demo(name, options);
        Session session = model.newSession();
        Generation generation =
            session.generate(
                text, GenerationOptions.greedy().withIgnoreEnd(true).withMaxTokens(count))) {
      return generation.result().ids();
    }
  }

  private static void same(String name, String text, int count, int context) {
    List<Integer> cpu = tokens(name, options(ModelOptions.Backend.CPU, context), text, count);
    SoftGpu.reset().workers(2);
    List<Integer> gpu = tokens(name, options(ModelOptions.Backend.GPU, context), text, count);
    assertEquals(cpu, gpu, name + ": " + text);
    assertEquals(count, gpu.size());
  }

  @Test
  void demo() {
    same("demo", "7 + 5", 3, 16);
  }

  @Test
  void demoSmall() {
    same("demo-small", "7 + 5", 6, 16);
  }

  @Test
  void demoDiffusion() {
    same("demo-diffusion", "7 + 5", 3, 16);
  }

  /** Questions as users ask them, to the end of the answer. */
  @ParameterizedTest
  @EnabledIfSystemProperty(named = "fletch.full", matches = "true")
  @ValueSource(strings = {"demo", "demo-small", "demo-diffusion"})
  void wholeAnswers(String name) {
    for (String question : List.of("What is 457 + 386?", "What is 12 * 7?")) {
      String cpu = answer(name, options(ModelOptions.Backend.CPU, 160), question);
      SoftGpu.reset().workers(2);
      assertEquals(cpu, answer(name, options(ModelOptions.Backend.GPU, 160), question), name);
      assertTrue(cpu.length() > 3, cpu);
    }
  }

  private static String answer(String name, ModelOptions options, String question) {
    try (Model model = Model.demo(name, options);
        Session session = model.newSession();
        Generation generation =
            session.chat(
                List.of(Message.user(question)), GenerationOptions.greedy().withMaxTokens(48))) {
      return generation.result().text();
    }
  }
}
