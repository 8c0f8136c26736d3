package io.fletch.langchain4j;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.Model;
import java.lang.reflect.Method;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.tools.JavaCompiler;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The Java code of docs/langchain4j.md compiles and does what it says. */
class GuideTest {
  @Test
  void javaOfTheGuideRuns(@TempDir Path folder) throws Exception {
    Matcher block =
        Pattern.compile("```java\n(.*?)```", Pattern.DOTALL)
            .matcher(Files.readString(Path.of("..", "..", "docs", "langchain4j.md")));
    assertTrue(block.find(), "no Java in docs/langchain4j.md");
    Path source = Files.writeString(folder.resolve("Assist.java"), block.group(1));
    JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
    // Surefire may hide the class path in the manifest of a jar of its own.
    String classPath =
        System.getProperty("surefire.test.class.path", System.getProperty("java.class.path"));
    assertEquals(
        0,
        compiler.run(
            null,
            null,
            null,
            "-proc:none",
            "-d",
            folder.toString(),
            "-cp",
            classPath,
            source.toString()));
    try (URLClassLoader loader =
        new URLClassLoader(new URL[] {folder.toUri().toURL()}, getClass().getClassLoader())) {
      Method ask = loader.loadClass("Assist").getDeclaredMethod("ask", Path.class, String.class);
      ask.setAccessible(true);
      assertEquals(
          TestModels.ANSWER, ask.invoke(null, Model.demoFile("demo"), TestModels.QUESTION));
    }
  }
}
