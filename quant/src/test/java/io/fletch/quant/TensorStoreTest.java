package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.io.RandomAccessFile;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Who owns memory, and what happens when it is gone. */
class TensorStoreTest {
  @TempDir Path folder;

  @Test
  void tensorsAreZeroedAndAligned() {
    try (TensorStore store = TensorStore.create()) {
      Tensor small = store.allocate("small", TensorType.F32, 3);
      Tensor large = store.allocate("large", TensorType.I8, 3, 1 << 20);
      assertEquals(0, small.segment().address() % TensorStore.ALIGNMENT);
      assertEquals(0, large.segment().address() % (2 << 20));
      assertArrayEquals(new float[3], Dequantizer.toFloats(small));
      assertEquals(small.segment().address(), small.buffer().memoryAddress());
      assertEquals(12 + (3 << 20), store.bytes());
      Tensor empty = store.allocate("empty", TensorType.Q4_K, 5, 0);
      assertEquals(0, empty.bytes());
      assertEquals(1, store.allocate("scalar", TensorType.F32).elements());
      assertThrows(
          IllegalArgumentException.class, () -> store.allocate("x", TensorType.Q8_0, 32, 31));
      assertThrows(IllegalArgumentException.class, () -> store.allocate("x", TensorType.F32, -1));
      assertThrows(
          ArithmeticException.class,
          () -> store.allocate("x", TensorType.F32, Long.MAX_VALUE, Long.MAX_VALUE));
      assertThrows(IllegalArgumentException.class, () -> store.floats("x", new float[3], 4));
    }
  }

  @Test
  void useAfterCloseIsAnException() {
    TensorStore store = TensorStore.create();
    Tensor t = store.floats("t", new float[] {1, 2}, 2);
    store.close();
    store.close();
    assertThrows(IllegalStateException.class, () -> t.segment().get(ValueLayout.JAVA_BYTE, 0));
    assertThrows(IllegalStateException.class, () -> t.buffer().getByte(0));
    assertThrows(IllegalStateException.class, () -> t.buffer().setByte(0, 1));
    assertThrows(IllegalStateException.class, () -> Dequantizer.toFloats(t));
    assertThrows(IllegalStateException.class, () -> store.allocate("u", TensorType.F32, 1));
    assertEquals(0, store.bytes());
  }

  @Test
  void aRetainedBufferIsReportedAndStaysReadable() {
    TensorStore store = TensorStore.create();
    Tensor kept = store.floats("kept", new float[] {7}, 1);
    Tensor other = store.floats("other", new float[] {8}, 1);
    kept.buffer().getReferenceManager().retain();
    assertThrows(IllegalStateException.class, store::close);
    assertEquals(7, kept.buffer().getFloat(0));
    assertThrows(IllegalStateException.class, () -> other.buffer().getFloat(0));
    kept.buffer().getReferenceManager().release();
    assertThrows(IllegalStateException.class, () -> kept.buffer().getFloat(0));
  }

  @Test
  void closingAFileUnmapsItAlsoWhenOpeningFails() throws IOException {
    Path maps = Path.of("/proc/self/maps");
    assumeTrue(Files.exists(maps), "skipped: no " + maps);
    Path path = folder.resolve("mapped-sample.gguf");
    byte[] bytes = GgufBytes.sample(folder);
    Files.write(path, bytes);
    try (WeightFile file = WeightFile.open(path)) {
      assertEquals(4, file.tensors().size());
      assertTrue(Files.readString(maps).contains("mapped-sample.gguf"));
    }
    assertFalse(Files.readString(maps).contains("mapped-sample.gguf"));
    bytes[4] = 9;
    Files.write(path, bytes);
    assertThrows(WeightFileException.class, () -> WeightFile.open(path));
    assertFalse(Files.readString(maps).contains("mapped-sample.gguf"));
  }

  @Test
  void tensorsLargerThanTwoGigabytes() throws IOException {
    // A sparse file: only the header and the last row take place on the disk.
    long rows = 3L << 20;
    Path path = folder.resolve("large.gguf");
    byte[] header = GgufBytes.start(1, 0).tensor("large", 24, 0, 1024, rows).data(0);
    try (RandomAccessFile file = new RandomAccessFile(path.toFile(), "rw")) {
      file.write(header);
      file.setLength(header.length + rows * 1024);
      file.seek(header.length + rows * 1024 - 1);
      file.write(42);
    }
    try (WeightFile file = WeightFile.open(path)) {
      Tensor t = file.tensor("large").orElseThrow();
      assertEquals(3L << 30, t.bytes());
      assertEquals(3L << 30, t.buffer().capacity());
      assertEquals(42, t.buffer().getByte((3L << 30) - 1));
      float[] row = new float[1024];
      Dequantizer.row(t, rows - 1, row, 0);
      assertEquals(42, row[1023]);
      assertEquals(42, Dequantizer.element(t, (3L << 30) - 1));
      assertThrows(ArithmeticException.class, () -> Dequantizer.toFloats(t));
    }
  }

  @Test
  void severalThreadsReadAtOnce() throws Exception {
    Path path = folder.resolve("a.gguf");
    Files.write(path, GgufBytes.sample(folder));
    try (WeightFile file = WeightFile.open(path)) {
      List<float[]> results =
          List.of(1, 2, 3, 4).parallelStream()
              .map(_ -> Dequantizer.toFloats(file.tensor("q").orElseThrow()))
              .toList();
      for (float[] r : results) {
        assertArrayEquals(results.get(0), r);
        assertNotEquals(0, r[40]);
      }
    }
  }

  @Test
  void theLoggingFacadeOfArrowStaysSilent() {
    TensorStore.create().close();
    assertNull(System.getProperty("slf4j.provider"));
    assertEquals("ERROR", System.getProperty("slf4j.internal.verbosity"));
  }

  @Test
  @SuppressWarnings("try") // closed early on purpose
  void largeTensorsCostMemoryOnlyWhereWrittenAndAreReturned() {
    try (TensorStore store = TensorStore.create()) {
      Tensor t = store.allocate("large", TensorType.I8, 1L << 30);
      t.segment().set(ValueLayout.JAVA_BYTE, (1L << 30) - 1, (byte) 3);
      assertEquals(3, t.buffer().getByte((1L << 30) - 1));
      assertEquals(1L << 30, store.bytes());
      store.close();
      assertEquals(0, store.bytes());
      assertThrows(IllegalStateException.class, () -> t.segment().get(ValueLayout.JAVA_BYTE, 0));
    }
  }

  @Test
  void droppedPagesAreReadAgain() throws IOException {
    Path path = folder.resolve("drop.gguf");
    try (TensorStore store = TensorStore.create()) {
      float[] values = new float[1 << 16];
      for (int i = 0; i < values.length; i++) {
        values[i] = i;
      }
      GgufWriter writer = new GgufWriter();
      writer.add(store.floats("t", values, values.length));
      writer.write(path);
      WeightFile file = WeightFile.open(path);
      assertEquals(List.of(path), file.shards());
      Tensor t = file.tensors().get("t");
      assertArrayEquals(values, Dequantizer.toFloats(t));
      file.dropPages();
      assertArrayEquals(values, Dequantizer.toFloats(t));
      file.close();
      assertThrows(IllegalStateException.class, file::dropPages);
    }
  }
}
