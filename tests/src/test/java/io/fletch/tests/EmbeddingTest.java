package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Model;
import java.io.File;
import java.io.IOException;
import java.lang.module.FindException;
import java.lang.module.ModuleFinder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import javax.tools.JavaCompiler;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * The library inside somebody else's program: the Java lines of the README, compiled and started in
 * a JVM of their own with nothing but the library and what it requires, with and without the flags
 * that the README lists. A missing flag costs speed and one line, never the answer.
 */
class EmbeddingTest {
  private static final String QUESTION = "What is 457 + 386?";
  private static final String ANSWER = "7+6=13\n5+8+1=14\n4+3+1=8\nAnswer: 843";
  private static final String NATIVE_FLAG = "--enable-native-access=";

  /** What {@code fletch-runtime} brings along; no logging binding and nothing of the program. */
  private static final Set<String> LIBRARY =
      Set.of(
          "io.fletch.ffm",
          "io.fletch.quant",
          "io.fletch.graph",
          "io.fletch.sampling",
          "io.fletch.runtime",
          "org.apache.arrow.memory.core",
          "org.apache.arrow.memory.unsafe",
          "com.fasterxml.jackson.core",
          "com.fasterxml.jackson.jr.ob",
          "org.slf4j");

  @TempDir static Path folder;
  private static String library;
  private static Path classes;
  private static Path module;

  /** Standard error without the JVM's own four lines about Arrow's use of Unsafe. */
  private static List<String> ours(Jvm.Outcome outcome) {
    return outcome.errors().stream()
        .filter(line -> !line.matches("WARNING: .*(Unsafe|MemoryUtil).*"))
        .toList();
  }

  @BeforeAll
  static void compileTheApplication() throws IOException {
    library =
        Arrays.stream(System.getProperty("java.class.path").split(File.pathSeparator))
            .filter(EmbeddingTest::isLibrary)
            .collect(Collectors.joining(File.pathSeparator));
    String ask = readmeJava();
    String main =
        """
        public class Main {
          public static void main(String[] args) {
            String text = Ask.ask(java.nio.file.Path.of(args[0]), args[1]);
            System.out.print("\\n=\\n" + text);
          }
        }
        """;
    classes = folder.resolve("classes");
    compile(folder.resolve("src"), "-cp", classes, List.of("Ask.java", ask, "Main.java", main));
    module = folder.resolve("module");
    compile(
        folder.resolve("module-src"),
        "-p",
        module,
        List.of(
            "module-info.java",
            "module app { requires io.fletch.runtime; }",
            "app/Ask.java",
            "package app;\n" + ask,
            "app/Main.java",
            "package app;\n" + main));
  }

  @ParameterizedTest(name = "class path [{0}]")
  @CsvSource({"''", "--illegal-native-access=deny"})
  void fromTheClassPathWithoutNativeAccess(String flag) throws Exception {
    Jvm.Outcome outcome = java(flag, "-cp", classes + File.pathSeparator + library, "Main");
    assertAnswered(outcome);
    assertOneWarning(outcome, "ALL-UNNAMED");
  }

  @ParameterizedTest(name = "module path [{0}]")
  @CsvSource({"''", "--illegal-native-access=deny"})
  void fromTheModulePathWithoutNativeAccess(String flag) throws Exception {
    Jvm.Outcome outcome =
        java(flag, "-p", module + File.pathSeparator + library, "-m", "app/app.Main");
    assertAnswered(outcome);
    assertOneWarning(outcome, "io.fletch.ffm");
  }

  @Test
  void fromTheClassPathWithNativeAccess() throws Exception {
    Jvm.Outcome outcome =
        java(
            "--enable-native-access=ALL-UNNAMED --illegal-native-access=deny",
            "-cp",
            classes + File.pathSeparator + library,
            "Main");
    assertAnswered(outcome);
    assertNoWarning(outcome);
  }

  @Test
  void fromTheModulePathWithNativeAccess() throws Exception {
    Jvm.Outcome outcome =
        java(
            "--enable-native-access=io.fletch.ffm --illegal-native-access=deny"
                + " --sun-misc-unsafe-memory-access=allow",
            "-p",
            module + File.pathSeparator + library,
            "-m",
            "app/app.Main");
    assertAnswered(outcome);
    assertNoWarning(outcome);
    assertEquals(outcome.errors(), ours(outcome), "the second flag silences the JVM");
  }

  private static void assertAnswered(Jvm.Outcome outcome) {
    assertEquals(0, outcome.status(), () -> String.join("\n", outcome.errors()));
    assertEquals(ANSWER + "\n=\n" + ANSWER, outcome.output(), "streamed text, then the result");
  }

  /** The logging of the JDK writes two lines for a message; there is one message. */
  private static void assertOneWarning(Jvm.Outcome outcome, String grant) {
    List<String> lines = ours(outcome);
    assertEquals(2, lines.size(), () -> String.join("\n", lines));
    String message = lines.getLast();
    assertTrue(message.startsWith("WARNING: "), message);
    assertTrue(message.contains("native access is not granted"), message);
    assertEquals(message.indexOf(NATIVE_FLAG), message.lastIndexOf(NATIVE_FLAG), message);
    assertTrue(message.contains(NATIVE_FLAG + grant), message);
  }

  private static void assertNoWarning(Jvm.Outcome outcome) {
    List<String> lines = ours(outcome);
    assertEquals(2, lines.size(), () -> String.join("\n", lines));
    assertTrue(lines.getLast().startsWith("INFO: "), lines.getLast());
    assertFalse(lines.getLast().contains(NATIVE_FLAG), lines.getLast());
  }

  private static Jvm.Outcome java(String flags, String... arguments) throws Exception {
    List<String> command = new ArrayList<>();
    Stream.of(flags.split(" ")).filter(flag -> !flag.isEmpty()).forEach(command::add);
    command.addAll(List.of(arguments));
    command.addAll(List.of(Model.demoFile("demo").toString(), QUESTION));
    return Jvm.run(folder, command);
  }

  static boolean isLibrary(String entry) {
    Path path = Path.of(entry);
    if (!Files.exists(path)) {
      return false;
    }
    try {
      return ModuleFinder.of(path).findAll().stream()
          .anyMatch(found -> LIBRARY.contains(found.descriptor().name()));
    } catch (FindException _) {
      return false; // test classes and the like
    }
  }

  private static void compile(Path source, String pathOption, Path out, List<String> files)
      throws IOException {
    List<String> arguments = new ArrayList<>(List.of("-proc:none", "-d", out.toString()));
    arguments.addAll(List.of(pathOption, library));
    for (int i = 0; i < files.size(); i += 2) {
      Path file = source.resolve(files.get(i));
      Files.createDirectories(file.getParent());
      Files.writeString(file, files.get(i + 1));
      arguments.add(file.toString());
    }
    JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
    int status = compiler.run(null, null, null, arguments.toArray(String[]::new));
    assertEquals(0, status, () -> "javac " + arguments);
  }

  /** The only Java block of the README. */
  private static String readmeJava() throws IOException {
    String readme = Files.readString(Path.of("..", "README.md"));
    String[] parts = readme.split("(?m)^```java\\R", -1);
    assertEquals(2, parts.length, "Java blocks of the README");
    return parts[1].substring(0, parts[1].indexOf("\n```") + 1);
  }
}
