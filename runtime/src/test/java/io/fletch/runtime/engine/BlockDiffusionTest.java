package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.Tensor;
import io.fletch.quant.WeightFile;
import io.fletch.sampling.DiffusionModel;
import io.fletch.sampling.DiffusionPresets;
import io.fletch.sampling.DiffusionTechnique;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Block-causal decoding end to end. The model is the autoregressive demo model, whose body is that
 * of SDAR, declared as one: trained weights, whatever the text. What is exact must be exact.
 */
class BlockDiffusionTest {
  private static final int LENGTH = 24;
  private static final int MASK = 1023;

  private static final List<List<Message>> QUESTIONS =
      List.of(
          List.of(Message.user("What is 457 + 386?")),
          List.of(Message.user("Reverse the words: tower stone rock egg")),
          List.of(Message.user("Copy: a")));

  @TempDir static Path folder;
  private static Model model;
  private static Session session;

  @BeforeAll
  static void open() throws IOException {
    Path file = folder.resolve("sdar.gguf");
    try (WeightFile source = WeightFile.open(TestModels.demo("demo"))) {
      GgufWriter writer = new GgufWriter().putAll(source.metadata());
      for (Map.Entry<String, Object> entry : source.metadata().entries().entrySet()) {
        String key = entry.getKey();
        if (key.startsWith("qwen3.")) {
          writer.remove(key);
          String renamed = "sdar." + key.substring("qwen3.".length());
          switch (entry.getValue()) {
            case Long value -> writer.put(renamed, Math.toIntExact(value));
            case Double value -> writer.put(renamed, value.floatValue());
            default -> throw new AssertionError("unexpected value of " + key);
          }
        }
      }
      writer
          .put("general.architecture", "sdar")
          .put("tokenizer.ggml.mask_token_id", MASK)
          .put("diffusion.block_length", 4);
      for (Tensor tensor : source.tensors().values()) {
        writer.add(tensor);
      }
      writer.write(file);
    }
    model = Model.open(file, TestModels.options(ModelOptions.Backend.CPU).withContextLength(128));
    session = model.newSession();
  }

  @AfterAll
  static void close() {
    session.close();
    model.close();
  }

  private static DiffusionModel facts() {
    return model.diffusion().orElseThrow();
  }

  private static Generation.Result answer(List<Message> question, String technique) {
    return session
        .chat(
            question,
            GenerationOptions.greedy()
                .withDiffusion(DiffusionTechnique.parse(technique, facts(), LENGTH)))
        .result();
  }

  @Test
  void theFileSaysHowItDecodes() {
    assertEquals("diffusion", model.info().decoding());
    assertEquals(4, facts().block());
    Generation.Result plain =
        session.chat(QUESTIONS.getFirst(), GenerationOptions.greedy().withMaxTokens(16)).result();
    assertFalse(plain.ids().contains(MASK));
    assertTrue(plain.completionTokens() <= 16);
  }

  @Test
  void theCacheOfBlocksIsExact() {
    for (List<Message> question : QUESTIONS) {
      for (String chain : List.of("", "+temperature(t=0.8)+seed(value=3)")) {
        Generation.Result expected = answer(question, "block(tokens=4)+no-cache" + chain);
        for (String cache : List.of("block-causal(fused=false)", "block-causal(fused=true)")) {
          Generation.Result actual = answer(question, "block(tokens=4)+" + cache + chain);
          assertEquals(expected.ids(), actual.ids(), cache + chain + question);
          assertTrue(actual.counters().rows() < expected.counters().rows(), cache);
        }
        // Storing a block costs a forward of its own unless it is done with the next one.
        assertTrue(
            answer(question, "block(tokens=4)+block-causal(fused=true)" + chain).forwards()
                < answer(question, "block(tokens=4)+block-causal(fused=false)" + chain).forwards());
      }
    }
  }

  @Test
  void draftsNeverChangeTheAnswer() {
    for (List<Message> question : QUESTIONS) {
      for (String chain :
          List.of(
              "block(tokens=4)+block-causal(fused=true)",
              "block(tokens=4)+block-causal(fused=false)+dynamic(steps=24,tau=0.6)",
              "block(tokens=4)+no-cache+temperature(t=0.7)+seed(value=8)")) {
        Generation.Result expected = answer(question, chain);
        for (int depth : new int[] {2, 4}) {
          Generation.Result actual = answer(question, chain + "+freedave(depth=" + depth + ")");
          assertEquals(expected.ids(), actual.ids(), chain + " depth " + depth);
          assertTrue(actual.forwards() <= expected.forwards(), chain);
        }
      }
    }
  }

  @Test
  void presetsFitTheModel() {
    for (String technique : DiffusionPresets.comparison(facts())) {
      Generation.Result result = answer(QUESTIONS.get(1), technique);
      assertFalse(result.ids().contains(MASK), technique);
    }
    assertThrows(
        IllegalArgumentException.class,
        () -> DiffusionTechnique.parse("block(tokens=8)", facts(), LENGTH));
    assertThrows(
        IllegalArgumentException.class,
        () -> DiffusionTechnique.parse("reference+freecache", facts(), LENGTH));
  }
}
