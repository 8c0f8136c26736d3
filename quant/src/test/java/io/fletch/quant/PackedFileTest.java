package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.SplittableRandom;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Only whole, undamaged files of packed weights open, and only such ones get their name. */
class PackedFileTest {
  private static final List<PackedFileWriter.Matrix> MATRICES =
      List.of(
          new PackedFileWriter.Matrix("one", "k", 10_000, 4096),
          new PackedFileWriter.Matrix("two \u00e9", "kernel", 5, 64));

  @TempDir Path folder;

  private Path target() {
    return folder.resolve("x.pack");
  }

  private byte[] content(int matrix) {
    byte[] bytes = new byte[(int) MATRICES.get(matrix).bytes()];
    SplittableRandom random = new SplittableRandom(matrix);
    random.nextBytes(bytes);
    return bytes;
  }

  private void fill(PackedFileWriter writer) throws IOException {
    try (Arena arena = Arena.ofConfined()) {
      for (int i = MATRICES.size() - 1; i >= 0; i--) {
        MemorySegment bytes = arena.allocateFrom(ValueLayout.JAVA_BYTE, content(i));
        PackedFile.Entry e = writer.entries().get(i);
        for (int c = e.chunks() - 1; c >= 0; c--) {
          long from = c * e.chunk();
          writer.write(i, c, bytes.asSlice(from, Math.min(e.chunk(), e.bytes() - from)));
        }
      }
    }
  }

  private PackedFileWriter writer() throws IOException {
    return new PackedFileWriter(target(), folder.resolve(".x.tmp"), "id 7", MATRICES);
  }

  private byte[] written() throws IOException {
    try (PackedFileWriter writer = writer()) {
      fill(writer);
      writer.finish();
      writer.publish();
    }
    return Files.readAllBytes(target());
  }

  private static boolean intact(PackedFile file) {
    for (int i = 0; i < file.entries().size(); i++) {
      for (int c = 0; c < file.entries().get(i).chunks(); c++) {
        if (!file.verify(i, c)) {
          return false;
        }
      }
    }
    return true;
  }

  @Test
  void whatWasWrittenIsRead() throws IOException {
    written();
    try (PackedFile file = PackedFile.open(target())) {
      assertEquals("id 7", file.identity());
      assertEquals(2, file.entries().size());
      assertEquals(PackedFile.DATA, file.entries().getFirst().offset());
      for (int i = 0; i < 2; i++) {
        assertEquals(MATRICES.get(i).name(), file.entries().get(i).name());
        assertEquals(MATRICES.get(i).kernel(), file.entries().get(i).kernel());
        assertEquals(0, file.entries().get(i).offset() % PackedFile.ALIGNMENT);
        Tensor t = file.tensor(i);
        assertTrue(Arrays.equals(content(i), t.segment().toArray(ValueLayout.JAVA_BYTE)));
        assertEquals(t.segment().address(), t.buffer().memoryAddress());
      }
      assertTrue(intact(file));
    }
    try (Stream<Path> files = Files.list(folder)) {
      assertEquals(List.of(target()), files.toList());
    }
  }

  @Test
  void tensorsDieWithTheirFile() throws IOException {
    written();
    PackedFile file = PackedFile.open(target());
    Tensor t = file.tensor(0);
    file.close();
    file.close();
    assertThrows(IllegalStateException.class, () -> t.segment().get(ValueLayout.JAVA_BYTE, 0));
  }

  @Test
  void aCrashWhileWritingLeavesNothingThatOpens() throws IOException {
    Path temporary = folder.resolve(".x.tmp");
    try (PackedFileWriter writer = writer()) {
      assertThrows(WeightFileException.class, () -> PackedFile.open(temporary));
      fill(writer);
      assertThrows(WeightFileException.class, () -> PackedFile.open(temporary));
      assertThrows(IllegalStateException.class, writer::publish);
      writer.finish();
      try (PackedFile early = PackedFile.open(temporary)) {
        writer.publish();
        assertTrue(intact(early));
        assertFalse(Files.exists(temporary));
      }
    }
    Files.delete(target());
    try (PackedFileWriter writer = writer()) {
      fill(writer);
    }
    assertFalse(Files.exists(target()));
    assertFalse(Files.exists(temporary));
  }

