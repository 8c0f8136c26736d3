package io.fletch.quant;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * Reads the header of one GGUF file. Stateless; every check comes before the allocation or the
 * arithmetic that relies on it, and a file that fails one ends in a {@link WeightFileException}.
 *
 * <p>The format (specs weights 1.1, 1.2), little-endian and without padding up to item 6:
 *
 * <ol>
 *   <li>magic {@code GGUF}; u32 version, 3 or (the same layout) 2; i64 number of tensors; i64
 *       number of key/values.
 *   <li>Per key/value: string key; i32 value type; the value. A string is a u64 byte length and the
 *       bytes. An array is an i32 element type (not array), a u64 count and the elements.
 *   <li>Keys are unique, 1 to 65535 bytes of UTF-8. A bool is one byte, 0 or 1. A string value has
 *       at most 2^30 bytes, an array at most 2^30 elements.
 *   <li>Per tensor: string name (1 to 63 bytes, unique); u32 number of axes, 0 to 4; i64 sizes,
 *       fastest axis first; i32 element type; u64 offset from the start of the data.
 *   <li>The size of the fastest axis is a multiple of the type's block size; the number of elements
 *       and of bytes fit in an i64.
 *   <li>Padding to a multiple of {@code general.alignment} (u32, a power of two, at least 8; 32 if
 *       absent); then the data. Tensors lie in the order of (4), each padded to the alignment, so
 *       an offset has exactly one legal value and tensors cannot overlap.
 *   <li>The last tensor ends within the file.
 * </ol>
 */
final class GgufReader {
  static final int MAGIC = 0x46554747;
  static final int DEFAULT_ALIGNMENT = 32;
  static final int MAX_KEY_BYTES = 65535;
  static final int MAX_NAME_BYTES = 63;
  static final int MAX_AXES = 4;
  static final int MAX_ENTRIES = 1_000_000;
  static final int MAX_ARRAY = 1 << 30;
  static final String ALIGNMENT_KEY = "general.alignment";

  /** Smallest key/value: key length, one byte of key, type, one byte of value. */
  private static final int MIN_ENTRY_BYTES = 8 + 1 + 4 + 1;

  /** Smallest tensor info: name length, one byte of name, axes, type, offset. */
  private static final int MIN_INFO_BYTES = 8 + 1 + 4 + 4 + 8;

  private GgufReader() {}

  /**
   * An element type of the container.
   *
   * @param supported the same type if it can be computed with, else null
   */
  private record Element(String name, int blockSize, int blockBytes, TensorType supported) {}

  private static final Map<Integer, Element> ELEMENTS = elements();

  private static final Map<Integer, String> REMOVED =
      Map.of(
          4,
          "Q4_2",
          5,
          "Q4_3",
          31,
          "Q4_0_4_4",
          32,
          "Q4_0_4_8",
          33,
          "Q4_0_8_8",
          36,
          "IQ4_NL_4_4",
          37,
          "IQ4_NL_4_8",
          38,
          "IQ4_NL_8_8");

  private static Map<Integer, Element> elements() {
    Map<Integer, Element> result = new HashMap<>();
    for (TensorType type : TensorType.values()) {
      result.put(
          type.ggufId(), new Element(type.name(), type.blockSize(), type.blockBytes(), type));
    }
    // Only their sizes are known here: enough to check where the tensors after them lie.
    result.put(9, new Element("Q8_1", 32, 36, null));
    result.put(15, new Element("Q8_K", 256, 292, null));
    result.put(16, new Element("IQ2_XXS", 256, 66, null));
    result.put(17, new Element("IQ2_XS", 256, 74, null));
    result.put(18, new Element("IQ3_XXS", 256, 98, null));
    result.put(19, new Element("IQ1_S", 256, 50, null));
    result.put(21, new Element("IQ3_S", 256, 110, null));
    result.put(22, new Element("IQ2_S", 256, 82, null));
    result.put(29, new Element("IQ1_M", 256, 56, null));
    result.put(34, new Element("TQ1_0", 256, 54, null));
    result.put(35, new Element("TQ2_0", 256, 66, null));
    result.put(40, new Element("NVFP4", 64, 36, null));
    result.put(41, new Element("Q1_0", 128, 18, null));
    result.put(42, new Element("Q2_0", 64, 18, null));
    return result;
  }

