package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.LinearOpTensors;
import io.fletch.quant.TemporaryFile;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Sparse matrices that {@code prune} and {@code convert} write, and Fletch Arrow files. */
class SparseOutputTest {
  @TempDir Path folder;

  private String at(String name) {
    return folder.resolve(name).toString();
  }

  private Map<String, Object> prune(String output, String... more) {
    List<String> words = new ArrayList<>(List.of("prune", "-m", "demo-small"));
    words.addAll(List.of("--method", "magnitude"));
    words.addAll(List.of(more));
    words.addAll(List.of("-o", at(output), "--json"));
    return Fletch.ok(words.toArray(String[]::new)).json();
  }

  private static long size(WeightFile file) {
    return file.tensors().values().stream().mapToLong(Tensor::bytes).sum();
  }

  private static LinearOp find(WeightFile file, String stem, long in) {
    return LinearOpTensors.find(n -> Optional.ofNullable(file.tensors().get(n)), stem, in)
        .orElseThrow();
  }

  /** Every matrix of the layers has the elements of the dense file; nothing else differs. */
  private static void same(WeightFile dense, WeightFile sparse, float tolerance) {
    for (Tensor t : dense.tensors().values()) {
      float[] expected = Dequantizer.toFloats(t);
      if (!t.name().matches("blk\\.\\d+\\.(attn_(q|k|v|output)|ffn_(gate|up|down))\\.weight")) {
        assertArrayEquals(expected, Dequantizer.toFloats(sparse.tensors().get(t.name())));
        continue;
      }
      String stem = t.name().substring(0, t.name().length() - ".weight".length());
      float[] actual = SparseRequest.floats(find(sparse, stem, t.cols()));
      assertArrayEquals(expected, actual, tolerance, t.name());
    }
  }

  @Test
  void prunedFilesAreSmallerAndGiveTheLogitsOfTheirDenseForm() {
    prune("d.gguf", "--pattern", "2:4", "--type", "f16");
    Map<String, Object> report =
        prune("s.arrow", "--pattern", "2:4", "--type", "f16", "--sparse", "2:4");
    assertTrue(((Map<?, ?>) report.get("forms")).containsKey("2:4 F16"), report.toString());
    prune("b.arrow", "--pattern", "2:4", "--type", "f16", "--sparse", "bitmap");
    Fletch.ok("convert", "-m", at("d.gguf"), "-o", at("c.arrow"), "--sparse", "2:4");
    try (WeightFile dense = WeightFile.open(Path.of(at("d.gguf")));
        WeightFile sparse = WeightFile.open(Path.of(at("s.arrow")));
        WeightFile bitmap = WeightFile.open(Path.of(at("b.arrow")));
        WeightFile converted = WeightFile.open(Path.of(at("c.arrow")))) {
      same(dense, sparse, 0);
      same(dense, bitmap, 0);
      same(dense, converted, 0);
      long matrices = 0;
      for (Tensor t : dense.tensors().values()) {
        matrices += t.name().startsWith("blk.") && t.rank() == 2 ? t.bytes() : 0;
      }
      // Nine bits of sixteen.
      assertEquals(size(dense) - matrices + matrices * 9 / 16, size(sparse));
      assertEquals(size(sparse), size(converted));
      assertTrue(size(bitmap) < size(dense), "bitmap " + size(bitmap));
    }
    int[] ids = {5, 77, 301, 12, 9};
    float[][] expected = logits("d.gguf", ids);
    for (String name : List.of("s.arrow", "b.arrow", "c.arrow")) {
      float[][] actual = logits(name, ids);
      for (int r = 0; r < ids.length; r++) {
        assertArrayEquals(expected[r], actual[r], 2e-3f, name);
      }
    }
  }

  private float[][] logits(String name, int[] ids) {
    ModelOptions options = ModelOptions.defaults().withThreads(2).withContextLength(64);
    try (Model model = Model.open(Path.of(at(name)), options);
        Session session = model.newSession()) {
      return session.logits(ids);
    }
  }

