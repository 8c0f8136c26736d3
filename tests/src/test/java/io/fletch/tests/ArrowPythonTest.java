package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.fletch.Model;
import io.fletch.quant.ArrowWriter;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.Tensor;
import io.fletch.quant.WeightFile;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * The Python of docs/formats.md reads a Fletch Arrow file, one file or shards, with {@code
 * pyarrow}. The interpreter is {@code $FLETCH_PYTHON} or {@code python3}; skipped where it has no
 * pyarrow.
 */
class ArrowPythonTest {
  @TempDir Path folder;

  private record Run(int status, String out) {}

  private Run python(String code) throws IOException, InterruptedException {
    String program = System.getenv().getOrDefault("FLETCH_PYTHON", "python3");
    Process process =
        new ProcessBuilder(program, "-c", code)
            .directory(folder.toFile())
            .redirectErrorStream(true)
            .start();
    process.getOutputStream().close();
    String out = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertTrue(process.waitFor(60, TimeUnit.SECONDS));
    return new Run(process.exitValue(), out);
  }

  private static void skip(String reason) {
    System.out.println("ArrowPythonTest skipped: " + reason.strip());
    assumeTrue(false, reason);
  }

  /** The indented lines after the word Python in the page. */
  private static String documented() throws IOException {
    Path page = Path.of("").toAbsolutePath();
    while (!Files.exists(page.resolve("docs/formats.md"))) {
      page = page.getParent();
    }
    StringBuilder code = new StringBuilder();
    boolean inside = false;
    for (String line : Files.readAllLines(page.resolve("docs/formats.md"))) {
      inside |= line.startsWith("In Python");
      if (inside && line.startsWith("    ")) {
        code.append(line.substring(4)).append('\n');
      } else if (inside && line.startsWith("#")) {
        break;
      }
    }
    return code.toString();
  }

  @Test
  void theDocumentedPythonReadsIt() throws Exception {
    try {
      Run probe = python("import pyarrow, numpy");
      if (probe.status() != 0) {
        skip("no pyarrow: " + probe.out());
      }
    } catch (IOException e) {
      skip("no Python: " + e.getMessage());
    }
    float[] norm;
    byte[] blocks;
    List<Path> shards;
    try (WeightFile file = WeightFile.open(Model.demoFile("demo-small"))) {
      ArrowWriter writer = new ArrowWriter().putAll(file.metadata());
      file.tensors().values().forEach(writer::tensor);
      writer.write(folder.resolve("model.arrow"));
      shards = writer.writeSplit(folder.resolve("m.arrow"), 300_000);
      norm = Dequantizer.toFloats(file.tensors().get("output_norm.weight"));
      Tensor q = file.tensors().get("blk.0.attn_q.weight");
      blocks = q.segment().toArray(java.lang.foreign.ValueLayout.JAVA_BYTE);
    }
    double sum = 0;
    for (float x : norm) {
      sum += x;
    }
    long bytes = 0;
    for (byte b : blocks) {
      bytes += b & 0xff;
    }
    String code = documented();
    assertTrue(code.contains("pa.ipc.open_file"), code);
    Run run =
        python(
            code
                + """
                import numpy as np
                q = np.frombuffer(batch.column("blk.0.attn_q.weight")[0].as_buffer(), np.uint8)
                print(meta["general.architecture"], shape, len(norm), q.astype(np.int64).sum())
                print(repr(float(norm.astype(np.float64).sum())))
                """);
    assertEquals(0, run.status(), run.out());
    String[] lines = run.out().split("\\R");
    assertEquals("qwen3 [" + norm.length + "] " + norm.length + " " + bytes, lines[0]);
    assertEquals(sum, Double.parseDouble(lines[1]), Math.abs(sum) * 1e-12);
    assertTrue(shards.size() > 1);
    // Every shard is an Arrow file of its own.
    StringBuilder all = new StringBuilder("import pyarrow as pa\nn = 0\n");
    for (Path shard : shards) {
      all.append("n += pa.ipc.open_file(pa.memory_map('")
          .append(shard.getFileName())
          .append("')).get_batch(0).num_columns\n");
    }
    Run count = python(all + "print(n)");
    try (WeightFile file = WeightFile.open(shards.getFirst())) {
      assertEquals(Integer.toString(file.tensors().size()), count.out().strip());
    }
  }
}
