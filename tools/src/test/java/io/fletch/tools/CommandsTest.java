package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Model;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The commands beside run and chat, on the embedded models. */
class CommandsTest {
  private static final String PROMPT =
      "<|im_start|>user\nWhat is 4 + 3?<|im_end|>\n<|im_start|>assistant\n";

  @Test
  void tokenizeReadsWholeFiles(@TempDir Path folder) throws IOException {
    Path file = folder.resolve("text");
    Files.writeString(file, "What is 4 + 3?\n");
    assertEquals(
        "297 281 32 52 311 32 51 63 10\n",
        Fletch.ok("tokenize", "--model", "demo", "--file", file.toString()).out());
    assertEquals("297 281 32 52 311 32 51 63\n", Fletch.ok("tokenize", "What is 4 + 3?").out());
    assertEquals("1022\n", Fletch.ok("tokenize", "<|im_end|>").out());
    assertTrue(Fletch.ok("tokenize", "--no-special", "<|im_end|>").out().contains(" "));
    assertEquals("\n", Fletch.ok("tokenize").out());
    assertEquals("", Fletch.ok("tokenize", "--decode").out());
  }

  @Test
  void tokenizeDecodes() {
    assertEquals(
        "What is 4 + 3?<|im_end|>",
        Fletch.ok("tokenize", "--decode", "297 281 32 52 311 32 51 63 1022").out());
    Fletch.Outcome outcome = Fletch.run("tokenize", "--decode", "1 1024");
    assertEquals(1, outcome.status());
    assertEquals(
        "fletch tokenize: token id out of range at index 1: expected=0..1023 actual=1024\n",
        outcome.err());
    Map<String, Object> json = Fletch.ok("tokenize", "--json", "4 + 3").json();
    assertEquals("4 + 3", json.get("text"));
    assertEquals(List.of(52, 311, 32, 51), json.get("ids"));
    assertEquals(4, ((List<?>) json.get("tokens")).size());
  }

  @Property(tries = 20)
  void decodeIsTheReverse(@ForAll String text) {
    // Lone surrogates have no UTF-8 form.
    String valid =
        text.codePoints()
            .filter(c -> c < 0xd800 || c > 0xdfff)
            .collect(StringBuilder::new, StringBuilder::appendCodePoint, StringBuilder::append)
            .toString();
    String ids = Fletch.runWith(valid, "tokenize", "-m", "demo-small", "-f", "-").out();
    assertEquals(valid, Fletch.runWith(ids, "tokenize", "-m", "demo-small", "-d", "-f", "-").out());
  }

  @Test
  void inspectListsWhatTheFileHolds() {
    String text = Fletch.ok("inspect").out();
    assertTrue(text.contains("\nFormat    GGUF\n"), text);
    assertTrue(text.contains("general.architecture "), text);
    assertTrue(text.contains("\"qwen3\""), text);
    assertTrue(text.contains("token_embd.weight"), text);
    assertTrue(text.contains("(1024 elements)"), text);
    assertTrue(!Fletch.ok("inspect", "--full").out().contains("(1024 elements)"));
    Map<String, Object> json = Fletch.ok("inspect", "--model", "demo-small", "--json").json();
    assertEquals("GGUF", json.get("format"));
    List<?> tensors = (List<?>) json.get("tensors");
    long bytes =
        tensors.stream()
            .mapToLong(tensor -> ((Number) ((Map<?, ?>) tensor).get("bytes")).longValue())
            .sum();
    assertEquals(bytes, ((Number) json.get("bytes")).longValue());
    Map<?, ?> types = (Map<?, ?>) json.get("types");
    assertEquals(
        tensors.size(),
        types.values().stream()
            .mapToInt(type -> ((Number) ((Map<?, ?>) type).get("tensors")).intValue())
            .sum());
  }

  @Test
  void inspectPrintsThePlan() {
    String plan = Fletch.ok("inspect", "--model", "demo-small", "--plan").out();
    assertTrue(plan.contains("attn") && plan.contains("ffn"), plan);
    Map<String, Object> json =
        Fletch.ok("inspect", "--model", "demo-small", "--plan", "--json").json();
    assertEquals(plan.strip(), ((String) json.get("plan")).strip());
  }

