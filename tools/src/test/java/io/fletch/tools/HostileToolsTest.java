package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.quant.Dequantizer;
import io.fletch.quant.GgufWriter;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What the offline tools say to outputs, texts and weights that they cannot work with. */
class HostileToolsTest {
  @TempDir static Path folder;

  @BeforeAll
  static void makeFiles() throws IOException {
    Fletch.ok("convert", "-m", "demo-small", "--type", "f16", "-o", at("base.gguf"));
    Files.createDirectory(folder.resolve("folder.gguf"));
    Files.createDirectory(folder.resolve("taken"));
    Files.writeString(folder.resolve("taken/model.safetensors"), "somebody's");
    Files.write(folder.resolve("binary.txt"), new byte[] {65, (byte) 0xff, (byte) 0xfe});
    Files.writeString(folder.resolve("text.txt"), "What is 4 + 3? It is 7. ".repeat(60));
  }

  private static String at(String name) {
    return folder.resolve(name).toString();
  }

  private static void refused(int status, String words, String... command) {
    Fletch.Outcome outcome = Fletch.run(command);
    String said = String.join(" ", command) + ": " + outcome.err();
    assertEquals(status, outcome.status(), said);
    assertTrue(outcome.err().contains(words), said);
    assertFalse(outcome.err().contains("internal error"), said);
    assertFalse(outcome.err().contains("java."), said);
  }

  /** Before any work, and nothing is left. */
  @Test
  void outputsThatCannotBeWritten() throws IOException {
    String base = at("base.gguf");
    for (String out : List.of(at("none/o.gguf"), at("folder.gguf"), at("base.gguf/o.gguf"))) {
      refused(2, "--output: expected=", "convert", "-m", base, "-o", out);
      refused(2, "--output: expected=", "quantize", "-m", base, "--type", "Q4_0", "-o", out);
      refused(2, "--output: expected=", "prune", "-m", base, "--method", "magnitude", "-o", out);
      refused(2, "--output: expected=", "merge", "-m", base, "--layers", "0", "-o", out);
    }
    for (String out : List.of(at("taken"), at("text.txt"))) {
      refused(2, "(exists)", "convert", "-m", base, "-o", out);
    }
    refused(2, "(exists)", "convert", "-m", base, "-o", "/");
    String[] imatrix = {
      "quantize",
      "-m",
      base,
      "--type",
      "Q4_0",
      "--calibrate",
      at("text.txt"),
      "--save-imatrix",
      at("none/i.gguf"),
      "-o",
      at("o.gguf")
    };
    refused(2, "--save-imatrix: expected=in a folder that exists", imatrix);
    for (String option : List.of("report", "picture")) {
      String[] prune = {
        "prune",
        "-m",
        base,
        "--method",
        "magnitude",
        "--" + option,
        at("none/r"),
        "-o",
        at("o.gguf")
      };
      refused(2, "--" + option + ": expected=in a folder that exists", prune);
    }
    for (String out : List.of("o.gguf", "folder.gguf", "taken", "text.txt")) {
      assertFalse(Files.exists(Path.of(at(out + ".partial"))), out);
    }
    assertEquals("somebody's", Files.readString(folder.resolve("taken/model.safetensors")));
  }

  /** A rule for tensors that gives no weights, or has no tensor. */
  @Test
  void rulesThatChangeNothing() {
    String[] quantize = {
      "quantize", "-m", at("base.gguf"), "--type", "Q8_0", "-o", at("r.gguf"), "--tensor-type", ""
    };
    for (String type : List.of("I32", "F64", "Q9")) {
      quantize[quantize.length - 1] = "ffn=" + type;
      refused(2, "--tensor-type: expected=a type such as Q8_0 actual=" + type, quantize);
    }
    quantize[quantize.length - 1] = "fnn_down=Q4_0";
    String said = Fletch.ok(quantize).err();
    assertTrue(said.contains("--tensor-type fnn_down: no matrix has such a name"), said);
    quantize[quantize.length - 1] = "ffn_down=Q4_0";
    assertFalse(Fletch.ok(quantize).err().contains("no matrix"));
  }

  @Test
  void textsThatAreNone() {
    String base = at("base.gguf");
    for (String text : List.of("binary.txt", "folder.gguf")) {
      String[] wanda = {
        "prune", "-m", base, "--method", "wanda", "--calibrate", at(text), "-o", at("o.gguf")
      };
      refused(1, at(text) + ": ", wanda);
      refused(1, at(text) + ": ", "perplexity", "-m", base, "--text", at(text));
    }
  }

  /** Weights that are no numbers are named, by every tool that would have to compare them. */
  @Test
  void weightsThatAreNoNumbers() {
    try (WeightFile file = WeightFile.open(Path.of(at("base.gguf")));
        TensorStore store = TensorStore.create()) {
      GgufWriter writer = new GgufWriter().putAll(file.metadata());
      for (Tensor t : file.tensors().values()) {
        if (t.name().equals("blk.1.ffn_up.weight")) {
          float[] values = Dequantizer.toFloats(t);
          values[values.length - 7] = Float.NaN;
          writer.add(store.floats(t.name(), values, t.shape()));
        } else {
          writer.add(t);
        }
      }
      writer.write(Path.of(at("nan.gguf")));
    }
    String nan = at("nan.gguf");
    String tensor = "tensor blk.1.ffn_up.weight";
    for (String type : List.of("Q4_0", "Q4_K_M", "F16")) {
      refused(1, tensor, "quantize", "-m", nan, "--type", type, "-o", at("n.gguf"));
    }
    for (String method : List.of("magnitude", "wanda", "sparsegpt", "dsnot", "flap")) {
      String[] prune = {
        "prune", "-m", nan, "--method", method, "--calibrate", at("text.txt"), "-o", at("n.gguf")
      };
      refused(1, tensor, prune);
    }
    for (String method : List.of("average", "task", "dare")) {
      String[] merge = {
        "merge", "-m", at("base.gguf"), "--with", nan, "--method", method, "-o", at("n.gguf")
      };
      refused(1, tensor, merge);
    }
    assertFalse(Files.exists(Path.of(at("n.gguf"))));
  }
}
