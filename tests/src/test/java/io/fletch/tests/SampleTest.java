package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Model;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import javax.tools.ToolProvider;
import javax.xml.parsers.DocumentBuilderFactory;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.w3c.dom.Document;
import org.w3c.dom.Element;
import org.w3c.dom.NodeList;

/**
 * The sample application in docs/sample, compiled and started as its readme says, with what its one
 * dependency brings and nothing else; and the BOM that it takes versions from.
 */
class SampleTest {
  private static final Path ROOT = Path.of("..");
  private static final Path SAMPLE = ROOT.resolve("docs").resolve("sample");

  @TempDir Path folder;

  private static Document xml(Path file) throws Exception {
    DocumentBuilderFactory factory = DocumentBuilderFactory.newInstance();
    factory.setFeature("http://apache.org/xml/features/disallow-doctype-decl", true);
    return factory.newDocumentBuilder().parse(file.toFile());
  }

  /** The texts of direct children of that name. */
  private static List<Element> children(Element of, String name) {
    List<Element> out = new ArrayList<>();
    NodeList all = of.getChildNodes();
    for (int i = 0; i < all.getLength(); i++) {
      if (all.item(i) instanceof Element e && e.getTagName().equals(name)) {
        out.add(e);
      }
    }
    return out;
  }

  private static String text(Element of, String name) {
    List<Element> found = children(of, name);
    return found.isEmpty() ? "" : found.getFirst().getTextContent().strip();
  }

  private static List<Element> dependencies(Element of) {
    return children(children(of, "dependencies").getFirst(), "dependency");
  }

  @Test
  void theBomNamesWhatShips() throws Exception {
    Element root = xml(ROOT.resolve("pom.xml")).getDocumentElement();
    Element bom = xml(ROOT.resolve("runtime/bom/pom.xml")).getDocumentElement();
    assertEquals(text(root, "version"), text(bom, "version"));
    Set<String> shipped = new HashSet<>();
    for (Element module : children(children(root, "modules").getFirst(), "module")) {
      Element pom =
          xml(ROOT.resolve(module.getTextContent()).resolve("pom.xml")).getDocumentElement();
      boolean isLibrary =
          !Set.of("tools", "bench", "tests", "runtime/bom").contains(module.getTextContent());
      if (isLibrary) {
        shipped.add(text(pom, "artifactId"));
      }
    }
    Set<String> named = new HashSet<>();
    for (Element e : dependencies(children(bom, "dependencyManagement").getFirst())) {
      assertEquals("io.fletch", text(e, "groupId"));
      assertEquals("${project.version}", text(e, "version"));
      named.add(text(e, "artifactId"));
    }
    assertEquals(shipped, named);
  }

  @Test
  void theSampleNeedsTheBomAndOneDependency() throws Exception {
    Element root = xml(ROOT.resolve("pom.xml")).getDocumentElement();
    Element sample = xml(SAMPLE.resolve("pom.xml")).getDocumentElement();
    Element properties = children(sample, "properties").getFirst();
    assertEquals(text(root, "version"), text(properties, "fletch.version"));
    Element imported = dependencies(children(sample, "dependencyManagement").getFirst()).getFirst();
    assertEquals("fletch-bom", text(imported, "artifactId"));
    assertEquals("import", text(imported, "scope"));
    List<Element> dependencies = dependencies(sample);
    assertEquals(1, dependencies.size());
    assertEquals("fletch-runtime", text(dependencies.getFirst(), "artifactId"));
    assertEquals("", text(dependencies.getFirst(), "version"));
  }

  @Test
  void theSampleRuns() throws Exception {
    String library =
        Arrays.stream(System.getProperty("java.class.path").split(File.pathSeparator))
            .filter(EmbeddingTest::isLibrary)
            .collect(Collectors.joining(File.pathSeparator));
    Path source = SAMPLE.resolve("src/main/java");
    String readme = Files.readString(SAMPLE.resolve("README.md"));
    String[] blocks = readme.split("(?m)^```\\R", -1);
    String expected = blocks[blocks.length - 2];
    String model = Model.demoFile("demo").toString();

    Path module = compile(source, "-p", library, true);
    check(
        expected,
        Jvm.run(
            folder,
            List.of(
                "--enable-native-access=io.fletch.ffm",
                "--sun-misc-unsafe-memory-access=allow",
                "-p",
                module + File.pathSeparator + library,
                "-m",
                "sample/sample.Sample",
                model)));

    Path classes = compile(source, "-cp", library, false);
    String classPath = classes + File.pathSeparator + library;
    String grant = "--enable-native-access=ALL-UNNAMED";
    check(expected, Jvm.run(folder, List.of(grant, "-cp", classPath, "sample.Sample", model)));
    Jvm.Outcome missing =
        Jvm.run(folder, List.of(grant, "-cp", classPath, "sample.Sample", "/no/such/model.gguf"));
    assertEquals(1, missing.status());
    assertTrue(
        missing.errors().stream().anyMatch(line -> line.contains("/no/such/model.gguf")),
        () -> String.join("\n", missing.errors()));
  }

  private static void check(String expected, Jvm.Outcome outcome) {
    assertEquals(0, outcome.status(), () -> String.join("\n", outcome.errors()));
    assertEquals(expected, outcome.output());
  }

  private Path compile(Path source, String pathOption, String library, boolean isModule)
      throws IOException {
    Path out = folder.resolve(isModule ? "module" : "classes");
    List<String> arguments =
        new ArrayList<>(
            List.of(
                "-Xlint:all,-path,-classfile,-incubating",
                "-Werror",
                "-d",
                out.toString(),
                pathOption,
                library));
    try (Stream<Path> files = Files.walk(source)) {
      files
          .map(Path::toString)
          .filter(file -> file.endsWith(".java"))
          .filter(file -> isModule || !file.endsWith("module-info.java"))
          .forEach(arguments::add);
    }
    int status =
        ToolProvider.getSystemJavaCompiler()
            .run(null, null, null, arguments.toArray(String[]::new));
    assertEquals(0, status, () -> "javac " + arguments);
    return out;
  }
}
