package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

class GgufFileTest {
  @TempDir Path folder;

  private Path write(String name, byte[] bytes) throws IOException {
    return Files.write(folder.resolve(name), bytes);
  }

  @Test
  void readsEveryKindOfField() throws IOException {
    try (WeightFile file = WeightFile.open(write("a.gguf", GgufBytes.sample(folder)))) {
      Metadata m = file.metadata();
      assertEquals("llama", m.string("general.architecture").orElseThrow());
      assertEquals(200, m.integer("u8").orElseThrow());
      assertEquals(-100, m.integer("i8").orElseThrow());
      assertEquals(60000, m.integer("u16").orElseThrow());
      assertEquals(-30000, m.integer("i16").orElseThrow());
      assertEquals(-5, m.integer("i32").orElseThrow());
      assertEquals(1L << 60, m.integer("u64").orElseThrow());
      assertEquals(Long.MIN_VALUE, m.integer("i64").orElseThrow());
      assertEquals((double) 0.1f, m.number("f32").orElseThrow());
      assertEquals(0.1, m.number("f64").orElseThrow());
      assertEquals(true, m.bool("bool").orElseThrow());
      assertArrayEquals(new String[] {"a", "", "ü", "\uFFFD"}, m.strings("strings").orElseThrow());
      assertArrayEquals(new byte[] {-1}, m.bytes("strings").orElseThrow()[3]);
      assertEquals(List.of(true, false), m.entries().get("bools"));
      for (GgufType type : GgufType.values()) {
        if (type.isInteger()) {
          assertArrayEquals(new long[] {1, 2, 3}, m.integers("array." + type).orElseThrow());
        }
        if (type.isInteger() || type.isFloat()) {
          assertArrayEquals(new float[] {1, 2, 3}, m.floats("array." + type).orElseThrow());
        }
      }
      assertEquals(0, m.integers("none").orElseThrow().length);
      assertArrayEquals(new long[] {200}, m.integers("u8").orElseThrow());
      assertArrayEquals(new float[] {200}, m.floats("u8").orElseThrow());
      assertFalse(m.has("absent"));
      assertTrue(m.string("absent").isEmpty() && m.integers("absent").isEmpty());
      assertTrue(m.floats("absent").isEmpty() && m.bytes("absent").isEmpty());

      assertEquals(List.of("q", "f", "scalar", "empty"), List.copyOf(file.tensors().keySet()));
      assertArrayEquals(new long[] {2, 256}, file.tensor("q").orElseThrow().shape());
      assertArrayEquals(new long[] {1, 2, 1, 3}, file.tensor("f").orElseThrow().shape());
      assertArrayEquals(
          new float[] {1, 2, 3, 4, 5, 6}, Dequantizer.toFloats(file.tensor("f").orElseThrow()));
      assertEquals(0, file.tensor("scalar").orElseThrow().rank());
      assertEquals(0, file.tensor("empty").orElseThrow().bytes());
      // Buffer and segment are the same bytes, and writing them changes neither file nor process.
      Tensor q = file.tensor("q").orElseThrow();
      assertEquals(q.segment().address(), q.buffer().memoryAddress());
      q.buffer().setByte(0, 7);
      assertEquals(7, q.segment().get(ValueLayout.JAVA_BYTE, 0));
    }
  }

  @Test
  void anotherTypeThanAskedForNamesBoth() throws IOException {
    try (WeightFile file = WeightFile.open(write("a.gguf", GgufBytes.sample(folder)))) {
      Metadata m = file.metadata();
      for (Consumer<Metadata> wrong :
          List.<Consumer<Metadata>>of(
              x -> x.string("u8"),
              x -> x.integer("f32"),
              x -> x.integer("bool"),
              x -> x.number("general.architecture"),
              x -> x.bool("u8"),
              x -> x.integers("strings"),
              x -> x.integers("array.FLOAT32"),
              x -> x.floats("bools"),
              x -> x.strings("array.UINT8"),
              x -> x.bytes("general.architecture"),
              x -> x.integer("array.UINT8"))) {
        assertThrows(WeightFileException.class, () -> wrong.accept(m));
      }
      WeightFileException e =
          assertThrows(WeightFileException.class, () -> m.integer("array.UINT8"));
      assertTrue(
          e.getMessage().contains("key array.UINT8: expected=integer within 64 bits")
              && e.getMessage().contains("actual=UINT8[3]"),
          e.getMessage());
    }
    byte[] big = bytes(GgufBytes.start(0, 1).key("big", 10), -1L);
    Metadata m = GgufBytes.read(big).metadata();
    assertThrows(WeightFileException.class, () -> m.integer("big"));
    assertEquals(0x1p64, m.number("big").orElseThrow());
  }

  private static byte[] bytes(GgufBytes start, long value) {
    start.raw().u64(value);
    return start.data(0);
  }

