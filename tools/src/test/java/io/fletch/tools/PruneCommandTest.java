package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.ImportanceMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** {@code prune}, {@code perplexity} and calibrated {@code quantize} on an embedded model. */
class PruneCommandTest {
  @TempDir static Path folder;

  private static String text;

  @BeforeAll
  static void writeText() throws IOException {
    StringBuilder s = new StringBuilder();
    for (int i = 0; i < 40; i++) {
      s.append("<|im_start|>user\nWhat is ")
          .append(i)
          .append(" + ")
          .append(i * 7 % 10)
          .append("?<|im_end|>\n<|im_start|>assistant\nAnswer: ")
          .append(i + i * 7 % 10)
          .append("<|im_end|>\n");
    }
    text = folder.resolve("text.txt").toString();
    Files.writeString(Path.of(text), s.toString());
  }

  private static String at(String name) {
    return folder.resolve(name).toString();
  }

  private static Map<String, Object> prune(String output, String... more) {
    List<String> words =
        new ArrayList<>(
            List.of("prune", "-m", "demo-small", "--samples", "3", "--sample-length", "64"));
    words.addAll(List.of(more));
    words.addAll(List.of("-o", output, "--json"));
    return Fletch.ok(words.toArray(String[]::new)).json();
  }

  private static boolean isPruned(Tensor t) {
    return t.name().matches("blk\\.\\d+\\.(attn_(q|k|v|output)|ffn_(gate|up|down))\\.weight");
  }

  /** Specs weights 6.31, in the file: rows of Wanda, groups of 2:4, all else as it was. */
  @Test
  void filesHaveTheZerosThatWereAskedFor() {
    prune(at("wanda.gguf"), "--calibrate", text, "--sparsity", "0.6");
    prune(at("24.gguf"), "--calibrate", text, "--method", "sparsegpt", "--pattern", "2:4");
    try (WeightFile source = WeightFile.open(Model.demoFile("demo-small"));
        WeightFile wanda = WeightFile.open(Path.of(at("wanda.gguf")));
        WeightFile nm = WeightFile.open(Path.of(at("24.gguf")))) {
      assertEquals(source.tensors().keySet(), wanda.tensors().keySet());
      for (Tensor t : wanda.tensors().values()) {
        float[] w = Dequantizer.toFloats(t);
        float[] old = Dequantizer.toFloats(source.tensors().get(t.name()));
        if (!isPruned(t)) {
          assertArrayEquals(old, w, t.name());
          continue;
        }
        int cols = (int) t.cols();
        for (int r = 0; r < t.rows(); r++) {
          int zeros = 0;
          for (int j = r * cols; j < (r + 1) * cols; j++) {
            zeros += w[j] == 0 ? 1 : 0;
            assertTrue(w[j] == 0 || Math.abs(w[j] - old[j]) <= Math.abs(old[j]) * 0x1p-11f);
          }
          assertTrue(zeros >= (int) (cols * 0.6), t + " row " + r + ": " + zeros);
        }
        float[] grouped = Dequantizer.toFloats(nm.tensors().get(t.name()));
        for (int i = 0; i < grouped.length; i += 4) {
          int zeros = 0;
          for (int j = i; j < i + 4; j++) {
            zeros += grouped[j] == 0 ? 1 : 0;
          }
          assertTrue(zeros >= 2, t.name());
        }
      }
    }
  }

  @Test
  void methodsAreOrderedByTheErrorTheyLeave() throws IOException {
    Map<String, Object> sparse =
        prune(
            at("a.gguf"),
            "--calibrate",
            text,
            "--method",
            "sparsegpt",
            "--report",
            at("r.json"),
            "--picture",
            at("p.svg"));
    Map<String, Object> wanda = prune(at("b.gguf"), "--calibrate", text);
    Map<String, Object> magnitude =
        prune(at("c.gguf"), "--calibrate", text, "--method", "magnitude");
    assertTrue(error(sparse) < error(wanda), error(sparse) + " " + error(wanda));
    assertTrue(error(wanda) < error(magnitude), error(wanda) + " " + error(magnitude));
    assertTrue(Files.readString(Path.of(at("r.json"))).contains("\"layers\""));
    assertTrue(Files.readString(Path.of(at("p.svg"))).endsWith("</svg>\n"));
  }