  /**
   * Where a tensor lies.
   *
   * @param type its type if supported, else null
   * @param typeName the type as the file format calls it
   * @param shape outermost axis first
   * @param start first byte in the file
   */
  record Info(
      String name, TensorType type, String typeName, long[] shape, long start, long bytes) {}

  /** The header of a file. */
  record Header(GgufMetadata metadata, List<Info> tensors) {}

  /**
   * Reads the header.
   *
   * @param file names the file in messages
   * @param bytes the whole file
   * @throws WeightFileException if any check fails
   */
  static Header read(Path file, MemorySegment bytes) {
    ByteCursor in = new ByteCursor(file, bytes);
    int magic = in.i32("magic");
    if (magic != MAGIC) {
      throw in.fail("magic", "GGUF", String.format("0x%08x", Integer.reverseBytes(magic)));
    }
    int version = in.i32("version");
    if ((version & 0xFFFF) == 0) {
      throw in.fail("version", "a little-endian file", "a big-endian file");
    }
    if (version != 2 && version != 3) {
      throw in.fail("version", "2 or 3", Integer.toUnsignedString(version));
    }
    int tensorCount = count(in, "tensor count", MIN_INFO_BYTES);
    int entryCount = count(in, "key/value count", MIN_ENTRY_BYTES);
    Map<String, GgufMetadata.Entry> index = LinkedHashMap.newLinkedHashMap(entryCount);
    for (int i = 0; i < entryCount; i++) {
      readEntry(in, bytes, i, index);
    }
    GgufMetadata metadata = new GgufMetadata(file, bytes, index);
    in.context("header");
    long alignment = alignment(in, bytes, index.get(ALIGNMENT_KEY));
    return new Header(metadata, readInfos(in, tensorCount, alignment));
  }

  private static int count(ByteCursor in, String field, int minBytes) {
    long count = in.i64(field);
    if (count < 0 || count > MAX_ENTRIES) {
      throw in.fail(field, "0.." + MAX_ENTRIES, count);
    }
    if (count * minBytes > in.remaining()) {
      throw in.fail(
          field, "at most " + in.remaining() / minBytes + " in the rest of the file", count);
    }
    return (int) count;
  }

  private static void readEntry(
      ByteCursor in, MemorySegment bytes, int i, Map<String, GgufMetadata.Entry> index) {
    in.context("key/value " + i);
    String key = in.utf8("key", 1, MAX_KEY_BYTES);
    in.context("key " + key);
    GgufType type = type(in, "value type");
    GgufType elementType = null;
    int count = 1;
    if (type == GgufType.ARRAY) {
      elementType = type(in, "element type");
      if (elementType == GgufType.ARRAY) {
        throw in.fail("element type", "anything but an array", "ARRAY");
      }
      long n = in.i64("element count");
      if (n < 0 || n > MAX_ARRAY || n * elementType.minBytes() > in.remaining()) {
        throw in.fail(
            "element count",
            "0.." + Math.min(MAX_ARRAY, in.remaining() / elementType.minBytes()),
            Long.toUnsignedString(n));
      }
      count = (int) n;
    }
    long start = in.position();
    GgufType scalar = elementType == null ? type : elementType;
    switch (scalar) {
      case STRING -> in.skipStrings("string", count, MAX_ARRAY);
      case BOOL -> {
        in.skip("bools", count);
        for (long k = start; k < in.position(); k++) {
          int value = Byte.toUnsignedInt(bytes.get(ValueLayout.JAVA_BYTE, k));
          if (value > 1) {
            throw in.fail("bool", "0 or 1", value);
          }
        }
      }
      default -> in.skip("value", (long) count * scalar.minBytes());
    }
    GgufMetadata.Entry entry =
        new GgufMetadata.Entry(type, elementType, count, start, in.position());
    if (index.putIfAbsent(key, entry) != null) {
      throw in.fail("key", "each key once", "a second " + key);
    }
  }

  private static GgufType type(ByteCursor in, String field) {
    int id = in.i32(field);
    GgufType type = GgufType.byId(id);
    if (type == null) {
      throw in.fail(field, "0..12", id);
    }
    return type;
  }

