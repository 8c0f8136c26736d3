package io.fletch.quant;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Writes a Fletch Arrow file: an Arrow IPC file with one record batch of one row. Every tensor is a
 * column: {@code LargeList} of the element type for F16, F32, F64 and the integers, {@code
 * LargeBinary} for BF16 and block types. Names and values of the metadata are those of GGUF, as one
 * JSON object under {@code fletch.metadata} of the schema; each column has {@code fletch.type} and
 * {@code fletch.shape} (outermost axis first). Buffers are aligned to 64 bytes in the file, from 64
 * KiB on to pages of 4096.
 *
 * <p>The file appears under its name when it is complete, and not before. Used by one thread.
 */
public final class ArrowWriter {
  private static final long ALIGNMENT = 64;
  private static final long PAGE = 4096;
  private static final long LARGE = 64 << 10;

  /** Metadata version V5. */
  private static final int V5 = 4;

  private record Item(String name, TensorType type, long[] shape, long bytes, TensorSource source) {
    boolean list() {
      return !type.isQuantized() && type != TensorType.BF16;
    }
  }

  private final Map<String, Object> metadata = new LinkedHashMap<>();
  private final Map<String, Item> tensors = new LinkedHashMap<>();

  /** Writes nothing yet. */
  public ArrowWriter() {}

  /**
   * Adds an entry of the metadata.
   *
   * @param value a Boolean, integer, float, String, or a list of these
   */
  public ArrowWriter put(String key, Object value) {
    boolean ok =
        value instanceof List<?> list
            ? list.stream().allMatch(ArrowWriter::isScalar)
            : isScalar(value);
    if (!ok) {
      throw new IllegalArgumentException("key " + key + ": not a value of metadata: " + value);
    }
    metadata.put(key, value);
    return this;
  }

  private static boolean isScalar(Object value) {
    return value instanceof Boolean
        || value instanceof Number n && Double.isFinite(n.doubleValue())
        || value instanceof String;
  }

  /** Adds all entries of a file's metadata. */
  public ArrowWriter putAll(Metadata all) {
    all.entries().forEach(this::put);
    return this;
  }

  /** Adds a tensor whose bytes come when the file is written. */
  public ArrowWriter tensor(String name, TensorType type, long[] shape, TensorSource source) {
    long elements = 1;
    for (long d : shape) {
      if (d < 0) {
        throw new IllegalArgumentException("tensor " + name + ": size of axis: actual=" + d);
      }
      elements = Math.multiplyExact(elements, d);
    }
    type.bytes(shape.length == 0 ? 1 : shape[shape.length - 1]);
    Item item = new Item(name, type, shape.clone(), type.bytes(elements), source);
    if (name.isEmpty() || tensors.putIfAbsent(name, item) != null) {
      throw new IllegalArgumentException("tensor name: expected=not empty, once actual=" + name);
    }
    return this;
  }

  /** Adds a tensor. */
  public ArrowWriter tensor(Tensor t) {
    return tensor(t.name(), t.type(), t.shape(), sink -> sink.write(t.segment()));
  }

