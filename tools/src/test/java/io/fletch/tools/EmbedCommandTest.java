package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Embedder;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** {@code fletch embed} on the tiny models of the runtime's tests. */
class EmbedCommandTest {
  private static final Path MODELS =
      Path.of("../runtime/src/test/resources/io/fletch/runtime/engine/embedders");
  private static final String BERT = MODELS.resolve("bert.gguf").toString();
  private static final String QWEN = MODELS.resolve("qwen3.gguf").toString();

  private static float[] numbers(String line) {
    String[] parts = line.split(" ");
    float[] out = new float[parts.length];
    for (int i = 0; i < out.length; i++) {
      out[i] = Float.parseFloat(parts[i]);
    }
    return out;
  }

  @Test
  void vectorsOfArgumentsFilesAndLines(@TempDir Path folder) throws IOException {
    float[] fox;
    float[] dog;
    try (Embedder e = Embedder.open(Path.of(BERT))) {
      fox = e.embed("the fox");
      dog = e.embed("a dog");
    }
    String both = Fletch.ok("embed", "-m", BERT, "the fox", "a dog").out();
    List<String> lines = both.lines().toList();
    assertEquals(2, lines.size());
    assertTrue(Arrays.equals(fox, numbers(lines.get(0))), both);
    assertTrue(Arrays.equals(dog, numbers(lines.get(1))), both);
    Path file = folder.resolve("texts");
    Files.writeString(file, "the fox\na dog\n");
    assertEquals(both, Fletch.ok("embed", "-m", BERT, "--lines", file.toString()).out());
    assertEquals(both, Fletch.runWith("the fox\na dog\n", "embed", "-m", BERT).out());
    assertEquals(both, Fletch.runWith("the fox\na dog", "embed", "-m", BERT, "--lines", "-").out());
    String whole = Fletch.ok("embed", "-m", BERT, "--file", file.toString()).out();
    assertEquals(whole, Fletch.ok("embed", "-m", BERT, "the fox a dog").out());
    assertEquals(1, whole.lines().count());
  }

  @Test
  void similaritiesToTheFirst() {
    String two = Fletch.ok("embed", "-m", QWEN, "--similarity", "the fox", "the fox").out();
    assertEquals("1.000000\n", two);
    Map<String, Object> json =
        Fletch.ok("embed", "-m", BERT, "--similarity", "--json", "the fox", "a dog", "the fox")
            .json();
    List<?> similarities = (List<?>) json.get("similarities");
    assertEquals(2, similarities.size());
    assertTrue(((Number) similarities.get(0)).doubleValue() < 0.999, json.toString());
    assertEquals(1, ((Number) similarities.get(1)).doubleValue(), 1e-6);
  }

  @Test
  void optionsChangeTheVectors() {
    Map<String, Object> json = Fletch.ok("embed", "-m", BERT, "--json", "the fox").json();
    assertEquals("bert.gguf", json.get("model"));
    assertEquals("bert", json.get("architecture"));
    assertEquals("cls", json.get("pooling"));
    assertEquals(32, json.get("dimensions"));
    assertEquals(List.of(4), json.get("tokens"));
    assertEquals(32, ((List<?>) ((List<?>) json.get("vectors")).getFirst()).size());
    Map<String, Object> tokens =
        Fletch.ok("embed", "-m", BERT, "--json", "--pooling", "none", "the fox").json();
    List<?> rows = (List<?>) ((List<?>) tokens.get("vectors")).getFirst();
    assertEquals(4, rows.size());
    assertEquals(((List<?>) json.get("vectors")).getFirst(), rows.getFirst());
    assertEquals(
        4, Fletch.ok("embed", "-m", BERT, "--pooling", "none", "the fox").out().lines().count());
    String plain = Fletch.ok("embed", "-m", BERT, "the fox").out();
    for (String[] option :
        List.of(
            new String[] {"--pooling", "mean"},
            new String[] {"--pooling", "last"},
            new String[] {"--no-normalize"},
            new String[] {"--dimensions", "8"})) {
      String[] args =
          Arrays.copyOf(new String[] {"embed", "-m", BERT, "the fox"}, 4 + option.length);
      System.arraycopy(option, 0, args, 4, option.length);
      String changed = Fletch.ok(args).out();
      assertTrue(!changed.equals(plain), option[0]);
      assertEquals(option[0].equals("--dimensions") ? 8 : 32, numbers(changed.strip()).length);
    }
    String text = "tokenization ".repeat(60);
    Fletch.Outcome failed = Fletch.run("embed", "-m", BERT, text);
    assertEquals(1, failed.status());
    assertTrue(failed.err().contains("expected=[1, 64]"), failed.err());
    assertEquals(
        List.of(64),
        Fletch.ok("embed", "-m", BERT, "--truncate", "--json", text).json().get("tokens"));
  }

  @Test
  void wrongCommandLines() {
    for (String[] args :
        List.of(
            new String[] {"embed", "x"},
            new String[] {"embed", "-m", BERT},
            new String[] {"embed", "-m", BERT, "--similarity", "x"},
            new String[] {"embed", "-m", BERT, "--similarity", "--pooling", "none", "x", "y"},
            new String[] {"embed", "-m", BERT, "--pooling", "max", "x"},
            new String[] {"embed", "-m", BERT, "--file", "f", "x"},
            new String[] {"embed", "-m", BERT, "--dimensions", "0", "x"},
            new String[] {"serve", "-m", BERT, "--embedding-model", QWEN},
            new String[] {"serve", "-m", BERT, "--small", "demo-small"},
            new String[] {"serve", "-m", "demo-small", "--embedding-alias", "x"})) {
      assertEquals(2, Fletch.run(args).status(), String.join(" ", args));
    }
    Fletch.Outcome chat = Fletch.run("run", "-m", BERT, "hello");
    assertEquals(1, chat.status());
    assertTrue(chat.err().contains("fletch embed"), chat.err());
    Fletch.Outcome diffusion = Fletch.run("embed", "-m", "demo-diffusion", "x");
    assertEquals(1, diffusion.status());
    assertTrue(diffusion.err().contains("diffusion"), diffusion.err());
  }
}
