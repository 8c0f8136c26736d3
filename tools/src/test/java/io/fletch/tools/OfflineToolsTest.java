package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Model;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** {@code convert} and {@code quantize} on the embedded models. */
class OfflineToolsTest {
  @TempDir Path folder;

  private Path at(String name) {
    return folder.resolve(name);
  }

  @Test
  void foldersOfOtherThingsAreLeftAlone() throws IOException {
    Files.createDirectory(at("photos"));
    Files.writeString(at("photos").resolve("cat"), "meow");
    String refused =
        "fletch convert: --output: expected=NAME.gguf, NAME.arrow or a new folder actual="
            + at("photos")
            + " (exists) (see: fletch convert --help)\n";
    assertEquals(refused, Fletch.run("convert", "-o", at("photos").toString()).err());
    assertEquals(List.of("cat"), List.of(at("photos").toFile().list()));
    Files.createDirectory(at("empty"));
    Fletch.ok("convert", "-m", "demo-small", "-o", at("empty").toString());
    assertTrue(Files.exists(at("empty").resolve("config.json")));
    Path nowhere = at("none").resolve("x.gguf");
    assertEquals(
        "fletch convert: --output: expected=in a folder that exists actual="
            + nowhere
            + " (see: fletch convert --help)\n",
        Fletch.run("convert", "-o", nowhere.toString()).err());
    assertEquals(
        "fletch logits: no such file: " + nowhere + " (there is no folder " + at("none") + ")\n",
        Fletch.run("logits", "--ids", "1", "-o", nowhere.toString()).err());
  }

  /** Specs weights 6.11: what is written and read again is the same byte for byte. */
  @Test
  void conversionAndBackKeepsEveryWeight() throws IOException {
    Fletch.ok("convert", "-m", "demo-small", "--type", "f16", "-o", at("a.gguf").toString());
    Fletch.ok("convert", "-m", at("a.gguf").toString(), "-o", at("hf").toString());
    Fletch.ok("convert", "-m", at("hf").toString(), "-o", at("b.gguf").toString());
    try (WeightFile a = WeightFile.open(at("a.gguf"));
        WeightFile b = WeightFile.open(at("b.gguf"))) {
      assertEquals(a.tensors().keySet(), b.tensors().keySet());
      for (Tensor t : a.tensors().values()) {
        Tensor other = b.tensors().get(t.name());
        assertEquals(t.toString(), other.toString());
        assertArrayEquals(bytes(t), bytes(other), t.name());
      }
      for (String key :
          List.of(
              "qwen3.block_count",
              "qwen3.attention.head_count_kv",
              "qwen3.rope.freq_base",
              "tokenizer.ggml.merges",
              "tokenizer.ggml.tokens",
              "tokenizer.ggml.token_type",
              "tokenizer.ggml.eos_token_id",
              "tokenizer.chat_template")) {
        assertEquals(a.metadata().entries().get(key), b.metadata().entries().get(key), key);
      }
    }
    String wanted =
        Fletch.ok("run", "--temp", "0", "-m", at("a.gguf").toString(), "What is 4 + 3?").out();
    assertEquals(
        wanted, Fletch.ok("run", "--temp", "0", "-m", at("hf").toString(), "What is 4 + 3?").out());
    assertEquals(
        wanted,
        Fletch.ok("run", "--temp", "0", "-m", at("b.gguf").toString(), "What is 4 + 3?").out());
  }

  private static byte[] bytes(Tensor t) {
    return t.segment().toArray(ValueLayout.JAVA_BYTE);
  }

  @Test
  void recipesSayWhichTensorGetsWhichType() throws IOException {
    Map<String, Object> report =
        Fletch.ok(
                "quantize",
                "-m",
                "demo",
                "--type",
                "q4_k_m",
                "--tensor-type",
                "attn_output=Q8_0",
                "-o",
                at("q.gguf").toString(),
                "--json")
            .json();
    assertEquals("Q4_K_M", report.get("type"));
    try (WeightFile file = WeightFile.open(at("q.gguf"))) {
      // Eight layers: the first and last eighth, and every third one between, get more bits.
      List<Integer> more = List.of(0, 3, 6, 7);
      for (int i = 0; i < 8; i++) {
        TensorType expected = more.contains(i) ? TensorType.Q6_K : TensorType.Q4_K;
        assertEquals(expected, type(file, "blk." + i + ".attn_v.weight"));
        assertEquals(expected, type(file, "blk." + i + ".ffn_down.weight"));
        assertEquals(TensorType.Q4_K, type(file, "blk." + i + ".ffn_up.weight"));
        assertEquals(TensorType.Q8_0, type(file, "blk." + i + ".attn_output.weight"));
        assertEquals(TensorType.F32, type(file, "blk." + i + ".ffn_norm.weight"));
      }
      assertEquals(TensorType.Q6_K, type(file, "token_embd.weight"));
      assertEquals(15, file.metadata().integer("general.file_type").orElseThrow());
    }
  }

  private static TensorType type(WeightFile file, String name) {
    return file.tensor(name).orElseThrow().type();
  }

  @Test
  void rowsThatDoNotFitGetTheNextType() {
    // Rows of 128 elements are no whole number of blocks of 256; those of ffn_down are.
    Map<String, Object> report =
        Fletch.ok(
                "quantize",
                "-m",
                "demo-small",
                "--type",
                "Q4_K_S",
                "-o",
                at("q.gguf").toString(),
                "--json")
            .json();
    assertEquals(
        Map.of("F32", 17, "Q5_0", 20, "Q5_1", 4, "Q4_K", 4, "Q8_0", 1), report.get("types"));
    assertEquals(0, Fletch.run("run", "-m", at("q.gguf").toString(), "What is 4 + 3?").status());
  }