  /** The next layers are pruned on what the quantized values give, and the file has those. */
  @Test
  void quantizedValuesTakeThreeBitsPerWeight() throws IOException {
    StringBuilder text = new StringBuilder();
    for (int i = 0; i < 200; i++) {
      text.append("What is ").append(i).append(" + 3? Answer: ").append(i + 3).append('\n');
    }
    Files.writeString(Path.of(at("t.txt")), text);
    String[] calibrate = {
      "--calibrate", at("t.txt"), "--samples", "2", "--sample-length", "48", "--method", "wanda"
    };
    List<String> words = new ArrayList<>(List.of("prune", "-m", "demo-small"));
    words.addAll(List.of(calibrate));
    words.addAll(List.of("--pattern", "2:4", "--sparse", "2:4", "--sparse-type", "q4_0"));
    words.addAll(List.of("-o", at("q.arrow"), "--json"));
    Map<String, Object> report = Fletch.ok(words.toArray(String[]::new)).json();
    try (WeightFile file = WeightFile.open(Path.of(at("q.arrow")))) {
      Tensor values = file.tensors().get("blk.0.ffn_up.sp.val");
      Tensor index = file.tensors().get("blk.0.ffn_up.sp.idx");
      assertEquals(TensorType.Q4_0, values.type());
      double bits = 8.0 * (values.bytes() + index.bytes()) / (2 * values.elements());
      assertEquals(3.25, bits, 1e-9);
    }
    assertTrue((Double) report.get("sparsity") >= 0.5);
    // Rounding to four bits shows in the errors that are reported.
    double error = error(report);
    words.replaceAll(w -> w.equals("q4_0") ? "f16" : w);
    double exact = error(Fletch.ok(words.toArray(String[]::new)).json());
    assertTrue(error > exact * 1.001, error + " " + exact);
    assertTrue(
        Fletch.ok("run", "--temp", "0", "-n", "4", "-m", at("q.arrow"), "2 + 3?").out().length()
            > 0);
  }

  private static double error(Map<String, Object> report) {
    double sum = 0;
    for (Object layer : (List<?>) report.get("layers")) {
      sum += (Double) ((Map<?, ?>) layer).get("error");
    }
    return sum;
  }

  @Test
  void autoTakesTheSmallestForm() {
    prune("half.gguf", "--sparsity", "0.3", "--type", "f16");
    Fletch.ok("convert", "-m", at("half.gguf"), "-o", at("half.arrow"), "--sparse", "auto");
    Map<String, Object> dense =
        Fletch.ok(
                "convert",
                "-m",
                "demo-small",
                "--type",
                "f16",
                "-o",
                at("whole.arrow"),
                "--sparse",
                "auto",
                "--json")
            .json();
    // A matrix without zeros stays as it is.
    assertEquals(java.util.Set.of("dense F16"), ((Map<?, ?>) dense.get("matrices")).keySet());
    try (WeightFile a = WeightFile.open(Path.of(at("half.gguf")));
        WeightFile b = WeightFile.open(Path.of(at("half.arrow")))) {
      same(a, b, 0);
      assertTrue(size(b) < size(a) * 0.9, size(b) + " of " + size(a));
      assertTrue(b.tensors().containsKey("blk.0.attn_q.sp.mask"));
    }
  }

