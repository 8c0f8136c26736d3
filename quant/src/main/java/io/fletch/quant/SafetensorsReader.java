package io.fletch.quant;

import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Reads the header of one safetensors file. Stateless.
 *
 * <p>The format (specs weights 1.4):
 *
 * <ol>
 *   <li>u64 N, little-endian, at most 100,000,000; N bytes of header; the data. 8 + N bytes fit in
 *       the file.
 *   <li>The header is a JSON object in UTF-8 that starts with a brace and may be followed by
 *       spaces. No key comes twice.
 *   <li>{@code __metadata__}, if present, maps strings to strings.
 *   <li>Every other key is a tensor: {@code dtype}, {@code shape} (row-major, unsigned; empty for a
 *       scalar) and {@code data_offsets}, begin and end counted from the start of the data.
 *   <li>The end minus the begin is what dtype and shape need, a whole number of bytes.
 *   <li>In order of their offsets tensors follow each other from 0 to the end of the file, without
 *       hole or overlap.
 * </ol>
 */
final class SafetensorsReader {
  static final int MAX_HEADER_BYTES = 100_000_000;
  private static final int MAX_TENSORS = 1_000_000;
  private static final int MAX_AXES = 64;

  private SafetensorsReader() {}

  /** An element type: its size, and the type to compute with or null. */
  private record Element(int bits, TensorType supported) {}

  private static final Map<String, Element> ELEMENTS = elements();

  private static Map<String, Element> elements() {
    Map<String, Element> result = new HashMap<>();
    for (TensorType type : TensorType.values()) {
      if (!type.isQuantized()) {
        result.put(type.name(), new Element(type.blockBytes() * 8, type));
      }
    }
    for (String type : List.of("BOOL", "U8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ")) {
      result.put(type, new Element(8, null));
    }
    result.put("F8_E5M2FNUZ", new Element(8, null));
    result.put("F4", new Element(4, null));
    result.put("F6_E2M3", new Element(6, null));
    result.put("F6_E3M2", new Element(6, null));
    result.put("U16", new Element(16, null));
    result.put("U32", new Element(32, null));
    result.put("U64", new Element(64, null));
    result.put("C64", new Element(64, null));
    return result;
  }

  /**
   * A tensor of the header.
   *
   * @param type its type if supported, else null
   * @param start first byte in the file
   */
  record Info(
      String name, TensorType type, String typeName, long[] shape, long start, long bytes) {}

  /** The header of a file; tensors in order of their offsets. */
  record Header(Map<String, String> metadata, List<Info> tensors) {}

  /**
   * Reads the header.
   *
   * @param file names the file in messages
   * @param bytes the whole file
   * @throws WeightFileException if any check fails
   */
  static Header read(Path file, MemorySegment bytes) {
    long size = bytes.byteSize();
    if (size < 8) {
      throw Json.fail(file, "file size", "at least 8", size);
    }
    long n = bytes.get(ByteCursor.LONG, 0);
    if (n < 2 || n > MAX_HEADER_BYTES || n > size - 8) {
      throw Json.fail(
          file,
          "header length",
          "2.." + Math.min(MAX_HEADER_BYTES, size - 8),
          Long.toUnsignedString(n));
    }
    byte[] header = bytes.asSlice(8, n).toArray(ValueLayout.JAVA_BYTE);
    if (header[0] != '{') {
      throw Json.fail(file, "first byte of the header", "'{'", header[0]);
    }
    Map<String, String> metadata = new LinkedHashMap<>();
    List<Info> tensors = new ArrayList<>();
    Json.object(
        file,
        header,
        parser -> {
          readHeader(file, parser, 8 + n, metadata, tensors);
          return null;
        });
    tensors.sort(Comparator.comparingLong(Info::start).thenComparingLong(Info::bytes));
    long end = 8 + n;
    for (Info t : tensors) {
      if (t.start() != end) {
        throw Json.fail(file, "tensor " + t.name() + ": begin", end - 8 - n, t.start() - 8 - n);
      }
      end += t.bytes();
    }
    if (end != size) {
      throw Json.fail(file, "end of the last tensor", size - 8 - n, end - 8 - n);
    }
    return new Header(metadata, tensors);
  }

