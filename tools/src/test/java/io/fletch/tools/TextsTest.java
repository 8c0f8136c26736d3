package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class TextsTest {
  @TempDir Path folder;

  @Test
  void strictReadingNamesTheFileAndTheByteThatIsNotUtf8() throws IOException {
    Path file = folder.resolve("t.txt");
    Files.write(file, new byte[] {'a', (byte) 0xC3, (byte) 0xA9, (byte) 0xFF, 'b'});
    CommandException e = assertThrows(CommandException.class, () -> Texts.readStrict(file));
    assertEquals(file + ": not valid UTF-8 at byte 3", e.getMessage());
    Files.write(file, new byte[] {'a', (byte) 0xE2, (byte) 0x82});
    assertThrows(
        CommandException.class, () -> Texts.readStrict(file), "a sequence that is cut off");
    Files.writeString(file, "é€𝄞");
    assertEquals("é€𝄞", Texts.readStrict(file));
    Files.writeString(file, "");
    assertEquals("", Texts.readStrict(file));
  }

  @Test
  void aFolderIsNamed() {
    CommandException e = assertThrows(CommandException.class, () -> Texts.readStrict(folder));
    assertEquals(folder + ": expected=a file actual=a folder", e.getMessage());
  }
}
