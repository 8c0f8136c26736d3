package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;

/** Resources as files of this process. */
class DemoFilesTest {
  @Test
  void extractsOnceAndRemovesWhatKilledProcessesLeft() throws IOException {
    String resource = "demo-small.gguf";
    Path folder = Path.of(System.getProperty("java.io.tmpdir"));
    Path left = folder.resolve(".fletch-" + resource + ".0123456789abcdef.tmp");
    Files.writeString(left, "left");
    Path file = DemoFiles.path(resource);
    assertFalse(Files.exists(left));
    assertTrue(Files.size(file) > 0);
    assertEquals(file, DemoFiles.path(resource));
    assertThrows(CommandException.class, () -> DemoFiles.path("no-such-file"));
  }
}
