package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.quant.Dequantizer;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.SafetensorsWriter;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** {@code merge} on an embedded model. */
class MergeCommandTest {
  private static final String QUESTION = "What is 14 + 3?";

  @TempDir static Path folder;

  @BeforeAll
  static void makeBase() {
    Fletch.ok("convert", "-m", "demo-small", "--type", "f32", "-o", at("base.gguf"));
    Fletch.ok("convert", "-m", at("base.gguf"), "-o", at("base"));
  }

  private static String at(String name) {
    return folder.resolve(name).toString();
  }

  private static String answer(String model) {
    return Fletch.ok("run", "--temp", "0", "-m", model, QUESTION).out();
  }

  /** Specs weights 6.28: all layers in order are the base, bit for bit. */
  @Test
  void allLayersInOrderAreTheBase() {
    Fletch.ok("merge", "-m", at("base.gguf"), "--layers", "0-3", "-o", at("same.gguf"));
    try (WeightFile a = WeightFile.open(Path.of(at("base.gguf")));
        WeightFile b = WeightFile.open(Path.of(at("same.gguf")))) {
      assertEquals(a.tensors().keySet(), b.tensors().keySet());
      for (Tensor t : a.tensors().values()) {
        assertArrayEquals(bytes(t), bytes(b.tensors().get(t.name())), t.name());
      }
      assertEquals(a.metadata().entries(), b.metadata().entries());
    }
  }

  private static byte[] bytes(Tensor t) {
    return t.segment().toArray(ValueLayout.JAVA_BYTE);
  }

  /** A model with fewer, repeated and averaged layers runs, as GGUF and as safetensors. */
  @Test
  void layersAreChosenAndAveraged() {
    String list = "0,2,1+2,3";
    Fletch.ok("merge", "-m", at("base.gguf"), "--layers", "0,3", "-o", at("two.gguf"));
    assertFalse(answer(at("two.gguf")).isEmpty());
    Fletch.ok("merge", "-m", at("base.gguf"), "--layers", list, "-o", at("four.gguf"));
    Fletch.ok("merge", "-m", at("base"), "--layers", list, "-o", at("four"));
    assertEquals(answer(at("four.gguf")), answer(at("four")));
    try (WeightFile base = WeightFile.open(Path.of(at("base.gguf")));
        WeightFile two = WeightFile.open(Path.of(at("two.gguf")));
        WeightFile four = WeightFile.open(Path.of(at("four.gguf")))) {
      assertEquals(2, two.metadata().integer("qwen3.block_count").orElseThrow());
      assertArrayEquals(
          bytes(base.tensors().get("blk.3.ffn_up.weight")),
          bytes(two.tensors().get("blk.1.ffn_up.weight")));
      float[] a = Dequantizer.toFloats(base.tensors().get("blk.1.ffn_up.weight"));
      float[] b = Dequantizer.toFloats(base.tensors().get("blk.2.ffn_up.weight"));
      float[] mean = Dequantizer.toFloats(four.tensors().get("blk.2.ffn_up.weight"));
      for (int i = 0; i < mean.length; i++) {
        assertEquals((float) (((double) a[i] + b[i]) / 2), mean[i]);
      }
    }
  }

