package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What an interrupted tool leaves, and who may go on with it. */
class WorkspaceTest {
  @TempDir Path folder;

  private static void put(Workspace workspace, String name, String text) {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    workspace.put(name, sink -> sink.write(MemorySegment.ofArray(bytes)));
  }

  @Test
  void partsStayForTheSameKeyAlone() {
    Path out = folder.resolve("out.gguf");
    try (Workspace first = Workspace.open(out, "a")) {
      put(first, "x", "1");
    }
    try (Workspace again = Workspace.open(out, "a")) {
      assertTrue(again.has("x"));
      assertEquals("1", new String(again.bytes("x"), StandardCharsets.UTF_8));
    }
    try (Workspace other = Workspace.open(out, "b")) {
      assertFalse(other.has("x"));
    }
  }

  /** Two runs at once would write parts of different models under the same names. */
  @Test
  void isOfOneRunAtATime() {
    Path out = folder.resolve("out.gguf");
    try (Workspace first = Workspace.open(out, "a")) {
      put(first, "x", "1");
      for (String key : new String[] {"a", "b"}) {
        String message =
            assertThrows(WeightFileException.class, () -> Workspace.open(out, key)).getMessage();
        assertTrue(message.contains("another run is writing it"), message);
      }
      assertTrue(first.has("x"));
    }
    try (Workspace again = Workspace.open(out, "a")) {
      assertTrue(again.has("x"));
    }
  }

  @Test
  void leavesNothingThatNobodyNeeds() throws IOException {
    Path partial = folder.resolve("out.gguf.partial");
    Workspace.open(folder.resolve("out.gguf"), "a").close();
    assertFalse(Files.exists(partial));
    Workspace workspace = Workspace.open(folder.resolve("out.gguf"), "a");
    put(workspace, "x", "1");
    workspace.delete();
    workspace.close();
    assertFalse(Files.exists(partial));
    // What somebody else put there is not ours to remove.
    Files.createDirectory(partial);
    Files.writeString(partial.resolve("mine.txt"), "text");
    Workspace beside = Workspace.open(folder.resolve("out.gguf"), "a");
    beside.delete();
    assertTrue(Files.exists(partial.resolve("mine.txt")));
  }
}
