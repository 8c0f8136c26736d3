package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import java.io.IOException;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Extraction of the shipped models, found through the context class loader. */
class DemoModelsTest {
  private ClassLoader before;
  private URLClassLoader loader;

  @BeforeEach
  void putResourcesOnThePath() throws IOException {
    before = Thread.currentThread().getContextClassLoader();
    URL url = TestModels.TOOLS_RESOURCES.toAbsolutePath().normalize().toUri().toURL();
    loader = new URLClassLoader(new URL[] {url}, before);
    Thread.currentThread().setContextClassLoader(loader);
  }

  @AfterEach
  void takeThemOff() throws IOException {
    Thread.currentThread().setContextClassLoader(before);
    loader.close();
  }

  private static void assertIsModel(String name, Path file) throws IOException {
    assertArrayEquals(Files.readAllBytes(TestModels.demo(name)), Files.readAllBytes(file));
  }

  @Test
  void extractsEachModelOnce(@TempDir Path folder) throws IOException {
    for (String name : List.of("demo", "demo-small", "demo-diffusion")) {
      Path file = DemoModels.file(name, List.of(folder));
      assertIsModel(name, file);
      var written = Files.getLastModifiedTime(file);
      assertEquals(file, DemoModels.file(name, List.of(folder)));
      assertEquals(written, Files.getLastModifiedTime(file));
    }
    try (var files = Files.list(folder)) {
      assertEquals(3, files.count(), "no temporary files are left");
    }
  }

  @Test
  void removesWhatKilledExtractionsLeft(@TempDir Path folder) throws IOException {
    Path file = DemoModels.file("demo-small", List.of(folder));
    Path left = folder.resolve("." + file.getFileName() + ".0123456789abcdef.tmp");
    Path other = Files.writeString(folder.resolve(".demo-1.tmp"), "another program's");
    Files.writeString(left, "half");
    assertEquals(file, DemoModels.file("demo-small", List.of(folder)));
    assertFalse(Files.exists(left));
    Files.writeString(left, "half");
    Files.delete(file);
    assertIsModel("demo-small", DemoModels.file("demo-small", List.of(folder)));
    assertFalse(Files.exists(left));
    assertTrue(Files.exists(other));
  }

  @Test
  void replacesADamagedFile(@TempDir Path folder) throws IOException {
    Path file = DemoModels.file("demo-small", List.of(folder));
    Files.writeString(file, "damaged");
    assertIsModel("demo-small", DemoModels.file("demo-small", List.of(folder)));
  }

  @Test
  void goesToTheNextFolderWhereOneCannotBeWritten(@TempDir Path folder) throws IOException {
    Path blocked = Files.writeString(folder.resolve("file"), "not a folder").resolve("inside");
    Path good = folder.resolve("good");
    Path file = DemoModels.file("demo-small", List.of(blocked, good));
    assertTrue(file.startsWith(good));
    assertIsModel("demo-small", file);
  }

  @Test
  void severalStartsAtOnceAgree(@TempDir Path folder) throws Exception {
    int n = 6;
    CountDownLatch go = new CountDownLatch(1);
    Callable<Path> start =
        () -> {
          Thread.currentThread().setContextClassLoader(loader);
          go.await();
          return DemoModels.file("demo-small", List.of(folder));
        };
    try (ExecutorService pool = Executors.newFixedThreadPool(n)) {
      List<Future<Path>> files = new ArrayList<>();
      for (int i = 0; i < n; i++) {
        files.add(pool.submit(start));
      }
      go.countDown();
      for (Future<Path> file : files) {
        assertIsModel("demo-small", file.get());
      }
    }
  }

  @Test
  void namesWhatIsKnown(@TempDir Path folder) {
    FletchException e =
        assertThrows(FletchException.class, () -> DemoModels.file("demo-large", List.of(folder)));
    assertTrue(
        e.getMessage().contains("demo-large") && e.getMessage().contains("demo-diffusion"),
        e.getMessage());
  }

  @Test
  void cacheFoldersFollowTheEnvironment() {
    Map<String, String> properties =
        Map.of("user.home", "/home/x", "java.io.tmpdir", "/tmp", "user.name", "x");
    assertEquals(
        List.of(Path.of("/caches/fletch"), Path.of("/tmp/fletch-x")),
        DemoModels.cacheFolders(Map.of("XDG_CACHE_HOME", "/caches")::get, properties::get));
    assertEquals(
        List.of(Path.of("/home/x/.cache/fletch"), Path.of("/tmp/fletch-x")),
        DemoModels.cacheFolders(Map.<String, String>of()::get, properties::get));
  }
}
