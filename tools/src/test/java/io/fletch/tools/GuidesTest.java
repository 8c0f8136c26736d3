package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.ProcessBuilder.Redirect;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.api.io.TempDir;

/**
 * The commands of the documentation, run as a reader runs them: every {@code sh} block of a page,
 * in order, in a folder of the page's own, with {@code ./fletch} as this build.
 *
 * <ul>
 *   <li>A block behind {@code <!-- not run: REASON -->} is left out.
 *   <li>A block behind {@code <!-- file: NAME -->} is written to that file.
 *   <li>A {@code text} block directly behind an {@code sh} block is what that prints: its lines are
 *       found in this order; the line {@code ...} stands for any others.
 *   <li>Port 8080 becomes one that is free.
 * </ul>
 */
class GuidesTest {
  private static final Path ROOT = Path.of("..").toAbsolutePath().normalize();
  private static final int SECONDS = 300;

  private static final Pattern BLOCK =
      Pattern.compile(
          "(?:<!-- (not run|file): ([^\\n]+?) -->\\n+)?^```(\\w*)\\n(.*?)^```$(\\n\\n?)?",
          Pattern.DOTALL | Pattern.MULTILINE);

  @TempDir static Path folder;

  /** A fenced block with what the page says about it. */
  private record Block(String mark, String word, String language, String body, boolean isNext) {}

  private static List<Path> pages() throws IOException {
    try (Stream<Path> files = Files.list(ROOT.resolve("docs"))) {
      return Stream.concat(files, Stream.of(ROOT.resolve("README.md")))
          .filter(file -> file.toString().endsWith(".md"))
          .sorted()
          .toList();
    }
  }

  private static List<Block> blocks(Path page) throws IOException {
    List<Block> out = new ArrayList<>();
    Matcher m = BLOCK.matcher(Files.readString(page));
    int end = -1;
    while (m.find()) {
      out.add(new Block(m.group(1), m.group(2), m.group(3), m.group(4), m.start() == end));
      end = m.end();
    }
    return out;
  }

  @Test
  void everyCommandIsInABlockThatRunsOrSaysWhyNot() throws IOException {
    for (Path page : pages()) {
      for (Block block : blocks(page)) {
        if (block.language().equals("sh")) {
          assertTrue(
              block.mark() == null || block.mark().equals("not run"), page + ": " + block.body());
        } else {
          assertFalse(
              block.body().lines().anyMatch(line -> line.matches("(\\./)?fletch .*")),
              page + ": commands belong into sh blocks: " + block.body());
        }
      }
    }
  }

  @TestFactory
  List<DynamicTest> commandsOfThePagesRun() throws IOException {
    List<DynamicTest> out = new ArrayList<>();
    for (Path page : pages()) {
      List<Block> blocks = blocks(page);
      if (blocks.stream().anyMatch(b -> b.language().equals("sh") && b.mark() == null)) {
        String name = page.getFileName().toString();
        out.add(DynamicTest.dynamicTest(name, () -> run(folder.resolve(name + ".d"), blocks)));
      }
    }
    assertTrue(out.size() >= 5, "pages with commands: " + out);
    return out;
  }

  private static void run(Path in, List<Block> blocks) throws Exception {
    Files.createDirectories(in);
    fletch(in.resolve("fletch"));
    String port;
    try (ServerSocket socket = new ServerSocket(0)) {
      port = Integer.toString(socket.getLocalPort());
    }
    String printed = null;
    for (Block block : blocks) {
      if ("file".equals(block.mark())) {
        Files.writeString(in.resolve(block.word()), block.body());
      } else if (block.language().equals("text") && block.isNext() && printed != null) {
        assertPrinted(block.body(), printed);
      }
      printed = null;
      if (block.language().equals("sh")) {
        if (block.mark() != null) {
          System.out.println("not run, " + block.word() + ": " + block.body().strip());
        } else if (block.body().contains("curl ") && !has("curl")) {
          System.out.println("not run, curl is not installed: " + block.body().strip());
        } else {
          printed = shell(in, block.body().replace("8080", port));
        }
      }
    }
  }

  private static void assertPrinted(String expected, String actual) {
    List<String> lines = actual.lines().map(String::stripTrailing).toList();
    int at = 0;
    boolean isAny = true;
    for (String line : expected.lines().map(String::stripTrailing).toList()) {
      if (line.equals("...")) {
        isAny = true;
        continue;
      }
      int found = lines.subList(at, lines.size()).indexOf(line);
      assertTrue(found >= 0, "expected: " + line + "\nprinted:\n" + actual);
      assertTrue(isAny || found == 0, "not expected before: " + line + "\nprinted:\n" + actual);
      at += found + 1;
      isAny = false;
    }
  }

  private static boolean has(String program) {
    return Stream.of(System.getenv("PATH").split(":"))
        .anyMatch(path -> Files.isExecutable(Path.of(path, program)));
  }

  /** This build as {@code ./fletch}. */
  private static void fletch(Path script) throws IOException {
    String classPath =
        System.getProperty("surefire.test.class.path", System.getProperty("java.class.path"));
    Path arguments = script.resolveSibling(".arguments");
    Files.write(
        arguments,
        List.of(
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "--enable-native-access=ALL-UNNAMED",
            "--sun-misc-unsafe-memory-access=allow",
            "-cp",
            '"' + classPath.replace("\\", "\\\\") + '"',
            "io.fletch.tools.Main"));
    Files.writeString(
        script,
        "#!/bin/sh\nexec \""
            + Path.of(System.getProperty("java.home"), "bin", "java")
            + "\" ${FLETCH_JAVA_OPTS:-} @\"$(dirname \"$0\")/.arguments\" \"$@\"\n");
    Files.setPosixFilePermissions(script, PosixFilePermissions.fromString("rwxr-xr-x"));
  }

  private static String shell(Path in, String commands) throws Exception {
    Path out = Files.createTempFile(in, "out", ".txt");
    Path err = Files.createTempFile(in, "err", ".txt");
    ProcessBuilder builder =
        new ProcessBuilder("sh", "-eu", "-c", commands)
            .directory(in.toFile())
            .redirectInput(new java.io.File("/dev/null"))
            .redirectOutput(Redirect.to(out.toFile()))
            .redirectError(Redirect.to(err.toFile()));
    String path = Path.of(System.getProperty("java.home"), "bin") + ":" + System.getenv("PATH");
    builder.environment().put("PATH", path);
    builder.environment().put("XDG_STATE_HOME", in.resolve(".state").toString());
    Process process = builder.start();
    try {
      assertTrue(process.waitFor(SECONDS, TimeUnit.SECONDS), "hangs: " + commands);
    } finally {
      process.descendants().forEach(ProcessHandle::destroyForcibly);
      process.destroyForcibly();
    }
    assertEquals(0, process.exitValue(), commands + "\n" + Files.readString(err));
    return Files.readString(out);
  }
}