  @Test
  void truncatedFilesDoNotOpen() throws IOException {
    byte[] whole = written();
    int header = PackedFile.header("id 7", 0, List.of(), List.of()).length + 200;
    try (FileChannel file = FileChannel.open(target(), StandardOpenOption.WRITE)) {
      file.write(ByteBuffer.allocate(1), whole.length);
      assertRefused("one byte more");
      file.truncate(whole.length);
      PackedFile.open(target()).close();
      List<Integer> lengths = new ArrayList<>();
      for (int n = 0; n < whole.length; n += n < header ? 1 : 100_003) {
        lengths.add(n);
      }
      int data = Math.toIntExact(PackedFile.DATA);
      lengths.addAll(List.of(data, data + 10_000, whole.length - 1));
      // Each shorter than the one before.
      lengths.sort(Comparator.reverseOrder());
      for (int n : lengths) {
        file.truncate(n);
        assertRefused("length " + n);
      }
    }
  }

  @Test
  void everyFlippedByteIsFound() throws IOException {
    byte[] whole = written();
    long dataFrom = PackedFile.DATA;
    int header = whole[12] & 255 | (whole[13] & 255) << 8;
    for (int i = 0; i < header; i++) {
      overwrite(i, (byte) (whole[i] ^ 1 << i % 8));
      assertRefused("header byte " + i);
      overwrite(i, whole[i]);
    }
    SplittableRandom random = new SplittableRandom(5);
    for (int k = 0; k < 200; k++) {
      int at = (int) dataFrom + random.nextInt(10_000);
      overwrite(at, (byte) (whole[at] ^ 1 << random.nextInt(8)));
      try (PackedFile file = PackedFile.open(target())) {
        assertFalse(intact(file));
      }
      overwrite(at, whole[at]);
    }
    try (PackedFile file = PackedFile.open(target())) {
      assertTrue(intact(file));
    }
  }

  /** Writes bytes over those at a place of the file. */
  private void overwrite(int at, byte... bytes) throws IOException {
    try (FileChannel file = FileChannel.open(target(), StandardOpenOption.WRITE)) {
      file.write(ByteBuffer.wrap(bytes), at);
    }
  }

  /** Nothing of a header is believed because its checksum is right. */
  @Test
  void lyingHeadersAreRefused() throws IOException {
    byte[] whole = written();
    int header = whole[12] & 255 | (whole[13] & 255) << 8;
    SplittableRandom random = new SplittableRandom(9);
    int refused = 0;
    for (int k = 0; k < 3000; k++) {
      byte[] damaged = Arrays.copyOf(whole, header);
      int at = PackedFile.CHECKED_FROM + random.nextInt(header - PackedFile.CHECKED_FROM);
      damaged[at] = (byte) random.nextInt();
      java.util.zip.CRC32C crc = new java.util.zip.CRC32C();
      int claimed = damaged[12] & 255 | (damaged[13] & 255) << 8;
      int checked = Math.max(0, claimed - PackedFile.CHECKED_FROM);
      crc.update(
          damaged, PackedFile.CHECKED_FROM, Math.min(checked, header - PackedFile.CHECKED_FROM));
      // A longer header than there is takes in what comes behind it.
      crc.update(whole, header, Math.max(0, claimed - header));
      for (int b = 0; b < 4; b++) {
        damaged[8 + b] = (byte) (crc.getValue() >>> 8 * b);
      }
      overwrite(0, damaged);
      try (PackedFile file = PackedFile.open(target())) {
        // A changed name or checksum is no lie about the structure.
        intact(file);
      } catch (WeightFileException e) {
        assertTrue(e.getMessage().contains("expected="), e.getMessage());
        refused++;
      }
    }
    assertTrue(refused > 500, "refused " + refused);
  }

  private void assertRefused(String what) {
    assertThrows(WeightFileException.class, () -> PackedFile.open(target()).close(), what);
  }
}
