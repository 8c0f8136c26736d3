package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.fletch.quant.SyntheticModel;
import io.fletch.quant.SyntheticModel.Mix;
import io.fletch.quant.SyntheticModel.Shape;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * A model of the widths of Llama 3.2 1B, cut to one block and a small vocabulary, in a process of
 * its own: mapped weights are not read to be opened, so that opening takes no longer for a larger
 * file, and what the process holds beyond the file stays small.
 */
class LoadTest {
  private static final Shape SLICE =
      new Shape(
          "llama-3.2-1b-slice",
          "llama",
          1,
          2048,
          8192,
          32,
          8,
          64,
          4096,
          131072,
          500000f,
          true,
          true,
          true);

  private static final int CONTEXT = 2048;

  @TempDir Path folder;

  @ParameterizedTest
  @EnumSource(names = {"Q4_0", "Q8_0", "Q4_K_M"})
  void mappedWeightsAreOpenedUnreadAndCostNoMemoryOfTheirOwn(Mix mix) throws Exception {
    assumeTrue(
        Files.exists(Path.of("/proc/self/smaps")),
        "memory is measured by Linux's /proc/self/smaps");
    Path file = folder.resolve("model.gguf").toAbsolutePath();
    SyntheticModel.write(file, SLICE, mix, 1);
    long fileKib = Files.size(file) >> 10;
    Jvm.Outcome outcome =
        Jvm.run(
            folder,
            List.of(
                "--enable-native-access=ALL-UNNAMED",
                "--sun-misc-unsafe-memory-access=allow",
                "-Xmx256m",
                "-cp",
                System.getProperty("java.class.path"),
                MemoryProbe.class.getName(),
                file.toString(),
                "MAPPED",
                Integer.toString(CONTEXT),
                "16"));
    assertEquals(0, outcome.status(), () -> String.join("\n", outcome.errors()));
    Map<String, Long> values =
        outcome
            .output()
            .lines()
            .map(line -> line.split("="))
            .collect(Collectors.toMap(pair -> pair[0], pair -> Long.parseLong(pair[1])));
    assertEquals(4, values.get("tokens"));
    assertTrue(values.get("loaded_mapped") < fileKib / 4, "read to be opened: " + values);
    assertTrue(values.get("answered_mapped") > fileKib / 2, "read to answer: " + values);
    assertTrue(values.get("answered_other") < 300 << 10, "beyond the file: " + values);
  }
}
