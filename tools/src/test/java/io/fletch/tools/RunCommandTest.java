package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class RunCommandTest {
  private static final String QUESTION = "What is 457 + 386?";
  private static final String ANSWER = "7+6=13\n5+8+1=14\n4+3+1=8\nAnswer: 843";

  /** What the chat template makes of the question. */
  private static final String PROMPT =
      "<|im_start|>user\n" + QUESTION + "<|im_end|>\n<|im_start|>assistant\n";

  private static final List<Integer> ANSWER_IDS =
      List.of(
          55, 43, 54, 61, 49, 51, 10, 53, 43, 56, 43, 49, 61, 49, 52, 10, 52, 43, 51, 43, 49, 61,
          56, 10, 274, 58, 32, 56, 52, 51);

  @Test
  void jsonHoldsTheContract() {
    Map<String, Object> report =
        Fletch.ok("run", "--prompt", QUESTION, "--temp", "0", "--max-tokens", "64", "--json")
            .json();
    assertEquals(
        List.of(
            "text",
            "ids",
            "prompt_tokens",
            "completion_tokens",
            "finish_reason",
            "prefill_tps",
            "decode_tps",
            "model_bytes_per_token"),
        List.copyOf(report.keySet()).subList(0, 8));
    // Then the counters of the answer.
    assertTrue(((Number) report.get("forwards")).intValue() > ANSWER_IDS.size());
    assertTrue(((Number) report.get("bytes_read")).longValue() > 5_000_000);
    assertEquals(ANSWER, report.get("text"));
    assertEquals(ANSWER_IDS, report.get("ids"));
    assertEquals(20, report.get("prompt_tokens"));
    assertEquals(ANSWER_IDS.size() + 1, report.get("completion_tokens"));
    assertEquals("stop", report.get("finish_reason"));
    assertTrue(((Number) report.get("prefill_tps")).doubleValue() > 0);
    assertTrue(((Number) report.get("decode_tps")).doubleValue() > 0);
    // Every weight but the embedding rows of other tokens is read once.
    int bytes = ((Number) report.get("model_bytes_per_token")).intValue();
    assertTrue(bytes > 5_000_000 && bytes < 5_313_536, "bytes " + bytes);
  }

  @Test
  void promptsComeFromEverywhere(@TempDir Path folder) throws IOException {
    Path file = folder.resolve("prompt.txt");
    Files.writeString(file, QUESTION);
    assertEquals(ANSWER + "\n", Fletch.ok("run", QUESTION).out());
    assertEquals(ANSWER + "\n", Fletch.ok("run", "What", "is", "457 + 386?").out());
    assertEquals(ANSWER + "\n", Fletch.ok("run", "--prompt-file", file.toString()).out());
    assertEquals(ANSWER + "\n", Fletch.runWith(QUESTION, "run").out());
    assertEquals(ANSWER + "\n", Fletch.runWith(QUESTION, "run", "-f", "-").out());
    assertEquals(ANSWER + "\n", Fletch.ok("run", "--raw", "-p", PROMPT).out());
  }

  @Test
  void aFullContextIsReportedAndCanShift() {
    String[] full = {"run", QUESTION, "--ctx", "64", "--ignore-eos", "--json"};
    Fletch.Outcome cut = Fletch.ok(full);
    assertEquals(44, cut.json().get("completion_tokens"));
    assertEquals("length", cut.json().get("finish_reason"));
    assertTrue(cut.err().contains("the context is full (64 tokens)"), cut.err());
    List<String> shifting = new ArrayList<>(List.of(full));
    shifting.addAll(List.of("--context-shift", "--keep", "8", "-n", "200"));
    Fletch.Outcome shifted = Fletch.ok(shifting.toArray(String[]::new));
    Map<String, Object> report = shifted.json();
    assertEquals(200, report.get("completion_tokens"));
    // Of 64 tokens 8 stay, and the older half of the rest goes: 28 each time.
    assertEquals(6 * 28, report.get("dropped_tokens"));
    assertTrue(shifted.err().contains("168 old tokens were dropped"), shifted.err());
    assertEquals(2, Fletch.run("run", QUESTION, "--keep", "8").status());
    assertEquals(
        1, Fletch.run("run", QUESTION, "--ctx", "64", "--context-shift", "--keep", "33").status());
    // A conversation outgrows the context: refused, or shortened.
    String lines = "What is 4 + 3?\n".repeat(6);
    Fletch.Outcome refused = Fletch.runWith(lines, "chat", "--ctx", "64");
    assertEquals(1, refused.status());
    assertTrue(refused.err().contains("context=64"), refused.err());
    Fletch.Outcome talking =
        Fletch.runWith(lines, "chat", "--ctx", "64", "--context-shift", "-n", "20");
    assertEquals(0, talking.status());
    assertTrue(talking.err().contains("old tokens were dropped"), talking.err());
  }

  @Test
  void limitsAndStopsEndTheAnswer() {
    Map<String, Object> limited = Fletch.ok("run", QUESTION, "--max-tokens", "3", "--json").json();
    assertEquals("7+6", limited.get("text"));
    // An answer that ends its line is not given another end.
    assertEquals("7+6=13\n", Fletch.ok("run", QUESTION, "--max-tokens", "6").out());
    assertEquals("7+6=13\n", Fletch.ok("run", QUESTION, "--max-tokens", "7").out());
    assertEquals("length", limited.get("finish_reason"));
    assertEquals(3, limited.get("completion_tokens"));
    Map<String, Object> stopped =
        Fletch.ok("run", QUESTION, "--stop", "none of it", "--stop", "=14", "--json").json();
    assertEquals("7+6=13\n5+8+1", stopped.get("text"));
    assertEquals("stop", stopped.get("finish_reason"));
    Map<String, Object> on =
        Fletch.ok("run", QUESTION, "--ignore-eos", "--max-tokens", "40", "--json").json();
    assertEquals(40, on.get("completion_tokens"));
    assertEquals("length", on.get("finish_reason"));
  }

  @Test
  void seedsDecideAndBiasesForbid() {
    String[] warm = {
      "run",
      QUESTION,
      "--temp",
      "3",
      "--min-p",
      "0",
      "--top-k",
      "0",
      "--top-p",
      "1",
      "--max-tokens",
      "24",
      "--json",
      "--seed",
      "1"
    };
    List<Object> first = List.of(Fletch.ok(warm).json().get("ids"));
    assertEquals(first, List.of(Fletch.ok(warm).json().get("ids")));
    warm[warm.length - 1] = "2";
    assertNotEquals(first, List.of(Fletch.ok(warm).json().get("ids")));
    Object biased =
        Fletch.ok("run", QUESTION, "--logit-bias", "55=-inf", "--max-tokens", "1", "--json")
            .json()
            .get("ids");
    assertNotEquals(List.of(55), biased);
  }

  @Test
  void logprobsComeOnePerToken() {
    Map<String, Object> report =
        Fletch.ok("run", QUESTION, "--max-tokens", "2", "--logprobs", "2", "--json").json();
    List<?> logprobs = (List<?>) report.get("logprobs");
    assertEquals(2, logprobs.size());
    Map<?, ?> token = (Map<?, ?>) logprobs.getFirst();
    assertEquals(55, token.get("id"));
    assertEquals("7", token.get("token"));
    double logprob = ((Number) token.get("logprob")).doubleValue();
    assertTrue(logprob <= 0 && logprob > -0.01, "logprob " + logprob);
    List<?> top = (List<?>) token.get("top");
    assertEquals(2, top.size());
    assertEquals(logprob, ((Map<?, ?>) top.getFirst()).get("logprob"));
    assertTrue(
        ((Number) ((Map<?, ?>) top.get(1)).get("logprob")).doubleValue() < logprob, top.toString());
  }

  @Test
  void everyModelOptionRuns() {
    for (String options :
        List.of(
            "--backend reference",
            "--kernels scalar --threads 1",
            "--kernels vector --threads 2 --kv f32",
            "--weights mapped --kv q8_0",
            "--weights packed --ctx 64")) {
      String[] args = ("run --raw --temp 0 " + options + " --prompt").split(" ");
      String[] all = java.util.Arrays.copyOf(args, args.length + 1);
      all[args.length] = PROMPT;
      assertEquals(ANSWER + "\n", Fletch.ok(all).out(), options);
    }
  }

  @Test
  void contextIsALimit() {
    Map<String, Object> report =
        Fletch.ok("run", QUESTION, "--ctx", "24", "--ignore-eos", "--json").json();
    assertEquals("length", report.get("finish_reason"));
    Fletch.Outcome outcome = Fletch.run("run", QUESTION, "--ctx", "10");
    assertEquals(1, outcome.status());
    assertTrue(outcome.err().contains("20"), outcome.err());
    assertEquals(1, outcome.err().lines().count());
  }

  @Test
  void verboseTalksOnStandardError() {
    Fletch.Outcome outcome = Fletch.ok("run", QUESTION, "--verbose", "--seed", "7");
    assertEquals(ANSWER + "\n", outcome.out());
    assertTrue(outcome.err().contains("demo loaded in "), outcome.err());
    assertTrue(outcome.err().contains("prompt 20 tokens (0 reused)"), outcome.err());
    assertTrue(outcome.err().contains("seed 7"), outcome.err());
  }
}
