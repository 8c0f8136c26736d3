package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** {@code fletch eval}, as a process: the accuracy that the trainer of the models measured. */
class EvalTest {
  private static final Path SHARED = Path.of("..", "..", "shared", "models");

  @TempDir Path folder;

  /**
   * 60 questions of the four tasks that the model answered all right (add, calendar, parity) or all
   * wrong (sequence) when its trainer evaluated it, so what is expected is known of every single
   * one.
   */
  @Test
  void answersOfTheDemoModelAreAsRightAsTheTrainersWere() throws Exception {
    Path set = folder.resolve("eval-60.jsonl");
    try (InputStream in = EvalTest.class.getResourceAsStream("eval-60.jsonl")) {
      Files.copy(in, set);
    }
    Map<String, Object> report = eval("demo", set);
    assertEquals(60, report.get("questions"));
    assertEquals(43, report.get("correct"));
    Map<?, ?> tasks = (Map<?, ?>) report.get("tasks");
    assertEquals(List.of("add", "calendar", "parity", "sequence"), List.copyOf(tasks.keySet()));
    assertEquals(Map.of("correct", 16, "total", 16, "accuracy", 1.0), tasks.get("add"));
    assertEquals(Map.of("correct", 11, "total", 11, "accuracy", 1.0), tasks.get("calendar"));
    assertEquals(Map.of("correct", 16, "total", 16, "accuracy", 1.0), tasks.get("parity"));
    assertEquals(Map.of("correct", 0, "total", 17, "accuracy", 0.0), tasks.get("sequence"));
  }

  /** All questions, in minutes: {@code -Dfletch.full=true}. */
  @ParameterizedTest
  @CsvSource({
    "ar-large-F16.gguf, 0.797",
    "ar-large, 0.797",
    "ar-large-Q8_0.gguf, 0.797",
    "ar-small-F32.gguf, 0.243",
    "ar-small-F16.gguf, 0.243",
    "ar-small, 0.243",
    "ar-small-Q8_0.gguf, 0.243"
  })
  void wholeSetWithinHalfAPointOfTheTrainer(String name, double accuracy) throws Exception {
    if (!Boolean.getBoolean("fletch.full")) {
      System.out.println("EvalTest, whole set, skipped: no -Dfletch.full=true");
    }
    assumeTrue(Boolean.getBoolean("fletch.full"), "no -Dfletch.full=true");
    Path set = SHARED.resolve("eval").resolve("eval.jsonl");
    if (!Files.exists(set)) {
      System.out.println("EvalTest, whole set, skipped: no " + set.toAbsolutePath().normalize());
    }
    assumeTrue(Files.exists(set), () -> "no " + set.toAbsolutePath().normalize());
    Map<String, Object> report = eval(SHARED.resolve(name).toString(), set);
    assertEquals(907, report.get("questions"));
    assertEquals(accuracy, ((Number) report.get("accuracy")).doubleValue(), 0.005);
  }

  private Map<String, Object> eval(String model, Path set)
      throws IOException, InterruptedException {
    Jvm.Outcome outcome =
        Jvm.run(
            folder,
            List.of(
                "--enable-native-access=ALL-UNNAMED",
                "--sun-misc-unsafe-memory-access=allow",
                "-cp",
                System.getProperty("java.class.path"),
                "io.fletch.tools.Main",
                "eval",
                "--model",
                model,
                "--set",
                set.toString(),
                "--json"));
    assertEquals(0, outcome.status(), () -> String.join("\n", outcome.errors()));
    assertTrue(outcome.output().endsWith("}\n"), outcome.output());
    return JSON.std.mapFrom(outcome.output());
  }
}
