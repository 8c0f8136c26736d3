package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Routing;
import io.fletch.Session;
import io.fletch.quant.SafetensorsWriter;
import io.fletch.quant.TensorStore;
import io.fletch.sampling.TokenRouter;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Token routing whose models, or router, run on the software GPU. */
class CudaRoutingTest {
  private static final int[] PROMPT = {1021, 266, 10};
  private static final int HIDDEN = 128;
  private static final int TOP = 100;
  private static final int INNER = 40;

  @TempDir private Path folder;
  private SoftGpu gpu;

  @BeforeAll
  static void install() {
    SoftGpu.install();
  }

  @BeforeEach
  void reset() {
    gpu = SoftGpu.reset().workers(2);
  }

  private static Model open(String name, ModelOptions.Backend backend) {
    return Model.demo(
        name,
        ModelOptions.defaults()
            .withContextLength(64)
            .withThreads(1)
            .withPrefillChunk(4)
            .withBackend(backend));
  }

  private static Generation.Result answer(Model model, GenerationOptions options) {
    try (Session session = model.newSession();
        Generation generation =
            session.generate(PROMPT, options.withMaxTokens(5).withIgnoreEnd(true))) {
      return generation.result();
    }
  }

  /** Each model on a device of its own: the ends of the threshold are the models alone. */
  @Test
  void modelsOnDifferentDevices() {
    GenerationOptions greedy = GenerationOptions.greedy();
    try (Model large = open("demo-small", ModelOptions.Backend.GPU);
        Model small = open("demo-small", ModelOptions.Backend.CPU)) {
      TokenRouter entropy = TokenRouter.entropy();
      Generation.Result all = answer(large, greedy.withRouting(new Routing(small, entropy, 0)));
      assertEquals(answer(large, greedy).ids(), all.ids());
      assertEquals(5, all.counters().forwards());
      Generation.Result none =
          answer(large, greedy.withRouting(new Routing(small, entropy, Double.POSITIVE_INFINITY)));
      assertEquals(answer(small, greedy).ids(), none.ids());
      assertEquals(0, none.counters().forwards());
      // The other way round.
      Generation.Result swapped = answer(small, greedy.withRouting(new Routing(large, entropy, 0)));
      assertEquals(answer(small, greedy).ids(), swapped.ids());
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
  }

  /** R5 to R7 of two copies of a model on the device. */
  @Test
  void aLaggingCacheOnTheDeviceCatchesUp() {
    GenerationOptions greedy = GenerationOptions.greedy().withMaxTokens(6).withIgnoreEnd(true);
    try (Model large = open("demo-small", ModelOptions.Backend.GPU);
        Model twin = open("demo-small", ModelOptions.Backend.GPU);
        Session session = large.newSession();
        Session other = large.newSession()) {
      Generation.Result alone = answer(large, GenerationOptions.greedy());
      TokenRouter entropy = TokenRouter.entropy();
      Generation.Result some = null;
      for (double threshold : new double[] {0.5, 1.5, 3}) {
        GenerationOptions routed = greedy.withRouting(new Routing(twin, entropy, threshold));
        session.truncate(0);
        try (Generation g = session.generate(PROMPT, routed)) {
          some = g.result();
        }
        // R6: whatever is routed; R5: the extend ran in pieces of at most four rows.
        assertEquals(alone.ids(), some.ids().subList(0, 5), "threshold " + threshold);
        long count = some.counters().drafted() - some.counters().accepted();
        assertTrue(some.counters().rows() <= PROMPT.length + 5, "no row ran twice");
        assertTrue(threshold < 1 ? count > 0 : count < 6, threshold + " routed " + count);
      }
      // R7: an answer in between changes none of them.
      GenerationOptions routed = greedy.withRouting(new Routing(twin, entropy, 1.5));
      int[] second = {5, 17, 33};
      List<Integer> first = new ArrayList<>();
      List<Integer> between;
      session.truncate(0);
      try (Generation a = session.generate(PROMPT, routed);
          Generation b = other.generate(second, routed)) {
        first.addAll(a.next().ids());
        between = b.result().ids();
        while (a.hasNext()) {
          first.addAll(a.next().ids());
        }
      }
      assertEquals(some.ids(), first);
      other.truncate(0);
      try (Generation b = other.generate(second, routed)) {
        assertEquals(between, b.result().ids());
      }
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
  }

  /** R8, and hidden states that the device hands to a router on the device. */
  @Test
  void theRouterNetworkScoresAlikeOnBothDevices() {
    Path file = folder.resolve("router.safetensors");
    writeRouter(file);
    double[] scores = new double[12];
    SplittableRandom random = new SplittableRandom(5);
    float[][] logits = new float[scores.length][1024];
    float[][] hidden = new float[scores.length][HIDDEN];
    for (int c = 0; c < scores.length; c++) {
      fill(random, logits[c], 0.02 * c);
      fill(random, hidden[c], 2);
    }
    try (Model small = open("demo-small", ModelOptions.Backend.CPU)) {
      TokenRouter router = Routing.load(file, small, small).router();
      for (int c = 0; c < scores.length; c++) {
        scores[c] = router.score(logits[c], 1024, 50 * c, hidden[c]);
      }
    }
    double least = 1;
    double most = 0;
    try (Model small = open("demo-small", ModelOptions.Backend.GPU)) {
      Routing routing = Routing.load(file, small, small);
      for (int c = 0; c < scores.length; c++) {
        double score = routing.router().score(logits[c], 1024, 50 * c, hidden[c]);
        assertEquals(scores[c], score, 1e-4, "case " + c);
        least = Math.min(least, score);
        most = Math.max(most, score);
      }
      assertTrue(most - least > 0.2, "scores differ: " + least + " to " + most);
      // In an answer: both models are the same one, so any threshold gives its text.
      Generation.Result routed =
          answer(
              small,
              GenerationOptions.greedy().withRouting(routing.withThreshold((least + most) / 2)));
      assertEquals(answer(small, GenerationOptions.greedy()).ids(), routed.ids());
      assertEquals(5, routed.counters().drafted());
    }
    assertEquals(0, gpu.liveBytes(), "memory left");
    assertEquals(0, gpu.liveObjects(), "objects left");
  }

  private static void fill(SplittableRandom random, float[] x, double scale) {
    for (int i = 0; i < x.length; i++) {
      x[i] = (float) (scale * (2 * random.nextDouble() - 1));
    }
  }

  private static void writeRouter(Path file) {
    SplittableRandom random = new SplittableRandom(11);
    try (TensorStore store = TensorStore.create()) {
      SafetensorsWriter writer = new SafetensorsWriter();
      linear(writer, store, random, "logits_projection", HIDDEN, TOP);
      linear(writer, store, random, "combined_projection", INNER, 3 * HIDDEN);
      linear(writer, store, random, "backbone.input_projection", INNER, INNER);
      for (int b = 0; b < 2; b++) {
        String at = "backbone.blocks." + b + ".";
        norm(writer, store, random, at + "layer_norm");
        linear(writer, store, random, at + "mlp.0", 2 * INNER, INNER);
        linear(writer, store, random, at + "mlp.3", INNER, 2 * INNER);
      }
      norm(writer, store, random, "backbone.output_layer.0");
      linear(writer, store, random, "backbone.output_layer.1", 1, INNER);
      writer.write(file);
    }
  }

  private static void linear(
      SafetensorsWriter writer,
      TensorStore store,
      SplittableRandom random,
      String name,
      int out,
      int in) {
    float[] w = new float[out * in];
    fill(random, w, 3 / Math.sqrt(in));
    float[] b = new float[out];
    fill(random, b, 0.2);
    writer.add(store.floats(name + ".weight", w, out, in));
    writer.add(store.floats(name + ".bias", b, out));
  }

  private static void norm(
      SafetensorsWriter writer, TensorStore store, SplittableRandom random, String name) {
    float[] w = new float[INNER];
    fill(random, w, 0.5);
    for (int i = 0; i < INNER; i++) {
      w[i] += 1;
    }
    float[] b = new float[INNER];
    fill(random, b, 0.2);
    writer.add(store.floats(name + ".weight", w, INNER));
    writer.add(store.floats(name + ".bias", b, INNER));
  }
}
