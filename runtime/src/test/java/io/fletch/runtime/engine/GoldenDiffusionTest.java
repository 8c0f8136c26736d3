package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;

import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.ModelOptions.KvType;
import io.fletch.sampling.Caching;
import io.fletch.sampling.DiffusionDecoder;
import io.fletch.sampling.DiffusionModel;
import io.fletch.sampling.DiffusionOptions;
import io.fletch.sampling.DiffusionOptions.End;
import io.fletch.sampling.Search;
import io.fletch.sampling.Transfer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

/**
 * Whole decodes against PyTorch's: the final tokens, and which tokens each step commits as long as
 * no difference of probabilities below rounding decides.
 */
class GoldenDiffusionTest {
  @Test
  void decodesOfTheTrainer() {
    Map<String, Object> json = TestModels.json(TestModels.shared("golden/diffusion.json"));
    ModelOptions options = TestModels.options(ModelOptions.Backend.CPU).withKvType(KvType.F32);
    int decodes = 0;
    int steps = 0;
    try (Model model = Model.open(TestModels.shared("diffusion-F16.gguf"), options)) {
      LoadedModel loaded = assertInstanceOf(LoadedModel.class, model);
      int mask = loaded.hyperParameters().maskToken().orElseThrow();
      DiffusionModel facts =
          new DiffusionModel(mask, new int[0], 1020, model.info().vocabularySize(), false, 0);
      try (GraphCanvas canvas = new GraphCanvas(loaded)) {
        for (Map<String, Object> prompt : TestModels.list(json, "prompts")) {
          for (Map<String, Object> golden : TestModels.list(prompt, "decodes")) {
            DiffusionDecoder decoder = DiffusionDecoder.of(canvas, facts, schedule(golden));
            decoder.start(TestModels.ints(prompt.get("ids")));
            steps += compare(golden, decoder);
            decodes++;
          }
        }
      }
    }
    assertEquals(40, decodes, "four schedules of ten prompts");
    assertEquals(112, steps, "steps that more than rounding decides");
  }

  private static DiffusionOptions schedule(Map<String, Object> golden) {
    return new DiffusionOptions(
        (int) golden.get("gen_length"),
        (int) golden.get("block_length"),
        new Transfer.Schedule((int) golden.get("steps"), Transfer.Order.LOW_CONFIDENCE),
        new Caching.None(),
        new Search.None(),
        List.of(),
        0,
        1,
        0,
        0,
        End.PLAIN,
        0,
        false,
        0);
  }

  /** Returns the number of steps compared. */
  private static int compare(Map<String, Object> golden, DiffusionDecoder decoder) {
    int exact = (int) golden.get("exact_steps");
    List<Map<String, Object>> committed = TestModels.list(golden, "committed");
    int step = 0;
    while (decoder.next()) {
      if (step < exact) {
        List<List<Integer>> actual = new ArrayList<>();
        for (int i = 0; i < decoder.latest().offsets().size(); i++) {
          actual.add(List.of(decoder.latest().offsets().get(i), decoder.latest().tokens().get(i)));
        }
        assertEquals(committed.get(step).get("tokens"), actual, "step " + step);
      }
      step++;
    }
    assertEquals(committed.size(), step);
    List<Integer> answer = new ArrayList<>();
    for (int id : decoder.answer()) {
      answer.add(id);
    }
    assertEquals(TestModels.boxed(golden.get("final")), answer);
    return exact;
  }
}
