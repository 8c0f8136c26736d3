package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Fletch Arrow files: round trips and damage (specs weights 6, properties 11 to 13). */
class ArrowFileTest {
  @TempDir Path folder;

  private Path sample() {
    Path path = folder.resolve("sample.arrow");
    try (TensorStore store = TensorStore.create()) {
      ArrowWriter writer =
          new ArrowWriter()
              .put("general.architecture", "llama")
              .put("llama.block_count", 2L)
              .put("llama.rope.freq_base", 10000f)
              .put("llama.eps", 1e-5f)
              .put("tokenizer.ggml.tokens", List.of("a", "\u00e9\ud83d\ude00", "\"quoted\"\n"))
              .put("tokenizer.ggml.scores", List.of(0.5f, -1f, 0f))
              .put("flag", true);
      SplittableRandom random = new SplittableRandom(1);
      for (TensorType type : TensorType.values()) {
        Tensor t = store.allocate("t." + type, type, 3, 2L * type.blockSize());
        for (long i = 0; i < t.bytes(); i++) {
          t.segment().set(ValueLayout.JAVA_BYTE, i, (byte) random.nextInt());
        }
        writer.tensor(t);
      }
      writer.tensor(store.allocate("empty", TensorType.F32, 0, 4));
      writer.tensor(store.floats("scalar", new float[] {7}));
      writer.tensor(store.allocate("large", TensorType.F16, 64, 1024));
      writer.write(path);
    }
    return path;
  }

  @Test
  void whatWasWrittenIsReadAndAligned() {
    Path path = sample();
    SplittableRandom random = new SplittableRandom(1);
    try (WeightFile file = WeightFile.open(path)) {
      assertEquals(WeightFile.Format.ARROW, file.format());
      Metadata m = file.metadata();
      assertEquals("llama", m.string("general.architecture").orElseThrow());
      assertEquals(2, m.integer("llama.block_count").orElseThrow());
      assertEquals(1e-5f, m.number("llama.eps").orElseThrow().floatValue());
      assertEquals(true, m.bool("flag").orElseThrow());
      assertArrayEquals(
          new String[] {"a", "\u00e9\ud83d\ude00", "\"quoted\"\n"},
          m.strings("tokenizer.ggml.tokens").orElseThrow());
      assertArrayEquals(new float[] {0.5f, -1, 0}, m.floats("tokenizer.ggml.scores").orElseThrow());
      for (TensorType type : TensorType.values()) {
        Tensor t = file.tensor("t." + type).orElseThrow();
        assertEquals(type, t.type());
        assertArrayEquals(new long[] {3, 2L * type.blockSize()}, t.shape());
        assertEquals(0, t.segment().address() % 64, "alignment of " + t);
        for (long i = 0; i < t.bytes(); i++) {
          assertEquals((byte) random.nextInt(), t.segment().get(ValueLayout.JAVA_BYTE, i));
        }
      }
      assertEquals(0, file.tensor("empty").orElseThrow().elements());
      assertEquals(7, Dequantizer.element(file.tensor("scalar").orElseThrow(), 0));
      assertEquals(0, file.tensor("large").orElseThrow().segment().address() % 4096);
      assertEquals(TensorType.values().length + 3, file.tensors().size());
    }
  }

  @Test
  void anInterruptedWriteLeavesNoFile() throws IOException {
    Path path = folder.resolve("broken.arrow");
    ArrowWriter writer =
        new ArrowWriter()
            .tensor(
                "x",
                TensorType.F32,
                new long[] {4},
                sink -> {
                  throw new IOException("disk gone");
                });
    assertThrows(UncheckedIOException.class, () -> writer.write(path));
    assertFalse(Files.exists(path));
    ArrowWriter wrong = new ArrowWriter().tensor("x", TensorType.F32, new long[] {4}, sink -> {});
    assertThrows(IllegalStateException.class, () -> wrong.write(path));
    try (var left = Files.list(folder)) {
      assertEquals(0, left.count());
    }
  }

  @Test
  void damagedFilesFailWithAClearMessageOrCanBeUsed() throws IOException {
    byte[] original = Files.readAllBytes(sample());
    Path path = folder.resolve("mutant.arrow");
    SplittableRandom random = new SplittableRandom(3);
    int usable = 0;
    int tries = 300;
    // Most bytes are data; what is at the ends and in the message is what can do harm.
    int meta = original.length - indexOfFooter(original);
    for (int i = 0; i < tries; i++) {
      byte[] bytes = original.clone();
      for (int k = 1 + random.nextInt(2); k > 0; k--) {
        int at =
            switch (random.nextInt(3)) {
              case 0 -> random.nextInt(12 << 10);
              default -> original.length - 1 - random.nextInt(meta);
            };
        bytes[at] =
            switch (random.nextInt(4)) {
              case 0 -> (byte) 0xff;
              case 1 -> 0;
              case 2 -> (byte) (bytes[at] ^ 1 << random.nextInt(8));
              default -> (byte) random.nextInt();
            };
      }
      if (random.nextInt(20) == 0) {
        bytes = Arrays.copyOf(bytes, random.nextInt(bytes.length));
      }
      Files.write(path, bytes);
      try (WeightFile file = WeightFile.open(path)) {
        for (Tensor t : file.tensors().values()) {
          for (long e = 0; e < t.elements(); e += 97) {
            Dequantizer.element(t, e);
          }
        }
        usable++;
      } catch (WeightFileException e) {
        assertTrue(e.getMessage().startsWith(path.toString()), e.getMessage());
      }
    }
    assertTrue(usable > 0 && usable < tries, "usable " + usable);
  }

