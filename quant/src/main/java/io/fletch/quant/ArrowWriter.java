package io.fletch.quant;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
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
 * <p>The footer has {@code fletch.sha256}, of the bytes of the tensors in the order of the columns.
 * A model of several files is {@code PREFIX-00001-of-0000N.arrow} and so on, each with {@code
 * fletch.split.no} (from 0), {@code fletch.split.count} and {@code fletch.split.tensors} (of all);
 * the metadata are in the first, and {@code fletch.split.footers} there has the hashes of the
 * others' footers.
 *
 * <p>A file appears under its name when it is complete, and not before. Used by one thread.
 */
public final class ArrowWriter {
  private static final long ALIGNMENT = 64;
  private static final long PAGE = 4096;
  private static final long LARGE = 64 << 10;

  /** An NIO buffer cannot be larger than 2 GiB. */
  private static final long PIECE = 64L << 20;

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
    writeShards(List.of(target), List.of(List.copyOf(tensors.values())));
  }

  /**
   * Writes shards {@code PREFIX-00001-of-0000N.arrow} beside each other, or one file if one is
   * enough.
   *
   * @param target {@code PREFIX.arrow}
   * @param maxShardBytes a shard takes tensors until the next one would make its data larger
   * @return the files, of which the first is the one to open
   * @throws UncheckedIOException if writing fails; the first shard does not appear then
   */
  public List<Path> writeSplit(Path target, long maxShardBytes) {
    String name = target.getFileName().toString();
    if (!name.endsWith(".arrow") || maxShardBytes < 1) {
      throw new IllegalArgumentException(
          "target: expected=PREFIX.arrow, at least 1 byte actual=" + name + ", " + maxShardBytes);
    }
    List<List<Item>> shards = new ArrayList<>(List.of(new ArrayList<>()));
    long size = 0;
    for (Item item : tensors.values()) {
      if (size > 0 && item.bytes() > maxShardBytes - size) {
        shards.add(new ArrayList<>());
        size = 0;
      }
      shards.getLast().add(item);
      size += item.bytes();
    }
    if (shards.size() == 1) {
      write(target);
      return List.of(target);
    }
    String prefix = name.substring(0, name.length() - ".arrow".length());
    List<Path> files = new ArrayList<>();
    for (int i = 0; i < shards.size(); i++) {
      files.add(target.resolveSibling(ArrowFiles.shardName(prefix, i, shards.size())));
    }
    writeShards(files, shards);
    return files;
  }

  private void writeShards(List<Path> targets, List<List<Item>> shards) {
    List<AtomicFile> written = new ArrayList<>();
    try {
      try {
        // The first shard has hashes of the others, so it comes last.
        List<String> footers = new ArrayList<>();
        for (int i = shards.size() - 1; i >= 0; i--) {
          AtomicFile file = new AtomicFile(targets.get(i));
          written.add(file);
          file.write(new byte[8]);
          footers.addFirst(writeTo(file, shards.get(i), keys(i, shards.size(), footers)));
          file.complete(Arrays.copyOf(ArrowFiles.MAGIC, 8));
        }
        for (AtomicFile file : written) {
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

  private Map<String, String> keys(int number, int count, List<String> footers) {
    Map<String, String> keys = new LinkedHashMap<>();
    keys.put(ArrowFiles.VERSION_KEY, ArrowFiles.VERSION);
    keys.put(ArrowFiles.METADATA_KEY, number == 0 ? json() : "{}");
    if (count > 1) {
      keys.put(ArrowFiles.SPLIT_NO, Integer.toString(number));
      keys.put(ArrowFiles.SPLIT_COUNT, Integer.toString(count));
      keys.put(ArrowFiles.SPLIT_TENSORS, Integer.toString(tensors.size()));
      if (number == 0) {
        keys.put(ArrowFiles.SPLIT_FOOTERS, String.join(" ", footers));
      }
    }
    return keys;
  }

  /** Writes all but the magic at the start. Returns the hash of the footer. */
  private static String writeTo(AtomicFile file, List<Item> items, Map<String, String> keys)
      throws IOException {
    FlatBytes message = new FlatBytes();
    writeMessage(file, message(message, 1, schema(message, items, keys), 0), 8);
    MessageDigest hash = sha256();
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
      data(file, item, hash);
      file.pad(ALIGNMENT);
    }
    file.write(new LittleEndianBytes().u32(-1).u32(0).toBytes());
    FlatBytes footer = new FlatBytes();
    int blocks = footer.structs(new long[] {start, bodyStart - start, body}, 3);
    int none = footer.structs(new long[0], 3);
    int schema = schema(footer, items, keys);
    String sum = HexFormat.of().formatHex(hash.digest());
    int sums = footer.vector(new int[] {pair(footer, ArrowFiles.SHA256_KEY, sum)});
    footer.start(5);
    footer.reference(4, sums);
    footer.number(0, V5, 2);
    footer.reference(1, schema);
    footer.reference(2, none);
    footer.reference(3, blocks);
    byte[] end = footer.finish(footer.end());
    file.write(end);
    file.write(new LittleEndianBytes().u32(end.length).bytes(ArrowFiles.MAGIC).toBytes());
    return HexFormat.of().formatHex(sha256().digest(end));
  }

  static MessageDigest sha256() {
    try {
      return MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError(e);
    }
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

  private static int schema(FlatBytes f, List<Item> items, Map<String, String> keys) {
    int[] columns = items.stream().mapToInt(item -> column(f, item)).toArray();
    int fields = f.vector(columns);
    int pairs =
        f.vector(
            keys.entrySet().stream().mapToInt(e -> pair(f, e.getKey(), e.getValue())).toArray());
    f.start(3);
    f.reference(1, fields);
    f.reference(2, pairs);
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

  private static void data(AtomicFile file, Item item, MessageDigest hash) throws IOException {
    long[] left = {item.bytes()};
    item.source()
        .writeTo(bytes -> {
          left[0] -= bytes.byteSize();
          if (left[0] < 0) {
            throw new IllegalStateException(
                "tensor " + item.name() + ": bytes: expected=" + item.bytes() + " actual=more");
          }
          file.write(bytes);
          add(hash, bytes);
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

  /** Adds bytes to a hash. */
  static void add(MessageDigest hash, MemorySegment bytes) {
    for (long at = 0; at < bytes.byteSize(); at += PIECE) {
      hash.update(bytes.asSlice(at, Math.min(PIECE, bytes.byteSize() - at)).asByteBuffer());
    }
  }
}