  @Test
  void arrowFilesGoThereAndBack() throws IOException {
    Fletch.ok("convert", "-m", "demo-small", "--type", "f16", "-o", at("a.gguf"));
    Fletch.ok("convert", "-m", at("a.gguf"), "-o", at("a.arrow"));
    Fletch.ok("convert", "-m", at("a.arrow"), "-o", at("b.gguf"));
    Fletch.ok("convert", "-m", at("a.arrow"), "-o", at("hf"));
    Fletch.ok("convert", "-m", at("hf"), "-o", at("c.arrow"));
    try (WeightFile a = WeightFile.open(Path.of(at("a.gguf")));
        WeightFile b = WeightFile.open(Path.of(at("b.gguf")));
        WeightFile c = WeightFile.open(Path.of(at("c.arrow")))) {
      assertEquals(a.metadata().entries(), b.metadata().entries());
      for (Tensor t : a.tensors().values()) {
        assertEquals(-1, t.segment().mismatch(b.tensors().get(t.name()).segment()), t.name());
        assertEquals(-1, t.segment().mismatch(c.tensors().get(t.name()).segment()), t.name());
      }
    }
    // Byte for byte, types of the metadata included.
    assertEquals(-1, Files.mismatch(Path.of(at("a.gguf")), Path.of(at("b.gguf"))));
  }

  private Map<String, Object> lowRank(String output, String... more) throws IOException {
    Path text = folder.resolve("c.txt");
    StringBuilder lines = new StringBuilder();
    for (int i = 0; i < 300; i++) {
      lines.append("What is ").append(i).append(" + 5? Answer: ").append(i + 5).append('\n');
    }
    Files.writeString(text, lines);
    List<String> words = new ArrayList<>(List.of("prune", "-m", "demo-small"));
    words.addAll(List.of("--method", "lowrank", "--calibrate", text.toString()));
    words.addAll(List.of("--samples", "2", "--sample-length", "48"));
    words.addAll(List.of(more));
    words.addAll(List.of("-o", at(output), "--json"));
    return Fletch.ok(words.toArray(String[]::new)).json();
  }

  @Test
  void factorsAndTheirRestRun() throws IOException {
    Map<String, Object> plain = lowRank("f.arrow", "--rank-ratio", "0.6");
    Map<String, Object> columns =
        lowRank("c.arrow", "--rank-ratio", "0.6", "--residual", "columns:0.1");
    Map<String, Object> bitmap =
        lowRank("b.arrow", "--rank-ratio", "0.6", "--residual", "bitmap:0.1");
    assertTrue(((Map<?, ?>) plain.get("forms")).containsKey("low rank F16"), plain.toString());
    assertTrue(
        ((Map<?, ?>) columns.get("forms")).containsKey("columns F16 + low rank F16"),
        columns.toString());
    assertTrue(error(columns) < error(plain), error(columns) + " " + error(plain));
    assertTrue(error(bitmap) < error(plain), error(bitmap) + " " + error(plain));
    assertTrue((Double) plain.get("sparsity") >= 0.4 - 1e-9, plain.toString());
    // All energy is all of the matrix, so that it stays dense; half a threshold leaves little.
    Map<String, Object> all = lowRank("e.arrow", "--rank-energy", "1");
    assertEquals(java.util.Set.of("dense F16"), ((Map<?, ?>) all.get("forms")).keySet());
    assertTrue(error(all) < 1e-5, all.toString());
    assertTrue((Double) lowRank("t.arrow", "--rank-threshold", "0.5").get("sparsity") > 0.5);
    int[] ids = {5, 77, 301, 12, 9};
    for (String name : List.of("f.arrow", "c.arrow", "b.arrow")) {
      // The file stands for the dense matrices that its parts make.
      try (WeightFile file = WeightFile.open(Path.of(at(name)));
          WeightFile source = WeightFile.open(Model.demoFile("demo-small"))) {
        io.fletch.quant.ArrowWriter dense =
            new io.fletch.quant.ArrowWriter().putAll(file.metadata());
        try (io.fletch.quant.TensorStore store = io.fletch.quant.TensorStore.create()) {
          for (Tensor t : source.tensors().values()) {
            if (file.tensors().containsKey(t.name())) {
              dense.tensor(file.tensors().get(t.name()));
            } else {
              String stem = t.name().substring(0, t.name().length() - ".weight".length());
              float[] w = SparseRequest.floats(find(file, stem, t.cols()));
              dense.tensor(store.floats(t.name(), w, t.shape()));
            }
          }
          dense.write(Path.of(at("dense.arrow")));
        }
      }
      float[][] expected = logits("dense.arrow", ids);
      float[][] actual = logits(name, ids);
      for (int r = 0; r < ids.length; r++) {
        // Other matrices are Q8_0, whose rounded activations make small differences larger.
        assertArrayEquals(expected[r], actual[r], 3e-2f, name);
      }
    }
  }