  @Test
  void acceptsWhatTheFormatAllows() {
    assertEquals(0, GgufBytes.read(GgufBytes.start(0, 0).data(0)).tensors().size());
    GgufReader.Header v2 =
        GgufBytes.read(GgufBytes.start(GgufReader.MAGIC, 2, 1, 0).tensor("a", 0, 0, 3, 2).data(24));
    assertArrayEquals(new long[] {2, 3}, v2.tensors().get(0).shape());
    // The last tensor need not be padded; a type that is only known by size keeps its place.
    GgufReader.Header two =
        GgufBytes.read(
            GgufBytes.start(2, 0).tensor("iq", 16, 0, 256).tensor("a", 0, 96, 1).data(100));
    assertNull(two.tensors().get(0).type());
    assertEquals("IQ2_XXS", two.tensors().get(0).typeName());
    assertEquals(66, two.tensors().get(0).bytes());
  }

  private static Arguments bad(String message, byte[] file) {
    return Arguments.of(message, file);
  }

  private static Arguments badValue(String message, int type, Consumer<LittleEndianBytes> value) {
    GgufBytes file = GgufBytes.start(0, 1).key("k", type);
    value.accept(file.raw());
    return bad(message, file.data(0));
  }

  private static Arguments badTensor(String message, int type, long offset, long... axes) {
    return bad(message, GgufBytes.start(1, 0).tensor("t", type, offset, axes).data(4096));
  }

  private static byte[] alignment(int value) {
    return GgufBytes.start(1, 1).u32("general.alignment", value).tensor("a", 0, 0, 1).data(4096);
  }

  static Stream<Arguments> hostileFiles() {
    List<Arguments> all = new ArrayList<>();
    all.add(bad("magic", GgufBytes.start(0x46554748, 3, 0, 0).data(0)));
    all.add(bad("big-endian", GgufBytes.start(GgufReader.MAGIC, 3 << 24, 0, 0).data(0)));
    all.add(bad("version", GgufBytes.start(GgufReader.MAGIC, 1, 0, 0).data(0)));
    all.add(bad("version", GgufBytes.start(GgufReader.MAGIC, 4, 0, 0).data(0)));
    for (long n : new long[] {-1, 1, 1_000_001, 1L << 31, Long.MAX_VALUE, Long.MIN_VALUE}) {
      all.add(bad("tensor count", GgufBytes.start(n, 0).data(0)));
      all.add(bad("key/value count", GgufBytes.start(0, n).data(0)));
      all.add(badValue("element count", 9, v -> v.u32(4).u64(n)));
      all.add(badValue("string", 8, v -> v.u64(n)));
    }
    all.add(bad("key length", GgufBytes.start(0, 1).u32("", 1).data(0)));
    all.add(bad("key length", GgufBytes.start(0, 1).u32("x".repeat(65536), 1).data(0)));
    all.add(bad("each key once", GgufBytes.start(0, 2).u32("k", 1).u32("k", 1).data(0)));
    all.add(badValue("value type", 13, v -> v.u64(0)));
    all.add(badValue("value type", -1, v -> v.u64(0)));
    all.add(badValue("element type", 9, v -> v.u32(9).u64(0)));
    all.add(badValue("element type", 9, v -> v.u32(13).u64(0)));
    all.add(badValue("bool", 7, v -> v.u8(2)));
    all.add(badValue("bool", 9, v -> v.u32(7).u64(2).u8(1).u8(255)));
    for (int value : new int[] {0, 3, 4, 1 << 31, -1}) {
      all.add(bad(value == 1 << 31 ? "end of tensor" : "alignment", alignment(value)));
    }
    all.add(
        bad("general.alignment type", GgufBytes.start(0, 1).u16("general.alignment", 32).data(0)));
    all.add(bad("name length", GgufBytes.start(1, 0).tensor("", 0, 0, 1).data(64)));
    all.add(bad("name length", GgufBytes.start(1, 0).tensor("x".repeat(64), 0, 0, 1).data(64)));
    all.add(
        bad(
            "each name once",
            GgufBytes.start(2, 0).tensor("a", 0, 0, 1).tensor("a", 0, 32, 1).data(64)));
    all.add(badTensor("number of axes", 0, 0, 1, 1, 1, 1, 1));
    all.add(badTensor("size of axis 1", 0, 0, 1, -1));
    all.add(badTensor("number of elements", 0, 0, 1L << 32, 1L << 31));
    all.add(badTensor("number of elements", 0, 0, 1L << 62, 0, 1L << 62));
    all.add(badTensor("number of bytes", 0, 0, Long.MAX_VALUE));
    all.add(badTensor("number of bytes", 0, 0, 1L << 61));
    all.add(badTensor("number of bytes", 0, 0, 1L << 40));
    all.add(badTensor("multiple of 32", 2, 0, 33));
    all.add(badTensor("multiple of 256", 12, 0, 32, 8));
    for (int type : new int[] {4, 5, 31, 32, 33, 36, 37, 38, 43, -1, Integer.MAX_VALUE}) {
      all.add(badTensor("type", type, 0, 256));
    }
    for (long offset : new long[] {32, -32, 1, Long.MAX_VALUE, Long.MIN_VALUE}) {
      all.add(badTensor("offset", 0, offset, 1));
    }
    for (long second : new long[] {0, 4, 31, 64}) {
      all.add(
          bad(
              "offset",
              GgufBytes.start(2, 0).tensor("a", 0, 0, 1).tensor("b", 0, second, 1).data(128)));
    }
    all.add(bad("end of tensor a", GgufBytes.start(1, 0).tensor("a", 0, 0, 16).data(63)));
    return all.stream();
  }

