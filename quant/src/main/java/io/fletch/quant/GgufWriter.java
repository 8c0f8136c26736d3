package io.fletch.quant;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Writes GGUF v3 files: key/values in the order they were put, tensors streamed in the order they
 * were added. A file appears under its name only when it is complete. Confined to one thread.
 *
 * <p>The format is that of {@link GgufReader}, whose limits hold here too, so that what is written
 * can be read.
 */
public final class GgufWriter {
  private record Entry(GgufType type, byte[] encoded) {}

  private record Item(
      String name, TensorType type, long[] shape, long bytes, TensorSource source) {}

  private final Map<String, Entry> entries = new LinkedHashMap<>();
  private final Map<String, Item> tensors = new LinkedHashMap<>();
  private long alignment = GgufReader.DEFAULT_ALIGNMENT;

  /** A writer without key/values and tensors. */
  public GgufWriter() {}

  /** Puts a string. */
  public GgufWriter put(String key, String value) {
    return put(key, GgufType.STRING, value);
  }

  /** Puts a bool. */
  public GgufWriter put(String key, boolean value) {
    return put(key, GgufType.BOOL, value);
  }

  /** Puts a u32, the usual type of sizes and counts. */
  public GgufWriter put(String key, int value) {
    return put(key, GgufType.UINT32, value);
  }

  /** Puts an f32. */
  public GgufWriter put(String key, float value) {
    return put(key, GgufType.FLOAT32, value);
  }

  /**
   * Puts a value of any type but array. A key that was put before keeps its place.
   *
   * @param value a {@link String} or {@code byte[]} for STRING, a {@link Boolean} for BOOL, else a
   *     {@link Number} in the range of the type
   * @throws IllegalArgumentException if the value does not suit the type, or the key is not legal
   */
  public GgufWriter put(String key, GgufType type, Object value) {
    LittleEndianBytes out = new LittleEndianBytes();
    encode(key, type, value, out);
    if (key.equals(GgufReader.ALIGNMENT_KEY)) {
      long wanted = ((Number) value).longValue();
      if (type != GgufType.UINT32 || wanted < 8 || Long.bitCount(wanted) != 1) {
        throw new IllegalArgumentException(
            key + ": expected=a power of two, at least 8, as UINT32 actual=" + wanted + " " + type);
      }
      alignment = wanted;
    }
    return putEncoded(key, type, out.toBytes());
  }

  /**
   * Puts an array.
   *
   * @param values of the kinds that {@link #put(String, GgufType, Object)} takes
   * @throws IllegalArgumentException if a value does not suit the type, or the key is not legal
   */
  public GgufWriter putArray(String key, GgufType elementType, List<?> values) {
    if (key.equals(GgufReader.ALIGNMENT_KEY)) {
      throw new IllegalArgumentException(key + ": expected=UINT32 actual=array");
    }
    LittleEndianBytes out = new LittleEndianBytes().u32(elementType.id()).u64(values.size());
    for (Object value : values) {
      encode(key, elementType, value, out);
    }
    return putEncoded(key, GgufType.ARRAY, out.toBytes());
  }

  /**
   * Puts all key/values of an open GGUF file with their types, except for {@code split.*}, which
   * say how that file was cut.
   *
   * @throws IllegalArgumentException if the metadata are those of another format
   */
  public GgufWriter putAll(Metadata metadata) {
    if (!(metadata instanceof GgufMetadata source)) {
      throw new IllegalArgumentException("metadata: expected=of a GGUF file");
    }
    source
        .index()
        .forEach((key, e) -> {
          if (key.equals(GgufReader.ALIGNMENT_KEY)) {
            put(key, GgufType.UINT32, source.integer(key).orElseThrow());
          } else if (!key.startsWith("split.")) {
            LittleEndianBytes out = new LittleEndianBytes();
            if (e.type() == GgufType.ARRAY) {
              out.u32(e.elementType().id()).u64(e.count());
            }
            byte[] value =
                source
                    .bytes()
                    .asSlice(e.start(), e.end() - e.start())
                    .toArray(ValueLayout.JAVA_BYTE);
            putEncoded(key, e.type(), out.bytes(value).toBytes());
          }
        });
    return this;
  }

  /** What was put so far, as a file with these key/values has it. */
  public Metadata metadata() {
    LittleEndianBytes all = new LittleEndianBytes();
    Map<String, GgufMetadata.Entry> index = new LinkedHashMap<>();
    long at = 0;
    for (Map.Entry<String, Entry> e : entries.entrySet()) {
      GgufType type = e.getValue().type();
      byte[] value = e.getValue().encoded();
      all.bytes(value);
      long end = at + value.length;
      if (type == GgufType.ARRAY) {
        // Type of the elements and their number come first.
        MemorySegment head = MemorySegment.ofArray(value);
        GgufType element = GgufType.byId(head.get(ByteCursor.INT, 0));
        int count = Math.toIntExact(head.get(ByteCursor.LONG, Integer.BYTES));
        long start = at + Integer.BYTES + Long.BYTES;
        index.put(e.getKey(), new GgufMetadata.Entry(type, element, count, start, end));
      } else {
        index.put(e.getKey(), new GgufMetadata.Entry(type, null, 1, at, end));
      }
      at = end;
    }
    return new GgufMetadata("metadata", MemorySegment.ofArray(all.toBytes()), index);
  }