  private static double error(Map<String, Object> report) {
    return ((List<?>) report.get("layers"))
        .stream()
            .mapToDouble(layer -> ((Number) ((Map<?, ?>) layer).get("error")).doubleValue())
            .sum();
  }

  /** With one window perplexity is the mean of what the session says; windows overlap rightly. */
  @Test
  void perplexityIsTheMeanOfTheScores() throws IOException {
    try (Model model = Model.demo("demo-small", ModelOptions.defaults().withContextLength(256));
        Session session = model.newSession()) {
      int[] ids = Arrays.copyOf(model.tokenizer().encode(Files.readString(Path.of(text))), 200);
      double mean = -Arrays.stream(session.score(ids)).average().orElseThrow();
      PerplexityCommand.Result one =
          PerplexityCommand.score(
              session, ids, 256, 128, new java.util.concurrent.atomic.AtomicLong());
      assertEquals(mean, one.mean(), 1e-9);
      assertEquals(199, one.tokens());
      PerplexityCommand.Result many =
          PerplexityCommand.score(
              session, ids, 50, 30, new java.util.concurrent.atomic.AtomicLong());
      assertEquals(199, many.tokens());
      assertEquals(6, many.windows());
    }
  }

  @Test
  void sparsityOfLayersFollowsTheirOutliers() {
    Map<String, Object> report =
        prune(at("owl.gguf"), "--calibrate", text, "--sparsity", "0.7", "--ratios", "owl");
    List<?> layers = (List<?>) report.get("layers");
    double mean = 0;
    for (Object entry : layers) {
      Map<?, ?> layer = (Map<?, ?>) entry;
      mean += ((Number) layer.get("target")).doubleValue() / layers.size();
      assertTrue(layer.get("outliers") instanceof Number);
    }
    assertEquals(0.7, mean, 1e-6);
  }

  /** Specs weights 3.6: heads and neurons that went are gone from shapes and metadata. */
  @Test
  void flapMakesASmallerModelThatRuns() {
    Map<String, Object> report =
        prune(at("flap.gguf"), "--calibrate", text, "--method", "flap", "--sparsity", "0.3");
    assertEquals(0.3, ((Number) report.get("sparsity")).doubleValue(), 0.15);
    try (WeightFile source = WeightFile.open(Model.demoFile("demo-small"));
        WeightFile file = WeightFile.open(Path.of(at("flap.gguf")))) {
      long elements = file.tensors().values().stream().mapToLong(Tensor::elements).sum();
      assertTrue(elements < source.tensors().values().stream().mapToLong(Tensor::elements).sum());
      List<?> layers = (List<?>) report.get("layers");
      for (int l = 0; l < layers.size(); l++) {
        Map<?, ?> layer = (Map<?, ?>) layers.get(l);
        Tensor down = file.tensors().get("blk." + l + ".ffn_down.weight");
        assertEquals(((Number) layer.get("width")).longValue(), down.cols());
        assertTrue(file.tensor("blk." + l + ".ffn_down.bias").isPresent());
        assertTrue(file.tensor("blk." + l + ".attn_output.bias").isPresent());
      }
    }
    assertFalse(
        Fletch.ok("run", "--temp", "0", "-m", at("flap.gguf"), "What is 4 + 3?").out().isEmpty());
  }