  @Test
  void logitsPredictTheGreedyAnswer(@TempDir Path folder) throws IOException {
    Path file = folder.resolve("logits.npy");
    String ids = Fletch.ok("tokenize", PROMPT).out().strip();
    assertEquals(
        "",
        Fletch.ok(
                "logits",
                "--model",
                "demo",
                "--ids",
                ids.replace(' ', ','),
                "--out",
                file.toString())
            .out());
    ByteBuffer bytes = ByteBuffer.wrap(Files.readAllBytes(file)).order(ByteOrder.LITTLE_ENDIAN);
    int rows = ids.split(" ").length;
    assertEquals(128 + rows * 1024 * 4, bytes.capacity());
    int best = 0;
    int last = 128 + (rows - 1) * 1024 * 4;
    for (int id = 1; id < 1024; id++) {
      if (bytes.getFloat(last + 4 * id) > bytes.getFloat(last + 4 * best)) {
        best = id;
      }
    }
    assertEquals(
        List.of(best),
        Fletch.ok("run", "--raw", "--prompt", PROMPT, "--max-tokens", "1", "--json")
            .json()
            .get("ids"));
    byte[] ofIds = Files.readAllBytes(file);
    Map<String, Object> json =
        Fletch.ok("logits", "--prompt", PROMPT, "--out", file.toString(), "--json").json();
    assertEquals(List.of(rows, 1024), json.get("shape"));
    org.junit.jupiter.api.Assertions.assertArrayEquals(ofIds, Files.readAllBytes(file));
    assertEquals(1, Fletch.run("logits", "--ids", "5000", "--out", file.toString()).status());
  }

  @Test
  void evalCountsExactAnswers(@TempDir Path folder) throws IOException {
    Path set = folder.resolve("set.jsonl");
    Files.writeString(
        set,
        """
        {"task": "add", "question": "What is 4 + 3?", "answer": "4+3=7\\nAnswer: 7"}
        {"task": "add", "question": "What is 20 + 90?", "answer": "0+0=0\\n2+9=11\\nAnswer: 110"}

        {"task": "add", "question": "What is 4 + 3?", "answer": "4+3=7\\nAnswer: 7."}
        {"task": "wrong", "question": "What is 4 + 3?", "answer": "4+3=7"}
        """);
    Map<String, Object> json = Fletch.ok("eval", "--set", set.toString(), "--json").json();
    assertEquals(4, json.get("questions"));
    assertEquals(2, json.get("correct"));
    assertEquals(0.5, json.get("accuracy"));
    Map<?, ?> tasks = (Map<?, ?>) json.get("tasks");
    assertEquals(List.of("add", "wrong"), List.copyOf(tasks.keySet()));
    assertEquals(2, ((Map<?, ?>) tasks.get("add")).get("correct"));
    assertEquals(3, ((Map<?, ?>) tasks.get("add")).get("total"));
    assertEquals(0.0, ((Map<?, ?>) tasks.get("wrong")).get("accuracy"));
    assertTrue(((Number) json.get("tokens")).intValue() > 60, json.toString());
    assertTrue(((Number) json.get("seconds")).doubleValue() > 0);
    // An answer that was cut off is not right, even if what there is of it is.
    assertEquals(
        0,
        Fletch.ok("eval", "--set", set.toString(), "--json", "--max-tokens", "5")
            .json()
            .get("correct"));
    // Two of four, spread: the first and the third.
    assertEquals(
        1,
        Fletch.ok("eval", "--set", set.toString(), "--json", "--limit", "2").json().get("correct"));
    Fletch.Outcome text = Fletch.ok("eval", "--set", set.toString(), "--verbose");
    assertTrue(text.out().contains("all           50.0 %  (2 of 4)\n"), text.out());
    assertTrue(text.err().contains("expected=\"4+3=7\" actual=\"4+3=7\\nAnswer: 7\""), text.err());
  }

  @Test
  void evalNamesTheLineThatIsWrong(@TempDir Path folder) throws IOException {
    Path set = folder.resolve("set.jsonl");
    for (String line : List.of("{", "[]", "{\"task\": \"x\", \"question\": 3, \"answer\": \"\"}")) {
      Files.writeString(set, "\n" + line + "\n");
      Fletch.Outcome outcome = Fletch.run("eval", "--set", set.toString());
      assertEquals(1, outcome.status(), line);
      assertTrue(outcome.err().startsWith("fletch eval: " + set + ":2: "), outcome.err());
      assertEquals(1, outcome.err().lines().count(), outcome.err());
    }
    Files.writeString(set, "\n");
    assertEquals(
        "fletch eval: " + set + ": no questions\n",
        Fletch.run("eval", "--set", set.toString()).err());
    assertEquals(
        "fletch eval: no such file: " + folder.resolve("none") + "\n",
        Fletch.run("eval", "--set", folder.resolve("none").toString()).err());
  }

