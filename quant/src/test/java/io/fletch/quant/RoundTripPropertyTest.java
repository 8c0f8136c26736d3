package io.fletch.quant;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;

/** What is written is read again, in order and byte for byte (specs weights section 6, item 11). */
class RoundTripPropertyTest {
  private static Object value(GgufType type, SplittableRandom random) {
    return switch (type) {
      case UINT8 -> random.nextInt(256);
      case INT8 -> random.nextInt(256) - 128;
      case UINT16 -> random.nextInt(65536);
      case INT16 -> random.nextInt(65536) - 32768;
      case UINT32 -> random.nextLong() >>> 32;
      case INT32 -> random.nextInt();
      case UINT64 -> random.nextLong() >>> 1;
      case INT64 -> random.nextLong();
      case FLOAT32 -> (float) random.nextGaussian();
      case FLOAT64 -> random.nextGaussian();
      case BOOL -> random.nextBoolean();
      case STRING -> Character.toString(random.nextInt(0x20, 0xD800)).repeat(random.nextInt(4));
      case ARRAY -> throw new IllegalArgumentException();
    };
  }

  /** As the reader gives it back. */
  private static Object widened(Object value) {
    return switch (value) {
      case Integer i -> i.longValue();
      case Float f -> f.doubleValue();
      default -> value;
    };
  }

  @Property(tries = 60, seed = "5")
  void gguf(@ForAll long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    GgufType[] types = GgufType.values();
    List<Map.Entry<String, Object>> expected = new ArrayList<>();
    GgufWriter writer = new GgufWriter();
    if (random.nextBoolean()) {
      int alignment = 8 << random.nextInt(8);
      writer.put("general.alignment", alignment);
      expected.add(Map.entry("general.alignment", (long) alignment));
    }
    for (int i = random.nextInt(12); i > 0; i--) {
      GgufType type = types[random.nextInt(types.length)];
      String key = "key." + i;
      if (type == GgufType.ARRAY) {
        GgufType element;
        do {
          element = types[random.nextInt(types.length)];
        } while (element == GgufType.ARRAY);
        List<Object> list = new ArrayList<>();
        for (int k = random.nextInt(20); k > 0; k--) {
          list.add(value(element, random));
        }
        writer.putArray(key, element, list);
        expected.add(Map.entry(key, list.stream().map(RoundTripPropertyTest::widened).toList()));
      } else {
        Object value = value(type, random);
        writer.put(key, type, value);
        expected.add(Map.entry(key, widened(value)));
      }
    }
    try (TensorStore store = TensorStore.create()) {
      List<Tensor> tensors = tensors(store, random, TensorType.values());
      tensors.forEach(writer::add);
      Path folder = Files.createTempDirectory("gguf");
      Path path = folder.resolve("a.gguf");
      writer.write(path);
      Path copy = folder.resolve("b.gguf");
      try (WeightFile file = WeightFile.open(path)) {
        assertEquals(expected, List.copyOf(file.metadata().entries().entrySet()));
        assertSame(tensors, file);
        GgufWriter again = new GgufWriter().putAll(file.metadata());
        file.tensors().values().forEach(again::add);
        again.write(copy);
      }
      assertEquals(-1, Files.mismatch(path, copy));
      List<Path> shards = writer.writeSplit(path, 1 + random.nextInt(4000));
      try (WeightFile file = WeightFile.open(shards.get(0))) {
        assertSame(tensors, file);
      }
      delete(folder);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  @Property(tries = 60, seed = "6")
  void safetensors(@ForAll long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    TensorType[] plain =
        Arrays.stream(TensorType.values()).filter(t -> !t.isQuantized()).toArray(TensorType[]::new);
    try (TensorStore store = TensorStore.create()) {
      List<Tensor> tensors = tensors(store, random, plain);
      SafetensorsWriter writer = new SafetensorsWriter();
      tensors.forEach(writer::add);
      Path folder = Files.createTempDirectory("safetensors");
      Path path = folder.resolve("a.safetensors");
      writer.write(path);
      List<Tensor> sorted = new ArrayList<>(tensors);
      sorted.sort(
          Comparator.comparingInt((Tensor t) -> -t.type().blockBytes())
              .thenComparing(Tensor::name));
      try (WeightFile file = WeightFile.open(path)) {
        // Empty tensors share their offset with the next one, so only the rest has an order.
        assertEquals(
            sorted.stream().filter(t -> t.bytes() > 0).map(Tensor::name).toList(),
            file.tensors().values().stream().filter(t -> t.bytes() > 0).map(Tensor::name).toList());
        assertContains(tensors, file);
      }
      writer.writeSharded(folder, 1 + random.nextInt(2000));
      Files.writeString(folder.resolve("config.json"), "{}");
      try (WeightFile file = WeightFile.open(folder)) {
        assertContains(tensors, file);
      }
      delete(folder);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private static List<Tensor> tensors(
      TensorStore store, SplittableRandom random, TensorType[] types) {
    List<Tensor> tensors = new ArrayList<>();
    for (int i = random.nextInt(6); i >= 0; i--) {
      TensorType type = types[random.nextInt(types.length)];
      long[] shape = new long[type.isQuantized() ? 1 + random.nextInt(4) : random.nextInt(5)];
      for (int axis = 0; axis < shape.length; axis++) {
        shape[axis] = random.nextInt(4);
      }
      if (shape.length > 0) {
        shape[shape.length - 1] *= type.blockSize();
      }
      Tensor t = store.allocate("tensor " + i, type, shape);
      byte[] bytes = new byte[(int) t.bytes()];
      random.nextBytes(bytes);
      t.segment().copyFrom(MemorySegment.ofArray(bytes));
      tensors.add(t);
    }
    return tensors;
  }

  private static void assertSame(List<Tensor> expected, WeightFile actual) {
    assertEquals(
        expected.stream().map(Tensor::name).toList(), List.copyOf(actual.tensors().keySet()));
    assertContains(expected, actual);
  }

  private static void assertContains(List<Tensor> expected, WeightFile actual) {
    assertEquals(expected.size(), actual.tensors().size());
    for (Tensor t : expected) {
      Tensor other = actual.tensor(t.name()).orElseThrow();
      assertEquals(t.type(), other.type());
      assertArrayEquals(t.shape(), other.shape());
      assertArrayEquals(
          t.segment().toArray(ValueLayout.JAVA_BYTE),
          other.segment().toArray(ValueLayout.JAVA_BYTE));
    }
  }

  private static void delete(Path folder) throws IOException {
    try (var files = Files.list(folder)) {
      for (Path file : files.toList()) {
        Files.delete(file);
      }
    }
    Files.delete(folder);
  }
}
