package io.fletch.quant;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import java.io.IOException;
import java.io.StringWriter;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Writes safetensors files of plain element types. Tensors lie in order of falling element size,
 * then of name, so that each is aligned to its elements. A file appears under its name only when it
 * is complete. Confined to one thread.
 */
public final class SafetensorsWriter {
  private static final JsonFactory FACTORY = new JsonFactory();

  private record Item(
      String name, TensorType type, long[] shape, long bytes, TensorSource source) {}

  private final Map<String, String> metadata = new LinkedHashMap<>();
  private final Map<String, Item> tensors = new LinkedHashMap<>();

  /** A writer without metadata and tensors. */
  public SafetensorsWriter() {}

  /** Puts an entry into {@code __metadata__}. */
  public SafetensorsWriter put(String key, String value) {
    metadata.put(key, value);
    return this;
  }

  /** Adds a tensor, which must stay open until the file is written. */
  public SafetensorsWriter add(Tensor tensor) {
    return add(tensor.name(), tensor.type(), tensor.shape(), sink -> sink.write(tensor.segment()));
  }

  /**
   * Adds a tensor whose bytes are produced while the file is written.
   *
   * @param shape outermost axis first
   * @param source writes exactly the bytes that type and shape need
   * @throws IllegalArgumentException if the type is quantized or the name was added before
   */
  public SafetensorsWriter add(String name, TensorType type, long[] shape, TensorSource source) {
    if (type.isQuantized()) {
      throw new IllegalArgumentException(
          "tensor " + name + ": type: expected=one that is not quantized actual=" + type);
    }
    long elements = 1;
    for (long dim : shape) {
      if (dim < 0) {
        throw new IllegalArgumentException("tensor " + name + ": size of axis: actual=" + dim);
      }
      elements = Math.multiplyExact(elements, dim);
    }
    Item item = new Item(name, type, shape.clone(), type.bytes(elements), source);
    if (name.equals("__metadata__") || tensors.putIfAbsent(name, item) != null) {
      throw new IllegalArgumentException("tensor " + name + ": expected=a new name");
    }
    return this;
  }

  /**
   * Writes one file.
   *
   * @throws UncheckedIOException if writing fails; there is then no new file
   * @throws IllegalStateException if a source writes too much or too little
   */
  public void write(Path target) {
    try (AtomicFile file = new AtomicFile(target)) {
      writeFile(file, sorted());
      file.commit();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /**
   * Writes shards {@code model-00001-of-0000N.safetensors} and {@code model.safetensors.index.json}
   * into a folder that exists; the index, which makes them a model, comes last.
   *
   * @param maxShardBytes a shard takes tensors until the next one would make its data larger
   * @throws UncheckedIOException if writing fails
   */
  public void writeSharded(Path folder, long maxShardBytes) {
    List<List<Item>> shards = new ArrayList<>();
    shards.add(new ArrayList<>());
    long size = 0;
    long total = 0;
    for (Item item : sorted()) {
      if (size > 0 && size + item.bytes() > maxShardBytes) {
        shards.add(new ArrayList<>());
        size = 0;
      }
      shards.getLast().add(item);
      size += item.bytes();
      total += item.bytes();
    }
    Map<String, String> weightMap = new LinkedHashMap<>();
    try {
      for (int i = 0; i < shards.size(); i++) {
        String name = String.format("model-%05d-of-%05d.safetensors", i + 1, shards.size());
        try (AtomicFile file = new AtomicFile(folder.resolve(name))) {
          writeFile(file, shards.get(i));
          file.commit();
        }
        shards.get(i).forEach(item -> weightMap.put(item.name(), name));
      }
      byte[] index = index(total, weightMap);
      try (AtomicFile file = new AtomicFile(folder.resolve(SafetensorsFiles.INDEX))) {
        file.write(index);
        file.complete(new byte[] {index[0]});
        file.commit();
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private List<Item> sorted() {
    return tensors.values().stream()
        .sorted(
            Comparator.comparingInt((Item item) -> -item.type().blockBytes())
                .thenComparing(Item::name))
        .toList();
  }

  private void writeFile(AtomicFile file, List<Item> items) throws IOException {
    byte[] header = header(items);
    // No length yet: until it is complete, no reader takes the file for a whole one.
    file.write(new byte[Long.BYTES]);
    file.write(header);
    for (Item item : items) {
      long[] left = {item.bytes()};
      item.source()
          .writeTo(bytes -> {
            left[0] -= bytes.byteSize();
            checkBytes(item, left[0] >= 0, left[0]);
            file.write(bytes);
          });
      checkBytes(item, left[0] == 0, left[0]);
    }
    file.complete(new LittleEndianBytes().u64(header.length).toBytes());
  }

  private static void checkBytes(Item item, boolean ok, long left) {
    if (!ok) {
      throw new IllegalStateException(
          "tensor "
              + item.name()
              + ": bytes: expected="
              + item.bytes()
              + " actual="
              + (left < 0 ? "more" : Long.toString(item.bytes() - left)));
    }
  }

  private byte[] header(List<Item> items) throws IOException {
    StringWriter text = new StringWriter();
    try (JsonGenerator json = FACTORY.createGenerator(text)) {
      json.writeStartObject();
      if (!metadata.isEmpty()) {
        json.writeObjectFieldStart("__metadata__");
        for (Map.Entry<String, String> e : metadata.entrySet()) {
          json.writeStringField(e.getKey(), e.getValue());
        }
        json.writeEndObject();
      }
      long offset = 0;
      for (Item item : items) {
        json.writeObjectFieldStart(item.name());
        json.writeStringField("dtype", item.type().name());
        json.writeFieldName("shape");
        json.writeArray(item.shape(), 0, item.shape().length);
        json.writeFieldName("data_offsets");
        json.writeArray(new long[] {offset, offset + item.bytes()}, 0, 2);
        json.writeEndObject();
        offset += item.bytes();
      }
      json.writeEndObject();
    }
    int bytes = text.toString().getBytes(StandardCharsets.UTF_8).length;
    String padded = text + " ".repeat(-bytes & 7);
    byte[] header = padded.getBytes(StandardCharsets.UTF_8);
    if (header.length > SafetensorsReader.MAX_HEADER_BYTES) {
      throw new IllegalStateException(
          "header: expected=at most "
              + SafetensorsReader.MAX_HEADER_BYTES
              + " bytes actual="
              + header.length);
    }
    return header;
  }

  private static byte[] index(long total, Map<String, String> weightMap) throws IOException {
    StringWriter text = new StringWriter();
    try (JsonGenerator json = FACTORY.createGenerator(text)) {
      json.useDefaultPrettyPrinter();
      json.writeStartObject();
      json.writeObjectFieldStart("metadata");
      json.writeNumberField("total_size", total);
      json.writeEndObject();
      json.writeObjectFieldStart("weight_map");
      for (Map.Entry<String, String> e : weightMap.entrySet()) {
        json.writeStringField(e.getKey(), e.getValue());
      }
      json.writeEndObject();
      json.writeEndObject();
    }
    return text.toString().getBytes(StandardCharsets.UTF_8);
  }
}