  @ParameterizedTest(name = "{index} {0}")
  @MethodSource("hostileFiles")
  void refusesHostileFiles(String message, byte[] file) {
    WeightFileException e = assertThrows(WeightFileException.class, () -> GgufBytes.read(file));
    assertTrue(
        e.getMessage().contains(message) && e.getMessage().contains("expected="), e.getMessage());
  }

  @Test
  void filesThatAreNotThere() throws IOException {
    assertThrows(UncheckedIOException.class, () -> WeightFile.open(folder.resolve("x.gguf")));
    assertThrows(WeightFileException.class, () -> WeightFile.open(write("e.gguf", new byte[0])));
    assertThrows(WeightFileException.class, () -> WeightFile.open(folder));
  }

  @Test
  void unsupportedTypesAreReportedWhenUsed() throws IOException {
    byte[] bytes = GgufBytes.start(1, 0).tensor("iq", 16, 0, 256, 2).data(132);
    try (WeightFile file = WeightFile.open(write("iq.gguf", bytes))) {
      assertEquals(
          Map.of("iq", new UnsupportedTensor("iq", "IQ2_XXS", List.of(2L, 256L), 132)),
          file.unsupported());
      assertThrows(WeightFileException.class, () -> file.tensor("iq"));
    }
  }

  private List<Path> writeSplit() {
    try (TensorStore store = TensorStore.create()) {
      GgufWriter writer = new GgufWriter().put("general.architecture", "llama");
      for (int i = 0; i < 7; i++) {
        writer.add(store.floats("t" + i, new float[] {i, 2 * i}, 2));
      }
      return writer.writeSplit(folder.resolve("m.gguf"), 64);
    }
  }

  @Test
  void readsSplitFiles() {
    List<Path> files = writeSplit();
    assertEquals(4, files.size());
    assertEquals("m-00001-of-00004.gguf", files.get(0).getFileName().toString());
    try (WeightFile file = WeightFile.open(files.get(0))) {
      assertEquals(7, file.tensors().size());
      assertEquals("llama", file.metadata().string("general.architecture").orElseThrow());
      assertEquals(12, Dequantizer.toFloats(file.tensor("t6").orElseThrow())[1]);
      Path joined = folder.resolve("joined.gguf");
      GgufWriter writer = new GgufWriter().putAll(file.metadata());
      file.tensors().values().forEach(writer::add);
      writer.write(joined);
      try (WeightFile one = WeightFile.open(joined)) {
        assertEquals(file.tensors().keySet(), one.tensors().keySet());
        assertEquals(
            List.of("general.architecture"), List.copyOf(one.metadata().entries().keySet()));
      }
    }
  }

  @Test
  void refusesSplitFilesThatDoNotFitTogether() throws IOException {
    List<Path> files = writeSplit();
    String notFirst =
        assertThrows(WeightFileException.class, () -> WeightFile.open(files.get(2))).getMessage();
    assertTrue(notFirst.contains("m-00001-of-00004.gguf"), notFirst);

    byte[] second = Files.readAllBytes(files.get(1));
    byte[] third = Files.readAllBytes(files.get(2));
    Files.write(files.get(1), third);
    Files.write(files.get(2), second);
    assertThrows(WeightFileException.class, () -> WeightFile.open(files.get(0)));
    Files.write(files.get(1), second);
    Files.write(files.get(2), second);
    assertThrows(WeightFileException.class, () -> WeightFile.open(files.get(0)));
    Files.delete(files.get(2));
    String missing =
        assertThrows(WeightFileException.class, () -> WeightFile.open(files.get(0))).getMessage();
    assertTrue(missing.contains("m-00003-of-00004.gguf"), missing);
    Files.write(files.get(2), third);
    WeightFile.open(files.get(0)).close();

    Path renamed = folder.resolve("other.gguf");
    Files.copy(files.get(0), renamed);
    assertThrows(WeightFileException.class, () -> WeightFile.open(renamed));
  }

