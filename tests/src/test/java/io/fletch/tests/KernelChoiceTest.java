package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.fletch.graph.cpu.KernelSets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * A process that gets no executable memory answers alike with slower kernels, and says so in one
 * line, which names the reason. A value of the option that there is not stands for the host's
 * refusal, which goes the same way.
 */
class KernelChoiceTest {
  private static final String REFUSED = "-Dfletch.executable=refused";
  private static final String REASON =
      "fletch.executable: expected=auto|mprotect|memfd|off actual=refused";
  private static final String VECTOR = "--add-modules=jdk.incubator.vector";

  @TempDir Path folder;

  @BeforeEach
  void machineCode() {
    assumeTrue(KernelSets.machineCode().isPresent(), "no machine code here, nothing to refuse");
  }

  /** Runs the program; flags of the JVM begin with a dash, what follows are its arguments. */
  private Jvm.Outcome run(List<String> flags, String... arguments) throws Exception {
    List<String> command =
        new ArrayList<>(
            List.of(
                "--enable-native-access=ALL-UNNAMED",
                "--sun-misc-unsafe-memory-access=allow",
                "-cp",
                System.getProperty(
                    "surefire.test.class.path", System.getProperty("java.class.path"))));
    command.addAll(flags);
    command.addAll(List.of("io.fletch.tools.Main", "run", "--model", "demo-small"));
    command.addAll(List.of("--temp", "0", "--max-tokens", "8"));
    command.addAll(Arrays.asList(arguments));
    command.add("What is 4 + 3?");
    return Jvm.run(folder, command);
  }

  /** What the program says; the JVM has a line of its own about incubator modules. */
  private static List<String> said(Jvm.Outcome outcome) {
    return outcome.errors().stream().filter(l -> l.startsWith("fletch: ")).toList();
  }

  private static void assertOneLine(Jvm.Outcome outcome, String kernels) {
    List<String> said = said(outcome);
    assertEquals(1, said.size(), () -> String.join("\n", outcome.errors()));
    assertTrue(said.getFirst().contains("cpu: kernels " + kernels), said.getFirst());
    assertTrue(said.getFirst().contains("(" + REASON), said.getFirst());
  }

  @Test
  void refusedMemoryLeadsToTheVectorApiWithOneLineAndTheSameAnswer() throws Exception {
    Jvm.Outcome fast = run(List.of());
    assertEquals(0, fast.status(), () -> String.join("\n", fast.errors()));
    assertEquals(List.of(), said(fast));
    assertTrue(fast.output().length() > 3, fast.output());

    Jvm.Outcome vector = run(List.of(REFUSED, VECTOR));
    assertOneLine(vector, "vector-");
    assertEquals(fast.output(), vector.output());

    Jvm.Outcome scalar = run(List.of(REFUSED));
    assertOneLine(scalar, "scalar");
    assertTrue(said(scalar).getFirst().contains("jdk.incubator.vector"), said(scalar).toString());
    assertEquals(fast.output(), scalar.output());
  }

  @Test
  void whatWasSwitchedOffIsNoSurprise() throws Exception {
    Jvm.Outcome quiet = run(List.of("-Dfletch.executable=off", VECTOR));
    assertEquals(List.of(), said(quiet));
    Jvm.Outcome verbose = run(List.of("-Dfletch.executable=off", VECTOR), "--verbose");
    assertTrue(
        said(verbose).stream()
            .anyMatch(l -> l.contains("kernels vector-") && l.contains("fletch.executable=off")),
        verbose.errors().toString());
  }

  @Test
  void anOptionRefusesSlowerKernels() throws Exception {
    Jvm.Outcome refused = run(List.of(REFUSED, VECTOR), "--kernels", "native");
    assertTrue(refused.status() != 0, refused.output());
    List<String> lines =
        refused.errors().stream().filter(l -> !l.contains("incubator modules")).toList();
    assertEquals(1, lines.size(), lines.toString());
    assertTrue(lines.getFirst().contains(REASON), lines.getFirst());
  }

  /** The other way to executable pages, for hosts that refuse the first. */
  @Test
  void memoryFilesRunTheSameCode() throws Exception {
    Jvm.Outcome one = run(List.of("-Dfletch.executable=mprotect"));
    Jvm.Outcome other = run(List.of("-Dfletch.executable=memfd"));
    assumeTrue(said(other).isEmpty(), () -> "memory files are refused here: " + said(other));
    assertEquals(one.output(), other.output());
    assertEquals(0, other.status());
  }
}
