package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Units that rest, from the command line. */
class UnitCommandTest {
  private static final List<String> QUESTIONS =
      List.of(
          "What is 12 + 30?",
          "What is 91 - 45?",
          "Reverse the words: stone egg rock",
          "What is 457 + 386?",
          "Sort: 5 2 9 1",
          "Reverse the words: tower lamp",
          "What is 88 + 13?",
          "What is 503 - 77?");

  @TempDir private Path folder;

  private static double number(Map<String, Object> json, String key) {
    return ((Number) json.get(key)).doubleValue();
  }

  private Path questions() throws IOException {
    StringBuilder text = new StringBuilder();
    for (String q : QUESTIONS) {
      text.append("{\"task\": \"t\", \"question\": \"").append(q).append("\", \"answer\": \"\"}\n");
    }
    return Files.writeString(folder.resolve("set.jsonl"), text);
  }

  private static Fletch.Outcome calibrate(Path set, Path out, String... more) {
    List<String> words = new ArrayList<>();
    words.addAll(List.of("calibrate", "ffn-skip", "--set", set.toString(), "-o", out.toString()));
    words.addAll(List.of(more));
    return Fletch.run(words.toArray(String[]::new));
  }

  @Test
  void skippingIsCalibratedAndUsed() throws IOException {
    Path skip = folder.resolve("skip.arrow");
    Fletch.Outcome done =
        calibrate(questions(), skip, "--warm-up", "1", "--ratio", "0.2", "--json");
    assertEquals(0, done.status(), done.err());
    Map<String, Object> report = done.json();
    assertEquals(1, number(report, "from"));
    assertEquals(0.2, number(report, "predicted_ratio"), 0.1);
    assertEquals(0.2, number(report, "tuned_ratio"), 0.015, report.toString());
    assertEquals(0.5, number(report, "most_ratio"), 0.05, "four of eight, but for the warm-up");
    assertTrue(number(report, "agreement") > 0.9, report.toString());
    String question = "What is 457 + 386?";
    Map<String, Object> rests =
        Fletch.ok("run", "--ffn-skip", skip.toString(), "--json", question).json();
    assertTrue(((String) rests.get("text")).endsWith("Answer: 843"), rests.toString());
    assertTrue(number(rests, "units_skipped") > 0, rests.toString());
    Map<String, Object> dense =
        Fletch.ok("run", "--ffn-skip", skip.toString(), "--skip-threshold", "2", "--json", question)
            .json();
    assertEquals(0, number(dense, "units_skipped"));
    assertTrue(number(rests, "weight_bytes_per_token") < number(dense, "weight_bytes_per_token"));
    String table =
        Fletch.ok(
                "compare",
                "--set",
                questions().toString(),
                "--limit",
                "2",
                "--ffn-skip",
                skip.toString(),
                "--technique",
                "ffn-skip",
                "--technique",
                "random(share=0.5)")
            .out();
    assertTrue(table.contains("`ffn-skip`") && table.contains("`random(share=0.5)`"), table);
  }

  @Test
  void aModelWithoutASaturatedRegionIsRefused() throws IOException {
    Fletch.Outcome refused =
        calibrate(
            questions(),
            folder.resolve("none.arrow"),
            "--model",
            "demo-small",
            "--warm-up",
            "1",
            "--least",
            "0.999");
    assertEquals(1, refused.status());
    assertTrue(refused.err().contains("FFN skipping is not for this model"), refused.err());
    assertTrue(Files.notExists(folder.resolve("none.arrow")));
  }

  @Test
  void mistakesAreExplained() {
    assertTrue(Fletch.run("run", "--skip-run", "2", "x").err().contains("needs --ffn-skip"));
    assertTrue(Fletch.run("run", "--drop-ffn", "2-", "x").err().contains("expected=layers like"));
    assertTrue(Fletch.run("run", "--drop-ffn", "9", "x").err().contains("no such unit"));
    assertTrue(
        Fletch.run("calibrate", "ffn-skip", "--recall", "0.9", "-o", "x")
            .err()
            .contains("--recall is of r2r"));
  }

  @Test
  void theDemoModelHasForecastersAndSkipping() {
    for (String option : List.of("--lff", "--ffn-skip")) {
      Map<String, Object> json =
          Fletch.ok("run", option, "demo", "--json", "What is 457 + 386?").json();
      assertTrue(((String) json.get("text")).endsWith("Answer: 843"), json.toString());
      double rests = number(json, "units_skipped") + number(json, "units_approximated");
      assertTrue(rests > 0, json.toString());
    }
  }

  @Test
  void theDemoModelsFilesCanBeCompared() throws IOException {
    Map<String, Object> json =
        Fletch.ok(
                "compare",
                "--set",
                questions().toString(),
                "--limit",
                "2",
                "--lff",
                "demo",
                "--technique",
                "lff",
                "--json")
            .json();
    assertEquals(2, ((List<?>) json.get("techniques")).size(), json.toString());
  }

  @Test
  void dropsAreCounted() {
    Map<String, Object> json =
        Fletch.ok("run", "--drop-ffn", "3-5@0.5", "--json", "What is 12 + 30?").json();
    assertTrue(number(json, "units_skipped") > 0, json.toString());
  }
}