  @Test
  void refusesAWrongNumberOfTensorsAndNamesInTwoShards() throws IOException {
    for (int total : new int[] {1, 3}) {
      write("s-00001-of-00002.gguf", shard(0, total, "a"));
      write("s-00002-of-00002.gguf", shard(1, total, "b"));
      WeightFileException e =
          assertThrows(
              WeightFileException.class,
              () -> WeightFile.open(folder.resolve("s-00001-of-00002.gguf")));
      assertTrue(e.getMessage().contains("split.tensors.count"), e.getMessage());
    }
    write("s-00001-of-00002.gguf", shard(0, 2, "a"));
    write("s-00002-of-00002.gguf", shard(1, 2, "a"));
    WeightFileException e =
        assertThrows(
            WeightFileException.class,
            () -> WeightFile.open(folder.resolve("s-00001-of-00002.gguf")));
    assertTrue(e.getMessage().contains("in one shard only"), e.getMessage());
  }

  private static byte[] shard(int number, int total, String tensor) {
    GgufBytes file = GgufBytes.start(1, 3).u16("split.no", number).u16("split.count", 2);
    file.key("split.tensors.count", 5).raw().u32(total);
    return file.tensor(tensor, 0, 0, 1).data(32);
  }

  @Test
  void aFailedWriteLeavesNothing() throws IOException {
    Path target = write("kept.gguf", new byte[] {1});
    GgufWriter broken =
        new GgufWriter()
            .add(
                "t",
                TensorType.F32,
                new long[] {4},
                sink -> {
                  throw new IOException("source");
                });
    assertThrows(UncheckedIOException.class, () -> broken.write(target));
    for (int size : new int[] {0, 12, 20}) {
      GgufWriter wrong =
          new GgufWriter()
              .add(
                  "t",
                  TensorType.F32,
                  new long[] {4},
                  sink -> sink.write(MemorySegment.ofArray(new byte[size])));
      assertThrows(IllegalStateException.class, () -> wrong.write(target));
      assertThrows(
          IllegalStateException.class, () -> wrong.writeSplit(folder.resolve("s.gguf"), 1));
    }
    try (Stream<Path> files = Files.list(folder)) {
      assertEquals(List.of(target), files.toList());
    }
    assertArrayEquals(new byte[] {1}, Files.readAllBytes(target));
  }

  @Test
  void anUnfinishedFileDoesNotOpen() throws IOException {
    List<Path> seen = new ArrayList<>();
    GgufWriter writer = new GgufWriter();
    writer.add(
        "t",
        TensorType.I8,
        new long[] {2},
        sink -> {
          sink.write(MemorySegment.ofArray(new byte[2]));
          try (Stream<Path> files = Files.list(folder)) {
            files.filter(f -> f.toString().endsWith(".tmp")).forEach(seen::add);
          }
          assertEquals(1, seen.size());
          assertThrows(WeightFileException.class, () -> WeightFile.open(seen.get(0)));
        });
    writer.write(folder.resolve("t.gguf"));
    assertFalse(Files.exists(seen.get(0)));
    WeightFile.open(folder.resolve("t.gguf")).close();
  }

  @Test
  void theWriterRefusesWhatTheReaderWould() {
    GgufWriter w = new GgufWriter().add("a", TensorType.F32, new long[] {1}, sink -> {});
    TensorSource none = sink -> {};
    long[] one = {1};
    for (Runnable wrong :
        List.<Runnable>of(
            () -> w.add("a", TensorType.F32, one, none),
            () -> w.add("", TensorType.F32, one, none),
            () -> w.add("x".repeat(64), TensorType.F32, one, none),
            () -> w.add("b", TensorType.F32, new long[5], none),
            () -> w.add("b", TensorType.F32, new long[] {-1}, none),
            () -> w.add("b", TensorType.Q4_0, new long[] {31}, none),
            () -> w.add("b", TensorType.Q4_0, new long[] {32, 3}, none),
            () -> w.put("", 1),
            () -> w.put("x".repeat(65536), 1),
            () -> w.put("k", GgufType.UINT8, 256),
            () -> w.put("k", GgufType.UINT8, -1),
            () -> w.put("k", GgufType.INT8, 128),
            () -> w.put("k", GgufType.UINT64, -1L),
            () -> w.put("k", GgufType.UINT32, 1.0),
            () -> w.put("k", GgufType.STRING, 1),
            () -> w.put("k", GgufType.BOOL, 1),
            () -> w.put("k", GgufType.ARRAY, List.of()),
            () -> w.putArray("k", GgufType.ARRAY, List.of(List.of())),
            () -> w.put("general.alignment", 33),
            () -> w.put("general.alignment", 4),
            () -> w.put("general.alignment", GgufType.UINT64, 32L))) {
      assertThrows(IllegalArgumentException.class, wrong::run);
    }
  }
}
