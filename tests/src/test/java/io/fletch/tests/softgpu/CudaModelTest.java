package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.sampling.SamplingOptions;
import java.util.ArrayList;
import java.util.List;
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

  /** What a run of tokens costs; the first ones make plans and the lead of the device. */
  private void countTokens(GenerationOptions options, int waits) {
    try (Model model = Model.demo("demo-small", options(ModelOptions.Backend.GPU));
        Session session = model.newSession();
        Generation generation = session.generate(PROMPT, options)) {
      for (int i = 0; i < 3; i++) {
        generation.next();
      }
      long kernels = gpu.kernelLaunches();
      long graphs = gpu.graphLaunches();
      long before = gpu.synchronisations();
      long copies = gpu.copies();
      for (int i = 0; i < 4; i++) {
        generation.next();
      }
      assertEquals(kernels, gpu.kernelLaunches(), "kernels outside of graphs");
      assertEquals(4, gpu.graphLaunches() - graphs, "graph launches");
      assertEquals(waits, gpu.synchronisations() - before, "waits");
      long perToken = (gpu.copies() - copies) / 4;
      assertTrue(perToken <= 2, "copies per token, those of the graph: " + perToken);
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
    assertEquals(0, gpu.liveObjects(), "objects left");
  }

  /** The next steps are queued before a token is read; where it is there, nobody waits for it. */
  @Test
  void aGreedyTokenIsOneGraphLaunchAndNoWaitBetweenLaunches() {
    countTokens(GenerationOptions.greedy().withIgnoreEnd(true), 0);
  }

  @Test
  void aDrawnTokenIsOneGraphLaunchAndOneRead() {
    SamplingOptions drawn = SamplingOptions.greedy().withTemperature(0.7f).withSeed(5);
    // The logits' copy waits by itself.
    countTokens(GenerationOptions.defaults().withSampling(drawn).withIgnoreEnd(true), 4);
  }

  /** The device is ahead, never by more than four steps, and not beyond what was asked for. */
  @Test
  void stepsAreQueuedAhead() {
    GenerationOptions ten = GenerationOptions.greedy().withIgnoreEnd(true).withMaxTokens(10);
    try (Model model = Model.demo("demo-small", options(ModelOptions.Backend.GPU));
        Session session = model.newSession();
        Generation generation = session.generate(PROMPT, ten)) {
      generation.next();
      long prompt = gpu.graphLaunches();
      for (int token = 2; token <= 10; token++) {
        generation.next();
        long steps = gpu.graphLaunches() - prompt;
        assertEquals(Math.min(9, token - 1 + 3), steps, "launches after token " + token);
      }
      assertTrue(!generation.hasNext(), "ten tokens");
    }
  }

  /** Greedy answers go ahead, drawn ones do not; both follow each other in every way. */
  @Test
  void leadsThatAreGivenUpLeaveNoTrace() {
    List<List<String>> texts = new ArrayList<>();
    for (ModelOptions.Backend backend :
        List.of(ModelOptions.Backend.REFERENCE, ModelOptions.Backend.GPU)) {
      try (Model model = Model.demo("demo-small", options(backend));
          Session one = model.newSession();
          Session two = model.newSession()) {
        List<String> all = new ArrayList<>();
        GenerationOptions greedy = GenerationOptions.greedy().withIgnoreEnd(true).withMaxTokens(9);
        try (Generation first = one.generate(PROMPT, greedy);
            Generation second = two.generate(new int[] {266, 1021, 10, 266}, greedy)) {
          for (int i = 0; i < 8; i++) {
            all.add(first.next().text());
            if (i % 3 > 0) {
              all.add(second.next().text());
            }
          }
        }
        // One of them ends in the middle of its lead, and goes on with something else.
        try (Generation third = one.generate(PROMPT, greedy.withLogprobs(0))) {
          for (int i = 0; i < 4; i++) {
            all.add(third.next().text());
          }
        }
        try (Generation last = one.generate(PROMPT, greedy)) {
          for (int i = 0; i < 6; i++) {
            all.add(last.next().text());
          }
        }
        texts.add(all);
      }
    }
    assertEquals(texts.getFirst(), texts.getLast());
  }

  /** Reading early what a kernel before wrote, and ending without waiting, are faults. */
  @Test
  void kernelsMayBeginBeforeThoseBeforeThemEnd() {
    ModelOptions options = options(ModelOptions.Backend.GPU);
    String text = answer("demo-small", options, 2);
    assertTrue(gpu.overlapping() > 0, "no kernel was launched early");
    String property = "fletch.gpu.dependent-launch";
    try {
      System.setProperty(property, "off");
      reset();
      assertEquals(text, answer("demo-small", options, 2));
      assertEquals(0, gpu.overlapping(), property);
    } finally {
      System.clearProperty(property);
    }
    reset();
    gpu.pretend(12_020, 1);
    assertEquals(text, answer("demo-small", options, 2));
    assertEquals(0, gpu.overlapping(), "launches that old drivers do not record");
  }

  @Test
  void autoFallsBackToTheCpu() {
    gpu.pretend(13_000, 0);
    try (Model model = Model.demo("demo-small", options(ModelOptions.Backend.AUTO))) {
      assertTrue(model.backendDescription().startsWith("cpu"), model.backendDescription());
    }
  }
}
