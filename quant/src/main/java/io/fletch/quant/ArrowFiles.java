package io.fletch.quant;

import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Opens Fletch Arrow files, and shards of them: Arrow IPC files with one record batch of one row,
 * in which every tensor is a column, mapped without copying. {@link ArrowWriter} says what they
 * look like. Other Arrow files are refused, by the key that they lack.
 *
 * <p>Everything is checked before it is relied on: magics, the place and size of footer, message
 * and body, the order of buffers, and that each column has the bytes that its shape and type need.
 * Shards belong together by the hashes of their footers. The bytes of the tensors are hashed by
 * {@link WeightFile#verify} alone.
 */
final class ArrowFiles {
  static final byte[] MAGIC = "ARROW1".getBytes(StandardCharsets.US_ASCII);
  static final String VERSION_KEY = "fletch.version";
  static final String VERSION = "1";
  static final String METADATA_KEY = "fletch.metadata";
  static final String SHA256_KEY = "fletch.sha256";
  static final String SPLIT_NO = "fletch.split.no";
  static final String SPLIT_COUNT = "fletch.split.count";
  static final String SPLIT_TENSORS = "fletch.split.tensors";
  static final String SPLIT_FOOTERS = "fletch.split.footers";
  static final String TYPE_KEY = "fletch.type";
  static final String SHAPE_KEY = "fletch.shape";

  /** Kinds of Arrow types (Schema.fbs, union Type). */
  static final int TYPE_INT = 2;

  static final int TYPE_FLOAT = 3;
  static final int TYPE_LARGE_BINARY = 19;
  static final int TYPE_LARGE_LIST = 21;

  private static final int MAX_TENSORS = 1_000_000;
  private static final int MAX_SHARDS = 65_535;
  private static final Pattern SHARD_NAME = Pattern.compile("(.+)-(\\d{5})-of-(\\d{5})\\.arrow");

  private ArrowFiles() {}

  /** Whether a file starts like an Arrow IPC file. */
  static boolean isArrow(MemorySegment start) {
    return start.byteSize() >= MAGIC.length
        && start.asSlice(0, MAGIC.length).mismatch(MemorySegment.ofArray(MAGIC)) < 0;
  }

  /** The name of shard {@code number}, counted from 0. */
  static String shardName(String prefix, int number, int count) {
    return String.format("%s-%05d-of-%05d.arrow", prefix, number + 1, count);
  }

  /** Opens a file, or the first of several shards. */
  static WeightFile open(Path path) {
    try (MappedWeights.Builder builder = new MappedWeights.Builder()) {
      Map<String, String> keys = addShard(builder, path, null);
      if (keys.containsKey(SPLIT_COUNT)) {
        addSiblings(builder, path, keys);
      }
      byte[] json = keys.get(METADATA_KEY).getBytes(StandardCharsets.UTF_8);
      Map<String, Object> entries = Json.flatten(path, json);
      return builder.build(WeightFile.Format.ARROW, path, new JsonMetadata(path, entries));
    }
  }

  private static void addSiblings(
      MappedWeights.Builder builder, Path first, Map<String, String> keys) {
    int count = number(first, keys, SPLIT_COUNT, 2, MAX_SHARDS);
    int no = number(first, keys, SPLIT_NO, 0, count - 1);
    int tensors = number(first, keys, SPLIT_TENSORS, 0, MAX_TENSORS);
    Matcher name = SHARD_NAME.matcher(first.getFileName().toString());
    String wanted = name.matches() ? shardName(name.group(1), 0, count) : null;
    if (wanted == null) {
      throw Json.fail(
          first,
          "name of a shard",
          "PREFIX-00001-of-" + String.format("%05d", count) + ".arrow",
          first.getFileName());
    }
    if (no != 0 || !first.getFileName().toString().equals(wanted)) {
      throw Json.fail(first, SPLIT_NO, "0; open the first shard instead: " + wanted, no);
    }
    String[] footers = keys.getOrDefault(SPLIT_FOOTERS, "").split(" ");
    if (footers.length != count - 1) {
      throw Json.fail(first, SPLIT_FOOTERS, count - 1 + " hashes", footers.length);
    }
    for (int i = 1; i < count; i++) {
      Path file = first.resolveSibling(shardName(name.group(1), i, count));
      if (!Files.exists(file)) {
        throw new WeightFileException(file + ": shard " + (i + 1) + " of " + count + " is missing");
      }
      Map<String, String> shard = addShard(builder, file, footers[i - 1]);
      if (number(file, shard, SPLIT_NO, 0, MAX_SHARDS) != i) {
        throw Json.fail(file, SPLIT_NO, i, shard.get(SPLIT_NO));
      }
    }
    if (builder.size() != tensors) {
      throw Json.fail(first, SPLIT_TENSORS, tensors, builder.size());
    }
  }

  private static int number(Path path, Map<String, String> keys, String key, int least, int most) {
    String text = keys.get(key);
    int n = text != null && text.matches("\\d{1,9}") ? Integer.parseInt(text) : -1;
    if (n < least || n > most) {
      throw Json.fail(path, key, least + ".." + most, text);
    }
    return n;
  }

  /**
   * Adds the tensors of a file.
   *
   * @param footerHash what the first shard says of this one's footer; null for the first
   */
  private static Map<String, String> addShard(
      MappedWeights.Builder builder, Path path, String footerHash) {
    MappedWeights.Shard shard = builder.map(path);
    MemorySegment file = shard.segment();
    long size = file.byteSize();
    if (size < 32 || !isArrow(file) || !isArrow(file.asSlice(size - MAGIC.length))) {
      throw Json.fail(path, "magic", "ARROW1 at both ends", size < 32 ? size + " bytes" : "none");
    }
    long footerBytes = file.get(ByteCursor.INT, size - 10);
    if (footerBytes < 8 || footerBytes > size - 18) {
      throw Json.fail(path, "footer length", "8.." + (size - 18), footerBytes);
    }
    MemorySegment end = file.asSlice(size - 10 - footerBytes, footerBytes);
    if (footerHash != null) {
      MessageDigest hash = ArrowWriter.sha256();
      ArrowWriter.add(hash, end);
      String actual = HexFormat.of().formatHex(hash.digest());
      if (!actual.equals(footerHash)) {
        throw Json.fail(path, "SHA-256 of the footer (a shard of this model?)", footerHash, actual);
      }
    }
    FlatTable footer = FlatTable.root(path, end);
    FlatTable schema = footer.table(1);
    Map<String, String> keys = pairs(path, schema, 2);
    if (!VERSION.equals(keys.get(VERSION_KEY))) {
      throw Json.fail(path, "schema metadata " + VERSION_KEY, VERSION, keys.get(VERSION_KEY));
    }
    if (keys.get(METADATA_KEY) == null) {
      throw Json.fail(path, "schema metadata " + METADATA_KEY, "present", "absent");
    }
    if (schema.number(0, 2) != 0) {
      throw Json.fail(path, "endianness", "0 (little)", schema.number(0, 2));
    }
    int batches = footer.length(3, 24);
    if (batches != 1) {
      throw Json.fail(path, "record batches", 1, batches);
    }
    int before = builder.size();
    readBatch(builder, shard, schema, footer, size - 10 - footerBytes);
    builder.hash(path, before, pairs(path, footer, 4).get(SHA256_KEY));
    return keys;
  }

  private static void readBatch(
      MappedWeights.Builder builder,
      MappedWeights.Shard shard,
      FlatTable schema,
      FlatTable footer,
      long end) {
    Path path = shard.path();
    MemorySegment file = shard.segment();
    long start = footer.struct(3, 0);
    long metaBytes = footer.struct(3, 8) & 0xffff_ffffL;
    long bodyBytes = footer.struct(3, 16);
    if (start < 8
        || metaBytes < 16
        || bodyBytes < 0
        || start > end - metaBytes
        || start + metaBytes > end - bodyBytes) {
      throw Json.fail(path, "record batch", "within " + end + " bytes", start);
    }
    if (file.get(ByteCursor.INT, start) != -1
        || Integer.toUnsignedLong(file.get(ByteCursor.INT, start + 4)) != metaBytes - 8) {
      throw Json.fail(
          path,
          "record batch: length of its message",
          metaBytes - 8,
          file.get(ByteCursor.INT, start + 4));
    }
    FlatTable message = FlatTable.root(path, file.asSlice(start + 8, metaBytes - 8));
    if (message.number(1, 1) != 3 || message.number(3, 8) != bodyBytes) {
      throw Json.fail(path, "message", "a record batch of " + bodyBytes, message.number(3, 8));
    }
    FlatTable batch = message.table(2);
    if (batch.number(0, 8) != 1 || batch.has(3)) {
      throw Json.fail(path, "record batch", "1 row, not compressed", batch.number(0, 8));
    }
    int columns = schema.length(1, 4);
    if (columns > MAX_TENSORS) {
      throw Json.fail(path, "columns", "at most " + MAX_TENSORS, columns);
    }
    int buffers = batch.length(2, 16);
    long body = start + metaBytes;
    int next = 0;
    long last = 0;
    for (int c = 0; c < columns; c++) {
      FlatTable field = schema.element(1, c);
      String name = field.string(0);
      int kind = (int) field.number(2, 1);
      if (kind != TYPE_LARGE_BINARY && kind != TYPE_LARGE_LIST) {
        throw Json.fail(path, "column " + name + ": type", "LargeBinary or LargeList", kind);
      }
      boolean list = kind == TYPE_LARGE_LIST;
      int own = list ? 4 : 3;
      if (next > buffers - own) {
        throw Json.fail(path, "buffers", "at least " + (next + own), buffers);
      }
      long[] at = new long[own];
      long[] bytes = new long[own];
      for (int i = 0; i < own; i++, next++) {
        at[i] = batch.struct(2, 16L * next);
        bytes[i] = batch.struct(2, 16L * next + 8);
        if (at[i] < last || bytes[i] < 0 || at[i] > bodyBytes - bytes[i]) {
          throw Json.fail(
              path,
              "column " + name + ": buffer " + i,
              "from " + last + " within " + bodyBytes,
              at[i] + " + " + bytes[i]);
        }
        last = at[i] + bytes[i];
      }
      if (bytes[0] != 0 || list && bytes[2] != 0 || bytes[1] != 16) {
        throw Json.fail(path, "column " + name + ": offsets", "16 bytes, no nulls", bytes[1]);
      }
      tensor(builder, shard, field, name, body, at, bytes);
    }
    if (next != buffers) {
      throw Json.fail(path, "buffers", next, buffers);
    }
  }

  private static void tensor(
      MappedWeights.Builder builder,
      MappedWeights.Shard shard,
      FlatTable field,
      String name,
      long body,
      long[] at,
      long[] bytes) {
    Path path = shard.path();
    Map<String, String> keys = pairs(path, field, 6);
    TensorType type = null;
    for (TensorType t : TensorType.values()) {
      type = t.name().equals(keys.get(TYPE_KEY)) ? t : type;
    }
    if (type == null) {
      throw Json.fail(path, "column " + name + ": " + TYPE_KEY, "a known type", keys.get(TYPE_KEY));
    }
    long[] shape = shape(path, name, keys.get(SHAPE_KEY));
    long wanted;
    long elements = 1;
    try {
      for (long d : shape) {
        elements = Math.multiplyExact(elements, d);
      }
      type.bytes(shape.length == 0 ? 1 : shape[shape.length - 1]);
      wanted = type.bytes(elements);
    } catch (ArithmeticException | IllegalArgumentException e) {
      throw Json.fail(path, "column " + name + ": shape", "whole blocks", e.getMessage());
    }
    int data = at.length - 1;
    long unit = at.length == 4 ? type.blockBytes() : 1;
    long first = shard.segment().get(ByteCursor.LONG, body + at[1]);
    long count = shard.segment().get(ByteCursor.LONG, body + at[1] + 8);
    if (bytes[data] != wanted || first != 0 || count != wanted / unit) {
      throw Json.fail(path, "column " + name + ": bytes", wanted, bytes[data] + " for " + count);
    }
    builder.add(shard, name, type, type.name(), shape, body + at[data], wanted);
  }

  private static long[] shape(Path path, String name, String text) {
    List<Long> dims = new ArrayList<>();
    if (text == null || !text.matches("\\[(\\d{1,18}(,\\d{1,18})*)?\\]")) {
      throw Json.fail(path, "column " + name + ": " + SHAPE_KEY, "[n,...]", text);
    }
    for (String d : text.substring(1, text.length() - 1).split(",", -1)) {
      if (!d.isEmpty()) {
        dims.add(Long.parseLong(d));
      }
    }
    return dims.stream().mapToLong(Long::longValue).toArray();
  }

  private static Map<String, String> pairs(Path path, FlatTable table, int index) {
    Map<String, String> all = new LinkedHashMap<>();
    int n = table.length(index, 4);
    for (int i = 0; i < n; i++) {
      FlatTable pair = table.element(index, i);
      if (all.put(pair.string(0), pair.string(1)) != null) {
        throw Json.fail(path, "metadata " + pair.string(0), "once", "twice");
      }
    }
    return all;
  }
}