  /** Specs weights 6.26 on files. */
  @Test
  void modelsAreMerged() {
    Fletch.ok("merge", "-m", at("base.gguf"), "--layers", "3,2,1,0", "-o", at("other.gguf"));
    Fletch.ok(
        "merge",
        "-m",
        at("base.gguf"),
        "--with",
        at("other.gguf"),
        "--method",
        "task",
        "--lambda",
        "0",
        "-o",
        at("zero.gguf"));
    Fletch.ok(
        "merge",
        "-m",
        at("base.gguf"),
        "--with",
        at("other.gguf"),
        "--method",
        "dare",
        "--drop",
        "0",
        "-o",
        at("one.gguf"));
    String[] dare = {
      "merge",
      "-m",
      at("base.gguf"),
      "--with",
      at("other.gguf"),
      "--method",
      "dare",
      "--seed",
      "3",
      "-o",
      at("dare.gguf")
    };
    Fletch.ok(dare);
    dare[dare.length - 1] = at("again.gguf");
    Fletch.ok(dare);
    try (WeightFile base = WeightFile.open(Path.of(at("base.gguf")));
        WeightFile other = WeightFile.open(Path.of(at("other.gguf")));
        WeightFile zero = WeightFile.open(Path.of(at("zero.gguf")));
        WeightFile one = WeightFile.open(Path.of(at("one.gguf")));
        WeightFile first = WeightFile.open(Path.of(at("dare.gguf")));
        WeightFile second = WeightFile.open(Path.of(at("again.gguf")))) {
      for (Tensor t : base.tensors().values()) {
        String name = t.name();
        assertArrayEquals(bytes(t), bytes(zero.tensors().get(name)), name);
        assertArrayEquals(
            Dequantizer.toFloats(other.tensors().get(name)),
            Dequantizer.toFloats(one.tensors().get(name)),
            1e-6f,
            name);
        assertArrayEquals(
            bytes(first.tensors().get(name)), bytes(second.tensors().get(name)), name);
      }
    }
  }

  /** Specs weights 6.24 on files: PEFT and GGUF adapters, and one that does nothing. */
  @Test
  void adaptersAreMerged() throws IOException {
    int rank = 2;
    float[] a = new float[rank * 128];
    float[] b = new float[128 * rank];
    for (int i = 0; i < a.length; i++) {
      a[i] = (i % 7 - 3) * 0.01f;
      b[i] = (i % 5 - 2) * 0.1f;
    }
    peft("adapter", rank, a, b, "{\"lora_alpha\": 4, \"use_rslora\": false}");
    peft("rs", rank, a, b, "{\"lora_alpha\": " + 4 / Math.sqrt(2) + ", \"use_rslora\": true}");
    peft("nothing", rank, a, new float[b.length], "{\"lora_alpha\": 4}");
    for (String name : List.of("adapter", "rs", "nothing")) {
      Fletch.ok("merge", "-m", at("base"), "--lora", at(name), "-o", at(name + "-hf"));
    }
    try (TensorStore store = TensorStore.create()) {
      new GgufWriter()
          .put("general.type", "adapter")
          .put("adapter.type", "lora")
          .put("adapter.lora.alpha", 4f)
          .add(store.floats("blk.1.attn_output.weight.lora_a", a, rank, 128))
          .add(store.floats("blk.1.attn_output.weight.lora_b", b, 128, rank))
          .write(Path.of(at("adapter.gguf")));
    }
    Fletch.ok("merge", "-m", at("base.gguf"), "--lora", at("adapter.gguf"), "-o", at("g.gguf"));
    String name = "model.layers.1.self_attn.o_proj.weight";
    try (WeightFile base = WeightFile.open(Path.of(at("base")));
        WeightFile hf = WeightFile.open(Path.of(at("adapter-hf")));
        WeightFile rs = WeightFile.open(Path.of(at("rs-hf")));
        WeightFile nothing = WeightFile.open(Path.of(at("nothing-hf")));
        WeightFile gguf = WeightFile.open(Path.of(at("g.gguf")))) {
      float[] w = Dequantizer.toFloats(base.tensors().get(name));
      float[] merged = Dequantizer.toFloats(hf.tensors().get(name));
      for (int o = 0; o < 128; o++) {
        for (int j = 0; j < 128; j++) {
          double delta = 0;
          for (int k = 0; k < rank; k++) {
            delta += 2.0 * b[o * rank + k] * a[k * 128 + j];
          }
          assertEquals(w[o * 128 + j] + delta, merged[o * 128 + j], 1e-6);
        }
      }
      assertArrayEquals(merged, Dequantizer.toFloats(rs.tensors().get(name)), 1e-6f);
      assertArrayEquals(w, Dequantizer.toFloats(nothing.tensors().get(name)));
      assertArrayEquals(
          merged, Dequantizer.toFloats(gguf.tensors().get("blk.1.attn_output.weight")));
      assertTrue(!Arrays.equals(w, merged));
    }
    // Never silently into quantized weights.
    Fletch.ok("quantize", "-m", at("base.gguf"), "--type", "Q8_0", "-o", at("q8.gguf"));
    String[] quantized = {
      "merge", "-m", at("q8.gguf"), "--lora", at("adapter.gguf"), "-o", at("q.gguf")
    };
    assertEquals(2, Fletch.run(quantized).status());
    assertFalse(Files.exists(Path.of(at("q.gguf"))));
  }

