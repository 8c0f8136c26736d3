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
            "Reverse the words: tower lemon map",
            "Is 17 odd or even?",
            "Reverse the words: stone egg rock");
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
    assertTrue(number(report, "held_back") > 5);
    assertTrue(number(report, "held_back_divergent") > 0);
    assertEquals(100, ((List<?>) report.get("curve")).size());
    // The least threshold there is where not even that finds enough, as after so few questions.
    assertTrue(
        number(report, "recall") >= 0.95 || number(report, "threshold") == 0.01, report.toString());
    List<?> ladder = (List<?>) report.get("ladder");
    assertEquals(
        List.of("entropy", "logu", "learned", "learned+hidden"),
        ladder.stream().map(r -> ((Map<?, ?>) r).get("router")).toList());
    for (Object rung : ladder) {
      @SuppressWarnings("unchecked")
      Map<String, Object> r = (Map<String, Object>) rung;
      assertEquals(1, number(r, "questions"), "the fifth question");
      assertEquals(0, number(r, "accuracy"), "no answer is empty");
      assertTrue(number(r, "routed_in_answers") > 0, r.toString());
      assertTrue(number(r, "routed") > 0 && number(r, "routed") <= 1, r.toString());
    }
    assertEquals(0, number(report, "large_accuracy"));
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
  void aRouterMayReadHiddenStates() throws IOException {
    Path set =
        questions(
            "What is 12 + 30?",
            "What is 91 - 45?",
            "Reverse the words: tower lemon map",
            "Is 17 odd or even?",
            "Reverse the words: stone egg rock");
    String router = folder.resolve("hidden.arrow").toString();
    Fletch.Outcome done =
        Fletch.ok(
            "calibrate",
            "r2r",
            "--small",
            "demo-small",
            "--small-threads",
            "1",
            "--set",
            set.toString(),
            "--features",
            "hidden",
            "--ladder-questions",
            "0",
            "-o",
            router);
    assertTrue(done.out().contains("learned+hidden"), done.out());
    String[] eval = {"eval", "--small", "demo-small", "--set", set.toString(), "--json"};
    double share =
        number(
            Fletch.ok(with(eval, "--router", router, "--router-threshold", "0.5")).json(),
            "routed_share");
    assertTrue(share > 0 && share < 1, "share " + share);
    Fletch.Outcome swapped =
        Fletch.run("run", "--model", "demo-small", "--small", "demo", "--router", router, "Hi");
    assertEquals(Cli.ERROR, swapped.status());
    assertEquals(
        Cli.USAGE,
        Fletch.run("calibrate", "r2r", "--features", "all", "--set", set.toString(), "-o", router)
            .status());
  }

  @Test
  void routersHoldOnAndJoin() {
    String[] run = {"run", "--small", "demo-small", "--json", "What is 457 + 386?"};
    String[] by = with(run, "--router", "entropy", "--router-threshold", "0.3");
    double each = number(Fletch.ok(by).json(), "routed_share");
    double held = number(Fletch.ok(with(by, "--router-hold", "3")).json(), "routed_share");
    assertTrue(each < held && held <= 1, each + " " + held);
    double both =
        number(
            Fletch.ok(with(run, "--router", "entropy+logu", "--router-threshold", "0.6")).json(),
            "routed_share");
    double first =
        number(
            Fletch.ok(with(run, "--router", "entropy", "--router-threshold", "0.27")).json(),
            "routed_share");
    assertTrue(both > 0 && both <= first + 0.2, both + " " + first);
  }

  /** What the small model runs on is its own affair. */
  @Test
  void theSmallModelHasOptionsOfItsOwn() {
    String[] run = {"run", "--small", "demo-small", "--temp", "0", "--json", "What is 457 + 386?"};
    Object expected = Fletch.ok(with(run, "--router-threshold", "Infinity")).json().get("ids");
    String[] exact = with(run, "--router-threshold", "Infinity", "--small-kv", "f32");
    Map<String, Object> other = Fletch.ok(with(exact, "--small-threads", "1")).json();
    assertEquals(expected, other.get("ids"));
    // No GPU here: only the small model is asked to have one.
    Fletch.Outcome refused = Fletch.run(with(run, "--small-device", "gpu"));
    assertEquals(Cli.ERROR, refused.status(), refused.out());
    assertTrue(refused.err().contains("GPU"), refused.err());
    for (List<String> wrong :
        List.of(
            List.of("--small-device", "cpu"),
            List.of("--small-threads", "2"),
            List.of("--small-kv", "f32"),
            List.of("--router-hold", "3"),
            List.of("--small", "demo-small", "--small-device", "reference"),
            List.of("--small", "demo-small", "--small-kv", "f64"),
            List.of("--small", "demo-small", "--router-hold", "-1"))) {
      assertEquals(
          Cli.USAGE,
          Fletch.run(with(new String[] {"run", "Hi"}, wrong.toArray(String[]::new))).status(),
          wrong.toString());
    }
  }

  @Test
  void aTextAndEndingsTrainToo() throws IOException {
    Path text = folder.resolve("text.txt");
    StringBuilder sums = new StringBuilder();
    for (int i = 11; i < 75; i++) {
      sums.append("What is ").append(i).append(" + ").append(3 * i).append("?\n");
      sums.append("Reverse the words: stone egg rock\n");
    }
    Files.writeString(text, sums);
    String router = folder.resolve("router.arrow").toString();
    String[] common = {"calibrate", "r2r", "--small", "demo-small", "-o", router, "--json"};
    Map<String, Object> read =
        Fletch.ok(with(common, "--text", text.toString(), "--ctx", "128", "--share", "0.3")).json();
    double tokens = number(read, "examples") + number(read, "held_back");
    assertTrue(tokens > 1000, read.toString());
    double held = number(read, "held_back") / tokens;
    assertTrue(held > 0.1 && held < 0.3, "every fifth window: " + held);
    assertTrue(number(read, "routed") <= 0.3);
    Map<String, Object> part =
        Fletch.ok(
                with(
                    common,
                    "--text",
                    text.toString(),
                    "--ctx",
                    "128",
                    "--tokens",
                    "900",
                    "--share",
                    "0.3"))
            .json();
    assertEquals(900, number(part, "examples") + number(part, "held_back"));
    Path set =
        questions(
            "What is 12 + 30?",
            "What is 91 - 45?",
            "Reverse the words: tower lemon map",
            "Is 17 odd or even?",
            "Reverse the words: stone egg rock");
    Map<String, Object> proxy = Fletch.ok(with(common, "--set", set.toString())).json();
    Map<String, Object> ending =
        Fletch.ok(with(common, "--set", set.toString(), "--labels", "ending")).json();
    assertEquals("ending", ending.get("labels"));
    assertEquals(number(proxy, "examples"), number(ending, "examples"));
    assertTrue(number(ending, "divergent") > 0);
    assertEquals("Answer: 5", RouterCalibration.lastLine("4+1=5\nAnswer: 5\n"));
  }

  /** Models of different quantizations: the ends of the threshold are still each model alone. */
  @Test
  void quantizationsMayDiffer() throws IOException {
    String large = folder.resolve("demo-q4.gguf").toString();
    Fletch.ok("quantize", "--model", "demo", "--type", "Q4_0", "-o", large);
    String question = "What is 457 + 386?";
    String[] pair = {"run", "--model", large, "--small", "demo-small", "--temp", "0", "--json"};
    Map<String, Object> alone =
        Fletch.ok("run", "--model", large, "--temp", "0", "--json", question).json();
    Map<String, Object> little =
        Fletch.ok("run", "--model", "demo-small", "--json", question).json();
    Map<String, Object> all = Fletch.ok(with(pair, "--router-threshold", "0", question)).json();
    assertEquals(alone.get("ids"), all.get("ids"));
    Map<String, Object> none =
        Fletch.ok(with(pair, "--router-threshold", "Infinity", question)).json();
    assertEquals(little.get("ids"), none.get("ids"));
    assertEquals(0, number(none, "routed_tokens"));
    Map<String, Object> some = Fletch.ok(with(pair, question)).json();
    assertTrue(number(some, "routed_tokens") > 0, some.toString());
    assertTrue(number(some, "routed_share") < 1, some.toString());
    double bytes = number(alone, "weight_bytes_per_token");
    assertTrue(
        bytes
            < 0.6 * number(Fletch.ok("run", "--json", question).json(), "weight_bytes_per_token"));
    assertEquals(
        bytes + number(little, "weight_bytes_per_token"), number(all, "weight_bytes_per_token"), 1);
    // The router of the demo pair was trained for the other file.
    Fletch.Outcome other =
        Fletch.run("run", "--model", large, "--small", "demo-small", "--router", "demo", question);
    assertEquals(Cli.ERROR, other.status());
    assertTrue(other.err().contains("another large model"), other.err());
  }

  @Test
  void benchSetsTimeBesideBytes() {
    String[] bench = {"bench", "--small", "demo-small", "-p", "8", "-n", "16", "-r", "2", "--json"};
    Map<String, Object> quarter = Fletch.ok(with(bench, "--routed-share", "0.25")).json();
    assertEquals(0.25, number(quarter, "routed_share"));
    // Of 16 tokens every fourth; the prompt's 8 rows and all but the last token's.
    assertEquals(8, number(quarter, "routed_tokens"));
    assertEquals((8 + 15) / 4.0, number(quarter, "rows_per_extend"));
    double dense = number(quarter, "dense_weight_bytes_per_token");
    double small = number(quarter, "small_weight_bytes_per_token");
    assertEquals(dense / (small + dense / 4), number(quarter, "fewer_bytes"), 1e-3);
    assertTrue(number(quarter, "speed_up") > 0);
    assertTrue(number(quarter, "routed_tps") > 0);
    Map<String, Object> by =
        Fletch.ok(with(bench, "--router", "entropy", "--router-threshold", "0")).json();
    assertEquals(1, number(by, "routed_share"));
    for (List<String> wrong :
        List.of(
            List.of("--routed-share", "0.25"),
            List.of("--router", "entropy"),
            List.of("--small", "demo-small", "--sessions", "2"),
            List.of("--small", "demo-small", "--routed-share", "0.1", "--router", "entropy"),
            List.of("--small", "demo-small", "--model", "demo-diffusion"))) {
      assertEquals(
          Cli.USAGE,
          Fletch.run(with(new String[] {"bench"}, wrong.toArray(String[]::new))).status(),
          wrong.toString());
    }
  }

  private static String[] with(String[] command, String... more) {
    String[] all = java.util.Arrays.copyOf(command, command.length + more.length);
    System.arraycopy(more, 0, all, command.length, more.length);
    return all;
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
    String router0 = folder.resolve("r").toString();
    for (List<String> wrong :
        List.<List<String>>of(
            List.of(),
            List.of("--text", set.toString(), "--limit", "3"),
            List.of("--set", set.toString(), "--tokens", "3"),
            List.of("--text", set.toString(), "--labels", "ending"),
            List.of("--set", set.toString(), "--labels", "judge"))) {
      String[] command = {"calibrate", "r2r", "--small", "demo-small", "-o", router0};
      assertEquals(
          Cli.USAGE, Fletch.run(with(command, wrong.toArray(String[]::new))).status(), "" + wrong);
    }
    Fletch.Outcome router =
        Fletch.run(
            "run", "--model", "demo-small", "--small", "demo", "--router", "demo", "Copy: a");
    assertEquals(Cli.ERROR, router.status());
    assertTrue(router.err().contains("trained for another"), router.err());
  }
}