  private static Map<String, float[]> matrices(String file) {
    Map<String, float[]> all = new java.util.TreeMap<>();
    try (WeightFile f = WeightFile.open(Path.of(file))) {
      f.tensors().values().stream()
          .filter(t -> t.name().startsWith("blk."))
          .forEach(t -> all.put(t.name(), Dequantizer.toFloats(t)));
    }
    return all;
  }

  private static void assertSame(String expected, String actual) {
    Map<String, float[]> a = matrices(expected);
    Map<String, float[]> b = matrices(actual);
    assertEquals(a.keySet(), b.keySet());
    for (String name : a.keySet()) {
      float[] x = a.get(name);
      float[] y = b.get(name);
      for (int i = 0; i < x.length; i++) {
        // Zeros of either sign come back as +0.
        x[i] += 0f;
        y[i] += 0f;
      }
      assertArrayEquals(x, y, name);
    }
  }

  @Test
  void sparseFilesBecomeDenseAgain() throws IOException {
    prune("d.gguf", "--pattern", "2:4", "--type", "f16");
    for (String kind : List.of("2:4", "bitmap", "block:2x8", "columns")) {
      Fletch.ok("convert", "-m", at("d.gguf"), "-o", at("s.arrow"), "--sparse", kind);
      Fletch.ok("convert", "-m", at("s.arrow"), "-o", at("back.gguf"));
      assertSame(at("d.gguf"), at("back.gguf"));
    }
    // Codes go through float32, so another form of the same codes has the same values.
    Fletch.ok(
        "convert",
        "-m",
        at("d.gguf"),
        "-o",
        at("q.arrow"),
        "--sparse",
        "2:4",
        "--sparse-type",
        "q8_0");
    Fletch.ok(
        "convert",
        "-m",
        at("q.arrow"),
        "-o",
        at("b.arrow"),
        "--sparse",
        "bitmap",
        "--sparse-type",
        "f32");
    // What a killed process left goes; what another holds stays, and nothing is written over it.
    Path left = Files.writeString(Path.of(at(".q.gguf.dense.tmp")), "left");
    try (TemporaryFile _ = TemporaryFile.hold(left).orElseThrow()) {
      Fletch.Outcome refused = Fletch.run("convert", "-m", at("q.arrow"), "-o", at("q.gguf"));
      assertTrue(refused.err().contains("another process makes"), refused.err());
      assertEquals("left", Files.readString(left));
    }
    Files.writeString(left, "left");
    Fletch.ok("convert", "-m", at("q.arrow"), "-o", at("q.gguf"), "--type", "f32");
    assertFalse(Files.exists(left));
    Fletch.ok("convert", "-m", at("b.arrow"), "-o", at("b.gguf"), "--type", "f32");
    assertSame(at("q.gguf"), at("b.gguf"));
    Fletch.ok("quantize", "-m", at("q.arrow"), "--type", "Q8_0", "-o", at("x.gguf"));
    assertEquals(
        Fletch.ok("run", "--temp", "0", "-m", at("q.arrow"), "2 + 2?").out(),
        Fletch.ok("run", "--temp", "0", "-m", at("x.gguf"), "2 + 2?").out());
    Fletch.ok("convert", "-m", at("q.arrow"), "-o", at("folder"));
    Fletch.ok("convert", "-m", at("folder"), "-o", at("again.gguf"));
    Fletch.ok("convert", "-m", at("q.arrow"), "-o", at("once.gguf"));
    assertSame(at("once.gguf"), at("again.gguf"));
    assertFalse(
        List.of(new java.io.File(at(".")).list()).stream().anyMatch(n -> n.endsWith(".tmp")));
    lowRank("f.arrow", "--rank-ratio", "0.6", "--residual", "columns:0.1");
    Fletch.ok("convert", "-m", at("f.arrow"), "-o", at("f.gguf"), "--type", "f32");
    try (WeightFile factors = WeightFile.open(Path.of(at("f.arrow")));
        WeightFile dense = WeightFile.open(Path.of(at("f.gguf")))) {
      for (Tensor t : dense.tensors().values()) {
        String stem = t.name().replaceAll("\\.weight$", "");
        if (factors.tensors().containsKey(stem + ".U.weight")) {
          float[] expected = SparseRequest.floats(find(factors, stem, t.cols()));
          assertArrayEquals(expected, Dequantizer.toFloats(t), t.name());
        }
      }
      assertTrue(factors.tensors().keySet().stream().anyMatch(n -> n.endsWith(".U.weight")));
    }
  }