  /**
   * Writes the file.
   *
   * @throws UncheckedIOException if writing fails; there is then no new file
   * @throws IllegalStateException if a source writes too much or too little
   */
  public void write(Path target) {
    try (AtomicFile file = new AtomicFile(target)) {
      file.write(new byte[8]);
      writeTo(file);
      file.complete(Arrays.copyOf(ArrowFiles.MAGIC, 8));
      file.commit();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private void writeTo(AtomicFile file) throws IOException {
    FlatBytes message = new FlatBytes();
    writeMessage(file, message(message, 1, schema(message), 0), 8);
    List<Item> items = List.copyOf(tensors.values());
    // Where each buffer lies in the body: validity (none), offsets, [validity,] data.
    List<Long> buffers = new ArrayList<>();
    List<Long> nodes = new ArrayList<>();
    long at = 0;
    long[] dataAt = new long[items.size()];
    for (int i = 0; i < items.size(); i++) {
      Item item = items.get(i);
      buffers.addAll(List.of(at, 0L, at, 16L));
      nodes.addAll(List.of(1L, 0L));
      at = up(at + 16, item.bytes() >= LARGE ? PAGE : ALIGNMENT);
      if (item.list()) {
        buffers.addAll(List.of(at, 0L));
        nodes.addAll(List.of(item.bytes() / item.type().blockBytes(), 0L));
      }
      dataAt[i] = at;
      buffers.addAll(List.of(at, item.bytes()));
      at = up(at + item.bytes(), ALIGNMENT);
    }
    long body = at;
    FlatBytes batch = new FlatBytes();
    int bufferVector = batch.structs(longs(buffers), 2);
    int nodeVector = batch.structs(longs(nodes), 2);
    batch.start(3);
    batch.number(0, 1, 8);
    batch.reference(1, nodeVector);
    batch.reference(2, bufferVector);
    byte[] header = message(batch, 3, batch.end(), body);
    long start = file.position();
    writeMessage(file, header, PAGE);
    long bodyStart = file.position();
    for (int i = 0; i < items.size(); i++) {
      Item item = items.get(i);
      long count = item.list() ? item.bytes() / item.type().blockBytes() : item.bytes();
      file.write(new LittleEndianBytes().u64(0).u64(count).toBytes());
      file.pad(item.bytes() >= LARGE ? PAGE : ALIGNMENT);
      if (file.position() != bodyStart + dataAt[i]) {
        throw new AssertionError("position of " + item.name());
      }
      data(file, item);
      file.pad(ALIGNMENT);
    }
    file.write(new LittleEndianBytes().u32(-1).u32(0).toBytes());
    FlatBytes footer = new FlatBytes();
    int blocks = footer.structs(new long[] {start, bodyStart - start, body}, 3);
    int none = footer.structs(new long[0], 3);
    int schema = schema(footer);
    footer.start(4);
    footer.number(0, V5, 2);
    footer.reference(1, schema);
    footer.reference(2, none);
    footer.reference(3, blocks);
    byte[] end = footer.finish(footer.end());
    file.write(end);
    file.write(new LittleEndianBytes().u32(end.length).bytes(ArrowFiles.MAGIC).toBytes());
  }

  private static long[] longs(List<Long> list) {
    return list.stream().mapToLong(Long::longValue).toArray();
  }

  private static long up(long n, long alignment) {
    return Math.addExact(n, alignment - 1) & -alignment;
  }

  /** A message, padded so that what follows it in the file is aligned. */
  private static void writeMessage(AtomicFile file, byte[] message, long alignment)
      throws IOException {
    long length = up(file.position() + 8 + message.length, alignment) - file.position() - 8;
    file.write(new LittleEndianBytes().u32(-1).u32(Math.toIntExact(length)).toBytes());
    file.write(message);
    file.pad(alignment);
  }

  private static byte[] message(FlatBytes f, int kind, int header, long body) {
    f.start(4);
    f.number(3, body, 8);
    f.reference(2, header);
    f.number(0, V5, 2);
    f.number(1, kind, 1);
    return f.finish(f.end());
  }

  private int schema(FlatBytes f) {
    int[] columns = new int[tensors.size()];
    int i = 0;
    for (Item item : tensors.values()) {
      columns[i++] = column(f, item);
    }
    int fields = f.vector(columns);
    int keys =
        f.vector(
            new int[] {
              pair(f, ArrowFiles.VERSION_KEY, ArrowFiles.VERSION),
              pair(f, ArrowFiles.METADATA_KEY, json())
            });
    f.start(3);
    f.reference(1, fields);
    f.reference(2, keys);
    f.number(0, 0, 2);
    return f.end();
  }

  private static int column(FlatBytes f, Item item) {
    int keys =
        f.vector(
            new int[] {
              pair(f, ArrowFiles.TYPE_KEY, item.type().name()),
              pair(f, ArrowFiles.SHAPE_KEY, Arrays.toString(item.shape()).replace(" ", ""))
            });
    int children = f.vector(item.list() ? new int[] {element(f, item.type())} : new int[0]);
    f.start(0);
    int type = f.end();
    int kind = item.list() ? ArrowFiles.TYPE_LARGE_LIST : ArrowFiles.TYPE_LARGE_BINARY;
    return field(f, item.name(), kind, type, children, keys);
  }

  private static int element(FlatBytes f, TensorType type) {
    boolean isFloat = type == TensorType.F16 || type == TensorType.F32 || type == TensorType.F64;
    f.start(2);
    if (isFloat) {
      f.number(0, type == TensorType.F16 ? 0 : type == TensorType.F32 ? 1 : 2, 2);
    } else {
      f.number(0, 8L * type.blockBytes(), 4);
      f.number(1, 1, 1);
    }
    int element = f.end();
    int kind = isFloat ? ArrowFiles.TYPE_FLOAT : ArrowFiles.TYPE_INT;
    return field(f, "item", kind, element, f.vector(new int[0]), f.vector(new int[0]));
  }

  private static int field(FlatBytes f, String name, int kind, int type, int children, int keys) {
    int text = f.string(name);
    f.start(7);
    f.reference(0, text);
    f.reference(3, type);
    f.reference(5, children);
    f.reference(6, keys);
    f.number(1, 0, 1);
    f.number(2, kind, 1);
    return f.end();
  }

  private static int pair(FlatBytes f, String key, String value) {
    int k = f.string(key);
    int v = f.string(value);
    f.start(2);
    f.reference(0, k);
    f.reference(1, v);
    return f.end();
  }

  private String json() {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    try (JsonGenerator g = new JsonFactory().createGenerator(out)) {
      g.writeStartObject();
      for (Map.Entry<String, Object> e : metadata.entrySet()) {
        g.writeFieldName(e.getKey());
        if (e.getValue() instanceof List<?> list) {
          g.writeStartArray();
          for (Object v : list) {
            scalar(g, v);
          }
          g.writeEndArray();
        } else {
          scalar(g, e.getValue());
        }
      }
      g.writeEndObject();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    return out.toString(StandardCharsets.UTF_8);
  }

  private static void scalar(JsonGenerator g, Object v) throws IOException {
    switch (v) {
      case Boolean b -> g.writeBoolean(b);
      case String s -> g.writeString(s);
      case Float x -> g.writeNumber((double) x);
      case Double x -> g.writeNumber(x);
      default -> g.writeNumber(v.toString());
    }
  }

  private static void data(AtomicFile file, Item item) throws IOException {
    long[] left = {item.bytes()};
    item.source()
        .writeTo(bytes -> {
          left[0] -= bytes.byteSize();
          if (left[0] < 0) {
            throw new IllegalStateException(
                "tensor " + item.name() + ": bytes: expected=" + item.bytes() + " actual=more");
          }
          file.write(bytes);
        });
    if (left[0] != 0) {
      throw new IllegalStateException(
          "tensor "
              + item.name()
              + ": bytes: expected="
              + item.bytes()
              + " actual="
              + (item.bytes() - left[0]));
    }
  }
}
