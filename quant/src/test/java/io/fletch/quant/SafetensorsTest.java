package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class SafetensorsTest {
  private static final Path NAME = Path.of("test.safetensors");

  @TempDir Path folder;

  private static SafetensorsReader.Header read(String header, int dataBytes) {
    byte[] text = header.getBytes(StandardCharsets.UTF_8);
    return read(text.length, text, dataBytes);
  }

  private static SafetensorsReader.Header read(long n, byte[] text, int dataBytes) {
    byte[] file = new LittleEndianBytes().u64(n).bytes(text).bytes(new byte[dataBytes]).toBytes();
    return SafetensorsReader.read(NAME, MemorySegment.ofArray(file));
  }

  @Test
  void readsWhatTheFormatAllows() {
    SafetensorsReader.Header header =
        read(
            "{\"b\":{\"dtype\":\"F8_E4M3\",\"shape\":[3],\"data_offsets\":[4,7]},"
                + "\"__metadata__\":{\"format\":\"pt\"},"
                + "\"scalar\":{\"data_offsets\":[0,4],\"shape\":[],\"dtype\":\"F32\"},"
                + "\"none\":{\"dtype\":\"F16\",\"shape\":[5,0],\"data_offsets\":[7,7]}}   ",
            7);
    assertEquals(
        List.of("scalar", "b", "none"),
        header.tensors().stream().map(SafetensorsReader.Info::name).toList());
    assertEquals(TensorType.F32, header.tensors().get(0).type());
    assertEquals(null, header.tensors().get(1).type());
    assertEquals("F8_E4M3", header.tensors().get(1).typeName());
    assertEquals("pt", header.metadata().get("format"));
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      quoteCharacter = '`',
      value = {
        "{'a':{'dtype':'U8','shape':[2],'data_offsets':[1,3]}} | begin",
        "{'a':{'dtype':'U8','shape':[2],'data_offsets':[0,2]}} | end of the last tensor",
        "{'a':{'dtype':'U8','shape':[4],'data_offsets':[0,4]}} | end of the last tensor",
        "{'a':{'dtype':'U8','shape':[2],'data_offsets':[0,2]},"
            + "'b':{'dtype':'U8','shape':[2],'data_offsets':[1,3]}} | begin",
        "{'a':{'dtype':'U8','shape':[3],'data_offsets':[0,3]},"
            + "'a':{'dtype':'U8','shape':[3],'data_offsets':[0,3]}} | Duplicate",
        "{'a':{'dtype':'U8','dtype':'U8','shape':[3],'data_offsets':[0,3]}} | Duplicate",
        "{'a':{'dtype':'U8','shape':[-3],'data_offsets':[0,3]}} | unsigned",
        "{'a':{'dtype':'U8','shape':[3.0],'data_offsets':[0,3]}} | unsigned",
        "{'a':{'dtype':'U8','shape':[-0],'data_offsets':[0,0]}} | unsigned",
        "{'a':{'dtype':'U8','shape':3,'data_offsets':[0,3]}} | an array",
        "{'a':{'dtype':'U9','shape':[3],'data_offsets':[0,3]}} | dtype",
        "{'a':{'dtype':7,'shape':[3],'data_offsets':[0,3]}} | dtype",
        "{'a':{'shape':[3],'data_offsets':[0,3]}} | no dtype",
        "{'a':{'dtype':'U8','data_offsets':[0,3]}} | no shape",
        "{'a':{'dtype':'U8','shape':[3]}} | no data_offsets",
        "{'a':{'dtype':'U8','shape':[3],'data_offsets':[3,0]}} | data_offsets",
        "{'a':{'dtype':'U8','shape':[3],'data_offsets':[3]}} | data_offsets",
        "{'a':{'dtype':'U8','shape':[3],'data_offsets':[0,3,4]}} | at most 2",
        "{'a':{'dtype':'F4','shape':[5],'data_offsets':[0,3]}} | whole number of bytes",
        "{'a':{'dtype':'F32','shape':[3],'data_offsets':[0,3]}} | 12 bytes",
        "{'a':{'dtype':'U8','shape':[9223372036854775807,2],'data_offsets':[0,3]}} | 2^63",
        "{'a':{'dtype':'U8','shape':[9223372036854775808],'data_offsets':[0,3]}} | range",
        "{'a':{'dtype':'U8','shape':[3],"
            + "'data_offsets':[9223372036854775804,9223372036854775807]}} | within the file",
        "{'__metadata__':{'a':1}} | a string",
        "{'__metadata__':[]} | an object",
        "{'a':7} | an object",
        "{} | end of the last tensor",
        "{} {} | nothing after",
        "{'a' | invalid JSON",
      })
  void refusesWhatItForbids(String header, String message) {
    String text = header.replace('\'', '"');
    WeightFileException e = assertThrows(WeightFileException.class, () -> read(text, 3));
    assertTrue(e.getMessage().contains(message), e.getMessage());
  }

  @Test
  void checksTheHeaderLengthFirst() {
    byte[] text = "{}".getBytes(StandardCharsets.UTF_8);
    for (long n : new long[] {0, -1, 3, 100_000_001, Long.MAX_VALUE, Long.MIN_VALUE}) {
      assertThrows(WeightFileException.class, () -> read(n, text, 0));
    }
    assertThrows(
        WeightFileException.class,
        () -> SafetensorsReader.read(NAME, MemorySegment.ofArray(new byte[7])));
    byte[] space = " {}".getBytes(StandardCharsets.UTF_8);
    assertThrows(WeightFileException.class, () -> read(space.length, space, 0));
    byte[] bad = {'{', '"', (byte) 0xC0, (byte) 0x80, '"', ':', '1', '}'};
    assertThrows(WeightFileException.class, () -> read(bad.length, bad, 0));
    byte[] deep = "{\"a\":".repeat(100_000).getBytes(StandardCharsets.UTF_8);
    assertThrows(WeightFileException.class, () -> read(deep.length, deep, 0));
  }

  @Test
  void writtenFilesReadTheSame() {
    try (TensorStore store = TensorStore.create()) {
      Tensor a = store.floats("a\"ü", new float[] {1, 2, 3, 4, 5, 6}, 2, 3);
      Tensor b = store.allocate("b", TensorType.BF16, 5);
      Tensor c = store.allocate("c", TensorType.I64);
      Tensor d = store.allocate("d", TensorType.I8, 0, 4);
      Path path = folder.resolve("x.safetensors");
      new SafetensorsWriter().put("k", "v").add(b).add(a).add(c).add(d).write(path);
      try (WeightFile file = WeightFile.open(path)) {
        assertEquals(List.of("c", "a\"ü", "b", "d"), List.copyOf(file.tensors().keySet()));
        assertEquals("v", file.metadata().string("__metadata__.k").orElseThrow());
        Tensor read = file.tensor("a\"ü").orElseThrow();
        assertArrayEquals(new long[] {2, 3}, read.shape());
        assertArrayEquals(new float[] {1, 2, 3, 4, 5, 6}, Dequantizer.toFloats(read));
        assertEquals(0, read.segment().address() % 4);
      }
    }
  }

  private void writeShards() throws IOException {
    try (TensorStore store = TensorStore.create()) {
      SafetensorsWriter writer = new SafetensorsWriter();
      for (int i = 0; i < 5; i++) {
        writer.add(store.floats("t" + i, new float[] {i, i, i}, 3));
      }
      writer.writeSharded(folder, 24);
    }
    Files.writeString(
        folder.resolve("config.json"),
        "{\"n\":1,\"rope_scaling\":{\"factor\":8.0,\"type\":null},\"layers\":[1,2],"
            + "\"types\":[\"a\",\"b\"],\"big\":123456789012345678901,\"inf\":Infinity}");
  }

  @Test
  void readsShardsAndConfiguration() throws IOException {
    writeShards();
    try (WeightFile file = WeightFile.open(folder)) {
      assertEquals(5, file.tensors().size());
      assertEquals(4, Dequantizer.toFloats(file.tensor("t4").orElseThrow())[2]);
      Metadata m = file.metadata();
      assertEquals(8.0, m.number("rope_scaling.factor").orElseThrow());
      assertTrue(!m.has("rope_scaling.type") && m.string("rope_scaling.type").isEmpty());
      assertArrayEquals(new long[] {1, 2}, m.integers("layers").orElseThrow());
      assertArrayEquals(new long[] {1}, m.integers("n").orElseThrow());
      assertArrayEquals(new float[] {1, 2}, m.floats("layers").orElseThrow());
      assertArrayEquals(new String[] {"a", "b"}, m.strings("types").orElseThrow());
      assertEquals(Double.POSITIVE_INFINITY, m.number("inf").orElseThrow());
      assertThrows(WeightFileException.class, () -> m.integer("big"));
      WeightFileException e = assertThrows(WeightFileException.class, () -> m.bool("n"));
      assertTrue(e.getMessage().contains("key n: expected=bool actual=integer"), e.getMessage());
    }
    try (WeightFile file = WeightFile.open(folder.resolve("model.safetensors.index.json"))) {
      assertEquals(5, file.tensors().size());
    }
  }

  @ParameterizedTest
  @CsvSource({
    "model-00002-of-00003.safetensors, model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors, ../x.safetensors",
    "model-00002-of-00003.safetensors, /etc/passwd",
    "model-00002-of-00003.safetensors, missing.safetensors",
    "t4, t9",
    "weight_map, weights",
  })
  void refusesAnIndexThatDisagrees(String from, String to) throws IOException {
    writeShards();
    Path index = folder.resolve("model.safetensors.index.json");
    String text = Files.readString(index);
    assertTrue(text.contains(from));
    Files.writeString(index, text.replaceFirst(from, to));
    assertThrows(WeightFileException.class, () -> WeightFile.open(folder));
  }

  @Test
  void refusesAConfigurationWithAKeyTwice() throws IOException {
    writeShards();
    for (String config : List.of("{\"a\":1,\"a\":1}", "{\"a\":{\"b\":1},\"a.b\":2}", "[]", "")) {
      Files.writeString(folder.resolve("config.json"), config);
      assertThrows(WeightFileException.class, () -> WeightFile.open(folder), config);
    }
    Files.delete(folder.resolve("config.json"));
    assertThrows(WeightFileException.class, () -> WeightFile.open(folder));
  }

  @Test
  void unsupportedTypesAreReportedWhenUsed() throws IOException {
    byte[] text =
        "{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[3,1],\"data_offsets\":[0,3]}}"
            .getBytes(StandardCharsets.UTF_8);
    Path path = folder.resolve("f8.safetensors");
    Files.write(
        path, new LittleEndianBytes().u64(text.length).bytes(text).bytes(new byte[3]).toBytes());
    try (WeightFile file = WeightFile.open(path)) {
      assertEquals(
          new UnsupportedTensor("a", "F8_E4M3", List.of(3L, 1L), 3), file.unsupported().get("a"));
      WeightFileException e = assertThrows(WeightFileException.class, () -> file.tensor("a"));
      assertTrue(e.getMessage().contains("F8_E4M3"), e.getMessage());
      assertTrue(file.tensor("b").isEmpty());
    }
  }
}