  @Test
  void wrongRequestsAreRefused() throws IOException {
    assertEquals(
        2, Fletch.run("quantize", "--type", "Q4_X", "-o", at("q.gguf").toString()).status());
    assertEquals(2, Fletch.run("quantize", "--type", "Q8_0", "-o", at("q").toString()).status());
    Path source = Files.copy(Model.demoFile("demo-small"), at("s.gguf"));
    Fletch.Outcome same =
        Fletch.run("quantize", "-m", source.toString(), "--type", "F16", "-o", source.toString());
    assertEquals(2, same.status());
    Fletch.Outcome family =
        Fletch.run("convert", "-m", "demo-diffusion", "-o", at("hf").toString());
    assertEquals(1, family.status());
    assertTrue(family.err().contains("expected=llama|qwen2|qwen3 actual=llada"), family.err());
    assertFalse(Files.exists(at("hf")));
    // Its pooling would be lost.
    Fletch.Outcome embedding =
        Fletch.run(
            "convert",
            "-m",
            "../runtime/src/test/resources/io/fletch/runtime/engine/embedders/qwen3.gguf",
            "-o",
            at("hf").toString());
    assertEquals(1, embedding.status());
    assertTrue(embedding.err().contains("an embedding model to safetensors"), embedding.err());
    assertFalse(Files.exists(at("hf")));
    // Neither container's own keys say it.
    Fletch.ok("convert", "-m", "demo-small", "--type", "f16", "-o", at("hf").toString());
    Path config = at("hf").resolve("config.json");
    Files.writeString(
        config,
        Files.readString(config)
            .replaceFirst("\\{", "{\"fletch\": {\"activation_sparsity\": \"2:4\"},"));
    Fletch.Outcome sparse =
        Fletch.run("convert", "-m", at("hf").toString(), "-o", at("a.gguf").toString());
    assertEquals(1, sparse.status(), sparse.out());
    assertTrue(sparse.err().contains("only the largest count"), sparse.err());
    assertFalse(Files.exists(at("a.gguf")));
  }

  /**
   * Every tool that writes models: interrupted, it leaves no file that opens, and then makes the
   * same one.
   */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "quantize -m demo-small --type Q4_K_M -o OUT.gguf",
        "convert -m demo-small --type f16 -o OUT.gguf",
        "convert -m demo-small -o OUT.arrow",
        "convert -m demo-small --type f16 -o OUT",
        "prune -m demo-small --method magnitude --pattern 2:4 --sparse 2:4 -o OUT.arrow",
        "prune -m demo-small --method lowrank --rank-ratio 0.5 -o OUT.arrow",
        "merge -m demo-small --layers 0-3,1 -o OUT.gguf",
        "merge -m demo-small --with demo-small --method average --type f16 -o OUT.gguf"
      })
  void noToolLeavesAHalfFile(String line) throws Exception {
    Path whole = at("whole-" + line.hashCode());
    Fletch.ok(line.replace("OUT", whole.toString()).split(" "));
    Path made = Path.of(line.replace("OUT", whole.toString()).replaceFirst(".* -o ", ""));
    Random random = new Random(line.hashCode());
    Path target = at("again-" + line.hashCode());
    String[] command = line.replace("OUT", target.toString()).split(" ");
    Path output = Path.of(command[command.length - 1]);
    for (int round = 0; round < 4; round++) {
      Thread thread = new Thread(() -> Fletch.run(command));
      thread.start();
      thread.join(1 + random.nextInt(150));
      thread.interrupt();
      thread.join();
      if (Files.exists(model(output))) {
        assertSame(made, output);
        break;
      }
      assertThrows(RuntimeException.class, () -> WeightFile.open(output));
    }
    if (!Files.exists(model(output))) {
      Fletch.ok(command);
    }
    assertSame(made, output);
    assertFalse(Files.exists(output.resolveSibling(output.getFileName() + ".partial")));
  }

  /** What makes an output a model: of a folder its configuration, which is written last. */
  private static Path model(Path output) {
    boolean isFolder = !output.toString().matches(".*\\.(gguf|arrow)");
    return isFolder ? output.resolve("config.json") : output;
  }

  private static void assertSame(Path whole, Path again) throws IOException {
    if (Files.isDirectory(whole)) {
      for (String name : List.of("model.safetensors", "config.json", "tokenizer.json")) {
        assertEquals(-1, Files.mismatch(whole.resolve(name), again.resolve(name)), name);
      }
    } else {
      assertEquals(-1, Files.mismatch(whole, again), again.toString());
    }
  }

  @Test
  void interruptedAtAnyMomentNothingOpensAndTheNextRunGoesOn() throws Exception {
    Path whole = at("whole.gguf");
    Fletch.ok("quantize", "-m", "demo-small", "--type", "Q4_1", "-o", whole.toString());
    byte[] expected = Files.readAllBytes(whole);
    Random random = new Random(5);
    for (int round = 0; round < 6; round++) {
      Path target = at("t" + round + ".gguf");
      String[] command = {
        "quantize", "-m", "demo-small", "--type", "Q4_1", "-o", target.toString()
      };
      Thread thread = new Thread(() -> Fletch.run(command));
      thread.start();
      thread.join(1 + random.nextInt(60));
      thread.interrupt();
      thread.join();
      if (Files.exists(target)) {
        assertArrayEquals(expected, Files.readAllBytes(target));
      }
      Fletch.ok(command);
      assertArrayEquals(expected, Files.readAllBytes(target));
      assertFalse(Files.exists(at("t" + round + ".gguf.partial")));
    }
  }
}