  @Test
  void benchSetsRestingUnitsBesideAllOfThem() {
    String[] bench = {
      "bench", "--model", "demo", "--drop-ffn", "3,5", "-p", "4", "-n", "9", "-r", "2"
    };
    String[] json = java.util.Arrays.copyOf(bench, bench.length + 1);
    json[bench.length] = "--json";
    Map<String, Object> all = Fletch.ok(json).json();
    // The prompt gives the first token; two of 16 units rest for the eight others.
    assertEquals(2 * 8 * 16, number(all, "units"));
    assertEquals(2 * 8 * 2, number(all, "units_skipped"));
    assertEquals(0, number(all, "units_approximated"));
    double dense = number(all, "dense_weight_bytes_per_token");
    double resting = number(all, "resting_weight_bytes_per_token");
    // Three Q8_0 matrices of 256 x 512 each, in eight of nine passes.
    assertEquals(8.0 / 9 * 2 * 3 * 256 * 512 * 34 / 32, dense - resting, 1);
    assertEquals(dense / resting, number(all, "fewer_bytes"), 1e-3);
    assertTrue(number(all, "speed_up") > 0);
    String text = Fletch.ok(bench).out();
    assertTrue(text.contains("12.5 % of all units skipped, 0.0 % approximated"), text);
    assertEquals(Cli.USAGE, Fletch.run("bench", "--drop-ffn", "3", "-n", "0", "-p", "4").status());
  }

  @Test
  void benchReportsRatesAndBandwidth() {
    Map<String, Object> json =
        Fletch.ok(
                "bench",
                "--model",
                "demo-small",
                "-p",
                "16",
                "-n",
                "8",
                "-r",
                "3",
                "-t",
                "1",
                "--json")
            .json();
    assertEquals(1, json.get("threads"));
    for (String rate : List.of("prefill_tps", "decode_tps")) {
      double median = number(json, rate);
      assertTrue(number(json, rate + "_min") <= median && median <= number(json, rate + "_max"));
      assertEquals(3, ((List<?>) json.get(rate + "_samples")).size());
    }
    double gbps = number(json, "decode_tps") * number(json, "model_bytes_per_token") / 1e9;
    assertEquals(gbps, number(json, "decode_gbps"), 0.001);
    assertEquals(gbps / number(json, "read_bandwidth_gbps"), number(json, "bandwidth_share"), 0.01);
    String text =
        Fletch.ok("bench", "--model", "demo-small", "-p", "0", "-n", "4", "-r", "1").out();
    assertTrue(text.contains("\ndecode       4 "), text);
    assertTrue(!text.contains("prefill"), text);
  }

  private static double number(Map<String, Object> json, String key) {
    return ((Number) json.get(key)).doubleValue();
  }

  @Test
  void doctorProvesThatItRuns() {
    Map<String, Object> json = Fletch.ok("doctor", "--json").json();
    assertEquals(true, json.get("healthy"));
    assertEquals("4+3=7 Answer: 7", json.get("answer"));
    assertTrue(((String) json.get("version")).contains("JDK 25"));
    assertTrue(Fletch.ok("doctor").out().contains("\nanswer "));
    Fletch.Outcome sick = Fletch.run("doctor", "--model", "/no/such/file.gguf");
    assertEquals(1, sick.status());
    assertTrue(sick.out().contains("the model does not run: "), sick.out());
  }

  @Test
  void modelsOpenByFileToo() {
    String file = Model.demoFile("demo-small").toString();
    Map<String, Object> byName =
        Fletch.ok("run", "--model", "demo-small", "--temp", "0", "Hello!", "--json").json();
    Map<String, Object> byFile =
        Fletch.ok("run", "--model", file, "--temp", "0", "Hello!", "--json").json();
    assertEquals(byName.get("ids"), byFile.get("ids"));
  }
}
