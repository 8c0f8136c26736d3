package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertDoesNotThrow;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Model;
import java.io.IOException;
import java.io.StringWriter;
import java.net.URI;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import javax.tools.JavaCompiler;
import javax.tools.JavaFileObject;
import javax.tools.SimpleJavaFileObject;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What the documentation promises: code that compiles and runs, options and files that exist. */
class DocumentationTest {
  private static final Path ROOT = Path.of("..");

  private static final List<Command> COMMANDS =
      List.of(
          new ChatCommand(),
          new RunCommand(),
          new ServeCommand(),
          new EmbedCommand(),
          new TokenizeCommand(),
          new InspectCommand(),
          new LogitsCommand(),
          new EvalCommand(),
          new CompareCommand(),
          new ConvertCommand(),
          new QuantizeCommand(),
          new PruneCommand(),
          new MergeCommand(),
          new PerplexityCommand(),
          new BenchCommand(),
          new DoctorCommand(),
          new CalibrateCommand());

  @Test
  void javaOfTheReadmeRuns(@TempDir Path folder) throws Exception {
    Matcher block =
        Pattern.compile("```java\n(.*?)```", Pattern.DOTALL)
            .matcher(Files.readString(ROOT.resolve("README.md")));
    assertTrue(block.find(), "no Java in README.md");
    String code = block.group(1);
    // A body of about ten lines is what the README promises.
    assertTrue(code.lines().filter(line -> !line.isBlank()).count() <= 14, code);
    compile("Ask", code, folder);
    try (URLClassLoader loader =
        new URLClassLoader(
            new URL[] {folder.toUri().toURL()}, DocumentationTest.class.getClassLoader())) {
      java.lang.reflect.Method ask =
          loader.loadClass("Ask").getDeclaredMethod("ask", Path.class, String.class);
      ask.setAccessible(true);
      assertEquals("4+3=7\nAnswer: 7", ask.invoke(null, Model.demoFile("demo"), "What is 4 + 3?"));
    }
  }

  /** What the blocks of the guides leave out: where they stand, and what is the reader's own. */
  private static final String AROUND =
      """
      import io.fletch.*;
      import io.fletch.sampling.*;
      import java.nio.file.*;
      import java.util.*;

      class %s {
        static Path path;
        static Path big;
        static Path little;
        static Model model;
        static List<Message> messages;
        static void show(int position, List<Integer> ids) {}
        static String run(ToolCallFormat.Call call) { return ""; }
        %s
      }
      """;

  @Test
  void javaOfTheGuidesCompiles(@TempDir Path folder) throws Exception {
    int blocks = 0;
    try (Stream<Path> pages = Files.list(ROOT.resolve("docs"))) {
      for (Path page : pages.filter(p -> p.toString().endsWith(".md")).toList()) {
        Matcher block =
            Pattern.compile("```java\n(.*?)```", Pattern.DOTALL).matcher(Files.readString(page));
        while (block.find()) {
          String code = block.group(1);
          // That of LangChain4j is a class of its own, which its module compiles.
          if (!code.startsWith("import ")) {
            boolean isMember = code.startsWith("static ");
            String name = "Block" + blocks++;
            String member = isMember ? code : "static void f() throws Exception {" + code + "}";
            compile(name, AROUND.formatted(name, member), folder);
          }
        }
      }
    }
    assertTrue(blocks >= 4, "blocks=" + blocks);
  }

  private static void compile(String name, String code, Path folder) {
    JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
    JavaFileObject source =
        new SimpleJavaFileObject(
            URI.create("string:///" + name + ".java"), JavaFileObject.Kind.SOURCE) {
          @Override
          public CharSequence getCharContent(boolean ignoreEncodingErrors) {
            return code;
          }
        };
    StringWriter messages = new StringWriter();
    boolean compiled =
        compiler
            .getTask(
                messages,
                null,
                null,
                List.of("-proc:none", "-d", folder.toString(), "-cp", classPath()),
                null,
                List.of(source))
            .call();
    assertTrue(compiled, code + messages);
  }

  /** Surefire may hide the class path in the manifest of a jar of its own. */
  private static String classPath() {
    return System.getProperty("surefire.test.class.path", System.getProperty("java.class.path"));
  }

  @Test
  void everyOptionIsDocumented() throws IOException {
    String text = Files.readString(ROOT.resolve("docs/cli.md"));
    for (Command command : COMMANDS) {
      for (Command.Section section : command.sections()) {
        section
            .options()
            .forEach(option ->
                assertTrue(
                    text.contains("`--" + option.getLongOpt()),
                    command.getClass().getSimpleName() + " --" + option.getLongOpt()));
      }
    }
  }

  @Test
  void examplesOfTheHelpAreCommandLines() {
    for (Command command : COMMANDS) {
      assertFalse(command.examples().isEmpty(), command.getClass().getSimpleName());
      for (String example : command.examples()) {
        for (String part : example.split(" [|>] ")) {
          List<String> words = words(part);
          if (words.getFirst().equals("fletch")) {
            List<Command.Section> sections = new ArrayList<>(command.sections());
            sections.add(new Command.Section("General", List.of(Command.flag("v", "verbose", ""))));
            assertDoesNotThrow(
                () -> Arguments.parse(sections, words.subList(2, words.size())), example);
          }
        }
      }
    }
  }

  /** The words of a command line; double quotation marks hold blanks together. */
  private static List<String> words(String line) {
    return Pattern.compile("\"([^\"]*)\"|'([^']*)'|\\S+")
        .matcher(line)
        .results()
        .map(m -> m.group(1) != null ? m.group(1) : m.group(2) != null ? m.group(2) : m.group())
        .toList();
  }

  /** Anchors of a page's headings as GitHub makes them. */
  private static List<String> anchors(Path page) throws IOException {
    try (Stream<String> lines = Files.lines(page)) {
      return lines
          .filter(line -> line.startsWith("#"))
          .map(line -> line.replaceFirst("^#+ ", "").toLowerCase(Locale.ROOT))
          .map(text -> "#" + text.replaceAll("[^\\w\\- ]", "").replace(' ', '-'))
          .toList();
    }
  }

  @Test
  void linksLeadSomewhere() throws IOException {
    try (Stream<Path> files = Files.list(ROOT.resolve("docs"))) {
      List<Path> pages =
          Stream.concat(
                  files, Stream.of(ROOT.resolve("README.md"), ROOT.resolve("CONTRIBUTING.md")))
              .filter(file -> file.toString().endsWith(".md"))
              .toList();
      for (Path page : pages) {
        Matcher link =
            Pattern.compile("\\]\\(([^)#:]*)(#[^)]+)?\\)").matcher(Files.readString(page));
        while (link.find()) {
          Path target = link.group(1).isEmpty() ? page : page.resolveSibling(link.group(1));
          assertTrue(Files.exists(target), page + ": " + link.group());
          assertTrue(
              link.group(2) == null || anchors(target).contains(link.group(2)),
              page + ": " + link.group());
        }
      }
    }
  }
}
