package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ContextShift;
import io.fletch.FfnSkip;
import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.UnitDrop;
import io.fletch.quant.SyntheticModel;
import io.fletch.sampling.DiffusionTechnique;
import io.fletch.sampling.Grammar;
import io.fletch.sampling.SamplingOptions;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * Every way to decode gives on the software GPU what it gives on the reference: tiny models of
 * random weights. Token routing is {@code CudaRoutingTest}'s.
 */
class CudaSchedulesTest {
  private static final int[] PROMPT = {300, 301, 302, 303, 304};

  @TempDir static Path folder;

  private static Path llama;
  private static Path llada;
  private SoftGpu gpu;

  private static Path write(String architecture, int layers) {
    SyntheticModel.Shape shape =
        new SyntheticModel.Shape(
            "tiny", architecture, layers, 32, 32, 1, 1, 32, 1024, 64, 10000f, false, true, true);
    Path file = folder.resolve(architecture + ".gguf");
    SyntheticModel.write(file, shape, SyntheticModel.Mix.F32, 7);
    return file;
  }

  @BeforeAll
  static void write() {
    SoftGpu.install();
    llama = write("llama", 2);
    llada = write("llada", 1);
  }

  @BeforeEach
  void reset() {
    gpu = SoftGpu.reset().workers(2);
  }

  @AfterEach
  void nothingIsLeft() {
    assertEquals(0, gpu.liveBytes(), "memory left");
    assertEquals(0, gpu.liveObjects(), "objects left");
  }

  private static ModelOptions options(ModelOptions.Backend backend) {
    return ModelOptions.defaults()
        .withBackend(backend)
        .withContextLength(24)
        .withPrefillChunk(4)
        .withKvType(ModelOptions.KvType.F32);
  }

  private static Generation.Result run(Session session, int[] prompt, GenerationOptions options) {
    try (Generation g = session.generate(prompt, options)) {
      return g.result();
    }
  }

  private static List<Integer> ids(Session session, int[] prompt, GenerationOptions options) {
    return run(session, prompt, options).ids();
  }

  /** What techniques give, by their text; those that are refused give the message. */
  private static Map<String, List<Integer>> diffusion(ModelOptions.Backend backend) {
    Map<String, List<Integer>> all = new LinkedHashMap<>();
    try (Model model = Model.open(llada, options(backend));
        Model guide = Model.open(llama, options(backend));
        Session session = model.newSession()) {
      for (String technique :
          List.of(
              "reference",
              "block(tokens=4)+temperature(t=0.7)+seed(value=5)",
              "block(tokens=4)+guidance(scale=1.5)+end(rule=last)",
              "dream(steps=5,algorithm=entropy,temperature=0.3)",
              "block(tokens=4)+threshold(tau=0.002)+prefix",
              "block(tokens=8)+factor(factor=1)+dual",
              "block(tokens=4)+localleap(anchor=0.003,relaxed=0.001)",
              "block(tokens=8)+freecache(refresh=2)",
              "block(tokens=8)+freedave(depth=3)",
              "block(tokens=8)+freecache(refresh=4)+freedave(depth=2)",
              "block(tokens=8)+soar(beams=2)",
              "block(tokens=8)+prophet(early=0.1,middle=0.1,late=0)",
              "block(tokens=4)+sched(hi=0.1,lo=0)+end-fill",
              "guided")) {
        GenerationOptions options =
            GenerationOptions.greedy()
                .withDiffusion(
                    DiffusionTechnique.parse(technique, model.diffusion().orElseThrow(), 8));
        all.put(
            technique,
            ids(
                session,
                PROMPT,
                technique.startsWith("guided") ? options.withGuide(guide) : options));
      }
    }
    return all;
  }

  @Test
  void diffusion() {
    Map<String, List<Integer>> expected = diffusion(ModelOptions.Backend.REFERENCE);
    assertEquals(expected, diffusion(ModelOptions.Backend.GPU));
    assertTrue(expected.values().stream().distinct().count() > 3, "techniques differ");
  }

  private static List<Object> autoregressive(ModelOptions options) throws IOException {
    GenerationOptions greedy = GenerationOptions.greedy().withIgnoreEnd(true).withMaxTokens(5);
    SamplingOptions drawn = SamplingOptions.defaults().withTemperature(1.3f).withSeed(3);
    List<Object> all = new ArrayList<>();
    try (Model model = Model.open(llama, options.withPrefixCache(1 << 20));
        Session session = model.newSession()) {
      all.add(ids(session, PROMPT, greedy));
      all.add(ids(session, PROMPT, greedy.withSampling(drawn.withTopK(9))));
      all.add(ids(session, PROMPT, greedy.withSampling(drawn.withTopK(0).withMinP(0.1f))));
      all.add(ids(session, PROMPT, greedy.withLogprobs(2)));
      // Beyond the context of 24 tokens.
      all.add(ids(session, PROMPT, greedy.withMaxTokens(24).withContextShift(new ContextShift(2))));
      all.add(ids(session, new int[] {300, 301, 500}, greedy));
      try (Session fork = session.fork()) {
        fork.truncate(4);
        all.add(ids(fork, new int[] {300, 301, 500, 7, 8, 9}, greedy));
      }
      session.save(folder.resolve("session"));
      session.truncate(0);
      session.restore(folder.resolve("session"));
      all.add(ids(session, new int[] {300, 301, 500, 501}, greedy));
      // A beginning that the first answers have left.
      try (Session other = model.newSession()) {
        all.add(ids(other, PROMPT, greedy.withMaxTokens(2)));
      }
      UnitDrop drop = new UnitDrop(List.of(1), UnitDrop.Unit.FFN, 1, 0, false);
      all.add(ids(session, PROMPT, greedy.withUnits(List.of(drop))));
      Grammar digits = Grammar.parse("root ::= [0-9a-f]{5}");
      all.add(run(session, PROMPT, greedy.withGrammar(digits)).text());
    }
    FfnSkip skip = FfnSkip.of(0, 2, 0.5f).withWarmUp(1);
    try (Model model = Model.open(llama, options.withUnits(List.of(skip)));
        Session session = model.newSession()) {
      Generation.Result result = run(session, PROMPT, greedy.withUnits(List.of(skip)));
      all.add(result.ids());
      all.add(result.counters().units());
    }
    return all;
  }

  @ParameterizedTest
  @EnumSource(ModelOptions.KvType.class)
  void autoregressive(ModelOptions.KvType type) throws IOException {
    List<Object> expected =
        autoregressive(options(ModelOptions.Backend.REFERENCE).withKvType(type));
    assertEquals(expected, autoregressive(options(ModelOptions.Backend.GPU).withKvType(type)));
  }
}