  /** Nothing removed: the bias is zero, and the model is the same. */
  @Test
  void flapOfNothingChangesNothing() {
    prune(
        at("same.gguf"),
        "--calibrate",
        text,
        "--method",
        "flap",
        "--sparsity",
        "0",
        "--type",
        "f32");
    Fletch.ok("convert", "-m", "demo-small", "--type", "f32", "-o", at("f32.gguf"));
    assertEquals(
        Fletch.ok("run", "--temp", "0", "-m", at("f32.gguf"), "What is 14 + 3?").out(),
        Fletch.ok("run", "--temp", "0", "-m", at("same.gguf"), "What is 14 + 3?").out());
  }

  @Test
  void anInterruptedRunGoesOn() throws Exception {
    prune(at("whole.gguf"), "--calibrate", text, "--method", "sparsegpt");
    byte[] expected = Files.readAllBytes(Path.of(at("whole.gguf")));
    String[] command = {
      "prune",
      "-m",
      "demo-small",
      "--samples",
      "3",
      "--sample-length",
      "64",
      "--calibrate",
      text,
      "--method",
      "sparsegpt",
      "-o",
      at("again.gguf"),
      "--json"
    };
    for (int millis : new int[] {150, 300, 600}) {
      Thread thread = new Thread(() -> Fletch.run(command));
      thread.start();
      thread.join(millis);
      thread.interrupt();
      thread.join();
      if (Files.exists(Path.of(at("again.gguf")))) {
        assertArrayEquals(expected, Files.readAllBytes(Path.of(at("again.gguf"))));
      }
    }
    Fletch.ok(command);
    assertArrayEquals(expected, Files.readAllBytes(Path.of(at("again.gguf"))));
  }

  @Test
  void importanceIsMeasuredSavedAndUsed() throws IOException {
    String[] base = {"quantize", "-m", "demo-small", "--type", "Q4_1", "--json"};
    Fletch.ok(with(base, "-o", at("plain.gguf")));
    Map<String, Object> report =
        Fletch.ok(
                with(
                    base,
                    "--calibrate",
                    text,
                    "--samples",
                    "3",
                    "--sample-length",
                    "64",
                    "--save-imatrix",
                    at("i.gguf"),
                    "-o",
                    at("weighted.gguf")))
            .json();
    // Four layers of seven matrices; the embedding is no linear layer of one.
    assertEquals(28, report.get("weighted"));
    assertEquals(28, ImportanceMatrix.read(Path.of(at("i.gguf"))).names().size());
    Fletch.ok(with(base, "--imatrix", at("i.gguf"), "-o", at("again.gguf")));
    byte[] weighted = Files.readAllBytes(Path.of(at("weighted.gguf")));
    assertArrayEquals(weighted, Files.readAllBytes(Path.of(at("again.gguf"))));
    assertFalse(Arrays.equals(weighted, Files.readAllBytes(Path.of(at("plain.gguf")))));
  }

  private static String[] with(String[] base, String... more) {
    List<String> words = new ArrayList<>(List.of(base));
    words.addAll(List.of(more));
    return words.toArray(String[]::new);
  }

  @Test
  void wrongRequestsAreRefused() {
    for (String[] wrong :
        List.of(
            new String[] {"--method", "wanda"},
            new String[] {"--calibrate", text, "--pattern", "4:2"},
            new String[] {"--calibrate", text, "--pattern", "2:4", "--sparsity", "0.5"},
            new String[] {"--calibrate", text, "--pattern", "structured"},
            new String[] {"--calibrate", text, "--method", "flap", "--pattern", "2:4"},
            new String[] {"--calibrate", text, "--owl-m", "5"},
            new String[] {"--calibrate", text, "--pattern", "2:4", "--ratios", "owl"})) {
      List<String> words = new ArrayList<>(List.of("prune", "-m", "demo-small"));
      words.addAll(List.of(wrong));
      words.addAll(List.of("-o", at("never.gguf")));
      assertEquals(2, Fletch.run(words.toArray(String[]::new)).status(), words.toString());
    }
    assertFalse(Files.exists(Path.of(at("never.gguf"))));
  }
}
