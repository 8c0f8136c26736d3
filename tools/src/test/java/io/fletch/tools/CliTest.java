package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Statuses, messages and help: what does not depend on a model. */
class CliTest {
  private static final List<String> COMMANDS =
      List.of("chat", "run", "tokenize", "inspect", "logits", "eval", "bench", "doctor", "serve");

  @Test
  void overviewNamesEveryCommand() {
    String help = Fletch.ok("help").out();
    for (String command : COMMANDS) {
      assertTrue(help.contains("\n  " + command + " "), command);
    }
    assertEquals(help, Fletch.ok("--help").out());
    Fletch.Outcome none = Fletch.run();
    assertEquals(2, none.status());
    assertEquals(help, none.err());
    assertEquals("", none.out());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "chat",
        "run",
        "tokenize",
        "inspect",
        "logits",
        "eval",
        "bench",
        "doctor",
        "serve"
      })
  void everyCommandHasHelp(String command) {
    String help = Fletch.ok(command, "--help").out();
    assertTrue(help.startsWith("usage: fletch " + command + " "), help);
    assertTrue(help.contains("--model F"), help);
    assertTrue(help.contains("--verbose"), help);
    assertTrue(help.contains("Examples:\n  fletch "), help);
    assertEquals(help, Fletch.ok("help", command).out());
    // Help wins over whatever else is on the line.
    assertEquals(help, Fletch.ok(command, "-h", "--no-such-option").out());
    help.lines().forEach(line -> assertTrue(line.length() <= 100, line));
  }

  @Test
  void versionIsOneLine() {
    String version = Fletch.ok("--version").out();
    assertTrue(version.matches("fletch .+ \\(JDK 25.*\\)\n"), version);
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '~',
      value = {
        "frobnicate ~ fletch: unknown command frobnicate (see: fletch help)",
        "--frobnicate ~ fletch: unknown option --frobnicate (see: fletch help)",
        "help frobnicate ~ fletch: unknown command frobnicate (see: fletch help)",
        "run --frobnicate x ~ fletch run: unknown option --frobnicate (see: fletch run --help)",
        "run --temp ~ fletch run: --temp needs a value (T) (see: fletch run --help)",
        "run --temp hot x ~ fletch run: --temp: expected=a number >= 0 actual=hot (see: fletch run"
            + " --help)",
        "run --temp -1 x ~ fletch run: --temp: expected=a number >= 0 actual=-1 (see: fletch run"
            + " --help)",
        "run --temp NaN x ~ fletch run: --temp: expected=a number >= 0 actual=NaN (see: fletch run"
            + " --help)",
        "run --top-p 2 x ~ fletch run: --top-p: expected=a number above 0, at most 1 actual=2 (see:"
            + " fletch run --help)",
        "run --threads 2000 x ~ fletch run: --threads: expected=a whole number from 0 to 1024"
            + " actual=2000 (see: fletch run --help)",
        "run --max-tokens 1.5 x ~ fletch run: --max-tokens: expected=a whole number >= 0"
            + " actual=1.5 (see: fletch run --help)",
        "run --kernels fast x ~ fletch run: --kernels: expected=auto|scalar|vector|native"
            + " actual=fast (see: fletch run --help)",
        "run --logit-bias 3 x ~ fletch run: --logit-bias: expected=ID=X actual=3 (see: fletch run"
            + " --help)",
        "run --logit-bias 3=inf x ~ fletch run: --logit-bias: expected=ID=X actual=3=inf (see:"
            + " fletch run --help)",
        "run --prompt a b ~ fletch run: more than one prompt given (see: fletch run --help)",
        "run ~ fletch run: no prompt given (see: fletch run --help)",
        "run --logprobs 2 x ~ fletch run: --logprobs needs --json (see: fletch run --help)",
        "run --raw --system s x ~ fletch run: --system needs the chat template, which --raw leaves"
            + " out (see: fletch run --help)",
        // No abbreviations: the next release may have two options that begin like this.
        "run --max-tok 3 x ~ fletch run: unknown option --max-tok, perhaps --max-tokens (see:"
            + " fletch run --help)",
        "run --temperature=1 x ~ fletch run: unknown option --temperature=1, perhaps --temp (see:"
            + " fletch run --help)",
        "run --modle x ~ fletch run: unknown option --modle, perhaps --model (see: fletch run"
            + " --help)",
        "chta ~ fletch: unknown command chta, perhaps chat (see: fletch help)",
        "rnu ~ fletch: unknown command rnu, perhaps run (see: fletch help)",
        "ru ~ fletch: unknown command ru (see: fletch help)",
        "run --tmep 0 x ~ fletch run: unknown option --tmep, perhaps --temp (see: fletch run"
            + " --help)",
        "embed x ~ fletch embed: --model is required: an embedding model (see: fletch embed"
            + " --help)",
        "calibrate ~ fletch calibrate: what is calibrated: expected=one of r2r, ffn-skip, lff"
            + " actual=nothing (see: fletch calibrate --help)",
        "run --set x ~ fletch run: unknown option --set (see: fletch run --help)",
        "logits --ids 1 ~ fletch logits: --out is required (see: fletch logits --help)",
        "logits --out x.npy ~ fletch logits: either --ids or --prompt is required (see: fletch"
            + " logits --help)",
        "logits --ids 1,b --out x.npy ~ fletch logits: token ids: expected=whole numbers actual=b"
            + " (see: fletch logits --help)",
        "eval ~ fletch eval: --set is required (see: fletch eval --help)",
        "bench -p 0 -n 0 ~ fletch bench: nothing to measure: -p and -n are both 0 (see: fletch"
            + " bench --help)",
        "bench surplus ~ fletch bench: unexpected argument surplus (see: fletch bench --help)",
        "bench pom.xml ~ fletch bench: unexpected argument pom.xml (a model is given as --model"
            + " pom.xml) (see: fletch bench --help)",
      })
  void wrongCommandLinesAreOneLineAndStatusTwo(String args, String expected) {
    Fletch.Outcome outcome = Fletch.run(args.split(" "));
    assertEquals(expected + "\n", outcome.err());
    assertEquals(2, outcome.status());
    assertEquals("", outcome.out());
  }

  @Test
  void errorsAreOneLineAndTheTraceComesWithVerbose() {
    Fletch.Outcome brief = Fletch.run("run", "--model", "/no/such/model.gguf", "hello");
    assertEquals(1, brief.status());
    assertTrue(brief.err().startsWith("fletch run: "), brief.err());
    assertTrue(brief.err().contains("/no/such/model.gguf"), brief.err());
    assertEquals(1, brief.err().lines().count(), brief.err());
    assertEquals("", brief.out());
    Fletch.Outcome verbose =
        Fletch.run("run", "--verbose", "--model", "/no/such/model.gguf", "hello");
    assertEquals(1, verbose.status());
    assertTrue(verbose.err().contains("\n\tat io.fletch."), verbose.err());
  }

  @Test
  void outputIsUtf8WhateverTheLocale() {
    Fletch.Outcome outcome = Fletch.run("run", "--élan", "x");
    assertEquals("fletch run: unknown option --élan (see: fletch run --help)\n", outcome.err());
  }

  /** Fails like the standard output of a process whose reader went away, or whose disk is full. */
  private static int runInto(String failure, ByteArrayOutputStream err) {
    OutputStream out =
        new OutputStream() {
          @Override
          public void write(int b) throws IOException {
            throw new IOException(failure);
          }
        };
    return Cli.run(
        new Io(new ByteArrayInputStream(new byte[0]), out, err, Set.of()), "run", "--help");
  }

  @Test
  void brokenPipesAreQuiet() {
    ByteArrayOutputStream err = new ByteArrayOutputStream();
    assertEquals(141, runInto("Broken pipe", err));
    assertEquals(0, err.size());
  }

  @Test
  void fullDisksAreNot() {
    ByteArrayOutputStream err = new ByteArrayOutputStream();
    assertEquals(1, runInto("No space left on device", err));
    assertEquals(
        "fletch run: cannot write to standard output: No space left on device\n",
        err.toString(StandardCharsets.UTF_8));
  }

  @Test
  void bashCompletesCommandsOptionsAndModels() throws Exception {
    String script = Fletch.ok("completion", "bash").out();
    Path bash = Path.of("/bin/bash");
    assumeTrue(Files.isExecutable(bash), "no " + bash);
    assertEquals("prune perplexity", completed(script, "fletch", "p"));
    assertEquals("chat", completed(script, "fletch", "help", "ch"));
    assertEquals("--temp", completed(script, "fletch", "run", "hi", "--temp"));
    assertTrue(completed(script, "fletch", "serve", "--p").startsWith("--port --parallel "));
    assertEquals("demo-small demo-diffusion", completed(script, "fletch", "run", "-m", "demo-"));
    assertEquals("", completed(script, "fletch", "run", "no option"));
    assertEquals(
        "fletch: completion: expected=bash actual=nothing (see: fletch help)\n",
        Fletch.run("completion").err());
  }

  /** What bash offers for the last of some words. */
  private static String completed(String script, String... words) throws Exception {
    String line =
        script + "COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _fletch; echo \"${COMPREPLY[*]}\"";
    List<String> command = new ArrayList<>(List.of("/bin/bash", "-c", line, "bash"));
    command.addAll(List.of(words));
    Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
    return new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8).strip();
  }

  @Test
  void textsThatLookLikeOptionsAreTold() {
    assertEquals(
        "fletch run: unknown option -5 + 3 (write -- before a text that begins with -)"
            + " (see: fletch run --help)\n",
        Fletch.run("run", "-5 + 3").err());
    assertEquals("45 53 311 32 51\n", Fletch.ok("tokenize", "--", "-5 + 3").out());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void progressIsForTerminalsOnly(boolean isDumb) throws InterruptedException {
    ByteArrayOutputStream err = new ByteArrayOutputStream();
    Io io =
        new Io(
            new ByteArrayInputStream(new byte[0]),
            OutputStream.nullOutputStream(),
            err,
            isDumb ? Set.of(Io.Stream.ERR) : Set.of(),
            isDumb);
    try (Progress _ = Progress.show(io, "working")) {
      Thread.sleep(600);
    }
    assertEquals(0, err.size());
  }

  @Test
  void progressIsWiped() throws InterruptedException {
    java.util.concurrent.CountDownLatch shown = new java.util.concurrent.CountDownLatch(1);
    ByteArrayOutputStream err =
        new ByteArrayOutputStream() {
          @Override
          public synchronized void write(byte[] b) throws IOException {
            super.write(b);
            shown.countDown();
          }
        };
    Io io =
        new Io(
            new ByteArrayInputStream(new byte[0]),
            OutputStream.nullOutputStream(),
            err,
            Set.of(Io.Stream.ERR));
    try (Progress _ = Progress.show(io, "working")) {
      shown.await();
    }
    String text = err.toString(StandardCharsets.UTF_8);
    assertTrue(text.startsWith("\r\033[Kworking ... 0 s"), text);
    assertTrue(text.endsWith("\r\033[K"), text);
    assertFalse(text.contains("\n"), text);
  }
}