  /** Removes a key, if it is there. */
  public GgufWriter remove(String key) {
    entries.remove(key);
    if (key.equals(GgufReader.ALIGNMENT_KEY)) {
      alignment = GgufReader.DEFAULT_ALIGNMENT;
    }
    return this;
  }

  /** Adds a tensor, which must stay open until the file is written. */
  public GgufWriter add(Tensor tensor) {
    return add(tensor.name(), tensor.type(), tensor.shape(), sink -> sink.write(tensor.segment()));
  }

  /**
   * Adds a tensor whose bytes are produced while the file is written.
   *
   * @param shape outermost axis first
   * @param source writes exactly the bytes that type and shape need
   * @throws IllegalArgumentException if name or shape are not legal, or the name was added before
   */
  public GgufWriter add(String name, TensorType type, long[] shape, TensorSource source) {
    int nameBytes = name.getBytes(StandardCharsets.UTF_8).length;
    if (nameBytes < 1 || nameBytes > GgufReader.MAX_NAME_BYTES) {
      throw new IllegalArgumentException(
          "tensor "
              + name
              + ": name: expected=1.."
              + GgufReader.MAX_NAME_BYTES
              + " bytes actual="
              + nameBytes);
    }
    if (shape.length > GgufReader.MAX_AXES) {
      throw new IllegalArgumentException(
          "tensor "
              + name
              + ": axes: expected=0.."
              + GgufReader.MAX_AXES
              + " actual="
              + shape.length);
    }
    long elements = 1;
    for (long dim : shape) {
      if (dim < 0) {
        throw new IllegalArgumentException("tensor " + name + ": size of axis: actual=" + dim);
      }
      elements = Math.multiplyExact(elements, dim);
    }
    type.bytes(shape.length == 0 ? 1 : shape[shape.length - 1]);
    Item item = new Item(name, type, shape.clone(), type.bytes(elements), source);
    if (tensors.putIfAbsent(name, item) != null) {
      throw new IllegalArgumentException("tensor " + name + ": added twice");
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
    writeShards(List.of(target), List.of(List.copyOf(tensors.values())));
  }

  /**
   * Writes shards {@code PREFIX-00001-of-0000N.gguf} beside each other (specs weights 1.3).
   *
   * @param target {@code PREFIX.gguf}
   * @param maxShardBytes a shard takes tensors until the next one would make its data larger
   * @return the files, of which the first is the one to open
   * @throws UncheckedIOException if writing fails; the first shard does not appear then
   */
  public List<Path> writeSplit(Path target, long maxShardBytes) {
    String name = target.getFileName().toString();
    if (!name.endsWith(".gguf")) {
      throw new IllegalArgumentException("target: expected=PREFIX.gguf actual=" + name);
    }
    List<List<Item>> shards = new ArrayList<>();
    shards.add(new ArrayList<>());
    long size = 0;
    for (Item item : tensors.values()) {
      long padded = padded(item.bytes());
      if (size > 0 && size + padded > maxShardBytes) {
        shards.add(new ArrayList<>());
        size = 0;
      }
      shards.getLast().add(item);
      size += padded;
    }
    if (shards.size() > 65535) {
      throw new IllegalArgumentException("shards: expected=1..65535 actual=" + shards.size());
    }
    String prefix = name.substring(0, name.length() - ".gguf".length());
    List<Path> files = new ArrayList<>();
    for (int i = 0; i < shards.size(); i++) {
      files.add(target.resolveSibling(GgufFiles.shardName(prefix, i, shards.size())));
    }
    writeShards(files, shards);
    return files;
  }

  private void writeShards(List<Path> files, List<List<Item>> shards) {
    List<AtomicFile> written = new ArrayList<>();
    try {
      try {
        for (int i = 0; i < files.size(); i++) {
          AtomicFile file = new AtomicFile(files.get(i));
          written.add(file);
          writeShard(file, i, shards);
        }
        // The first shard is the one to open, so it comes last.
        for (AtomicFile file : written.reversed()) {
          file.commit();
        }
      } finally {
        for (AtomicFile file : written) {
          file.close();
        }
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private void writeShard(AtomicFile file, int number, List<List<Item>> shards) throws IOException {
    List<Item> items = shards.get(number);
    file.write(header(number, shards));
    if (!items.isEmpty()) {
      file.pad(alignment);
    }
    for (Item item : items) {
      writeData(file, item);
      file.pad(alignment);
    }
    file.complete("GGUF".getBytes(StandardCharsets.US_ASCII));
  }

  /** The header with zeros in place of the magic. */
  private byte[] header(int number, List<List<Item>> shards) {
    Map<String, Entry> all = new LinkedHashMap<>();
    if (number == 0) {
      all.putAll(entries);
    } else if (entries.containsKey(GgufReader.ALIGNMENT_KEY)) {
      all.put(GgufReader.ALIGNMENT_KEY, entries.get(GgufReader.ALIGNMENT_KEY));
    }
    if (shards.size() > 1) {
      all.put(
          GgufFiles.SPLIT_NO,
          new Entry(GgufType.UINT16, new LittleEndianBytes().u16(number).toBytes()));
      all.put(
          GgufFiles.SPLIT_COUNT,
          new Entry(GgufType.UINT16, new LittleEndianBytes().u16(shards.size()).toBytes()));
      all.put(
          GgufFiles.SPLIT_TENSORS,
          new Entry(GgufType.INT32, new LittleEndianBytes().u32(tensors.size()).toBytes()));
    }
    List<Item> items = shards.get(number);
    LittleEndianBytes out = new LittleEndianBytes();
    out.u32(0).u32(3).u64(items.size()).u64(all.size());
    all.forEach((key, e) -> out.string(key).u32(e.type().id()).bytes(e.encoded()));
    long offset = 0;
    for (Item item : items) {
      out.string(item.name()).u32(item.shape().length);
      for (int axis = item.shape().length - 1; axis >= 0; axis--) {
        out.u64(item.shape()[axis]);
      }
      out.u32(item.type().ggufId()).u64(offset);
      offset += padded(item.bytes());
    }
    return out.toBytes();
  }

  private static void writeData(AtomicFile file, Item item) throws IOException {
    long[] left = {item.bytes()};
    item.source()
        .writeTo(bytes -> {
          left[0] -= bytes.byteSize();
          checkBytes(item, left[0] >= 0, left[0]);
          file.write(bytes);
        });
    checkBytes(item, left[0] == 0, left[0]);
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

  private long padded(long bytes) {
    return Math.addExact(bytes, alignment - 1) & -alignment;
  }

  private GgufWriter putEncoded(String key, GgufType type, byte[] encoded) {
    int keyBytes = key.getBytes(StandardCharsets.UTF_8).length;
    if (keyBytes < 1 || keyBytes > GgufReader.MAX_KEY_BYTES) {
      throw new IllegalArgumentException(
          "key: expected=1.." + GgufReader.MAX_KEY_BYTES + " bytes actual=" + keyBytes);
    }
    entries.put(key, new Entry(type, encoded));
    return this;
  }

  private static void encode(String key, GgufType type, Object value, LittleEndianBytes out) {
    switch (type) {
      case STRING -> {
        if (value instanceof byte[] raw) {
          out.string(raw);
        } else if (value instanceof String text) {
          out.string(text);
        } else {
          throw mismatch(key, type, value);
        }
      }
      case BOOL -> {
        if (!(value instanceof Boolean bool)) {
          throw mismatch(key, type, value);
        }
        out.u8(bool ? 1 : 0);
      }
      case ARRAY -> throw mismatch(key, type, value);
      default -> {
        if (!(value instanceof Number number)) {
          throw mismatch(key, type, value);
        }
        encodeNumber(key, type, number, out);
      }
    }
  }

  private static void encodeNumber(
      String key, GgufType type, Number number, LittleEndianBytes out) {
    boolean integral =
        number instanceof Long
            || number instanceof Integer
            || number instanceof Short
            || number instanceof Byte;
    long value = number.longValue();
    if (type.isInteger()) {
      int bits = type.minBytes() * 8;
      boolean unsigned = type.name().startsWith("U");
      boolean fits =
          bits == 64
              ? !unsigned || value >= 0
              : unsigned
                  ? value >>> bits == 0
                  : value >= -(1L << bits - 1) && value < 1L << bits - 1;
      if (!integral || !fits) {
        throw mismatch(key, type, number);
      }
    }
    switch (type) {
      case UINT8, INT8 -> out.u8((int) value);
      case UINT16, INT16 -> out.u16((int) value);
      case UINT32, INT32 -> out.u32((int) value);
      case UINT64, INT64 -> out.u64(value);
      case FLOAT32 -> out.u32(Float.floatToRawIntBits(number.floatValue()));
      case FLOAT64 -> out.u64(Double.doubleToRawLongBits(number.doubleValue()));
      default -> throw mismatch(key, type, number);
    }
  }

  private static IllegalArgumentException mismatch(String key, GgufType type, Object value) {
    return new IllegalArgumentException(
        "key " + key + ": expected=a value of " + type + " actual=" + value);
  }
}
