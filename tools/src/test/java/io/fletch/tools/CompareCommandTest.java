package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import javax.xml.parsers.DocumentBuilderFactory;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Techniques from the command line. */
class CompareCommandTest {
  @TempDir private Path folder;
  private String set;

  @BeforeEach
  void write() throws IOException {
    Path file = folder.resolve("set.jsonl");
    Files.writeString(
        file,
        """
        {"task": "reverse", "question": "Reverse the words: tower stone rock egg", "answer": "Answer: egg rock stone tower"}
        {"task": "reverse", "question": "Reverse the words: tower stone rock egg", "answer": "Answer: no"}
        """);
    set = file.toString();
  }

  private static double number(Object json, String key) {
    return ((Number) ((Map<?, ?>) json).get(key)).doubleValue();
  }

  @Test
  void comparesWithTheBaseline() throws Exception {
    Path markdown = folder.resolve("table.md");
    Path svg = folder.resolve("picture.svg");
    Map<String, Object> json =
        Fletch.ok(
                "compare",
                "--model",
                "demo-diffusion",
                "--ctx",
                "128",
                "--set",
                set,
                "--length",
                "32",
                "--block",
                "16",
                "--technique",
                "freedave(depth=3)",
                "--technique",
                "early-exit",
                "--markdown",
                markdown.toString(),
                "--svg",
                svg.toString(),
                "--json")
            .json();
    List<?> rows = (List<?>) json.get("techniques");
    assertEquals(
        List.of("reference", "freedave(depth=3)", "early-exit"),
        rows.stream().map(r -> ((Map<?, ?>) r).get("technique")).toList());
    assertEquals(64, number(rows.get(0), "forwards"), "two answers of 32 steps");
    assertEquals(1, number(rows.get(0), "fewer_forwards"));
    assertEquals(1, number(rows.get(0), "speed_up"));
    assertEquals(2, number(rows.get(1), "same_as_baseline"));
    assertEquals(0.5, number(rows.get(1), "accuracy"));
    assertEquals(64, number(rows.get(1), "forwards") + number(rows.get(1), "drafts_accepted"));
    assertTrue(number(rows.get(2), "early_exits") > 0);
    List<String> table = Files.readAllLines(markdown);
    assertEquals(2 + rows.size(), table.size());
    assertEquals(1, table.stream().map(String::length).distinct().count(), "aligned");
    assertTrue(table.get(2).startsWith("| `reference` "), table.get(2));
    assertEquals(
        2 * rows.size(),
        DocumentBuilderFactory.newInstance()
            .newDocumentBuilder()
            .parse(svg.toFile())
            .getElementsByTagName("circle")
            .getLength());
  }

  @Test
  void evalAndRunCount() {
    Map<String, Object> eval =
        Fletch.ok(
                "eval",
                "--model",
                "demo-diffusion",
                "--set",
                set,
                "--length",
                "32",
                "--technique",
                "block(tokens=16)+freedave(depth=4)+freecache",
                "--json")
            .json();
    assertEquals(0.5, eval.get("accuracy"));
    assertEquals(64, number(eval, "forwards") + number(eval, "drafts_accepted"));
    assertTrue(number(eval, "drafts_accepted") > 0);
    Map<String, Object> run =
        Fletch.ok(
                "run",
                "--model",
                "demo-diffusion",
                "--technique",
                "early-exit",
                "--json",
                "Reverse the words: tower stone rock egg")
            .json();
    assertTrue(number(run, "exit_step") >= 0);
    assertTrue(number(run, "rows") >= number(run, "head_rows"));
    Map<String, Object> plain = Fletch.ok("run", "-m", "demo-small", "--json", "Hello!").json();
    assertEquals(number(plain, "completion_tokens"), number(plain, "forwards"));
    assertTrue(number(plain, "bytes_read") > number(plain, "model_bytes_per_token"));
  }

  @Test
  void guidesAreAsked() {
    String[] guided = {
      "run", "--model", "demo-diffusion", "--length", "32", "--technique", "guided", "Hello!"
    };
    assertEquals(2, Fletch.run(guided).status());
    String[] with = java.util.Arrays.copyOf(guided, guided.length + 3);
    with[guided.length] = "--guide";
    with[guided.length + 1] = "demo-small";
    with[guided.length + 2] = "--json";
    assertTrue(number(Fletch.ok(with).json(), "guide_forwards") > 0);
  }

  @Test
  void whatCannotBeIsRefused() {
    for (String technique : List.of("nonsense", "dual+guided", "freedave(deep=3)", "nap+prefix")) {
      Fletch.Outcome outcome =
          Fletch.run("run", "--model", "demo-diffusion", "--technique", technique, "Hello!");
      assertEquals(1, outcome.status(), technique);
      assertEquals(1, outcome.err().lines().count(), outcome.err());
    }
    assertEquals(
        1, Fletch.run("run", "--model", "demo-small", "--technique", "fast", "Hi").status());
  }