  private static void readHeader(
      Path file, JsonParser p, long dataStart, Map<String, String> metadata, List<Info> tensors)
      throws IOException {
    while (p.nextToken() != JsonToken.END_OBJECT) {
      String name = p.currentName();
      if (p.nextToken() != JsonToken.START_OBJECT) {
        throw Json.fail(file, "header entry " + name, "an object", p.currentToken());
      }
      if (name.equals("__metadata__")) {
        while (p.nextToken() != JsonToken.END_OBJECT) {
          String key = p.currentName();
          if (p.nextToken() != JsonToken.VALUE_STRING) {
            throw Json.fail(file, "__metadata__ " + key, "a string", p.currentToken());
          }
          metadata.put(key, p.getText());
        }
      } else {
        if (tensors.size() == MAX_TENSORS) {
          throw Json.fail(file, "tensors", "at most " + MAX_TENSORS, "more");
        }
        tensors.add(readTensor(file, name, p, dataStart));
      }
    }
  }

  private static Info readTensor(Path file, String name, JsonParser p, long dataStart)
      throws IOException {
    String what = "tensor " + name + ": ";
    String dtype = null;
    long[] shape = null;
    long[] offsets = null;
    while (p.nextToken() != JsonToken.END_OBJECT) {
      String field = p.currentName();
      JsonToken token = p.nextToken();
      switch (field) {
        case "dtype" -> {
          if (token != JsonToken.VALUE_STRING) {
            throw Json.fail(file, what + "dtype", "a string", token);
          }
          dtype = p.getText();
        }
        case "shape" -> shape = unsigned(file, what + "shape", p, MAX_AXES);
        case "data_offsets" -> offsets = unsigned(file, what + "data_offsets", p, 2);
        default -> p.skipChildren();
      }
    }
    if (dtype == null || shape == null || offsets == null) {
      throw Json.fail(
          file,
          what + "fields",
          "dtype, shape and data_offsets",
          dtype == null ? "no dtype" : shape == null ? "no shape" : "no data_offsets");
    }
    Element element = ELEMENTS.get(dtype);
    if (element == null) {
      throw Json.fail(file, what + "dtype", "a known one", dtype);
    }
    if (offsets.length != 2 || offsets[0] > offsets[1]) {
      throw Json.fail(file, what + "data_offsets", "[begin, end]", Arrays.toString(offsets));
    }
    long bits = element.bits();
    boolean empty = false;
    try {
      for (long dim : shape) {
        empty |= dim == 0;
        bits = Math.multiplyExact(bits, Math.max(dim, 1));
      }
    } catch (ArithmeticException e) {
      throw Json.fail(file, what + "shape", "a size below 2^63 bits", Arrays.toString(shape));
    }
    if (empty) {
      bits = 0;
    }
    if (bits % 8 != 0) {
      throw Json.fail(file, what + "size", "a whole number of bytes", bits + " bits");
    }
    if (offsets[1] - offsets[0] != bits / 8) {
      throw Json.fail(
          file,
          what + "data_offsets",
          bits / 8 + " bytes for " + dtype + " " + Arrays.toString(shape),
          offsets[1] - offsets[0]);
    }
    long start;
    try {
      Math.addExact(dataStart, offsets[1]);
      start = dataStart + offsets[0];
    } catch (ArithmeticException e) {
      throw Json.fail(file, what + "data_offsets", "within the file", Arrays.toString(offsets));
    }
    return new Info(name, element.supported(), dtype, shape, start, bits / 8);
  }

  private static long[] unsigned(Path file, String what, JsonParser p, int max) throws IOException {
    if (p.currentToken() != JsonToken.START_ARRAY) {
      throw Json.fail(file, what, "an array", p.currentToken());
    }
    long[] values = new long[max];
    int count = 0;
    while (p.nextToken() != JsonToken.END_ARRAY) {
      if (count == max) {
        throw Json.fail(file, what, "at most " + max + " values", "more");
      }
      if (p.currentToken() != JsonToken.VALUE_NUMBER_INT || p.getText().startsWith("-")) {
        throw Json.fail(file, what, "unsigned integers", p.getText());
      }
      values[count++] = p.getLongValue();
    }
    return Arrays.copyOf(values, count);
  }
}