  private static int indexOfFooter(byte[] file) {
    int n = file.length;
    return n
        - 10
        - (file[n - 10] & 255
            | (file[n - 9] & 255) << 8
            | (file[n - 8] & 255) << 16
            | (file[n - 7] & 255) << 24);
  }

  @Test
  void everyPrefixIsRefused() throws IOException {
    byte[] original = Files.readAllBytes(sample());
    Path path = folder.resolve("prefix.arrow");
    for (int length = 6; length < original.length; length += length < 200 ? 1 : 4099) {
      Files.write(path, Arrays.copyOf(original, length));
      assertThrows(WeightFileException.class, () -> WeightFile.open(path).close(), "" + length);
    }
  }

  private List<Path> split() {
    try (TensorStore store = TensorStore.create()) {
      ArrowWriter writer = new ArrowWriter().put("general.architecture", "llama");
      for (int i = 0; i < 7; i++) {
        float[] values = new float[100];
        Arrays.fill(values, i);
        writer.tensor(store.floats("t" + i, values, 10, 10));
      }
      return writer.writeSplit(folder.resolve("m.arrow"), 1000);
    }
  }

  @Test
  void shardsAreOneModelAndVerified() {
    List<Path> files = split();
    assertEquals(4, files.size());
    assertEquals("m-00001-of-00004.arrow", files.getFirst().getFileName().toString());
    try (WeightFile file = WeightFile.open(files.getFirst())) {
      assertEquals(files, file.shards());
      assertEquals("llama", file.metadata().string("general.architecture").orElseThrow());
      assertEquals(7, file.tensors().size());
      for (int i = 0; i < 7; i++) {
        assertEquals(i, Dequantizer.element(file.tensor("t" + i).orElseThrow(), 99));
      }
      assertEquals(7 * 400, file.verify());
    }
  }

  private static String failure(Path path) {
    return assertThrows(WeightFileException.class, () -> WeightFile.open(path).close())
        .getMessage();
  }

  @Test
  void shardsThatDoNotBelongTogetherAreRefused() throws IOException {
    List<Path> files = split();
    assertTrue(failure(files.get(1)).contains("open the first shard instead: m-00001-of-00004"));
    // A bit of a weight shows when it is asked for, one of the structure at once.
    byte[] good = Files.readAllBytes(files.get(2));
    byte[] bad = good.clone();
    int at = 0;
    while (bad[at] != 0 || bad[at + 1] != 0 || bad[at + 2] != (byte) 0x80 || bad[at + 3] != 0x40) {
      at++;
    }
    bad[at] ^= 1;
    Files.write(files.get(2), bad);
    try (WeightFile file = WeightFile.open(files.getFirst())) {
      String message = assertThrows(WeightFileException.class, file::verify).getMessage();
      assertTrue(message.contains("m-00003-of-00004.arrow: SHA-256 of the tensors"), message);
    }
    Files.write(files.get(2), Files.readAllBytes(files.get(1)));
    assertTrue(failure(files.getFirst()).contains("SHA-256 of the footer"));
    Files.delete(files.get(2));
    assertTrue(failure(files.getFirst()).contains("shard 3 of 4 is missing"));
    Files.write(files.get(2), good);
    Path renamed = folder.resolve("other.arrow");
    Files.move(files.getFirst(), renamed);
    assertTrue(failure(renamed).contains("PREFIX-00001-of-00004.arrow"));
  }

  @Test
  void aFailingShardLeavesNoFirstOne() {
    ArrowWriter writer = new ArrowWriter();
    for (int i = 0; i < 3; i++) {
      int n = i;
      writer.tensor(
          "t" + i,
          TensorType.F32,
          new long[] {4},
          sink -> {
            if (n == 0) {
              throw new IOException("full");
            }
            sink.write(java.lang.foreign.MemorySegment.ofArray(new byte[16]));
          });
    }
    assertThrows(
        UncheckedIOException.class, () -> writer.writeSplit(folder.resolve("f.arrow"), 16));
    assertEquals(0, folder.toFile().list().length);
  }
}
