package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Token routing from the command line. */
class RoutingCommandTest {
  @TempDir private Path folder;

  private static double number(Map<String, Object> json, String key) {
    return ((Number) json.get(key)).doubleValue();
  }

  private Path questions(String... all) throws IOException {
    StringBuilder text = new StringBuilder();
    for (String q : all) {
      text.append("{\"task\": \"t\", \"question\": \"").append(q).append("\", \"answer\": \"\"}\n");
    }
    return Files.writeString(folder.resolve("set.jsonl"), text);
  }

  @Test
  void theDemoPairAnswersWithItsOwnRouter() {
    Map<String, Object> json =
        Fletch.ok("run", "--small", "demo-small", "--json", "What is 457 + 386?").json();
    assertTrue(((String) json.get("text")).endsWith("Answer: 843"), json.toString());
    double proposed = number(json, "drafts_proposed");
    double kept = number(json, "drafts_accepted");
    assertTrue(kept > 0 && kept < proposed, json.toString());
    Map<String, Object> always =
        Fletch.ok("run", "--small", "demo-small", "--router-threshold", "0", "--json", "Copy: a b")
            .json();
    assertEquals(0, number(always, "drafts_accepted"));
  }

  @Test
  void aRouterIsTrainedAndUsed() throws IOException {
    Path set =
        questions(
            "What is 12 + 30?",
            "What is 91 - 45?",
            "Reverse the words: stone egg rock",
            "Is 17 odd or even?");
    Path router = folder.resolve("router.arrow");
    String[] calibrate = {
      "calibrate", "r2r", "--small", "demo-small", "--set", set.toString(), "-o", router.toString()
    };
    Map<String, Object> report =
        Fletch.ok(
                java.util.stream.Stream.concat(
                        java.util.Arrays.stream(calibrate), java.util.stream.Stream.of("--json"))
                    .toArray(String[]::new))
            .json();
    assertTrue(number(report, "examples") > number(report, "divergent"));
    assertTrue(number(report, "divergent") > 0);
    assertEquals(100, ((List<?>) report.get("curve")).size());
    assertTrue(number(report, "recall") >= 0.95);
    byte[] first = Files.readAllBytes(router);
    Fletch.ok(calibrate);
    org.junit.jupiter.api.Assertions.assertArrayEquals(
        first, Files.readAllBytes(router), "training is deterministic");
    Map<String, Object> json =
        Fletch.ok(
                "eval",
                "--small",
                "demo-small",
                "--router",
                router.toString(),
                "--set",
                set.toString(),
                "--json")
            .json();
    double share = number(json, "routed_share");
    assertTrue(share > 0 && share < 1, json.toString());
  }

  @Test
  void mistakesAreOneLine() throws IOException {
    Fletch.Outcome lonely = Fletch.run("run", "--router", "entropy", "hi");
    assertEquals(Cli.USAGE, lonely.status());
    assertTrue(lonely.err().contains("--router needs --small"), lonely.err());
    Fletch.Outcome what = Fletch.run("calibrate", "x", "--small", "demo-small", "-o", "f");
    assertEquals(Cli.USAGE, what.status());
    Path set = questions("What is 1 + 1?");
    Fletch.Outcome same =
        Fletch.run(
            "calibrate",
            "r2r",
            "--small",
            "demo",
            "--set",
            set.toString(),
            "-o",
            folder.resolve("r").toString());
    assertEquals(Cli.ERROR, same.status());
    assertTrue(same.err().contains("nothing to learn"), same.err());
    Fletch.Outcome router =
        Fletch.run(
            "run", "--model", "demo-small", "--small", "demo", "--router", "demo", "Copy: a");
    assertEquals(Cli.ERROR, router.status());
    assertTrue(router.err().contains("trained for another"), router.err());
  }
}