  @Test
  void shardsAreWrittenAndVerified() {
    Fletch.ok("convert", "-m", "demo-small", "-o", at("m.arrow"), "--shard-size", "1");
    Fletch.ok("convert", "-m", "demo", "-o", at("g.gguf"), "--shard-size", "2");
    String first = at("g-00001-of-00003.gguf");
    assertTrue(Files.exists(Path.of(first)), () -> String.join(" ", folder.toFile().list()));
    // One shard is enough for the small model.
    Fletch.Outcome seen = Fletch.ok("inspect", "-m", at("m.arrow"), "--verify");
    assertTrue(seen.err().contains("have the hashes that the file keeps"), seen.err());
    assertTrue(Fletch.ok("inspect", "-m", first, "--verify").err().contains("nothing to verify"));
    assertEquals(
        Fletch.ok("run", "--temp", "0", "-m", "demo", "2 + 2?").out(),
        Fletch.ok("run", "--temp", "0", "-m", first, "2 + 2?").out());
  }

  private static Fletch.Outcome fails(int status, String... args) {
    Fletch.Outcome outcome = Fletch.run(args);
    assertEquals(status, outcome.status(), outcome.err());
    return outcome;
  }

  @Test
  void whatCannotBeIsRefused() {
    assertTrue(
        fails(2, "convert", "-m", "demo-small", "-o", at("x.gguf"), "--sparse", "auto")
            .err()
            .contains("--sparse: needs --output NAME.arrow"));
    assertTrue(
        fails(2, "convert", "-m", "demo-small", "-o", at("x.arrow"), "--sparse", "3:4")
            .err()
            .contains("--sparse: expected=auto|bitmap|2:4"));
    assertTrue(
        fails(2, "convert", "-m", "demo-small", "-o", at("x.arrow"), "--sparse-type", "f16")
            .err()
            .contains("only with --sparse"));
    assertTrue(
        fails(1, "convert", "-m", "demo-small", "-o", at("x.arrow"), "--sparse", "2:4")
            .err()
            .contains("expected=at most 2 that are not zero"));
    assertFalse(Files.exists(Path.of(at("x.arrow"))));
    assertTrue(
        fails(2, "prune", "-m", "demo-small", "-o", at("x.gguf"), "--method", "lowrank")
            .err()
            .contains("expected=GGUF or Arrow to NAME.arrow"));
    assertTrue(
        fails(
                2,
                "prune",
                "-m",
                "demo-small",
                "-o",
                at("x.arrow"),
                "--method",
                "lowrank",
                "--residual",
                "rows:0.1")
            .err()
            .contains("--residual: expected=columns:S or bitmap:S"));
  }
}