  @Test
  void routingIsComparedWithTheModelAlone() throws Exception {
    Path svg = folder.resolve("routing.svg");
    String[] compare = {
      "compare", "--model", "demo", "--small", "demo-small", "--set", set, "--ctx", "128"
    };
    Map<String, Object> json =
        Fletch.ok(
                with(
                    compare,
                    "--technique",
                    "small",
                    "--technique",
                    "r2r(threshold=0)",
                    "--technique",
                    "entropy",
                    "--technique",
                    "logu(threshold=Infinity)",
                    "--svg",
                    svg.toString(),
                    "--json"))
            .json();
    List<?> rows = (List<?>) json.get("techniques");
    assertEquals(
        List.of("dense", "small", "r2r(threshold=0)", "entropy", "logu(threshold=Infinity)"),
        rows.stream().map(r -> ((Map<?, ?>) r).get("technique")).toList());
    assertEquals(1, number(rows.get(0), "fewer_bytes"));
    // Of the set's answers; the second one is none.
    double perplexity = number(rows.get(0), "perplexity");
    assertTrue(perplexity > 1.2 && perplexity < 1e4, "dense " + perplexity);
    assertTrue(number(rows.get(1), "perplexity") > perplexity, "small");
    assertEquals(perplexity, number(rows.get(2), "perplexity"), "every token is routed");
    assertEquals(number(rows.get(1), "perplexity"), number(rows.get(4), "perplexity"));
    double dense = number(rows.get(0), "weight_bytes_per_token");
    double small = number(rows.get(1), "weight_bytes_per_token");
    assertTrue(small < dense / 4, small + " of " + dense);
    assertEquals(2, number(rows.get(2), "same_as_baseline"), "every token is routed");
    assertEquals(1, number(rows.get(2), "routed_share"));
    assertEquals(dense + small, number(rows.get(2), "weight_bytes_per_token"));
    double share = number(rows.get(3), "routed_share");
    assertTrue(share > 0 && share < 1);
    assertEquals(
        small + share * dense, number(rows.get(3), "weight_bytes_per_token"), dense * 1e-3);
    assertTrue(number(rows.get(3), "rows_per_extend") >= 1);
    assertEquals(0, number(rows.get(4), "routed_tokens"));
    assertEquals(small, number(rows.get(4), "weight_bytes_per_token"));
    assertEquals(
        2 * rows.size(),
        DocumentBuilderFactory.newInstance()
            .newDocumentBuilder()
            .parse(svg.toFile())
            .getElementsByTagName("circle")
            .getLength());
    // Without a choice there are all techniques, at several thresholds, as a table.
    List<String> table = Fletch.ok(with(compare, "--limit", "1")).out().lines().toList();
    assertTrue(table.getFirst().contains("weights/token"), table.getFirst());
    assertTrue(table.size() > 12, table.toString());
    assertTrue(table.stream().anyMatch(l -> l.startsWith("| `r2r(threshold=0.4)`")));
  }

  @Test
  void restingUnitsAreComparedWithDroppedOnes() {
    Map<String, Object> json =
        Fletch.ok(
                "compare",
                "--model",
                "demo",
                "--set",
                set,
                "--ffn-skip",
                "demo",
                "--technique",
                "ffn-skip(threshold=2)",
                "--technique",
                "ffn-skip",
                "--technique",
                "drop(layers=1,6-7)",
                "--technique",
                "random(share=1)",
                "--json")
            .json();
    List<?> rows = (List<?>) json.get("techniques");
    double perplexity = number(rows.get(0), "perplexity");
    assertEquals(perplexity, number(rows.get(1), "perplexity"), "no cosine reaches 2");
    assertEquals(0, number(rows.get(1), "units_skipped"));
    assertTrue(number(rows.get(2), "units_skipped") > 0);
    assertEquals(3.0 / 16, number(rows.get(3), "units_skipped") / number(rows.get(3), "units"));
    assertTrue(number(rows.get(3), "perplexity") != perplexity);
    assertEquals(0.5, number(rows.get(4), "units_skipped") / number(rows.get(4), "units"));
    assertTrue(number(rows.get(4), "perplexity") != number(rows.get(3), "perplexity"));
    assertEquals(
        Cli.USAGE, Fletch.run("compare", "--set", set, "--technique", "drop(layers=x)").status());
  }

  private static String[] with(String[] command, String... more) {
    String[] all = java.util.Arrays.copyOf(command, command.length + more.length);
    System.arraycopy(more, 0, all, command.length, more.length);
    return all;
  }

  @Test
  void comparisonsThatCannotBeAreRefused() {
    for (List<String> wrong :
        List.<List<String>>of(
            List.of(),
            List.of("--technique", "entropy"),
            List.of("--small", "demo-small", "--technique", "nonsense"),
            List.of("--small", "demo-small", "--technique", "entropy(depth=4)"),
            List.of("--small", "demo-small", "--technique", "entropy(threshold=x)"),
            List.of("--small", "demo-small", "--technique", "small(threshold=1)"),
            List.of("--small", "demo-small", "--block", "4"))) {
      Fletch.Outcome outcome =
          Fletch.run(with(new String[] {"compare", "--set", set}, wrong.toArray(String[]::new)));
      assertEquals(Cli.USAGE, outcome.status(), wrong + ": " + outcome.err());
    }
    assertEquals(
        Cli.USAGE,
        Fletch.run(
                "compare",
                "--model",
                "demo-diffusion",
                "--set",
                set,
                "--router-threshold",
                "1",
                "--small",
                "demo-small")
            .status());
  }

  @Test
  void benchCountsWhatAnswersCost() {
    Map<String, Object> plain =
        Fletch.ok("bench", "--model", "demo-diffusion", "-p", "8", "-n", "16", "-r", "1", "--json")
            .json();
    assertEquals(16, number(plain, "forwards"));
    assertTrue(number(plain, "answer_tps") > 0);
    Map<String, Object> drafting =
        Fletch.ok(
                "bench",
                "--model",
                "demo-diffusion",
                "-p",
                "8",
                "-n",
                "16",
                "-r",
                "1",
                "--technique",
                "freedave(depth=4)",
                "--json")
            .json();
    assertTrue(number(drafting, "forwards") <= 16);
    assertTrue(number(drafting, "drafts_proposed") > 0);
    assertEquals(
        Cli.USAGE, Fletch.run("bench", "--model", "demo-small", "--technique", "fast").status());
  }
}
