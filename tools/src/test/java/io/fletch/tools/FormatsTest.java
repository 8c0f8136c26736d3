package io.fletch.tools;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Files and texts that other programs read. */
class FormatsTest {
  @Test
  void npyIsWhatNumpyWrites(@TempDir Path folder) throws IOException {
    Path file = folder.resolve("x.npy");
    Npy.write(file, new float[][] {{1, -2.5f}, {Float.NaN, 0}, {3, Float.MAX_VALUE}});
    ByteBuffer bytes = ByteBuffer.wrap(Files.readAllBytes(file)).order(ByteOrder.LITTLE_ENDIAN);
    byte[] magic = new byte[8];
    bytes.get(magic);
    assertArrayEquals(new byte[] {(byte) 0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0}, magic);
    byte[] header = new byte[bytes.getShort()];
    bytes.get(header);
    // numpy.save of the same array pads to 128 bytes in all with this very text.
    assertEquals(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }",
        new String(header, StandardCharsets.US_ASCII).strip());
    assertEquals('\n', header[header.length - 1]);
    assertEquals(0, bytes.position() % 64);
    float[] data = new float[6];
    bytes.asFloatBuffer().get(data);
    assertArrayEquals(new float[] {1, -2.5f, Float.NaN, 0, 3, Float.MAX_VALUE}, data);
    assertEquals(bytes.position() + 24, bytes.limit());
  }

  @Test
  void npyRefusesRaggedRows(@TempDir Path folder) {
    assertThrows(
        IllegalArgumentException.class,
        () -> Npy.write(folder.resolve("x.npy"), new float[][] {{1}, {1, 2}}));
  }

  @Test
  void idsAreReadInAllCommonForms() {
    int[] expected = {1, 20, 300};
    for (String text : new String[] {"1,20,300", "1 20 300\n", " 1, 20,\t300 ", "[1, 20, 300]"}) {
      assertArrayEquals(expected, Ids.parse(text), text);
    }
    assertEquals("1 20 300", Ids.format(expected));
    for (String text : new String[] {"", " ", "[]", "1,,x", "1.5", "99999999999"}) {
      assertThrows(UsageException.class, () -> Ids.parse(text), text);
    }
    assertThrows(CommandException.class, () -> Ids.check(expected, 300));
    assertThrows(CommandException.class, () -> Ids.check(new int[] {-1}, 300));
    Ids.check(expected, 301);
  }

  @Test
  void sizesAndCountsHaveUnits() {
    assertEquals("0 B", Texts.bytes(0));
    assertEquals("1023 B", Texts.bytes(1023));
    assertEquals("1.0 KiB", Texts.bytes(1024));
    assertEquals("5.1 MiB", Texts.bytes(5_313_536));
    assertEquals("999", Texts.count(999));
    assertEquals("1.0 k", Texts.count(1000));
    assertEquals("1.0 M", Texts.count(1_000_000));
    assertEquals("5.0 M", Texts.count(4_986_112));
    assertEquals("8.0 G", Texts.count(8_000_000_000L));
  }

  @Test
  void jsonHasNoNumbersThatAreNone() {
    assertEquals(null, Json.rounded(Double.NaN));
    assertEquals(null, Json.rounded(Double.POSITIVE_INFINITY));
    assertEquals(0.333, Json.rounded(1 / 3.0));
    assertEquals(null, Json.finite(Double.NEGATIVE_INFINITY));
    assertEquals(-1.25, Json.finite(-1.25));
  }
}
