package io.fletch.quant;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.util.AbstractList;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.RandomAccess;

/**
 * The key/values of a GGUF file, decoded from the mapping when asked for: a vocabulary of 128k
 * tokens costs nothing until somebody reads it. Arrays are decoded anew on every call. Safe for use
 * by several threads while the file is open.
 */
final class GgufMetadata extends TypedMetadata {
  /**
   * Where a value lies in the file.
   *
   * @param elementType type of the elements of an array, else null
   * @param count elements of an array, else 1
   * @param start first byte of a scalar, or of the first element
   * @param end byte after the value
   */
  record Entry(GgufType type, GgufType elementType, int count, long start, long end) {}

  private final MemorySegment bytes;
  private final Map<String, Entry> index;

  GgufMetadata(Object source, MemorySegment bytes, Map<String, Entry> index) {
    super(source);
    this.bytes = bytes;
    this.index = Collections.unmodifiableMap(index);
  }

  /** Keys in file order, with where their values lie. */
  Map<String, Entry> index() {
    return index;
  }

  /** The file. */
  MemorySegment bytes() {
    return bytes;
  }

  @Override
  public boolean has(String key) {
    return index.containsKey(key);
  }

  @Override
  public Map<String, Object> entries() {
    Map<String, Object> result = new LinkedHashMap<>();
    for (String key : index.keySet()) {
      result.put(key, value(key));
    }
    return Collections.unmodifiableMap(result);
  }

  @Override
  Object value(String key) {
    Entry e = index.get(key);
    if (e == null) {
      return null;
    }
    return e.type() == GgufType.ARRAY ? new LazyList(e) : scalar(e.type(), e.start());
  }

  @Override
  String typeName(String key) {
    Entry e = index.get(key);
    return e.type() == GgufType.ARRAY
        ? e.elementType() + "[" + e.count() + "]"
        : e.type().toString();
  }

  @Override
  public Optional<long[]> integers(String key) {
    Entry e = index.get(key);
    if (e == null || e.type() != GgufType.ARRAY) {
      return super.integers(key);
    }
    if (!e.elementType().isInteger()) {
      throw mismatch(key, "array of integers", typeName(key));
    }
    long[] result = new long[e.count()];
    for (int i = 0; i < result.length; i++) {
      if (!(number(e.elementType(), elementAt(e, i)) instanceof Long value)) {
        throw mismatch(key, "integers within 64 bits", "a larger one at index " + i);
      }
      result[i] = value;
    }
    return Optional.of(result);
  }

  @Override
  public Optional<float[]> floats(String key) {
    Entry e = index.get(key);
    if (e == null || e.type() != GgufType.ARRAY) {
      return super.floats(key);
    }
    if (!e.elementType().isInteger() && !e.elementType().isFloat()) {
      throw mismatch(key, "array of numbers", typeName(key));
    }
    float[] result = new float[e.count()];
    if (e.elementType() == GgufType.FLOAT32) {
      MemorySegment.copy(bytes, ByteCursor.FLOAT, e.start(), result, 0, result.length);
    } else {
      for (int i = 0; i < result.length; i++) {
        result[i] = number(e.elementType(), elementAt(e, i)).floatValue();
      }
    }
    return Optional.of(result);
  }

  @Override
  public Optional<String[]> strings(String key) {
    return bytes(key)
        .map(raw -> {
          String[] result = new String[raw.length];
          for (int i = 0; i < result.length; i++) {
            result[i] = new String(raw[i], StandardCharsets.UTF_8);
          }
          return result;
        });
  }

  @Override
  public Optional<byte[][]> bytes(String key) {
    Entry e = index.get(key);
    if (e == null) {
      return Optional.empty();
    }
    if (e.elementType() != GgufType.STRING) {
      throw mismatch(key, "array of strings", typeName(key));
    }
    byte[][] result = new byte[e.count()][];
    long at = e.start();
    for (int i = 0; i < result.length; i++) {
      result[i] = stringBytes(at);
      at += Long.BYTES + result[i].length;
    }
    return Optional.of(result);
  }

  private static long elementAt(Entry e, int i) {
    return e.start() + (long) i * e.elementType().minBytes();
  }

  private byte[] stringBytes(long at) {
    byte[] raw = new byte[Math.toIntExact(bytes.get(ByteCursor.LONG, at))];
    MemorySegment.copy(bytes, ValueLayout.JAVA_BYTE, at + Long.BYTES, raw, 0, raw.length);
    return raw;
  }

  private Object scalar(GgufType type, long at) {
    return switch (type) {
      case STRING -> new String(stringBytes(at), StandardCharsets.UTF_8);
      case BOOL -> bytes.get(ValueLayout.JAVA_BYTE, at) != 0;
      default -> number(type, at);
    };
  }

  /** A number as Long, as Double, or as BigInteger if it is beyond a signed 64-bit integer. */
  private Number number(GgufType type, long at) {
    // Separate returns: a switch expression would promote the primitives to one common type.
    switch (type) {
      case UINT8:
        return (long) Byte.toUnsignedInt(bytes.get(ValueLayout.JAVA_BYTE, at));
      case INT8:
        return (long) bytes.get(ValueLayout.JAVA_BYTE, at);
      case UINT16:
        return (long) Short.toUnsignedInt(bytes.get(ByteCursor.SHORT, at));
      case INT16:
        return (long) bytes.get(ByteCursor.SHORT, at);
      case UINT32:
        return Integer.toUnsignedLong(bytes.get(ByteCursor.INT, at));
      case INT32:
        return (long) bytes.get(ByteCursor.INT, at);
      case INT64:
        return bytes.get(ByteCursor.LONG, at);
      case UINT64:
        long value = bytes.get(ByteCursor.LONG, at);
        return value >= 0 ? (Number) value : new BigInteger(Long.toUnsignedString(value));
      case FLOAT32:
        return (double) bytes.get(ByteCursor.FLOAT, at);
      case FLOAT64:
        return bytes.get(ByteCursor.DOUBLE, at);
      default:
        throw new IllegalArgumentException("not a number: " + type);
    }
  }

  /** An array that is decoded on first use. */
  private final class LazyList extends AbstractList<Object> implements RandomAccess {
    private final Entry entry;
    private List<Object> decoded;

    LazyList(Entry entry) {
      this.entry = entry;
    }

    @Override
    public int size() {
      return entry.count();
    }

    @Override
    public Object get(int index) {
      return decoded().get(index);
    }

    private synchronized List<Object> decoded() {
      if (decoded == null) {
        List<Object> list = new ArrayList<>(entry.count());
        long at = entry.start();
        for (int i = 0; i < entry.count(); i++) {
          list.add(scalar(entry.elementType(), at));
          at +=
              entry.elementType() == GgufType.STRING
                  ? Long.BYTES + bytes.get(ByteCursor.LONG, at)
                  : entry.elementType().minBytes();
        }
        decoded = list;
      }
      return decoded;
    }
  }
}