  private static void peft(String name, int rank, float[] a, float[] b, String config)
      throws IOException {
    Path adapter = Files.createDirectories(folder.resolve(name));
    Files.writeString(adapter.resolve("adapter_config.json"), config);
    String at = "base_model.model.model.layers.1.self_attn.o_proj.lora_";
    try (TensorStore store = TensorStore.create()) {
      new SafetensorsWriter()
          .add(store.floats(at + "A.weight", a, rank, 128))
          .add(store.floats(at + "B.weight", b, 128, rank))
          .write(adapter.resolve("adapter_model.safetensors"));
    }
  }

  @Test
  void wrongRequestsAreRefused() {
    for (String[] wrong :
        List.of(
            new String[] {},
            new String[] {"--layers", "0-4"},
            new String[] {"--layers", "0", "--lora", at("adapter")},
            new String[] {"--with", at("base.gguf")},
            new String[] {"--with", at("base.gguf"), "--method", "task", "--drop", "0.5"},
            new String[] {"--layers", "0", "--method", "average"})) {
      String[] words = new String[wrong.length + 5];
      System.arraycopy(new String[] {"merge", "-m", at("base.gguf")}, 0, words, 0, 3);
      System.arraycopy(wrong, 0, words, 3, wrong.length);
      words[words.length - 2] = "-o";
      words[words.length - 1] = at("never.gguf");
      assertEquals(2, Fletch.run(words).status(), Arrays.toString(words));
    }
    assertFalse(Files.exists(Path.of(at("never.gguf"))));
  }

  /** No input is overwritten, and what is refused leaves nothing. */
  @Test
  void inputsAreNotOutputs() throws IOException {
    Fletch.ok("merge", "-m", at("base.gguf"), "--layers", "3,2,1,0", "-o", at("with.gguf"));
    Files.createSymbolicLink(folder.resolve("link.gguf"), folder.resolve("with.gguf"));
    long bytes = Files.size(folder.resolve("with.gguf"));
    for (String out : List.of("base.gguf", "with.gguf", "link.gguf")) {
      String[] merge = {
        "merge",
        "-m",
        at("base.gguf"),
        "--with",
        at("with.gguf"),
        "--method",
        "average",
        "-o",
        at(out)
      };
      Fletch.Outcome outcome = Fletch.run(merge);
      assertEquals(2, outcome.status(), outcome.err());
      assertTrue(outcome.err().contains("expected=another file"), outcome.err());
      assertEquals(bytes, Files.size(folder.resolve("with.gguf")));
      assertFalse(Files.exists(folder.resolve(out + ".partial")));
    }
    Fletch.ok("convert", "-m", at("base.gguf"), "--shard-size", "1", "-o", at("pieces.gguf"));
    try (Stream<Path> files = Files.list(folder)) {
      Path first =
          files
              .filter(f -> f.getFileName().toString().startsWith("pieces-00001-of-"))
              .findFirst()
              .orElseThrow();
      String[] again = {
        "convert",
        "-m",
        first.toString(),
        "--type",
        "f16",
        "--shard-size",
        "1",
        "-o",
        at("pieces.gguf")
      };
      Fletch.Outcome outcome = Fletch.run(again);
      assertEquals(2, outcome.status(), outcome.err());
      assertTrue(outcome.err().contains("expected=other files"), outcome.err());
      assertFalse(Files.exists(folder.resolve("pieces.gguf.partial")));
    }
  }
}