  private static long alignment(ByteCursor in, MemorySegment bytes, GgufMetadata.Entry entry) {
    if (entry == null) {
      return DEFAULT_ALIGNMENT;
    }
    if (entry.type() != GgufType.UINT32) {
      throw in.fail(ALIGNMENT_KEY + " type", GgufType.UINT32, entry.type());
    }
    long value = Integer.toUnsignedLong(bytes.get(ByteCursor.INT, entry.start()));
    if (value < 8 || Long.bitCount(value) != 1) {
      throw in.fail(ALIGNMENT_KEY, "a power of two, at least 8", value);
    }
    return value;
  }

  private static List<Info> readInfos(ByteCursor in, int count, long alignment) {
    List<Info> relative = new ArrayList<>(count);
    Set<String> names = HashSet.newHashSet(count);
    long end = 0;
    for (int i = 0; i < count; i++) {
      Info info = readInfo(in, i, end);
      if (!names.add(info.name())) {
        throw in.fail("name", "each name once", "a second " + info.name());
      }
      relative.add(info);
      end = pad(in, Math.addExact(end, info.bytes()), alignment);
    }
    in.context("tensor data");
    long dataStart = count == 0 ? in.position() : pad(in, in.position(), alignment);
    long fileSize = in.position() + in.remaining();
    List<Info> result = new ArrayList<>(count);
    for (Info info : relative) {
      // No overflow: start + bytes passed pad() above, and both are sums of checked sizes.
      if (info.start() + info.bytes() > fileSize - dataStart) {
        throw in.fail(
            "end of tensor " + info.name(),
            "at most " + fileSize + " (the file size)",
            "data start " + dataStart + " + " + (info.start() + info.bytes()));
      }
      result.add(
          new Info(
              info.name(),
              info.type(),
              info.typeName(),
              info.shape(),
              dataStart + info.start(),
              info.bytes()));
    }
    return result;
  }

  private static Info readInfo(ByteCursor in, int i, long expectedOffset) {
    in.context("tensor " + i);
    String name = in.utf8("name", 1, MAX_NAME_BYTES);
    in.context("tensor " + name);
    int axes = in.i32("number of axes");
    if (axes < 0 || axes > MAX_AXES) {
      throw in.fail("number of axes", "0.." + MAX_AXES, Integer.toUnsignedString(axes));
    }
    long[] shape = new long[axes];
    boolean empty = false;
    long product = 1;
    for (int axis = 0; axis < axes; axis++) {
      long size = in.i64("size of axis " + axis);
      if (size < 0) {
        throw in.fail("size of axis " + axis, ">=0", size);
      }
      shape[axes - 1 - axis] = size;
      empty |= size == 0;
      try {
        product = Math.multiplyExact(product, Math.max(size, 1));
      } catch (ArithmeticException e) {
        throw in.fail("number of elements", "a product below 2^63", "an overflow");
      }
    }
    int id = in.i32("type");
    Element element = ELEMENTS.get(id);
    if (element == null) {
      throw in.fail(
          "type",
          "a known type id",
          REMOVED.containsKey(id)
              ? id + " (" + REMOVED.get(id) + ", removed from the format)"
              : id);
    }
    long row = axes == 0 ? 1 : shape[axes - 1];
    if (row % element.blockSize() != 0) {
      throw in.fail(
          "size of axis 0", "a multiple of " + element.blockSize() + " for " + element.name(), row);
    }
    long bytes;
    try {
      bytes = empty ? 0 : Math.multiplyExact(product / element.blockSize(), element.blockBytes());
    } catch (ArithmeticException e) {
      throw in.fail("number of bytes", "below 2^63", "an overflow");
    }
    if (bytes > in.remaining()) {
      throw in.fail("number of bytes", "at most " + in.remaining() + " (rest of the file)", bytes);
    }
    long offset = in.i64("offset");
    if (offset != expectedOffset) {
      throw in.fail("offset", expectedOffset, Long.toUnsignedString(offset));
    }
    return new Info(name, element.supported(), element.name(), shape, offset, bytes);
  }

  private static long pad(ByteCursor in, long position, long alignment) {
    try {
      return Math.addExact(position, alignment - 1) & -alignment;
    } catch (ArithmeticException e) {
      throw in.fail("tensor data size", "below 2^63", "an overflow");
    }
  }
}
